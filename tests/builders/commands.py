"""Runs the command line, and scripts, in real processes, forked from one that has imported the libraries."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

SERVER = """
import gc, json, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background inherits "ignore"
import torch, transformers, peft, datasets
from transformers import Trainer, AutoModelForCausalLM
torch.set_num_threads(int(os.environ["LINGUALIFT_TEST_THREADS"]))
import runpy, sklearn.metrics
import lingualift.evaluation.runner, lingualift.fusion, lingualift.checking, lingualift.merging, lingualift.pipeline
import lingualift.commands.lift, lingualift.commands.predict, lingualift.report, lingualift.translation
from lingualift.__main__ import main
gc.collect()
gc.freeze()
print(flush=True)
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chdir(job["cwd"])
        os.environ.update(job["env"])
        null = os.open(os.devnull, os.O_RDONLY)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.dup2(null, 0)
        sys.argv = [job["script"] or "lingualift", *job["arguments"]]
        code = 0
        try:
            if job["before"]:
                exec(job["before"])
            if job["script"]:
                sys.path[0] = os.path.dirname(job["script"])
                runpy.run_path(job["script"], run_name="__main__")
            else:
                main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            import traceback
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class Finished:
    code: int
    out: str
    err: str

    @property
    def message(self):
        """The one message of a failed command."""
        assert self.code == 2, self.err
        assert "Traceback" not in self.err
        assert self.err.count("lingualift: ") <= 1
        return self.err


class Commands:
    """Call it with the arguments of `lingualift`; the working folder is the caller's, the libraries are loaded."""

    def __enter__(self):
        self._server = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._server.stdout.readline() == "\n"
        return self

    def __exit__(self, *_):
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()

    def script(self, path, *arguments, before="", **env):
        """Run a Python file instead, after the code `before`."""
        return self(*arguments, script=str(path), before=before, **env)

    def __call__(self, *arguments, kill_when=None, with_signal=signal.SIGKILL, script=None, before="", **env):
        """Run to the end, or until `kill_when()` holds, upon which the process group gets `with_signal`."""
        with tempfile.TemporaryDirectory() as scratch:
            out, err = Path(scratch) / "out", Path(scratch) / "err"
            job = {"arguments": [str(argument) for argument in arguments], "cwd": str(Path.cwd())}
            job |= {"out": str(out), "err": str(err), "env": {"COLUMNS": "200", **env}}
            job |= {"script": script, "before": before}
            self._server.stdin.write(json.dumps(job) + "\n")
            self._server.stdin.flush()
            child = int(self._server.stdout.readline())
            if kill_when is not None:
                while not kill_when() and Path(f"/proc/{child}").exists() and not _dead(child):
                    time.sleep(0.002)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child, with_signal)
            code = int(self._server.stdout.readline())
            return Finished(code, *(path.read_text(errors="backslashreplace") for path in (out, err)))


def _dead(child):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    return True


def fresh(*arguments, **env):
    """Run the command line in a new interpreter."""
    done = subprocess.run(
        [sys.executable, "-m", "lingualift", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200", **env},
    )
    return Finished(done.returncode, done.stdout, done.stderr)
