"""From encoded rows to the tensors of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lingualift.encoding.text import IGNORED


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


class Padding:
    """Pads what encoders and encoder-decoders read, and what decoders write, on the right.

    Args:
        pad: Id of the padding token.
        decoder_start: Id that an encoder-decoder's decoder starts from; None for encoders.
    """

    def __init__(self, pad: int, *, decoder_start: int | None = None) -> None:
        self.pad = pad
        self.decoder_start = decoder_start

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """`input_ids` and `attention_mask` of shape (texts, longest text), and what else the rows hold.

        A row with several texts (`inputs`) gives as many, one after another. With `decoder_start`, `decoder_input_ids`
        are the labels, moved on by one.
        """
        import torch

        texts = [text for row in rows for text in row.get("inputs", [row])]
        batch = {
            key: self._padded([text[key] for text in texts], key)
            for key in texts[0]
            if isinstance(texts[0][key], list)
        }
        for key in ("labels", "start_positions", "end_positions"):
            if isinstance(rows[0].get(key), int):
                batch[key] = torch.tensor([row[key] for row in rows])
        if self.decoder_start is not None:
            first = torch.full((len(rows), 1), self.decoder_start)
            before = torch.cat([first, batch["labels"][:, :-1]], dim=1)
            batch["decoder_input_ids"] = before.masked_fill(before == IGNORED, self.pad)
        return batch

    def _padded(self, rows: Sequence[list[int]], key: str) -> Any:
        import torch

        filler = {"input_ids": self.pad, "labels": IGNORED}.get(key, 0)
        longest = max(map(len, rows))
        return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])
