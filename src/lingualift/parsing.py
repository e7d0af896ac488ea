"""JSON and YAML of other hands made into values; what neither may hold is told in words."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping
from typing import Any

import yaml

DEPTH = 100
"""Lists and mappings within each other, at most: what is written for people has ten."""
LONGEST = 1 << 18
"""Characters of YAML, at most: an experiment file has some thousands."""
_VALUES = 100_000  # of YAML, each alias counted as what it stands for
_DIGITS = sys.float_info.max_10_exp
_DEEP = f"is nested deeper than {DEPTH} levels"
_ABSENT = ("NAType", "NaTType")  # pandas', which is not imported for this


def parse_json(text: str, *, missing: bool = False) -> Any:
    """The value of JSON text.

    Args:
        text: One JSON value.
        missing: Whether NaN is taken for a value that is missing, as pandas writes one, and not refused.

    Raises:
        ValueError: no JSON, or as `jsonable`; the message says what the text is or holds.
    """
    try:
        value = (_WITH_GAPS if missing else _STRICT).decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error})") from None
    except RecursionError:
        raise ValueError(_DEEP) from None
    return jsonable(value)


def jsonable(value: Any) -> Any:
    """A value as JSON has it: NaN, which is pandas' missing value, is null, a date its text.

    Raises:
        ValueError: it holds half of a character, infinity or a number beyond every float, or is nested too deep; the
            message says which.
    """
    return _jsonable(value, DEPTH)


def _jsonable(value: Any, levels: int) -> Any:
    if isinstance(value, str):
        return _text(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return _number(value)
    if not isinstance(value, Mapping | list | tuple):
        return None if is_missing(value) else _text(str(value))
    if not levels:
        raise ValueError(_DEEP)
    if isinstance(value, Mapping):
        return {_text(str(key)): _jsonable(inner, levels - 1) for key, inner in value.items()}
    return [_jsonable(inner, levels - 1) for inner in value]


def is_missing(value: Any) -> bool:
    """Whether a value is what pandas writes where there is none: NaN, its NA, or its time that is none."""
    return (isinstance(value, float) and math.isnan(value)) or type(value).__name__ in _ABSENT


def _text(value: str) -> str:
    """The text, which UTF-8 can write."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(value[error.start]):04x}"
        raise ValueError(f"holds half of a character ({half} without the other half)") from None
    return value


def _number(value: int | float) -> int | float | None:
    """The number, or None for NaN."""
    if is_missing(value):
        return None
    if abs(value) > sys.float_info.max:
        raise ValueError("holds infinity, or a number beyond 1.8e308")
    return value


def _whole(text: str) -> int:
    """The whole number, without the work that very many digits are."""
    if len(text) > _DIGITS:
        raise ValueError(f"holds a number of {len(text)} digits, more than {_DIGITS}")
    return int(text)


def _no_word(word: str) -> None:
    """Refuse what Python writes although JSON has no word for it."""
    raise ValueError(f"holds {word}, which JSON has no word for")


def _gap(word: str) -> None:
    """Nothing for NaN."""
    if word != "NaN":
        _no_word(word)


_STRICT = json.JSONDecoder(parse_int=_whole, parse_constant=_no_word)
_WITH_GAPS = json.JSONDecoder(parse_int=_whole, parse_constant=_gap)


def parse_yaml(text: str) -> Any:
    """The value of YAML text, in which no key may stand twice.

    Raises:
        ValueError: no YAML, too much of it, or a value that is none of its kind; the message says what, and in which
            line.
    """
    if len(text) > LONGEST:
        raise ValueError(f"is not YAML that people write: {len(text)} characters, more than {LONGEST}")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _expand(node, {})
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(f"is not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ValueError(_DEEP) from None
    except (
        Exception
    ) as error:  # the library's own, for what it does not expect, e.g. a character beyond the last
        found = f"a tag or an escape that fits not what it stands by ({type(error).__name__})"
        raise ValueError(f"is not YAML: {found}, in line {loader.line + 1} or before") from None


def to_yaml(value: Any, **options: Any) -> str:
    """A value as YAML that `parse_yaml` reads back; options as for `yaml.dump`."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **options))


def _refused(why: str, node: yaml.Node) -> yaml.YAMLError:
    """An error that says where in the text its reason stands."""
    return yaml.constructor.ConstructorError(None, None, why, node.start_mark)


def _expand(node: yaml.Node, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """How many values a node is, and how deep, with every alias replaced by what it stands for.

    Aliases of aliases are few lines and billions of values (https://en.wikipedia.org/wiki/Billion_laughs_attack).

    Raises:
        yaml.YAMLError: too many, too deep, an alias within what it stands for, or text that is none.
    """
    if id(node) in known:
        found = known[id(node)]
        if found is None:
            raise _refused("an alias stands within what it stands for", node)
        return found
    known[id(node)] = None
    inner = [_expand(child, known) for child in _children(node)]
    count, height = 1 + sum(one for one, _ in inner), 1 + max((high for _, high in inner), default=-1)
    if count > _VALUES:
        raise _refused(f"holds more than {_VALUES} values", node)
    if height > DEPTH:
        raise _refused(_DEEP, node)
    known[id(node)] = count, height
    return count, height


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    try:
        _text(node.value)
    except ValueError as error:
        raise _refused(str(error), node) from None
    if "\0" in node.value:
        raise _refused("holds NUL, which no text does", node)
    return []


class _Loader(yaml.SafeLoader):
    """The safe loader, refusing a key that stands twice, and telling in which line a value is none of its kind."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Build a value; whatever the library's constructors raise becomes a YAML error with the line."""
        try:
            return super().construct_object(node, deep)
        except (yaml.YAMLError, RecursionError):
            raise
        except Exception:
            kind = node.tag.rpartition(":")[2]
            shown = repr(node.value)[:40] if isinstance(node, yaml.ScalarNode) else "this"
            raise _refused(f"{shown} is no {kind}", node) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping; `raises` a YAML error at the second of two equal keys."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str | int | float | bool | None) and key in seen:
                raise _refused(f"key {key!r} stands twice", key_node)
            if isinstance(key, str | int | float | bool | None):
                seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_whole(self, node: yaml.ScalarNode) -> int:
        """Build a whole number, which in base 16 has no end in Python."""
        value = int(self.construct_yaml_int(node))
        if abs(value) > sys.float_info.max:
            raise _refused(f"holds a number of more than {_DIGITS} digits", node)
        return value


class _Dumper(yaml.SafeDumper):
    """The safe dumper, quoting what the loader would read as a number or fold as a line's end."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Text as it is, in quotes with escapes where it holds a line's end of Unicode's."""
        style = '"' if set(text) & set("\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_whole)
# YAML 1.2: 2e-3 is a number although it has no dot.
for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )
