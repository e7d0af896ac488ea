"""Ranking answers by their likelihood: one number per choice, batched by length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lingualift.backbone import keeps_logits
from lingualift.config import Scoring
from lingualift.errors import UserError
from lingualift.tasks import Example
from lingualift.training.encoding import encode_pair


@dataclass
class _Request:
    """One forward pass: all continuations whose inputs are the same ids share it."""

    ids: tuple[int, ...]
    answers: list[tuple[int, str, list[int]]] = field(default_factory=list)  # example, label, answer ids


def score_choices(
    model: Any, tokenizer: Any, examples: Sequence[Example], scoring: Scoring
) -> tuple[list[dict[str, float]], int]:
    """Log-likelihood of every choice of every example, normalised as `scoring` says.

    Args:
        model: A causal language model, with or without an adapter.
        tokenizer: Its tokenizer.
        examples: Examples with choices.
        scoring: Normalisation, sequences per forward pass, longest sequence.

    Returns:
        For each example label -> score (natural logarithm), and how many prompts had to be cut.

    Raises:
        UserError: the model gives no number.
    """
    import torch

    scores: list[dict[str, float]] = [{} for _ in examples]
    requests, truncated = _requests(tokenizer, examples, scoring.max_length)
    requests.sort(key=lambda request: (len(request.ids), request.ids))
    for start in range(0, len(requests), scoring.batch_size):
        batch = requests[start : start + scoring.batch_size]
        with torch.inference_mode():
            logprobs = _logprobs(model, tokenizer, batch)
        for row, request in enumerate(batch):
            for index, label, answer in request.answers:
                places = torch.arange(len(answer), device=logprobs.device) - len(answer)
                total = logprobs[row, places, torch.tensor(answer, device=logprobs.device)].sum().item()
                if math.isnan(total):
                    raise UserError(
                        f"example {examples[index].id!r}",
                        "got a likelihood that is not a number",
                        mend="load the backbone in float32 or bfloat16 (`backbone.dtype`), or check the adapter",
                    )
                scores[index][label] = total / _length(answer, examples[index].choices[label], scoring)
    return [
        {label: found[label] for label in example.choices}
        for example, found in zip(examples, scores, strict=True)
    ], truncated


def _requests(tokenizer: Any, examples: Sequence[Example], max_length: int) -> tuple[list[_Request], int]:
    requests: dict[tuple[int, ...], _Request] = {}
    truncated = 0
    for index, example in enumerate(examples):
        cut = 0
        for label, words in example.choices.items():
            pair = encode_pair(tokenizer, example.prompt, words, max_length)
            cut = max(cut, pair.truncated)
            ids = tuple(pair.prompt + pair.answer[:-1])  # nothing is predicted from the last token
            requests.setdefault(ids, _Request(ids)).answers.append((index, label, pair.answer))
        truncated += cut > 0
    return list(requests.values()), truncated


def _length(answer: list[int], words: str, scoring: Scoring) -> int:
    return {"none": 1, "tokens": len(answer), "characters": len(words)}[scoring.length_normalization]


def _logprobs(model: Any, tokenizer: Any, batch: Sequence[_Request]) -> Any:
    """Log-probabilities at the last positions, shape (batch, longest answer, vocabulary), float32."""
    import torch

    longest = max(len(answer) for request in batch for _, _, answer in request.answers)
    inputs = left_pad(tokenizer, [request.ids for request in batch], model.device)
    options = {"logits_to_keep": longest} if keeps_logits(model) else {}
    logits = model(**inputs, use_cache=False, **options).logits[:, -longest:]
    return torch.log_softmax(logits.float(), dim=-1)


def left_pad(tokenizer: Any, rows: Sequence[Sequence[int]], device: Any) -> dict[str, Any]:
    """Ids, mask and positions, each of shape (rows, longest row), padded on the left; positions start at the text."""
    import torch

    longest = max(map(len, rows))
    ids = torch.tensor(
        [[tokenizer.pad_token_id] * (longest - len(row)) + list(row) for row in rows], device=device
    )
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
