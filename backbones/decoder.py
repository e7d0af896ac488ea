"""Pretrain the backbone of the mini-world from nothing: `python backbones/decoder.py --output DIR`."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from lingualift.errors import UserError
from lingualift.miniworld.data import LABEL_WORDS, QA_PROMPT, SENTIMENT_PROMPT, Row, qa_rows, sentiment_rows
from lingualift.miniworld.languages import GRAMMARS
from lingualift.miniworld.pretraining import documents, shares
from lingualift.miniworld.tokenizer import build_tokenizer
from lingualift.provenance import PROVENANCE_FILE, atomic_folder, library_versions, write_json
from lingualift.terminal import Terminal, say

Scores = dict[str, dict[str, float]]
THRESHOLD: Final = 0.95
"""Least score of the dominant language, in each task."""
PROBE_ITEMS: Final = 300


@dataclass(frozen=True)
class Recipe:
    """How the backbone is made.

    Attributes:
        steps: Optimizer steps of the first round; the learning rate falls to a tenth along a cosine.
        batch: Documents per step, of similar length.
        learning_rate: Peak of AdamW's learning rate. In an earlier study 3e-3 did not learn to copy.
        warmup: Steps to the peak.
        extra_steps: Steps of each further round when the probe fails, from half the peak.
        extra_rounds: How many further rounds there may be.
        hidden, intermediate, layers, heads: Shape of the model.
        initializer_range: About 1/sqrt(hidden). With the usual 0.02 a model this narrow does not learn to copy.
    """

    steps: int = 3600
    batch: int = 24
    learning_rate: float = 1.5e-3
    warmup: int = 100
    extra_steps: int = 800
    extra_rounds: int = 3
    hidden: int = 96
    intermediate: int = 192
    layers: int = 2
    heads: int = 4
    initializer_range: float = 0.1


def rebuild(
    output: Path,
    seed: int = 0,
    recipe: Recipe | None = None,
    advance: Callable[[int, int], None] | None = None,
) -> Scores:
    """Pretrain a backbone, probe it, and write it when it passes.

    Args:
        output: Folder that appears whole when the backbone passes the probe.
        seed: Seeds the weights and the text.
        recipe: How it is made.
        advance: Called after each step with the steps done and the steps planned.

    Returns:
        The probe's scores per language.

    Raises:
        UserError: `output` exists or cannot be written, or the backbone fails the probe to the end.
    """
    recipe = recipe or Recipe()
    with atomic_folder(Path(output)) as scratch, _one_thread():
        tokenizer = build_tokenizer()
        model = new_model(recipe, tokenizer, seed)
        batches = _batches(tokenizer, recipe.batch, seed)
        steps = total = recipe.steps
        peak, scores = recipe.learning_rate, {}
        for extra in range(recipe.extra_rounds + 1):
            _train(model, batches, steps, peak, recipe.warmup, _counter(advance, total - steps, total))
            scores = probe(model, tokenizer)
            if passes(scores):
                break
            if extra == recipe.extra_rounds:
                raise UserError(
                    output,
                    f"the backbone fails its probe after {total} steps ({_english(scores)})",
                    f"at least {THRESHOLD:.2f} in English in each task",
                    "choose another --seed",
                )
            steps, peak = recipe.extra_steps, recipe.learning_rate / 2
            total += steps
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        write_json(scratch / PROVENANCE_FILE, _provenance(recipe, seed, total, scores))
    return scores


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """A model this small gains nothing from more threads, and sums come out the same on every machine size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, seed: int) -> PreTrainedModel:
    """An untrained Llama of the recipe's shape."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=recipe.hidden,
                intermediate_size=recipe.intermediate,
                num_hidden_layers=recipe.layers,
                num_attention_heads=recipe.heads,
                num_key_value_heads=recipe.heads,
                max_position_embeddings=128,
                initializer_range=recipe.initializer_range,
                tie_word_embeddings=True,
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        )


def _batches(tokenizer: PreTrainedTokenizerFast, size: int, seed: int) -> Iterator[list[list[int]]]:
    """Token lists of whole documents, `<bos> ... <eos>`, in batches of similar length."""
    rng = random.Random(seed)
    stream = documents(seed)
    while True:
        texts = [document.text for document in itertools.islice(stream, size * 20)]
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        pool = sorted(
            ([tokenizer.bos_token_id, *line, tokenizer.eos_token_id] for line in ids),
            key=lambda line: (len(line), rng.random()),
        )
        batches = [pool[start : start + size] for start in range(0, len(pool), size)]
        rng.shuffle(batches)
        yield from batches


def _train(
    model: PreTrainedModel,
    batches: Iterator[list[list[int]]],
    steps: int,
    peak: float,
    warmup: int,
    advance: Callable[[int], None],
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    model.train()
    for step in range(steps):
        rate = peak * min(1.0, (step + 1) / warmup) * (0.55 + 0.45 * math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        ids, labels = _tensors(next(batches), model.config.pad_token_id)
        model(input_ids=ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        advance(step + 1)
    model.eval()


def _tensors(lines: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels of shape (documents, longest); no loss on padding."""
    width = max(map(len, lines))
    ids = torch.tensor([line + [pad] * (width - len(line)) for line in lines])
    labels = torch.tensor([line + [-100] * (width - len(line)) for line in lines])
    return ids, labels


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
    width = max(map(len, sequences))
    ids = [line + [tokenizer.pad_token_id] * (width - len(line)) for line in sequences]
    with torch.inference_mode():
        return model(input_ids=torch.tensor(ids, device=model.device)).logits


def _counter(advance: Callable[[int, int], None] | None, done: int, total: int) -> Callable[[int], None]:
    return (lambda step: advance(done + step, total)) if advance else (lambda step: None)


def _english(scores: Scores) -> str:
    return ", ".join(f"{task} {score:.3f}" for task, score in scores["en"].items())


def _provenance(recipe: Recipe, seed: int, steps: int, scores: Scores) -> dict[str, Any]:
    return {
        "command": "python backbones/decoder.py",
        "recipe": asdict(recipe),
        "text": shares(),
        "seed": seed,
        "steps": steps,
        "probe": scores,
        "versions": library_versions("torch", "transformers", "tokenizers"),
    }


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Pretrain the mini-world's backbone.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write; must not exist")
    parser.add_argument("--seed", type=int, default=0, help="seeds the weights and the text")
    options = parser.parse_args(arguments)
    columns = (TextColumn("pretraining"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=Terminal(stderr=True)) as progress:
            bar = progress.add_task("")
            scores = rebuild(
                options.output,
                options.seed,
                advance=lambda done, total: progress.update(bar, completed=done, total=total),
            )
    except UserError as error:
        say(str(error), err=True)
        return 2
    table = Table("language", "qa", "sentiment", title="probe")
    for language, score in scores.items():
        table.add_row(language, *(f"{value:.3f}" for value in score.values()))
    Terminal().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
