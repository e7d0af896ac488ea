"""Lift a task into languages that have no labels for it.

Public names are imported when they are first used, so that `import lingualift` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lingualift.adapters import inspect as inspect
    from lingualift.checking import check as check
    from lingualift.commands.evaluate import evaluate as evaluate
    from lingualift.commands.export import export_data as export_data
    from lingualift.commands.lift import lift as lift
    from lingualift.commands.predict import predict as predict
    from lingualift.commands.push import push as push
    from lingualift.config import load_experiment as load_experiment
    from lingualift.errors import UserError as UserError
    from lingualift.fusion import FlareConfig as FlareConfig
    from lingualift.fusion import MixupConfig as MixupConfig
    from lingualift.fusion import flare as flare
    from lingualift.fusion import load_flare as load_flare
    from lingualift.fusion import load_mixup as load_mixup
    from lingualift.fusion import mixup as mixup
    from lingualift.merging import merge as merge
    from lingualift.pipeline import run as run
    from lingualift.report import write_report as write_report
    from lingualift.translation import translate as translate

_HOMES = {
    "check": "lingualift.checking",
    "FlareConfig": "lingualift.fusion",
    "MixupConfig": "lingualift.fusion",
    "UserError": "lingualift.errors",
    "evaluate": "lingualift.commands.evaluate",
    "export_data": "lingualift.commands.export",
    "flare": "lingualift.fusion",
    "inspect": "lingualift.adapters",
    "lift": "lingualift.commands.lift",
    "load_experiment": "lingualift.config",
    "load_flare": "lingualift.fusion",
    "load_mixup": "lingualift.fusion",
    "merge": "lingualift.merging",
    "mixup": "lingualift.fusion",
    "predict": "lingualift.commands.predict",
    "push": "lingualift.commands.push",
    "run": "lingualift.pipeline",
    "translate": "lingualift.translation",
    "write_report": "lingualift.report",
}
__all__ = [
    "FlareConfig",
    "MixupConfig",
    "UserError",
    "check",
    "evaluate",
    "export_data",
    "flare",
    "inspect",
    "lift",
    "load_experiment",
    "load_flare",
    "load_mixup",
    "merge",
    "mixup",
    "predict",
    "push",
    "run",
    "translate",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lingualift' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
