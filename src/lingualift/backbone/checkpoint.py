"""Files of a backbone, looked at before any library reads them: are they whole, and what tells it from any other?

That are the weights, the architecture and the tokenizer, wherever they lie. A note in the folder, the version of
transformers that wrote the configuration, or whether the files came from the hub or were copied, change nothing about
the function, and nothing about the fingerprint.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from lingualift.errors import UserError
from lingualift.provenance import fingerprint, read_json, sha256_file, sha256_folder

MOST_JSON = 2**25
"""Bytes of a configuration or an index; the largest index known has 9 million."""
MOST_LAYERS, MOST_EXPERTS = 1000, 10_000
"""Of a configuration, which makes a module of each before any weight is read."""
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOKENIZER = "tokenizer_config.json"
_POINTER, _PAGES = b"version https://git-lfs.", (b"<!doctype html", b"<html")
_AGAIN = "download it again"
_EMPTY = "is empty"
_COUNTS = {re.compile(r"layers?$|blocks$|depth$"): MOST_LAYERS, re.compile(r"experts$"): MOST_EXPERTS}
_SHARE = re.compile(r"(?:dropout|dropout_rate|_pdrop|layerdrop)$")
_TOKENIZERS = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "source.spm",
    "target.spm",
)
"""Files that transformers' tokenizers read; where the first is, it is read alone."""
_BESIDE = ("special_tokens_map.json", "added_tokens.json")
_SETTINGS = "generation_config.json"
ABOUT = (
    "_name_or_path",
    "name_or_path",
    "_commit_hash",
    "transformers_version",
    "architectures",
    "torch_dtype",
    "dtype",
    "use_cache",
    "chat_template",
    "tokenizer_file",
    "unsloth_fixed",
    "unsloth_version",
)
"""Keys of configurations that say nothing of the function: where it came from, and what a loader chooses anyway.

A chat template is what prompts are asked by, not what answers them; it counts where they are (`BackboneRef.template`).
"""
Find = Callable[[str], Path | None]
"""A small file of a backbone by its name; None where it has none of that name."""
Weigh = Callable[[str], str | None]
"""Hex sha256 of a file of weights by its name; None where there is none."""


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


def weight_files(folder: Path) -> list[Path]:
    """The files of a folder's weights, as transformers finds them."""
    named = read_object(folder / CONFIG).get("transformers_weights")
    index = folder / (named if named and named.endswith(".json") else INDEX)
    whole = folder / (WEIGHTS if named is None else named)
    if whole != index and whole.is_file():
        return [whole]
    return [folder / name for name in files_in(index)] if index.is_file() else []


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


@functools.cache
def of_folder(folder: Path) -> str:
    """The fingerprint of a backbone in a folder; hex sha256.

    Raises:
        UserError: a file is damaged or cannot be read, or there are no weights, or not all.
    """

    def find(name: str) -> Path | None:
        return folder / name if (folder / name).is_file() else None

    def weigh(name: str) -> str | None:
        return _weighed(folder / name) if (folder / name).is_file() else None

    if find(_SETTINGS):
        read_object(folder / _SETTINGS)
    found = fingerprint_of(find, weigh, lambda: sha256_folder(folder, suffixes=(".py",)))
    if found is None:
        lost = next(iter(_lost(folder)), None)
        raise UserError(
            folder,
            f"lacks {lost}, which {INDEX} names"
            if lost
            else f"holds no weights that transformers loads ({WEIGHTS}, or those that {INDEX} names)",
            "a folder written by save_pretrained",
            "download the files that are missing" if lost else "save the model with safetensors",
        )
    return found


def _lost(folder: Path) -> list[str]:
    """Files of weights that an index names and that are not there."""
    index = folder / INDEX
    return [name for name in files_in(index) if not (folder / name).is_file()] if index.is_file() else []


@functools.cache
def former(folder: Path) -> str:
    """The fingerprint that adapters recorded before: over all files of the folder, notes among them."""
    kinds = (".json", ".safetensors", ".model", ".txt", ".jinja")
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.suffix in kinds)
    return fingerprint({str(file.relative_to(folder)): _sha256(file) for file in files})


@functools.cache
def _sha256(file: Path) -> str:
    """Of a file of a backbone, which may be large and does not change under a process that uses it."""
    try:
        return sha256_file(file)
    except OSError as error:
        raise damaged(file, f"cannot be read ({error.strerror})") from None


def _weighed(file: Path) -> str:
    """The hash of a file of weights that is whole."""
    shapes_in(file)
    return _sha256(file)


def fingerprint_of(find: Find, weigh: Weigh, code: Callable[[], str]) -> str | None:
    """The fingerprint of a backbone's files; None without a configuration or weights."""
    config = find(CONFIG)
    architecture = {} if config is None else _told(read_object(config))
    named = architecture.get("transformers_weights")
    if config is not None and named is not None:
        check_beside(config, named)
    weights = _weights(named, find, weigh)
    if config is None or not weights or None in weights:
        return None
    tokenizer = find(TOKENIZER)
    return fingerprint(
        {
            "architecture": architecture,
            "weights": weights,
            "tokenizer": {} if tokenizer is None else _told(read_object(tokenizer)),
            "words": {name: _sha256(file) for name, file in _words(find)},
            "code": code() if "auto_map" in architecture else None,
        }
    )


def _weights(named: str | None, find: Find, weigh: Weigh) -> list[str | None]:
    """The hashes of the files that transformers loads: those that the configuration names, or the usual ones."""
    index = named if named and named.endswith(".json") else None
    whole = None if index else weigh(named or WEIGHTS)
    if whole is not None:
        return [whole]
    listed = find(index or INDEX)
    return [weigh(name) for name in ([] if listed is None else files_in(listed))]


def _words(find: Find) -> Iterator[tuple[str, Path]]:
    """The files of a tokenizer that are read: its own in one, or those that older ones are made of."""
    one = find(_TOKENIZERS[0])
    for name in _BESIDE if one else (*_TOKENIZERS[1:], *_BESIDE):
        found = find(name)
        if found:
            read_object(found) if name in _BESIDE else check_kind(found)
            yield name, found
    if one:
        check_kind(one)
        yield _TOKENIZERS[0], one


def _told(value: Any) -> Any:
    """A configuration without what says nothing of the function."""
    if isinstance(value, dict):
        return {key: _told(inner) for key, inner in value.items() if key not in ABOUT}
    return [_told(inner) for inner in value] if isinstance(value, list) else value
