"""What a FLARE adapter is: ranks, places, and how source and target meet."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from lingualift.adapters.config import CONFIG_FILE, FIRST_STAGE
from lingualift.architectures import fusion_names, linear_names
from lingualift.config import Adapter
from lingualift.errors import UserError, did_you_mean
from lingualift.fusion.functions import FUSIONS
from lingualift.fusion.passes import AnswerSource, Padding
from lingualift.provenance import read_json

PEFT_TYPE = "FLARE"
"""No type of peft's: plain peft refuses the folder instead of running it unfused."""

SourceState = Literal["block-input", "block-output", "projection-input"]
Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class FlareConfig:
    """A FLARE adapter (https://arxiv.org/abs/2501.06892): h = W·x_T + s·B·f(A·x_S, A·x_T), s = lora_alpha / r.

    Attributes:
        r: Rank of the bottleneck.
        lora_alpha: Scaling times rank.
        lora_dropout: Share of a layer's inputs that training sets to zero, of source and target alike.
        target_modules: Linear layers that get LoRA, as peft reads it: ends of their paths, or one regular expression
            for whole paths.
        fusion_modules: Those of them that fuse; None for all. Of an encoder-decoder, names mean the encoder's layers.
        fusion: Name of the fusion function; `FUSIONS` lists them.
        source_state: Where the source's states are taken in its pass: what goes into the same block, what comes out
            of it, or what goes into the same projection. (Which is best has not been measured yet.) With
            `source_encoder`, whose last states they are, it is not used.
        answer_source: What positions of the answer meet on decoders: `last`, the source's last prompt state; `none`;
            or `generate`, the states of the source side's own greedy answer, which is never the gold one.
        padding: The side on which prompts of unequal length are filled up before they meet position by position:
            `left` lets their last tokens meet, `right` their first. How a batch is padded does not matter.
        source_encoder: Name of a translation model whose encoder reads the source side (FLARE-MT: the target text
            itself, tagged with its language), with one trained projection to the backbone's width; None for the
            backbone.
        source_encoder_dtype: Number format of its weights: float32, bfloat16 or float16.
        source_encoder_fingerprint: Its sha256, or commit on the hub, which `initialise_flare` fills in: another is
            refused where the adapter is attached. None where nobody knows.
        modules_to_save: Modules that are trained whole and saved with the adapter (an encoder's head).

    Raises:
        UserError: a value that means nothing.
    """

    r: int = 8
    lora_alpha: float = 16
    lora_dropout: float = 0.0
    target_modules: Sequence[str] | str = ("q_proj", "v_proj")
    fusion_modules: Sequence[str] | str | None = None
    fusion: str = "add_relu"
    source_state: SourceState = "projection-input"
    answer_source: AnswerSource = "last"
    padding: Padding = "left"
    source_encoder: str | None = None
    source_encoder_dtype: Dtype = "float32"
    source_encoder_fingerprint: str | None = None
    modules_to_save: Sequence[str] | None = None

    def __post_init__(self) -> None:
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
        if type(self.r) is not int or self.r < 1:
            raise UserError("r", f"is {self.r!r}", "a whole number above 0", "choose the rank, such as 8")
        if not 0 <= self.lora_dropout < 1:
            raise UserError("lora_dropout", f"is {self.lora_dropout!r}", "at least 0 and below 1", "mend it")

        if self.source_encoder is not None and self.answer_source == "generate":
            raise UserError(
                "answer_source",
                "'generate' means nothing with source_encoder, which reads a text and answers nothing",
                "'last' or 'none'",
                "choose one of them",
            )

    def to_dict(self) -> dict[str, Any]:
        """The content of `adapter_config.json`."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        lists = {key: list(value) for key, value in values.items() if isinstance(value, (list, tuple))}
        return {"peft_type": PEFT_TYPE, **values, **lists}

    @classmethod
    def from_folder(cls, folder: Path) -> FlareConfig:
        """The configuration of a saved adapter.

        Raises:
            UserError: no FLARE adapter, or one with a setting that is not known here.
        """
        path = folder / CONFIG_FILE
        content = read_json(path)
        kind = content.get("peft_type") if isinstance(content, Mapping) else None
        if kind != PEFT_TYPE:
            raise UserError(path, f"peft_type is {kind!r}", repr(PEFT_TYPE), "name a folder that FLARE wrote")
        names = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(content.keys() - names - {"peft_type", "base_model_name_or_path", FIRST_STAGE})
        if unknown:
            raise UserError(path, f"{unknown[0]!r} is not known", mend=did_you_mean(unknown[0], names))
        return cls(**{key: value for key, value in content.items() if key in names})


def flare_config(model: Any, adapter: Adapter, settings: Mapping[str, Any]) -> FlareConfig:
    """The configuration that an experiment asks for.

    Args:
        model: The backbone; it fuses queries and values where `settings` name no layers.
        adapter: Rank, alpha, dropout and the layers of LoRA.
        settings: Further fields of `FlareConfig`; `fusion_modules` None for queries and values.

    Raises:
        UserError: as `FlareConfig`, or a backbone whose queries and values are not recognised.
    """
    chosen = {**settings, "fusion_modules": settings.get("fusion_modules") or fusion_names(model)}
    return FlareConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=adapter.modules or linear_names(model),
        **chosen,
    )
