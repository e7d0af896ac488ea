"""Commands on adapter folders, which load no backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lingualift.cli.app import OutputFolder, Private, PushTo, app, check_push, handed_on, next_step, push_to
from lingualift.errors import UserError
from lingualift.terminal import say


@app.command()
def merge(
    output: OutputFolder,
    method: Annotated[
        str, typer.Option(help="adamergex, arithmetic, ties, dare or layer-swap.")
    ] = "adamergex",
    task: Annotated[
        Path | None, typer.Option(help="adamergex, layer-swap: adapter of the task in the source language.")
    ] = None,
    target_reference: Annotated[
        Path | None, typer.Option(help="adamergex, layer-swap: reference adapter of the target language.")
    ] = None,
    source_reference: Annotated[
        Path | None, typer.Option(help="adamergex: reference adapter of the source language.")
    ] = None,
    weight: Annotated[
        float,
        typer.Option(
            help="adamergex: factor of the references' difference; layer-swap: the target's part of outer blocks."
        ),
    ] = 1.0,
    adapter: Annotated[
        list[str] | None, typer.Option(help="Other methods: DIR=WEIGHT, once per adapter, the base first.")
    ] = None,
    mean: Annotated[
        bool, typer.Option("--mean", help="Other methods: divide the weights by their sum.")
    ] = False,
    space: Annotated[
        Literal["factors", "delta", "core"],
        typer.Option(
            help="LoRA: factors (A and B each), delta (the updates), or core (these in shared bases)."
        ),
    ] = "factors",
    modules: Annotated[str | None, typer.Option(help="Pattern of the modules to merge; others stay.")] = None,
    module_weight: Annotated[
        list[str] | None, typer.Option(help="PATTERN=FACTOR on the weight; the first that matches counts.")
    ] = None,
    layer_weight: Annotated[
        list[str] | None, typer.Option(help="BLOCK=FACTOR or FIRST-LAST=FACTOR on the weight, from 0.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="Truncate to this rank (spaces delta and core, serving).")
    ] = None,
    rule: Annotated[
        Literal["auto", "additive", "multiplicative", "unanchored"],
        typer.Option(help="adamergex: auto, additive, multiplicative or unanchored."),
    ] = "auto",
    export: Annotated[
        Literal["peft", "serving"], typer.Option(help="peft, or serving for plain LoRA of one rank.")
    ] = "peft",
    density: Annotated[float, typer.Option(help="ties, dare: fraction of elements that stay.")] = 0.5,
    seed: Annotated[int, typer.Option(help="dare: seed of the draw.")] = 0,
    cutoff: Annotated[
        float | None, typer.Option(help="Virtual tokens: cut-off of the pseudo-inverse.")
    ] = None,
    bottom: Annotated[
        int | None,
        typer.Option(help="layer-swap: first blocks from the target reference (5 of 32, at least 1)."),
    ] = None,
    top: Annotated[
        int | None, typer.Option(help="layer-swap: last blocks from the target reference (2 of 32).")
    ] = None,
    transition: Annotated[
        int | None, typer.Option(help="layer-swap: blocks averaged on each side (1 of 32).")
    ] = None,
    push_to_hub: PushTo = None,
    private: Private = False,
) -> None:
    """Merge adapter folders into a new one; no backbone is loaded."""
    settings = handed_on(locals(), "adapter", "module_weight", "layer_weight", "push_to_hub", "private")
    from lingualift.merging import merge as merge_folders

    check_push(push_to_hub, private)
    report = merge_folders(
        **settings,
        adapters=[(Path(name), value) for name, value in _pairs("--adapter", adapter)] if adapter else None,
        module_weights=dict(_pairs("--module-weight", module_weight)),
        layer_weights=dict(_pairs("--layer-weight", layer_weight)),
    )
    for line in report.lines():
        say(line)
    push_to(output, push_to_hub, private)
    next_step(f"lingualift inspect {output}")


@app.command()
def push(
    adapter: Annotated[Path, typer.Argument(help="Adapter folder that lingualift wrote.")],
    repository: Annotated[str, typer.Argument(metavar="ORG/NAME", help="Where on the hub.")],
    private: Private = False,
) -> None:
    """Publish an adapter on the hub: its tensors, configuration, model card and provenance."""
    push_to(adapter, repository, private)
    next_step(f"read the model card on the hub: it shows how {repository} is loaded")


@app.command()
def inspect(
    adapters: Annotated[list[str], typer.Argument(help="Adapter folders, or hub ids in the cache.")],
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """Show what adapters hold, how alike they are, and whether they can be merged."""
    import json

    from lingualift.adapters import inspect as inspect_folders

    found = inspect_folders(adapters)
    for line in [json.dumps(found.to_dict(), indent=2, ensure_ascii=False)] if as_json else found.lines():
        say(line)


def _pairs(option: str, given: list[str] | None) -> list[tuple[str, float]]:
    """NAME=NUMBER, split."""
    pairs = []
    for text in given or []:
        name, _, value = text.rpartition("=")
        try:
            pairs.append((name, float(value)))
        except ValueError:
            name = ""
        if not name:
            raise UserError(option, f"is {text!r}", "NAME=NUMBER", f"write {option} NAME=1.0")
    return pairs
