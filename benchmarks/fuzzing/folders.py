"""Folders of our own that somebody altered: finished runs, and stores."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from fuzzing.ground import GROUND, PROVENANCE, copied, experiment_text, known, read_json
from fuzzing.trial import EITHER, OK, REFUSED, Trial
from fuzzing.values import damaged, odd, spoiled, spoiled_yaml


def copied_run(here: Path) -> Path:
    """A copy of the finished run, as far as a report reads it."""
    left_out = shutil.ignore_patterns("*.safetensors", "predictions")
    return Path(shutil.copytree(here / GROUND / "run", here / "run", ignore=left_out))


def sealed(recipe: Mapping[str, Any]) -> bytes:
    """The content of a `step.json`, whose seal is right whatever it says."""
    plain = json.dumps(recipe, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    seal = hashlib.sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()
    return json.dumps({**recipe, "seal": seal}).encode()


_WRITTEN = ("run/report.html", "run/table.md", "run/made.json")


def runs(draw: random.Random, here: Path) -> Trial:
    """Run folders, of which a report is written anew."""
    folder = copied_run(here)
    provenance = [str(path.relative_to(folder)) for path in sorted(folder.glob(f"adapters/*/{PROVENANCE}"))]
    files = ("results.json", "steps.json")
    name = draw.choice((*files, *files, "log.jsonl", "experiment.yaml", *provenance))
    path, right = folder / name, EITHER
    given = path.read_bytes()
    if draw.random() < 0.01:
        return Trial("as it is", ("report", "run"), OK, alters=_WRITTEN)
    if name == "experiment.yaml":
        content = spoiled_yaml(draw, given.decode())
        right = known(lambda: yaml.safe_load(content.decode()))
    elif name == "log.jsonl":
        lines = given.splitlines()
        at = draw.randrange(len(lines))
        lines[at] = spoiled(draw, json.loads(lines[at]))
        content = b"\n".join(lines)
    else:
        content = spoiled(draw, json.loads(given))
        right = known(lambda: json.loads(content.decode()))
    if draw.random() < 0.03:
        path.unlink()
        right = EITHER
    else:
        path.write_bytes(content)
    return Trial(path.name, ("report", "run"), right, alters=_WRITTEN, check=_reported(folder))


def _reported(folder: Path) -> Callable[[str], tuple[str, str] | None]:
    """Look at a report: it holds no HTML of the input, and tables have as many cells in every line."""

    def check(out: str) -> tuple[str, str] | None:
        for name in ("report.html", "table.md"):
            if re.search(r"<img src=x|<script>alert", (folder / name).read_text(encoding="utf-8")):
                return "executed", f"HTML in {name}"
        blocks = (folder / "table.md").read_text(encoding="utf-8").split("\n\n")
        for block in blocks:
            lines = [line for line in block.splitlines() if line.startswith("|")]
            if len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) > 1:
                return "message", "a table with lines of unequal length"
        return None

    return check


def stores(draw: random.Random, here: Path) -> Trial:
    """Stores of finished steps, with entries that are others, and with things of somebody else's."""
    store = copied(here, "store", "store")
    entries = sorted(path.parent for path in store.glob("*/*/step.json"))
    entry = draw.choice(entries)
    step = entry / "step.json"
    how = draw.random()
    altered = True
    if how < 0.45:
        what, given = "step.json", read_json(step)
        if draw.random() < 0.4:
            del given["seal"]
            content = sealed({**given, draw.choice(list(given)): odd(draw)})
            altered = False  # as nobody can tell
        else:
            content = spoiled(draw, given)
        step.write_bytes(content)
    elif how < 0.6:
        what = "a file"
        path = draw.choice(sorted(path for path in entry.rglob("*") if path.is_file()))
        path.write_bytes(damaged(draw, path.read_bytes()))
        altered = path.name != "step.json"  # it may say the same in other bytes
    elif how < 0.7:
        what = "store.json"
        (store / what).write_bytes(spoiled(draw, {"schema": 1}))
        altered = False
    else:
        what, altered = _foreign(draw, here, store, entry)
    command = draw.choice(("list", "verify", "verify", "prune", "prune", "plan"))
    arguments: tuple[str, ...] = ("store", command, "store")
    alters: tuple[str, ...] = ()
    if command == "prune":
        more = draw.choice(((), ("--dry-run",), ("--unused-for", "0"), ("--unused-for", "30")))
        arguments += more
        own = tuple(f"store/{path.parent.name}/{path.name}*" for path in entries)
        alters = () if "--dry-run" in more else own
    elif command == "plan":
        (here / "e.yaml").write_text(experiment_text(), encoding="utf-8")
        arguments = ("plan", "e.yaml", "--no-calibrate", "--store", "store")
    same = how < 0.6 and _same_step(here, store, entry)
    right = REFUSED if command == "verify" and altered and not same else EITHER
    leaves = ("store/locks*",) if command == "prune" else ()
    return Trial(what, arguments, right, leaves=leaves, alters=alters)


def _same_step(here: Path, store: Path, entry: Path) -> bool:
    """Whether a spoiled entry says what it said before."""
    other = here / GROUND / "store" / entry.relative_to(store)
    for path in entry.rglob("*"):
        if path.is_file():
            now, then = path.read_bytes(), (other / path.relative_to(entry)).read_bytes()
            try:
                if now != then and (path.name != "step.json" or json.loads(now) != json.loads(then)):
                    return False
            except (ValueError, RecursionError):
                return False
    return True


def _foreign(draw: random.Random, here: Path, store: Path, entry: Path) -> tuple[str, bool]:
    """Things that no run has made."""
    how = draw.randrange(6)
    if how == 0:
        for name in ("data/en/rows.jsonl", "notes/2026/a.md"):
            (store / name).parent.mkdir(parents=True)
            (store / name).write_text("mine", encoding="utf-8")
        return "foreign folders", False
    if how == 1:
        (here / "mine" / "thesis").mkdir(parents=True)
        (here / "mine" / "thesis" / "a.md").write_text("mine", encoding="utf-8")
        (store / "link").symlink_to("../mine")
        return "a link out of it", False
    if how == 2:
        (here / "elsewhere").mkdir()
        (here / "elsewhere" / "a.md").write_text("mine", encoding="utf-8")
        (store / entry.parent.name / ("0" * 20)).symlink_to("../../elsewhere")
        return "a linked entry", False
    if how == 3:
        shutil.rmtree(store)
        for name in ("locks/a.lock", "objects/ab/cd", "thesis/chapters/a.md"):
            (store / name).parent.mkdir(parents=True)
            (store / name).write_text("mine", encoding="utf-8")
        return "no store", False
    if how == 4:
        (entry / ("n" * 200)).write_text("mine", encoding="utf-8")
        return "a file that was added", False
    (store / entry.parent.name / draw.choice(("x..", "[x]", "\x1b[2J", "a b", ".hidden"))).mkdir()
    return "an empty entry", False
