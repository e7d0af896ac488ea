"""Merging whole checkpoints by blocks, tensor by tensor: no model is loaded, and no two tensors of one are held."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from lingualift.adapters.config import CONFIG_FILE
from lingualift.adapters.tensorfile import (
    DTYPES,
    FLOATS,
    Array,
    TensorFile,
    TensorSpec,
    as_float32,
    write_tensors,
)
from lingualift.errors import UserError, setting
from lingualift.merging.methods import weighted_sum
from lingualift.merging.plan import Zones, by_zones, in_ranges, why_the_tasks
from lingualift.provenance import (
    PROVENANCE_FILE,
    atomic_folder,
    library_versions,
    reading,
    write_json,
)

CONFIG = "config.json"
_BESIDE = (".json", ".txt", ".model", ".jinja")
"""Ends of the names of what is copied: configurations, the index of the weights, tokenizers and chat templates."""


def is_checkpoint(path: Path | str | None) -> bool:
    """Whether a folder holds a model, and no adapter."""
    return path is not None and (Path(path) / CONFIG).is_file() and not (Path(path) / CONFIG_FILE).is_file()


class Checkpoint:
    """A model's folder: its files of weights, opened, and which of them holds a tensor.

    Args:
        path: The folder.

    Attributes:
        config: Its configuration, but for what says nothing of its function.
        files: Its files of weights, by their paths in the folder.
        home: The file of each tensor.

    Raises:
        UserError: it has no safetensors, or a file of them is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        from lingualift.backbone.checkpoint import ABOUT, WEIGHTS, read_object, weight_files

        config = read_object(path / CONFIG)
        self.config = {key: value for key, value in config.items() if key not in ABOUT}
        files = weight_files(path) or [path / WEIGHTS]
        missing = [file for file in files if not file.is_file()]
        if missing:
            mend = (
                "save the model as safetensors, which transformers does by itself, or fetch the missing file"
            )
            raise UserError(missing[0], "is not there", "weights in safetensors", mend)
        self.files = {file.relative_to(path): TensorFile(file) for file in files}
        self.home = {tensor: file for file in self.files.values() for tensor in file.specs}

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Every tensor by its name."""
        return {name: file.specs[name] for name, file in self.home.items()}


def swap_blocks(
    task: Path, target: Path, output: Path, zones: Zones, weight: float, layer_weights: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, str]]:
    """Write the task's model with outer blocks of the other one, by Layer Swapping (https://arxiv.org/abs/2410.01335).

    What lies outside of blocks (embeddings, the last norm, the head) stays the task's, and so do configuration,
    tokenizer, files and number formats. A tensor that is taken whole is taken bit for bit, if formats are equal.

    Args:
        task: Folder of the model that was trained on the task.
        target: Folder of the model that was trained on the target language, from the same model.
        output: The folder to write; it must not exist.
        zones: How many blocks are whose.
        weight: λ, the part of the target's model in its blocks.
        layer_weights: Factors on it by block, or range of blocks.

    Returns:
        Tensor -> the target's part in it, of those where it has one; and of the others, why it has none.

    Raises:
        UserError: the models differ in more than their numbers, a folder is damaged, nothing would be swapped, or the
            output cannot be written.
    """
    if not is_checkpoint(target):
        found, mend = "is no whole model, and the task's is", "name two models, or two adapters"
        raise UserError(target, found, f"a folder with {CONFIG} and safetensors", mend)
    base, other = Checkpoint(task), Checkpoint(target)
    _check_alike(base, other)
    names = list(base.home)
    factors = by_zones(zones, layer_weights, names, names)
    parts = {name: weight * factor for name, factor in factors.items() if weight * factor}
    if not parts:
        mend = f"raise {setting('bottom')}, {setting('top')} or {setting('weight')}"
        raise UserError("layer-swap", "nothing would be swapped", "a block of the target reference", mend)

    def made(file: TensorFile) -> Iterator[Array]:
        for name, spec in file.specs.items():
            yield _merged(file, other.home[name], spec, parts.get(name, 0.0))

    with atomic_folder(output) as scratch:
        hashes = {}
        for name, file in base.files.items():
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            hashes[str(name)] = write_tensors(scratch / name, list(file.specs.values()), made(file))
        for beside in sorted(task.iterdir()):
            if beside.is_file() and beside.suffix in _BESIDE and beside.name != PROVENANCE_FILE:
                with reading(beside):
                    shutil.copyfile(beside, scratch / beside.name)
        write_json(
            scratch / PROVENANCE_FILE,
            {
                "kind": "merged checkpoint",
                "method": "layer-swap",
                "source": "https://arxiv.org/abs/2410.01335",
                "inputs": {"task": str(task), "target_reference": str(target)},
                "weight": weight,
                "layer_weights": dict(layer_weights),
                "zones": asdict(zones),
                "parts_of_the_target": in_ranges(parts.items()),
                "weights_sha256": hashes,
                "versions": library_versions("lingualift", "numpy", "ml_dtypes"),
            },
        )
    return parts, {name: why_the_tasks(name) for name in names if name not in parts}


def _merged(file: TensorFile, other: TensorFile, spec: TensorSpec, part: float) -> Array:
    """One tensor of the result, in the task's number format."""
    if part == 0 or spec.code not in FLOATS:
        return file.read(spec.name)
    if part == 1:
        return other.read(spec.name).astype(DTYPES[spec.code], copy=False)
    arrays = [as_float32(each.read(spec.name)) for each in (file, other)]
    return np.asarray(weighted_sum(arrays, (1 - part, part)).astype(DTYPES[spec.code]))


def _check_alike(task: Checkpoint, target: Checkpoint) -> None:
    """Refuse models that were not trained from one."""
    mend = "name two models that were trained from the same one"
    mine, others = task.config, target.config
    for key in sorted(mine.keys() | others.keys()):
        if mine.get(key) != others.get(key):
            found = f"{key} is {others.get(key)!r}"
            raise UserError(target.path / CONFIG, found, f"{mine.get(key)!r}, as in {task.path}", mend)
    shapes = [{name: spec.shape for name, spec in one.specs.items()} for one in (task, target)]
    for name in sorted(shapes[0].keys() | shapes[1].keys()):
        if shapes[0].get(name) != shapes[1].get(name):
            found = f"tensor {name!r} is {shapes[1].get(name) or 'not there'}"
            raise UserError(target.path, found, f"{shapes[0].get(name) or 'none'}, as in {task.path}", mend)
