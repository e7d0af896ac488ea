"""From encoded rows to the tensors of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lingualift.training.encoding import IGNORED


class Collator:
    """Pads the rows of a batch to one length; padding carries no loss.

    Rows with an `attention_mask` (prompt and answer) are padded on the left, so that their answers end together: the
    model then need not compute logits before the longest answer, which for large vocabularies is most of what a step
    costs. Packed segments bring `position_ids` and no mask, are padded on the right, and their padding counts as one
    more document.

    Args:
        pad: Id of the padding token.
        trims_logits: Whether the model takes `logits_to_keep`.
    """

    def __init__(self, pad: int, *, trims_logits: bool) -> None:
        self.pad = pad
        self.trims_logits = trims_logits

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
        """`input_ids`, `position_ids` of shape (rows, longest row), and what the model needs beside them."""
        return self._segments(rows) if "position_ids" in rows[0] else self._pairs(rows)

    def _pairs(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
        import torch

        fill = {"input_ids": self.pad, "attention_mask": 0, "labels": IGNORED}
        longest = max(len(row["input_ids"]) for row in rows)
        batch: dict[str, Any] = {
            key: torch.tensor([[filler] * (longest - len(row[key])) + row[key] for row in rows])
            for key, filler in fill.items()
        }
        batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        if self.trims_logits:
            answers = max(sum(label != IGNORED for label in row["labels"]) for row in rows)
            batch["logits_to_keep"] = min(
                answers + 1, longest
            )  # the first token is predicted from the one before it
            batch["labels"] = batch["labels"][:, -batch["logits_to_keep"] :]
        return batch

    def _segments(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
        import torch

        longest = max(len(row["input_ids"]) for row in rows)
        batch: dict[str, list[list[int]]] = {"input_ids": [], "position_ids": [], "labels": []}
        for row in rows:
            missing = longest - len(row["input_ids"])
            batch["input_ids"].append(row["input_ids"] + [self.pad] * missing)
            batch["position_ids"].append(row["position_ids"] + list(range(missing)))
            batch["labels"].append(row["labels"] + [IGNORED] * missing)
        return {key: torch.tensor(values) for key, values in batch.items()}
