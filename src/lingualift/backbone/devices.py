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
