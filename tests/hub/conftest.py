"""Lets these tests import `adapter_folders`, `commands` and the stand-in for the hub."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "spine"))
sys.path.insert(0, str(Path(__file__).parents[1] / "adapters"))
sys.path.insert(0, str(Path(__file__).parent))
