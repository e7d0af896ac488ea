"""A backbone with an X-Mixup adapter: source and target are learnt side by side, and mixed in one block.

What that block puts out for the target is mixed with what it sees in the source's output. With u(x) = x / rms(x) over
the width, and h the output of the block for target (T) and source (S),

    h_S|T = U·softmax(Q·u(h_T)·(K·u(h_S))ᵀ / √r)·V·u(h_S)
    mixed = rms(h_T)·u(ratio·u(h_T) + (1 - ratio)·h_S|T)

Q, K, V (r, d) and U (d, r) are trained. U starts at 0, where mixed = h_T: training starts from the backbone as it is.
The blocks above are frozen, and get states of the size that they know.

Source: X-Mixup (https://arxiv.org/abs/2205.04182), section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lingualift.errors import UserError
from lingualift.fusion.config import MixupConfig
from lingualift.fusion.paired import PairedModel, check_source, first_label, source_of
from lingualift.fusion.passes import (
    CURRENT,
    SOURCE,
    UNFUSED,
    FusedBlock,
    FusionError,
    SourcePass,
    SourcePassDone,
    fuse_block,
    running,
    source_inputs,
    stack_of,
)

ANSWERS = ("labels", "start_positions", "end_positions")
_IGNORED = -100
_TINY = 1e-12  # beside the mean square, so that zeros have a size


def size(states: Tensor) -> Tensor:
    """Root mean square over the width, (…, width) -> (…, 1)."""
    return (states.pow(2).mean(-1, keepdim=True) + _TINY).sqrt()


def unit(states: Tensor) -> Tensor:
    """States (…, width) at root mean square 1."""
    return states / size(states)


class Mixer(torch.nn.Module):
    """The cross-attention's projections, with one head in a bottleneck.

    Args:
        width: Of the states.
        rank: Of the bottleneck.
        ratio: How much of the mixed states are the target's own.
    """

    def __init__(self, width: int, rank: int, ratio: float) -> None:
        super().__init__()
        self.query, self.key, self.value = (torch.nn.Linear(width, rank, bias=False) for _ in range(3))
        self.up = torch.nn.Linear(rank, width, bias=False)
        torch.nn.init.zeros_(self.up.weight)
        self.ratio = ratio

    def read(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (b, m, rank) of source states (b, m, width)."""
        states = unit(source.to(self.key.weight.dtype))
        return self.key(states), self.value(states)

    def forward(self, target: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Target states (b, n, width), mixed with the source of which `mask` (b, m) says what may be seen."""
        states = target.to(self.query.weight.dtype)
        own = unit(states)
        seen = functional.scaled_dot_product_attention(
            self.query(own), keys, values, attn_mask=mask[:, None].bool()
        )
        mixed = self.ratio * own + (1 - self.ratio) * self.up(seen)
        return (size(states) * unit(mixed)).to(target.dtype)


@dataclass
class Mixed:
    """A pass of the target that is mixed with its source; the rows may repeat those of the source, as beams do.

    Attributes:
        mixer: Mixes.
        keys: Of the source, (b, m, rank).
        values: Of the source, (b, m, rank).
        mask: Which source tokens may be seen (b, m): real ones, and none of an answer.
        causal: Whether the backbone is a decoder.
        prompt: Which target tokens the consistency compares (b, n): real ones, on decoders before the answer.
        source: States that left the block for the source (b, m, width).
        output: What the backbone gave for the source, if it answered too.
        left: States that left the block for the target, mixed (b, n, width); filled in by the block.
    """

    mixer: Mixer
    keys: Tensor
    values: Tensor
    mask: Tensor
    causal: bool
    prompt: Tensor
    source: Tensor
    output: Any = None
    left: Tensor | None = None

    def mix(self, states: Tensor) -> Tensor:
        """Target states (rows, n, width), mixed."""
        times, rest = divmod(len(states), len(self.mask))
        if rest:
            raise ValueError(
                f"{len(states)} rows do not repeat the {len(self.mask)} that sources were given for"
            )
        beside = (each.repeat_interleave(times, 0) for each in (self.keys, self.values, self.mask))
        mixed: Tensor = self.mixer(states, *beside)
        return mixed

    def take(self, rows: Tensor) -> Mixed:
        """The same pass for rows (k,) of it, in their order; rows may repeat."""
        parts = ("keys", "values", "mask", "prompt", "source")
        return replace(self, **{name: getattr(self, name)[rows] for name in parts}, output=None, left=None)


class MixedBlock(FusedBlock):
    """The block whose output is mixed; mixed into the class of the block.

    It mixes outside of what gradient checkpointing runs again, whose backward pass must not reach the source's.
    """

    def __call__(self, *args: Any, **more: Any) -> Any:
        """Run the block in the current pass; that of the source, and one with mixing off, as it is.

        Raises:
            FusionError: there is no source.
        """
        output = super().__call__(*args, **more)
        current = CURRENT.get()
        if current is UNFUSED or isinstance(current, SourcePass):
            return output
        if not isinstance(current, Mixed):
            raise FusionError(
                f"{self.flare_path} is mixed and got no source: pass source_input_ids and source_attention_mask to the "
                "model that `mixup` returned (a Trainer needs remove_unused_columns=False to pass them on), or switch "
                "mixing off by `with model.fusion_off():`"
            )
        whole = isinstance(output, tuple)
        current.left = current.mix(output[0] if whole else output)
        return (current.left, *output[1:]) if whole else current.left


class MixupModel(PairedModel):
    """A backbone with an X-Mixup adapter; `mixup` and `load_mixup` make it.

    Source and target pass through the same LoRA, gradients through both. Beside what `FlareModel` takes, training takes
    the source's own answer: `source_labels` (`source_start_positions` and `source_end_positions` of a span), and on
    decoders `source_input_ids` with the answer in them, behind the prompt. The target never sees it.

    Attributes:
        mixup_config: Its configuration.
        mixer: The cross-attention's projections.
    """

    beside = "mixer"

    def __init__(self, backbone: Any, config: MixupConfig, first_stage: Path | str | None = None) -> None:
        super().__init__(backbone, config, first_stage)
        (path,) = self._places.fused
        self.mixup_config = config
        fuse_block(backbone, path, MixedBlock)
        self._block = path
        A = next(parameter for key, parameter in self.named_parameters() if ".lora_A." in key)
        width = backbone.config.get_text_config().hidden_size
        self.mixer = Mixer(width, config.r, config.ratio).to(A.device, A.dtype)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        source_input_ids: Tensor | None = None,
        source_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        answer_tokens: int | None = None,
        **more: Any,
    ) -> Any:
        """The backbone's output for the target, mixed with the source; with labels, the loss is that of both.

        Args:
            input_ids: Target tokens (b, n).
            attention_mask: 1 for real target tokens, 0 for padding (b, n); None where all are real.
            source_input_ids: Source tokens (b, m). None while mixing is off, and for further tokens with a cache that
                a mixed pass has filled.
            source_attention_mask: 1 for real source tokens (b, m); None where all are real.
            labels: As the backbone takes them; of a class or choice (b,).
            num_items_in_batch: Labels in all batches of a step, as a Trainer counts them; None for those in this one.
                The loss is weighted by this batch's share of them.
            answer_tokens: What FLARE may need to know; of no use here.
            more: What else the backbone takes; names that begin with `source_` go to the source pass.

        Raises:
            UserError: unequal numbers of rows, a source without a token or longer than the limit, labels without
                those of the source, or that leave no prompt.
            FusionError: there is no source.
        """
        theirs = source_of(more, source_input_ids, source_attention_mask, None)
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels, **more}
        given = {key: value for key, value in given.items() if value is not None}
        answers = [key for key in ANSWERS if key in given]
        if self._off or not answers:
            with running(self._pass(input_ids, None, attention_mask, theirs, None, more)):
                return self._answer(given)
        for key in answers:
            if SOURCE + key not in theirs:
                found = "is not given, and training learns to answer the source too"
                raise UserError(SOURCE + key, found, "the source's own", f"pass it, or leave {key} out")
        start = None
        if self._causal and labels is not None and input_ids is not None:
            start = first_label(labels, attention_mask, input_ids.shape)
        this = self._pass(input_ids, None, attention_mask, theirs, start, more)
        with running(this):
            output = self._answer(given)
        output["loss"] = self._loss(this, output, labels, theirs.get(f"{SOURCE}labels"))
        if num_items_in_batch is not None and labels is not None:
            output["loss"] = output["loss"] * ((labels != _IGNORED).sum() / num_items_in_batch)
        return output

    def _answer(self, given: Mapping[str, Any]) -> Any:
        """The backbone's output, with the mean loss of classes and choices too."""
        labels = given.get("labels")
        if labels is None or labels.dim() > 1:
            return self.get_base_model()(**given)
        output = self.get_base_model()(**{key: value for key, value in given.items() if key != "labels"})
        output["loss"] = functional.cross_entropy(output.logits.reshape(len(labels), -1).float(), labels)
        return output

    def _loss(self, this: Mixed, output: Any, labels: Tensor | None, theirs: Tensor | None) -> Tensor:
        """Loss of target and source, and of how their answers and states differ."""
        config = self.mixup_config
        loss: Tensor = output.loss + this.output.loss
        ours, answers = self._answers(output, labels), self._answers(this.output, theirs)
        if config.answer_consistency and ours is not None and answers is not None:
            loss = loss + config.answer_consistency * functional.kl_div(
                ours.log_softmax(-1), answers.log_softmax(-1), log_target=True, reduction="batchmean"
            )
        if this.left is None:
            raise FusionError(f"the target's pass did not reach {self._block}")
        if config.state_consistency:
            means = (_mean(this.left, this.prompt), _mean(this.source, this.mask))
            loss = loss + config.state_consistency * functional.mse_loss(*means)
        return loss

    def _answers(self, output: Any, labels: Tensor | None) -> Tensor | None:
        """Logits (b, answers) of the classes, or of an answer's first token; None where source and target share none.

        Raises:
            UserError: a decoder's row without an answer behind its prompt.
        """
        if labels is None:
            return None
        logits: Tensor = output.logits
        if labels.dim() == 1:
            return logits.reshape(len(labels), -1).float()
        if self.get_base_model().config.is_encoder_decoder:
            return logits[:, 0].float()
        if not self._causal:
            return None
        before = (labels != _IGNORED).int().argmax(1) - 1
        if bool((before < 0).any()):
            raise UserError("labels", "a row has none", "an answer behind each prompt", "leave the row out")
        return logits[torch.arange(len(before), device=before.device), before].float()

    def _fused(
        self, mask: Tensor, theirs: dict[str, Any], answer_start: Tensor | None, more: Mapping[str, Any]
    ) -> Mixed:
        if "source_input_ids" not in theirs:
            found = f"is not given, and {', '.join(theirs)} is"
            raise UserError("source_input_ids", found, "the source's tokens", "pass them")
        theirs = dict(theirs)
        ids, seen = theirs.pop("source_input_ids"), theirs.pop("source_attention_mask", None)
        seen = torch.ones_like(ids) if seen is None else seen
        backbone = self.get_base_model()
        check_source(ids, seen, len(mask), 0, backbone.config)
        given = source_inputs(ids, seen, theirs, self._causal)
        learns = any(key in given for key in ANSWERS)
        this, output = SourcePass(frozenset([self._block]), "block-output", stops=not learns), None
        with running(this), suppress(SourcePassDone):
            output = self._answer(given) if learns else stack_of(backbone)(**given)
        states = this.states[self._block]
        if self._causal and "labels" in given:
            seen = _before(seen, first_label(given["labels"], seen, ids.shape))
        prompt = mask if answer_start is None else _before(mask, answer_start)
        keys, values = self.mixer.read(states)
        return Mixed(self.mixer, keys, values, seen, self._causal, prompt, states, output)


def _before(mask: Tensor, start: Tensor) -> Tensor:
    """A mask (b, n), with the positions from `start` (b,) on left out."""
    return mask * (torch.arange(mask.shape[1], device=mask.device) < start.to(mask.device)[:, None])


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean (b, width) of states (b, n, width) where the mask is 1, each state at root mean square 1."""
    real = mask[..., None].float()
    return (unit(states.float()) * real).sum(1) / real.sum(1)


def mixup(backbone: Any, config: MixupConfig, *, first_stage: Path | str | None = None) -> MixupModel:
    """Put a new X-Mixup adapter on a backbone, which is changed in place; draw its start by torch's seed.

    Args:
        backbone: A model of transformers: decoder, encoder or encoder-decoder.
        config: What adapter.
        first_stage: Folder of the LoRA adapter that was trained on the source language, as for `flare`.

    Raises:
        UserError: a module name or layer that matches nothing, or a backbone or first stage that does not fit.
    """
    return MixupModel(backbone, config, first_stage)


def load_mixup(backbone: Any, folder: str | Path, *, is_trainable: bool = False) -> MixupModel:
    """Put a saved X-Mixup adapter on a backbone, which is changed in place.

    Args:
        backbone: The model that it was trained on.
        folder: What `save_pretrained` wrote.
        is_trainable: Whether it is to be trained further.

    Raises:
        UserError: no X-Mixup adapter, damaged, or made for another backbone.
    """
    config = MixupConfig.from_folder(Path(folder))
    return MixupModel.load(backbone, config, folder, is_trainable=is_trainable)
