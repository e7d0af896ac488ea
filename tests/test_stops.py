"""A command that somebody stops ends soon, whatever runs at that moment, and says one line."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends signals")

BEGIN = """
    import sys, time
    from lingualift.processes import run_command
    sys.argv = ["lingualift", "run"]
    def until(seconds):
        end = time.monotonic() + seconds
        print("ready", flush=True)
        while time.monotonic() < end:
            time.sleep(0.05)
"""
PLACES = {
    "a destructor": """
        class Held:
            def __del__(self): until(1.5)
        def main():
            held = Held()
            del held
            time.sleep(30)
    """,
    "a library that tries what it has": """
        def main():
            try: until(30)
            except BaseException: pass
            time.sleep(30)
    """,
    "an error in its place": """
        def main():
            try: until(30)
            except BaseException: raise ValueError("cannot be loaded")
    """,
    "plain work": """
        def main():
            until(30)
    """,
}


def stopped(body, number, tmp_path, times=1):
    module = f"{textwrap.dedent(BEGIN)}\n{textwrap.dedent(body)}"
    (tmp_path / "stopped.py").write_text(module, encoding="utf-8")
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"  # tests may ignore it
    )
    code += "; sys.path.insert(0, '.'); from lingualift.processes import run_command; run_command('stopped')"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    for _ in range(times):
        time.sleep(0.2)
        process.send_signal(number)
    began = time.monotonic()
    out, err = process.communicate(timeout=20)
    return process.returncode, time.monotonic() - began, out, err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("place", PLACES)
def test_a_stop_is_taken_up_wherever_it_comes(place, number, tmp_path):
    code, seconds, _, err = stopped(PLACES[place], number, tmp_path)
    assert code == 128 + number
    assert err == "lingualift: stopped; the same command goes on where it was\n"
    assert seconds < 8


def test_what_is_put_in_order_meanwhile_is_left_to_its_end(tmp_path):
    body = """
        import contextlib
        @contextlib.contextmanager
        def scratch():
            try: yield
            finally: until(2.5); print("in order", flush=True)
        def main():
            with scratch(): until(30)
    """
    code, seconds, out, err = stopped(body, signal.SIGTERM, tmp_path)
    assert (code, out) == (143, "ready\nin order\n")
    assert err.startswith("lingualift: stopped")
    assert seconds > 2.4
