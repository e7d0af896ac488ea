"""Commands that score, answer, translate and export rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from lingualift.cli.app import (
    Answers,
    BackboneName,
    BesideLanguage,
    ChatTemplate,
    DataTemplate,
    Dtype,
    LanguageCode,
    OwnLanguages,
    PromptLanguage,
    PromptName,
    Quantization,
    ReadingName,
    Revision,
    TaskName,
    app,
    backbone_of,
    next_step,
)
from lingualift.terminal import Terminal, say


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
    reading: ReadingName = "strict",
    revision: Revision = None,
    dtype: Dtype = "float32",
    quantization: Quantization = None,
    chat_template: ChatTemplate = False,
    languages: OwnLanguages = None,
) -> None:
    """Score a backbone, or an adapter on it; predictions go beside the JSON file, as .predictions.jsonl."""
    from lingualift.commands.evaluate import evaluate as score
    from lingualift.config import Scoring, checked
    from lingualift.terminal import counting

    scoring = checked(
        Scoring,
        length_normalization=length_normalization,
        batch_size=batch_size,
        max_length=max_length,
        unicode_normalization=unicode_normalization,
        reading=reading,
    )
    with counting(Terminal(stderr=True), f"evaluate {task} in {language}") as progress:
        found = score(
            backbone=backbone_of(backbone, revision, dtype, quantization, chat_template),
            task=task,
            language=language,
            data=data,
            adapter=adapter,
            output=output,
            split=split,
            scoring=scoring,
            prompt=prompt,
            prompt_language=prompt_language,
            answers=answers,
            beside=beside,
            beside_language=beside_language,
            languages=languages,
            progress=progress,
        )
    n = len(found.predictions)
    for metric, values in found.scores.items():
        error = "" if values["stderr"] is None else f" ± {values['stderr']:.1f}"
        Terminal().print(f"{metric} {values['score']:.1f}{error} (n {n}, chance {values['chance']:.1f})")
    metric = next(iter(found.scores))
    for name, read in found.readings.items():
        told = f"{metric} {read['scores'][metric]['score']:.1f}, {read['malformed']} malformed"
        Terminal().print(f"by the {name} reading: {told}")
    next_step(f"read {output.with_suffix('.predictions.jsonl')}")


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
    reading: ReadingName = "strict",
    revision: Revision = None,
    dtype: Dtype = "float32",
    quantization: Quantization = None,
    chat_template: ChatTemplate = False,
    languages: OwnLanguages = None,
) -> None:
    """Answer rows that have no labels; their columns are kept beside the predictions."""
    from lingualift.commands.predict import Asked, predict_rows
    from lingualift.config import Scoring, checked
    from lingualift.data.output import growing, json_line
    from lingualift.provenance import write_jsonl
    from lingualift.terminal import counting

    scoring = checked(
        Scoring,
        length_normalization=length_normalization,
        batch_size=batch_size,
        max_length=max_length,
        reading=reading,
    )
    asked = Asked(
        backbone_of(backbone, revision, dtype, quantization, chat_template),
        adapter,
        task,
        language,
        scoring,
        prompt,
        prompt_language,
        answers,
        beside_language,
        languages,
    )

    def line(record: dict[str, Any]) -> str:
        return json_line(record, f"the answer to {record['id']!r}")

    bar = counting(Terminal(stderr=True), f"predict {task} in {language}")
    with growing(output) as keep, bar as progress:
        found = predict_rows(asked, rows, beside, progress, lambda _, record: keep(line(record)))
        write_jsonl(output, found.records)
    other = "".join(
        f"; {count} by the {name} reading" for name, count in found.unread.items() if name != reading
    )
    Terminal().print(
        f"{len(found.records)} rows answered, {found.malformed} of them malformed (prediction null{other}); "
        f"{found.truncated} prompts cut to {max_length} tokens"
    )
    next_step(f"read {output}, for example with pandas.read_json({str(output)!r}, lines=True)")


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
    languages: OwnLanguages = None,
) -> None:
    """Translate the rows of a task; answers that are spans are found again in training data."""
    from lingualift.config import Translation, checked
    from lingualift.terminal import counting
    from lingualift.translation import translate as translate_rows

    settings = checked(Translation, beams=beams, max_length=max_length, batch_size=batch_size)
    with counting(Terminal(stderr=True), f"translate {task} from {source} into {target}") as progress:
        done = translate_rows(
            model=backbone_of(model, revision, dtype, None, False, "model"),
            source=source,
            target=target,
            task=task,
            data=data,
            output=output,
            splits=split,
            settings=settings,
            cache=cache,
            languages=languages,
            progress=progress,
        )
    for line in done.lines():
        say(line)
    next_step(f"read {done.folder / 'provenance.json'}; the rows are --data {done.files!r}")


data_app = typer.Typer(help="Rows for experiment files.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")


@data_app.command("export")
def data_export(
    tasks: Annotated[
        list[str], typer.Argument(help="Tasks of `lingualift tasks`; `wikipedia` for reference text.")
    ],
    languages: Annotated[
        str | None, typer.Option(metavar="CODES", help="Codes: en,de,fr; all that a task has if left out.")
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option("--split", help="train, validation, test; those that there are if left out."),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(help="Branch, tag or commit of the data set; its main branch if left out."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder; TASK/ is made in it.")] = Path(
        "data"
    ),
    max_rows: Annotated[
        int | None,
        typer.Option(
            help="Rows of reference text per language, a sample; 10000 if left out. Tasks come whole."
        ),
    ] = None,
    sample_seed: Annotated[int | None, typer.Option(help="Seed of that sample; 0 if left out.")] = None,
) -> None:
    """Write a task's rows from the hub as files for an experiment; source.json says where each came from."""
    from lingualift.commands.export import export_data
    from lingualift.terminal import counting

    codes = None if languages is None else [code.strip() for code in languages.split(",") if code.strip()]
    with counting(Terminal(stderr=True), f"export {', '.join(tasks)}") as progress:
        done = export_data(
            tasks,
            languages=codes,
            splits=split,
            revision=revision,
            output=output,
            max_rows=max_rows,
            sample_seed=sample_seed,
            progress=progress,
        )
    for line in done.lines():
        say(line)
    next_step(f"lines for the experiment file:\n{done.entries()}")
