"""What a model expects of raw text: needs no labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lingualift.backbone.loading import virtual_tokens
from lingualift.backbone.reference import BackboneRef
from lingualift.config import Training
from lingualift.encoding.text import IGNORED
from lingualift.evaluation.likelihood import Progress, label_logprobs, left_pad
from lingualift.tasks import TASKS
from lingualift.tasks.language_modelling import REFERENCE_TASKS
from lingualift.training.data import training_data

_ROWS = 8  # windows at once
_LOGITS = 2**26  # numbers in the logits of one batch: 256 MiB in float32


def mean_nats(
    ref: BackboneRef,
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    window: int,
    language: str,
    progress: Progress = lambda done, total: None,
) -> float:
    """Mean negative log-likelihood of a token, in nats; NaN where the model gives no number.

    Of a decoder, every token is predicted. Of other families those are that its own objective asks for, by one draw of
    masks or spans that is always the same: it tells languages and adapters apart, not families.

    Args:
        ref: The backbone.
        model: It, with or without an adapter.
        tokenizer: Its tokenizer.
        texts: At least one of at least one token.
        window: Tokens per window.
        language: Code of the texts' language.
        progress: Called with windows done and windows in all.
    """
    if ref.family == "decoder":
        return _causal(model, tokenizer, texts, window, progress)
    import torch

    task = TASKS[REFERENCE_TASKS[ref.objective]]
    settings = Training(steps=1, max_length=window)
    data = training_data(
        ref, model, tokenizer, task, texts, settings, language=language, segment_tokens=window, seed=0
    )
    assert data.loss is not None
    total, count = 0.0, 0
    for start in range(0, len(data.rows), _ROWS):
        rows = [data.rows[index] for index in range(start, min(start + _ROWS, len(data.rows)))]
        batch = {name: value.to(model.device) for name, value in data.collate(rows).items()}
        count += int((batch["labels"] != IGNORED).sum())
        with torch.inference_mode():
            total += float(data.loss(model, batch, 1))
        progress(start + len(rows), len(data.rows))
    return total / count


def _causal(model: Any, tokenizer: Any, texts: Sequence[str], window: int, progress: Progress) -> float:
    """Of a decoder.

    Every token of every text is predicted once, from what stands before it in its window; a window begins with the
    beginning-of-text id, or the end-of-text id where there is none, as in lm-evaluation-harness. Without either, the
    first token of a window is not predicted.
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
    total, count, done, virtual = 0.0, 0, 0, virtual_tokens(model)
    while done < len(windows):
        longest = len(windows[min(done + 63, len(windows) - 1)])
        most = 1 if virtual else max(1, min(64, _LOGITS // (longest * vocabulary)))
        batch = windows[done : done + most]
        inputs = left_pad(tokenizer, batch, model.device)
        if virtual:
            del inputs["position_ids"]
        with torch.inference_mode():
            logits = model(**inputs, use_cache=False).logits[:, -inputs["input_ids"].shape[1] : -1]
            real = inputs["attention_mask"][:, :-1].bool()
            total -= label_logprobs(logits, inputs["input_ids"][:, 1:])[real].sum().item()
        count += int(real.sum())
        done += len(batch)
        progress(done, len(windows))
    return total / count if count else math.nan
