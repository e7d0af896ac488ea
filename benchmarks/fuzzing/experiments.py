"""Experiment files, and `--set`."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fuzzing.ground import EXPERIMENT, experiment_text, known
from fuzzing.trial import EITHER, OK, REFUSED, Trial
from fuzzing.values import HOSTILE_PATTERNS, PATTERNS, YAML_VALUES, spoiled_yaml

# fmt: off
NAMES = (
    "[/weak]", "[bold]x", "a | b", "<img src=x onerror=alert(1)>", "\x1b[2J", "{x}", "", " ", "average", "a\nb",
)
# fmt: on
# fmt: off
BOUNDS = (
    ("adapter.rank", ("1000000000000", "1000000000", "100000", "9223372036854775808", "yes", "0.5", "1e12")),
    ("adapter.alpha", ("1" + "0" * 400, "9223372036854775808", "-1", ".inf")),
    ("adapter.dropout", (".nan", "1", "-0.1", "1e-320")),
    ("adapter.tokens", ("1000000000000", "0")),
    ("adapter.init_seed", ("4611686018427387904", "-1")),
    ("training.task.batch_size", ("9223372036854775808", "9223372036854775807", "1000000000000", "on")),
    ("training.task.accumulation", ("9223372036854775808", "1000000000000")),
    ("training.task.steps", ("yes", "1" + "0" * 400, "9223372036854775808", "0")),
    ("training.task.learning_rate", ("1e308", ".inf", ".nan", "1e-320")),
    ("training.task.weight_decay", ("1e308", ".nan")),
    ("training.task.max_length", ("1000000000000", "1", "9223372036854775808")),
    ("training.reference.epochs", ("1e308", ".inf", "1e-300")),
    ("reference.segment_tokens", ("1000000000000", "1", "9223372036854775808")),
    ("scoring.batch_size", ("9223372036854775808", "1000000000000", "true")),
    ("scoring.max_length", ("1", "9223372036854775808")),
    ("scoring.max_new_tokens", ("1000000000000", "-1")),
    ("weights.grid", ("[.nan]", "[1e308]", "[1, 1.0]", "[]", "[true]")),
    ("weights.tune_on", ("en", "xx", "[fr]", "no")),
    ("seeds", ("[4294967295]", "[4294967296]", "[-1]", "[0, 0]", "[true]", "yes")),
    ("workers", ("0", "9223372036854775808", "yes", "-1")),
    ("report_to", ("[wandb, wandb]", "nope", "1")),
    ("languages.source", ("xx", "no", "[en]", "fr", "'../en'", "'en\\0'")),
    ("languages.targets", ("[fr, fra]", "[]", "fr", "[[fr]]", "[en]", "[no]")),
    ("tasks.0.task", ("nope", "nope.py", "/dev/zero.py", "''", "causal-lm", "../x.py")),
    ("tasks.0.prompt", ("nope", "''", "1")),
    ("tasks.0.data.columns", ("{text: nope}", "{text: [a]}", "{1: 2}", "{text: label}")),
    ("tasks.0.data.max_rows", ("{train: 9223372036854775808}", "{train: 0}", "{nope: 1}")),
    ("tasks.0.data.splits", ("{test: '../x'}", "{train: '{split}'}", "{test: train}")),
    ("backbone.dtype", ("float8", "1", "bfloat16")),
    ("backbone.name", ("./nope", "/", "''", "'\\0'", "~nobody/x", ".", "/etc/passwd")),
    ("methods", ("[]", "[nope]", "[source-ft, source-ft]", "[[a]]", "[{method: adamergex, wieght: 1}]", "5")),
    ("methods.1.weight", (".nan", "-1", "1e308", "true")),
    ("methods.1.layer", ("9223372036854775808", "-1")),
    ("flare.fusion_modules", ("[]", "[nope]", "['[/x]']")),
)
# fmt: on
"""Keys and values that are, or may be, out of bounds."""
_NO_KEYS = ("a", "a..b", "", "methods.99", "methods.0.x", "seeds.0.0", "__class__")
# fmt: off
TEMPLATES = (
    "{language!r}", "{language.__class__}", "{0}", "{", "}", "{language:>9999999999}", "{nope}", "/dev/zero",
    "/dev/stdin", ".", "../../ground/data", "x" * 300 + ".jsonl", "a\0b.jsonl", "{language}/{split}.exe",
    "~nobody/x.jsonl", "\ud83d.jsonl",
)
# fmt: on


def planned(draw: random.Random, *, safe: bool) -> tuple[str, ...]:
    """A command that reads an experiment; `safe` if it may also be run: nothing of it asks for much work."""
    how = draw.random()
    if safe and how < 0.1:
        return ("run", "e.yaml", "--output", "out/run", *(("--tiny",) if how < 0.01 else ()))
    if how < 0.12:
        return ("plan", "e.yaml", "--no-calibrate", "--for", "h100")
    return ("plan", "e.yaml", "--no-calibrate")


def experiments(draw: random.Random, here: Path) -> Trial:
    """Experiment files: their text as YAML."""
    text = experiment_text()
    content = spoiled_yaml(draw, text) if draw.random() > 0.01 else text.encode()
    (here / "e.yaml").write_bytes(content)
    right = known(lambda: yaml.safe_load(content.decode("utf-8")))
    plain = content == text.encode()
    arguments = planned(draw, safe=plain or right == REFUSED)
    return Trial("text", arguments, OK if plain else right, leaves=("out*",) if plain else ())


def values(draw: random.Random, here: Path) -> Trial:
    """Experiment files and `--set`: numbers out of bounds, words, patterns, paths."""
    how = draw.random()
    (here / "e.yaml").write_text(experiment_text(), encoding="utf-8")
    if how < 0.45:
        key, choices = draw.choice(BOUNDS)
        value = draw.choice(choices) if draw.random() < 0.8 else draw.choice(YAML_VALUES)
        wrong = value in ("yes", "on", "true", ".nan", "[true]") and "weights.tune_on" not in key
        return _set(draw, key, f"{key}={value}", REFUSED if wrong else EITHER)
    if how < 0.75:
        key, value = draw.choice((*(key for key, _ in BOUNDS), *_NO_KEYS)), draw.choice(YAML_VALUES)
        override = f"{key}={value}" if draw.random() < 0.97 else key
        return _set(draw, "odd value", override, known(lambda: yaml.safe_load(value)))
    if how < 0.83:
        languages = {**EXPERIMENT["languages"], "groups": {draw.choice(NAMES): ["sw"]}}
        return _changed(here, draw, "name of a group", {"languages": languages})
    if how < 0.92:
        task = {**EXPERIMENT["tasks"][0], "data": {"files": draw.choice(TEMPLATES)}}
        return _changed(here, draw, "template", {"tasks": [task]}, REFUSED)
    if how < 0.97:
        return _late(here)
    patterns = HOSTILE_PATTERNS if draw.random() < 0.04 else (*PATTERNS, "nobody", "nobody|[0-9]+x")
    method = {"method": "adamergex", "weight": 0.5, "modules": draw.choice(patterns)}
    matches = method["modules"] in (".*", "[a-z]_proj|q_proj", "[/x]|q_proj", "")
    return _changed(here, draw, "pattern", {"methods": ["source-ft", method]}, EITHER if matches else REFUSED)


def _late(here: Path) -> Trial:
    """A run whose store is refused, which must not leave a run folder."""
    (here / "mine").mkdir()
    (here / "mine" / "a.md").write_text("mine", encoding="utf-8")
    return Trial("a store that is none", ("run", "e.yaml", "--output", "out/run", "--store", "mine"), REFUSED)


def _set(draw: random.Random, what: str, override: str, right: frozenset[str]) -> Trial:
    override = override.replace("\0", "")  # which no shell passes on
    return Trial(f"--set {what}"[:40], (*planned(draw, safe=False), "--set", override), right)


def _changed(
    here: Path, draw: random.Random, what: str, changes: Mapping[str, Any], right: frozenset[str] = EITHER
) -> Trial:
    # Escaped, so that what is odd is a value and not an error of the text.
    text = json.dumps({**EXPERIMENT, **changes}, ensure_ascii=True)
    (here / "e.yaml").write_text(text, encoding="utf-8")
    return Trial(what, planned(draw, safe=right == REFUSED), right)
