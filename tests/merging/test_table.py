"""The table of methods is complete, says what the code does, and is what docs/merging.md shows."""

import re
from itertools import product
from pathlib import Path

import pytest

from builders.adapter_folders import (
    three,
    write_bottleneck,
    write_lora,
    write_prefix,
    write_prompt,
    write_vectors,
)
from builders.refusals import refused
from lingualift.merging import METHODS, merge, methods_table
from lingualift.merging.methods import RULES, SPACES, find_cell

KINDS = {
    "lora": write_lora,
    "ia3": write_vectors,
    "bottleneck": write_bottleneck,
    "prefix": write_prefix,
    "prompt": write_prompt,
}
NAMES = {
    "lora": "LoRA",
    "ia3": "(IA)³",
    "bottleneck": "bottleneck",
    "prefix": "prefix-tuning",
    "prompt": "prompt-tuning",
}
DOCS = Path(__file__).parents[2] / "docs" / "merging.md"


def run(paths, method, output, **options):
    if method == "adamergex":
        task, target, source = paths
        inputs = {"task": task, "target_reference": target, "source_reference": source, "weight": 0.7}
    elif method == "layer-swap":
        inputs = {"task": paths[0], "target_reference": paths[1], "weight": 0.7}
    else:
        inputs = {"adapters": [(paths[0], 1.0), (paths[1], 0.5)]}
    return merge(method=method, output=output, **inputs, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_every_combination_merges_or_says_why_not(tmp_path, kind):
    paths = three(tmp_path, KINDS[kind])
    for number, (space, method, rule) in enumerate(product(SPACES, METHODS, RULES)):
        cells = [
            cell
            for cell in methods_table()
            if (cell.kind, cell.space, cell.method) == (kind, space, method) and rule in cell.asked
        ]
        assert len(cells) == 1, (space, method, rule)
        assert bool(cells[0].formula) != bool(cells[0].reason)
        output = tmp_path / f"out{number}"
        if cells[0].formula:
            report = run(paths, method, output, space=space, rule=rule)
            assert (report.formula, report.rule, report.kind) == (cells[0].formula, cells[0].rule, kind)
        else:
            place = f"{method} on {NAMES[kind]}, space {space}, rule {cells[0].rule}"
            with refused(place, cells[0].reason):
                run(paths, method, output, space=space, rule=rule)
            assert not output.exists()


def test_the_mend_of_an_empty_cell_names_a_filled_one():
    with refused("ties on LoRA, space delta", "single elements", mend='space="factors" with rule="additive"'):
        find_cell("lora", "delta", "ties", "auto")
    with refused("dare on prefix-tuning, space factors", "no differences", mend='use method="') as told:
        find_cell("prefix", "factors", "dare", "auto")
    assert told.value.mend.endswith('method="adamergex" or method="arithmetic"')


def test_virtual_tokens_take_no_rule_of_another_kind():
    place = "adamergex on prompt-tuning, space factors, rule multiplicative"
    with refused(place, "cross ablation", "LoRA and (IA)³ only", mend='rule="unanchored"'):
        find_cell("prompt", "factors", "adamergex", "multiplicative")


def test_every_method_has_a_source():
    for name, method in METHODS.items():
        assert method.name == name
        assert method.source.startswith("https://arxiv.org/abs/")
        assert method.formula


def test_the_docs_show_the_table():
    expected = [
        f"| {NAMES[c.kind]} | {c.space} | {c.method} | {', '.join(c.asked)} | `{c.formula}` |"
        for c in methods_table()
        if c.formula
    ]
    shown = [
        line
        for line in DOCS.read_text().splitlines()
        if line.startswith(tuple(f"| {n} |" for n in NAMES.values()))
    ]
    assert shown == expected


def test_the_commands_in_the_docs_are_known():
    import typer.main

    from lingualift.cli import app

    group = typer.main.get_command(app)
    commands = re.findall(r"^lingualift (\w[\w-]*)((?:.|\\\n)*?)$", DOCS.read_text(), re.M)
    assert len(commands) == 4
    for command, rest in commands:
        known = {option for parameter in group.commands[command].params for option in parameter.opts}
        assert set(re.findall(r"--[\w-]+", rest)) <= known
