"""Commands that list what there is, with sources."""

from __future__ import annotations

from lingualift.cli.app import OwnLanguages, app, show_list


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
def languages(own: OwnLanguages = None) -> None:
    """The languages that codes can name; those of a TSV, where one is named."""
    from lingualift.languages import all_languages, own_languages

    rows = []
    for entry in all_languages() if own is None else own_languages(own):
        tag = f"as {entry.near}" if entry.near else entry.nllb or "–"
        rows.append((entry.code, entry.iso639_3 or "–", entry.name, entry.script, tag))
    show_list(("code", "ISO 639-3", "name", "script", "NLLB"), rows)
