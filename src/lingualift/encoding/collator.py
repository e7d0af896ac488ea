"""From encoded rows to the tensors of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lingualift.encoding.parallel import PREFIX, pad_sources, read_texts
from lingualift.encoding.text import IGNORED, set_language
from lingualift.errors import UserError

Collate = Callable[[Sequence[dict[str, Any]]], dict[str, Any]]
"""Encoded rows -> the tensors of a batch."""


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


def source_ids(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    max_length: int | None = None,
    language: str | None = None,
) -> list[list[int]]:
    """Token ids of the source side's texts, which must not contain the answers.

    On decoders they are prompts, which nothing ends. Encoders get the special tokens that their tokenizer adds; one
    that tags its texts with their language (NLLB, M2M100) is told it, for FLARE-MT the target's.

    Args:
        model: The model that is to read them.
        tokenizer: That of the model that reads the source: of the backbone, or of the source encoder.
        texts: Prompts in the source language; for FLARE-MT, texts in the target language.
        max_length: Tokens that a source may have; None for as many as the model has positions for.
        language: Language of the texts; needed by tokenizers that tag, not used by others.

    Raises:
        UserError: an empty text, one over the limit, or a language that is missing or has no tag.
    """
    if hasattr(tokenizer, "src_lang"):
        if language is None:
            raise UserError("language", "is not given", "the language of the texts, to tag them", "pass it")
        set_language(tokenizer, language)
    reader = model.get_base_model() if model.source_encoder is None else model.source_encoder
    named = [(f"source text {number}", text) for number, text in enumerate(texts)]
    return read_texts(reader.config, tokenizer, named, max_length)


def pair(targets: Sequence[dict[str, Any]], sources: Sequence[list[int]]) -> list[dict[str, Any]]:
    """Encoded target rows with the sources' ids beside them, as `source_input_ids`, and their numbers as `source_rows`.

    Raises:
        UserError: unequal numbers of rows.
    """
    if len(targets) != len(sources):
        raise UserError(
            "sources", f"{len(sources)} rows", f"{len(targets)}, one for each target row", "pair the rows"
        )
    return [
        {**target, "source_input_ids": source, "source_rows": number}
        for number, (target, source) in enumerate(zip(targets, sources, strict=True))
    ]


def numbered(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[list[int]]]:
    """Rows with the numbers of their sources, as `source_rows` of each text, and the sources, equal ones once.

    Args:
        rows: Encoded rows with `source_input_ids`, of each text where a row has several (`inputs`).
    """
    found: dict[tuple[int, ...], int] = {}

    def number(text: dict[str, Any]) -> dict[str, Any]:
        ids = tuple(text["source_input_ids"])
        return {**text, "source_rows": found.setdefault(ids, len(found))}

    marked = [
        {**row, "inputs": [number(text) for text in row["inputs"]]} if "inputs" in row else number(row)
        for row in rows
    ]
    return marked, [list(ids) for ids in found]


class PairCollator:
    """Makes batches of rows that `pair` made: the targets' by another collator, the sources padded on the right.

    Args:
        targets: Collator of the target rows.
        pad: Id of the padding token of the model that reads the source.
        cached: Whether the model has a cache of these sources, so that a batch needs only their numbers.
    """

    def __init__(
        self, targets: Callable[[list[dict[str, Any]]], dict[str, Any]], *, pad: int, cached: bool = False
    ) -> None:
        self.targets = targets
        self.pad = pad
        self.cached = cached

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The targets' batch, with `source_rows` (b,), or `source_input_ids` and `source_attention_mask` (b, m).

        A row with several texts (`inputs`) has a source in each of them. Where the source is a row of its own
        (`source`), with an answer, it is collated as the targets are, and its tensors are called `source_...`.
        """
        import torch

        batch = self.targets([_target(row) for row in rows])
        if "source" in rows[0]:
            beside = self.targets([row["source"] for row in rows])
            return {**batch, **{PREFIX + key: value for key, value in beside.items()}}
        texts = [text for row in rows for text in row.get("inputs", [row])]
        if self.cached:
            return {**batch, "source_rows": torch.tensor([text["source_rows"] for text in texts])}
        sources = [
            {key: ids for key, ids in text.items() if key.startswith(PREFIX) and isinstance(ids, list)}
            for text in texts
        ]
        return {**batch, **pad_sources(sources, self.pad)}


def _target(row: dict[str, Any]) -> dict[str, Any]:
    """A row without its source."""
    own = {key: value for key, value in row.items() if not key.startswith(PREFIX)}
    return {**own, "inputs": [_target(text) for text in row["inputs"]]} if "inputs" in row else own
