"""Nothing is sent that the user does not name: the sockets of every command, with files and folders of this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

import lingualift
from builders import tiny
from builders.worlds import LANGUAGES, experiment, read_jsonl, write_experiment
from lingualift.cli import app

WATCH = """
import os, socket
def refuse(*asked, **more):
    with open(os.environ["SOCKETS"], "a") as file:
        file.write(f"{asked[:2]}\\n")
    raise OSError("no way out")
def local(method):
    def connect(self, address):
        return method(self, address) if self.family == socket.AF_UNIX else refuse(address)
    return connect
socket.getaddrinfo = socket.gethostbyname = refuse
socket.socket.connect = local(socket.socket.connect)
socket.socket.connect_ex = local(socket.socket.connect_ex)
"""
"""Imported by every Python process, workers too, when it starts."""
RUN = """
import json, sys, warnings
warnings.simplefilter("ignore")
from lingualift.cli import main
for arguments in json.load(open("commands.json")):
    sys.argv = ["lingualift", *arguments]
    try:
        main()
    except SystemExit as end:
        print("ENDED", end.code or 0, arguments[0], flush=True)
"""
FILES = "data/{language}/{split}.parquet"
ON = ["--backbone", "miniworld", "--task", "mini-sentiment", "--language", "sw"]
COMMANDS = [
    ["init"], ["tasks"], ["methods"], ["languages"],
    ["plan", "e.yaml"],
    ["check", "e.yaml"],
    ["run", "e.yaml"],
    ["report", "runs/e"],
    ["store", "list", "runs/store"], ["store", "verify", "runs/store"], ["store", "prune", "runs/store"],
    ["train", *ON, "--data", FILES, "--steps", "1", "--output", "adapter"],
    ["evaluate", *ON, "--data", FILES, "--adapter", "adapter", "--output", "scores.json"],
    ["predict", *ON, "--input", "data/sw/test.parquet", "--adapter", "adapter", "--output", "answers.jsonl"],
    ["lift", "--backbone", "miniworld", "--adapter", "adapter", "--from", "sw", "--to", "fr", "--steps", "1",
     "--source-text", "text/sw/train.parquet", "--text", "text/fr/train.parquet", "--output", "lifted"],
    ["merge", "--method", "arithmetic", "--adapter", "adapter=1", "--adapter", "adapter=0.5", "--output", "merged"],
    ["inspect", "adapter", "lifted", "merged"],
    ["train-head", "--backbone", "e5", "--language", "sw", "--data", "text/{language}/{split}.parquet",
     "--steps", "1", "--max-length", "32", "--output", "head"],
    ["translate", "--model", "nllb", "--source", "sw", "--target", "en", "--task", "mini-sentiment",
     "--data", FILES, "--split", "test", "--max-length", "16", "--beams", "1", "--output", "translated"],
]  # fmt: skip
ELSEWHERE = {
    "data",
    "demo",
    "push",
}  # the hub is asked for its rows; a run like any other; what is published goes where the user says (tests/commands)


@pytest.fixture(scope="module")
def world(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sockets")
    for code in LANGUAGES:
        for kind, part in (("data", "sentiment"), ("text", "reference")):
            (folder / kind / code).mkdir(parents=True)
            for file in (data / part / code).iterdir():
                table = pyarrow.Table.from_pylist(read_jsonl(file))
                pyarrow.parquet.write_table(table, folder / kind / code / f"{file.stem}.parquet")
    raw = experiment(folder, methods=["vanilla", "adamergex"], weights={"grid": [1.0], "tune_on": "fr"})
    raw["tasks"][0]["data"]["files"] = FILES
    raw["reference"]["data"]["files"] = "text/{language}/train.parquet"
    write_experiment(folder / "e.yaml", raw | {"workers": 2})
    tiny.build("nllb", folder / "nllb")
    tiny.build("e5", folder / "e5")
    (folder / "watch").mkdir()
    (folder / "watch" / "sitecustomize.py").write_text(WATCH)
    return folder


def watched(folder, script):
    """What a script printed and complained of, and what it asked the network for."""
    sockets = folder / "sockets"
    sockets.write_text("")
    names = {"HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_UPDATE_DOWNLOAD_COUNTS"}
    env = {name: value for name, value in os.environ.items() if name not in names}
    source = Path(lingualift.__file__).parents[1]
    env |= {
        "PYTHONPATH": f"{folder / 'watch'}:{source}",
        "SOCKETS": str(sockets),
        "HF_HOME": str(folder / "hf"),
    }
    run = [sys.executable, "-c", script]
    done = subprocess.run(run, cwd=folder, env=env, capture_output=True, text=True, check=False)
    return done.stdout, done.stderr, sockets.read_text()


def test_the_watch_sees_a_look_up_and_a_connection(world):
    script = """
import socket, contextlib
with contextlib.suppress(OSError):
    socket.create_connection(("huggingface.co", 443))
with contextlib.suppress(OSError):
    socket.socket().connect(("127.0.0.1", 9))
"""
    assert watched(world, script)[2] == "('huggingface.co', 443)\n(('127.0.0.1', 9),)\n"


def test_no_command_sends_anything_that_is_not_named(world):
    """Parquet files, folders, workers; nothing is told to be offline."""
    (world / "commands.json").write_text(json.dumps(COMMANDS))
    printed, said, asked = watched(world, RUN)
    ended = [line.split()[1:] for line in printed.splitlines() if line.startswith("ENDED")]
    assert ended == [["0", arguments[0]] for arguments in COMMANDS], said
    assert asked == ""


def test_every_command_is_watched():
    groups = {group.name for group in app.registered_groups}
    names = {
        command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands
    }
    assert {arguments[0] for arguments in COMMANDS} | ELSEWHERE == names | groups
