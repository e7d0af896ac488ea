"""How a head for words is trained, for encoders whose checkpoint has none (`lingualift.backbone.words`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lingualift.backbone.words import own_weights
from lingualift.config import Training
from lingualift.training.objectives import Noised, masked

LEARNING_RATE = 1e-3
"""Peak, of a head that begins from a draw; that of references is for adapters that begin from no change."""


def expect(model: Any, segments: Iterable[Sequence[int]]) -> None:
    """Set the bias of a head for words to how often each token occurs, so that what is left to learn is context.

    AdamW moves a weight by about the learning rate in a step, and the logarithms of frequencies lie some ten apart.

    Args:
        model: A masked language model whose head has one bias for each token; without one nothing is changed.
        segments: Token ids of the text that is learnt.
    """
    import torch

    size = model.get_input_embeddings().weight.shape[0]
    counts = torch.ones(size, dtype=torch.float64)  # one more of each: none is impossible
    for ids in segments:
        counts += torch.bincount(torch.tensor(ids), minlength=size)
    with torch.no_grad():
        for weight in own_weights(model).values():
            if weight.shape == (size,):
                logs = (counts / counts.sum()).log()
                weight.copy_(logs - logs.mean())


def settings_of(reference: Training, languages: int) -> Training:
    """How a head is trained, where references are trained by `reference`: it reads of each language as much as they.

    The backward pass ends in the head: a step of e5-small's takes about six tenths of a reference's.
    """
    steps = None if reference.steps is None else reference.steps * languages
    changed = {"learning_rate": LEARNING_RATE, "steps": steps, "gradient_checkpointing": False}
    return reference.model_copy(update=changed)


def words_rows(tokenizer: Any, texts: Mapping[str, Sequence[str]], tokens: int, seed: int) -> Noised:
    """Segments of the texts of several languages, none of which holds two; tokens are masked as by `masked`."""
    each = [masked(tokenizer, some, tokens, seed) for some in texts.values()]
    return Noised([ids for one in each for ids in one.segments], each[0].noise, seed)
