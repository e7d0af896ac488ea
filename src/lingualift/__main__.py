"""`lingualift` and `python -m lingualift`: the command line, and how it ends when somebody stops it."""

from __future__ import annotations

import contextlib
import signal
import sys
from typing import Any, NoReturn

_STOPPED = (130, 143, 129)
_RESUMED = [[name] for name in ("demo", "lift", "run", "train", "train-head", "translate")]


def main() -> None:
    """Run the command line: 0 done, 2 the user can mend it, 130 and 143 stopped from outside, 1 our bug."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # which nohup asks for
            signal.signal(number, _stop)
    try:
        from lingualift.cli import (
            main as command_line,  # here, since importing takes time in which one may stop
        )

        command_line()
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


if __name__ == "__main__":
    main()
