"""Answers of an encoder's head: classes, choices, spans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from lingualift.backbone.loading import check_room
from lingualift.config import Scoring
from lingualift.encoding.collator import Collate, Padding
from lingualift.encoding.heads import Window, encode_choices, encode_classes, encode_windows
from lingualift.encoding.parallel import is_fused, source_pad, source_texts, source_windows, translator_on
from lingualift.evaluation.likelihood import Progress, Tell, check_number, in_batches
from lingualift.tasks import Example, Task
from lingualift.tasks.base import labels_of

_BEST = 20
"""Most likely first and last tokens of which the best span is sought, as in https://arxiv.org/abs/1810.04805's code."""

Item = TypeVar("Item")


def classify(
    model: Any,
    tokenizer: Any,
    task: Task,
    examples: Sequence[Example],
    scoring: Scoring,
    progress: Progress = lambda done, total: None,
    tell: Tell[dict[str, float]] = lambda place, scores: None,
) -> tuple[list[dict[str, float]], int]:
    """Log-probability of every class, or choice, of every example.

    Args:
        model: An encoder with a head for classes or choices.
        tokenizer: Its tokenizer.
        task: Says the classes.
        examples: What to answer.
        scoring: Examples per batch, longest text.
        progress: Called with examples done and examples in all.
        tell: Called with each example's place and scores.

    Returns:
        For each example label -> score (natural logarithm), and how many texts had to be cut.

    Raises:
        UserError: the model gives no number.
    """
    texts = [
        encode_choices(tokenizer, example, scoring.max_length)
        if example.options
        else [encode_classes(tokenizer, example, scoring.max_length)]
        for example in examples
    ]
    inputs = [[text.inputs for text in few] for few in texts]
    if is_fused(model):
        sources = source_texts(tokenizer, examples, scoring.max_length, translator_on(model))
        inputs = [
            [{**text, **source} for text, source in zip(*both, strict=True)]
            for both in zip(inputs, sources, strict=True)
        ]
    collate = _collator(model, tokenizer)

    def answer(few: Sequence[int]) -> Any:
        batch = collate([{"inputs": inputs[index]} for index in few])
        logits = _run(model, batch).logits
        return logits.reshape(len(few), -1).float().log_softmax(dim=-1).tolist()

    def length(index: int) -> int:
        return max(len(text.inputs["input_ids"]) for text in texts[index])

    scores: list[dict[str, float]] = [{} for _ in examples]
    for index, found in _each(range(len(examples)), length, scoring.batch_size, answer, progress):
        for score in found:
            check_number(examples[index], score, "score")
        scores[index] = dict(zip(labels_of(task, examples[index]), found, strict=True))
        tell(index, scores[index])
    return scores, sum(any(text.truncated for text in few) for few in texts)


def find_spans(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    scoring: Scoring,
    longest: int,
    progress: Progress = lambda done, total: None,
    tell: Tell[str] = lambda place, text: None,
) -> list[str]:
    """The most likely span of every example's passage, over all windows of it.

    Args:
        model: An encoder with a head for spans.
        tokenizer: Its tokenizer.
        examples: What to answer.
        scoring: Windows per batch, longest window.
        longest: Tokens of a span, at most.
        progress: Called with windows done and windows in all.
        tell: Called with each example's place and answer.

    Returns:
        The answers, as they stand in the passages.

    Raises:
        UserError: the model gives no number.
    """
    windows: list[tuple[int, Window]] = []
    for place, example in enumerate(examples):
        found = encode_windows(tokenizer, example, scoring.max_length)
        if is_fused(model):
            sources = source_windows(tokenizer, example, scoring.max_length, found, translator_on(model))
            found = [
                replace(window, inputs={**window.inputs, **source})
                for window, source in zip(found, sources, strict=True)
            ]
        windows += [(place, window) for window in found]
    collate = _collator(model, tokenizer)

    def answer(few: Sequence[tuple[int, Window]]) -> Any:
        output = _run(model, collate([window.inputs for _, window in few]))
        starts, ends = output.start_logits.float().cpu(), output.end_logits.float().cpu()
        return [
            _best_span(window, start, end, longest)
            for (_, window), start, end in zip(few, starts, ends, strict=True)
        ]

    def length(item: tuple[int, Window]) -> int:
        return len(item[1].places)

    left = Counter(place for place, _ in windows)
    best: dict[int, tuple[float, int, str]] = {}
    for index, (score, (start, end)) in _each(windows, length, scoring.batch_size, answer, progress):
        place, _ = windows[index]
        check_number(examples[place], score, "score")
        span = score, -index, examples[place].parts[1][start:end].strip()  # the first of equal ones wins
        best[place] = max(best.get(place, span), span)
        left[place] -= 1
        if not left[place]:
            tell(place, best[place][2])
    return [best[place][2] for place in range(len(examples))]


def _collator(model: Any, tokenizer: Any) -> Collate:
    """Makes batches of texts, with their sources where the model reads them."""
    collate = Padding(tokenizer.pad_token_id)
    if not is_fused(model):
        return collate
    from lingualift.encoding.collator import PairCollator

    return PairCollator(collate, pad=source_pad(model, tokenizer))


def _best_span(window: Window, starts: Any, ends: Any, longest: int) -> tuple[float, tuple[int, int]]:
    """Summed logits of the best span of a window, and its characters; the first of equally good ones."""
    import torch

    inside = torch.tensor([index for index, place in enumerate(window.places) if place])
    count = min(_BEST, len(inside))
    firsts = inside[starts[inside].topk(count).indices]
    lasts = inside[ends[inside].topk(count).indices]
    pairs = [
        (float(starts[first] + ends[last]), (int(first), int(last)))
        for first in firsts
        for last in lasts
        if first <= last < first + longest
    ] or [(float(starts[first] + ends[first]), (int(first), int(first))) for first in firsts]
    score, (first, last) = max(pairs, key=lambda pair: pair[0])
    (start, _), (_, end) = window.places[first] or (0, 0), window.places[last] or (0, 0)
    return score, (start, end)


def _each(
    items: Sequence[Item],
    length: Callable[[Item], int],
    size: int,
    answer: Callable[[Sequence[Item]], Sequence[Any]],
    progress: Progress,
) -> Iterator[tuple[int, Any]]:
    """Place of each item and what `answer` says of it, asked in batches of like length, in that order."""
    order = sorted(range(len(items)), key=lambda index: length(items[index]))
    done = 0

    def ask(few: Sequence[int]) -> Sequence[Any]:
        return answer([items[index] for index in few])

    for batch, found in in_batches(order, size, ask, lambda index: length(items[index])):
        yield from zip(batch, found, strict=True)
        done += len(batch)
        progress(done, len(items))


def _run(model: Any, batch: dict[str, Any]) -> Any:
    import torch

    check_room(
        model, batch["input_ids"].shape[1]
    )  # peft hands a prefix past the model, to the encoder within
    with torch.inference_mode():
        return model(**{name: value.to(model.device) for name, value in batch.items()})
