"""Commands around a checkpoint or a run. Some call train.py, which is no part of the package."""

from nanocontrol.commands.clone import find_train

find_train()
