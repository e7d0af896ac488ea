"""Scores on labelled rows, from the command line or a script of your own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lingualift.attachment import check_adapter
from lingualift.backbone.reference import BackboneRef, find_backbone
from lingualift.config import Backbone, Scoring, files_at
from lingualift.data.datasets import Beside, Examples
from lingualift.data.output import check_output, growing, json_line
from lingualift.encoding.parallel import source_language
from lingualift.evaluation.likelihood import Progress
from lingualift.evaluation.runner import Evaluation
from lingualift.evaluation.runner import evaluate as score
from lingualift.languages import OwnLanguages, knowing, own_facts, own_languages
from lingualift.provenance import write_json, write_jsonl
from lingualift.tasks import Example


def evaluate(
    *,
    backbone: str | Backbone,
    task: str,
    language: str,
    data: str,
    adapter: Path | str | None = None,
    output: Path | str | None = None,
    split: Literal["train", "validation", "test"] = "test",
    scoring: Scoring | None = None,
    prompt: str | None = None,
    prompt_language: str | None = None,
    answers: Literal["ranked", "generated"] = "ranked",
    beside: str | None = None,
    beside_language: str | None = None,
    languages: OwnLanguages | None = None,
    progress: Progress = lambda done, total: None,
) -> Evaluation:
    """Score a backbone, or an adapter on it, on labelled rows.

    Args:
        backbone: Hub id, folder or `miniworld`, or a `Backbone` with revision and dtype.
        task: Registered name, or path of a Python file.
        language: BCP-47 or ISO 639-3 code.
        data: File, or path template with {language} and {split}.
        adapter: Adapter folder; the plain backbone if left out.
        output: JSON file to write scores into, which must not exist; answers go beside it, as .predictions.jsonl.
            Nothing is written if left out.
        split: Split to score.
        scoring: How answers are read off the model; `Scoring()` if left out.
        prompt: Name of a prompt of the task; its first one if left out.
        prompt_language: Code of the prompt's language, or `target` for `language`; English if left out.
        answers: Whether classes are ranked by the likelihood of their words, or generated.
        beside: The same rows in the source language, for an adapter that reads them (docs/fusing.md): as `data`, with
            {language} that of the rows.
        beside_language: Code of their language; the one that the adapter was trained with if left out.
        languages: Languages of your own: a TSV, or code -> its `name`, `script` and `nllb` (docs/experiment.md).
        progress: Called with prompts done and prompts in all.

    Returns:
        The scores in percent, and every prediction.

    Raises:
        UserError: no backbone, an adapter that does not fit, unknown task or language, bad rows; an output that exists
            or cannot be written; rows alone for an adapter that reads a source side, or a source side for one that
            does not.
    """
    chosen = Backbone(name=backbone) if isinstance(backbone, str) else backbone
    folder = None if adapter is None else Path(adapter)
    target = None if output is None else Path(output)
    if target is not None:
        check_output(target, "file")
        check_output(_predictions(target), "file")
    with knowing(own_languages(languages)):
        spoken = source_language(folder, beside, beside_language)
        side = None if beside is None or spoken is None else Beside(files_at(beside, "beside"), spoken)
        rows = Examples(task, files_at(data), Path(), prompt, prompt_language, answers == "generated", side)
        asked, examples = rows.labelled(language, split)
        if target is not None:
            _check_written(examples)
        ref = _found(chosen, folder)
        reading = scoring or Scoring()
        if target is None:
            return score(ref, folder, asked, examples, reading, progress)
        about = {
            "task": task,
            "language": language,
            "split": split,
            "backbone": chosen.name,
            "quantization": chosen.quantization,
            "chat_template": chosen.chat_template,
            "adapter": str(adapter or ""),
            "beside": beside,
            "beside_language": spoken,
            **own_facts(language, spoken),
        }
        with growing(_predictions(target)) as keep:
            found = score(
                ref,
                folder,
                asked,
                examples,
                reading,
                progress,
                lambda _, one: keep(json_line(one.to_dict(), f"the answer to {one.id!r}")),
            )
            write_jsonl(_predictions(target), found.rows())
            read_by = reading.reading if found.readings else None
            write_json(target, {**about, "reading": read_by, **found.summary()})
        return found


def _predictions(output: Path) -> Path:
    """The file of answers beside that of scores."""
    return output.with_suffix(".predictions.jsonl")


def _check_written(examples: Sequence[Example]) -> None:
    """Refuse rows that could not be written beside their answers."""
    for example in examples:
        json_line([example.id, example.gold], f"the row with id {example.id!r}")


def _found(backbone: Backbone, adapter: Path | None) -> BackboneRef:
    """The backbone, which the adapter fits as far as can be told without loading it."""
    ref = find_backbone(backbone)
    if adapter is not None:
        check_adapter(ref, adapter)
    return ref
