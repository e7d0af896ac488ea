"""Lets these tests import `adapter_folders`, `commands` and the stand-in for the hub."""

import sys
from pathlib import Path

sys.path[:0] = [
    str(Path(__file__).parent),
    *(str(Path(__file__).parents[1] / name) for name in ("adapters", "spine")),
]
