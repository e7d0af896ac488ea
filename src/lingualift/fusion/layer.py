"""The fused LoRA layer, and how strongly its bottleneck responds.

The responses are those of Figure 5 of FLARE (https://arxiv.org/abs/2501.06892), by layer, while rows are answered.
Nothing is recorded outside of `recording`.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor

from lingualift.fusion.functions import Fusion, Weights, draw
from lingualift.fusion.passes import CALL, CURRENT, UNFUSED, Call, Fused, FusionError, SourcePass

ADAPTER = "default"
"""Name of the adapter within peft; a model holds one."""

_PLACE = re.compile(r"(?:.*?\.)?(\d+)\.(.+)")


class FlareLinear(Linear):  # type: ignore[misc]
    """A linear layer with LoRA that fuses: W·x_T + s·B·f(A·x_S, A·x_T), or plain LoRA while `fusion` is None.

    Attributes:
        fusion: How it fuses.
        key: Name of the source states that it meets: its own path, or its block's.
        path: Where it is, for messages.

    Source: FLARE (https://arxiv.org/abs/2501.06892), section 3.
    """

    adapter_layer_names = (*Linear.adapter_layer_names, "lora_fusion")

    fusion: Fusion | None = None
    key = path = ""

    def update_layer(self, *args: Any, **more: Any) -> None:
        """Make the adapter's tensors; peft's constructor calls it, and expects all that `adapter_layer_names` says."""
        self.lora_fusion = torch.nn.ModuleDict()
        super().update_layer(*args, **more)

    def fuse_by(self, fusion: Fusion, path: str, key: str) -> None:
        """Make the layer a fused one."""
        self.fusion, self.path, self.key = fusion, path, key
        if fusion.weights:
            weight = self.lora_A[ADAPTER].weight
            self.lora_fusion[ADAPTER] = draw(fusion.weights, len(weight)).to(weight.device, weight.dtype)

    def forward(self, x: Tensor, *args: Any, **more: Any) -> Tensor:
        """The layer's output for the target's states `x` (b, q, width).

        Raises:
            FusionError: it is fused and there is no source.
        """
        current = CURRENT.get()
        if isinstance(current, SourcePass):
            current.see("projection-input", self.path, x)
            found: Tensor = self.base_layer(x, *args, **more)
            return found
        call = CALL.get()
        of = None if call is None else call.of
        if self.fusion is None or self.disable_adapters or of is UNFUSED:
            plain: Tensor = super().forward(x, *args, **more)
            return plain
        if call is None or not isinstance(of, Fused):
            raise FusionError(
                f"{self.path} is fused and got no source: pass source_input_ids and source_attention_mask to the "
                "model that `flare` returned (a Trainer needs remove_unused_columns=False to pass them on), or switch "
                "fusion off by `with model.fusion_off():`"
            )
        return self._fused(self.fusion, call, of, x, *args, **more)

    def _fused(self, fusion: Fusion, call: Call, of: Fused, x: Tensor, *args: Any, **more: Any) -> Tensor:
        result = self.base_layer(x, *args, **more)
        rows, length = x.shape[:2]
        target = self._down(x)
        source = self._down_source(of)
        index, valid = of.meets(call.offset, length, rows)
        source = source.repeat_interleave(rows // len(source), 0)
        source = source.gather(1, index[..., None].expand(-1, -1, source.shape[-1]))
        source = source.masked_fill(~valid[..., None], 0)
        visible, own = None, target
        if fusion.attends:
            target = _with_earlier(call, self.path, target)
            visible = of.visible(call.offset, length, rows)
        weights: Weights = self.lora_fusion[ADAPTER] if fusion.weights else {}  # type: ignore[assignment]
        fused = fusion.fuse(source, target, visible, weights)
        if (record := RECORD.get()) and (prompts := of.prompts(call.offset, length, rows)) is not None:
            record.note(self.path, (source, own, fused), valid & prompts, prompts)
        summed: Tensor = result + self.lora_B[ADAPTER](fused.to(target.dtype)) * self.scaling[ADAPTER]
        return summed.to(result.dtype)

    def _down(self, states: Tensor) -> Tensor:
        """States in the bottleneck, (b, n, r)."""
        down = self.lora_A[ADAPTER]
        found: Tensor = down(self.lora_dropout[ADAPTER](self._cast_input_dtype(states, down.weight.dtype)))
        return found

    def _down_source(self, of: Fused) -> Tensor:
        """The source's bottleneck states; kept for the next tokens of an answer where nothing is trained."""
        if self.training or torch.is_grad_enabled():
            return self._down_states(of)
        if self.path not in of.bottlenecks:
            of.bottlenecks[self.path] = self._down_states(of)
        return of.bottlenecks[self.path]

    def _down_states(self, of: Fused) -> Tensor:
        states = of.states[self.key]
        if of.projection is None:
            return self._down(states)
        down = self.lora_A[ADAPTER].weight  # A·(P·x + b) as (A·P)·x + A·b, which takes a fraction of the work
        weight, bias = down @ of.projection.weight, down @ of.projection.bias
        states = self.lora_dropout[ADAPTER](self._cast_input_dtype(states, down.dtype))
        return torch.nn.functional.linear(states, weight, bias)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse: what depends on the source has no place in the weight.

        Raises:
            FusionError: the layer is fused.
        """
        if self.fusion is not None:
            raise FusionError(f"{self.path} is fused: no weight of the backbone can hold what it adds")
        super().merge(safe_merge, adapter_names)


def _with_earlier(call: Call, path: str, target: Tensor) -> Tensor:
    """The target's bottleneck states of all positions up to now; running a call again changes nothing."""
    if call.cache is None:
        return target
    kept: dict[str, Tensor] = call.cache.flare_targets
    if call.offset:
        earlier = kept.get(path)
        if earlier is None or earlier.shape[1] < call.offset or len(earlier) != len(target):
            raise FusionError(f"the cache holds no fused states of {path}: fill it by the fused model")
        target = torch.cat([earlier[:, : call.offset], target], dim=1)
    kept[path] = target
    return target


@dataclass
class Activations:
    """Sums over the prompts' positions, by path of the fused layer.

    Attributes:
        totals: Sums of |A·x_S|, |A·x_T| and |f|, each for all units of the bottleneck, the number of positions that met
            a source, and the number of positions (3r + 2,).
        pending: The same of a batch that is not done yet.
    """

    totals: dict[str, Tensor] = field(default_factory=dict)
    pending: dict[str, Tensor] = field(default_factory=dict)

    def note(self, path: str, states: tuple[Tensor, Tensor, Tensor], met: Tensor, real: Tensor) -> None:
        """Add a call of a layer.

        Args:
            path: The layer's.
            states: A·x_S as it meets the target, A·x_T and f of both, (b, n, r) each.
            met: Whether a position is one of a prompt and meets a source (b, n).
            real: Whether it is one of a prompt (b, n).
        """
        masks = (met, real, real)
        sums = [
            each.detach().float().abs().masked_fill(~mask[..., None], 0).sum((0, 1))
            for each, mask in zip(states, masks, strict=True)
        ]
        found = torch.cat([*sums, torch.stack([met.sum(), real.sum()])])
        self.pending[path] = self.pending[path] + found if path in self.pending else found

    def settle(self) -> None:
        """Count what is pending."""
        if self.pending:
            sums = torch.stack(list(self.pending.values())).cpu().double()
            for path, found in zip(self.pending, sums, strict=True):
                self.totals[path] = self.totals.get(path, 0) + found
        self.pending.clear()

    def means(self) -> list[dict[str, Any]]:
        """For each layer, in the order of the blocks, what it does on average.

        Returns:
            `layer`, the number of its block; `module`, its name within; the means `source` (None where nothing met
            one), `target` and `fused`; and `units`, of each of these its means for every unit of the bottleneck.
        """
        places = {path: _PLACE.fullmatch(path) for path in self.totals}
        tails = {path: place[2] if place else path for path, place in places.items()}
        ends = {tail: tail.rsplit(".", 1)[-1] for tail in tails.values()}
        alone = len(set(ends.values())) == len(ends)
        found = []
        for path, sums in self.totals.items():
            met, real = sums[-2:].tolist()
            if real:
                place = places[path]
                counts = {"source": met, "target": real, "fused": real}
                units = {
                    side: (each / count).tolist() if count else None
                    for (side, count), each in zip(counts.items(), sums[:-2].chunk(3), strict=True)
                }
                found.append(
                    {
                        "layer": int(place[1]) if place else 0,
                        "module": ends[tails[path]] if alone else tails[path],
                        **{side: statistics.fmean(each) if each else None for side, each in units.items()},
                        "units": units,
                    }
                )
        return sorted(found, key=lambda one: (one["layer"], one["module"]))


RECORD: ContextVar[Activations | None] = ContextVar("lingualift_activations", default=None)


@contextmanager
def recording() -> Iterator[Activations]:
    """Record what fused layers do within the block; `means` tells it afterwards.

    Counted are the positions of prompts (of whole texts, on encoders) that are no padding, so that neither the padding
    nor the size of the batches matters. What is generated or ranked behind a prompt is not counted.
    """
    found = Activations()
    token = RECORD.set(found)
    try:
        yield found
        found.settle()
    finally:
        RECORD.reset(token)
