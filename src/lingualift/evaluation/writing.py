"""Encoder-decoders: ranking answers by their likelihood, and writing them. The prompt is read by the encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lingualift.backbone.loading import base_of
from lingualift.config import Scoring
from lingualift.encoding.collator import Padding
from lingualift.encoding.parallel import SourceInputs, pad_sources, source_pad, sources_for
from lingualift.encoding.text import IGNORED, decoder_ids, encoder_ids
from lingualift.evaluation.likelihood import Progress, Tell, check_number, in_batches, label_logprobs
from lingualift.tasks import Example


def rank_written(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    scoring: Scoring,
    progress: Progress = lambda done, total: None,
    tell: Tell[dict[str, float]] = lambda place, scores: None,
) -> tuple[list[dict[str, float]], int]:
    """Log-likelihood of every choice of every example, normalised as `scoring` says; each prompt is read once.

    Special tokens of an answer (its end, a language's tag) are read by the decoder and not scored, as in
    lm-evaluation-harness.

    Args:
        model: An encoder-decoder, with or without an adapter.
        tokenizer: Its tokenizer.
        examples: Examples with choices.
        scoring: Normalisation, prompts per batch, longest prompt.
        progress: Called with prompts done and prompts in all.
        tell: Called with each example's place and scores.

    Returns:
        For each example label -> score (natural logarithm), and how many prompts had to be cut.

    Raises:
        UserError: the model gives no number.
    """
    sources = sources_for(model, tokenizer, examples, scoring.max_length)
    prompts = [encoder_ids(tokenizer, example.prompt, scoring.max_length) for example in examples]
    order = sorted(range(len(examples)), key=lambda index: len(prompts[index][0]))
    scores: list[dict[str, float]] = [{} for _ in examples]
    done = 0

    def rank(few: Sequence[int]) -> list[float]:
        ids = [prompts[index][0] for index in few]
        answers = [
            (row, decoder_ids(tokenizer, words))
            for row, index in enumerate(few)
            for words in examples[index].choices.values()
        ]
        return _log_likelihoods(model, tokenizer, ids, answers, [sources[index] for index in few])

    for batch, totals in in_batches(order, scoring.batch_size, rank, lambda index: len(prompts[index][0])):
        found = iter(totals)
        for index in batch:
            for label, words in examples[index].choices.items():
                total = next(found)
                check_number(examples[index], total)
                scores[index][label] = total / _length(tokenizer, words, scoring)
            tell(index, scores[index])
        done += len(batch)
        progress(done, len(order))
    return scores, sum(cut for _, cut in prompts)


def _length(tokenizer: Any, words: str, scoring: Scoring) -> int:
    if scoring.length_normalization == "tokens":
        return max(1, len(_scored(tokenizer, decoder_ids(tokenizer, words))))
    return len(words) if scoring.length_normalization == "characters" else 1


def _scored(tokenizer: Any, ids: Sequence[int]) -> list[int]:
    """Places of an answer's ids that are no special tokens; a word that the tokenizer cannot spell is scored."""
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    return [place for place, token in enumerate(ids) if token not in special]


def _log_likelihoods(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[tuple[int, list[int]]],
    sources: Sequence[SourceInputs],
) -> list[float]:
    """Summed log-probability of each answer's ids, special ones left out.

    Args:
        model: The model.
        tokenizer: Gives padding and special ids.
        prompts: Ids of the prompts.
        answers: (index of the prompt, ids with special tokens).
        sources: Of each prompt's source, for a model that reads it.
    """
    import torch

    collate = Padding(tokenizer.pad_token_id, decoder_start=model.config.decoder_start_token_id)
    read = Padding(tokenizer.pad_token_id)([_input(prompt) for prompt in prompts])
    written = collate([{**_input(prompts[0][:1]), "labels": ids} for _, ids in answers])
    inputs = {name: value.to(model.device) for name, value in read.items()}
    labels = written["labels"].to(model.device)
    rows = torch.tensor([row for row, _ in answers], device=model.device)
    beside = pad_sources(sources, source_pad(model, tokenizer), model.device)
    with torch.inference_mode():
        encoded = _encode(model, inputs, beside)
        encoded.last_hidden_state = encoded.last_hidden_state[rows]
        logits = model(
            input_ids=inputs["input_ids"][rows],  # peft asks for them; the encoder's output is given
            attention_mask=inputs["attention_mask"][rows],
            encoder_outputs=encoded,
            decoder_input_ids=written["decoder_input_ids"].to(model.device),
            use_cache=False,
        ).logits
        real = torch.zeros_like(labels, dtype=torch.bool)
        for row, (_, ids) in enumerate(answers):
            real[row, _scored(tokenizer, ids)] = True
        picked = label_logprobs(logits, labels.masked_fill(labels == IGNORED, 0))
        totals: list[float] = torch.where(real, picked, 0.0).sum(dim=1).tolist()
    return totals


def _encode(model: Any, inputs: dict[str, Any], beside: dict[str, Any]) -> Any:
    """What the encoder makes of prompts, and of their sources where it reads them."""
    if beside:
        return model.encode(**inputs, **beside)
    return base_of(model).get_encoder()(**inputs, return_dict=True)


def write_answers(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    scoring: Scoring,
    max_new_tokens: int,
    progress: Progress = lambda done, total: None,
    tell: Tell[str] = lambda place, text: None,
) -> tuple[list[str], int]:
    """The text that the decoder writes for each prompt, greedily.

    Args:
        model: An encoder-decoder, with or without an adapter.
        tokenizer: Its tokenizer.
        examples: What to answer.
        scoring: Prompts per batch, longest prompt.
        max_new_tokens: Longest answer, in tokens.
        progress: Called with prompts done and prompts in all.
        tell: Called with each example's place and text.

    Returns:
        One text per example, and how many prompts had to be cut.
    """
    import torch
    import transformers

    sources = sources_for(model, tokenizer, examples, scoring.max_length)
    prompts = [encoder_ids(tokenizer, example.prompt, scoring.max_length) for example in examples]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index][0]))
    tag = decoder_ids(tokenizer, "a")[0]
    config = transformers.GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=model.config.decoder_start_token_id,
        forced_bos_token_id=tag if tag in tokenizer.all_special_ids else None,
    )
    collate = Padding(tokenizer.pad_token_id)
    texts = [""] * len(prompts)
    done = 0

    def write(few: Sequence[int]) -> list[str]:
        inputs = collate([_input(prompts[index][0]) for index in few])
        inputs |= pad_sources([sources[index] for index in few], source_pad(model, tokenizer))
        with torch.inference_mode():
            output = model.generate(
                **{name: value.to(model.device) for name, value in inputs.items()}, generation_config=config
            )
        return [tokenizer.decode(ids, skip_special_tokens=True) for ids in output]

    for batch, found in in_batches(order, scoring.batch_size, write):
        for index, text in zip(batch, found, strict=True):
            texts[index] = text
            tell(index, text)
        done += len(batch)
        progress(done, len(order))
    return texts, sum(cut for _, cut in prompts)


def _input(ids: Sequence[int]) -> dict[str, list[int]]:
    return {"input_ids": list(ids), "attention_mask": [1] * len(ids)}
