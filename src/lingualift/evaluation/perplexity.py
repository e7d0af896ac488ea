"""Perplexity on raw text: what a model expects of a language, needing no labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lingualift.training.collator import Collator
from lingualift.training.encoding import IGNORED, encode_texts


def perplexity(
    model: Any, tokenizer: Any, texts: Sequence[str], *, segment_tokens: int, batch_size: int
) -> tuple[float, int]:
    """Perplexity per token, exp of the mean negative log-likelihood, and how many tokens were predicted.

    Texts are packed as in training, so that every one is predicted from its own beginning only, its end-of-text
    token included. Comparable between models of one tokenizer only.

    Args:
        model: A causal language model, with or without an adapter.
        tokenizer: Its tokenizer.
        texts: At least one.
        segment_tokens: Tokens per packed segment.
        batch_size: Segments per forward pass.
    """
    import torch

    segments = encode_texts(tokenizer, texts, segment_tokens)
    collate = Collator(tokenizer.pad_token_id, trims_logits=False)
    total, count = 0.0, 0
    for start in range(0, len(segments), batch_size):
        batch = {
            key: value.to(model.device)
            for key, value in collate(segments[start : start + batch_size]).items()
        }
        labels = batch.pop("labels")[:, 1:]  # (segments, tokens - 1): each predicted from those before it
        with torch.inference_mode():
            logits = model(**batch, use_cache=False).logits[:, :-1].float()
        total += float(
            torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
            )
        )
        count += int((labels != IGNORED).sum())
    return (math.exp(min(total / count, 700.0)) if math.isfinite(total) else math.nan), count
