"""What the hub, or its cache, tells of a backbone."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lingualift.backbone.checkpoint import CONFIG, INDEX, WEIGHTS, fingerprint_of, read_object, shapes_in
from lingualift.config import Backbone
from lingualift.errors import UserError
from lingualift.provenance import sha256_file

_SHA256 = re.compile(r"[0-9a-f]{64}")


@contextlib.contextmanager
def on_hub(backbone: Backbone) -> Iterator[None]:
    """Turn what the hub's client raises into an error that names the backbone.

    Raises:
        UserError: neither the hub nor its cache answers.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"backbone {backbone.name!r}",
            f"is no folder here and cannot be fetched from the hub ({reason})",
            "a folder or a hub id",
            "check the name, `revision` and the network, or log in with `hf auth login`",
        ) from error


def commit_of(backbone: Backbone) -> str:
    """The commit that a backbone's revision means; raises as `hub_file`."""
    from transformers.utils.hub import cached_file, extract_commit_hash

    file = cached_file(backbone.name, "config.json", revision=backbone.revision)
    return str(extract_commit_hash(file, None))


def hub_file(name: str, file: str, commit: str) -> Path | None:
    """A small file of a model on the hub, fetched if need be; None where it has none of that name.

    Raises:
        OSError, ValueError: the hub does not answer.
    """
    from transformers.utils.hub import cached_file

    found = cached_file(name, file, revision=commit, _raise_exceptions_for_missing_entries=False)
    return Path(found) if found else None


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

    fingerprint = fingerprint_of(find, weigh, lambda: commit)
    if fingerprint is None:
        raise OSError(
            f"the hub does not answer, and the cache lacks {CONFIG} or weights of {name} at {commit}"
        )
    return fingerprint


def names_on_hub(name: str, revision: str | None) -> set[str] | None:
    """Names of a model's weights, from the cache or by their first bytes; none is fetched. None if it does not tell."""
    from huggingface_hub import get_safetensors_metadata, try_to_load_from_cache

    for file in (INDEX, WEIGHTS):
        cached = try_to_load_from_cache(name, file, revision=revision)
        if isinstance(cached, str):
            found = Path(cached)
            return set(read_object(found)["weight_map"] if file == INDEX else shapes_in(found))
    try:
        return set(get_safetensors_metadata(name, revision=revision).weight_map)
    except Exception:  # the hub's client raises many kinds; the architecture's name tells then
        return None
