"""The configuration of a LoRA adapter whose ranks, scalings or modules are not those it came from."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lingualift.adapters.config import LoraSettings
from lingualift.adapters.layout import either

_LATER = Path("adapter_config.json")


def lora_config(
    base: Mapping[str, Any], modules: Mapping[str, tuple[int, float]], *, same_modules: bool
) -> dict[str, Any]:
    """A configuration with which peft gives every module its rank and scaling.

    Args:
        base: The configuration to start from; returned as it is where it already says the right thing.
        modules: Rank and scaling by module.
        same_modules: Whether the modules are those of `base`; else they are named one by one.
    """
    config = dict(base)
    if not same_modules:
        names = sorted(modules)
        plain = [_written(name) for name in names] == names
        config["target_modules"] = names if plain else "|".join(map(either, names))
        config.update(layers_to_transform=None, layers_pattern=None, exclude_modules=None)
    if _says(config, modules):
        return config
    ranks = {name: rank for name, (rank, _) in modules.items()}
    alphas = {name: _whole(rank * scaling) for name, (rank, scaling) in modules.items()}
    config["use_rslora"] = False
    for write in (_short_patterns, _full_patterns):
        config["r"], config["rank_pattern"] = write(ranks)
        config["lora_alpha"], config["alpha_pattern"] = write(alphas)
        if _says(config, modules):
            break
    return config


def _says(config: Mapping[str, Any], modules: Mapping[str, tuple[int, float]]) -> bool:
    settings = LoraSettings(config, _LATER)
    return all(
        settings.rank(name) == rank and abs(settings.scaling(name) / scaling - 1) < 1e-12
        for name, (rank, scaling) in modules.items()
    )


def _whole(value: float) -> float:
    """The whole number where it is one: servers type alpha as int."""
    return round(value) if abs(value - round(value)) < 1e-9 * abs(value) else value


def _short_patterns(values: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    """The most frequent value, and patterns for the modules that differ: what people can read and write.

    A last name component stands for all its modules where they agree; other modules are named in full, the
    longest first, since peft takes the first pattern that matches the end of a module's path. A dot stands for
    any letter in them, and a path can end in another one: rare names need `_full_patterns`.
    """
    common = Counter(values.values()).most_common(1)[0][0]
    by_end: dict[str, set[float]] = {}
    for name, value in values.items():
        by_end.setdefault(name.rpartition(".")[2], set()).add(value)
    short = {end: next(iter(found)) for end, found in by_end.items() if len(found) == 1 and found != {common}}
    long = {
        _written(name): value
        for name, value in sorted(values.items(), key=_longest_first)
        if value != common and name.rpartition(".")[2] not in short
    }
    return common, {**long, **short}


def _full_patterns(values: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    """Every module by its whole, quoted path, the longest first: right for any names."""
    patterns = {either(name): value for name, value in sorted(values.items(), key=_longest_first)}
    return next(iter(values.values())), patterns


def _written(name: str) -> str:
    """A module's name as it stands, where it means the module in every version of transformers; else a pattern."""
    pattern = either(name)
    return name if pattern == re.escape(name) else pattern


def _longest_first(item: tuple[str, float]) -> int:
    return -len(item[0])
