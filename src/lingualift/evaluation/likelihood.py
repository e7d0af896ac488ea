"""Ranking answers by their likelihood, each prompt read once, in batches that fit into memory."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from lingualift.backbone.loading import check_room, keeps_logits, virtual_tokens
from lingualift.config import Scoring
from lingualift.encoding.parallel import SourceInputs, pad_sources, source_pad, sources_for
from lingualift.encoding.text import encode_pairs
from lingualift.errors import UserError
from lingualift.fusion.layer import RECORD
from lingualift.processes import clear_memory, out_of_memory
from lingualift.tasks import Example

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_LOG = logging.getLogger("lingualift.evaluation")
_FULL = 1024  # tokens that keep a device busy: with so many, a batch may end before rows that would pad it
_PADDED = 1 + 1 / 16  # how many times its own tokens such a batch may have with its padding
_LOGITS = 2**24
"""Logits that are worked on at once, in float32: 64 MiB."""

Progress = Callable[[int, int], None]
"""Told how many are done, of how many."""
Item = TypeVar("Item")
Result = TypeVar("Result")
Answered = TypeVar("Answered")
Tell = Callable[[int, Answered], None]
"""Told the place of an example, and its answer, as soon as that is found; answers come in any order."""


@dataclass
class _Prompt:
    """A prompt and all continuations that are to be scored after it."""

    ids: tuple[int, ...]
    source: SourceInputs  # of its source, for a model that reads one
    answers: list[tuple[int, str, list[int]]] = field(default_factory=list)  # example, label, answer ids


def score_choices(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    scoring: Scoring,
    progress: Progress = lambda done, total: None,
    tell: Tell[dict[str, float]] = lambda place, scores: None,
) -> tuple[list[dict[str, float]], int]:
    """Log-likelihood of every choice of every example, normalised as `scoring` says.

    Args:
        model: A causal language model, with or without an adapter.
        tokenizer: Its tokenizer.
        examples: Examples with choices, and with their source for an adapter that reads it.
        scoring: Normalisation, prompts per forward pass, longest sequence.
        progress: Called with prompts done and prompts in all, equal ones counted once.
        tell: Called with each example's place and scores.

    Returns:
        For each example label -> score (natural logarithm), and how many prompts had to be cut.

    Raises:
        UserError: the model gives no number.
    """
    scores: list[dict[str, float]] = [{} for _ in examples]
    sources = sources_for(model, tokenizer, examples, scoring.max_length)
    prompts, truncated = _prompts(tokenizer, examples, sources, scoring.max_length)
    longest = max(len(prompt.ids) + len(ids) for prompt in prompts for _, _, ids in prompt.answers)
    check_room(model, longest - 1)  # the last token is predicted, not read
    prompts.sort(key=lambda prompt: (len(prompt.ids), prompt.ids, sorted(prompt.source.items())))
    done = 0

    def score(few: Sequence[_Prompt]) -> list[float]:
        return _score(model, tokenizer, few)

    for batch, totals in in_batches(prompts, scoring.batch_size, score, lambda prompt: len(prompt.ids)):
        answers = [answer for prompt in batch for answer in prompt.answers]
        for (index, label, ids), total in zip(answers, totals, strict=True):
            check_number(examples[index], total)
            scores[index][label] = total / _length(ids, examples[index].choices[label], scoring)
            if len(scores[index]) == len(examples[index].choices):
                scores[index] = {label: scores[index][label] for label in examples[index].choices}
                tell(index, scores[index])
        done += len(batch)
        progress(done, len(prompts))
    return scores, truncated


def check_number(example: Example, value: float, what: str = "likelihood") -> None:
    """Check what a model gave for an example.

    Raises:
        UserError: it is no number.
    """
    if math.isnan(value):
        raise UserError(
            f"example {example.id!r}",
            f"got a {what} that is not a number",
            mend="load the backbone in float32 or bfloat16 (`backbone.dtype`), or check the adapter",
        )


def _score(model: Any, tokenizer: Any, prompts: Sequence[_Prompt]) -> list[float]:
    """Log-likelihoods of the answers of some prompts, prompt by prompt."""
    import torch

    answers = [(row, ids) for row, prompt in enumerate(prompts) for _, _, ids in prompt.answers]
    with torch.inference_mode():
        ids, sources = [prompt.ids for prompt in prompts], [prompt.source for prompt in prompts]
        return _log_likelihoods(model, tokenizer, ids, answers, sources)


def _prompts(
    tokenizer: Any, examples: Sequence[Example], sources: Sequence[SourceInputs], max_length: int
) -> tuple[list[_Prompt], int]:
    """The different prompts with what is to be scored after each, and how many examples were cut."""
    prompts: dict[tuple[tuple[int, ...], ...], _Prompt] = {}
    truncated = 0
    asked = [(example.prompt, words) for example in examples for words in example.choices.values()]
    pairs = iter(encode_pairs(tokenizer, asked, max_length))
    for index, (example, source) in enumerate(zip(examples, sources, strict=True)):
        beside = tuple(map(tuple, source.values()))
        cut = 0
        for label, pair in zip(example.choices, pairs, strict=False):
            cut = max(cut, pair.truncated)
            ids = tuple(pair.prompt)
            prompts.setdefault((ids, *beside), _Prompt(ids, source)).answers.append(
                (index, label, pair.answer)
            )
        truncated += cut > 0
    return list(prompts.values()), truncated


def _length(answer: list[int], words: str, scoring: Scoring) -> int:
    return {"none": 1, "tokens": len(answer), "characters": len(words)}[scoring.length_normalization]


def _log_likelihoods(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[tuple[int, list[int]]],
    sources: Sequence[SourceInputs] = (),
) -> list[float]:
    """Summed log-probability of each answer's ids after its prompt.

    The prompts are read once; answers of more than one token go on from the cached keys and values of their prompt.

    Args:
        model: The model.
        tokenizer: Gives the padding id.
        prompts: Ids of different prompts.
        answers: (index of the prompt, ids), each of at least one id.
        sources: Of each prompt's source, for a model that reads it.
    """
    import torch

    if virtual_tokens(model):
        return [_alone(model, prompts[row], ids) for row, ids in answers]
    inputs = left_pad(tokenizer, prompts, model.device)
    longest = max(len(ids) for _, ids in answers)
    keep = {"logits_to_keep": 1} if keeps_logits(model) else {}
    beside = pad_sources(sources, source_pad(model, tokenizer), model.device)
    if beside:
        beside["answer_tokens"] = longest - 1  # those that are read; the last one is only predicted
    read = model(**inputs, use_cache=longest > 1, **keep, **beside)
    rows = torch.tensor([row for row, _ in answers], device=model.device)
    targets = torch.tensor([ids + [0] * (longest - len(ids)) for _, ids in answers], device=model.device)
    real = torch.tensor([[i < len(ids) for i in range(longest)] for _, ids in answers], device=model.device)
    logprobs = label_logprobs(read.logits[:, -1:], targets[:, :1], rows)
    if longest > 1:
        cache = read.past_key_values
        cache.batch_select_indices(rows)
        mask = torch.cat([inputs["attention_mask"][rows], real[:, :-1].long()], dim=1)
        positions = inputs["position_ids"][rows, -1:] + torch.arange(1, longest, device=model.device)
        going_on = model(
            input_ids=targets[:, :-1], attention_mask=mask, position_ids=positions, past_key_values=cache
        )
        logprobs = torch.cat([logprobs, label_logprobs(going_on.logits, targets[:, 1:])], dim=1)
    totals: list[float] = torch.where(real, logprobs, 0.0).sum(dim=1).tolist()
    return totals


def _alone(model: Any, prompt: Sequence[int], answer: list[int]) -> float:
    """Log-likelihood of one answer, read whole with its prompt."""
    import torch

    ids = torch.tensor([[*prompt, *answer]], device=model.device)
    read = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    labels = torch.tensor([answer], device=model.device)
    return float(label_logprobs(read.logits[:, -len(answer) - 1 : -1], labels).sum())


def label_logprobs(logits: Tensor, labels: Tensor, rows: Tensor | None = None) -> Tensor:
    """Log-probabilities, in float32, of labels.

    A few rows at once: all of a large vocabulary's in float32 would take a multiple of what the logits take.

    Args:
        logits: (rows, tokens, vocabulary).
        labels: Ids, (answers, tokens).
        rows: Which row each answer is for, (answers,); None where each row has one.
    """
    import torch

    rows = torch.arange(len(logits), device=logits.device) if rows is None else rows
    size = max(1, _LOGITS // max(1, logits.shape[1] * logits.shape[2]))
    return torch.cat(
        [
            torch.log_softmax(logits[few].float(), dim=-1).gather(2, theirs[:, :, None])[:, :, 0]
            for few, theirs in zip(rows.split(size), labels.split(size), strict=True)  # type: ignore[no-untyped-call]
        ]
    )


def left_pad(tokenizer: Any, rows: Sequence[Sequence[int]], device: torch.device) -> dict[str, Tensor]:
    """Ids, mask and positions, each of shape (rows, longest row), padded on the left; positions start at the text."""
    import torch

    longest = max(map(len, rows))
    ids = torch.tensor(
        [[tokenizer.pad_token_id] * (longest - len(row)) + list(row) for row in rows], device=device
    )
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def in_batches(
    items: Sequence[Item],
    size: int,
    answer: Callable[[Sequence[Item]], Result],
    length: Callable[[Item], int] | None = None,
) -> Iterator[tuple[Sequence[Item], Result]]:
    """Answer items in batches, from there on half as many at once where memory runs out.

    Args:
        items: In the order in which they are answered.
        size: Items per batch, at most.
        answer: Called with each batch.
        length: Tokens of an item, where items are padded to the longest of their batch: a batch of many tokens ends
            before padding costs more than a further batch.

    Yields:
        Each batch and what `answer` made of it.

    Raises:
        UserError: a single item does not fit.
    """
    start = 0
    while start < len(items):
        batch = items[start : start + size]
        if length is not None:
            batch = batch[: _unpadded([length(item) for item in batch])]
        record = RECORD.get()  # of fused layers, where they are recorded
        try:
            result = answer(batch)
        except Exception as error:
            if record:
                record.pending.clear()
            if not out_of_memory(error):
                raise
        else:
            if record:
                record.settle()
            yield batch, result
            start += len(batch)
            continue
        if len(batch) == 1:  # out of the handler, whose traceback holds on to tensors
            mend = "lower `max_length`, or take a smaller backbone"
            raise UserError("scoring", "ran out of memory with a single row", mend=mend)
        size = len(batch) // 2
        _LOG.warning("out of memory with %d rows at once: goes on with %d", len(batch), size)
        clear_memory()


def _unpadded(lengths: Sequence[int]) -> int:
    """How many of the items to take at once."""
    longest = tokens = 0
    for count, length in enumerate(lengths):
        longest, tokens = max(longest, length), tokens + length
        padded = longest * (count + 1)
        if count and padded > max(_FULL, _PADDED * tokens):
            return count
    return len(lengths)
