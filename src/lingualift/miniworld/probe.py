"""Is a backbone good enough to be used? Scores on fresh items that are in no other split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from lingualift.miniworld.data import LABEL_WORDS, QA_PROMPT, SENTIMENT_PROMPT, Row, qa_rows, sentiment_rows
from lingualift.miniworld.languages import GRAMMARS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

THRESHOLD: Final = 0.95
"""Least score of the dominant language, in each task."""
PROBE_ITEMS: Final = 300


def probe(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int = PROBE_ITEMS
) -> dict[str, dict[str, float]]:
    """Scores of a model on probe items, in [0, 1].

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        count: Items per language and task.

    Returns:
        Language to {"qa": exact match, "sentiment": accuracy by ranking the label words}.
    """
    return {
        language: {
            "qa": exact_match(model, tokenizer, qa_rows(language, "probe", count)),
            "sentiment": label_accuracy(model, tokenizer, sentiment_rows(language, "probe", count)),
        }
        for language in GRAMMARS
    }


def passes(scores: dict[str, dict[str, float]]) -> bool:
    """Whether the dominant language reaches the threshold in every task."""
    return min(scores[next(iter(GRAMMARS))].values()) >= THRESHOLD


def exact_match(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], batch: int = 100
) -> float:
    """Share of questions that greedy decoding answers exactly: every token of the answer, then the end."""
    import torch

    right = 0
    for start in range(0, len(rows), batch):
        chunk = rows[start : start + batch]
        prompts = [_ids(tokenizer, QA_PROMPT.format(**row)) for row in chunk]
        answers = [
            [*_ids(tokenizer, " " + row["answer"], bos=False), tokenizer.eos_token_id] for row in chunk
        ]
        logits = _logits(model, tokenizer, [p + a for p, a in zip(prompts, answers, strict=True)])
        for line, prompt, answer in zip(logits.argmax(-1), prompts, answers, strict=True):
            said = line[len(prompt) - 1 : len(prompt) - 1 + len(answer)]
            right += bool(torch.equal(said, torch.tensor(answer, device=said.device)))
    return right / len(rows)


def label_accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], batch: int = 100
) -> float:
    """Share of reviews whose label word is the likelier one; every label word is one token."""
    labels = list(LABEL_WORDS)
    words = [_ids(tokenizer, " " + word, bos=False)[0] for word in LABEL_WORDS.values()]
    right = 0
    for start in range(0, len(rows), batch):
        chunk = rows[start : start + batch]
        prompts = [_ids(tokenizer, SENTIMENT_PROMPT.format(**row)) for row in chunk]
        logits = _logits(model, tokenizer, prompts)
        for line, prompt, row in zip(logits, prompts, chunk, strict=True):
            right += labels[int(line[len(prompt) - 1, words].argmax())] == row["label"]
    return right / len(rows)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, *, bos: bool = True) -> list[int]:
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return [tokenizer.bos_token_id, *ids] if bos else ids


def _logits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sequences: list[list[int]]) -> Any:
    """Logits of shape (sequences, longest, vocabulary); padding on the right, which causal attention never sees."""
    import torch

    width = max(map(len, sequences))
    ids = [line + [tokenizer.pad_token_id] * (width - len(line)) for line in sequences]
    with torch.inference_mode():
        return model(input_ids=torch.tensor(ids, device=model.device)).logits
