"""Files of a backbone, looked at before any library reads them: are they whole, and what they are called?"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from lingualift.errors import UserError
from lingualift.provenance import read_json

MOST_JSON = 2**25
"""Bytes of a configuration or an index; the largest index known has 9 million."""
MOST_LAYERS, MOST_EXPERTS = 1000, 10_000
"""Of a configuration, which makes a module of each before any weight is read."""

_POINTER, _PAGES = b"version https://git-lfs.", (b"<!doctype html", b"<html")
_AGAIN = "download it again"
_EMPTY = "is empty"
_COUNTS = {re.compile(r"layers?$|blocks$|depth$"): MOST_LAYERS, re.compile(r"experts$"): MOST_EXPERTS}
_SHARE = re.compile(r"(?:dropout|dropout_rate|_pdrop|layerdrop)$")


def damaged(file: Path, found: str, expected: str = "") -> UserError:
    """The error of a backbone's file that cannot be read; its first bytes may tell more than the reader did."""
    told = _kind(file)
    if told:
        mend = "fetch the files: git lfs pull" if "git-lfs" in told else _AGAIN
        return UserError(file, told, expected, mend)
    return UserError(file, found, expected, _AGAIN)


def check_kind(file: Path) -> None:
    """Refuse what stands in a file's place, and a file that cannot be read; an empty one may be right.

    Raises:
        UserError: it is so.
    """
    if _kind(file) not in ("", _EMPTY):
        raise damaged(file, "")


def _kind(file: Path) -> str:
    """What a file is that should hold something else; empty where its first bytes do not tell."""
    try:
        with file.open("rb") as opened:
            begin = opened.read(256)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if begin.startswith(_POINTER):
        return "is a git-lfs pointer, and not the file that it points to"
    if begin.lstrip().lower().startswith(_PAGES):
        return "is a web page"
    return "" if begin else _EMPTY


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object of a backbone's.

    Raises:
        UserError: the file is no JSON object, cannot be read, or is larger than any such file is.
    """
    expected = "a JSON object"
    try:
        size = file.stat().st_size
    except OSError as error:
        raise damaged(file, f"cannot be read ({error.strerror})", expected) from None
    if size > MOST_JSON:
        raise damaged(file, f"has {size} bytes", f"{expected} of at most {MOST_JSON}")
    try:
        value = read_json(file)
    except UserError as error:
        raise damaged(file, error.found, expected) from None
    if not isinstance(value, dict):
        raise damaged(file, f"is not a JSON object but {type(value).__name__}", expected)
    return value


@functools.cache
def shapes_in(file: Path) -> Mapping[str, tuple[int, ...]]:
    """Name -> shape of the tensors of a safetensors file, by its header, which says how long the file is.

    Raises:
        UserError: the file is not whole, or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "numpy") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        expected = "a whole safetensors file"
        raise damaged(file, f"is not whole ({' '.join(str(error).split())})", expected) from None


def files_in(index: Path) -> list[str]:
    """Names of the files of weights that an index names, each once, sorted.

    Raises:
        UserError: it is no index, or names a file elsewhere.
    """
    named = read_object(index).get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise damaged(index, "has no `weight_map`", "weights by name, and the file of each")
    names = sorted(set(named.values()))
    for name in names:
        check_beside(index, name)
    return names


def check_beside(file: Path, name: object) -> None:
    """Refuse a name of a file of weights that lies elsewhere than beside the file that names it."""
    path = PurePosixPath(name) if isinstance(name, str) and name else None
    if path is None or path.is_absolute() or ".." in path.parts or "\0" in str(path):
        raise damaged(file, f"names weights {str(name)[:80]!r}", "a file beside it")


def check_config(file: Path, config: Mapping[str, Any]) -> None:
    """Refuse a configuration that no model can be made of; what it asks for is for `trust`.

    Args:
        file: Where it stands.
        config: Its values.

    Raises:
        UserError: it is one.
    """
    for key, value in _values(config):
        for pattern, most in _COUNTS.items():
            if pattern.search(key) and type(value) is int and value > most:
                raise damaged(file, f"`{key}` is {value}", f"at most {most}")
        if _SHARE.search(key) and isinstance(value, int | float) and not 0 <= value <= 1:
            raise damaged(file, f"`{key}` is {value}", "a share from 0 to 1")


def _values(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """All keys of a configuration with their values, those within too."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _values(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _values(inner, key)
    else:
        yield key, value
