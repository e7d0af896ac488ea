"""The device that models run on, and its memory."""

from __future__ import annotations

from pathlib import Path


def device() -> str:
    """Where models run: the first GPU, Apple's, or the processor."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def free_memory() -> int:
    """Bytes of this process's device that are free."""
    import psutil
    import torch

    if device() == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    free = int(psutil.virtual_memory().available)
    limit, used = (_cgroup_bytes(name) for name in ("memory.max", "memory.current"))
    return free if limit is None or used is None else min(free, max(0, limit - used))


def _cgroup_bytes(name: str) -> int | None:
    """A number of the container that this process runs in, where there is one."""
    try:
        return int(Path("/sys/fs/cgroup", name).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


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
