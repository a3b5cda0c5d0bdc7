"""The paper's claims, tried on nano. They call train.py, which is no part of the package."""

import sys
from importlib.util import find_spec

if find_spec("train") is None:
    sys.exit("nanocontrol.experiments: train.py was not found; run this in the repository's root")
