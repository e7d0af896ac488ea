"""The fused LoRA layer, and the blocks and caches that hand it its source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor

from lingualift.fusion.activations import RECORD
from lingualift.fusion.functions import Fusion, draw
from lingualift.fusion.passes import CALL, CURRENT, UNFUSED, Call, Fused, Meeting, SourcePass

ADAPTER = "default"
"""Name of the adapter within peft; a model holds one."""


class FusionError(RuntimeError):
    """A fused layer was called in a way in which it cannot fuse."""


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
            return self.base_layer(x, *args, **more)
        if self.fusion is None or self.disable_adapters:
            return super().forward(x, *args, **more)
        call = CALL.get()
        of = None if call is None else call.of
        if of is UNFUSED:
            return super().forward(x, *args, **more)
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
        weights = self.lora_fusion[ADAPTER] if fusion.weights else {}
        fused = fusion.fuse(source, target, visible, weights)
        if (record := RECORD.get()) and (prompts := of.prompts(call.offset, length, rows)) is not None:
            record.note(self.path, (source, own, fused), valid & prompts, prompts)
        up = self.lora_B[ADAPTER]
        return (result + up(fused.to(target.dtype)) * self.scaling[ADAPTER]).to(result.dtype)

    def _down(self, states: Tensor) -> Tensor:
        """States in the bottleneck, (b, n, r)."""
        down = self.lora_A[ADAPTER]
        return down(self.lora_dropout[ADAPTER](self._cast_input_dtype(states, down.weight.dtype)))

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


class FusedBlock:
    """A block that hands its call to the fused layers within; mixed into the class of the block.

    The call is an argument of `forward`, which is what gradient checkpointing (of either kind) runs again.
    """

    flare_path: str
    flare_index: int

    def __call__(self, *args: Any, **more: Any) -> Any:
        """Run the block in the current pass."""
        current = CURRENT.get()
        if isinstance(current, SourcePass):
            current.see("block-input", self.flare_path, args[0] if args else more["hidden_states"])
            output = super().__call__(*args, **more)  # type: ignore[misc]
            current.see("block-output", self.flare_path, output)
            return output
        if "flare_call" not in more:
            more["flare_call"] = self._call(current, more.get("past_key_values"))
        return super().__call__(*args, **more)  # type: ignore[misc]

    def _call(self, current: Any, cache: Any) -> Call:
        if not isinstance(current, Meeting) or not current.causal or cache is None:
            return Call(current)
        if not isinstance(cache, FusedCache):
            swap(cache, FusedCache)
            cache.flare_targets, cache.flare_pass = {}, current
        return Call(current, int(cache.get_seq_length(self.flare_index)), cache)

    def forward(self, *args: Any, flare_call: Call | None = None, **more: Any) -> Any:
        """The block's forward pass."""
        token = CALL.set(flare_call)
        try:
            return super().forward(*args, **more)  # type: ignore[misc]
        finally:
            CALL.reset(token)


class FusedCache:
    """A cache of keys and values that holds bottleneck states of the target too; mixed into the class of the cache.

    Attributes:
        flare_targets: Bottleneck states (b, n, r) by layer.
        flare_pass: What the prompt met; its answer goes on with it.
    """

    flare_targets: dict[str, Tensor]
    flare_pass: Meeting
    get_seq_length: Callable[[int], int]
    layers: list[Any]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Follow the beams."""
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self.flare_targets = {
            path: states.index_select(0, beam_idx.to(states.device))
            for path, states in self.flare_targets.items()
        }

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows, in the order of their numbers (k,), which may repeat; each goes on with its own source."""
        rows = len(self.layers[0].keys)
        super().batch_select_indices(indices)  # type: ignore[misc]
        self.flare_targets = {path: states[indices] for path, states in self.flare_targets.items()}
        given = len(self.flare_pass.mask)
        self.flare_pass = self.flare_pass.take(indices.to(self.flare_pass.mask.device) // (rows // given))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        self.flare_targets = {
            path: states.repeat_interleave(repeats, 0) for path, states in self.flare_targets.items()
        }


def swap(thing: Any, mixin: type) -> None:
    """Mix a class into an object's class; its name stays, by which libraries know it."""
    kind = type(thing)
    thing.__class__ = type(kind.__name__, (mixin, kind), {"__module__": kind.__module__})
