"""What tells one backbone from any other: the weights, the architecture and the tokenizer, wherever they lie.

A note in the folder, the version of transformers that wrote the configuration, or whether the files came from the hub
or were copied, change nothing about the function, and nothing about the fingerprint.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lingualift.backbone.checkpoint import check_beside, check_kind, damaged, files_in, read_object, shapes_in
from lingualift.errors import UserError
from lingualift.provenance import fingerprint, sha256_file, sha256_folder

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOKENIZER = "tokenizer_config.json"
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
_ABOUT = (
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
_SHA256 = re.compile(r"[0-9a-f]{64}")
Find = Callable[[str], Path | None]
"""A small file of a backbone by its name; None where it has none of that name."""
Weigh = Callable[[str], str | None]
"""Hex sha256 of a file of weights by its name; None where there is none."""


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
    found = _fingerprint(find, weigh, lambda: sha256_folder(folder, suffixes=(".py",)))
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
def of_hub(name: str, commit: str) -> str:
    """The fingerprint of a backbone on the hub at a commit: that of its files in a folder.

    Weights that are not here yet are told by the hash that the hub knows them by; none is fetched. Where the hub does
    not answer, the files of the cache are all there are. Code that comes with a model is told by the commit, so that a
    copy of such a model counts as another.

    Raises:
        OSError: the hub does not answer, and the cache lacks configuration or weights.
        UserError: a file cannot be read.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    silent = False

    def ask(file: str, question: Callable[[], Any]) -> Any:
        """What the cache holds, or else the hub answers; None for a file that is not there."""
        nonlocal silent
        cached = try_to_load_from_cache(name, file, revision=commit)
        if cached is not None or silent:
            return Path(cached) if isinstance(cached, str) else None
        try:
            return question()
        except EntryNotFoundError:
            return None
        except Exception:  # of the hub's client, which has many, and of what it asks the network by
            silent = True
            return None

    def find(file: str) -> Path | None:
        found = ask(file, lambda: hf_hub_download(name, file, revision=commit))
        return None if found is None else Path(found)

    def weigh(file: str) -> str | None:
        found = ask(file, lambda: get_hf_file_metadata(hf_hub_url(name, file, revision=commit)).etag)
        if isinstance(found, Path):
            shapes_in(found)
            known = found.resolve().name
            return known if _SHA256.fullmatch(known) else sha256_file(found)
        if found is None or _SHA256.fullmatch(found):
            return None if found is None else str(found)
        fetched = find(file)  # too small for the hub to know it by its sha256
        return sha256_file(fetched) if fetched else None

    fingerprint = _fingerprint(find, weigh, lambda: commit)
    if fingerprint is None:
        raise OSError(
            f"the hub does not answer, and the cache lacks {CONFIG} or weights of {name} at {commit}"
        )
    return fingerprint


def hub_file(name: str, file: str, commit: str) -> Path | None:
    """A small file of a model on the hub, fetched if need be; None where it has none of that name.

    Raises:
        OSError, ValueError: the hub does not answer.
    """
    from transformers.utils.hub import cached_file

    found = cached_file(name, file, revision=commit, _raise_exceptions_for_missing_entries=False)
    return Path(found) if found else None


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


def _fingerprint(find: Find, weigh: Weigh, code: Callable[[], str]) -> str | None:
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
        return {key: _told(inner) for key, inner in value.items() if key not in _ABOUT}
    return [_told(inner) for inner in value] if isinstance(value, list) else value
