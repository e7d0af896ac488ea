"""What the plain backbone makes of a language's text and of a task's rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lingualift.backbone import BackboneRef
from lingualift.config import Scoring
from lingualift.evaluation.likelihood import Progress, left_pad
from lingualift.evaluation.runner import evaluate
from lingualift.look.records import Vanilla
from lingualift.tasks import Example, Task
from lingualift.training.encoding import encode_prompt

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


def vanilla_score(
    ref: BackboneRef,
    task: Task,
    split: str,
    examples: Sequence[Example],
    scoring: Scoring,
    progress: Progress = lambda done, total: None,
) -> Vanilla:
    """The plain backbone's score on examples of a split, by the task's first metric."""
    found = evaluate(ref, None, task, examples, scoring, progress)
    metric = task.metrics[0]
    values = found.scores[metric]
    return Vanilla(
        split,
        len(examples),
        metric,
        float(values["score"] or 0),
        values["stderr"],
        float(values["chance"] or 0),
        found.malformed,
    )


def lengths(tokenizer: Any, task: Task, examples: Sequence[Example], split: str) -> list[int]:
    """Tokens of each prompt with what follows it: in training the answer and the end, else the longest answer asked."""
    if split == "train":
        return [len(encode_prompt(tokenizer, f"{row.prompt} {row.answer}")) + 1 for row in examples]
    if not examples[0].choices:
        return [len(encode_prompt(tokenizer, row.prompt)) + task.max_new_tokens for row in examples]
    return [
        max(len(encode_prompt(tokenizer, f"{row.prompt} {words}")) for words in row.choices.values())
        for row in examples
    ]


def label_counts(examples: Sequence[Example]) -> Mapping[str, int]:
    """How often each label is the gold one; empty where answers are generated or choices differ between rows."""
    if len({tuple(row.choices) for row in examples}) > 1:
        return {}
    counts = Counter(row.gold[0] for row in examples)
    return {label: counts[label] for label in examples[0].choices}
