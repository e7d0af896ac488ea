"""What a model expects of raw text: needs no labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lingualift.evaluation.likelihood import Progress, left_pad

_LOGITS = 2**28  # numbers in the logits of one batch: 1 GiB in float32


def mean_nats(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    window: int,
    progress: Progress = lambda done, total: None,
) -> float:
    """Mean negative log-likelihood of a token, in nats; NaN where the model gives no number.

    Every token of every text is predicted once, from what stands before it in its window; a window begins with the
    beginning-of-text id, or the end-of-text id where there is none, as in lm-evaluation-harness. Without either, the
    first token of a window is not predicted.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        texts: At least one of at least one token.
        window: Tokens per window.
        progress: Called with windows done and windows in all.
    """
    import torch

    starts = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    begin = next(([start] for start in starts if start is not None), [])
    room = window - len(begin)
    windows = []
    for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]:
        windows += [begin + ids[place : place + room] for place in range(0, len(ids), room)]
    windows.sort(key=len)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    total, count, done = 0.0, 0, 0
    while done < len(windows):
        longest = len(windows[min(done + 63, len(windows) - 1)])
        batch = windows[done : done + max(1, min(64, _LOGITS // (longest * vocabulary)))]
        inputs = left_pad(tokenizer, batch, model.device)
        with torch.inference_mode():
            logits = model(**inputs, use_cache=False).logits[:, :-1].float()
        real = inputs["attention_mask"][:, :-1].bool()
        targets = inputs["input_ids"][:, 1:]
        total += torch.nn.functional.cross_entropy(logits[real], targets[real], reduction="sum").item()
        count += int(real.sum())
        done += len(batch)
        progress(done, len(windows))
    return total / count if count else math.nan
