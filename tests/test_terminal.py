"""Whatever a name, a path or an adapter says, a terminal shows it as text; whoever reads it, the work is whole."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from builders.refusals import check_refusal
from builders.trainings import begin
from builders.worlds import experiment, write_experiment
from lingualift.errors import UserError, plain

CLEAR, TITLE, TURNED = "\x1b[2J", "\x1b]0;owned\x07", "\u202e"
EVIL = f"{CLEAR}{TITLE}\x9b2J{TURNED}\r\x08\x7f"
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
FULL = "w = os.open('/dev/full', os.O_WRONLY)"
CLOSED = "r, w = os.pipe(); os.close(r)"
SPEAKS = "import sys; sys.stdout.reconfigure(encoding='{0}'); sys.stderr.reconfigure(encoding='{0}')"
GROUP = f"[/weak] {EVIL}"


def into(what, name="stdout"):
    """Code that lets a stream of a process lead elsewhere, as a shell would."""
    number = {"stdout": 1, "stderr": 2}[name]
    return f"import os, sys; {what}; os.dup2(w, {number}); sys.{name} = os.fdopen({number}, 'w')"


@pytest.fixture(scope="module")
def made(cli, data, tmp_path_factory):
    """A folder with an experiment whose names try to be markup and commands, and its run, not yet looked at."""
    folder = tmp_path_factory.mktemp("terminal")
    raw = experiment(data)
    raw["languages"]["groups"] = {GROUP: ["sw"]}
    merges = [
        {"method": "adamergex", "weight": 0.5, "modules": f"{found}|q_proj"} for found in ("[a-z]_x", "[/x]")
    ]
    raw["methods"] = ["source-ft", *merges]
    write_experiment(folder / "e.yaml", raw)
    return folder


@pytest.fixture
def ran(cli, made, monkeypatch):
    """The run, in a folder to work in."""
    monkeypatch.chdir(made)
    done = cli("run", "e.yaml")
    assert done.code == 0, done.err
    return done


def test_names_are_no_markup(ran):
    assert "[a-z]_x|q_proj" in ran.out
    assert "[/x]|q_proj" in ran.out
    assert r"[/weak] \u001b[2J\u001b]0;owned\u0007\u009b2J\u202e\u000d\u0008\u007f" in " ".join(
        ran.out.split()
    )
    assert not CONTROLS.search(ran.out + ran.err)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_every_command_speaks_to_any_terminal(ran, cli, encoding):
    said = {}
    for command in (
        ["--help"],
        ["tasks"],
        ["languages"],
        ["methods"],
        ["init"],
        ["run", "e.yaml"],
        ["plan", "e.yaml"],
        ["check", "e.yaml", "--rows=4"],
        ["check", "e.yaml", "--rows=4", "--json"],
        ["store", "list", "runs/store"],
        ["store", "verify", "runs/store"],
        ["report", "runs/e"],
        ["inspect", "runs/e/adapters/mini-sentiment.fr.source-ft.seed0"],
        ["run", f"{EVIL}Übung.yaml"],
    ):
        done = cli(*command, before=SPEAKS.format(encoding))
        assert done.code == (2 if "Übung" in command[-1] else 0), (command, done.err)
        assert "Traceback" not in done.err
        assert not CONTROLS.search(done.out + done.err)
        said[" ".join(command)] = done
    assert json.loads(said["check e.yaml --rows=4 --json"].out)
    assert yaml.safe_load(said["init"].out)
    assert "+--" in said["tasks"].out  # what draws the boxes has other signs there
    rows = [line for line in said["tasks"].out.replace(r"\x96", "–").splitlines() if line.startswith("|")]
    assert len({len(line) for line in rows}) == 1


def test_a_run_whose_table_cannot_be_printed_is_whole(ran, cli):
    for before, code in (
        (into(FULL), 2),
        (into(CLOSED), 141),
        (into(FULL, "stderr"), 0),
        (into(CLOSED, "stderr"), 0),
    ):
        shutil.rmtree("runs/e")
        done = cli("run", "e.yaml", before=before)
        assert done.code == code, (before, done.err)
        assert "Traceback" not in done.err
        assert "Exception ignored" not in done.err
        if code == 2:
            check_refusal(done, "standard output", "No space")
        for name in ("results.json", "report.html", "table.md", "predictions", "adapters"):
            assert Path("runs/e", name).exists()


@pytest.mark.parametrize("command", [["languages"], ["--help"], ["init"]])
def test_a_pipe_that_is_closed_ends_a_command_without_a_word(cli, inside, command):
    done = cli(*command, before=into(CLOSED))
    assert (done.code, done.err) == (141, "")
    check_refusal(cli(*command, before=into(FULL)), "standard output", "No space")


def test_without_any_streams_a_command_does_its_work(cli, inside):
    done = cli("languages", before="import sys; sys.stdout = sys.stderr = None")
    assert done.code == 0


def test_inspect_shows_what_somebody_else_wrote(cli, inside, bpe_folder, bpe):
    folder = begin(bpe, inside / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": f"x\ncan be merged{EVIL}", "task_type": EVIL}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "provenance.json").unlink()
    done = cli("inspect", "adapter")
    assert done.code == 0, done.err
    assert not CONTROLS.search(done.out + done.err)
    assert r"x\ncan be merged\u001b[2J" in done.out
    assert done.out.count("\ncan be merged") == 1  # our own word
    told = json.loads(cli("inspect", "adapter", "--json").out)
    assert told["adapters"][0]["backbone"]["name"] == config["base_model_name_or_path"]


def test_errors_logs_and_warnings_are_plain(cli, inside):
    assert str(UserError(EVIL, "a \ud83d b")) == f"{plain(EVIL)}: a \\ud83d b"
    said = cli.script(
        _script(inside),
        before=f"import logging, warnings\nfrom lingualift.terminal import open_streams\nopen_streams()\n"
        f"logging.getLogger('lingualift').warning({EVIL!r})\nwarnings.simplefilter('always')\n"
        f"warnings.warn({EVIL!r})\n",
    )
    assert said.code == 0
    assert said.err.count(plain(EVIL)) == 2
    assert not CONTROLS.search(said.err)


def _script(folder):
    (folder / "nothing.py").write_text("")
    return folder / "nothing.py"
