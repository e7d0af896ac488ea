"""Worker processes: none outlives the run that started it, and what is done in them is not done to their caller."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from builders.worlds import experiment, write_experiment
from lingualift.miniworld import write_data
from lingualift.pipeline import executors, run

EXPERIMENT = """
backbone: {name: miniworld}
languages: {source: en, targets: [sw]}
tasks: [{task: mini-qa, data: {files: "data/qa/{language}/{split}.jsonl"}}]
training:
  task: {steps: 100000, batch_size: 8, learning_rate: 1e-3}
  reference: {steps: 1}
methods: [source-ft, target-ft]
workers: 2
"""
posix = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


@pytest.fixture
def started(tmp_path):
    """A run whose two workers train for hours, and all processes that it started; none is left behind."""
    one = began(tmp_path)
    family = psutil.Process(one.pid)
    try:
        wait_for_both(one, tmp_path)
        others = family.children(recursive=True)
        yield one, others
    finally:
        if one.poll() is None:
            others = family.children(recursive=True)
            one.kill()
            one.wait()
        ended(others)


def began(folder):
    write_data(folder / "data")
    (folder / "long.yaml").write_text(EXPERIMENT, encoding="utf-8")
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # tests may ignore it
    program += "; from lingualift.__main__ import main; main()"
    command = [sys.executable, "-c", program, "run", "long.yaml", "--output", "out"]
    with (folder / "said").open("w") as said:
        return subprocess.Popen(
            command, cwd=folder, stdout=said, stderr=said, stdin=subprocess.DEVNULL, start_new_session=True
        )


def wait_for_both(one, folder):
    deadline = time.monotonic() + 240
    while not training(folder):
        assert one.poll() is None, (folder / "said").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.2)


def training(folder):
    log = folder / "out" / "log.jsonl"
    return log.exists() and log.read_text(encoding="utf-8").count("train mini-qa") == 2


def ended(processes):
    _, alive = psutil.wait_procs(processes, timeout=60)
    for process in alive:
        process.kill()
    return not alive


@posix
@pytest.mark.slow  # a new interpreter, a server and two workers
@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
def test_workers_end_with_the_run_that_started_them(started, name):
    """And an interrupted one does not wait for them, though it alone is told."""
    one, others = started
    workers = [
        child
        for child in others
        if any(name in " ".join(child.cmdline()) for name in ("forkserver", "spawn"))
    ]
    assert len(workers) >= 2
    one.send_signal(signal.Signals[name])
    assert one.wait(timeout=60) == {"SIGKILL": -signal.SIGKILL, "SIGINT": 130}[name]
    assert ended(others)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_the_workers_are_forked_from_never_hears_an_interrupt():
    """Not while it imports either, for seconds, of which an interrupt would leave a traceback."""
    code = """
        import os, signal
        from multiprocessing import forkserver
        from lingualift.pipeline.executors import expect_workers
        expect_workers(2)
        server = forkserver._forkserver._forkserver_pid
        status = open(f"/proc/{server}/status").read()
        blocked = int(status.split("SigBlk:")[1].split()[0], 16)
        assert blocked >> (signal.SIGINT - 1) & 1, status
        assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        os.kill(server, 9)
    """
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow  # a server and two workers
@posix
def test_an_interrupt_from_the_keyboard_ends_workers_too(cli, inside):
    write_data(inside / "data")
    (inside / "long.yaml").write_text(EXPERIMENT, encoding="utf-8")
    others = []

    def trains():
        found = training(inside)
        if found:
            (one,) = (each for each in psutil.process_iter() if here(each, inside) and leads(each))
            others.extend(one.children(recursive=True))
        return found

    stopped = cli("run", "long.yaml", "--output", "out", kill_when=trains, with_signal=signal.SIGINT)
    assert stopped.code == 130, stopped.err
    assert len(others) >= 2
    assert ended(others)
    assert "stopped; the same command goes on where it was" in stopped.err


def here(process, folder):
    with contextlib.suppress(psutil.Error):
        return Path(process.cwd()) == folder.resolve()
    return False


def leads(process):
    return os.getsid(process.pid) == process.pid


@pytest.mark.parametrize("place", ["cuda", "mps"])
def test_where_there_is_a_gpu_no_worker_is_forked(monkeypatch, place):
    monkeypatch.setattr(executors, "device", lambda: place)
    assert executors._context().get_start_method() == "spawn"


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_no_worker_is_forked_but_on_linux(monkeypatch, platform):
    monkeypatch.setattr(sys, "platform", platform)
    assert executors._context().get_start_method() == "spawn"


TASK = """
import gc, os
from lingualift.tasks import TASKS
from lingualift.tasks.miniworld import MiniSentiment


class Mine(MiniSentiment):
    def example(self, row, language):
        if os.environ["LOOK"] and not getattr(self, "told", False):
            self.told = True
            with open(os.environ["LOOK"], "a") as file:
                print(os.getpid(), os.environ.get("GONE"), gc.get_freeze_count() > 10_000, file=file)
        return super().example(row, language)


TASKS.register("mine-of-workers")(Mine())
"""


def test_workers_have_the_callers_environment_and_the_caller_keeps_its_objects(data, tmp_path, monkeypatch):
    """In two runs with one server, which began before the environment changed."""
    (tmp_path / "mine.py").write_text(TASK)
    raw = experiment(data, workers=2)
    raw["tasks"][0]["task"] = "mine.py"
    frozen = gc.get_freeze_count()
    for number in ("0", "1"):
        monkeypatch.setenv("LOOK", str(tmp_path / number))
        monkeypatch.delenv("GONE", raising=False)
        if number == "0":
            monkeypatch.setenv("GONE", "here")
        raw["seeds"] = [int(number)]
        run(write_experiment(tmp_path / f"{number}.yaml", raw), output=tmp_path / "out" / number)
        told = [line.split() for line in (tmp_path / number).read_text().splitlines()]
        mine = [line for line in told if line[0] == str(os.getpid())]
        workers = [line for line in told if line not in mine]
        assert workers
        assert all(line[1:] == ["here" if number == "0" else "None", "True"] for line in workers)
    assert gc.get_freeze_count() <= frozen  # those that were let go


@pytest.mark.slow  # a new interpreter; of workers and callers it is tested above
def test_the_command_line_spares_garbage_collection_what_is_imported_and_a_caller_does_not(data, tmp_path):
    code = """
        import gc, sys
        import lingualift.cli as cli
        from lingualift.backbone.loading import load_backbone
        from lingualift.backbone.reference import find_backbone
        from lingualift.config import Backbone
        mini = find_backbone(Backbone(name="miniworld"))
        load_backbone(mini)
        assert gc.get_freeze_count() == 0
        load_backbone.cache_clear()
        sys.argv = ["lingualift", "--help"]
        try:
            cli.main()
        except SystemExit:
            pass
        assert gc.get_freeze_count() == 0
        load_backbone(mini)
        frozen = gc.get_freeze_count()
        assert frozen > 100_000
        load_backbone.cache_clear()
        load_backbone(mini)
        assert gc.get_freeze_count() <= frozen
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow  # every worker imports the libraries anew
def test_a_script_without_a_guard_is_told_what_workers_need(data, tmp_path):
    write_experiment(tmp_path / "e.yaml", experiment(data, workers=2))
    (tmp_path / "script.py").write_text("import lingualift as ll\nll.run('e.yaml')\n")
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "UserError: worker process: died without a word" in done.stderr
    assert "call `run` under `if __name__ == '__main__':`" in " ".join(done.stderr.split())
    assert not list(tmp_path.rglob("results.json"))
