"""A message names what its reader can set: arguments in Python, options on the command line."""

import inspect
import pickle
import re
import subprocess
import sys

import pytest

import lingualift
from builders.adapter_folders import write_lora
from lingualift.cli import app
from lingualift.errors import UserError, setting


def error():
    mend = f"use {setting('space', 'delta')}, {setting('rank', 4)} or {setting('target_reference')}"
    return UserError(setting("module_weights"), "is wrong", f"{setting('rule', 'additive')}", mend)


def test_in_python_and_on_the_command_line():
    assert str(error()) == (
        'module_weights: is wrong; expected rule="additive"\n'
        '  mend: use space="delta", rank=4 or target_reference'
    )
    assert error().on_command_line() == (
        "--module-weight: is wrong; expected --rule additive\n"
        "  mend: use --space delta, --rank 4 or --target-reference"
    )
    assert error().mend == 'use space="delta", rank=4 or target_reference'


def test_an_error_survives_a_worker():
    again = pickle.loads(pickle.dumps(error()))
    assert (str(again), again.on_command_line()) == (str(error()), error().on_command_line())


def test_what_the_caller_cannot_set_is_named_with_what_can():
    found = error().within({"rank"}, "merge")
    assert found.mend == 'use lingualift.merge(space="delta"), rank=4 or lingualift.merge(target_reference)'
    assert (
        "lingualift merge --space delta, --rank 4 or lingualift merge --target-reference"
        in found.on_command_line()
    )
    assert (
        "lingualift lift --rank 4 or lingualift merge --target-reference"
        in found.within((), "lift").on_command_line()
    )


def options(command):
    """The options of a command, without their dashes."""
    import typer

    group = typer.main.get_command(app)
    return {name for part in group.commands[command].params for name in part.opts}


@pytest.mark.parametrize("function", ["merge", "lift"])
def test_every_argument_has_the_option_that_messages_name(function):
    arguments = inspect.signature(getattr(lingualift, function)).parameters
    named = {re.sub(r"=.*", "", UserError("x", setting(name)).on_command_line()[3:]) for name in arguments}
    assert named - {"--watch"} <= options(function)


def merged(*arguments):
    command = [sys.executable, "-m", "lingualift", "merge", *arguments]
    return subprocess.run(command, capture_output=True, text=True).stderr


def test_merge_says_options_to_the_command_line(tmp_path):
    adapter = str(write_lora(tmp_path / "adapter"))
    assert "name --target-reference" in merged("--task", adapter, "-o", str(tmp_path / "out"))
    twice = [f"--adapter={adapter}=0.5", f"--adapter={adapter}=0.5"]
    found = merged("--method", "arithmetic", *twice, "--rank", "2", "-o", str(tmp_path / "out"))
    assert "use --space delta or --space core, or --export serving" in found
