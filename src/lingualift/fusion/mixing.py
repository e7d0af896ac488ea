"""X-Mixup's mixed states: what one block puts out for the target is mixed with what it sees in the source's output.

With u(x) = x / rms(x) over the width, and h the output of the block for target (T) and source (S),

    h_S|T = U·softmax(Q·u(h_T)·(K·u(h_S))ᵀ / √r)·V·u(h_S)
    mixed = rms(h_T)·u(ratio·u(h_T) + (1 - ratio)·h_S|T)

Q, K, V (r, d) and U (d, r) are trained. U starts at 0, where mixed = h_T: training starts from the backbone as it is.
The blocks above are frozen, and get states of the size that they know.

Source: X-Mixup (https://arxiv.org/abs/2205.04182), section 3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lingualift.fusion.layer import FusedBlock, FusionError
from lingualift.fusion.passes import CURRENT, UNFUSED, SourcePass

_TINY = 1e-12  # beside the mean square, so that zeros have a size


def size(states: Tensor) -> Tensor:
    """Root mean square over the width, (…, width) -> (…, 1)."""
    return (states.pow(2).mean(-1, keepdim=True) + _TINY).sqrt()


def unit(states: Tensor) -> Tensor:
    """States (…, width) at root mean square 1."""
    return states / size(states)


class Mixer(torch.nn.Module):  # type: ignore[misc]
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
