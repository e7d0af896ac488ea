"""A configuration as peft is given it: nothing that is not known, and nothing to search for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lingualift.adapters.config import CONFIG_FILE, KNOWN, MAX_ALPHA
from lingualift.adapters.folder import Adapter
from lingualift.adapters.patterns import Patterns, is_simple
from lingualift.adapters.structure import Targets
from lingualift.errors import UserError

TARGETS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
"""Keys that say together which modules get an adapter."""
BY_END = ("rank_pattern", "alpha_pattern", "lambda_pattern")
"""Keys of values by pattern, which match a module's whole path, or its end after a dot."""
BEGUN_BY = (
    "prompt_tuning_init",
    "prompt_tuning_init_text",
    "prompt_tuning_init_task",
    "tokenizer_name_or_path",
)
"""Keys of how virtual tokens began. peft would load a tokenizer by them, to draw what the adapter's tensors replace."""

IGNORED = (
    "auto_mapping",
    "megatron_config",
    "megatron_core",
    "runtime_config",
    "tokenizer_kwargs",
    "prompt_tuning_init_state_dict_path",
)
"""Keys of peft's that it is never given."""
NOTHING = "(?!)"
"""The pattern that matches no name."""
_MANY = 10_000  # letters of patterns


def check_known(config: Mapping[str, Any], defaults: Mapping[str, Any], path: Path) -> None:
    """Check that nothing is set that peft knows and this list does not: what it would do cannot be told.

    Args:
        config: The adapter's configuration.
        defaults: The fields of peft's class for its kind, with their defaults.
        path: The file.

    Raises:
        UserError: something is.
    """
    for key in sorted(config.keys() & defaults.keys() - {*KNOWN, "rank_pattern", *IGNORED}):
        if config[key] and config[key] != defaults[key]:
            mend = "update lingualift, or train an adapter without it"
            raise UserError(path, f"sets {key}, which is not known here", "keys that are known", mend)


def check_sizes(adapter: Adapter) -> None:
    """Check that the configuration asks for nothing larger than the tensors are, before anything is built by it.

    Raises:
        UserError: it does.
    """
    if adapter.kind in ("prefix", "prompt"):
        _ = adapter.structure  # the shapes of the virtual tokens
        return
    if adapter.config.get("peft_type") == "LOKR":  # in which a large rank means all
        return
    largest = max((size for spec in adapter.tensors.values() for size in spec.shape), default=0)
    ranks = [adapter.config.get(key) for key in ("r", "init_r")]
    for rank in [*ranks, *(adapter.config.get("rank_pattern") or {}).values()]:
        if isinstance(rank, int) and rank > largest:
            expected = f"at most {largest}, the longest side of its tensors"
            raise UserError(adapter.path / CONFIG_FILE, f"has a rank of {rank}", expected, "mend the file")
    for alpha in (adapter.config.get("lora_alpha"), *(adapter.config.get("alpha_pattern") or {}).values()):
        if isinstance(alpha, int | float) and not abs(alpha) < MAX_ALPHA:
            expected = f"less than {MAX_ALPHA:g}, since float32 ends soon after"
            raise UserError(
                adapter.path / CONFIG_FILE, f"has an alpha of {alpha:.3g}", expected, "mend the file"
            )


def spelt_out(config: Mapping[str, Any], names: Sequence[str], where: object) -> dict[str, Any]:
    """What a configuration says by patterns, said by the exact names of modules.

    peft matches patterns by Python's engine, which can search for ever; of exact names it finds the same modules.

    Args:
        config: The configuration.
        names: All names that the backbone has for what an adapter may be put on.
        where: Where it stands, for messages.

    Returns:
        The keys that change; none where no pattern could take long.

    Raises:
        UserError: a pattern is no regular expression, or takes too long to match.
    """
    changed: dict[str, Any] = {}
    if any(_searches(config.get(key)) for key in ("target_modules", "exclude_modules")):
        targets = Targets({**config, "modules_to_save": None}, where)
        changed = dict.fromkeys(TARGETS)
        changed["target_modules"] = _any_of(filter(targets.reaches, names))
    if _searches(config.get("feedforward_modules")):
        pattern = Patterns(where).whole(config["feedforward_modules"])
        changed["feedforward_modules"] = _any_of(pattern.among(names))
    for key in BY_END:
        values = config.get(key) or {}
        if any(map(_searches, values)) or sum(map(len, values)) > _MANY:
            changed[key] = _by_name(values, names, where)
    return changed


def _searches(names: object) -> bool:
    return isinstance(names, str) and names != "all-linear" and not is_simple(names)


def _any_of(names: Iterable[str]) -> str:
    """A pattern of these names and no others."""
    return "|".join(map(re.escape, names)) or NOTHING


def _by_name(values: Mapping[str, Any], names: Sequence[str], where: object) -> dict[str, Any]:
    """Values by pattern, as peft looks them up, by the names that each is the first to match."""
    bounded = Patterns(where)
    found: dict[str, list[str]] = {}
    left = list(names)
    for text in values:
        pattern = bounded.end(text)
        taken = set(pattern.among(left))
        found[text] = [name for name in left if name in taken]
        left = [name for name in left if name not in taken]
    return {f"^(?:{_any_of(held)})": values[text] for text, held in found.items() if held}
