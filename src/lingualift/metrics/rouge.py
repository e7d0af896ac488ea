"""ROUGE-L by rouge-score, with words in every script."""

from __future__ import annotations

import functools
from typing import Any

import regex

from lingualift.metrics.words import words

_BETWEEN = regex.compile(r"[^\p{L}\p{M}\p{N}]+")


def rouge_words(text: str, language: str) -> list[str]:
    """Lower-case words of letters, marks and digits; on ASCII text those of rouge-score's own tokenizer.

    rouge-score's own keeps nothing but a-z and 0-9, so text in most languages is empty to it.

    Raises:
        UserError: unknown language.
    """
    return words(_BETWEEN.sub(" ", text.lower()), language)


def rouge_l(prediction: str, gold: tuple[str, ...], language: str) -> float:
    """F of the longest common subsequence with the closest accepted text, 0 to 1 (Lin 2004, `rougeL` of rouge-score).

    Raises:
        UserError: unknown language.
    """
    return float(_scorer(language).score_multi(gold, prediction)["rougeL"].fmeasure) if gold else 0.0


@functools.cache
def _scorer(language: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # over a second: it loads nltk and scikit-learn
    from rouge_score.tokenizers import Tokenizer

    class Words(Tokenizer):  # type: ignore[misc]
        def tokenize(self, text: str) -> list[str]:
            return rouge_words(text, language)

    return RougeScorer(["rougeL"], tokenizer=Words())
