"""Rows of two texts: the source side beside encoded targets, and their batches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from lingualift.architectures import family_of, positions_of
from lingualift.errors import UserError
from lingualift.fusion.model import FlareModel
from lingualift.training.encoding import encode_prompt, set_language


def source_ids(
    model: FlareModel,
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
    prompts = model.source_encoder is None and family_of(reader.config) == "decoder"
    limit = min(size for size in (max_length, positions_of(reader.config), sys.maxsize) if size is not None)
    rows = []
    for number, text in enumerate(texts):
        if not text.strip():
            raise UserError(f"source text {number}", "is empty", "a translation", "translate it")
        row = encode_prompt(tokenizer, text) if prompts else list(tokenizer(text)["input_ids"])
        if len(row) > limit:
            raise UserError(
                f"source text {number}",
                f"has {len(row)} tokens",
                f"at most {limit}",
                "raise max_length (up to the positions that the model has) or shorten it: it is not cut",
            )
        rows.append(row)
    return rows


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
        """The targets' batch, with `source_rows` (b,), or `source_input_ids` and `source_attention_mask` (b, m)."""
        import torch

        own = ("source_input_ids", "source_rows")
        batch = self.targets([{key: row[key] for key in row if key not in own} for row in rows])
        if self.cached:
            return {**batch, "source_rows": torch.tensor([row["source_rows"] for row in rows])}
        ids = [row["source_input_ids"] for row in rows]
        longest = max(map(len, ids))
        batch["source_input_ids"] = torch.tensor([row + [self.pad] * (longest - len(row)) for row in ids])
        real = [[1] * len(row) + [0] * (longest - len(row)) for row in ids]
        batch["source_attention_mask"] = torch.tensor(real)
        return batch
