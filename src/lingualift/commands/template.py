"""A commented experiment file to start from: every key with its default, explained by the docstring below its field."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lingualift.config import METHOD_SETTINGS, Experiment, MethodSettings
from lingualift.data.datasets import labelled_task
from lingualift.data.hubsets import HUB_SETS
from lingualift.parsing import to_yaml
from lingualift.pipeline.methods import METHODS
from lingualift.tasks import Task

_WIDTH = 118

_HEADER = """\
# An experiment of lingualift: labels in one language, raw text in every language, a task in all of them.
# Put your backbone, languages, files and length of training into it; the other values are the defaults.
# With translated rows, fill in `translated` and add translate-train, flare and x-mixup to the methods (docs/fusing.md).
"""

_METHODS = (
    "vanilla",
    "source-ft",
    "reference-only",
    {"method": "arithmetic", "mean": False},
    {"method": "adamergex", "space": "factors"},
    {"method": "adamergex", "space": "delta"},
)


def experiment_template(task: str = "mini-sentiment") -> str:
    """The YAML text of a valid experiment on a task, every key of the models in it, each with a comment.

    Args:
        task: A registered labelled task, or the path of a Python file that registers one.

    Raises:
        UserError: no such task, or one without labels.
    """
    chosen = labelled_task(task)
    start = {
        "backbone": {"name": "miniworld"},
        "languages": {"source": "en", "targets": ["fr", "sw"]},
        "tasks": [{"task": task, "data": {"files": f"data/{Path(task).stem}/{{language}}/{{split}}.jsonl"}}],
        "reference": {"data": {"files": "data/text/{language}.jsonl"}},
        "training": {"task": {"epochs": 3}, "reference": {"epochs": 1}},
        "methods": _METHODS,
        "weights": {"tune_on": "fr"},
    }
    experiment = Experiment.model_validate(start)
    notes = {"tasks": _about_rows(task, chosen, experiment), "methods": list(_about_methods())}
    return _HEADER + "\n".join(_keys(experiment, 0, set(), notes)) + "\n"


def _about_rows(name: str, task: Task, experiment: Experiment) -> list[str]:
    """What the rows of a task look like, and which of them an experiment reads."""
    languages = experiment.languages
    first = {column: f"{{{column}}}" for column in ("id", *task.columns)}
    row = json.dumps(dict.fromkeys((*task.columns, task.gold_column), "…"), ensure_ascii=False)
    lines = [f"A row of {name} ({task.source}): {row}"]
    try:
        example = task.example(first, languages.source)
    except Exception:  # a task may read more out of a column than any text has
        example = None
    if example and example.choices:
        lines.append(f"{task.gold_column} is one of {', '.join(example.choices)}.")
    if example:
        lines.append(f"The model is asked: {example.prompt!r}")
    lines.append(
        f"The methods below read train of {languages.source}, test of every language, validation of weights.tune_on."
    )
    if name in HUB_SETS and HUB_SETS[name].sets:
        lines.append(f"The hub has such rows; `lingualift data export {name}` writes them as files.")
    return lines


def _about_methods() -> Iterator[str]:
    """The keys of an entry of `methods`, each once."""
    yield "A bare name, or a mapping with keys of the method's own:"
    yield from _told(MethodSettings)
    told: set[str] = {"method"}
    for kind in dict.fromkeys(base for each in METHOD_SETTINGS.values() for base in reversed(each.__mro__)):
        own = [name for name in getattr(kind, "model_fields", {}) if name not in told]
        if own:
            yield f"{_methods_of(kind)}:"
            yield from _told(kind, own)
            told |= {*own}


def _methods_of(kind: type) -> str:
    return ", ".join(name for name, record in METHOD_SETTINGS.items() if issubclass(record, kind))


def _told(kind: type[BaseModel], names: Collection[str] | None = None) -> Iterator[str]:
    """Keys of a record that is not there, as they stand in a comment; all of them, unless some are named."""
    for name in kind.model_fields if names is None else names:
        field = kind.model_fields[name]
        default = "" if field.is_required() else f" {_flow(field.default)}"
        yield f"  {name}:{default}  # {_about(field)}"


def _keys(record: BaseModel, depth: int, told: set[type], notes: dict[str, list[str]]) -> Iterator[str]:
    """The lines of a record; a kind that was explained before shows only the keys that are set."""
    again = type(record) in told
    told.add(type(record))
    pad = "  " * depth
    for name, field in type(record).model_fields.items():
        value = getattr(record, name)
        if again and name not in record.model_fields_set:
            continue
        if depth == 0:
            yield ""
        if isinstance(value, BaseModel):
            if type(value) in told:
                yield f"{pad}{name}:  # further keys as explained above"
            else:
                yield from _comment(type(value).__doc__ or "", pad)
                yield f"{pad}{name}:"
            yield from _keys(value, depth + 1, told, notes)
        elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
            yield from _comment(type(value[0]).__doc__ or "", pad)
            yield f"{pad}{name}:"
            for note in notes[name]:
                yield f"{pad}  # {note}"
            for entry in value:
                yield from _entry(entry, depth + 1, told, notes)
        else:
            yield from _line(f"{pad}{name}: {_flow(value)}", _about(field), pad, again)
            for kind in get_args(field.annotation):
                if isinstance(kind, type) and issubclass(kind, BaseModel) and kind not in told:
                    told.add(kind)
                    yield from (f"{pad}# {line}" for line in _told(kind))


def _entry(entry: BaseModel, depth: int, told: set[type], notes: dict[str, list[str]]) -> Iterator[str]:
    """An item of a list: a method on one line, any other record key by key."""
    pad = "  " * depth
    if isinstance(entry, MethodSettings):
        given = entry.model_dump(mode="json", include=entry.model_fields_set)
        shown = given if len(given) > 1 else entry.method
        yield from _line(f"{pad}- {_flow(shown)}", METHODS[entry.method].summary, pad, False)
        return
    first, *rest = _keys(entry, depth + 1, told, notes)
    yield f"{pad}- {first.strip()}"
    yield from rest


def _line(text: str, about: str, pad: str, again: bool) -> Iterator[str]:
    if again or not about:
        yield text
    elif len(text) + 4 + len(about) <= _WIDTH:
        yield f"{text}  # {about}"
    else:
        yield from _comment(about, pad)
        yield text


def _comment(text: str, pad: str) -> Iterator[str]:
    for line in textwrap.wrap(" ".join(text.split()), _WIDTH - len(pad) - 2):
        yield f"{pad}# {line}"


def _about(field: FieldInfo) -> str:
    """A field's docstring, and its allowed words."""
    words = f" ({' | '.join(get_args(field.annotation))})" if get_origin(field.annotation) is Literal else ""
    return f"{field.description or ''}{words}"


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    plain = list(value) if isinstance(value, tuple) else value
    text = to_yaml(plain, default_flow_style=True, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")
