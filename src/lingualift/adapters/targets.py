"""Which modules a configuration names, as peft reads it, and the same said so that peft has nothing to search for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lingualift.adapters.patterns import Patterns, is_simple
from lingualift.errors import UserError

TARGETS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
"""Keys that say together which modules get an adapter."""
BY_END = ("rank_pattern", "alpha_pattern", "lambda_pattern")
"""Keys of values by pattern, which match a module's whole path, or its end after a dot."""
NOTHING = "(?!)"
"""The pattern that matches no name."""
_MANY = 10_000  # letters of patterns


class Targets:
    """The modules that a configuration names (peft 0.21.2, `tuners/tuners_utils.py:check_target_module_exists`).

    Args:
        config: The adapter's configuration.
        where: Its file, for messages.

    Raises:
        UserError: a pattern is no regular expression, or names are no names.
    """

    def __init__(self, config: Mapping[str, Any], where: object) -> None:
        self._patterns, self._where = Patterns(where), where
        self._targets = config.get("target_modules")
        self._named = self._names("target_modules", self._targets)
        self._left_out = self._names("exclude_modules", config.get("exclude_modules"))
        saved = config.get("modules_to_save") or ()
        self._saved = [self._written(rf"(^|.*\.){name}($|\..*)", name) for name in saved]
        self._layers = self._in_layers(config)

    def reaches(self, module: str) -> bool:
        """Whether peft makes an adapter's layer for a module, so that tensors of it are read and not passed over.

        Where the configuration leaves that to the backbone (`all-linear`, or no targets), it is taken to.

        Raises:
            UserError: the patterns take too long to match.
        """
        if self._left_out(module) or any(saved.match(module) for saved in self._saved):
            return False
        if self._targets is None or self._targets == "all-linear":
            return True
        if not self._named(module):
            return False
        return isinstance(self._targets, str) or module in self._targets or self._layers(module)

    def _names(self, key: str, names: Any) -> Callable[[str], bool]:
        if isinstance(names, str):
            return self._patterns.whole(names).matches if names else lambda _: False
        if names is not None and not isinstance(names, list | set | tuple):
            raise UserError(
                self._where, f"{key} names modules by {names!r}", "a pattern or a list", "mend it"
            )
        given = frozenset(names or ())
        ends = tuple(f".{name}" for name in given)
        return lambda module: module in given or module.endswith(ends)

    def _written(self, pattern: str, name: object) -> re.Pattern[str]:
        """What peft makes of a name that it puts into a pattern as it stands."""
        if not isinstance(name, str) or not is_simple(name):
            raise UserError(
                self._where, f"{name!r} is no name of a module", "a name, not a pattern", "mend it"
            )
        return re.compile(pattern)

    def _in_layers(self, config: Mapping[str, Any]) -> Callable[[str], bool]:
        """Whether a module is in the layers that a configuration bounds its targets to, if it bounds them."""
        chosen, lists = config.get("layers_to_transform"), config.get("layers_pattern")
        if chosen is None or chosen == []:
            return lambda _: True
        starts = [lists] if isinstance(lists, str) and lists else list(lists or ())
        patterns = [self._written(rf"(?:^|.*?\.){each}\.(?P<layer>\d+)\.", each) for each in starts]
        patterns = patterns or [re.compile(r".*?\.[^.]*\.(?P<layer>\d+)\.")]
        numbers = chosen if isinstance(chosen, list) else [chosen]

        def within(module: str) -> bool:
            found = next((match for pattern in patterns if (match := pattern.match(module))), None)
            return found is not None and found["layer"] is not None and int(found["layer"]) in numbers

        return within


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
