"""Source states on disk: computed once, read by every epoch."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from lingualift.errors import UserError
from lingualift.provenance import atomic_folder, fingerprint, read_json, sha256_bytes, write_json, writing

MANIFEST = "cache.json"
_HEX = 20
_ABOUT_THE_RUN = (
    "_name_or_path",
    "architectures",
    "transformers_version",
    "use_cache",
    "output_hidden_states",
)

States = dict[str, Tensor]


@dataclass(frozen=True)
class SourceCache:
    """Source states of some rows, memory-mapped in bfloat16.

    Attributes:
        folder: Where it is; its name is the beginning of the sha256 of rows, model and places.
        starts: Position of every row's first token, and behind the last row's last (rows + 1,).
        files: Number of the file of every key of states; keys whose states are the same share one.
        states: Files' states (tokens, width).
    """

    folder: Path
    starts: Tensor
    files: Mapping[str, int]
    states: Sequence[Tensor]

    def __len__(self) -> int:
        """Rows."""
        return len(self.starts) - 1

    def read(self, rows: Tensor, device: torch.device, dtype: torch.dtype) -> tuple[States, Tensor]:
        """States (b, m, width) by key of rows (b,), and their mask (b, m); padded on the right.

        Raises:
            UserError: it has no such row.
        """
        numbers = rows.tolist()
        for number in numbers:
            if not 0 <= number < len(self):
                raise UserError(
                    "source_rows",
                    f"{number}",
                    f"0 to {len(self) - 1}, the rows of the cache",
                    "number them so",
                )
        spans = [(int(self.starts[number]), int(self.starts[number + 1])) for number in numbers]
        longest = max(end - start for start, end in spans)
        mask = torch.tensor([[1] * (end - start) + [0] * (longest - end + start) for start, end in spans])
        padded = []
        for held in self.states:
            batch = torch.zeros(len(spans), longest, held.shape[1], dtype=dtype)
            for row, (start, end) in zip(batch, spans, strict=True):
                row[: end - start] = held[start:end]
            padded.append(batch.to(device))
        return {key: padded[number] for key, number in self.files.items()}, mask.to(device)


def model_fingerprint(model: Any) -> str:
    """Hex sha256 of what decides a model's states: its settings and its weights, an adapter's left out.

    Raises:
        UserError: a weight that is to be trained, so that states would not stay what they are.
    """
    settings = json.loads(model.config.to_json_string(use_diff=False))
    digest = hashlib.sha256(
        fingerprint({key: value for key, value in settings.items() if key not in _ABOUT_THE_RUN}).encode()
    )
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not _of_adapter(name):
            raise UserError(
                "source states",
                f"{name} is to be trained, which changes them at every step",
                "frozen weights in the model that reads the source",
                "freeze it, or do without a cache",
            )
    for name, tensor in sorted(model.state_dict().items()):
        if not _of_adapter(name) and isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _of_adapter(name: str) -> bool:
    return ".lora_" in name or ".modules_to_save." in name


def open_or_make(
    folder: Path,
    rows: Sequence[Sequence[int]],
    about: Any,
    states_of: Callable[[Sequence[Sequence[int]]], tuple[States, Tensor]],
    batch_size: int,
    tell: Callable[[str], None],
) -> SourceCache:
    """The cache of rows in a folder of caches; made if it is not there.

    Args:
        folder: Folder of caches.
        rows: Token ids of every source.
        about: What else its name depends on, as a JSON value.
        states_of: The states (b, m, width) of b rows by key, and their mask (b, m).
        batch_size: Rows that are read at once.
        tell: Takes a line that says how large it will be, before it is made.

    Raises:
        UserError: a row without a token, or a cache that will not fit or is damaged.
    """
    empty = next((number for number, row in enumerate(rows) if not len(row)), None)
    if empty is not None or not rows:
        found = "no rows" if empty is None else f"row {empty} has no token"
        raise UserError("source rows", found, "a source for each row", "translate it")
    data = sha256_bytes(json.dumps([list(map(int, row)) for row in rows]).encode())
    key = fingerprint({"schema": 1, "data": data, "about": about})
    target = folder / key[:_HEX]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{key[:_HEX]}.lock"):
        if not target.exists():
            _make(target, key, rows, states_of, batch_size, tell)
    return _opened(target, key)


def _make(
    target: Path,
    key: str,
    rows: Sequence[Sequence[int]],
    states_of: Callable[[Sequence[Sequence[int]]], tuple[States, Tensor]],
    batch_size: int,
    tell: Callable[[str], None],
) -> None:
    lengths = [len(row) for row in rows]
    first, _ = states_of([min(rows, key=len)])
    groups = _shared(first)
    widths = [first[names[0]].shape[-1] for names in groups]
    size, free = 2 * sum(lengths) * sum(widths), shutil.disk_usage(target.parent).free
    about = f"{len(rows)} rows, {sum(lengths)} tokens, {len(widths)} times {widths[0]} numbers in bfloat16"
    tell(f"source states: {_readable(size)} ({about}) in {target}; {_readable(free)} are free there")
    if size > free:
        raise UserError(
            folder := target.parent,
            f"the source states of {len(rows)} rows need {_readable(size)}",
            f"at most the {_readable(free)} that are free there",
            f"free some space, choose another folder than {folder.name}, or do without a cache",
        )
    with atomic_folder(target) as scratch:
        files = [(scratch / f"{number}.bin").open("wb") for number in range(len(groups))]
        try:
            for batch in _batches(rows, batch_size):
                states, mask = states_of(batch)
                for names, file in zip(groups, files, strict=True):
                    real = states[names[0]][mask.bool()].to("cpu", torch.bfloat16)
                    file.write(real.contiguous().view(torch.uint8).numpy().data)
        finally:
            for file in files:
                file.close()
        named = {name: number for number, names in enumerate(groups) for name in names}
        write_json(
            scratch / MANIFEST,
            {"schema": 1, "key": key, "files": named, "widths": widths, "lengths": lengths},
        )


def _readable(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _shared(states: States) -> list[list[str]]:
    """Keys of states, those together that are one tensor (the projections of a block read the same)."""
    groups: dict[int, list[str]] = {}
    for name, tensor in states.items():
        groups.setdefault(id(tensor), []).append(name)
    return list(groups.values())


def _batches(rows: Sequence[Sequence[int]], size: int) -> Iterator[Sequence[Sequence[int]]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _opened(folder: Path, key: str) -> SourceCache:
    manifest = read_json(folder / MANIFEST)
    lengths = torch.tensor(manifest["lengths"])
    tokens = int(lengths.sum())
    damaged = UserError(folder, "is damaged", "a whole cache of source states", "delete it")
    if manifest["key"] != key:
        raise damaged
    states = []
    for number, width in enumerate(manifest["widths"]):
        path = folder / f"{number}.bin"
        if not path.is_file() or path.stat().st_size != 2 * tokens * width:
            raise damaged
        held = torch.from_file(str(path), shared=False, size=tokens * width, dtype=torch.bfloat16)
        states.append(held.view(tokens, width))
    starts = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    return SourceCache(folder, starts, manifest["files"], states)
