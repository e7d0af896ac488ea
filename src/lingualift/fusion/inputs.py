"""What a call of a FLARE model is given, beside the target's tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lingualift.errors import UserError
from lingualift.fusion.passes import Span
from lingualift.fusion.reading import SOURCE


def source_of(
    more: dict[str, Any], ids: Tensor | None, mask: Tensor | None, rows: Tensor | None
) -> dict[str, Any]:
    """What is given of the source; taken out of `more`.

    Raises:
        UserError: both tokens and rows of the cache.
    """
    theirs = {key: more.pop(key) for key in list(more) if key.startswith(SOURCE)}
    if ids is not None and rows is not None:
        raise UserError("source_rows", "source_input_ids are given too", "one of them", "leave one out")
    if rows is not None:
        return {"source_rows": rows}
    return theirs if ids is None else {"source_input_ids": ids, "source_attention_mask": mask, **theirs}


def first_label(labels: Tensor, mask: Tensor | None, shape: Any) -> Tensor:
    """Where the answers of rows of so many tokens start, (b,); behind a row that has no label.

    Labels (b, k) may be those of the last k tokens alone, as with `logits_to_keep`.

    Raises:
        UserError: a row whose first token has a label, so that it has no prompt.
    """
    given = labels != -100
    first = torch.where(given.any(1), given.int().argmax(1), labels.shape[1]) + shape[1] - labels.shape[1]
    start = torch.zeros_like(first) if mask is None else mask.bool().int().argmax(1).to(first.device)
    if bool((first <= start).any()):
        raise UserError(
            "labels",
            "a row is an answer from its first token on, which leaves no prompt to meet the source",
            "-100 where the prompt is",
            "mask the prompt's labels, or pass answer_start",
        )
    return first


def answer_tokens(target: Span, more: Mapping[str, Any]) -> int:
    """How many tokens the source side is to generate: as many as the target's answers have, or may have."""
    if "max_new_tokens" in more:
        return int(more["max_new_tokens"])
    return int((target.end - target.prompt_end).max())


def new_tokens(prompt: int, more: Mapping[str, Any], settings: Any) -> int:
    """How many tokens `generate` may answer with behind a prompt of so many, by its arguments or the model's settings.

    Raises:
        UserError: no limit is set, so that the source's answer would have none.
    """
    for given in (more, vars(more.get("generation_config") or settings)):
        if given.get("max_new_tokens") is not None:
            return int(given["max_new_tokens"])
        if given.get("max_length") is not None:
            return int(given["max_length"]) - prompt
    raise UserError(
        "max_new_tokens",
        "is not set, and answer_source='generate' lets the source answer too",
        "a number of tokens",
        "pass max_new_tokens=",
    )
