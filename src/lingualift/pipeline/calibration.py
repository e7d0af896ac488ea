"""Short measured runs: how long one unit of a step takes here, and how much memory a row needs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lingualift.backbone import BackboneRef, load_backbone, scored_bytes
from lingualift.config import Adapter
from lingualift.devices import use_threads
from lingualift.evaluation.runner import answering, evaluate
from lingualift.pipeline.steps import (
    Evaluate,
    Initialise,
    InitialiseFused,
    Merge,
    Step,
    Sweep,
    Train,
    WordsHead,
    start_of,
)
from lingualift.tasks import Example
from lingualift.training.encoding import encode_prompt
from lingualift.training.trainer import initialise, initialise_words, measure_step

_ROWS = 64  # rows that are scored, at most


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


def measure(step: Step, ref: BackboneRef, adapter: Adapter, threads: int) -> Pace:
    """Do a little of a step, with an adapter that is drawn for it, and measure.

    Args:
        step: The step.
        ref: The backbone; it is loaded.
        adapter: The experiment's adapter.
        threads: Processor threads, as many as a worker will have.
    """
    with _threads(threads), tempfile.TemporaryDirectory() as scratch:
        drawn = Path(scratch) / "drawn"
        drawn.mkdir()
        if isinstance(step, WordsHead):
            return Pace(*_words_training(step, _speaking(ref, Path(scratch) / "words")))
        began = time.perf_counter()
        initialise(_answering(ref, step), adapter, 0, drawn)
        drawn = _fused(step, drawn, Path(scratch) / "fused")
        if isinstance(step, Initialise | InitialiseFused):
            return Pace(time.perf_counter() - began, 0, 0)
        if isinstance(step, Merge):
            began = time.perf_counter()
            step.how.merge(dict.fromkeys(("task", "target", "source"), drawn), 0.0, Path(scratch) / "merged")
            return Pace(time.perf_counter() - began, 0, 0)
        if isinstance(step, Train):
            speaking = _speaking(ref, Path(scratch) / "words") if step.words else ref
            return Pace(*_training(step, speaking, drawn))
        assert isinstance(step, Evaluate | Sweep)
        return _scoring(step, ref, drawn)


def _fused(step: Step, drawn: Path, output: Path) -> Path:
    """What a step trains or scores: the adapter that was drawn, or one that fuses, beside it."""
    start = start_of(step)
    if not isinstance(start, InitialiseFused):
        return drawn
    output.mkdir()
    start.draw(drawn, output)
    return output


def _answering(ref: BackboneRef, step: Step) -> BackboneRef:
    """The backbone with the head of a step's task, so that what is drawn has one."""
    if isinstance(step, Train) and isinstance(step.drawn, InitialiseFused):
        step = step.drawn
    if isinstance(step, InitialiseFused):
        return answering(ref, *step.task.source.labelled(step.task.language, step.split))
    if not isinstance(step, Evaluate | Sweep):
        return ref
    return answering(ref, *step.source.labelled(step.language, step.split))


def _speaking(ref: BackboneRef, folder: Path) -> BackboneRef:
    """An encoder without a head for words with an untrained one, which takes as long to read by."""
    folder.mkdir()
    initialise_words(ref, 0, folder)
    return ref.with_words(folder)


def _words_training(step: WordsHead, ref: BackboneRef) -> tuple[float, int, int]:
    rows: list[str] = [text for code in step.languages for text in step.source.rows(code, step.split)]  # type: ignore[misc]
    return measure_step(
        ref,
        step.source.get_task(),
        rows,
        step.own_settings,
        start=None,
        language=step.languages[0],
        segment_tokens=step.segment_tokens,
    )


def _training(step: Train, ref: BackboneRef, drawn: Path) -> tuple[float, int, int]:
    rows = step.source.rows(step.language, step.split)
    return measure_step(
        ref,
        step.source.get_task(),
        rows,
        step.settings,
        start=drawn,
        language=step.language,
        segment_tokens=step.segment_tokens,
    )


def _scoring(step: Evaluate | Sweep, ref: BackboneRef, drawn: Path) -> Pace:
    task, examples = step.source.labelled(step.language, step.split)
    sample = _spread(sorted(examples, key=lambda example: len(example.prompt)), _ROWS)
    evaluate(ref, drawn, task, sample[-1:], step.scoring)  # the first is slow
    began = time.perf_counter()
    evaluate(ref, drawn, task, sample, step.scoring)
    seconds = time.perf_counter() - began
    model, tokenizer = load_backbone(answering(ref, task, examples))
    longest = len(encode_prompt(tokenizer, sample[-1].prompt)) + step.scoring.new_tokens(task.max_new_tokens)
    memory = scored_bytes(model, min(longest, step.scoring.max_length))
    return Pace(seconds / len(sample), memory, len(examples))


def _spread(rows: Sequence[Example], count: int) -> list[Example]:
    """At most `count` rows, evenly over the sequence."""
    return [rows[round(i * (len(rows) - 1) / max(1, count - 1))] for i in range(min(count, len(rows)))]


@contextmanager
def _threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    use_threads(count)
    try:
        yield
    finally:
        use_threads(before)
