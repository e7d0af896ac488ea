"""Safetensors files, read strictly and written as a stream.

The safetensors library's numpy side (0.8.0) has no bfloat16 and writes only tensors that are all in memory at
once, so the container is read and written here; its format is
https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from lingualift.errors import UserError
from lingualift.provenance import writing

Array = NDArray[Any]

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
"""Number formats by their name in the file."""

FLOATS = ("F64", "F32", "F16", "BF16")
"""Formats that an adapter's trained tensors may have."""

MAX_HEADER = 32_000_000
"""Bytes: 180,000 tensors. The reference reader's limit is 100 MB, which takes gigabytes to read."""

_RESTORE = "restore the file from its source"


@dataclass(frozen=True)
class TensorSpec:
    """What a tensor is, without its numbers.

    Args:
        name: The tensor's name in the file.
        code: Number format as safetensors names it, a key of `DTYPES`.
        shape: Lengths of its axes.
    """

    name: str
    code: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * DTYPES[self.code].itemsize


class TensorFile:
    """One safetensors file: its header is read and checked now, its tensors when asked for.

    Args:
        path: The file.

    Raises:
        UserError: the file is missing, truncated, longer than its header says, or its header is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            header, start = _read_header(path)
        except OSError as error:
            raise UserError(
                path, f"cannot be read ({error.strerror})", "a safetensors file", "check the path"
            ) from None
        self.metadata: dict[str, str] = _metadata(path, header)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        self.specs: dict[str, TensorSpec] = {
            name: _spec(path, name, entry) for name, entry in entries.items()
        }
        self._offsets = {name: start + entry["data_offsets"][0] for name, entry in entries.items()}

    def read(self, name: str) -> Array:
        """One tensor, in the file's number format.

        Raises:
            UserError: there is no such tensor, the file ends early, or a number is NaN or infinite.
        """
        if name not in self.specs:
            raise UserError(self.path, f"has no tensor {name!r}", mend=_RESTORE)
        spec = self.specs[name]
        array = np.empty(spec.shape, DTYPES[spec.code])
        self._fill(array, spec)
        if spec.code in FLOATS and not all_finite(array):
            raise UserError(self.path, f"tensor {name!r} holds NaN or infinity", "finite numbers", _RESTORE)
        return array

    def _fill(self, array: Array, spec: TensorSpec) -> None:
        buffer = _bytes(array)
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self._offsets[spec.name])
                while buffer:
                    count = file.readinto(buffer)
                    if not count:
                        raise UserError(self.path, f"ends inside tensor {spec.name!r}", mend=_RESTORE)
                    buffer = buffer[count:]
        except OSError as error:
            raise UserError(self.path, f"cannot be read ({error.strerror})", mend="check the path") from None


def as_float32(array: Array) -> NDArray[np.float32]:
    """The same numbers as float32; a float32 array comes back itself."""
    if array.dtype == ml_dtypes.bfloat16:  # four times as fast as astype
        return (array.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    with np.errstate(over="ignore"):  # float64 may not fit; results are checked
        return array.astype(np.float32, copy=False)


def all_finite(array: Array) -> bool:
    """Whether no element is NaN or infinite."""
    with np.errstate(all="ignore"):
        wide = as_float32(array) if array.dtype.itemsize < 4 else array
        if np.isfinite(
            wide.sum()
        ):  # NaN and infinity cannot hide in a finite sum; an overflow can look like them
            return True
    return bool(np.isfinite(wide).all())


def write_tensors(path: Path, specs: Sequence[TensorSpec], arrays: Iterable[Array]) -> str:
    """Write a safetensors file tensor by tensor.

    Args:
        path: The file, overwritten.
        specs: What will come, in this order.
        arrays: One array for each spec, of its shape and number format; taken one at a time.

    Returns:
        Hex sha256 of the file.

    Raises:
        ValueError: an array is not as its spec says, or their numbers differ.
        UserError: the disk is full, or the file cannot be written.
    """
    digest = hashlib.sha256()
    with writing(path), path.open("wb", buffering=0) as file:
        header = _header(specs)
        _write_all(file, memoryview(header))
        digest.update(header)
        for spec, array in zip(specs, arrays, strict=True):
            if array.shape != spec.shape or array.dtype != DTYPES[spec.code]:
                raise ValueError(f"{spec} was announced, {array.dtype} {array.shape} came")
            data = _bytes(np.ascontiguousarray(array))
            _write_all(file, data)
            digest.update(data)
    return digest.hexdigest()


def _bytes(array: Array) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]  # numpy's stubs for 3.11


def _write_all(file: Any, data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]


def _header(specs: Sequence[TensorSpec]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for spec in specs:
        if spec.name in entries:
            raise ValueError(f"tensor {spec.name!r} is announced twice")
        end = begin + spec.nbytes
        entries[spec.name] = {"dtype": spec.code, "shape": list(spec.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header, as the reference reader takes it: known formats, tensors without a gap, as long as their shapes."""
    with path.open("rb") as file:
        size = path.stat().st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > MAX_HEADER or 8 + length > size:
            found = f"header length {length} in a file of {size} bytes" if size >= 8 else f"{size} bytes"
            raise UserError(path, f"is truncated or not safetensors ({found})", "a whole file", _RESTORE)
        text = file.read(length)
    try:
        with safe_open(path, "numpy"):
            pass
        header: dict[str, Any] = json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (SafetensorError, ValueError, RecursionError) as error:
        raise UserError(path, f"its header is damaged ({error})", "a sound header", _RESTORE) from None
    return header, 8 + length


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the name {twice!r} stands there twice")
    return entries


def _metadata(path: Path, header: Mapping[str, Any]) -> dict[str, str]:
    metadata = header.get("__metadata__") or {}
    if not all(isinstance(value, str) for value in metadata.values()):
        raise UserError(path, "its header is damaged (__metadata__ is not text)", "text by name", _RESTORE)
    return dict(metadata)


def _spec(path: Path, name: str, entry: Mapping[str, Any]) -> TensorSpec:
    """What a tensor is; refused is what the reference reader takes and nobody writes, or numpy cannot hold."""
    shape, code = tuple(entry["shape"]), entry["dtype"]
    known = code in DTYPES and len(entry) == 3
    if not known or len(shape) > 32 or (0 in shape and math.prod(size or 1 for size in shape) >= 2**59):
        found = f"its header has what is not known (tensor {name!r}: {', '.join(entry)}; {code} {shape})"
        raise UserError(path, found, f"one of {', '.join(DTYPES)}, at most 32 axes", _RESTORE)
    return TensorSpec(name, code, shape)
