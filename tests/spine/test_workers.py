"""A run that is killed leaves no worker behind that would go on beside the next one."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from lingualift.miniworld import write_data

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


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_workers_end_with_the_run_that_started_them(tmp_path):
    write_data(tmp_path / "data")
    (tmp_path / "long.yaml").write_text(EXPERIMENT, encoding="utf-8")
    command = [sys.executable, "-m", "lingualift", "run", "long.yaml", "--output", "out"]
    run = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = tmp_path / "out" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text(encoding="utf-8").count("train mini-qa") == 2):
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    workers = [
        child for child in psutil.Process(run.pid).children() if "spawn_main" in " ".join(child.cmdline())
    ]
    assert len(workers) == 2
    run.send_signal(signal.SIGKILL)
    run.wait()
    _, alive = psutil.wait_procs(workers, timeout=60)
    for worker in alive:
        worker.kill()
    assert not alive
