"""What an adapter folder holds: the tensors, each into its place, and the first stage."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from lingualift.adapters.config import CONFIG_FILE, FIRST_STAGE
from lingualift.adapters.folder import WEIGHTS_FILE, open_adapter
from lingualift.errors import UserError
from lingualift.provenance import read_json, sha256_file


def find_first_stage(folder: Path) -> Path | None:
    """The first stage in an adapter's folder, which must be the one that it was saved with; None if it has none.

    Raises:
        UserError: it is missing, or another; the adapter is not the one that its provenance recorded.
    """
    adapter = open_adapter(folder)
    adapter.verify()
    adapter.check_sizes()
    place = folder / FIRST_STAGE
    recorded = read_json(folder / CONFIG_FILE).get(FIRST_STAGE)
    found = sha256_file(place / WEIGHTS_FILE) if (place / WEIGHTS_FILE).is_file() else None
    if found != recorded:
        raise UserError(
            place,
            "is not there"
            if found is None
            else f"is not the one that the adapter was saved with (sha256 {found})",
            "no first stage" if recorded is None else f"the first stage of sha256 {recorded}",
            "restore the adapter from its source, the folder in it too",
        )
    return None if found is None else place


def fill(own: dict[str, Tensor], folder: Path) -> None:
    """Copy a folder's tensors into a model's.

    Raises:
        UserError: one is missing, too many, of another shape, or not finite; the model is as it was then.
    """
    path = folder / WEIGHTS_FILE
    try:
        theirs = load_file(path)
    except Exception as error:
        raise UserError(path, f"cannot be read ({error})", "tensors", "save the adapter again") from None
    problems = [f"{key} is missing" for key in sorted(own.keys() - theirs.keys())]
    problems += [f"{key} is none of the adapter's" for key in sorted(theirs.keys() - own.keys())]
    for key in own.keys() & theirs.keys():
        if own[key].shape != theirs[key].shape:
            problems.append(f"{key} is {tuple(theirs[key].shape)}, not {tuple(own[key].shape)}")
        elif not bool(torch.isfinite(theirs[key]).all()):
            problems.append(f"{key} is not finite")
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise UserError(
            path, problems[0] + more, "an adapter of this backbone", "name another backbone or adapter"
        )
    with torch.no_grad():
        for key, tensor in own.items():
            tensor.copy_(theirs[key])
