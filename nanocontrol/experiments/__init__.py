"""The paper's claims, tried on nano. They call train.py, which is no part of the package."""

import sys
from importlib.util import find_spec

from nanocontrol.commands.clone import find_train

find_train()
if find_spec("train") is None:
    sys.exit("nanocontrol.experiments: train.py was not found: use `pip install -e .` in a clone")
