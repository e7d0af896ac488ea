"""Greedy generation of answers, batched by length."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from lingualift.backbone.loading import check_room, ends_of, virtual_tokens
from lingualift.config import Scoring
from lingualift.encoding.parallel import pad_sources, source_pad, sources_for
from lingualift.encoding.text import encode_prompt, fit
from lingualift.evaluation.likelihood import Progress, Tell, in_batches, left_pad
from lingualift.tasks import Example


def generate_answers(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    scoring: Scoring,
    max_new_tokens: int,
    progress: Progress = lambda done, total: None,
    tell: Tell[str] = lambda place, text: None,
) -> tuple[list[str], int]:
    """The text that follows each prompt, the prompt itself not in it.

    Args:
        model: A causal language model, with or without an adapter.
        tokenizer: Its tokenizer.
        examples: What to answer.
        scoring: Prompts per batch, longest sequence.
        max_new_tokens: Longest answer, in tokens.
        progress: Called with prompts done and prompts in all.
        tell: Called with each example's place and text.

    Returns:
        One text per example, and how many prompts had to be cut.
    """
    import torch
    import transformers

    room = scoring.max_length
    pairs = [
        fit(tokenizer, encode_prompt(tokenizer, example.prompt), [0] * max_new_tokens, room)
        for example in examples
    ]
    check_room(model, max(len(pair.prompt) for pair in pairs) + max_new_tokens)
    sources = sources_for(model, tokenizer, examples, room)
    order = sorted(range(len(pairs)), key=lambda index: len(pairs[index].prompt))
    ends = ends_of(tokenizer)
    config = transformers.GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends or None,
    )
    texts = [""] * len(pairs)
    done = 0

    def answer(indices: Sequence[int]) -> list[str]:
        inputs = left_pad(tokenizer, [pairs[index].prompt for index in indices], model.device)
        del inputs["position_ids"]  # generate derives them from the mask
        inputs |= pad_sources(
            [sources[index] for index in indices], source_pad(model, tokenizer), model.device
        )
        with torch.inference_mode():
            output = model.generate(**inputs, generation_config=config)
        new = output[:, inputs["input_ids"].shape[1] :]
        answers = (takewhile(lambda token: token not in ends, ids) for ids in new.tolist())
        return [tokenizer.decode(list(ids), skip_special_tokens=True) for ids in answers]

    for batch, found in in_batches(order, 1 if virtual_tokens(model) else scoring.batch_size, answer):
        for index, text in zip(batch, found, strict=True):
            texts[index] = text
            tell(index, text)
        done += len(batch)
        progress(done, len(order))
    return texts, sum(pair.truncated > 0 for pair in pairs)
