"""Long work tells how far it is, in logs and where there is no terminal, however seldom it says so itself."""

import io
import json
import time

import pytest
from rich.console import Console

from builders.worlds import experiment, write_experiment
from lingualift import terminal
from lingualift.pipeline import run
from lingualift.terminal import Beat, Pulse, counting


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(terminal, "PERIOD", 0.02)


def waited(told, seconds=20):
    """Whether something is told before the time is over."""
    end = time.monotonic() + seconds
    while not told and time.monotonic() < end:
        time.sleep(0.005)
    return bool(told)


@pytest.mark.usefixtures("quick")
def test_what_runs_is_told_until_it_ends():
    told = []
    with Pulse(lambda key, beat: told.append((key, beat.done, beat.total))) as beats:
        beats.start("a")
        assert waited(told)
        assert told[0] == ("a", 0, 0)
        beats.progress("a", 3, 12)
        told.clear()
        assert waited(told)
        assert told[-1] == ("a", 3, 12)
        beats.end("a")
        time.sleep(0.1)
        told.clear()
        time.sleep(0.1)
        assert not told


def test_the_time_left_is_that_of_its_own_pace(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    beat = Beat()
    assert beat.left() is None
    now[0] = 160  # loading took a minute, and a killed run had done 40 already
    beat.done, beat.total, beat.measured = 40, 100, (160, 40)
    assert beat.left() is None
    now[0], beat.done = 170, 60
    assert beat.left() == pytest.approx(20)
    assert str(beat) == "60 of 100, about 20.0 s left"
    assert str(Beat(began=50)) == "at work for 2 min 00 s"


@pytest.mark.usefixtures("quick")
def test_a_run_tells_start_pulse_and_end_in_its_log(data, tmp_path):
    raw = experiment(data, methods=["source-ft"])
    raw["training"]["task"]["steps"] = 60
    run(write_experiment(tmp_path / "e.yaml", raw), output=tmp_path / "run")
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    training = [entry for entry in log if entry["step"].startswith("train")]
    assert training[0]["event"] == "start"
    assert training[-1]["event"] == "end"
    beats = [entry for entry in training if entry["event"] == "pulse"]
    assert beats
    assert any(
        entry["total"] == 60 and entry["seconds_left"] > 0 for entry in beats if "seconds_left" in entry
    )
    assert all("left" in entry["text"] for entry in beats if "seconds_left" in entry)


@pytest.mark.usefixtures("quick")
def test_one_command_says_lines_where_there_is_no_terminal():
    file = io.StringIO()
    with counting(Console(file=file), "train nusax in jav") as count:
        count(1, 4)
        time.sleep(0.05)
        count(2, 4)
        end = time.monotonic() + 20
        while "2 of 4" not in file.getvalue() and time.monotonic() < end:
            time.sleep(0.005)
    assert "train nusax in jav: 2 of 4, about " in file.getvalue()
