"""Every key of an experiment, as pages show it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lingualift.runs.folder import RunFolder


def recipe(run: RunFolder) -> list[tuple[str, list[tuple[str, str]]]]:
    """Every key of the experiment, defaults and all: section -> key and value."""
    asked = run.experiment.model_dump(mode="json", exclude={"published"})
    merging = {row["method"] for row in run.rows if row["weight"] is not None}
    asked["methods"] = [
        one if one["method"] in merging else {"method": one["method"]} for one in asked["methods"]
    ]
    sections: dict[str, list[tuple[str, str]]] = {}
    for path, value in leaves(asked):
        section = ".".join(path[:2]) if path[0] == "training" else path[0] if len(path) > 1 else "run"
        key = ".".join(path[2:] if path[0] == "training" else path[1:] or path)
        sections.setdefault(section, []).append((key, shown_value(value)))
    return list(sections.items())


def shown_value(value: Any) -> str:
    """A plain value as pages show it."""
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Paths and values, entries of a list counted from 1; a list of plain values is one value."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, (*path, str(key)))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for number, inner in enumerate(value, 1):
            yield from leaves(inner, (*path, str(number)))
    elif isinstance(value, list | dict):
        yield path, ", ".join(map(str, value)) or None
    else:
        yield path, value
