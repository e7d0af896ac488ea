"""The model card of a trained adapter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lingualift.adapters.card import Card, as_code, as_word, shown, table
from lingualift.languages import language

_SOURCE = "https://arxiv.org/abs/2402.18913"
_LACKS = "the backbone's checkpoint has none"
_FUSED = {
    "flare": ("FLARE", "https://arxiv.org/abs/2501.06892"),
    "x-mixup": ("X-Mixup", "https://arxiv.org/abs/2205.04182"),
}


def trained_card(config: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """The card of an adapter from its configuration and its provenance."""
    backbone = {"name": config.get("base_model_name_or_path"), "revision": config.get("revision")}
    kind = str(config["peft_type"]).lower()
    if facts["kind"] == "initialisation":
        title = f"{kind} adapter before training"
        summary = "A recorded start for adapters that are to be merged."
        if kind in _FUSED:
            summary = (
                "A recorded start; the first stage, trained on the source language, is in `first-stage/`."
            )
        return Card(title, summary, config, backbone).text()
    task, spoken = Path(str(facts.get("task", "a task"))).stem, facts.get("language")
    where = f" in {language(spoken).name}" if spoken else ""
    settings = facts["settings"]
    recipe = [
        ("backbone", as_code(shown(facts["backbone"]["name"]))),
        ("task", task),
        *([("language", f"{language(spoken).name} ({spoken})")] if spoken else []),
        *([("source side", _told(beside))] if (beside := facts.get("beside_language")) else []),
        ("training rows", facts["rows"]),
        ("optimiser steps", facts["steps"]),
        ("rows per step and device", settings["batch_size"] * settings["accumulation"]),
        ("peak learning rate", f"{settings['learning_rate']:g}, {settings['scheduler']}"),
        ("seed", facts["seed"]),
        *_made_here(facts),
    ]
    source, use = _SOURCE, f"to be used as it is or merged into another language ([AdaMergeX]({_SOURCE}))"
    if kind in _FUSED:
        name, source = _FUSED[kind]
        use = f"beside the same rows in the source language, which it needs in use too ([{name}]({source}))"
    if encoder := config.get("source_encoder"):
        use = f"beside what the encoder of {as_code(shown(encoder))} makes of the same text ([FLARE-MT]({source}))"
    dataset = (facts.get("data") or {}).get("hub")
    return Card(
        title=f"{as_word(task)}{where}: {kind} adapter",
        summary=f"Trained with lingualift on the frozen backbone, {use}. "
        "What it was made from is in `provenance.json`.",
        config=config,
        backbone=backbone,
        languages=(spoken,) if spoken else (),
        datasets=(dataset,) if dataset else (),
        sections=(table(("made with", ""), recipe),),
        sources=(source,),
    ).text()


def _made_here(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Lines of the recipe about parts that the backbone's checkpoint lacks."""
    lines = []
    if head := facts.get("words_head"):
        lines.append(
            (
                "head for words",
                f"trained by lingualift on {', '.join(head['languages'])}, then frozen: {_LACKS}",
            )
        )
    if "pooler" in facts.get("drawn", ()):
        lines.append(("pooling layer", f"drawn from the seed and trained with the head: {_LACKS}"))
    return lines


def words_card(facts: Mapping[str, Any]) -> str:
    """The card of a trained head for words, from its provenance."""
    settings, names = facts["settings"], [language(code).name for code in facts["languages"]]
    recipe = [
        ("backbone", as_code(shown(facts["backbone"]["name"]))),
        ("languages", ", ".join(names)),
        ("texts", facts["rows"]),
        ("optimiser steps", facts["steps"]),
        ("segments per step and device", settings["batch_size"] * settings["accumulation"]),
        ("peak learning rate", f"{settings['learning_rate']:g}, {settings['scheduler']}"),
        ("seed", facts["seed"]),
    ]
    about = (
        "For training reference adapters by masked words on a backbone whose checkpoint has no head for that. It is a "
        "small transform before the backbone's own embeddings, trained on the frozen backbone, and frozen itself while "
        "references are trained. It is no adapter, and no part of one: neither a merge nor a task reads it."
    )
    return "\n\n".join(["# Head for words", about, table(("made with", ""), recipe)]) + "\n"


def _told(beside: str) -> str:
    """What a fused adapter reads, and how it is given it."""
    name = language(beside).name
    return f"{name} ({beside}): the same rows in it, `lingualift predict --beside` or `ll.predict(beside=…)`"
