"""What the plain backbone makes of a language's text and of a task's rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lingualift.backbone.architectures import Family
from lingualift.backbone.reference import BackboneRef
from lingualift.checking.records import Vanilla
from lingualift.config import Scoring
from lingualift.encoding.text import encode_prompt
from lingualift.evaluation.likelihood import Progress
from lingualift.evaluation.runner import evaluate
from lingualift.tasks import Example, Task


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


def lengths(
    family: Family,
    tokenizer: Any,
    task: Task,
    examples: Sequence[Example],
    split: str,
    scoring: Scoring = Scoring(),
) -> list[int]:
    """Tokens of what a model reads at once, of each example.

    Of a decoder that is the prompt with what follows it: in training the answer and the end, else the longest answer
    asked. An encoder-decoder reads the prompt, an encoder the longest of its texts (a passage is read in windows).
    """
    if family == "encoder":
        return [_longest(tokenizer, task, row) for row in examples]
    if family == "encoder-decoder":
        return [len(tokenizer(row.prompt)["input_ids"]) for row in examples]
    if split == "train":
        return [len(encode_prompt(tokenizer, f"{row.prompt} {row.answer}")) + 1 for row in examples]
    if not examples[0].choices:
        longest = scoring.new_tokens(task.max_new_tokens)
        return [len(encode_prompt(tokenizer, row.prompt)) + longest for row in examples]
    return [
        max(len(encode_prompt(tokenizer, f"{row.prompt} {words}")) for words in row.choices.values())
        for row in examples
    ]


def _longest(tokenizer: Any, task: Task, row: Example) -> int:
    parts = row.parts or (row.prompt,)
    if task.encoder_head == "span":
        return len(tokenizer(parts[0])["input_ids"])
    pairs: list[tuple[str, ...]] = [(" ".join(parts), text) for text in row.options.values()]
    pairs = pairs or [parts]
    return max(len(tokenizer(*pair)["input_ids"]) for pair in pairs)


def label_counts(examples: Sequence[Example]) -> Mapping[str, int]:
    """How often each label is the gold one; empty where answers are generated or choices differ between rows."""
    if len({tuple(row.choices) for row in examples}) > 1:
        return {}
    counts = Counter(row.gold[0] for row in examples)
    return {label: counts[label] for label in examples[0].choices}
