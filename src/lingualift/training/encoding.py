"""Text to token ids: prompt and answer as one sequence, documents packed into segments."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lingualift.errors import UserError

IGNORED = -100  # the label that carries no loss


@dataclass(frozen=True)
class Pair:
    """A prompt and what follows it, as token ids.

    Attributes:
        prompt: Ids of the prompt, the beginning-of-text id first where the tokenizer has one.
        answer: Ids of the answer.
        truncated: Prompt tokens that were cut off at the left to fit.
    """

    prompt: list[int]
    answer: list[int]
    truncated: int = 0


def encode_prompt(tokenizer: Any, prompt: str) -> list[int]:
    """Ids of a prompt, with the beginning-of-text id where the tokenizer has one."""
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return start + list(tokenizer(prompt, add_special_tokens=False)["input_ids"])


def encode_pair(tokenizer: Any, prompt: str, answer: str, max_length: int) -> Pair:
    """Encode `prompt`, a space and `answer` together, and split where the prompt's own ids end.

    Encoding the two apart would tokenize the answer as if it began a text; encoding them together is what
    lm-evaluation-harness does (https://github.com/EleutherAI/lm-evaluation-harness, `_encode_pair`).

    Raises:
        UserError: the answer alone does not fit.
    """
    head = encode_prompt(tokenizer, prompt)
    tail = encode_prompt(tokenizer, f"{prompt} {answer}")[len(head) :]
    return fit(tokenizer, head, tail, max_length)


def fit(tokenizer: Any, prompt: list[int], answer: list[int], max_length: int) -> Pair:
    """Cut the prompt's beginning (never the beginning-of-text id) until both fit into `max_length` tokens.

    Raises:
        UserError: the answer leaves no room for the prompt.
    """
    excess = len(prompt) + len(answer) - max_length
    if excess <= 0:
        return Pair(prompt, answer)
    keep = 0 if tokenizer.bos_token_id is None else 1
    if len(prompt) - keep <= excess:
        raise UserError(
            "max_length",
            f"{max_length} tokens hold no prompt beside an answer of {len(answer)} tokens",
            mend="raise `max_length` or shorten the answers",
        )
    return Pair(prompt[:keep] + prompt[keep + excess :], answer, excess)


def training_row(tokenizer: Any, pair: Pair) -> dict[str, list[int]]:
    """Ids and labels of one example: only the answer and the end-of-text id after it carry loss."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    answer = pair.answer + end
    return {
        "input_ids": pair.prompt + answer,
        "attention_mask": [1] * (len(pair.prompt) + len(answer)),
        "labels": [IGNORED] * len(pair.prompt) + answer,
    }


def pack(documents: Iterable[Sequence[int]], segment_tokens: int) -> list[dict[str, list[int]]]:
    """Lay documents end to end and cut the tape into segments.

    Positions restart at every document, by which transformers keeps attention within a document
    (`transformers.masking_utils.find_packed_sequence_indices`); a document's first token is never predicted, since
    what stands before it is another document.

    Returns:
        Segments with `input_ids`, `position_ids` and `labels`; all of `segment_tokens` tokens but the last.
    """
    ids: list[int] = []
    positions: list[int] = []
    for document in documents:
        for start in range(
            0, len(document), segment_tokens
        ):  # the cut is a fresh start for a long document too
            part = document[start : start + segment_tokens]
            ids.extend(part)
            positions.extend(range(len(part)))
    segments = []
    for start in range(0, len(ids), segment_tokens):
        cut = slice(start, start + segment_tokens)
        first, places = positions[start], positions[cut]
        if first:  # a document that the cut runs through begins anew
            rest = next((i for i, place in enumerate(places) if place == 0), len(places))
            places = [*range(rest), *places[rest:]]
        labels = [IGNORED if place == 0 else token for token, place in zip(ids[cut], places, strict=True)]
        segments.append({"input_ids": ids[cut], "position_ids": places, "labels": labels})
    return segments


def encode_texts(tokenizer: Any, texts: Sequence[str], segment_tokens: int) -> list[dict[str, list[int]]]:
    """Texts as packed segments, each between the beginning-of-text and the end-of-text id."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return pack((encode_prompt(tokenizer, text) + end for text in texts), segment_tokens)
