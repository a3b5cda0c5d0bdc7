"""A suite that checks any implementation of ControlNet. See README.md.

from nanocontrol.conformance import check_controlnet
results = check_controlnet(adapter, expected_failures={"guess_mode": "the weights differ"})
"""

from nanocontrol.conformance.adapter import Adapter, TrainingBatch
from nanocontrol.conformance.cases import CONFIG, Config
from nanocontrol.conformance.suite import Result, check_controlnet

__all__ = ["CONFIG", "Adapter", "Config", "Result", "TrainingBatch", "check_controlnet"]
