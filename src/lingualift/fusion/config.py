"""What a fused adapter is: ranks, places, and how source and target meet."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

from lingualift.adapters.config import CONFIG_FILE, FIRST_STAGE
from lingualift.adapters.foreign import check as check_config
from lingualift.errors import UserError, did_you_mean
from lingualift.fusion.functions import FUSIONS
from lingualift.fusion.passes import AnswerSource, Padding
from lingualift.provenance import read_json

SourceState = Literal["block-input", "block-output", "projection-input"]
Dtype = Literal["float32", "bfloat16", "float16"]


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
        source_encoder_fingerprint: Its sha256 (`backbone/identity.py`), which `initialise_fused` fills in: another is
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
