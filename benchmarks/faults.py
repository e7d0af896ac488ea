"""A campaign of faults: kills, stops, a full disk, altered entries, runs and prunes at once; reruns must give the same.

    python benchmarks/faults.py                    # about an hour on two cores
    python benchmarks/faults.py --kills 5 --others 2 --pairs 10 --stops 5  # a taste
    python benchmarks/faults.py --only stops       # one part
    python benchmarks/faults.py --output table.md  # the table, as shown in docs/reliability.md

The experiment is a small one on the bundled mini-world that has steps of every kind: initialisation, training with
checkpoints, choice of the weight, merging, evaluation. Its `results.json` from a run that nobody disturbs is the
truth; after each fault the same command is run to its end, and its `results.json` must be equal, timings aside.
Everything is drawn from --seed, but the moments of the kills fall where the machine's pace puts them.
Files of the user's lie in every folder that runs write to and prunes look through, over all of it, and must be the same
at the end. The full disk is a tmpfs of its own, which only root can mount, and a second user needs root too; elsewhere
these parts are left out, and the table says so.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lingualift.errors import UserError
from lingualift.miniworld.data import reference_rows, sentiment_rows
from lingualift.provenance import sha256_file, write_jsonl

KINDS = ("initialise", "train", "choose", "merge", "evaluate")
EXPERIMENT = {
    "backbone": {"name": "miniworld"},
    "languages": {"source": "en", "targets": ["fr", "sw"]},
    "tasks": [{"task": "mini-sentiment", "data": {"files": "data/sentiment/{language}/{split}.jsonl"}}],
    "reference": {"data": {"files": "data/reference/{language}/train.jsonl"}, "segment_tokens": 32},
    "training": {
        "task": {"steps": 40, "batch_size": 8, "learning_rate": 2e-3, "checkpoint_steps": 4},
        "reference": {"steps": 40, "batch_size": 8, "learning_rate": 1e-3, "checkpoint_steps": 4},
    },
    "methods": ["source-ft", {"method": "adamergex", "space": "delta"}, "arithmetic", "target-ft"],
    "weights": {"tune_on": "fr", "grid": [0.0, 0.25, 0.5, 0.75, 1.0]},
}


FOREIGN = (
    "thesis.txt",
    "adapters/mine/adapter_model.safetensors",
    "predictions/notes.txt",
    "store/notes/2026/a",
    *(f"store/{folder}/mine/a" for folder in ("adapter", "work")),
    "store/locks/mine.txt",
)


def put(folder: Path) -> dict[Path, str]:
    """Files of the user's in a run folder and in the store beside it, with their hashes."""
    kept = {}
    for name in FOREIGN:
        path = folder.parent / name if name.startswith("store") else folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name} is the user's", encoding="utf-8")
        kept[path] = sha256_file(path)
    for entry in sorted((folder.parent / "store").glob("[!lw]*/[0-9a-f]*"))[::3]:
        (entry / "mine.txt").write_text("the user's", encoding="utf-8")
        kept[entry / "mine.txt"] = sha256_file(entry / "mine.txt")
    return kept


def kept(files: dict[Path, str]) -> bool:
    """Whether all of them are there as they were."""
    return all(path.is_file() and sha256_file(path) == known for path, known in files.items())


@dataclass
class Tally:
    """What one part of the campaign found."""

    part: str
    faults: int = 0
    same: int = 0
    notes: Counter[str] = field(default_factory=Counter)

    def line(self) -> str:
        """A line of the table."""
        told = ", ".join(f"{what} {count}" for what, count in sorted(self.notes.items())) or "–"
        return f"| {self.part} | {self.faults} | {self.same} of {self.faults} | {told} |"


class Campaign:
    """The experiment, its truth, and the faults."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.draw = root, random.Random(seed)
        for language in ("en", "fr", "sw"):
            for split, count in (("train", 96), ("validation", 24), ("test", 48)):
                rows = sentiment_rows(language, split, count)
                write_jsonl(root / "data" / "sentiment" / language / f"{split}.jsonl", rows)
            write_jsonl(root / "data" / "reference" / language / "train.jsonl", reference_rows(language, 200))
        (root / "e.yaml").write_text(yaml.safe_dump(EXPERIMENT), encoding="utf-8")
        began = time.monotonic()
        done = self.start(root / "truth" / "run").wait()
        assert done == 0, "the undisturbed run failed"
        self.seconds = time.monotonic() - began
        self.truth = self.results(root / "truth" / "run")
        self.checkpoints = 0

    def start(
        self, output: Path, *, workers: int = 2, more: Sequence[str] = (), errors: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Start the run, in a process group of its own."""
        command = [sys.executable, "-m", "lingualift", "run", "e.yaml", "--output", str(output), *more]
        output.parent.mkdir(parents=True, exist_ok=True)
        with (errors or self.errors(output)).open("ab") as said:
            return subprocess.Popen(
                [*command, "--set", f"workers={workers}"],
                cwd=self.root,
                stdout=subprocess.DEVNULL,
                stderr=said,
                start_new_session=True,
                preexec_fn=hear,
            )

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another command to its end."""
        command = [sys.executable, "-m", "lingualift", *arguments]
        return subprocess.run(command, cwd=self.root, capture_output=True, text=True, check=False)

    def errors(self, output: Path) -> Path:
        """What its runs said, on a disk that is never filled."""
        folder = self.root / "errors"
        folder.mkdir(exist_ok=True)
        return folder / "-".join(output.relative_to(self.root).parts)

    def results(self, folder: Path) -> object:
        """`results.json` but for timings."""
        content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        for row in content["rows"]:
            del row["seconds"]
        return content

    def finish(self, output: Path, tally: Tally, *, workers: int = 2) -> None:
        """Run to the end and compare."""
        if self.start(output, workers=workers).wait() == 0 and self.results(output) == self.truth:
            tally.same += 1
        else:
            errors = self.errors(output).read_text(encoding="utf-8")
            print(f"DIFFERS or failed: {output}\n{errors[-3000:]}", flush=True)

    def running(self, output: Path) -> list[str]:
        """Labels of the steps that have started and not ended."""
        log = output / "log.jsonl"
        entries = []
        for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else []:
            try:
                entries.append(json.loads(line))
            except ValueError:
                break  # the line that is being written
        open_steps: dict[str, str] = {}
        for entry in entries:
            if entry["event"] == "start":
                open_steps[entry["key"]] = entry["step"]
            else:
                open_steps.pop(entry["key"], None)
        return list(open_steps.values())

    def kills(self, count: int) -> Tally:
        """Kill runs again and again, each aimed at a kind of step, at a random moment after it began."""
        tally, number = Tally("`kill -9`"), 0
        while tally.faults < count:
            number += 1
            output, workers = self.root / "kills" / str(number) / "run", 1 + number % 2
            for _ in range(min(self.draw.randint(3, 7), count - tally.faults)):
                process = self.start(output, workers=workers)
                wanted = KINDS[tally.faults % len(KINDS)]
                limit = time.monotonic() + self.draw.uniform(0.5, 1.5) * self.seconds
                before = len((output / "log.jsonl").read_bytes()) if (output / "log.jsonl").is_file() else 0
                while time.monotonic() < limit and process.poll() is None:
                    log = output / "log.jsonl"
                    fresh = log.is_file() and len(log.read_bytes()) > before
                    if fresh and any(label.startswith(wanted) for label in self.running(output)):
                        time.sleep(self.draw.expovariate(1 / 0.3))
                        break
                    time.sleep(0.005)
                if process.poll() is not None:
                    tally.notes["the run was over before"] += 1
                    break
                hit = {label.split()[0] for label in self.running(output)} or {"between steps"}
                whole_group = self.draw.random() < 0.5
                if whole_group:
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    process.kill()  # its workers must end by themselves
                process.wait()
                tally.faults += 1
                tally.same += 1  # until the rerun says otherwise
                for kind in hit:
                    tally.notes[f"in {kind}"] += 1
                self.checkpoints += bool(list((output.parent / "store" / "work").glob("*/checkpoint-*")))
                print(f"kill {tally.faults}: {sorted(hit)}", flush=True)
            rest = Tally("")
            self.finish(output, rest, workers=workers)
            if not rest.same:
                tally.same -= 1
            shutil.rmtree(output.parent, ignore_errors=True)
        tally.notes["with a checkpoint left"] = self.checkpoints
        return tally

    def altered(self, count: int) -> Tally:
        """Alter a file of a finished store, each time another, and run again."""
        tally = Tally("store entry altered")
        base = self.root / "truth"
        for _ in range(count):
            store = base / "store"
            files = [
                path for path in store.glob("*/*/*") if path.is_file() and path.parent.parent.name != "work"
            ]
            path = self.draw.choice(sorted(files))
            content = bytearray(path.read_bytes())
            how = self.draw.choice(["bit flipped", "cut short", "removed", "emptied"])
            if how == "bit flipped":
                content[self.draw.randrange(len(content))] ^= 1 << self.draw.randrange(8)
                path.write_bytes(content)
            elif how == "removed":
                path.unlink()
            else:
                path.write_bytes(content[: self.draw.randrange(len(content))] if how == "cut short" else b"")
            tally.faults += 1
            tally.notes[how] += 1
            self.finish(base / "run", tally)
            print(f"altered {tally.faults}: {path.relative_to(store)} {how}", flush=True)
        return tally

    def together(self, count: int) -> Tally:
        """Two runs at once on one store, one of them killed in every second trial."""
        tally = Tally("two runs on one store")
        for trial in range(count):
            folder = self.root / "together" / str(trial)
            outputs, seen = [folder / "one", folder / "two"], {}
            first = self.start(outputs[0])
            time.sleep(self.draw.uniform(0, 2))
            second = self.start(outputs[1])
            limit = time.monotonic() + self.draw.uniform(0.4, 1.0) * self.seconds if trial % 2 else None
            twice = 0
            while first.poll() is None or second.poll() is None:
                for path in folder.glob("store/*/[!.]*/step.json"):
                    try:
                        inode = path.stat().st_ino
                    except OSError:
                        continue
                    twice += seen.setdefault(path, inode) != inode
                if limit and time.monotonic() > limit and first.poll() is None:
                    os.killpg(first.pid, signal.SIGKILL)
                    tally.notes["one killed"] += 1
                    limit = None
                time.sleep(0.01)
            tally.faults += 1
            tally.notes["steps made twice"] += twice
            rest = Tally("")
            if first.returncode not in (0, -9) or second.returncode != 0:
                print(f"FAILED: {first.returncode} {second.returncode}", flush=True)
            for output in outputs:
                self.finish(output, rest)
            tally.same += rest.same == 2 and second.returncode == 0
            print(f"together {tally.faults}: {first.returncode} {second.returncode}", flush=True)
            shutil.rmtree(folder)
        return tally

    def pairs(self, count: int) -> Tally:
        """Two runs at once into one run folder, after some of what it had was lost."""
        tally = Tally("two runs into one folder")
        output = self.root / "pairs" / "run"
        assert self.start(output).wait() == 0
        mine = put(output)
        context = multiprocessing.get_context("spawn")
        questions, answers = context.Queue(), context.Queue()
        asked = (questions, answers, str(self.root), str(output))
        two = [context.Process(target=run_when_asked, args=asked, daemon=True) for _ in range(2)]
        for process in two:
            process.start()
        for _ in range(count):
            for folder in (output.parent / "store" / "evaluation").iterdir():
                if self.draw.random() < 0.2:
                    (folder / "step.json").unlink()
                    tally.notes["steps to be done again"] += 1
            if self.draw.random() < 0.3:
                (output / "results.json").unlink()
            for _ in two:
                questions.put(self.draw.expovariate(1 / 0.05))
            told = [answers.get() for _ in two]
            tally.faults += 1
            tally.same += told == ["ok", "ok"] and self.results(output) == self.truth and kept(mine)
            for answer in told:
                if answer != "ok":
                    print(f"PAIR: {answer}", flush=True)
        for _ in two:
            questions.put(None)
        shutil.rmtree(output.parent)
        return tally

    def pruned(self, count: int) -> Tally:
        """Prune again and again while a run goes on that began with old finished steps."""
        tally = Tally("`store prune` beside a run")
        for trial in range(count):
            output = self.root / "pruned" / str(trial) / "run"
            first = self.draw.choice(["methods=[source-ft]", "languages.targets=[fr]", "seeds=[0]"])
            assert self.start(output.parent / "first", more=["--set", first]).wait() == 0
            mine = put(output.parent / "first")
            for path in (output.parent / "store").glob("*/*/step.json"):
                os.utime(path, (0, 0))
            process = self.start(output, workers=1 + trial % 2)
            while process.poll() is None:
                if (output / "log.jsonl").is_file():
                    done = self.command("store", "prune", str(output.parent / "store"), "--unused-for", "30")
                    tally.notes["prunes"] += 1
                    if done.returncode:
                        print(f"PRUNE: {done.stderr[-2000:]}", flush=True)
                        tally.notes["prunes that failed"] += 1
            tally.faults += 1
            rest = Tally("")
            if process.returncode:
                print(f"FAILED beside a prune: {self.errors(output).read_text()[-2000:]}", flush=True)
            self.finish(output, rest)
            tally.same += rest.same == 1 and process.returncode == 0 and kept(mine)
            shutil.rmtree(output.parent)
        return tally

    def stops(self, count: int) -> Tally:
        """Stop a run from outside at a random moment, from its first line on: one line, and nothing that goes on."""
        import psutil

        tally = Tally("SIGINT and SIGTERM")
        for trial in range(count):
            output = self.root / "stops" / str(trial % 5) / "run"
            number = self.draw.choice([signal.SIGINT, signal.SIGTERM])
            whole_group = self.draw.random() < 0.5
            process = self.start(output, workers=1 + trial % 2, errors=output.with_name(f"errors-{trial}"))
            early = self.draw.random() < 0.5
            wait_for_handlers(process)
            time.sleep(self.draw.uniform(0, 6 if early else self.seconds))
            family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            if process.poll() is None:
                (os.killpg if whole_group else os.kill)(process.pid, number)
                tally.notes[f"{number.name} to {'all' if whole_group else 'the command'}"] += 1
            else:
                tally.notes["the run was over before"] += 1
            began = time.monotonic()
            try:
                code = process.wait(10)
            except subprocess.TimeoutExpired:
                code = None
            _, alive = psutil.wait_procs(family, timeout=max(0.0, 10 - time.monotonic() + began))
            said = output.with_name(f"errors-{trial}").read_text(encoding="utf-8")
            right = code == 0 or (code == 128 + number and "goes on where it was" in said)
            tally.faults += 1
            rest = Tally("")
            if trial % 5 == 4 or trial == count - 1:
                self.finish(output, rest)
            else:
                rest.same = 1
            if right and not alive and "Traceback" not in said and rest.same:
                tally.same += 1
            else:
                print(f"STOP {number.name}: {code}, {len(alive)} alive\n{said[-2000:]}", flush=True)
                for one in alive:
                    one.kill()
            if trial % 5 == 4:
                shutil.rmtree(output.parent)
        return tally

    def second_user(self) -> Tally:
        """Two users who share a store through a group; then one whose files the other may not read."""
        tally = Tally("a second user")
        candidates = (sys.executable, *(str(Path(place) / "python3") for place in os.get_exec_path()))
        python = next(filter(startable, candidates), None)
        if os.getuid() != 0 or python is None:
            tally.notes["not run: needs root, and a Python that another user may start"] += 1
            return tally
        folder = self.root / "users"
        for path in (self.root, *self.root.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        for name in ("first", "second", "store"):
            (folder / name).mkdir(parents=True, exist_ok=True)
            os.chown(folder / name, 0, OTHER)
            (folder / name).chmod(0o2775)
        store = folder / "store"

        def run(who: str, name: str, *more: str) -> subprocess.CompletedProcess[str]:
            other = {"user": OTHER, "group": OTHER, "extra_groups": []} if who == "second" else {}
            command = [python if who == "second" else sys.executable, "-m", "lingualift"]
            arguments = ["run", "e.yaml", "--output", str(folder / who / name), "--store", str(store), *more]
            if name == "verify":
                arguments = ["store", "verify", str(store)]
            return subprocess.run(
                [*command, *arguments],
                cwd=self.root,
                env={**os.environ, "PYTHONPATH": PLACES, "HOME": str(folder / who), "OMP_NUM_THREADS": "1"},
                text=True,
                capture_output=True,
                umask=0o002,
                check=False,
                **other,  # type: ignore[call-overload]
            )

        def judge(what: str, right: bool, done: subprocess.CompletedProcess[str]) -> None:
            tally.faults += 1
            tally.same += right and "Traceback" not in done.stderr
            if not right:
                print(f"SECOND USER, {what}: {done.returncode} {done.stderr[-2000:]}", flush=True)

        assert run("first", "all").returncode == 0
        before = {path: sha256_file(path) for path in store.rglob("*/step.json")}
        done = run("second", "all")
        same = {path: sha256_file(path) for path in store.rglob("*/step.json")} == before
        judge("runs what is finished", done.returncode == 0 and same, done)
        done = run("second", "verify")
        judge("verifies", done.returncode == 0, done)
        done = run("second", "more", "--set", "seeds=[1]")
        judge("adds steps", done.returncode == 0, done)
        done = run("first", "more", "--set", "seeds=[1]")
        judge("runs what the other has added", done.returncode == 0, done)
        trained = next(path.parent for path in before if path.parent.parent.name == "adapter")
        weights = trained / "adapter_model.safetensors"
        weights.chmod(0o600)
        os.chown(weights, 0, 0)
        done = run("second", "all")
        told = done.returncode == 2 and str(weights) in done.stderr and "Permission denied" in done.stderr
        judge("may not read a file", told and weights.is_file(), done)
        done = run("second", "verify")
        judge("verifies what may not be read", done.returncode == 2 and "unreadable" in done.stderr, done)
        weights.chmod(0o644)
        for path in (store, *store.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        done = run("second", "all")
        judge("runs what is finished in a store that may only be read", done.returncode == 0, done)
        done = run("second", "third", "--set", "seeds=[2]")
        told = done.returncode == 2 and f"lingualift: {store}: " in done.stderr
        judge("needs steps in a store that may only be read", told, done)
        return tally

    def full_disk(self, count: int) -> Tally:
        """Fill the disk of run and store at a random moment, make room again, and go on."""
        tally = Tally("disk full")
        disk = self.root / "disk"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(disk)]
        if subprocess.run(mount, capture_output=True).returncode:
            tally.notes["not run: no right to mount a disk"] += 1
            return tally
        try:
            for trial in range(count):
                output = disk / str(trial) / "run"
                process = self.start(output)
                limit = time.monotonic() + self.draw.uniform(0.1, 1.0) * self.seconds
                while time.monotonic() < limit and process.poll() is None:
                    time.sleep(0.01)
                filler = disk / "filler"
                with filler.open("wb", buffering=0) as file:
                    try:
                        while True:
                            file.write(b"\0" * 65536)
                    except OSError:
                        pass
                code = process.wait()
                filler.unlink()
                tally.faults += 1
                errors = self.errors(output).read_text(encoding="utf-8")
                if code == 2 and "mend: free some space" in errors and "Traceback" not in errors:
                    tally.notes["refused with a mend"] += 1
                elif code == 0:
                    tally.notes["was over before"] += 1
                else:
                    tally.notes[f"ended with {code} otherwise"] += 1
                    print(errors[-3000:], flush=True)
                self.finish(output, tally)
                print(f"full disk {tally.faults}: {code}", flush=True)
                shutil.rmtree(output.parent)
        finally:
            subprocess.run(["umount", str(disk)], check=False)
        return tally


PACKAGES = (path for path in sys.path if path.endswith("site-packages"))
PLACES = os.pathsep.join([str(Path(__file__).parents[1] / "src"), *PACKAGES])
"""Where the second user's Python finds this package and its libraries."""
OTHER = 1234
"""Number of the second user, and of the group that both are in."""


def wait_for_handlers(process: subprocess.Popen[Any]) -> None:
    """Wait until a command's first lines have run: before them nothing of ours hears a signal."""
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        caught = int(status.read_text(encoding="ascii").split("SigCgt:")[1].split()[0], 16)
        if caught >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.005)


def hear() -> None:
    """Take interrupts again, which a shell has its background jobs ignore."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def startable(python: str) -> bool:
    """Whether the second user can start a Python that has the libraries of this one."""
    environment = {**os.environ, "PYTHONPATH": PLACES}
    command = [python, "-c", "import torch, lingualift"]
    try:
        done = subprocess.run(command, user=OTHER, env=environment, capture_output=True, check=False)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


def run_when_asked(questions: Any, answers: Any, root: str, output: str) -> None:
    """A process that runs the experiment whenever it gets the seconds to wait before, until it gets None."""
    import traceback

    from lingualift.pipeline import run

    os.chdir(root)
    while (wait := questions.get()) is not None:
        time.sleep(wait)
        try:
            run("e.yaml", output=output, overrides=["workers=1"])
            answers.put("ok")
        except UserError as error:
            answers.put(str(error))
        except Exception:
            answers.put(traceback.format_exc())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--others", type=int, default=12, help="faults of each other kind")
    parser.add_argument("--pairs", type=int, default=200, help="two runs at once into one folder")
    parser.add_argument("--stops", type=int, default=50, help="interrupts from outside")
    parser.add_argument("--only", default="", help="regular expression of the parts to do")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="Markdown file for the table")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder), options.seed)
        print(f"undisturbed: {campaign.seconds:.0f} s", flush=True)
        parts: dict[str, Callable[[], Tally]] = {
            "kills": lambda: campaign.kills(options.kills),
            "stops": lambda: campaign.stops(options.stops),
            "altered": lambda: campaign.altered(options.others),
            "together": lambda: campaign.together(options.others),
            "pairs": lambda: campaign.pairs(options.pairs),
            "pruned": lambda: campaign.pruned(options.others),
            "users": campaign.second_user,
            "full-disk": lambda: campaign.full_disk(options.others),
        }
        tallies = [part() for name, part in parts.items() if re.search(options.only, name)]
    lines = ["| fault | times | same `results.json` | of these |", "|---|---|---|---|"]
    lines += [tally.line() for tally in tallies]
    lines += ["", f"Seed {options.seed}, {(time.monotonic() - began) / 60:.0f} min."]
    print("\n".join(lines))
    if options.output:
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if any(tally.same < tally.faults for tally in tallies):
        sys.exit(1)


if __name__ == "__main__":
    main()
