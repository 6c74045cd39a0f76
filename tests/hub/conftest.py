"""The fake Hub for every test of this folder."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fake_hub import fake_hub  # noqa: F401
