"""How strongly the bottlenecks of a FLARE adapter respond, layer by layer, while rows are answered.

As in Figure 5 of FLARE (https://arxiv.org/abs/2501.06892). Nothing is recorded outside of `recording`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

_PLACE = re.compile(r"(?:.*?\.)?(\d+)\.(.+)")


@dataclass
class Activations:
    """Sums over the prompts' positions, by path of the fused layer.

    Attributes:
        totals: Sums of |A·x_S|, |A·x_T| and |f|, each a mean over the bottleneck, the number of positions that met a
            source, and the number of positions (5,).
        pending: The same of a batch that is not done yet.
    """

    totals: dict[str, Any] = field(default_factory=dict)
    pending: dict[str, Any] = field(default_factory=dict)

    def note(self, path: str, states: tuple[Any, Any, Any], met: Any, real: Any) -> None:
        """Add a call of a layer.

        Args:
            path: The layer's.
            states: A·x_S as it meets the target, A·x_T and f of both, (b, n, r) each.
            met: Whether a position is one of a prompt and meets a source (b, n).
            real: Whether it is one of a prompt (b, n).
        """
        import torch

        masks = (met, real, real)
        sums = [
            each.detach().float().abs().mean(-1).masked_fill(~mask, 0).sum()
            for each, mask in zip(states, masks, strict=True)
        ]
        found = torch.stack([*sums, met.sum(), real.sum()])
        self.pending[path] = self.pending[path] + found if path in self.pending else found

    def settle(self) -> None:
        """Count what is pending."""
        import torch

        if self.pending:
            sums = torch.stack(list(self.pending.values())).cpu().double()
            for path, found in zip(self.pending, sums, strict=True):
                self.totals[path] = self.totals.get(path, 0) + found
        self.pending.clear()

    def means(self) -> list[dict[str, Any]]:
        """For each layer, in the order of the blocks, what it does on average.

        Returns:
            `layer`, the number of its block; `module`, its name within; and the means `source` (None where nothing met
            one), `target` and `fused`.
        """
        places = {path: _PLACE.fullmatch(path) for path in self.totals}
        tails = {path: place[2] if place else path for path, place in places.items()}
        ends = {tail: tail.rsplit(".", 1)[-1] for tail in tails.values()}
        alone = len(set(ends.values())) == len(ends)
        found = []
        for path, sums in self.totals.items():
            source, target, fused, met, real = sums.tolist()
            if real:
                place = places[path]
                found.append(
                    {
                        "layer": int(place[1]) if place else 0,
                        "module": ends[tails[path]] if alone else tails[path],
                        "source": source / met if met else None,
                        "target": target / real,
                        "fused": fused / real,
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


@contextmanager
def tentative() -> Iterator[None]:
    """Count what is recorded within the block once it ends well, and not at all where it raises."""
    found = RECORD.get()
    try:
        yield
    except BaseException:
        if found is not None:
            found.pending.clear()
        raise
    if found is not None:
        found.settle()
