"""The command line. Each command reads its options, calls one function, shows what came out and what to do next."""

from __future__ import annotations

import errno
import os
import re
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lingualift.backbone.processes import claim
from lingualift.errors import UserError
from lingualift.terminal import STDOUT, Terminal, close_stdout, open_streams, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lingualift.config import Backbone
    from lingualift.data.source import Source
    from lingualift.pipeline import Run

app = typer.Typer(
    add_completion=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Lift a task into languages that have no labels for it.",
    epilog="Start with `lingualift demo`.",
)

OutputFolder = Annotated[Path, typer.Option("--output", "-o", help="Folder to write; it must not exist.")]
BackboneName = Annotated[str, typer.Option("--backbone", help="Hub id, folder, or `miniworld`.")]
Revision = Annotated[str | None, typer.Option(help="Commit of the backbone on the hub.")]
TaskName = Annotated[str, typer.Option("--task", help="A task of `lingualift tasks`, or a Python file.")]
PromptName = Annotated[
    str | None, typer.Option("--prompt", help="A prompt of the task; its first if left out.")
]
PromptLanguage = Annotated[
    str | None,
    typer.Option("--prompt-language", help="Code, or `target`: that of the rows; English if left out."),
]
Answers = Annotated[
    Literal["ranked", "generated"],
    typer.Option(
        "--answers", help="Classes by the likelihood of their words, or generated as in the papers."
    ),
]
Dtype = Annotated[str, typer.Option(help="Number format of the backbone.")]
Quantization = Annotated[
    str | None, typer.Option(help="nf4: round the backbone to 4 bits (needs bitsandbytes).")
]
ChatTemplate = Annotated[
    bool, typer.Option("--chat-template", help="Ask by the chat template of the backbone's tokenizer.")
]
LanguageCode = Annotated[str, typer.Option("--language", help="BCP-47 or ISO 639-3 code.")]
DataTemplate = Annotated[
    str,
    typer.Option(
        "--data",
        help="File or path template with {language} and {split}; .jsonl[.gz] .csv .parquet .txt[.gz].",
    ),
]
BesideLanguage = Annotated[
    str | None,
    typer.Option(
        "--beside-language",
        help="Code of the rows in --beside; what the adapter was trained with if left out.",
    ),
]
PushTo = Annotated[
    str | None, typer.Option("--push-to-hub", metavar="ORG/NAME", help="Publish the result on the hub.")
]
Private = Annotated[bool, typer.Option("--private", help="Publish it as a private repository.")]

StoreFolder = Annotated[
    Path | None,
    typer.Option(
        envvar="LINGUALIFT_STORE",
        help="Folder of finished steps, shared by runs; `store` beside the run folder when left out.",
    ),
]


store_app = typer.Typer(
    no_args_is_help=True, help="Look after finished steps: what there is, whether it is whole, what can go."
)
app.add_typer(store_app, name="store")


def main() -> None:
    """Run the command line: 0 done, 2 the user can mend it (one message on stderr), 1 our bug.

    141 where nobody reads its output any more, as of a program that a closed pipe ends.
    """
    warnings.filterwarnings("ignore", category=FutureWarning)  # of the libraries, to their own users
    claim()
    open_streams()
    try:
        _check_arguments()
        _run()
    except UserError as error:
        say(f"lingualift: {error.on_command_line()}", err=True)
        if error.where == _MEMORY:
            os._exit(2)  # libraries that are loaded in part can hang where Python ends
        sys.exit(2)


def _check_arguments() -> None:
    """Refuse what is no UTF-8 before any work: it could not be written into a result."""
    for argument in sys.argv[1:]:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"argument {argument!r}", "is not UTF-8", mend="rename the file, or type it again"
            ) from None


def _run() -> None:
    """Run the command, to the last word that it prints.

    Raises:
        UserError: its own, or what the machine refused where no code that is nearer expected it.
    """
    try:
        try:
            app()
        except SystemExit as end:
            if isinstance(end.__context__, BrokenPipeError):  # a 1 of Typer's
                raise end.__context__ from None
            raise
    except BrokenPipeError:
        close_stdout()
        sys.exit(141)
    except OSError as error:
        if error.filename == STDOUT:
            close_stdout()
        raise (_refused(error) or error) from error
    except Exception as error:
        raise (_refused(error) or error) from error


def _refused(error: Exception) -> UserError | None:
    """What the machine refused, memory or a file; None for anything else."""
    if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
        mend = "free some, raise its limit (`ulimit -v`), or lower the batch size"
        return UserError(_MEMORY, "ran out", mend=mend)
    if isinstance(error, OSError) and error.filename is not None:
        mend = _MENDS.get(error.errno or 0, "check the path")
        return UserError(os.fsdecode(error.filename), f"cannot be used ({error.strerror})", mend=mend)
    return None


_MEMORY = "memory"
_NO_MEMORY = re.compile(
    "(can't|cannot) allocate memory|out of memory|failed to map segment|can't start new thread", re.IGNORECASE
)
_MENDS = {
    errno.EACCES: "change its permissions, or name another",
    errno.EPERM: "change its permissions, or name another",
    errno.EROFS: "name one on a disk that can be written",
    errno.ENOSPC: "free some space, or name another",
    errno.EDQUOT: "free some space, or name another",
    errno.EMFILE: "raise the limit on open files (`ulimit -n`)",
    errno.ENAMETOOLONG: "choose a shorter name",
}


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path(
        "lingualift-demo"
    ),
    seeds: Annotated[int, typer.Option(help="Seeds of adapters.")] = 3,
) -> None:
    """Everything on bundled data, offline, in a few minutes."""
    from lingualift.commands.demo import SHOWN, run_demo
    from lingualift.pipeline.progress import watching

    with watching(Terminal(stderr=True)) as watch:
        finished = run_demo(output, seeds=seeds, watch=watch)
    _show(finished)
    Terminal().print(f"\n{SHOWN}")
    _next(f"open {finished.page}, then edit {output / 'demo.yaml'} into an experiment of your own")


@app.command()
def run(
    experiment: Annotated[Path, typer.Argument(help="The experiment file.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Run folder; runs/<file name> when left out.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. seeds=[0,1].")
    ] = None,
    store: StoreFolder = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the results of another experiment in the run folder.")
    ] = False,
    tiny: Annotated[
        bool,
        typer.Option(
            "--tiny",
            help="Prove the file on a random small backbone of the same class and a few rows; store and results in "
            "runs/<file name>-tiny.",
        ),
    ] = False,
) -> None:
    """Run an experiment; steps that are finished already are not done again."""
    from lingualift.pipeline import run as run_experiment
    from lingualift.pipeline.progress import watching

    with watching(Terminal(stderr=True)) as watch:
        finished = run_experiment(
            experiment,
            output=output,
            overrides=overrides,
            store=store,
            replace=replace,
            tiny=tiny,
            watch=watch,
        )
    _show(finished)
    if tiny:
        for note in finished.notes:
            say(f"tiny: {note}")
        _next(f"lingualift check {experiment}")
        return
    _next(f"open {finished.page}; the lifted adapters are in {finished.folder / 'adapters'}")


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="The run folder.")]) -> None:
    """Write report.html and table.md of a finished run anew, from its folder alone."""
    from lingualift.report import write_report

    _next(f"open {write_report(folder)}")


@app.command()
def init(task: TaskName = "mini-sentiment") -> None:
    """Write a commented experiment file to standard output: `lingualift init --task T > experiment.yaml`."""
    from lingualift.commands.template import experiment_template

    say(experiment_template(task), end="")
    _next("put your backbone, languages and files into it, then lingualift check experiment.yaml")


@app.command()
def check(
    experiment: Annotated[Path, typer.Argument(help="The experiment file.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key.")
    ] = None,
    rows: Annotated[int, typer.Option(help="Rows that the backbone reads, per language and task.")] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """Look before the money is spent: spelling, labels, overlap with test items, headroom; trains nothing."""
    import json

    from lingualift.checking import check as look_at
    from lingualift.checking.terminal import show
    from lingualift.pipeline.progress import counting

    with counting(Terminal(stderr=True), f"check {experiment}") as progress:
        look = look_at(experiment, overrides=overrides, rows=rows, progress=progress)
    if as_json:
        say(json.dumps(look.to_dict(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        show(look, Terminal())
    if look.errors:
        first, more = look.errors[0], len(look.errors) - 1
        found = f"{first.where}: {first.found}" + (f" (and {more} more errors above)" if more else "")
        raise UserError(experiment, found, first.expected, first.mend)
    _next(f"lingualift plan {experiment}")


@app.command()
def plan(
    experiment: Annotated[Path, typer.Argument(help="The experiment file.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Run folder to plan for.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key.")
    ] = None,
    store: StoreFolder = None,
    calibrate: Annotated[
        bool, typer.Option(help="Measure a few steps, to tell times; loads the backbone.")
    ] = True,
    machine: Annotated[
        str | None,
        typer.Option("--for", metavar="GPU", help="Estimate for a GPU that is not here, e.g. h100 or l4."),
    ] = None,
) -> None:
    """Check an experiment and its data, list its steps and what they will cost; trains nothing."""
    from lingualift.pipeline import plan_of
    from lingualift.pipeline.cost import check_fits, estimate
    from lingualift.pipeline.machines import MACHINES
    from lingualift.pipeline.progress import saying
    from lingualift.report.terminal import show_plan

    gpu = MACHINES[machine] if machine else None
    planned, steps = plan_of(experiment, output=output, overrides=overrides, store=store)
    with saying(Terminal(stderr=True)) as now:
        found = estimate(
            planned,
            steps,
            calibrate=calibrate,
            machine=gpu,
            tell=lambda step: now(f"measuring: {step.label()}"),
        )
    show_plan(planned.steps, found, Terminal())
    check_fits(found)
    _next(f"lingualift run {experiment}")


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
    push_to_hub: PushTo = None,
    private: Private = False,
) -> None:
    """Lift an adapter you have into another language, by raw text in both."""
    from lingualift.commands.lift import HEAD
    from lingualift.commands.lift import lift as lift_adapter
    from lingualift.pipeline.progress import watching

    _check_push(push_to_hub, private)
    with watching(Terminal(stderr=True)) as watch:
        lifted = lift_adapter(
            backbone=backbone,
            adapter=adapter,
            to=to,
            text=text,
            source_text=source_text,
            output=output,
            source_language=source_language,
            weight=weight,
            rank=rank,
            task=task,
            data=data,
            score_on=score_on or (),
            split=split,
            steps=steps,
            learning_rate=learning_rate,
            batch_size=batch_size,
            max_length=max_length,
            seed=seed,
            store=store,
            revision=revision,
            dtype=dtype,
            quantization=quantization,
            chat_template=chat_template,
            precision=precision,
            workers=workers,
            watch=watch,
        )
    _list(HEAD, [measure.cells() for measure in lifted.measures])
    for line in lifted.lines():
        say(line)
    _push(output, push_to_hub, private)
    _next(
        f"lingualift predict --backbone {backbone} --adapter {output} --task … --language {to} --input … --output …"
    )


@app.command()
def train(
    backbone: BackboneName,
    task: TaskName,
    language: LanguageCode,
    data: DataTemplate,
    output: OutputFolder,
    adapter: Annotated[Literal["lora", "ia3", "prefix"], typer.Option(help="Kind of adapter.")] = "lora",
    rank: Annotated[int, typer.Option(help="Rank of LoRA's factors.")] = 8,
    alpha: Annotated[int, typer.Option(help="LoRA's update is scaled by alpha / rank.")] = 16,
    modules: Annotated[
        str | None, typer.Option(help="Linear layers, separated by commas; all if left out.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Virtual tokens of a prefix.")] = 20,
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
    push_to_hub: PushTo = None,
    private: Private = False,
) -> None:
    """Train one adapter on a task, or on raw text (`--task causal-lm`)."""
    from lingualift.commands.train import train_once
    from lingualift.config import Adapter, Training, checked
    from lingualift.pipeline.progress import counting

    _check_push(push_to_hub, private)
    names = tuple(modules.split(",")) if modules else None
    settings = {"steps": steps, "epochs": epochs if epochs or steps else 3, "batch_size": batch_size}
    more = {"learning_rate": learning_rate, "max_length": max_length, "precision": precision}
    with counting(Terminal(stderr=True), f"train {task} in {language}") as progress:
        train_once(
            _backbone(backbone, revision, dtype, quantization, chat_template),
            _source(task, data, prompt, prompt_language, answers),
            language,
            checked(Adapter, type=adapter, rank=rank, alpha=alpha, modules=names, tokens=tokens),
            checked(Training, **settings, **more),
            seed=seed,
            start=start,
            output=output,
            progress=progress,
            report_to=report_to or (),
            words=words_head,
        )
    _push(output, push_to_hub, private)
    _next(f"lingualift evaluate --backbone {backbone} --adapter {output} --task … --language … --data …")


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
) -> None:
    """Train the head for words that an encoder lacks (e5, LaBSE), on raw text of all languages: for references."""
    from lingualift.commands.train import train_head as train_one
    from lingualift.config import Data, Training, checked
    from lingualift.pipeline.progress import counting

    settings = {"steps": steps, "epochs": epochs if epochs or steps else 3, "batch_size": batch_size}
    with counting(Terminal(stderr=True), f"train a head for words in {', '.join(language)}") as progress:
        train_one(
            _backbone(backbone, revision, dtype, quantization, False),
            checked(Data, files=data),
            language,
            checked(Training, **settings, max_length=max_length, precision=precision),
            seed=seed,
            output=output,
            progress=progress,
        )
    _next(
        f"lingualift train --backbone {backbone} --task masked-lm --words-head {output} --language … --data …"
    )


@app.command()
def evaluate(
    backbone: BackboneName,
    task: TaskName,
    language: LanguageCode,
    data: DataTemplate,
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON file to write.")],
    adapter: Annotated[
        Path | None, typer.Option(help="Adapter folder; the plain backbone if left out.")
    ] = None,
    beside: Annotated[
        str | None,
        typer.Option(
            help="The same rows in the source language, for an adapter that reads them too (docs/fusing.md): as "
            "--data, {language} is that of the rows."
        ),
    ] = None,
    beside_language: BesideLanguage = None,
    split: Annotated[Literal["train", "validation", "test"], typer.Option(help="Split to score.")] = "test",
    length_normalization: Annotated[
        Literal["none", "tokens", "characters"], typer.Option(help="How ranked answers are compared.")
    ] = "none",
    batch_size: Annotated[int, typer.Option(help="Sequences per forward pass, at most.")] = 64,
    max_length: Annotated[int, typer.Option(help="Tokens of prompt and answer.")] = 512,
    unicode_normalization: Annotated[
        Literal["none", "NFC"],
        typer.Option(help="Compare written answers with the gold as they are, or both in NFC."),
    ] = "none",
    prompt: PromptName = None,
    prompt_language: PromptLanguage = None,
    answers: Answers = "ranked",
    revision: Revision = None,
    dtype: Dtype = "float32",
    quantization: Quantization = None,
    chat_template: ChatTemplate = False,
) -> None:
    """Score a backbone, or an adapter on it; predictions go beside the JSON file, as .predictions.jsonl."""
    from lingualift.attachment import check_adapter, source_language
    from lingualift.backbone.loading import find_backbone
    from lingualift.config import Scoring, checked
    from lingualift.data.output import check_output, growing, json_line
    from lingualift.evaluation.runner import evaluate as score
    from lingualift.pipeline.progress import counting
    from lingualift.provenance import write_json, write_jsonl

    check_output(output, "file")
    predictions = output.with_suffix(".predictions.jsonl")
    check_output(predictions, "file")
    scoring = checked(
        Scoring,
        length_normalization=length_normalization,
        batch_size=batch_size,
        max_length=max_length,
        unicode_normalization=unicode_normalization,
    )
    spoken = source_language(adapter, beside, beside_language)
    side = (beside, spoken) if beside is not None and spoken is not None else None
    chosen, examples = _source(task, data, prompt, prompt_language, answers, side).labelled(language, split)
    for example in examples:
        json_line([example.id, example.gold], f"the row with id {example.id!r}")
    ref = find_backbone(_backbone(backbone, revision, dtype, quantization, chat_template))
    if adapter is not None:
        check_adapter(ref, adapter)
    about = {
        "task": task,
        "language": language,
        "split": split,
        "backbone": backbone,
        "quantization": quantization,
        "chat_template": chat_template,
        "adapter": str(adapter or ""),
        "beside": beside,
        "beside_language": spoken,
    }
    bar = counting(Terminal(stderr=True), f"evaluate {task} in {language}")
    with growing(predictions) as keep, bar as progress:
        found = score(
            ref,
            adapter,
            chosen,
            examples,
            scoring,
            progress,
            lambda _, one: keep(json_line(one.to_dict(), f"the answer to {one.id!r}")),
        )
        write_jsonl(predictions, found.rows())
        write_json(output, {**about, **found.summary()})
    for metric, values in found.scores.items():
        error = "" if values["stderr"] is None else f" ± {values['stderr']:.1f}"
        Terminal().print(
            f"{metric} {values['score']:.1f}{error} (n {len(examples)}, chance {values['chance']:.1f})"
        )
    _next(f"read {predictions}")


@app.command()
def predict(
    backbone: BackboneName,
    task: TaskName,
    language: LanguageCode,
    rows: Annotated[Path, typer.Option("--input", help="Rows, labelled or not: .jsonl[.gz] .csv .parquet.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON Lines file to write.")],
    adapter: Annotated[
        Path | None, typer.Option(help="Adapter folder; the plain backbone if left out.")
    ] = None,
    beside: Annotated[
        Path | None,
        typer.Option(
            help="The same rows in the source language, for an adapter that reads them too (docs/fusing.md)."
        ),
    ] = None,
    beside_language: BesideLanguage = None,
    length_normalization: Annotated[
        Literal["none", "tokens", "characters"], typer.Option(help="How ranked answers are compared.")
    ] = "none",
    batch_size: Annotated[int, typer.Option(help="Sequences per forward pass, at most.")] = 64,
    max_length: Annotated[int, typer.Option(help="Tokens of prompt and answer.")] = 512,
    prompt: PromptName = None,
    prompt_language: PromptLanguage = None,
    answers: Answers = "ranked",
    revision: Revision = None,
    dtype: Dtype = "float32",
    quantization: Quantization = None,
    chat_template: ChatTemplate = False,
) -> None:
    """Answer rows that have no labels; their columns are kept beside the predictions."""
    from lingualift.commands.predict import predict_rows
    from lingualift.config import Scoring, checked
    from lingualift.data.output import growing, json_line
    from lingualift.pipeline.progress import counting
    from lingualift.provenance import write_jsonl

    scoring = checked(
        Scoring, length_normalization=length_normalization, batch_size=batch_size, max_length=max_length
    )
    chosen = _backbone(backbone, revision, dtype, quantization, chat_template)
    bar = counting(Terminal(stderr=True), f"predict {task} in {language}")
    with growing(output) as keep, bar as progress:
        found = predict_rows(
            chosen,
            adapter,
            task,
            language,
            rows,
            scoring,
            prompt,
            prompt_language,
            answers,
            beside,
            beside_language,
            progress,
            lambda _, record: keep(json_line(record, f"the answer to {record['id']!r}")),
        )
        write_jsonl(output, found.records)
    Terminal().print(
        f"{len(found.records)} rows answered, {found.malformed} of them malformed (prediction null); "
        f"{found.truncated} prompts cut to {max_length} tokens"
    )
    _next(f"read {output}, for example with pandas.read_json({str(output)!r}, lines=True)")


@app.command()
def translate(
    model: Annotated[str, typer.Option("--model", help="NLLB, M2M100 or mBART: hub id or folder.")],
    source: Annotated[str, typer.Option("--source", help="Language of the rows.")],
    target: Annotated[str, typer.Option("--target", help="Language to translate into.")],
    task: TaskName,
    data: DataTemplate,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder; a folder named as the target language is made in it."),
    ],
    split: Annotated[
        list[str] | None,
        typer.Option("--split", help="train, validation, test; those that there are if left out."),
    ] = None,
    beams: Annotated[int, typer.Option(help="Beams of the search; 1 is greedy.")] = 4,
    max_length: Annotated[
        int, typer.Option(help="Tokens of a sentence; a longer one is cut in parts.")
    ] = 256,
    batch_size: Annotated[int, typer.Option(help="Sentences per batch.")] = 16,
    cache: Annotated[
        Path | None,
        typer.Option(help="File of translated sentences; lingualift-translations.sqlite beside the output."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Commit of the model on the hub.")] = None,
    dtype: Annotated[str, typer.Option(help="Number format of the model.")] = "float32",
) -> None:
    """Translate the rows of a task; answers that are spans are found again in training data."""
    from lingualift.config import Translation, checked
    from lingualift.pipeline.progress import counting
    from lingualift.translation import translate as translate_rows

    settings = checked(Translation, beams=beams, max_length=max_length, batch_size=batch_size)
    with counting(Terminal(stderr=True), f"translate {task} from {source} into {target}") as progress:
        done = translate_rows(
            model=_backbone(model, revision, dtype, None, False),
            source=source,
            target=target,
            task=task,
            data=data,
            output=output,
            splits=split,
            settings=settings,
            cache=cache,
            progress=progress,
        )
    for line in done.lines():
        say(line)
    _next(f"read {done.folder / 'provenance.json'}; the rows are --data {done.files!r}")


@app.command()
def merge(
    output: OutputFolder,
    method: Annotated[str, typer.Option(help="adamergex, arithmetic, ties or dare.")] = "adamergex",
    task: Annotated[
        Path | None, typer.Option(help="adamergex: adapter of the task in the source language.")
    ] = None,
    target_reference: Annotated[
        Path | None, typer.Option(help="adamergex: reference adapter of the target language.")
    ] = None,
    source_reference: Annotated[
        Path | None, typer.Option(help="adamergex: reference adapter of the source language.")
    ] = None,
    weight: Annotated[
        float, typer.Option(help="adamergex: factor of the references' difference; lift takes 0.5.")
    ] = 1.0,
    adapter: Annotated[
        list[str] | None, typer.Option(help="Other methods: DIR=WEIGHT, once per adapter, the base first.")
    ] = None,
    mean: Annotated[
        bool, typer.Option("--mean", help="Other methods: divide the weights by their sum.")
    ] = False,
    space: Annotated[
        Literal["factors", "delta"],
        typer.Option(help="LoRA: factors (A and B each), or delta (the updates)."),
    ] = "factors",
    modules: Annotated[str | None, typer.Option(help="Pattern of the modules to merge; others stay.")] = None,
    module_weight: Annotated[
        list[str] | None, typer.Option(help="PATTERN=FACTOR on the weight; the first that matches counts.")
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Truncate to this rank (space delta, serving).")] = None,
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
    push_to_hub: PushTo = None,
    private: Private = False,
) -> None:
    """Merge adapter folders into a new one; no backbone is loaded."""
    from lingualift.merging import merge as merge_folders

    _check_push(push_to_hub, private)
    report = merge_folders(
        method=method,
        output=output,
        task=task,
        target_reference=target_reference,
        source_reference=source_reference,
        weight=weight,
        adapters=[(Path(name), value) for name, value in _pairs("--adapter", adapter)] if adapter else None,
        mean=mean,
        space=space,
        modules=modules,
        module_weights=dict(_pairs("--module-weight", module_weight)),
        rank=rank,
        rule=rule,
        export=export,
        density=density,
        seed=seed,
        cutoff=cutoff,
    )
    for line in report.lines():
        say(line)
    _push(output, push_to_hub, private)
    _next(f"lingualift inspect {output}")


@app.command()
def push(
    adapter: Annotated[Path, typer.Argument(help="Adapter folder that lingualift wrote.")],
    repository: Annotated[str, typer.Argument(metavar="ORG/NAME", help="Where on the hub.")],
    private: Private = False,
) -> None:
    """Publish an adapter on the hub: its tensors, configuration, model card and provenance."""
    _push(adapter, repository, private)
    _next(f"read the model card on the hub: it shows how {repository} is loaded")


@app.command()
def inspect(
    adapters: Annotated[list[str], typer.Argument(help="Adapter folders, or hub ids in the cache.")],
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """Show what adapters hold, how alike they are, and whether they can be merged."""
    import json

    from lingualift.adapters import inspect as look_into

    found = look_into(adapters)
    for line in [json.dumps(found.to_dict(), indent=2, ensure_ascii=False)] if as_json else found.lines():
        say(line)


StoreArgument = Annotated[
    Path, typer.Argument(envvar="LINGUALIFT_STORE", help="The store: `store` beside a run folder.")
]


@store_app.command("list")
def store_list(folder: StoreArgument = Path("runs/store")) -> None:
    """Show every finished step, and what unfinished ones left."""
    from lingualift.pipeline.store import Store
    from lingualift.report.terminal import show_store

    show_store(list(Store(folder).entries()), Terminal())
    _next(f"lingualift store prune {folder} --dry-run")


@store_app.command("verify")
def store_verify(folder: StoreArgument = Path("runs/store")) -> None:
    """Compare every file with the hash that was recorded when it was written; exit code 2 if one differs."""
    from lingualift.pipeline.store import Store

    entries = list(Store(folder).entries())
    mends = {
        "altered": f"run the experiment again: they are made anew; or lingualift store prune {folder}",
        "unreadable": f"let their owner run: chmod -R g+rX {folder}",
    }
    for state, mend in mends.items():
        those = [entry for entry in entries if entry.state == state]
        for entry in those:
            say(f"{entry.path}: {entry.problem}")
        if those:
            raise UserError(folder, f"{len(those)} of {len(entries)} entries are {state}", "none", mend)
    say(f"{len(entries)} entries, all as they were written.")


@store_app.command("prune")
def store_prune(
    folder: StoreArgument = Path("runs/store"),
    keep: Annotated[
        list[Path] | None,
        typer.Option(help="Experiment file whose steps stay; all that no such file needs goes. Repeatable."),
    ] = None,
    unused_for: Annotated[
        float | None, typer.Option(help="Days: what no run needed for so long goes, checkpoints too.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would go.")] = False,
) -> None:
    """Remove what no run will read again: scratch of killed runs, altered steps, steps of older versions."""
    from lingualift.pipeline import plan_of
    from lingualift.pipeline.store import Store
    from lingualift.pipeline.words import readable

    needed = None
    if keep:
        plans = [plan_of(path, store=folder)[0] for path in keep]
        needed = frozenset(step.key[:20] for plan in plans for step in plan.steps)
    seconds = None if unused_for is None else unused_for * 86400
    done = Store(folder).prune(needed=needed, unused_for=seconds, dry_run=dry_run)
    for entry, why in done.gone:
        say(f"{entry.path}  {readable(entry.size)}  {why}")
    verb = "would free" if dry_run else "freed"
    say(
        f"{verb} {readable(sum(entry.size for entry, _ in done.gone))}; {done.kept} entries stay"
        + (f", {done.needed} of them because a run that is going on needs them." if done.needed else ".")
    )


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
    _list(("task", "metrics", "columns", "prompts", "source"), rows)


@app.command()
def methods() -> None:
    """How a task can be carried into another language, with sources."""
    from lingualift.pipeline.methods import METHODS

    rows = [(name, entry.paper_name, entry.summary, entry.source) for name, entry in METHODS.items()]
    _list(("method", "in the papers", "what it does", "source"), rows)


@app.command()
def languages() -> None:
    """The languages that codes can name."""
    from lingualift.languages import all_languages

    rows = [
        (entry.code, entry.iso639_3, entry.name, entry.script, entry.nllb or "–") for entry in all_languages()
    ]
    _list(("code", "ISO 639-3", "name", "script", "NLLB"), rows)


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


def _check_push(repository: str | None, private: bool) -> None:
    """Before any work: what can be told of a repository without the hub."""
    if repository is not None:
        from lingualift.commands.push import check_repository

        check_repository(repository)
    elif private:
        raise UserError("--private", "is given without --push-to-hub", mend="name --push-to-hub ORG/NAME")


def _push(folder: Path, repository: str | None, private: bool) -> None:
    """Publish a finished folder, if that was asked for; under `accelerate launch` only the first process does."""
    if repository is not None and os.environ.get("RANK", "0") == "0":
        from lingualift.commands.push import push as publish

        say(f"published at {publish(folder, repository, private=private)}")


def _backbone(
    name: str, revision: str | None, dtype: str, quantization: str | None, chat_template: bool
) -> Backbone:
    from lingualift.config import Backbone, checked

    return checked(
        Backbone,
        name=name,
        revision=revision,
        dtype=dtype,
        quantization=quantization,
        chat_template=chat_template,
    )


def _source(
    task: str,
    data: str,
    prompt: str | None,
    prompt_language: str | None,
    answers: str,
    beside: tuple[str, str] | None = None,
) -> Source:
    from lingualift.config import Data, checked
    from lingualift.data.source import Beside, Source

    side = None if beside is None else Beside(checked(Data, files=beside[0]), beside[1])
    where = checked(Data, files=data)
    return Source(task, where, Path(), prompt, prompt_language, answers == "generated", side)


def _show(finished: Run) -> None:
    from lingualift.report.terminal import show

    show(finished.rows, finished.comparisons, finished.layout, Terminal())


def _list(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in head:
        table.add_column(name, no_wrap=name == head[0], overflow="fold")
    for row in rows:
        table.add_row(*row)
    Terminal().print(table)


def _next(step: str) -> None:
    """One clear next step, the last line of a command."""
    say(f"\nnext: {step}", err=True)
