"""Predictions for rows without labels, from the command line or a script of your own."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lingualift.attachment import answering, check_adapter, check_labels
from lingualift.backbone.reference import find_backbone
from lingualift.config import Backbone, Scoring
from lingualift.data.datasets import labelled_task
from lingualift.data.rows import Given, load_unlabelled
from lingualift.encoding.parallel import source_language
from lingualift.errors import UserError
from lingualift.evaluation.likelihood import Progress, Tell
from lingualift.evaluation.runner import Prediction, adapted, malformed
from lingualift.evaluation.runner import predict as answer
from lingualift.languages import OwnLanguages, knowing, own_languages
from lingualift.languages import language as find_language
from lingualift.provenance import finite
from lingualift.tasks.base import labels_of


@dataclass(frozen=True)
class Asked:
    """What is asked of which model, and how; as the arguments of `predict`."""

    backbone: Backbone
    adapter: Path | None
    task: str
    language: str
    scoring: Scoring
    prompt: str | None = None
    prompt_language: str | None = None
    answers: Literal["ranked", "generated"] = "ranked"
    beside_language: str | None = None
    languages: OwnLanguages | None = None


@dataclass(frozen=True)
class Predictions:
    """Answered rows.

    Attributes:
        records: One per row, in their order: `id`, the row's own columns, `prediction` (None if it is malformed), and
            `scores` (log-likelihood of each label, normalised as `Scoring` says) with `probabilities` (their softmax, 1
            in sum), or `generated`, the whole text that the prediction was read from.
        malformed: Answers that could not be read.
        unread: Reading -> answers that it could not read; empty where none is read off a generated text.
        truncated: Prompts that had to be cut to `max_length`.
    """

    records: list[dict[str, Any]]
    malformed: int
    truncated: int
    unread: dict[str, int] = field(default_factory=dict)


def predict(
    *,
    backbone: str | Backbone,
    task: str,
    language: str,
    rows: Path | str | Sequence[Mapping[str, Any]],
    adapter: Path | str | None = None,
    scoring: Scoring | None = None,
    prompt: str | None = None,
    prompt_language: str | None = None,
    answers: Literal["ranked", "generated"] = "ranked",
    beside: Path | str | Sequence[Mapping[str, Any]] | None = None,
    beside_language: str | None = None,
    languages: OwnLanguages | None = None,
) -> list[dict[str, Any]]:
    """Predictions for rows that need no label.

    Args:
        backbone: Hub id, folder or `miniworld`, or a `Backbone` with revision and dtype.
        task: Registered name, or path of a Python file.
        language: BCP-47 or ISO 639-3 code.
        rows: A .jsonl, .jsonl.gz, .csv or .parquet file, or the rows themselves.
        adapter: Adapter folder; the plain backbone if left out.
        scoring: How answers are read off the model; `Scoring()` if left out.
        prompt: Name of a prompt of the task; its first one if left out.
        prompt_language: Code of the prompt's language, or `target` for `language`; English if left out.
        answers: Whether classes are ranked by the likelihood of their words, or generated.
        beside: The same rows in the source language, for an adapter that reads them (docs/fusing.md): a file, or the
            rows themselves. They pair by `id`, rows without one by their lines; no label is read.
        beside_language: Code of their language; the one that the adapter was trained with if left out.
        languages: Languages of your own: a TSV, or code -> its `name`, `script` and `nllb` (docs/experiment.md).

    Returns:
        One record per row, as `Predictions.records`. A warning tells of prompts that had to be cut.

    Raises:
        UserError: no backbone, an adapter that does not fit, unknown task or language, bad rows; rows alone for an
            adapter that reads a source side, or a source side for one that does not; a row without its partner.
    """
    asked = Asked(
        Backbone(name=backbone) if isinstance(backbone, str) else backbone,
        None if adapter is None else Path(adapter),
        task,
        language,
        scoring or Scoring(),
        prompt,
        prompt_language,
        answers,
        beside_language,
        languages,
    )
    side = Path(beside) if isinstance(beside, str) else beside
    found = predict_rows(asked, Path(rows) if isinstance(rows, str) else rows, side)
    if found.truncated:
        warnings.warn(f"{found.truncated} prompts were longer than scoring.max_length and cut", stacklevel=2)
    return found.records


def predict_rows(
    asked: Asked,
    rows: Given,
    beside: Given | None = None,
    progress: Progress = lambda done, total: None,
    tell: Tell[dict[str, Any]] = lambda place, record: None,
) -> Predictions:
    """Answer rows that need no label; rows and errors as for `predict`, `progress` as for `score_choices`.

    `tell` is called with the place of each row and its record, as soon as it is answered.
    """
    with knowing(own_languages(asked.languages)):
        return _predict_rows(asked, rows, beside, progress, tell)


def _predict_rows(
    asked: Asked, rows: Given, beside: Given | None, progress: Progress, tell: Tell[dict[str, Any]]
) -> Predictions:
    task = labelled_task(
        asked.task, Path(), asked.prompt, asked.prompt_language, asked.answers == "generated"
    )
    find_language(asked.language)
    spoken = source_language(asked.adapter, beside, asked.beside_language)
    side = None if beside is None or spoken is None else (beside, spoken)
    loaded = load_unlabelled(task, rows, asked.language, side)
    _check_names(rows, [row for row, _ in loaded])
    examples = [example for _, example in loaded]
    ref = answering(find_backbone(asked.backbone), task, examples)
    if asked.adapter is not None:
        check_adapter(ref, asked.adapter)
        check_labels(ref, asked.adapter, labels_of(task, examples[0]))
    records: dict[int, dict[str, Any]] = {}

    def record(place: int, found: Prediction) -> None:
        records[place] = {"id": found.id, **loaded[place][0], **_answered(found)}
        tell(place, records[place])

    with adapted(ref, asked.adapter) as (model, tokenizer):
        answered, truncated = answer(ref, model, tokenizer, task, examples, asked.scoring, progress, record)
    unread = {
        reading: sum((one.readings or {})[reading]["prediction"] is None for one in answered)
        for reading in answered[0].readings or ()
    }
    every = [records[place] for place in range(len(examples))]
    return Predictions(every, malformed(answered), truncated, unread)


_ADDED = ("prediction", "scores", "probabilities", "generated")


def _check_names(rows: Given, given: Sequence[Mapping[str, Any]]) -> None:
    """Refuse rows with a column that the predictions would take the place of."""
    taken = sorted({name for row in given for name in row if name in _ADDED})
    if taken:
        where = rows if isinstance(rows, Path) else "rows"
        raise UserError(where, f"has a column {taken[0]!r}, as predictions have", mend="rename or remove it")


def _answered(found: Prediction) -> dict[str, Any]:
    if found.scores is None:
        return {"prediction": found.prediction, "generated": found.text}
    scores = {label: finite(score) for label, score in found.scores.items()}
    return {"prediction": found.prediction, "scores": scores, "probabilities": _softmax(found.scores)}


def _softmax(scores: Mapping[str, float]) -> dict[str, float | None]:
    top = max(scores.values())
    powers = {label: math.exp(score - top) for label, score in scores.items()}
    return {label: finite(power / sum(powers.values())) for label, power in powers.items()}
