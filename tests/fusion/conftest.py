"""Small backbones of the real classes come from the tests of the families."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "families"))
