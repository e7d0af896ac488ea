"""What a fused adapter is: ranks, how source and target meet, and which layers of a backbone that takes."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from typing_extensions import override

from lingualift.adapters.config import CONFIG_FILE, FIRST_STAGE, check_config
from lingualift.adapters.patterns import Patterns
from lingualift.backbone.architectures import blocks, family_of, fusion_names, linear_names
from lingualift.config import Adapter
from lingualift.errors import UserError, did_you_mean
from lingualift.fusion.functions import FUSIONS
from lingualift.fusion.passes import AnswerSource, Padding
from lingualift.provenance import read_json

SourceState = Literal["block-input", "block-output", "projection-input"]
Dtype = Literal["float32", "bfloat16", "float16"]
_BLOCK = re.compile(r"((?:.*?\.)?\d+)(?:\.|$)")


@dataclass(frozen=True)
class Places:
    """Paths within the backbone.

    Attributes:
        adapted: Layers that get LoRA.
        fused: Those of them in which source and target meet; of X-Mixup the block behind which they do.
    """

    adapted: tuple[str, ...]
    fused: tuple[str, ...]

    @property
    def blocks(self) -> set[str]:
        """The numbered blocks in which they meet."""
        return {block_of(path) for path in self.fused}


@dataclass(frozen=True)
class FusionConfig:
    """What adapters that read a source side have in common.

    Attributes:
        peft_type: No type of peft's: plain peft refuses the folder instead of running it unfused.
        r: Rank of LoRA, and of the bottleneck in which source and target meet.
        lora_alpha: Scaling of LoRA times its rank.
        lora_dropout: Share of a layer's inputs that training sets to zero, of source and target alike.
        modules_to_save: Modules that are trained whole and saved with the adapter (an encoder's head).

    Raises:
        UserError: a value that means nothing.
    """

    peft_type: ClassVar[str]
    r: int = 8
    lora_alpha: float = 16
    lora_dropout: float = 0.0
    modules_to_save: Sequence[str] | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if type(self.r) is not int or self.r < 1:
            raise UserError("r", f"is {self.r!r}", "a whole number above 0", "choose the rank, such as 8")
        if not 0 <= self.lora_dropout < 1:
            raise UserError("lora_dropout", f"is {self.lora_dropout!r}", "at least 0 and below 1", "mend it")

    def places(self, backbone: Any) -> Places:
        """The layers of a backbone that it names, which need no weights.

        Raises:
            UserError: a name or number matches no layer, or one that cannot be adapted, or cannot fuse.
        """
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """The content of `adapter_config.json`."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        lists = {key: list(value) for key, value in values.items() if isinstance(value, (list, tuple))}
        return {"peft_type": self.peft_type, **values, **lists}

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """The configuration of a saved adapter.

        Raises:
            UserError: an adapter of another kind, or one with a setting that is not known here.
        """
        path = folder / CONFIG_FILE
        content = read_json(path)
        kind = content.get("peft_type") if isinstance(content, Mapping) else None
        if kind != cls.peft_type:
            mend = f"name the folder of a {cls.peft_type} adapter"
            raise UserError(path, f"peft_type is {kind!r}", repr(cls.peft_type), mend)
        check_config(content, path)
        names = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(content.keys() - names - {"peft_type", "base_model_name_or_path", FIRST_STAGE})
        if unknown:
            raise UserError(path, f"{unknown[0]!r} is not known", mend=did_you_mean(unknown[0], names))
        empty = [
            field.name
            for field in dataclasses.fields(cls)
            if field.default is not None and content.get(field.name, field.default) is None
        ]
        if empty:
            raise UserError(path, f"{empty[0]} is null", "a value", "restore the adapter from its source")
        return cls(**{key: value for key, value in content.items() if key in names})


@dataclass(frozen=True)
class FlareConfig(FusionConfig):
    """A FLARE adapter (https://arxiv.org/abs/2501.06892): h = W·x_T + s·B·f(A·x_S, A·x_T), s = lora_alpha / r.

    Attributes:
        target_modules: Linear layers that get LoRA, as peft reads it: ends of their paths, or one regular expression
            for whole paths.
        fusion_modules: Those of them that fuse; None for all. Of an encoder-decoder, names mean the encoder's layers.
        fusion: Name of the fusion function; `FUSIONS` lists them.
        source_state: Where the source's states are taken in its pass: what goes into the same block (in
            the mini-world better where translations are bad: study/README.md), what comes out of it, or what goes into
            the same projection. With `source_encoder`, whose last states they are, it is not used.
        answer_source: What positions of the answer meet on decoders: `last`, the source's last prompt state; `none`;
            or `generate`, the states of the source side's own greedy answer, which is never the gold one.
        padding: The side on which prompts of unequal length are filled up before they meet position by position:
            `left` lets their last tokens meet, `right` their first. How a batch is padded does not matter.
        source_encoder: Name of a translation model whose encoder reads the source side (FLARE-MT: the target text
            itself, tagged with its language), with one trained projection to the backbone's width; None for the
            backbone.
        source_encoder_dtype: Number format of its weights: float32, bfloat16 or float16.
        source_encoder_revision: Its commit on the hub, which `initialise_fused` fills in; None for a folder.
        source_encoder_fingerprint: Its sha256 (`backbone/checkpoint.py`), which `initialise_fused` fills in: another is
            refused where the adapter is attached. None where nobody knows.

    Raises:
        UserError: a value that means nothing.
    """

    peft_type = "FLARE"
    target_modules: Sequence[str] | str = ("q_proj", "v_proj")
    fusion_modules: Sequence[str] | str | None = None
    fusion: str = "add_relu"
    source_state: SourceState = "block-input"
    answer_source: AnswerSource = "last"
    padding: Padding = "left"
    source_encoder: str | None = None
    source_encoder_dtype: Dtype = "float32"
    source_encoder_revision: str | None = None
    source_encoder_fingerprint: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = FUSIONS[self.fusion]
        choices = (
            ("source_state", SourceState),
            ("answer_source", AnswerSource),
            ("padding", Padding),
            ("source_encoder_dtype", Dtype),
        )
        for key, known in choices:
            value = getattr(self, key)
            if value not in get_args(known):
                raise UserError(
                    key, f"{value!r} is not known", mend=did_you_mean(str(value), get_args(known))
                )
        if self.source_encoder is not None and self.answer_source == "generate":
            raise UserError(
                "answer_source",
                "'generate' means nothing with source_encoder, which reads a text and answers nothing",
                "'last' or 'none'",
                "choose one of them",
            )

    @override
    def places(self, backbone: Any) -> Places:
        layers = {path: module for path, _, module in blocks(backbone)}
        adapted = _adapted(backbone, self.target_modules)
        within = _encoder_of(backbone)
        if self.fusion_modules is None:
            fused = [path for path in adapted if path.startswith(within)]
        elif isinstance(self.fusion_modules, str):
            fused = _matching("fusion_modules", self.fusion_modules, list(layers))
        else:
            inside = [path for path in layers if path.startswith(within)]
            fused = _matching("fusion_modules", self.fusion_modules, inside)
        for path in fused:
            _check_fused(path, layers[path], backbone, self, path in adapted, path.startswith(within))
        if not fused:
            raise UserError("fusion_modules", "nothing would fuse", "layers of the encoder", "name some")
        return Places(adapted, tuple(fused))


@dataclass(frozen=True)
class MixupConfig(FusionConfig):
    """An X-Mixup adapter (https://arxiv.org/abs/2205.04182); `lingualift.fusion.mixup` has the formula.

    Attributes:
        target_modules: Linear layers that get LoRA, as FLARE's; None for all in the blocks.
        layer: Number of the block whose output is mixed, from 0, of an encoder-decoder the encoder's; None for the
            middle one, (blocks - 1) // 2.
        ratio: How much of the mixed states are the target's own: above 0, at most 1, which mixes nothing in.
        answer_consistency: Weight in the loss of the divergence between the answers to source and target.
        state_consistency: Weight in the loss of the distance between the mean states of source and target.

    Raises:
        UserError: a value that means nothing.
    """

    peft_type = "X-MIXUP"
    target_modules: Sequence[str] | str | None = None
    layer: int | None = None
    ratio: float = 0.5
    answer_consistency: float = 1.0
    state_consistency: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.ratio <= 1:
            raise UserError("ratio", f"is {self.ratio!r}", "above 0 and at most 1", "mend it")
        for key in ("answer_consistency", "state_consistency"):
            if not 0 <= getattr(self, key) < math.inf:
                raise UserError(key, f"is {getattr(self, key)!r}", "a weight, at least 0", "mend it")

    @override
    def places(self, backbone: Any) -> Places:
        return Places(_adapted(backbone, self.target_modules), (find_block(backbone, self.layer),))


CONFIGS: dict[str, type[FusionConfig]] = {kind.peft_type.lower(): kind for kind in (FlareConfig, MixupConfig)}
"""Configurations of adapters that read a source side, by `Adapter.kind`."""


def fusion_config(model: Any, adapter: Adapter, settings: Mapping[str, Any]) -> FusionConfig:
    """The configuration that an experiment asks for.

    Args:
        model: The backbone.
        adapter: Rank, alpha, dropout and the layers of LoRA.
        settings: `kind`, and further fields of its configuration; `fusion_modules` None for queries and values.

    Raises:
        UserError: as that configuration, or a backbone whose queries and values are not recognised.
    """
    chosen = {**settings, "target_modules": adapter.modules or linear_names(model)}
    config = CONFIGS[chosen.pop("kind")]
    if config is FlareConfig:
        chosen["fusion_modules"] = chosen.get("fusion_modules") or fusion_names(model)
    return config(r=adapter.rank, lora_alpha=adapter.alpha, lora_dropout=adapter.dropout, **chosen)


def block_of(path: str) -> str:
    """The numbered block that a layer stands in, or is."""
    found = _BLOCK.match(path)
    assert found is not None, path
    return found[1]


def _adapted(backbone: Any, names: Sequence[str] | str | None) -> tuple[str, ...]:
    """The linear layers of the blocks that get LoRA; all for None."""
    layers = {path: module for path, _, module in blocks(backbone)}
    adapted = list(layers) if names is None else _matching("target_modules", names, list(layers))
    for path in adapted:
        if not isinstance(layers[path], torch.nn.Linear):
            found = f"{path} is a {type(layers[path]).__name__}"
            raise UserError("target_modules", found, "linear layers", "choose a backbone of such layers")
    return tuple(adapted)


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
    """The paths that names match, as peft matches them."""
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
