"""Lets these tests import `adapter_folders`, `commands` and the stand-in for the hub."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "spine"))
sys.path.insert(0, str(HERE.parent / "adapters"))
sys.path.insert(0, str(HERE))
