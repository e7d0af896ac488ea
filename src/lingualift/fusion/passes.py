"""Passes of source and target: what a pass of the target meets, and the blocks and caches that hand it on.

A pass is found through a context variable while the model runs, and handed to each block as an argument of its call,
so that gradient checkpointing, which runs a block again after the pass is over, repeats the same call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from lingualift.backbone.architectures import family_of

AnswerSource = Literal["last", "none", "generate"]
Padding = Literal["left", "right"]
Found = TypeVar("Found")

SOURCE = "source_"
"""What names of the source side's inputs begin with."""


class FusionError(RuntimeError):
    """A fused layer was called in a way in which it cannot fuse."""


class SourcePassDone(Exception):
    """All source states are there: what comes after them is not computed."""


@dataclass
class SourcePass:
    """A pass of the source, which meets nothing; collects states unless `wanted` is empty.

    Attributes:
        wanted: Keys of the states to collect: blocks, or projections.
        at: Where they are taken: `block-input`, `block-output` or `projection-input`.
        stops: Whether what comes after the last of them is left out.
        states: What was collected, (b, m, width) each.
    """

    wanted: frozenset[str] = frozenset()
    at: str = ""
    stops: bool = True
    states: dict[str, Tensor] = field(default_factory=dict)

    def see(self, at: str, key: str, states: Tensor | tuple[Tensor, ...]) -> None:
        """Keep states that are wanted.

        Raises:
            SourcePassDone: these were the last.
        """
        if at != self.at or key not in self.wanted:
            return
        self.states[key] = states[0] if isinstance(states, tuple) else states
        if self.stops and len(self.states) == len(self.wanted):
            raise SourcePassDone


class Unfused:
    """A pass of the target in which fusion is off on purpose: plain LoRA."""


UNFUSED = Unfused()


@dataclass(frozen=True)
class Span:
    """The real tokens of every row, (b,) each: from `start` to before `end`; the prompt ends before `prompt_end`."""

    start: Tensor
    prompt_end: Tensor
    end: Tensor

    def take(self, rows: Tensor) -> Span:
        """Those of rows (k,)."""
        return Span(self.start[rows], self.prompt_end[rows], self.end[rows])


def span_of(mask: Tensor, prompt_end: Tensor | None = None) -> Span:
    """The span of a padding mask (b, n), padded on either side."""
    real = mask.bool().int()
    start = real.argmax(1)
    end = real.shape[1] - real.flip(1).argmax(1)
    return Span(start, end if prompt_end is None else prompt_end.to(end.device).clamp(max=end), end)


@dataclass
class Fused:
    """A pass of the target that meets source states.

    Attributes:
        states: Source states by block or projection, (b, m, width) each, without gradient.
        source: Span of the source rows.
        target: Span of the target rows.
        mask: Padding mask of the target rows (b, n); positions beyond it are real.
        causal: Whether a position must not see later ones, and answers follow prompts: decoders.
        padding: The side on which prompts of different lengths are filled up before they meet.
        answer_source: What positions of the answer meet.
        projection: From the width of the states to the backbone's; None where it is the backbone's.
    """

    states: dict[str, Tensor]
    source: Span
    target: Span
    mask: Tensor
    causal: bool
    padding: Padding
    answer_source: AnswerSource
    projection: torch.nn.Linear | None = None
    bottlenecks: dict[str, Tensor] = field(default_factory=dict)
    _last: dict[str, tuple[tuple[int, ...], Any]] = field(default_factory=dict)

    def meets(self, offset: int, length: int, rows: int) -> tuple[Tensor, Tensor]:
        """Which source position each of `length` target positions from `offset` on meets.

        Returns:
            Positions, and whether there is one, (rows, length) each.
        """
        return self._shared("meets", self._meets, offset, length, rows)

    def visible(self, offset: int, length: int, rows: int) -> Tensor:
        """Which target positions each of `length` positions from `offset` on may see (rows, length, offset + length).

        Padding is seen by none but itself, so that no row of an attention is empty.
        """
        return self._shared("visible", self._visible, offset, length, rows)

    def prompts(self, offset: int, length: int, rows: int) -> Tensor | None:
        """Which of `length` target positions from `offset` on are a prompt's, (rows, length); None if none is."""
        if offset >= self._shared("reach", lambda: int(self.target.prompt_end.max())):
            return None
        return self._shared("prompts", self._prompts, offset, length, rows)

    def take(self, rows: Tensor) -> Fused:
        """The same pass for rows (k,) of it, in their order; rows may repeat."""
        return replace(
            self,
            states={key: states[rows] for key, states in self.states.items()},
            source=self.source.take(rows),
            target=self.target.take(rows),
            mask=self.mask[rows],
            bottlenecks={path: states[rows] for path, states in self.bottlenecks.items()},
            _last={},
        )

    def _shared(self, name: str, compute: Callable[..., Found], *key: int) -> Found:
        """All layers of a pass ask the same."""
        last = self._last.get(name)
        if last is None or last[0] != key:
            self._last[name] = last = (key, compute(*key))
        found: Found = last[1]
        return found

    def _meets(self, offset: int, length: int, rows: int) -> tuple[Tensor, Tensor]:
        source, target = self.source, self.target
        position = torch.arange(offset, offset + length, device=self.mask.device)[None]

        if rows % len(source.start) or rows % len(target.start):
            raise ValueError(f"{rows} rows do not repeat the {len(source.start)} that sources were given for")

        def column(bound: Tensor) -> Tensor:
            return bound.repeat_interleave(rows // len(bound))[:, None]

        ends = column(source.prompt_end) - column(target.prompt_end)
        starts = column(source.start) - column(target.start)
        index = position + (ends if self.padding == "left" else starts)
        in_prompt = (position >= column(target.start)) & (position < column(target.prompt_end))
        valid = in_prompt & (index >= column(source.start)) & (index < column(source.prompt_end))
        if self.causal and self.answer_source != "none":
            last = column(source.end) - 1
            answered = torch.minimum(position + ends, last) if self.answer_source == "generate" else last
            in_answer = position >= column(target.prompt_end)
            index, valid = torch.where(in_answer, answered, index), valid | in_answer
        return index.masked_fill(~valid, 0), valid

    def _prompts(self, offset: int, length: int, rows: int) -> Tensor:
        position = torch.arange(offset, offset + length, device=self.mask.device)[None]
        start, end = (
            bound.repeat_interleave(rows // len(bound))[:, None]
            for bound in (self.target.start, self.target.prompt_end)
        )
        return (position >= start) & (position < end)

    def _visible(self, offset: int, length: int, rows: int) -> Tensor:
        keys = offset + length
        mask = self.mask[:, :keys].bool()
        if mask.shape[1] < keys:
            mask = torch.nn.functional.pad(mask, (0, keys - mask.shape[1]), value=True)
        mask = mask.repeat_interleave(rows // len(mask), 0)
        query = torch.arange(offset, keys, device=mask.device)[:, None]
        key = torch.arange(keys, device=mask.device)[None]
        seen = mask[:, None].expand(rows, length, keys)
        if self.causal:
            seen = seen & (key <= query)
        return seen | (key == query)


@runtime_checkable
class Meeting(Protocol):
    """A pass of the target that meets the source: what blocks and caches of any fused adapter need of it."""

    mask: Tensor
    causal: bool

    def take(self, rows: Tensor) -> Meeting:
        """The same pass for rows (k,) of it, in their order; rows may repeat."""


Pass = SourcePass | Unfused | Meeting


@dataclass(frozen=True)
class Call:
    """One call of a block: the pass it belongs to, the positions it starts at, and the cache that it fills."""

    of: Unfused | Meeting | None
    offset: int = 0
    cache: Any = None


CURRENT: ContextVar[Pass | None] = ContextVar("lingualift_fusion_pass", default=None)
CALL: ContextVar[Call | None] = ContextVar("lingualift_fusion_call", default=None)


@contextmanager
def running(this: Pass | None) -> Iterator[None]:
    """Make a pass the current one."""
    token = CURRENT.set(this)
    try:
        yield
    finally:
        CURRENT.reset(token)


def stack_of(backbone: Any) -> Any:
    """The stack of blocks of a backbone that reads a text: of an encoder-decoder its encoder."""
    return backbone.get_encoder() if family_of(backbone.config) == "encoder-decoder" else backbone.base_model


def source_inputs(ids: Tensor, mask: Tensor, more: Mapping[str, Any], causal: bool) -> dict[str, Any]:
    """What the model that reads the source is given, by its own names; `more` has the source's."""
    given = {key.removeprefix(SOURCE): value for key, value in more.items()}
    given.update(input_ids=ids, attention_mask=mask)
    if causal:
        given["use_cache"] = False
        given.setdefault("position_ids", (mask.cumsum(1) - 1).clamp(min=0))
    return given


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


def fuse_block(backbone: Any, path: str, mixin: type[FusedBlock]) -> None:
    """Make the block at a path a fused one."""
    block = backbone.get_submodule(path)
    if not isinstance(block, mixin):
        swap(block, mixin)
    block.flare_path, block.flare_index = path, int(path.rsplit(".", 1)[-1])


def swap(thing: Any, mixin: type) -> None:
    """Mix a class into an object's class; its name stays, by which libraries know it."""
    kind = type(thing)
    thing.__class__ = type(kind.__name__, (mixin, kind), {"__module__": kind.__module__})
