"""Inputs that nobody would write, drawn over all that the command line reads: each ends in an answer or one message.

    python benchmarks/fuzz.py                            # 20,000 inputs, about half an hour on one core
    python benchmarks/fuzz.py --inputs 300               # a taste, as in `make test`
    python benchmarks/fuzz.py --only rows --save faults  # one surface; of each fault an input is kept, and its command
    python benchmarks/fuzz.py --output table.md          # the table, as shown in docs/reliability.md

An input is a folder of files and a command that reads them, which is called in this process as a shell would call it.
What is a fault stands in `fuzzing/trial.py`, what is spoiled and how in the other files of that folder. Every input
follows from --seed, its surface and its number. A block of inputs is called in one process, forked from one that has
imported the libraries; an input that ends it is a fault, and the next block goes on behind it. Nothing leaves the
machine: an address that is asked for is a fault. Linux only, as it reads /proc.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import json
import os
import random
import select
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fuzzing.ground import lay
from fuzzing.surfaces import SURFACES
from fuzzing.trial import KINDS, LIMIT, Trial, Verdict, call, guard, judge, listing

from lingualift.data import datasets

BLOCK = 200
"""Inputs that one process is given."""
PATIENCE = LIMIT + 40
"""Seconds after which a process is killed that no alarm wakes."""

BROKEN = 77
"""Exit code of a process in which the fuzzer itself fails."""


@dataclass
class Tally:
    """What the inputs of a surface came to."""

    surface: str
    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    faults: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    first: dict[tuple[str, str, str], int] = field(default_factory=dict)

    def add(self, number: int, verdict: Verdict) -> None:
        """Count an input."""
        self.outcomes[verdict.outcome] += 1
        self.seconds += verdict.seconds
        if verdict.fault:
            told = (verdict.outcome, verdict.what, verdict.where)
            self.faults[told] += 1
            self.first.setdefault(told, number)


class Campaign:
    """The ground that inputs are made from, and the inputs."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.seed = root, seed
        for name in ("inputs", "tmp"):
            (root / name).mkdir(parents=True)
        tempfile.tempdir = os.environ["TMPDIR"] = str(root / "tmp")
        for _ in self._forked(self._lay):
            pass
        if not (root / "ground" / "done").is_file():
            raise RuntimeError("the ground could not be laid")

    def _lay(self, tell: Callable[[Any], None]) -> None:
        here = self.root / "inputs" / "ground"
        here.mkdir()
        os.chdir(here)
        lay(self.root)
        (self.root / "ground" / "done").touch()

    def make(self, surface: str, number: int, here: Path) -> Trial:
        """Make an input in an empty folder beside the ground's."""
        return SURFACES[surface][0](random.Random(f"{self.seed} {surface} {number}"), here)

    def run(self, surface: str, count: int) -> Iterator[tuple[int, Verdict]]:
        """Call so many inputs of a surface, block by block, and tell the verdict of each."""
        number = 0
        while number < count:
            block, running = range(number, min(count, number + BLOCK)), -1
            for told in self._forked(functools.partial(self._block, surface, block)):
                if "outcome" in told:
                    number = told.pop("number") + 1
                    yield number - 1, Verdict(**told)
                else:
                    running = told["number"]
            if number < block.stop:  # it ended within an input
                yield running, Verdict("hang" if self.killed else "traceback", "the process ended", surface)
                number = running + 1
                shutil.rmtree(self.root / "inputs" / f"{surface}-{running}", ignore_errors=True)

    def _block(self, surface: str, numbers: range, tell: Callable[[Any], None]) -> None:
        """Call inputs in this process."""
        guard()
        ground = listing(self.root / "ground")
        for number in numbers:
            here = self.root / "inputs" / f"{surface}-{number}"
            here.mkdir()
            os.chdir(here)
            tell({"number": number})
            verdict = self._called(self.make(surface, number, here), here)
            tell({"number": number, **asdict(verdict)})
            os.chdir(self.root)
            for folder in (here, *here.rglob("*/")):  # of which some may not be read
                folder.chmod(0o700)
            shutil.rmtree(here)
        if listing(self.root / "ground") != ground:
            tell(
                {
                    "number": numbers[-1],
                    **asdict(Verdict("lost", "a file outside of the input's folder", surface)),
                }
            )

    def _called(self, trial: Trial, here: Path) -> Verdict:
        datasets._kept.clear()  # which knows rows by their bytes, whatever the name of the file says of its format
        before = self._listing(here)
        answer = _answer(trial.then) if trial.then else None
        called = call(trial.arguments, trial.stdout, trial.bound)
        verdict = judge(trial, called, before, self._listing(here))
        if trial.then and not verdict.fault and _answer(trial.then) != answer:
            return Verdict("changed", "a later answer is another", trial.mutation, called.seconds)
        return verdict

    def _listing(self, here: Path) -> dict[str, str]:
        scratch = {f"$TMPDIR/{path}": what for path, what in listing(self.root / "tmp").items()}
        return {**listing(here), **scratch}

    def _forked(self, work: Callable[[Callable[[Any], None]], None]) -> Iterator[dict[str, Any]]:
        """What work in another process tells, until it ends or says nothing for too long (`killed`)."""
        self.killed = False
        reading, writing = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _work(work, writing)
        os.close(writing)
        rest = b""
        with os.fdopen(reading, "rb", buffering=0) as told:
            while select.select([told], [], [], PATIENCE)[0]:
                if not (more := told.read(65536)):
                    break
                *lines, rest = (rest + more).split(b"\n")
                yield from map(json.loads, lines)
            else:
                self.killed = True
                os.kill(child, signal.SIGKILL)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == BROKEN:
            raise RuntimeError("the fuzzer is broken, as said above")

    def save(self, tallies: list[Tally], folder: Path) -> None:
        """Make the first input of each fault again, beside a copy of the ground, with the command that reads it."""
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.root / "ground", folder / "ground", dirs_exist_ok=True)
        for tally in tallies:
            for number in sorted(set(tally.first.values())):
                here = folder / "inputs" / f"{tally.surface}-{number}"
                shutil.rmtree(here, ignore_errors=True)
                here.mkdir(parents=True)
                arguments = self.make(tally.surface, number, here.absolute()).arguments
                command = f"cd inputs/{here.name} && lingualift {shlex.join(arguments)}\n"
                (folder / f"{here.name}.sh").write_text(command, encoding="utf-8", errors="surrogateescape")


def _answer(arguments: tuple[str, ...]) -> bytes:
    """What a command answers, which it writes into `plain.jsonl`."""
    called, answer = call(arguments), Path("plain.jsonl")
    if called.code or called.error:
        return called.err.encode()
    content = answer.read_bytes()
    answer.unlink()
    return content


def _work(work: Callable[[Callable[[Any], None]], None], writing: int) -> None:
    """Work in a forked process, which ends here."""
    code = BROKEN
    try:
        with os.fdopen(writing, "w", encoding="utf-8", buffering=1) as pipe:
            work(lambda value: print(json.dumps(value), file=pipe))
        code = 0
    except BaseException:  # of the fuzzer itself: what it calls is caught
        import traceback

        traceback.print_exc(file=sys.__stderr__)
    finally:
        os._exit(code)


def shares(inputs: int, only: list[str] | None) -> dict[str, int]:
    """How many inputs each surface gets, at least one."""
    chosen = only or list(SURFACES)
    total = sum(SURFACES[name][1] for name in chosen)
    return {name: max(1, round(inputs * SURFACES[name][1] / total)) for name in chosen}


def table(tallies: list[Tally]) -> list[str]:
    """The outcomes, surface by surface, as Markdown; kinds of faults that did not occur have no column."""
    total = Tally("all")
    for tally in tallies:
        total.outcomes += tally.outcomes
        total.seconds += tally.seconds
    kinds = ["ok", "refused", *(kind for kind in KINDS if total.outcomes[kind])]
    rows = [["surface", "inputs", *kinds, "seconds"]]
    for tally in (*tallies, total):
        counts = [str(tally.outcomes[kind] or "–") for kind in kinds]
        rows.append([tally.surface, str(tally.outcomes.total()), *counts, f"{tally.seconds:.0f}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]


def faults(tallies: list[Tally]) -> list[str]:
    """A line for each fault that differs from others by its kind, what it is and where; the frequent ones first."""
    found = [(count, tally, told) for tally in tallies for told, count in tally.faults.items()]
    found.sort(key=lambda entry: (KINDS.index(entry[2][0]), -entry[0]))
    return [
        f"{count:5} × {told[0]}: {' '.join(told[1].split())!r:.120} at {told[2]!r:.80}, "
        f"first {tally.surface}-{tally.first[told]}"
        for count, tally, told in found
    ]


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[str], None]]:
    """A bar with the time left; without a terminal, a line a minute. No thread draws it, as processes are forked."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console, began = Console(stderr=True), time.monotonic()
    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, auto_refresh=False, disable=not console.is_terminal) as bar:
        task, done, drawn = bar.add_task("", total=total), 0, began

        def advance(surface: str) -> None:
            nonlocal done, drawn
            done, now = done + 1, time.monotonic()
            due = now - drawn > (0.2 if console.is_terminal else 60)
            bar.update(task, completed=done, description=surface, refresh=due)
            if due and not console.is_terminal:
                left = (now - began) / done * (total - done) / 60
                print(f"{surface}: {done} of {total}, {left:.0f} min left", file=sys.stderr, flush=True)
            drawn = now if due else drawn

        yield advance


def _load() -> None:
    """Import now what every process would, on one thread."""
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import torch
    from transformers import AutoModelForCausalLM, Trainer  # noqa: F401

    import lingualift.checking
    import lingualift.commands.lift
    import lingualift.commands.predict
    import lingualift.evaluation.runner
    import lingualift.fusion
    import lingualift.merging
    import lingualift.report  # noqa: F401

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=list(SURFACES), help="a surface; may be repeated")
    parser.add_argument(
        "--save", type=Path, help="folder for an input of each fault, and the ground that it needs"
    )
    parser.add_argument("--output", type=Path, help="Markdown file for the table")
    options = parser.parse_args()
    began, place = time.monotonic(), Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="lingualift-", dir=place if place.is_dir() else None) as folder:
        os.environ |= {"HF_HOME": f"{folder}/hub", "COLUMNS": "200", "CUDA_VISIBLE_DEVICES": ""}
        os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        Path(folder).chmod(0o755)  # for inputs that are read by another user
        Path(folder, "hub").mkdir(mode=0o777)
        _load()
        campaign = Campaign(Path(folder, "fuzz"), options.seed)
        tallies = []
        counts = shares(options.inputs, options.only)
        try:
            with _progress(sum(counts.values())) as advance:
                for surface, count in counts.items():
                    tallies.append(Tally(surface))
                    for number, verdict in campaign.run(surface, count):
                        tallies[-1].add(number, verdict)
                        advance(surface)
        finally:  # what was found until it was stopped
            lines = [*table(tallies), "", f"Seed {options.seed}, {(time.monotonic() - began) / 60:.0f} min."]
            print("\n".join([*lines, "", *faults(tallies)]), flush=True)
            if options.save:
                campaign.save(tallies, options.save)
    if options.output:
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if any(tally.faults for tally in tallies):
        sys.exit(1)


if __name__ == "__main__":
    main()
