"""Rows of two texts: the source side beside encoded targets, and their batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lingualift.encoding.parallel import PREFIX, pad_sides, read_texts
from lingualift.encoding.text import set_language
from lingualift.errors import UserError
from lingualift.fusion.paired import PairedModel


def source_ids(
    model: PairedModel,
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
        sides = [
            {key: ids for key, ids in text.items() if key.startswith(PREFIX) and isinstance(ids, list)}
            for text in texts
        ]
        return {**batch, **pad_sides(sides, self.pad)}


def _target(row: dict[str, Any]) -> dict[str, Any]:
    """A row without its source."""
    own = {key: value for key, value in row.items() if not key.startswith(PREFIX)}
    return {**own, "inputs": [_target(text) for text in row["inputs"]]} if "inputs" in row else own
