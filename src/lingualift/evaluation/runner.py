"""One runner for every task: predictions of a backbone with or without an adapter, and their scores."""

from __future__ import annotations

import contextlib
import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lingualift.attachment import answering, attach, check_labels, detach
from lingualift.backbone.loading import load_backbone
from lingualift.backbone.reference import BackboneRef
from lingualift.config import Reading, Scoring
from lingualift.encoding.parallel import is_fused
from lingualift.encoding.text import set_language
from lingualift.errors import UserError
from lingualift.evaluation.generation import generate_answers
from lingualift.evaluation.heads import classify, find_spans
from lingualift.evaluation.likelihood import Progress, Tell, score_choices
from lingualift.evaluation.writing import rank_written, write_answers
from lingualift.fusion.layer import recording
from lingualift.metrics.scores import METRICS
from lingualift.provenance import finite
from lingualift.tasks import Example, Task
from lingualift.tasks.base import labels_of
from lingualift.tasks.reading import repeats


@dataclass(frozen=True)
class Prediction:
    """One answered item.

    Attributes:
        id: The example's.
        gold: Accepted answers, or the label.
        prediction: The model's answer, None if it is malformed.
        correct: Whether the prediction is right by the task's first metric: worth all there is to have.
        text: The generated text, None for ranked choices.
        scores: Label -> log-likelihood, None for generated answers.
        readings: Reading -> `prediction` and `correct` by it; None for answers that are not read off a generated text.
    """

    id: str
    gold: tuple[str, ...]
    prediction: str | None
    correct: bool
    text: str | None = None
    scores: dict[str, float] | None = None
    readings: dict[str, dict[str, Any]] | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON, which has no word for a likelihood of nought."""
        scores = None if self.scores is None else {name: finite(score) for name, score in self.scores.items()}
        return {**asdict(self), "scores": scores}


@dataclass(frozen=True)
class Evaluation:
    """Predictions and what they score.

    Attributes:
        predictions: One per example, in their order.
        scores: Metric -> {"score", "stderr", "chance"}, in percent; the task's first metric first.
        malformed: Answers that could not be read.
        truncated: Prompts that had to be cut.
        activations: For each fused layer of a FLARE adapter its `layer`, `module`, and the mean activations `source`,
            `target` and `fused` of its bottleneck over the prompts; of those of the first block also its `units`.
            Empty for other adapters.
        readings: Reading -> `scores` and `malformed` by it, those of the chosen one among them; empty where no answer
            is read off a generated text.
    """

    predictions: list[Prediction]
    scores: dict[str, dict[str, float | None]]
    malformed: int
    truncated: int
    activations: list[dict[str, Any]] = field(default_factory=list)
    readings: dict[str, dict[str, Any]] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Everything but the predictions, as JSON."""
        return {
            "scores": self.scores,
            "n": len(self.predictions),
            "malformed": self.malformed,
            "truncated": self.truncated,
            "readings": self.readings,
            **({"activations": self.activations} if self.activations else {}),
        }

    def rows(self) -> list[dict[str, Any]]:
        """The predictions, as JSON."""
        return [prediction.to_dict() for prediction in self.predictions]


@contextlib.contextmanager
def adapted(ref: BackboneRef, adapter: Path | None) -> Iterator[tuple[Any, Any]]:
    """The resident backbone with an adapter on it for the length of the block; plain without one.

    Yields:
        Model and tokenizer.

    Raises:
        UserError: the adapter is damaged or does not fit; a head is needed that only an adapter brings.
    """
    if adapter is None and ref.head.kind != "words":
        raise UserError(
            f"backbone {ref.name!r}",
            "is an encoder, whose head for the task comes with an adapter, and there is none",
            "an adapter that was trained on the task",
            "name it (`--adapter`)",
        )
    model, tokenizer = load_backbone(ref)
    if adapter is None:
        yield model, tokenizer
        return
    wrapped = attach(ref, adapter)
    try:
        yield wrapped, tokenizer
    finally:
        detach(wrapped)


def evaluate(
    ref: BackboneRef,
    adapter: Path | None,
    task: Task,
    examples: Sequence[Example],
    scoring: Scoring,
    progress: Progress = lambda done, total: None,
    tell: Tell[Prediction] = lambda place, prediction: None,
) -> Evaluation:
    """Answer the examples and score the answers.

    Args:
        ref: The backbone.
        adapter: Adapter folder, None for the plain backbone.
        task: Says how an answer is read and which metrics count.
        examples: At least one, all in one language.
        scoring: How answers are ranked or generated.
        progress: Called with prompts done and prompts in all.
        tell: Called with each example's place and prediction.
    """
    ref = answering(ref, task, examples)
    if adapter is not None:
        check_labels(ref, adapter, labels_of(task, examples[0]))
    with (
        adapted(ref, adapter) as (model, tokenizer),
        recording() if is_fused(model) else contextlib.nullcontext() as record,
    ):
        predictions, truncated = predict(ref, model, tokenizer, task, examples, scoring, progress, tell)
    labels, code = len(labels_of(task, examples[0])), examples[0].language
    return Evaluation(
        predictions,
        score(task, predictions, labels, code),
        malformed(predictions),
        truncated,
        _first_units(record.means()) if record else [],
        _by_readings(task, predictions, labels, code),
    )


def by_reading(found: Mapping[str, Any], reading: Reading) -> dict[str, Any]:
    """What was scored, or answered, as a reading has it: of `Evaluation.summary`, or of `Prediction.to_dict`."""
    return {**found, **(found["readings"] or {}).get(reading, {})}


def malformed(predictions: Sequence[Prediction]) -> int:
    """How many answers could not be read."""
    return sum(prediction.prediction is None for prediction in predictions)


def _by_readings(
    task: Task, predictions: Sequence[Prediction], choices: int, language: str
) -> dict[str, dict[str, Any]]:
    """As `Evaluation.readings`; arguments as for `score`."""
    found = {}
    for reading in predictions[0].readings or ():
        read = [replace(one, **(one.readings or {})[reading]) for one in predictions]
        found[reading] = {"scores": score(task, read, choices, language), "malformed": malformed(read)}
    return found


def _first_units(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Activations by layer, with the units of the first block that fuses alone: those of all would be many numbers."""
    first = min((layer["layer"] for layer in layers), default=0)
    return [
        {name: value for name, value in layer.items() if name != "units" or layer["layer"] == first}
        for layer in layers
    ]


def answers(found: Evaluation) -> Iterator[str | None]:
    """Every answer, by whichever reading."""
    for one in found.predictions:
        yield from (one.prediction, *(read["prediction"] for read in (one.readings or {}).values()))


def told_in(
    found: Evaluation, task: Task, language: str, told: Mapping[str, str], scoring: Scoring
) -> Evaluation:
    """The evaluation of answers that were given in another language than their gold's, told in that one.

    Args:
        found: As they were given; what was written stays in `text`.
        task: Has the metrics.
        language: Code of the gold's language.
        told: Answer -> what it is in that language.
        scoring: By which both are compared.
    """
    metric = METRICS[task.metrics[0]]

    def tell(answer: str | None, gold: tuple[str, ...]) -> dict[str, Any]:
        text = None if answer is None else told[answer]
        text = _nfc(text) if text and scoring.unicode_normalization == "NFC" else text
        return {"prediction": text, "correct": metric.is_right(text, gold, language)}

    predictions = []
    for one in found.predictions:
        read = {name: tell(read["prediction"], one.gold) for name, read in (one.readings or {}).items()}
        predictions.append(replace(one, **tell(one.prediction, one.gold), readings=read or None))
    return replace(
        found,
        predictions=predictions,
        scores=score(task, predictions, 0, language),
        readings=_by_readings(task, predictions, 0, language),
    )


def entropy(
    ref: BackboneRef,
    adapter: Path,
    task: Task,
    examples: Sequence[Example],
    scoring: Scoring,
    progress: Progress = lambda done, total: None,
) -> dict[str, float]:
    """How unsure an adapter is of its answers to questions, whose gold is not looked at; arguments as for `evaluate`.

    Returns:
        `score`: the mean entropy of the distributions over the labels, in percent of that of a fair draw; `stderr`.
    """
    ref = answering(ref, task, examples)
    with adapted(ref, adapter) as (model, tokenizer):
        found, _ = predict(ref, model, tokenizer, task, examples, scoring, progress)
    scores = np.array([list((one.scores or {}).values()) for one in found])  # (rows, labels)
    logs = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    each = -100 * (np.exp(logs) * logs).sum(axis=1) / math.log(scores.shape[1])
    return {"score": float(each.mean()), "stderr": float(each.std() / math.sqrt(len(each)))}


def is_ranked(ref: BackboneRef, task: Task, examples: Sequence[Example]) -> bool:
    """Whether each answer is one of some labels, by how likely they are: no span and no generated text."""
    return bool(examples[0].choices) or answering(ref, task, examples).head.kind in ("classes", "choices")


def predict(
    ref: BackboneRef,
    model: Any,
    tokenizer: Any,
    task: Task,
    examples: Sequence[Example],
    scoring: Scoring,
    progress: Progress = lambda done, total: None,
    tell: Tell[Prediction] = lambda place, prediction: None,
) -> tuple[list[Prediction], int]:
    """Predictions in the order of the examples, and how many prompts had to be cut; `tell` is told of each at once.

    Choices are ranked, the first of equally likely ones wins; without choices the answer is generated and parsed. An
    encoder answers by its head.
    """
    set_language(tokenizer, examples[0].language)
    composed = scoring.unicode_normalization == "NFC"
    compared = [_composed(example) for example in examples] if composed else examples
    longest = scoring.new_tokens(task.max_new_tokens)
    answered: dict[int, Prediction] = {}

    def add(place: int, prediction: Prediction) -> None:
        answered[place] = prediction
        tell(place, prediction)

    def ranked(place: int, scores: dict[str, float]) -> None:
        add(place, _ranked(task, examples[place], scores))

    def found(place: int, text: str) -> None:
        add(place, _found(task, compared[place], text, _nfc(text) if composed else text))

    def parsed(place: int, text: str) -> None:
        read = _nfc(text) if composed else text
        add(place, _parsed(task, compared[place], text, read, scoring.reading))

    truncated = 0
    if ref.head.kind == "span":
        find_spans(model, tokenizer, examples, scoring, longest, progress, found)
    elif ref.head.kind != "words":
        _, truncated = classify(model, tokenizer, task, examples, scoring, progress, ranked)
    elif examples[0].choices:
        rank = rank_written if ref.family == "encoder-decoder" else score_choices
        _, truncated = rank(model, tokenizer, examples, scoring, progress, ranked)
    else:
        generate = write_answers if ref.family == "encoder-decoder" else generate_answers
        _, truncated = generate(model, tokenizer, examples, scoring, longest, progress, parsed)
    return [answered[place] for place in range(len(examples))], truncated


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _composed(example: Example) -> Example:
    """The example with gold and labels in NFC (https://unicode.org/reports/tr15): é is one character, however typed."""
    choices = {_nfc(label): _nfc(words) for label, words in example.choices.items()}
    return replace(example, gold=tuple(map(_nfc, example.gold)), choices=choices)


def score(
    task: Task, predictions: Sequence[Prediction], choices: int, language: str
) -> dict[str, dict[str, float | None]]:
    """The task's metrics over predictions in one language; `choices` is the number of labels, 0 for free text."""
    golds = [prediction.gold for prediction in predictions]
    answers = [prediction.prediction for prediction in predictions]
    found: dict[str, dict[str, float | None]] = {}
    for name in task.metrics:
        metric = METRICS[name]
        value = metric.score(answers, golds, language)
        found[name] = {
            "score": value.value,
            "stderr": finite(value.stderr),
            "chance": metric.chance(golds, choices),
        }
    return found


def _ranked(task: Task, example: Example, scores: dict[str, float]) -> Prediction:
    best = max(scores, key=lambda label: scores[label])
    return Prediction(example.id, example.gold, best, _is_right(task, example, best), scores=scores)


def _found(task: Task, example: Example, text: str, span: str) -> Prediction:
    return Prediction(example.id, example.gold, span, _is_right(task, example, span), text=text)


def _parsed(task: Task, example: Example, text: str, read: str, reading: Reading) -> Prediction:
    """The answer by each reading; what the strict one reads, the lenient one reads alike."""
    strict = task.parse(read, example)
    answers = {"strict": strict, "lenient": _lenient(task, read, example) if strict is None else strict}
    readings: dict[str, dict[str, Any]] = {
        name: {"prediction": answer, "correct": _is_right(task, example, answer)}
        for name, answer in answers.items()
    }
    return Prediction(example.id, example.gold, **readings[reading], text=text, readings=readings)


def _is_right(task: Task, example: Example, answer: str | None) -> bool:
    return METRICS[task.metrics[0]].is_right(answer, example.gold, example.language)


def _lenient(task: Task, text: str, example: Example) -> str | None:
    """The answer by the lenient reading; None where a model repeats what it was asked, which names every answer."""
    return None if repeats(text, example.prompt) else task.parse_lenient(text, example)
