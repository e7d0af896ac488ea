"""Everything that the command line reads."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from fuzzing.adapters import configs, headers, notes, tensors
from fuzzing.experiments import experiments, values
from fuzzing.folders import runs, stores
from fuzzing.programs import backbones, tasks, templates
from fuzzing.rows import rows
from fuzzing.shell import options, permissions, terminal
from fuzzing.trial import Trial

Surface = Callable[[random.Random, Path], Trial]
SURFACES: dict[str, tuple[Surface, int]] = {
    "experiments": (experiments, 18),
    "values": (values, 14),
    "rows": (rows, 18),
    "configs": (configs, 12),
    "headers": (headers, 11),
    "tensors": (tensors, 2),
    "notes": (notes, 3),
    "runs": (runs, 9),
    "stores": (stores, 5),
    "tasks": (tasks, 4),
    "backbones": (backbones, 2),
    "templates": (templates, 1),
    "options": (options, 5),
    "terminal": (terminal, 2),
    "permissions": (permissions, 1),
}
"""Surfaces, and how many of a hundred inputs are theirs, about."""
