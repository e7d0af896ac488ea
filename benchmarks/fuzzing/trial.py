"""One input to the command line, called in this process, and what is wrong with the answer."""

from __future__ import annotations

import contextlib
import ctypes
import fnmatch
import hashlib
import io
import os
import re
import resource
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzzing.values import CANARY

LIMIT = 20
"""Seconds that an answer may take."""
MEMORY = 10**9
"""Bytes that the process may grow by."""
SPACE = 4 * 10**9
"""Bytes of addresses beside those of the libraries: what asks for more is told that there is no memory."""

KINDS = (
    "traceback",  # an exception that is no UserError
    "hang",  # no answer within LIMIT
    "memory",  # grew by more than MEMORY, or died of it
    "accepted",  # although a reference reader, or the docs, refuse it
    "refused right",  # although nothing is wrong with it
    "half-written",  # files left by a command that refused
    "lost",  # a file of the user's altered or gone
    "executed",  # code of the input ran, or stands where somebody will run it
    "sent",  # something outside of this machine was asked for
    "changed",  # later answers of the process are others
    "message",  # not one message, or one with control characters in it
)
"""Faults; other outcomes are `ok` and `refused`."""

EITHER, REFUSED, OK = frozenset({"ok", "refused"}), frozenset({"refused"}), frozenset({"ok"})


@dataclass(frozen=True)
class Trial:
    """An input: files in a folder of its own, and the command that reads them there.

    Attributes:
        mutation: What was done to it, in a word or two.
        arguments: Those of `lingualift`; paths are relative to the folder.
        right: Outcomes that are right.
        leaves: Patterns of paths that it may leave there when it refuses.
        alters: Patterns of paths of the input that it may alter or remove.
        stdout: Encoding of standard output, or a file that it goes to; `pipe` for one that nobody reads.
        bound: Whether permissions bind it, as they do not bind root.
        then: Arguments of a command that answers rows into `plain.jsonl`, which must be the same after the first.
        check: What is wrong with an answer `ok`, as kind and words, by standard output; None if nothing is.
    """

    mutation: str
    arguments: tuple[str, ...]
    right: frozenset[str] = EITHER
    leaves: tuple[str, ...] = ()
    alters: tuple[str, ...] = ()
    stdout: str = "utf-8"
    bound: bool = False
    then: tuple[str, ...] = ()
    check: Callable[[str], tuple[str, str] | None] = lambda out: None


@dataclass
class Called:
    """What a call came to."""

    code: int = 0
    out: str = ""
    err: str = ""
    error: BaseException | None = None
    seconds: float = 0.0
    grown: int = 0
    sent: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Verdict:
    """An outcome, and of a fault what it was and where in our code, which tell it from other faults."""

    outcome: str
    what: str = ""
    where: str = ""
    seconds: float = 0.0

    @property
    def fault(self) -> bool:
        """Whether something is wrong."""
        return self.outcome in KINDS


class Hang(BaseException):
    """No answer in time; no `except Exception` takes it."""


_asked: list[str] = []  # addresses outside of this machine that were asked for


def guard() -> None:
    """Prepare this process, for good: nothing leaves it, and it ends neither in time nor in memory without end."""

    def stop(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.getaddrinfo":
            host = arguments[0]
        elif event == "socket.connect" and isinstance(arguments[1], tuple):
            host = arguments[1][0]
        else:
            return
        if host not in (None, "", "localhost", "127.0.0.1", "::1"):
            _asked.append(str(host))
            raise socket.gaierror(socket.EAI_NONAME, "there is no network in here")

    def over(*_: object) -> None:
        raise Hang

    sys.addaudithook(stop)
    sys.path.insert(0, "")  # as under `python -m lingualift` and in notebooks
    signal.signal(signal.SIGALRM, over)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + SPACE
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


def call(arguments: tuple[str, ...], stdout: str = "utf-8", bound: bool = False) -> Called:
    """Call the command line as a shell would, in this process and folder."""
    from lingualift.cli import main

    called = Called()
    _asked.clear()
    with _streams(stdout) as (out, err), _arguments(arguments), _bound(bound):
        before, began = _peak(), time.monotonic()
        try:
            signal.setitimer(signal.ITIMER_REAL, LIMIT, 1.0)
            try:
                main()
                out.flush()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except SystemExit as end:
            called.code = end.code if isinstance(end.code, int) else int(end.code is not None)
            called.error = _flushed(out)
        except BaseException as error:
            called.error, called.code = error, 1
        called.seconds, called.grown = time.monotonic() - began, _peak(reset=False) - before
        called.out, called.err = _text(out), _text(err)
    called.sent = list(_asked)
    return called


def _flushed(out: io.TextIOBase) -> BaseException | None:
    """What an interpreter that ends would complain of."""
    try:
        out.flush()
    except (OSError, ValueError) as error:
        return error
    return None


@contextlib.contextmanager
def _streams(stdout: str) -> Iterator[tuple[io.TextIOBase, io.TextIOBase]]:
    before = sys.stdin, sys.stdout, sys.stderr
    out: Any
    if stdout == "pipe":
        reading, writing = os.pipe()
        os.close(reading)
        out = os.fdopen(writing, "w", encoding="utf-8")
    elif stdout.startswith("/"):
        out = Path(stdout).open("w", encoding="utf-8")  # noqa: SIM115
    else:
        out = io.TextIOWrapper(io.BytesIO(), stdout)
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace")
    with Path(os.devnull).open() as nothing:
        sys.stdin, sys.stdout, sys.stderr = nothing, out, err
        try:
            yield out, err
        finally:
            sys.stdin, sys.stdout, sys.stderr = before
            with contextlib.suppress(OSError, ValueError):
                out.close()


@contextlib.contextmanager
def _arguments(arguments: tuple[str, ...]) -> Iterator[None]:
    before = sys.argv
    sys.argv = ["lingualift", *arguments]
    try:
        yield
    finally:
        sys.argv = before


@contextlib.contextmanager
def _bound(bound: bool) -> Iterator[None]:
    """Bind this process by permissions, which root may pass over, by two of its capabilities (capabilities(7))."""
    before = _capabilities()
    if bound:
        _capabilities((before[0] & ~0b110, *before[1:]))  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    try:
        yield
    finally:
        _capabilities(before)


def _capabilities(new: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """The capabilities of this thread, those in effect first; those that are given become its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    head = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))
    sets = ctypes.create_string_buffer(struct.pack("=6I", *(new or (0,) * 6)))
    if (libc.capset if new else libc.capget)(head, sets):
        raise OSError(ctypes.get_errno(), "capabilities")
    return struct.unpack_from("=6I", sets)


def _text(stream: Any) -> str:
    if not isinstance(getattr(stream, "buffer", None), io.BytesIO):
        return ""
    with contextlib.suppress(ValueError):
        stream.flush()
    return str(stream.buffer.getvalue().decode(stream.encoding, "replace"))


def _peak(*, reset: bool = True) -> int:
    """Most memory that the process has held, in bytes, since the last reset."""
    if reset:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    found = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())
    return 1024 * int(found[1]) if found else 0


def listing(folder: Path) -> dict[str, str]:
    """What there is below a folder: sha256 of files, where links lead, and folders."""
    found: dict[str, str] = {}
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent) / name
            short = str(path.relative_to(folder))
            if path.is_symlink():
                found[short] = f"link to {path.readlink()}"
            elif path.is_file():
                with contextlib.suppress(OSError):
                    found[short] = hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                found[short] = "folder"
    return found


def judge(trial: Trial, called: Called, before: Mapping[str, str], after: Mapping[str, str]) -> Verdict:
    """The outcome of a trial, the worst that there is to be said of it.

    Args:
        trial: The input.
        called: What its command came to.
        before: `listing` of its folder before the call.
        after: And after it.
    """
    outcome = "ok" if called.code == 0 else "refused"
    kind, what, where = next(_faults(trial, called, outcome, before, after), (outcome, "", ""))
    return Verdict(kind, what, where, called.seconds)


def _faults(
    trial: Trial, called: Called, outcome: str, before: Mapping[str, str], after: Mapping[str, str]
) -> Iterator[tuple[str, str, str]]:
    """Kind, words, and place or mutation of everything that is wrong, the worst first."""
    error = called.error
    if Path(CANARY).exists():
        Path(CANARY).unlink()
        yield "executed", "code of the input ran", trial.mutation
    if lost := [path for path in before if after.get(path) != before[path] and not _any(path, trial.alters)]:
        yield "lost", "a file of the user's altered or gone", f"{trial.mutation}: {_shape(lost[0])}"
    if isinstance(error, Hang):
        yield "hang", f"over {LIMIT} s", innermost(error) or trial.mutation
    if called.grown > MEMORY or (error and _no_memory(error)):
        yield "memory", "over 1 GB, or none left", (error and innermost(error)) or trial.mutation
    if error is not None:
        yield "traceback", type(error).__name__, innermost(error) or trial.mutation
    said = called.out + called.err
    if "Traceback (most recent call last)" in said:
        yield "traceback", "printed", trial.mutation
    if outcome == "ok" and "ok" not in trial.right:
        yield "accepted", "what is wrong", trial.mutation
    if outcome == "refused" and "refused" not in trial.right:
        yield "refused right", called.err.strip()[:200], trial.mutation
    if outcome == "ok" and (found := trial.check(called.out)):
        yield *found, trial.mutation
    left = [path for path in after if path not in before and not _any(path, trial.leaves)]
    scratch = [path for path in left if path.endswith(".partial")]
    if scratch or (outcome == "refused" and left):
        yield "half-written", "left behind", f"{trial.mutation}: {_shape((scratch or left)[0])}"
    if called.sent:
        yield "sent", f"asked for {called.sent[0]}", trial.arguments[0]
    if problem := _misspoken(called, outcome, trial.stdout):
        yield "message", problem, trial.mutation


def _any(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatch(path, pattern) for pattern in patterns)


def _shape(path: str) -> str:
    """A path without what is drawn in it, so that equal faults are told as one."""
    return re.sub(r"[0-9a-f]{20}|[\w]{8}(?=\.partial)", "…", path)[:60]


def _no_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def _misspoken(called: Called, outcome: str, stdout: str) -> str:
    """What is wrong with what was said, "" if nothing is."""
    if control := re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", called.out + called.err):
        return f"holds the control character {control[0]!r}"
    if outcome == "ok":
        return ""
    if stdout == "pipe":  # nobody listens, and the shell looks at the last command of a pipe
        return ""
    if called.code != 2:
        return f"ended with {called.code}"
    own = re.findall(r"^lingualift: ", called.err, re.M)
    usage = re.findall(r"^Error: ", called.err, re.M) if called.err.startswith("Usage: ") else []
    if len(own) + len(usage) != 1:
        return f"{len(own) + len(usage)} messages"
    if own and ": " not in called.err.partition("lingualift: ")[2]:
        return "names no file, key or option"
    return ""


def innermost(error: BaseException) -> str:
    """File and function of the package that an exception came through last."""
    import lingualift

    package, found = Path(lingualift.__file__).parent, ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(package):
            found = f"{file.relative_to(package)}:{frame.f_code.co_name}"
    return found
