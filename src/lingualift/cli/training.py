"""Commands that train adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lingualift.cli.app import (
    Answers,
    BackboneName,
    ChatTemplate,
    DataTemplate,
    Dtype,
    LanguageCode,
    OutputFolder,
    OwnLanguages,
    Private,
    PromptLanguage,
    PromptName,
    PushTo,
    Quantization,
    Revision,
    TaskName,
    app,
    backbone_of,
    check_push,
    handed_on,
    next_step,
    push_to,
    show_list,
)
from lingualift.errors import UserError
from lingualift.terminal import Terminal, say


@app.command()
def lift(
    backbone: BackboneName,
    adapter: Annotated[Path, typer.Option(help="The adapter to lift: any LoRA or (IA)³ of peft's.")],
    to: Annotated[str, typer.Option("--to", help="Language to lift into.")],
    text: Annotated[Path, typer.Option(help="Raw text in it: .txt, one text a line, or a column `text`.")],
    source_text: Annotated[Path, typer.Option(help="Raw text in the adapter's language.")],
    output: OutputFolder,
    source_language: Annotated[str, typer.Option("--from", help="The adapter's language.")] = "en",
    weight: Annotated[float, typer.Option(help="Factor of the references' difference.")] = 0.5,
    rank: Annotated[
        int | None,
        typer.Option(help="LoRA: truncate to this rank; exact, up to three times as much, if left out."),
    ] = None,
    task: Annotated[str | None, typer.Option(help="Labelled task to score before and after.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Its rows: path template with {language} and {split}.")
    ] = None,
    score_on: Annotated[
        list[str] | None, typer.Option(help="Language to score; the one lifted into if left out.")
    ] = None,
    split: Annotated[Literal["train", "validation", "test"], typer.Option(help="Split to score.")] = "test",
    steps: Annotated[int, typer.Option(help="Optimiser steps of each reference.")] = 100,
    batch_size: Annotated[int, typer.Option(help="Segments of text per step.")] = 8,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak learning rate; 2e-4 for LoRA, 5e-4 for (IA)³ if left out.")
    ] = None,
    max_length: Annotated[int, typer.Option(help="Tokens per segment of text.")] = 256,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Draw of the references, order of the texts.")
    ] = 0,
    store: Annotated[
        Path | None,
        typer.Option(help="Folder of references; lingualift-store beside the output if left out."),
    ] = None,
    revision: Revision = None,
    dtype: Dtype = "float32",
    quantization: Quantization = None,
    chat_template: ChatTemplate = False,
    precision: Annotated[str, typer.Option(help="float32, or bfloat16 autocast.")] = "float32",
    workers: Annotated[
        int | None, typer.Option(min=1, help="References trained at once; two without a GPU, if left out.")
    ] = None,
    languages: OwnLanguages = None,
    push_to_hub: PushTo = None,
    private: Private = False,
) -> None:
    """Lift an adapter you have into another language, by raw text in both."""
    settings = handed_on(locals(), "score_on", "push_to_hub", "private")
    from lingualift.cli.app import watching
    from lingualift.commands.lift import lift as lift_adapter
    from lingualift.commands.lifted import HEAD

    check_push(push_to_hub, private)
    with watching(Terminal(stderr=True)) as watch:
        lifted = lift_adapter(**settings, score_on=score_on or (), watch=watch)
    show_list(HEAD, [measure.cells() for measure in lifted.measures])
    for line in lifted.lines():
        say(line)
    push_to(output, push_to_hub, private)
    next_step(
        f"lingualift predict --backbone {backbone} --adapter {output} --task … --language {to} --input … --output …"
        + (f" --languages {languages}" if languages else "")
    )


@app.command()
def train(
    backbone: BackboneName,
    task: TaskName,
    language: LanguageCode,
    data: DataTemplate,
    output: OutputFolder,
    adapter: Annotated[
        Literal["lora", "ia3", "prefix", "bottleneck", "flare", "x-mixup"],
        typer.Option(help="Kind of adapter; the last two read rows in two languages (docs/fusing.md)."),
    ] = "lora",
    rank: Annotated[int, typer.Option(help="Rank of LoRA's factors.")] = 8,
    alpha: Annotated[int, typer.Option(help="LoRA's update is scaled by alpha / rank.")] = 16,
    modules: Annotated[
        str | None, typer.Option(help="Linear layers, separated by commas; all if left out.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Virtual tokens of a prefix.")] = 20,
    placement: Annotated[
        Literal["pfeiffer", "houlsby", "parallel"], typer.Option(help="Where a bottleneck stands.")
    ] = "pfeiffer",
    reduction: Annotated[float, typer.Option(help="The backbone's width divided by a bottleneck's.")] = 16,
    activation: Annotated[
        Literal["relu", "gelu", "silu", "tanh"], typer.Option(help="The function in a bottleneck.")
    ] = "relu",
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Passes over the data; 3 if steps are not given.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Rows per step and device.")] = 16,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate of AdamW.")] = 2e-4,
    max_length: Annotated[int, typer.Option(help="Tokens per row, or per segment of text.")] = 512,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Initialisation and order of the data.")
    ] = 0,
    start: Annotated[
        Path | None, typer.Option(help="Adapter to start from, so that factors share a basis.")
    ] = None,
    first_stage: Annotated[
        Path | None,
        typer.Option(help="flare, x-mixup: the LoRA adapter of the source language, which stays beside."),
    ] = None,
    beside: Annotated[
        str | None,
        typer.Option(help="flare, x-mixup: the same rows in the source language, a path template as --data."),
    ] = None,
    beside_language: Annotated[
        str | None, typer.Option(help="Code of the rows in --beside; the first stage's if left out.")
    ] = None,
    fusion: Annotated[
        str | None, typer.Option(help="flare: how source and target meet; add_relu if left out.")
    ] = None,
    fusion_modules: Annotated[
        str | None,
        typer.Option(help="flare: layers that fuse, separated by commas; queries and values if left out."),
    ] = None,
    source_state: Annotated[
        str | None, typer.Option(help="flare: block-input (if left out), block-output or projection-input.")
    ] = None,
    padding: Annotated[
        str | None, typer.Option(help="flare: the side that is filled up, left (if left out) or right.")
    ] = None,
    answer_source: Annotated[
        str | None, typer.Option(help="flare, decoders: what answers meet: last, none or generate.")
    ] = None,
    source_encoder: Annotated[
        str | None,
        typer.Option(help="flare: a translation model that reads the rows themselves, without --beside."),
    ] = None,
    cache_sources: Annotated[
        bool, typer.Option("--cache-sources", help="flare: keep the source's states on disk meanwhile.")
    ] = False,
    layer: Annotated[
        int | None, typer.Option(min=0, help="x-mixup: the block; the middle one if left out.")
    ] = None,
    ratio: Annotated[
        float | None, typer.Option(help="x-mixup: the target's own share; 0.5 if left out.")
    ] = None,
    words_head: Annotated[
        Path | None,
        typer.Option(help="Head for words, on raw text and an encoder without one: lingualift train-head."),
    ] = None,
    prompt: PromptName = None,
    prompt_language: PromptLanguage = None,
    answers: Answers = "ranked",
    revision: Revision = None,
    dtype: Dtype = "float32",
    quantization: Quantization = None,
    chat_template: ChatTemplate = False,
    precision: Annotated[str, typer.Option(help="float32, or bfloat16 autocast.")] = "float32",
    report_to: Annotated[
        list[str] | None, typer.Option(help="Experiment tracker: tensorboard, trackio, wandb.")
    ] = None,
    languages: OwnLanguages = None,
    push_to_hub: PushTo = None,
    private: Private = False,
) -> None:
    """Train one adapter on a task, or on raw text (`--task causal-lm`)."""
    from dataclasses import replace

    from lingualift.commands.train import adapter_of, side_of, train_once
    from lingualift.config import Training, checked, files_at
    from lingualift.data.datasets import Texts, dataset_of
    from lingualift.languages import knowing, own_languages
    from lingualift.terminal import counting

    check_push(push_to_hub, private)
    rows = files_at(data)
    named = backbone_of(backbone, revision, dtype, quantization, chat_template)
    given: dict[str, object] = {"rank": rank, "alpha": alpha, "modules": _names(modules), "tokens": tokens}
    given |= {"placement": placement, "reduction": reduction, "activation": activation}
    fusing = {
        "fusion": fusion,
        "fusion_modules": _names(fusion_modules),
        "source_state": source_state,
        "padding": padding,
        "answer_source": answer_source,
        "source_encoder": source_encoder,
        "layer": layer,
        "ratio": ratio,
    }
    made = adapter_of(adapter, named, given, fusing)
    dataset = dataset_of(task, rows, Path(), prompt, prompt_language, answers == "generated")
    with knowing(own_languages(languages)):
        side = side_of(beside, beside_language, adapter, first_stage, start)
    if side is not None and isinstance(dataset, Texts):
        raise UserError("--beside", f"is given, and {task} reads text alone", mend="leave it out")
    source = dataset if isinstance(dataset, Texts) else replace(dataset, beside=side)
    settings = {"steps": steps, "epochs": epochs if epochs or steps else 3, "batch_size": batch_size}
    more = {"learning_rate": learning_rate, "max_length": max_length, "precision": precision}
    with counting(Terminal(stderr=True), f"train {task} in {language}") as progress:
        train_once(
            named,
            source,
            language,
            made,
            checked(Training, **settings, **more),
            seed=seed,
            start=start,
            first_stage=first_stage,
            cache_sources=cache_sources,
            output=output,
            progress=progress,
            report_to=report_to or (),
            words=words_head,
            languages=languages,
        )
    push_to(output, push_to_hub, private)
    asked = "--data …" if side is None else "--data … --beside …"
    next_step(f"lingualift evaluate --backbone {backbone} --adapter {output} --task … --language … {asked}")


def _names(text: str | None) -> tuple[str, ...] | None:
    """Names that are separated by commas."""
    return tuple(text.split(",")) if text else None


@app.command()
def train_head(
    backbone: BackboneName,
    language: Annotated[
        list[str], typer.Option("--language", help="Language of a reference to come; once for each.")
    ],
    data: DataTemplate,
    output: OutputFolder,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps for each language.")] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Passes over the data; 3 if steps are not given.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Segments of text per step and device.")] = 16,
    max_length: Annotated[int, typer.Option(help="Tokens per segment.")] = 512,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Draw of the head, order of the text.")] = 0,
    revision: Revision = None,
    dtype: Dtype = "float32",
    quantization: Quantization = None,
    precision: Annotated[str, typer.Option(help="float32, or bfloat16 autocast.")] = "float32",
    languages: OwnLanguages = None,
) -> None:
    """Train the head for words that an encoder lacks (e5, LaBSE), on raw text of all languages: for references."""
    from lingualift.commands.train import train_head as train_one
    from lingualift.config import Training, checked, files_at
    from lingualift.terminal import counting

    settings = {"steps": steps, "epochs": epochs if epochs or steps else 3, "batch_size": batch_size}
    with counting(Terminal(stderr=True), f"train a head for words in {', '.join(language)}") as progress:
        train_one(
            backbone_of(backbone, revision, dtype, quantization, False),
            files_at(data),
            language,
            checked(Training, **settings, max_length=max_length, precision=precision),
            seed=seed,
            output=output,
            own=languages,
            progress=progress,
        )
    next_step(
        f"lingualift train --backbone {backbone} --task masked-lm --words-head {output} --language … --data …"
    )
