"""The process that runs: the device, memory and threads that it has; how one of our own begins, and is stopped.

Of our own are the command line's and the workers', never a caller's.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import torch

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # which ask a command to stop; Windows has no SIGHUP
_EVERY = 1.0  # seconds
_RESUMED = [[name] for name in ("demo", "lift", "run", "train", "train-head", "translate")]
_ours = False


class _Stop(KeyboardInterrupt):
    """Somebody stops the command.

    Args:
        code: What it exits with.
    """

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code


_stopping: _Stop | None = None


def run_command(module: str) -> None:
    """Run the command line, a module's `main`, in this process, and end it.

    0: done. 2: the user can mend it. 130 and 143: stopped from outside. 1: our bug.

    Args:
        module: Its name; it is imported here, which takes time in which one may stop.
    """
    for name in _SIGNALS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # which nohup asks for
            signal.signal(number, _stop)
    sys.unraisablehook = _unraisable
    try:
        importlib.import_module(module).main()
    except BaseException:
        if _stopping is None:
            raise
        stopped = _stopping
        _calm()
        _end_children()
        goes_on = "; the same command goes on where it was" if sys.argv[1:2] in _RESUMED else ""
        sys.stderr.write(f"lingualift: stopped{goes_on}\n")
        raise SystemExit(stopped.code) from None


def _stop(number: int, _: Any) -> NoReturn:
    """Unwind, as after Ctrl-C, so that workers end, scratch goes and the cursor comes back.

    What happens to run may swallow the exception: a destructor, a library that tries what it has. So it is raised again
    every second unless it still unwinds.
    """
    global _stopping
    _stopping = _stopping or _Stop(128 + number)
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, _stop_again)
        signal.setitimer(signal.ITIMER_REAL, _EVERY, _EVERY)
    raise _stopping


def _stop_again(number: int, _: Any) -> None:
    """Raise the stop again unless a `finally` or the like is at work on its behalf."""
    at: BaseException | None = sys.exc_info()[1]
    while at is not None and at is not _stopping:
        at = at.__context__
    if at is None and _stopping is not None:
        raise _stopping


def _unraisable(about: Any) -> None:
    """Say nothing of a stop that nobody could take up."""
    if about.exc_value is not _stopping:
        sys.__unraisablehook__(about)


def _calm() -> None:
    """Take no further stops: what is left to do is done in a moment."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)
    for name in _SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


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


def device() -> str:
    """Where models run: the first GPU, Apple's, or the processor."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def multiplies_slowly(dtype: torch.dtype, place: str) -> bool:
    """Whether torch has no fast product of matrices of this format on a device (`cpu`, `cuda`, …)."""
    import torch

    return place == "cpu" and dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def free_memory() -> int:
    """Bytes of this process's device that are free."""
    import psutil
    import torch

    if device() == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    free = int(psutil.virtual_memory().available)
    inside = _free_in_container(Path("/sys/fs/cgroup"))
    return free if inside is None else min(free, inside)


def _free_in_container(group: Path) -> int | None:
    """Bytes that a container (cgroup v2) leaves to its processes; None where there is no limit.

    Files that the kernel keeps in memory count as used there, and give way when the memory is needed.
    """
    try:
        limit, used = (
            int((group / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current")
        )
        told = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        cached = sum(int(told[name]) for name in ("active_file", "inactive_file", "slab_reclaimable"))
    except (OSError, ValueError, KeyError):
        return None
    return max(0, limit - used + min(used, cached))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the processor or a GPU."""
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, MemoryError) or (
        isinstance(error, Exception) and should_reduce_batch_size(error)
    )


def clear_memory() -> None:
    """Give back what no tensor uses any more."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)


def use_threads(count: int) -> None:
    """Bound this process's arithmetic to so many threads."""
    import torch

    torch.set_num_threads(count)
