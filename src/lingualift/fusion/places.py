"""Which layers of a backbone get LoRA, and which of them fuse."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lingualift.adapters.patterns import Patterns
from lingualift.backbone.architectures import blocks, family_of
from lingualift.errors import UserError, did_you_mean
from lingualift.fusion.config import FlareConfig, MixupConfig

_BLOCK = re.compile(r"((?:.*?\.)?\d+)\.")


@dataclass(frozen=True)
class Places:
    """Paths of layers, within the backbone.

    Attributes:
        adapted: Layers that get LoRA.
        fused: Those of them that fuse.
    """

    adapted: tuple[str, ...]
    fused: tuple[str, ...]


def block_of(path: str) -> str:
    """The numbered block that a layer stands in."""
    found = _BLOCK.match(path)
    assert found is not None, path
    return found[1]


def find_places(backbone: Any, config: FlareConfig) -> Places:
    """The layers that a configuration names.

    Raises:
        UserError: a name matches no layer, or one that cannot fuse.
    """
    layers = {path: module for path, _, module in blocks(backbone)}
    adapted = find_adapted(backbone, config.target_modules)
    within = _encoder_of(backbone)
    if config.fusion_modules is None:
        fused = [path for path in adapted if path.startswith(within)]
    elif isinstance(config.fusion_modules, str):
        fused = _matching("fusion_modules", config.fusion_modules, list(layers))
    else:
        inside = [path for path in layers if path.startswith(within)]
        fused = _matching("fusion_modules", config.fusion_modules, inside)
    for path in fused:
        _check_fused(path, layers[path], backbone, config, path in adapted, path.startswith(within))
    if not fused:
        raise UserError("fusion_modules", "nothing would fuse", "layers of the encoder", "name some")
    return Places(adapted, tuple(fused))


def find_adapted(backbone: Any, names: Sequence[str] | str | None) -> tuple[str, ...]:
    """The linear layers of the blocks that get LoRA; all for None.

    Raises:
        UserError: a name matches no layer, or one that is not linear.
    """
    layers = {path: module for path, _, module in blocks(backbone)}
    adapted = list(layers) if names is None else _matching("target_modules", names, list(layers))
    for path in adapted:
        if not isinstance(layers[path], torch.nn.Linear):
            found = f"{path} is a {type(layers[path]).__name__}"
            raise UserError("target_modules", found, "linear layers", "choose a backbone of such layers")
    return tuple(adapted)


def find_mixed(backbone: Any, config: MixupConfig) -> tuple[tuple[str, ...], str]:
    """The linear layers that get LoRA, and the block whose output is mixed; raises as `find_adapted`, `find_block`."""
    return find_adapted(backbone, config.target_modules), find_block(backbone, config.layer)


def find_block(backbone: Any, layer: int | None) -> str:
    """Path of a numbered block, of an encoder-decoder the encoder's; of the middle one for None.

    Raises:
        UserError: it has no such block.
    """
    within = _encoder_of(backbone)
    found = list(dict.fromkeys(block_of(path) for path, _, _ in blocks(backbone) if path.startswith(within)))
    number = (len(found) - 1) // 2 if layer is None else layer
    if number not in range(len(found)):
        raise UserError("layer", f"is {layer!r}", f"0 to {len(found) - 1}, a block", "choose one of them")
    return found[number]


def _encoder_of(backbone: Any) -> str:
    """Start of the paths that may fuse: the encoder's where there is a decoder beside it, which reads no source."""
    if family_of(backbone.config) != "encoder-decoder":
        return ""
    encoder = backbone.get_encoder()
    return next(f"{path}." for path, module in backbone.named_modules() if module is encoder)


def _matching(where: str, names: Sequence[str] | str, paths: list[str]) -> list[str]:
    """The paths that names match, as peft matches them.

    Raises:
        UserError: a name matches none, or is no regular expression.
    """
    if isinstance(names, str):
        matched = Patterns(where).whole(names).among(paths)
        if not matched:
            raise UserError(
                where,
                f"{names!r} matches no linear layer of the backbone's blocks",
                f"a regular expression for whole paths, such as {paths[0]}",
                "mend it, or list ends of paths",
            )
        return matched
    ends = sorted({path.rsplit(".", 1)[-1] for path in paths})
    for name in names:
        if not any(_ends(path, name) for path in paths):
            found = f"{name!r} is no linear layer of the blocks that it may stand in"
            raise UserError(where, found, f"some of {', '.join(ends)}", did_you_mean(name, ends))
    return [path for path in paths if any(_ends(path, name) for name in names)]


def _ends(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")


def _check_fused(
    path: str, layer: Any, backbone: Any, config: FlareConfig, adapted: bool, inside: bool
) -> None:
    if not inside:
        raise UserError(
            "fusion_modules",
            f"{path} is in the decoder, which has no source beside it",
            "layers of the encoder",
            "match the encoder alone",
        )
    if not adapted:
        raise UserError(
            "fusion_modules",
            f"{path} has no LoRA to fuse in",
            "layers of target_modules",
            "name it there too",
        )
    hidden = backbone.config.get_text_config().hidden_size
    wide = config.source_state != "projection-input" or config.source_encoder is not None
    if wide and getattr(layer, "in_features", hidden) != hidden:
        raise UserError(
            "fusion_modules",
            f"{path} reads {layer.in_features} numbers, and the source's states have {hidden}",
            "layers that read a block's states, such as queries and values",
            "name those, or take source_state='projection-input' without source_encoder",
        )
