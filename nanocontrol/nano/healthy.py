"""Bands of healthy runs: the range of each number over the steps. train.py draws them behind the
curves of a run with the same settings.

`python -m nanocontrol.tools.healthy` writes healthy.json from runs that differ only in their seeds.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nanocontrol.plumbing.files import hash_of
from nanocontrol.training.settings import what_is_learnt

HEALTHY = Path(__file__).with_name("healthy.json")


def bands_for(settings: Any) -> dict[str, dict]:
    """The bands of healthy runs with these settings (a dataclass) and this base. For each number:
    the steps, the lowest and highest values, and the number of runs. Empty without such runs."""
    if not HEALTHY.exists():
        return {}
    healthy = json.loads(HEALTHY.read_text())
    same = same_but_seed(asdict(settings), healthy["settings"], type(settings))
    return healthy["numbers"] if same and hash_of(settings.base) == healthy["base"] else {}


def same_but_seed(a: Mapping[str, Any], b: Mapping[str, Any], of: type) -> bool:
    """Whether two runs differ only in their seeds, among the settings that affect the result."""
    one, other = ({**what_is_learnt(settings, of), "seed": 0} for settings in (a, b))
    return one == other
