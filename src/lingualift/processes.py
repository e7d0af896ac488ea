"""Processes of our own, the command line's and the workers', never a caller's: how they begin, and are stopped."""

from __future__ import annotations

import contextlib
import gc
import importlib
import signal
import sys
from typing import Any, NoReturn

_STOPPED = (130, 143, 129)
_RESUMED = [[name] for name in ("demo", "lift", "run", "train", "train-head", "translate")]
_ours = False


def run_command(module: str) -> None:
    """Run the command line, a module's `main`, in this process, and end it.

    0: done. 2: the user can mend it. 130 and 143: stopped from outside. 1: our bug.

    Args:
        module: Its name; it is imported here, which takes time in which one may stop.
    """
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # which nohup asks for
            signal.signal(number, _stop)
    try:
        importlib.import_module(module).main()
    except (KeyboardInterrupt, SystemExit) as end:
        code = 130 if isinstance(end, KeyboardInterrupt) else end.code
        if code in _STOPPED:
            _end_children()
            goes_on = "; the same command goes on where it was" if sys.argv[1:2] in _RESUMED else ""
            sys.stderr.write(f"lingualift: stopped{goes_on}\n")
        raise SystemExit(code) from None


def _stop(number: int, _: Any) -> NoReturn:
    """Unwind as after Ctrl-C, so that workers end, scratch goes and the cursor comes back."""
    raise SystemExit(128 + number)


def _end_children() -> None:
    """End what this command has started, the server of the workers above all, which would import to its end first."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if not any(
                "resource_tracker" in part for part in child.cmdline()
            ):  # it cleans up, and ends by itself
                child.kill()


def claim() -> None:
    """Say that this process is ours: the command line's, a worker's, or the server that workers are forked from."""
    global _ours
    _ours = True


def settle() -> None:
    """Take what is loaded by now out of garbage collection for good, once, if this process is ours.

    To be called when the libraries are imported and no model is loaded yet. accelerate collects garbage before each
    training; over the half a million objects of the libraries that takes longer than a short training itself.
    """
    global _ours
    if _ours:
        _ours = False
        gc.collect()
        gc.freeze()
