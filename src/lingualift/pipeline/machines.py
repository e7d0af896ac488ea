"""What steps take on machines that are not here: counted from configuration and data, timed by a table of speeds."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lingualift.attachment import answering
from lingualift.backbone.loading import skeleton, weight_bytes
from lingualift.backbone.reference import BackboneRef, load_tokenizer, read_config
from lingualift.config import Training, Translation
from lingualift.data.datasets import Texts
from lingualift.evaluation.runner import is_ranked
from lingualift.pipeline.steps import Evaluate, Step, Sweep, Train, Translate, WordsHead
from lingualift.provenance import fingerprint
from lingualift.registry import Registry
from lingualift.tasks import Example

UTILISATION = 0.35
"""Share of a machine's peak that training and reading reach: at most half with well-filled batches, less with ours."""
READING = 0.5
"""Share of a machine's memory bandwidth that writing answers token by token reaches: each reads all weights."""
LAUNCH = 4e-3
"""Seconds at least that a layer takes in a pass, however few its tokens: its operations are launched one by one.
Measured: Gemma 3 270M's on an H200, training and scoring, with LoRA on all of a layer's matrices."""
_SAMPLED = 256  # rows that are encoded to tell how long rows are
_KEPT = 34
"""Bytes that a layer keeps for each token and unit of width, in 16 bits, attention's matrix not among them
(https://arxiv.org/abs/2205.05198, equation 1)."""


@dataclass(frozen=True)
class Machine:
    """A GPU, by its maker's data sheet; speeds are dense ones.

    Attributes:
        name: What `--for` calls it.
        what: What it is.
        memory: Bytes.
        bandwidth: Bytes a second.
        speeds: Number format of the backbone -> operations a second.
    """

    name: str
    what: str
    memory: float
    bandwidth: float
    speeds: dict[str, float]


MACHINES: Registry[Machine] = Registry("machine")


def _gpu(name: str, what: str, gigabytes: float, per_second: float, half: float, single: float) -> None:
    """Enter a GPU: 1e9 bytes, 1e9 bytes a second, 1e12 operations a second in 16 bits, and in 32."""
    speeds = {"bfloat16": half * 1e12, "float16": half * 1e12, "float32": single * 1e12}
    MACHINES.register(name)(Machine(name, what, gigabytes * 1e9, per_second * 1e9, speeds))


_gpu("b200", "NVIDIA B200", 180, 8000, 2250, 75)
_gpu("h200", "NVIDIA H200 SXM", 141, 4800, 989, 67)
_gpu("h100", "NVIDIA H100 SXM", 80, 3350, 989, 67)
_gpu("a100", "NVIDIA A100 SXM 80 GB", 80, 2039, 312, 19.5)
_gpu("l40s", "NVIDIA L40S", 48, 864, 362, 91.6)
_gpu("l4", "NVIDIA L4", 24, 300, 121, 30.3)
_gpu("a10", "NVIDIA A10", 24, 600, 125, 31.2)
_gpu("rtx4090", "NVIDIA GeForce RTX 4090", 24, 1008, 165, 82.6)


@dataclass(frozen=True)
class Work:
    """What a step comes down to.

    Attributes:
        steps: Optimiser steps.
        tokens: Tokens that are read, padding apart, the longest answers in full.
        seconds: On the machine.
        memory: Bytes of activations.
    """

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    memory: int = 0


@dataclass(frozen=True)
class _Lengths:
    """Tokens of rows: mean and most, in all rows, and how many rows there are."""

    mean: float
    most: int
    rows: int

    @property
    def all(self) -> float:
        return self.mean * self.rows


class Estimator:
    """Counts the work of steps on a backbone, from its configuration, its tokenizer and the data; loads no weights.

    Args:
        ref: The backbone.
        machine: Where it will run.
        weights: Bytes of the backbone's weights.
    """

    def __init__(self, ref: BackboneRef, machine: Machine, weights: int) -> None:
        self.ref, self.machine, self.weights = ref, machine, weights
        self._tokenizer = load_tokenizer(ref)
        model = skeleton(ref)
        table = model.get_input_embeddings().weight
        head = model.get_output_embeddings()
        words = 0 if head is None else head.weight.numel()
        inside = sum(p.numel() for p in model.parameters() if p is not table)
        tied = head is not None and head.weight is table
        self._inside = inside - (0 if tied else words)  # weights that each token passes
        self._words = words
        text = read_config(ref).get_text_config()
        self._layers, self._width = text.num_hidden_layers, text.hidden_size
        self._known: dict[Any, _Lengths] = {}

    @functools.singledispatchmethod
    def work(self, step: Step) -> Work:
        """The work of a step; none for draws and merges, which take seconds."""
        return Work()

    @work.register
    def _training(self, step: Train | WordsHead) -> Work:
        settings, text = step.settings, isinstance(step.dataset, Texts)
        found = [self._lengths(step, code, step.split, settings.max_length) for code in step.languages]
        tokens, most, rows = (
            sum(one.all for one in found),
            max(one.most for one in found),
            sum(one.rows for one in found),
        )
        if text:  # documents are laid end to end and cut
            rows, most = max(1, math.ceil(tokens / step.segment_tokens)), step.segment_tokens
        steps = settings.optimiser_steps(rows)
        read = round(steps * settings.batch_size * settings.accumulation * tokens / rows)
        passes = 2 + settings.gradient_checkpointing  # forward, backward to the inputs alone, forward again
        more = self._source_passes(step)
        width = self._inside + (self._words if text else 0)
        if isinstance(step, WordsHead):  # backward through the head alone
            operations = 2 * read * (self._inside + 3 * self._words * 0.15)
        else:
            operations = 2 * read * (passes + more) * (width + self._attention(most))
        launched = steps * settings.accumulation * (passes + more) * self._layers * LAUNCH
        seconds = max(self._at_speed(operations), launched)
        return Work(steps, read, seconds, self._activations(settings, most))

    @work.register
    def _scoring(self, step: Evaluate | Sweep) -> Work:
        task, examples = step.headed
        scoring = step.scoring
        found = self._lengths(step, step.language, step.split, scoring.max_length)
        times = step.units(1)
        ref = answering(self.ref, task, examples)
        written = ref.head.kind == "words" and not is_ranked(ref, task, examples)
        answer = scoring.new_tokens(task.max_new_tokens) if written else 0
        tokens = found.all + answer * found.rows
        operations = (
            2 * tokens * (1 + self._source_passes(step)) * (self._inside + self._attention(found.most))
        )
        operations += 2 * found.rows * (1 + answer) * self._words
        batches = math.ceil(found.rows / scoring.batch_size)
        launched = batches * (1 + self._source_passes(step)) * self._layers * LAUNCH
        seconds = max(self._at_speed(operations), launched)
        each = max(
            self.weights / (READING * self.machine.bandwidth), self._layers * LAUNCH
        )  # of a batch's next token
        seconds += batches * answer * each
        memory = scoring.batch_size * (found.most + answer) * self._width * (4 * self._layers + _KEPT)
        memory += scoring.batch_size * self._words // self._width * 6
        if isinstance(step, Evaluate) and step.back:
            told = self._other(step.back.model)._written(
                [row.gold[0] for row in examples], step.back.settings
            )
            tokens, seconds, memory = tokens + told.tokens, seconds + told.seconds, max(memory, told.memory)
        return Work(0, round(times * tokens), times * seconds, int(memory))

    @work.register
    def _translating(self, step: Translate) -> Work:
        return self._other(step.model)._written(step.sentences, step.settings)

    def _other(self, model: BackboneRef) -> Estimator:
        """Counts the work of a translation model."""
        return Estimator(model, self.machine, weight_bytes(model))

    def _written(self, every: Sequence[str], settings: Translation) -> Work:
        """The work of translating sentences by this model; they become as long as they are, in tokens."""
        some = every[:: max(1, len(every) // _SAMPLED)]
        counts = _counts(self._tokenizer, some, settings.max_length)
        mean, most = sum(counts) / len(counts), max(counts)
        tokens, batches = 2 * mean * len(every), math.ceil(len(every) / settings.batch_size)
        half = self._inside / 2  # of the weights, which encoder and decoder share out
        operations = 2 * mean * len(every) * (half + settings.beams * (half + self._words))
        each = max(self.weights / (READING * self.machine.bandwidth), self._layers * LAUNCH)
        seconds = self._at_speed(operations) + batches * (self._layers * LAUNCH + mean * each)
        memory = settings.batch_size * settings.beams * 2 * most * self._width * (4 * self._layers + _KEPT)
        return Work(0, round(tokens), seconds, int(memory))

    def _at_speed(self, operations: float) -> float:
        return float(operations / (UTILISATION * self.machine.speeds[self.ref.dtype]))

    def _attention(self, tokens: int) -> float:
        """Multiplications of queries with keys, and of those with values, for each token of so many."""
        return float(2 * self._layers * self._width * tokens / 2)

    def _activations(self, settings: Training, most: int) -> int:
        layer: float = (
            settings.batch_size * most * self._width * _KEPT * (2 if self.ref.dtype == "float32" else 1)
        )
        kept = (
            layer + layer * 2 / _KEPT * self._layers
            if settings.gradient_checkpointing
            else layer * self._layers
        )
        return int(kept)

    def _source_passes(self, step: Step) -> int:
        """Further passes of the backbone over as much text: of a source side."""
        paired = any(part.dataset.beside and part.dataset.beside.use == "beside" for part in step.reads)
        return int(paired or (step.fused is not None and step.fused.settings["kind"] == "x-mixup"))

    def _lengths(self, step: Any, language: str, split: str, limit: int) -> _Lengths:
        key = fingerprint([step.dataset.identity(language, split), limit])
        if key not in self._known:
            rows = step.dataset.rows(language, split)
            sample = rows[:: max(1, len(rows) // _SAMPLED)]
            text = isinstance(step.dataset, Texts)
            counts = _counts(self._tokenizer, sample, None if text else limit)
            self._known[key] = _Lengths(sum(counts) / len(counts), max(counts), len(rows))
        return self._known[key]


def _counts(tokenizer: Any, rows: Sequence[Any], limit: int | None) -> list[int]:
    """Tokens of each row: of a text, or of a prompt with its answer."""
    texts = [_text(row) if isinstance(row, Example) else row for row in rows]
    counts = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    return [min(count, limit) for count in counts] if limit else counts


def _text(row: Example) -> str:
    return f"{' '.join(row.parts) or row.prompt} {row.answer if row.gold else ''}"
