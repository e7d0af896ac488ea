"""A campaign of faults: kills, a full disk, altered store entries, two runs at once; every rerun must give the same.

    python benchmarks/faults.py                       # 100 kills and the rest, about half an hour on two cores
    python benchmarks/faults.py --kills 5 --others 2  # a taste
    python benchmarks/faults.py --output table.md     # the table, as shown in docs/reliability.md

The experiment is a small one on the bundled mini-world that has steps of every kind: initialisation, training with
checkpoints, choice of the weight, merging, evaluation. Its `results.json` from a run that nobody disturbs is the
truth; after each fault the same command is run to its end, and its `results.json` must be equal, timings aside.
Everything is drawn from --seed, but the moments of the kills fall where the machine's pace puts them.
The full disk is a tmpfs of its own, which only root can mount; elsewhere that part is left out, and the table says so.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from lingualift.miniworld.data import reference_rows, sentiment_rows
from lingualift.provenance import write_jsonl

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

    def start(self, output: Path, *, workers: int = 2) -> subprocess.Popen[bytes]:
        """Start the run, in a process group of its own."""
        command = [sys.executable, "-m", "lingualift", "run", "e.yaml", "--output", str(output)]
        output.parent.mkdir(parents=True, exist_ok=True)
        with self.errors(output).open("ab") as errors:
            return subprocess.Popen(
                [*command, "--set", f"workers={workers}"],
                cwd=self.root,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--others", type=int, default=12, help="faults of each other kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="Markdown file for the table")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder), options.seed)
        print(f"undisturbed: {campaign.seconds:.0f} s", flush=True)
        tallies = [
            campaign.kills(options.kills),
            campaign.altered(options.others),
            campaign.together(options.others),
            campaign.full_disk(options.others),
        ]
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
