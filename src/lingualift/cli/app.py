"""What all commands share: the application, how it ends, options that several take, the words at the end."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lingualift.errors import UserError, mend_of, plain
from lingualift.processes import claim
from lingualift.terminal import STDOUT, Terminal, bars, close_stdout, duration, open_streams, say

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.progress import TaskID

    from lingualift.config import Backbone
    from lingualift.data.datasets import Examples
    from lingualift.pipeline.executors import Event, Watch

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
ReadingName = Annotated[
    Literal["strict", "lenient"],
    typer.Option(
        "--reading", help="Generated answers: by their format alone, or leniently, as chat models write them."
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
OwnLanguages = Annotated[
    Path | None,
    typer.Option(
        "--languages",
        metavar="TSV",
        help="Languages of your own: columns code, name, script, nllb (docs/experiment.md).",
    ),
]
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
        mend = mend_of("used", error.errno) or "check the path"
        return UserError(os.fsdecode(error.filename), f"cannot be used ({error.strerror})", mend=mend)
    return None


_MEMORY = "memory"
_NO_MEMORY = re.compile(
    "(can't|cannot) allocate memory|out of memory|failed to map segment|can't start new thread", re.IGNORECASE
)


def handed_on(options: dict[str, Any], *own: str) -> dict[str, Any]:
    """The options of a command that the function it calls takes by the same names: its `locals()` but `own`."""
    return {name: value for name, value in options.items() if name not in own}


def check_push(repository: str | None, private: bool) -> None:
    """Before any work: what can be told of a repository without the hub."""
    if repository is not None:
        from lingualift.commands.push import check_repository

        check_repository(repository)
    elif private:
        raise UserError("--private", "is given without --push-to-hub", mend="name --push-to-hub ORG/NAME")


def push_to(folder: Path, repository: str | None, private: bool) -> None:
    """Publish a finished folder, if that was asked for; under `accelerate launch` only the first process does."""
    if repository is not None and os.environ.get("RANK", "0") == "0":
        from lingualift.commands.push import push as publish

        say(f"published at {publish(folder, repository, private=private)}")


def backbone_of(
    name: str,
    revision: str | None,
    dtype: str,
    quantization: str | None,
    chat_template: bool,
    called: str = "backbone",
) -> Backbone:
    """The entry of a backbone, as an experiment file has it; raises a `UserError`."""
    from lingualift.config import Backbone, checked

    return checked(
        Backbone,
        {"name": called},
        name=name,
        revision=revision,
        dtype=dtype,
        quantization=quantization,
        chat_template=chat_template,
    )


def examples_of(
    task: str,
    data: str,
    prompt: str | None,
    prompt_language: str | None,
    answers: str,
    beside: tuple[str, str] | None = None,
) -> Examples:
    """A labelled task and its rows; raises a `UserError`."""
    from lingualift.config import files_at
    from lingualift.data.datasets import Beside, Examples

    side = None if beside is None else Beside(files_at(beside[0], "beside"), beside[1])
    where = files_at(data)
    return Examples(task, where, Path(), prompt, prompt_language, answers == "generated", side)


def show_list(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows below their heads."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in head:
        table.add_column(name, no_wrap=name == head[0], overflow="fold")
    for row in rows:
        table.add_row(*row)
    Terminal().print(table)


def next_step(step: str) -> None:
    """One clear next step, the last line of a command."""
    say(f"\nnext: {step}", err=True)


@contextlib.contextmanager
def watching(console: Terminal) -> Iterator[Watch]:
    """Bars for a run; where the console is no terminal, lines instead: of each step its start, pulse and end."""
    with bars(console) as shown:
        whole = shown.add_task("planning", total=None)
        running: dict[str, TaskID] = {}
        count, done, began = 0, 0, time.monotonic()

        def say(line: str) -> None:
            if not console.is_terminal:
                console.print(line)

        def watch(event: Event) -> None:
            nonlocal count, done
            key = event.step.key
            if event.what == "plan":
                count = event.done
                shown.update(whole, description=f"0 of {count} steps", total=event.total, completed=0)
            elif event.what == "start":
                running[key] = shown.add_task(plain(f"  {event.step.label()}"), total=None)
                say(f"{event.step.label()}: started")
            elif event.what == "pulse":
                say(f"{event.step.label()}: {event.text}")
            elif event.what == "progress":
                shown.update(running[key], total=event.total, completed=event.done)
            elif event.what == "warning":
                console.print(f"{event.step.label()}: warning: {event.text}")
            elif event.what == "end":
                shown.remove_task(running.pop(key))
                done += 1
                shown.update(whole, description=f"{done} of {count} steps", advance=event.step.cost)
                say(f"{done}/{count} {event.step.label()}")

        yield watch
    if done:
        console.print(f"{done} steps in {duration(time.monotonic() - began)}")
