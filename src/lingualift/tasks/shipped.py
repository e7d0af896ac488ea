"""Eight rows per task and language, written for this project, with the columns of the hub."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from lingualift.errors import UserError
from lingualift.languages import language as find_language


def shipped_languages(task: str) -> tuple[str, ...]:
    """Codes of the languages that rows of a task ship in; none for a task without rows."""
    folder = resources.files("lingualift").joinpath("tasks", "rows", task)
    return (
        tuple(sorted(file.name.removesuffix(".jsonl") for file in folder.iterdir()))
        if folder.is_dir()
        else ()
    )


def shipped_rows(task: str, language: str) -> list[dict[str, Any]]:
    """The eight rows of a task in a language.

    Raises:
        UserError: none ship for this task, or not in this language.
    """
    known = {find_language(code).code: code for code in shipped_languages(task)}
    code = known.get(find_language(language).code)
    if code is None:
        expected = f"one of {', '.join(known.values())}" if known else ""
        raise UserError(f"task {task!r}", f"ships no rows in {language!r}", expected, "use data of your own")
    file = resources.files("lingualift").joinpath("tasks", "rows", task, f"{code}.jsonl")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
