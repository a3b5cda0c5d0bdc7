"""The checks and trainings import train.py, which lies next to the package in a clone. An editable
install offers the package alone."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # the clone
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))
