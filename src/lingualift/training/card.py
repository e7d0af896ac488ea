"""The model card of a trained adapter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lingualift.adapters.card import Card, shown, table
from lingualift.languages import language

_SOURCE = "https://arxiv.org/abs/2402.18913"
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
    task, code = Path(str(facts.get("task", "a task"))).stem, facts.get("language")
    where = f" in {language(code).name}" if code else ""
    settings = facts["settings"]
    recipe = [
        ("backbone", f"`{shown(facts['backbone']['name'])}`"),
        ("task", task),
        *([("language", f"{language(code).name} ({code})")] if code else []),
        *([("source side", _told(beside))] if (beside := facts.get("beside_language")) else []),
        ("training rows", facts["rows"]),
        ("optimiser steps", facts["steps"]),
        ("rows per step and device", settings["batch_size"] * settings["accumulation"]),
        ("peak learning rate", f"{settings['learning_rate']:g}, {settings['scheduler']}"),
        ("seed", facts["seed"]),
    ]
    source, use = _SOURCE, f"to be used as it is or merged into another language ([AdaMergeX]({_SOURCE}))"
    if kind in _FUSED:
        name, source = _FUSED[kind]
        use = f"beside the same rows in the source language, which it needs in use too ([{name}]({source}))"
    if encoder := config.get("source_encoder"):
        use = f"beside what the encoder of `{shown(encoder)}` makes of the same text ([FLARE-MT]({source}))"
    dataset = (facts.get("data") or {}).get("hub")
    return Card(
        title=f"{task}{where}: {kind} adapter",
        summary=f"Trained with lingualift on the frozen backbone, {use}. "
        "What it was made from is in `provenance.json`.",
        config=config,
        backbone=backbone,
        languages=(code,) if code else (),
        datasets=(dataset,) if dataset else (),
        sections=(table(("made with", ""), recipe),),
        sources=(source,),
    ).text()


def _told(beside: str) -> str:
    """What a fused adapter reads, and how it is given it."""
    name = language(beside).name
    return f"{name} ({beside}): the same rows in it, `lingualift predict --beside` or `ll.predict(beside=…)`"
