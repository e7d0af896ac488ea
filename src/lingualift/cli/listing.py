"""Commands that list what there is, with sources."""

from __future__ import annotations

from lingualift.cli.app import app, show_list


@app.command()
def tasks() -> None:
    """What can be asked of a model, with sources."""
    from lingualift.tasks import TASKS, PromptedTask, TextTask
    from lingualift.tasks.prompts import prompts_of

    rows = [
        (
            name,
            "text" if isinstance(task, TextTask) else ", ".join(task.metrics),
            ", ".join(task.columns) + ("" if isinstance(task, TextTask) else f" → {task.gold_column}"),
            ", ".join(prompts_of(name)) if isinstance(task, PromptedTask) else "–",
            task.source,
        )
        for name, task in TASKS.items()
    ]
    show_list(("task", "metrics", "columns", "prompts", "source"), rows)


@app.command()
def methods() -> None:
    """How a task can be carried into another language, with sources."""
    from lingualift.pipeline.methods import METHODS

    rows = [(name, entry.paper_name, entry.summary, entry.source) for name, entry in METHODS.items()]
    show_list(("method", "in the papers", "what it does", "source"), rows)


@app.command()
def languages() -> None:
    """The languages that codes can name."""
    from lingualift.languages import all_languages

    rows = [
        (entry.code, entry.iso639_3, entry.name, entry.script, entry.nllb or "–") for entry in all_languages()
    ]
    show_list(("code", "ISO 639-3", "name", "script", "NLLB"), rows)
