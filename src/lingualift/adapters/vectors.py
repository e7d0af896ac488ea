"""(IA)³ vectors, bottlenecks and virtual tokens among an adapter's tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lingualift.adapters.structure import PREFIX, PROMPT, Module
from lingualift.adapters.tensorfile import TensorSpec
from lingualift.errors import UserError

_BOTTLENECK = re.compile(r"(?P<module>.+)\.bottleneck_(?P<part>(?:down|up)\.(?:weight|bias))")
_PARTS = ("down.weight", "down.bias", "up.weight", "up.bias")
_VECTOR = re.compile(r"(?P<module>.+)\.ia3_l")
_RESTORE = "restore the adapter from its source"


def vectors(_: Mapping[str, Any], specs: Mapping[str, TensorSpec], path: Path) -> dict[str, Module]:
    """The modules of an (IA)³ adapter by name; arguments and errors as of `structure`."""
    modules = {}
    for name, spec in specs.items():
        if match := _VECTOR.fullmatch(name):
            module = match["module"].removeprefix(PREFIX)
            if len(spec.shape) < 2 or max(spec.shape) != math.prod(spec.shape):
                raise UserError(path, f"tensor {name!r} has shape {spec.shape}", "(n, 1) or (1, n)", _RESTORE)
            modules[module] = Module(module, "vector", (name,), (spec.shape,))
    return modules


def bottlenecks(config: Mapping[str, Any], specs: Mapping[str, TensorSpec], path: Path) -> dict[str, Module]:
    """The modules of a bottleneck adapter by name; arguments and errors as of `structure`."""
    size = _count(config, "size", path)
    found: dict[str, dict[str, str]] = {}
    for name in specs:
        if match := _BOTTLENECK.fullmatch(name):
            found.setdefault(match["module"].removeprefix(PREFIX), {})[match["part"]] = name
    modules = {}
    for module, parts in found.items():
        for part in _PARTS:
            if part not in parts:
                raise UserError(path, f"module {module!r} has no {part}", ", ".join(_PARTS), _RESTORE)
        names = tuple(parts[part] for part in _PARTS)
        shapes = tuple(specs[name].shape for name in names)
        width = shapes[3][0] if len(shapes[3]) == 1 else 0
        expected = ((size, width), (size,), (width, size), (width,))
        if shapes != expected:
            raise UserError(
                path, f"the bottleneck of {module!r} has shapes {shapes}", f"{expected}", _RESTORE
            )
        modules[module] = Module(module, "bottleneck", names, shapes)
    return modules


def _count(config: Mapping[str, Any], key: str, path: Path) -> int:
    value = config.get(key)
    if type(value) is not int or value <= 0:
        raise UserError(path, f"{key} is {value!r}", "a whole number above 0", "mend adapter_config.json")
    return value


def _matrix(specs: Mapping[str, TensorSpec], rows: int, columns: int, path: Path) -> tuple[int, int]:
    if PROMPT not in specs:
        raise UserError(path, f"has no tensor {PROMPT!r}", "the virtual tokens", _RESTORE)
    shape = specs[PROMPT].shape
    if shape != (rows, columns):
        expected = f"({rows}, {columns}), as its configuration says"
        raise UserError(path, f"tensor {PROMPT!r} has shape {shape}", expected, _RESTORE)
    return rows, columns


def prefix(config: Mapping[str, Any], specs: Mapping[str, TensorSpec], path: Path) -> dict[str, Module]:
    """The blocks of a prefix by name: peft's columns run over layers, in each the key's and the value's width."""
    tokens, layers, width = (
        _count(config, key, path) for key in ("num_virtual_tokens", "num_layers", "token_dim")
    )
    shape = _matrix(specs, tokens, layers * 2 * width, path)
    modules = {}
    for index in range(layers * 2):
        name = f"layers.{index // 2}.{('key', 'value')[index % 2]}"
        columns = (index * width, (index + 1) * width)
        modules[name] = Module(name, "block", (PROMPT,), (shape,), columns=columns, rows=(0, tokens))
    return modules


def prompt(config: Mapping[str, Any], specs: Mapping[str, TensorSpec], path: Path) -> dict[str, Module]:
    """The blocks of a prompt by name: peft stacks one per sub-module (encoder, decoder)."""
    tokens, width = (_count(config, key, path) for key in ("num_virtual_tokens", "token_dim"))
    parts = _count(config, "num_transformer_submodules", path)
    shape = _matrix(specs, parts * tokens, width, path)
    modules = {}
    for index in range(parts):
        rows = (index * tokens, (index + 1) * tokens)
        name = f"prompt.{index}"
        modules[name] = Module(name, "block", (PROMPT,), (shape,), columns=(0, width), rows=rows)
    return modules
