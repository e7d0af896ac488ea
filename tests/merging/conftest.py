"""Lets these tests import `adapter_folders` from the folder beside this one."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "adapters"))
