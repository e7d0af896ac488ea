"""What is done in processes of our own, the command line's and the workers', and never in a caller's."""

from __future__ import annotations

import gc

_ours = False


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
