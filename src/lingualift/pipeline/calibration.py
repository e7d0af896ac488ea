"""Short measured runs: how long one unit of a step takes here, and how much memory a row needs."""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lingualift.attachment import answering
from lingualift.backbone.loading import load_backbone, scored_bytes
from lingualift.backbone.reference import BackboneRef
from lingualift.config import Adapter
from lingualift.encoding.text import encode_prompt
from lingualift.evaluation.runner import evaluate, is_ranked
from lingualift.pipeline.steps import (
    Evaluate,
    Merge,
    Step,
    Sweep,
    Train,
    Translate,
    WordsHead,
)
from lingualift.processes import device, use_threads
from lingualift.provenance import fingerprint
from lingualift.tasks import Example
from lingualift.training.measuring import measure_step, seconds_of_batch
from lingualift.training.trainer import initialise
from lingualift.training.words import initialise_words
from lingualift.translation.model import Model

_BUDGET = 12.0  # seconds of arithmetic, shared by all that is measured; each is done a little of, however long it takes
_TOKENS, _WRITTEN = 4, 4  # tokens that are generated to tell how long each takes, and for how many rows


@dataclass(frozen=True)
class Pace:
    """What one unit of a step takes: an optimiser step, an answered row, a merge, an initialisation.

    Attributes:
        seconds: Time of a unit.
        memory: Bytes that each row of a batch adds.
        rows: Rows of the step's data (segments, where it is text).
    """

    seconds: float
    memory: int
    rows: int


def measure_all(
    steps: Mapping[str, Step],
    ref: BackboneRef,
    adapter: Adapter,
    threads: int,
    tell: Callable[[Step], None] = lambda step: None,
) -> tuple[dict[str, Pace], float]:
    """Do a little of each step, with adapters that are drawn for it, and measure.

    Args:
        steps: One for each kind of work, at least one.
        ref: The backbone; it is loaded.
        adapter: The experiment's adapter.
        threads: Processor threads, as many as a worker will have.
        tell: Told which step is measured next.

    Returns:
        The pace of each, and the seconds that loading the backbone took; 0 where it was loaded already.
    """
    paces: dict[str, Pace] = {}
    with _threads(threads), tempfile.TemporaryDirectory() as scratch:
        heads = {name: _answering(ref, step).head for name, step in steps.items()}
        order = sorted(steps, key=lambda name: (_translates(steps[name]), heads[name].kind))
        began = time.perf_counter()  # another head is another model to load, and so is a translator
        load_backbone(ref.answering(heads[order[0]]))
        loading = time.perf_counter() - began
        kinds = ("translation", "adapter", "words-head", "sweep", "evaluation")
        long = [step for step in steps.values() if step.kind in kinds]
        bench = _Bench(ref, adapter, Path(scratch), _BUDGET / max(1, len(long)))
        for name in order:
            tell(steps[name])
            paces[name] = bench.measure(steps[name])
    return paces, loading


class _Bench:
    """Measures steps on adapters that are drawn once for all that are alike.

    Args:
        ref: The backbone.
        adapter: The experiment's adapter.
        scratch: An empty folder.
        budget: Seconds for each step.
    """

    def __init__(self, ref: BackboneRef, adapter: Adapter, scratch: Path, budget: float) -> None:
        self.ref, self.adapter, self.scratch, self.budget = ref, adapter, scratch, budget
        self._drawn: dict[Any, tuple[Path, float]] = {}

    @functools.singledispatchmethod
    def measure(self, step: Step) -> Pace:
        """The pace of a step; here of one that draws an adapter."""
        return Pace(self._draw(step)[1], 0, 0)

    @measure.register
    def _words(self, step: WordsHead) -> Pace:
        texts = [text for code in step.languages for text in step.dataset.rows(code, step.split)]
        return _training(step, texts, self._speaking(), None, self.budget)

    @measure.register
    def _train(self, step: Train) -> Pace:
        rows, (drawn, _) = step.dataset.rows(step.language, step.split), self._draw(step)
        return _training(step, rows, self._speaking() if step.words else self.ref, drawn, self.budget)

    @measure.register
    def _score(self, step: Evaluate | Sweep) -> Pace:
        drawn, _ = self._draw(step)
        return _scoring(step, self.ref, drawn, self.budget)

    @measure.register
    def _translate(self, step: Translate) -> Pace:
        return _translating(step, self.budget)

    @measure.register
    def _merge(self, step: Merge) -> Pace:
        drawn, _ = self._draw(step)
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=self.scratch) as scratch:
            step.how.merge(dict.fromkeys(("task", "target", "source"), drawn), 0.0, Path(scratch) / "merged")
        return Pace(time.perf_counter() - began, 0, 0)

    def _draw(self, step: Step) -> tuple[Path, float]:
        """What a step trains, merges or scores, and the seconds that drawing it took: plain, or fusing beside that."""
        ref, fused = _answering(self.ref, step), step.fused
        plain = self._draw_once((ref.head,), lambda folder: initialise(ref, self.adapter, 0, folder))
        if fused is None:
            return plain
        settings = fingerprint(dict(fused.settings))
        return self._draw_once((ref.head, settings), lambda folder: fused.draw(plain[0], folder))

    def _draw_once(self, key: Any, draw: Callable[[Path], None]) -> tuple[Path, float]:
        if key not in self._drawn:
            folder = self.scratch / str(len(self._drawn))
            folder.mkdir()
            began = time.perf_counter()
            draw(folder)
            self._drawn[key] = folder, time.perf_counter() - began
        return self._drawn[key]

    def _speaking(self) -> BackboneRef:
        """An encoder without a head for words with an untrained one, which takes as long to read by."""
        folder, _ = self._draw_once("words", lambda folder: initialise_words(self.ref, 0, folder))
        return self.ref.with_words(folder)


def _answering(ref: BackboneRef, step: Step) -> BackboneRef:
    """The backbone with the head of a step's task, so that what is drawn has one."""
    return answering(ref, *step.headed) if step.headed else ref


def _training(
    step: Train | WordsHead,
    rows: Sequence[Example] | Sequence[str],
    ref: BackboneRef,
    drawn: Path | None,
    budget: float,
) -> Pace:
    seconds, memory, count = measure_step(
        ref,
        step.dataset.get_task(),
        rows,
        step.settings,
        start=drawn,
        language=step.languages[0],
        segment_tokens=step.segment_tokens,
        budget=budget,
    )
    return Pace(seconds, memory, count)


def _scoring(step: Evaluate | Sweep, ref: BackboneRef, drawn: Path, budget: float) -> Pace:
    task, examples = step.headed
    ref = answering(ref, task, examples)
    rows = sorted(examples, key=lambda example: len(example.prompt))
    longest = step.scoring.new_tokens(task.max_new_tokens)
    written = ref.head.kind == "words" and not is_ranked(ref, task, examples)

    def seconds(few: Sequence[Example], tokens: int) -> float:
        scoring = step.scoring.model_copy(update={"max_new_tokens": tokens} if written else {})
        began = time.perf_counter()
        evaluate(ref, drawn, task, few, scoring)
        return time.perf_counter() - began

    batch = step.scoring.batch_size
    seconds(rows[-1:], 1)  # the first is slow
    passed = seconds_of_batch(lambda few: seconds(few, 1), rows, batch, budget)
    if written and longest > 1:  # a further token of all answers of a batch reads the weights once
        few, tokens = rows[-_WRITTEN:], min(_TOKENS, longest - 1)
        if device() != "cpu":
            seconds(few, 1 + tokens)  # loads the kernels for it
        passed += max(0.0, seconds(few, 1 + tokens) - seconds(few, 1)) / tokens * (longest - 1)
    each = passed / batch
    model, tokenizer = load_backbone(ref)
    length = len(encode_prompt(tokenizer, rows[-1].prompt)) + longest
    memory = scored_bytes(model, min(length, step.scoring.max_length))
    if isinstance(step, Evaluate) and step.back:
        told = step.back
        texts = [example.gold[0] for example in examples]  # about as long as the answers
        each += _written(Model(told.model, told.language, told.into, told.settings), texts, budget)
    return Pace(each, memory, len(examples))


def _translates(step: Step) -> bool:
    return isinstance(step, Translate) or (isinstance(step, Evaluate) and step.back is not None)


def _written(model: Model, texts: Sequence[str], budget: float) -> float:
    """Seconds that the translation of a text takes, of such as these."""
    found = sorted(set(texts), key=len)

    def seconds(few: Sequence[str]) -> float:
        began = time.perf_counter()
        model.translate(few)
        return time.perf_counter() - began

    seconds(found[:1])  # the first is slow
    batch = model.settings.batch_size
    return seconds_of_batch(seconds, found, batch, budget) / batch


def _translating(step: Translate, budget: float) -> Pace:
    """The pace of a translation, whose sentences are translated once, however many rows they stand in."""
    model = Model(step.model, step.language, step.into, step.settings)
    rows, found = step.count, step.sentences
    each = _written(model, found, budget) * len(found) / rows
    loaded, _ = load_backbone(step.model)
    memory = step.settings.beams * scored_bytes(loaded, model.limit + model.new_tokens)
    return Pace(each, memory, rows)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    use_threads(count)
    try:
        yield
    finally:
        use_threads(before)
