"""Running the steps of a plan on this machine, several at once."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Any

from lingualift.errors import UserError
from lingualift.languages import Language, knowing, known_here
from lingualift.pipeline.steps import Step
from lingualift.pipeline.store import STORE_FILE, Store, damage
from lingualift.processes import claim, device, settle, use_threads
from lingualift.terminal import Beat, Pulse


@dataclass(frozen=True)
class Event:
    """What happened: all steps are known ("plan"), one began ("start"), went on ("progress"), warned, failed, ended.

    Attributes:
        what: "plan", "start", "progress", "pulse", "warning", "failed" or "end". A pulse comes every half minute of a
            step that is running, however seldom it says how far it is.
        step: The step; the first one, for "plan".
        done: Units done so far, for "progress" and "pulse"; how many steps there are, for "plan".
        total: Units in all, for "progress" and "pulse" (0 while not known); the cost of all steps, for "plan".
        text: What it warned of, or failed by; how far it is, for "pulse".
        left: Seconds that are left, for "pulse"; None while not known.
    """

    what: str
    step: Step
    done: int = 0
    total: int = 0
    text: str = ""
    left: float | None = None


Watch = Callable[[Event], None]
_PATIENCE = 3.0  # seconds that a worker has to end by itself


def default_workers() -> int:
    """One worker where there is a GPU, else one per processor, at most 4."""
    return 1 if device() != "cpu" else min(4, processors())


def processors() -> int:
    """Processors that this process may use."""
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count() or 1


def run_locally(steps: Sequence[Step], store: Store, workers: int, watch: Watch) -> None:
    """Run steps, each after its inputs, in worker processes; a single worker is this process itself.

    Args:
        steps: In an order that has inputs first; inputs that are not among them are in the store.
        store: Gets the output of each step as soon as it is finished.
        workers: Steps at once.
        watch: Told what happens.

    Raises:
        UserError: a step's own; or a worker died. Steps that were finished stay in the store.
    """
    with _pulsing(watch) as told:
        _run(steps, store, workers, told)


@contextlib.contextmanager
def _pulsing(watch: Watch) -> Iterator[Watch]:
    """A watch that is told of every running step each half minute too, never of two things at once."""
    lock = threading.Lock()

    def tell(step: Step, beat: Beat) -> None:
        with lock:
            watch(Event("pulse", step, beat.done, beat.total, str(beat), beat.left()))

    def told(event: Event) -> None:
        if event.what == "start":
            pulse.start(event.step)
        elif event.what == "progress":
            pulse.progress(event.step, event.done, event.total)
        elif event.what in ("failed", "end"):
            pulse.end(event.step)
        with lock:
            watch(event)

    with Pulse(tell) as pulse:
        yield told


def _run(steps: Sequence[Step], store: Store, workers: int, watch: Watch) -> None:
    if workers == 1:
        for step in steps:
            _here(step, store, watch)
        return
    context = _context()
    reports = context.Queue()
    threads = max(1, processors() // workers)
    before = set(multiprocessing.active_children())
    with concurrent.futures.ProcessPoolExecutor(
        min(workers, max(1, len(steps))),
        context,
        _begin,
        (reports, threads, dict(os.environ), known_here()),
    ) as pool:
        try:
            _drive(pool, steps, store, workers, watch, reports)
        except BrokenProcessPool:
            raise UserError(
                "worker process",
                "died without a word, as it does when memory runs out",
                mend="lower `workers` or the batch size, then run the same command again: finished steps are kept; in "
                "a script, call `run` under `if __name__ == '__main__':`, which worker processes need",
            ) from None
        except BaseException:
            _end(set(multiprocessing.active_children()) - before)
            raise


def _end(workers: set[Any]) -> None:
    """End workers at once: nobody waits for what they do, and the next run goes on from their checkpoints."""
    for worker in workers:
        worker.terminate()
    limit = time.monotonic() + _PATIENCE
    for worker in workers:
        worker.join(max(0.0, limit - time.monotonic()))
        if worker.is_alive():
            worker.kill()


def expect_workers(workers: int | None) -> None:
    """Start the fork server of a run that will come, so that it imports while this process plans."""
    if (workers or default_workers()) > 1 and _context().get_start_method() == "forkserver":
        from multiprocessing import forkserver

        with _deaf():
            forkserver.ensure_running()


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Start processes that do not hear a Ctrl-C of the terminal, from their first moment on: the run ends them itself.

    This process hears it when the block is over.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # which would let this process hear again, were it started in the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _context() -> Any:
    """How worker processes are started: by a fork server on Linux, each by itself elsewhere and where there is a GPU.

    The server is a fresh process, which has imported the libraries before it forks the first worker; it stays for
    the next run, until this process ends. What this process holds (threads, locks, models) never reaches a worker.
    A GPU does not survive a fork once a library has so much as counted the devices, as bitsandbytes does while it is
    imported: where there is one, no worker is forked.
    """
    if sys.platform != "linux" or device() != "cpu":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lingualift.pipeline.server"])
    return context


def _here(step: Step, store: Store, watch: Watch) -> None:
    watch(Event("start", step))
    with _told(step, watch):
        run_step(step, store, lambda done, total: watch(Event("progress", step, done, total)))
    _ended(step, store, watch)


@contextlib.contextmanager
def _told(step: Step, watch: Watch) -> Iterator[None]:
    """Pass an error of the step on, and tell of it."""
    try:
        yield
    except Exception as error:
        watch(Event("failed", step, text=str(error) or type(error).__name__))
        raise


def _ended(step: Step, store: Store, watch: Watch) -> None:
    for warning in store.recipe(step)["warnings"]:
        watch(Event("warning", step, text=warning))
    watch(Event("end", step))


def run_step(step: Step, store: Store, progress: Callable[[int, int], None]) -> None:
    """Run one step into the store; of two processes with one store, the later one takes what the first made."""
    inputs = {role: store.folder(source) for role, source in step.inputs.items()}
    done = False
    with _there(store):
        for source in step.inputs.values():
            if not store.has(source):
                found = f"was altered or removed while the run went on ({damage(store.folder(source))})"
                mend = "run the same command again: it is made anew"
                raise UserError(store.folder(source), found, mend=mend)
        with store.writing(step) as output:
            if output is not None:
                step.run(inputs, output, store.work(step), progress)
                done = True
        if done:
            store.clear_work(step)


@contextlib.contextmanager
def _there(store: Store) -> Iterator[None]:
    """Say it in a word where the store is removed while a step works in it, whatever fails then."""
    try:
        yield
    except Exception as error:
        if (store.root / STORE_FILE).is_file():
            raise
        mend = "run the same command again: what is gone is made anew"
        raise UserError(store.root, "was removed while the run went on", mend=mend) from error


def ways(steps: Sequence[Step], cost: Callable[[Step], float]) -> dict[str, float]:
    """Key of each step -> the cost of the longest way from its start to an end; steps come after their inputs."""
    found: dict[str, float] = {}
    behind: dict[str, float] = {}
    for step in reversed(steps):
        found[step.key] = cost(step) + behind.get(step.key, 0.0)
        for source in step.inputs.values():
            behind[source.key] = max(behind.get(source.key, 0.0), found[step.key])
    return found


def _drive(
    pool: concurrent.futures.ProcessPoolExecutor,
    steps: Sequence[Step],
    store: Store,
    workers: int,
    watch: Watch,
    reports: Any,
) -> None:
    """Keep as many steps running as there are workers, those first that most work hangs on."""
    way = ways(steps, lambda step: step.cost)
    waiting = {step.key: step for step in sorted(steps, key=lambda step: -way[step.key])}
    running: dict[concurrent.futures.Future[None], Step] = {}
    unfinished = set(waiting)
    while waiting or running:
        ready = [
            step
            for step in waiting.values()
            if not any(source.key in unfinished for source in step.inputs.values())
        ]
        for step in ready[: workers - len(running)]:
            del waiting[step.key]
            with _deaf():
                future = pool.submit(_in_worker, step, store)
            running[future] = step
            watch(Event("start", step))
        done, _ = concurrent.futures.wait(
            running, timeout=0.1, return_when=concurrent.futures.FIRST_COMPLETED
        )
        for key, at, total in _drain(reports):
            for step in running.values():
                if step.key == key:
                    watch(Event("progress", step, at, total))
        for future in done:
            step = running.pop(future)
            with _told(step, watch):
                future.result()
            unfinished.discard(step.key)
            _ended(step, store, watch)


def _drain(reports: Any) -> Iterator[tuple[str, int, int]]:
    while True:
        try:
            yield reports.get_nowait()
        except queue.Empty:
            return


# Of a worker process: where it tells how far it is, and the languages that its run adds.
_reports: Any = None
_own: tuple[Language, ...] = ()


def _begin(reports: Any, threads: int, environment: dict[str, str], own: tuple[Language, ...]) -> None:
    global _reports, _own
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    os.environ.clear()  # a server's is as old as the server
    os.environ.update(environment)
    warnings.filterwarnings("ignore", category=FutureWarning)  # of the libraries, to their own users
    _reports, _own = reports, own
    make_ready()
    use_threads(threads)


def make_ready() -> None:
    """Import all that trains and scores into a process of ours."""
    import datasets  # noqa: F401
    import peft  # noqa: F401
    from transformers import AutoModelForCausalLM, Trainer  # noqa: F401

    import lingualift.evaluation.runner
    import lingualift.merging  # noqa: F401

    claim()
    settle()


def _end_with(run: Any) -> None:
    """End this worker when the process that started the run is gone: a killed run leaves nothing running behind."""
    run.join()
    os._exit(1)


def _in_worker(step: Step, store: Store) -> None:
    with knowing(_own):
        run_step(step, store, lambda done, total: _reports.put((step.key, done, total)))
