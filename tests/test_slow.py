"""What takes minutes: the bundled weights' floors, and the whole of `python train.py`.

Run with  pytest -m slow  (about half an hour).
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nanocontrol.nano.conditions import CONDITIONS

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def test_bundled_weights_reach_their_floors():
    command = [sys.executable, "-m", "nanocontrol.nano.evaluate"]
    numbers = json.loads(subprocess.check_output(command, cwd=ROOT))
    assert numbers["vae_db"] >= 26 and numbers["iou"] >= 0.70
    assert numbers["background"] >= 0.95 and numbers["colours"] >= 0.90


@pytest.mark.parametrize("condition", CONDITIONS)
def test_every_condition_is_learnt_and_its_jump_found(condition, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, str(ROOT / "train.py"), "--condition", condition]
    subprocess.run([*command, "--device", "cpu", "--out", str(run)], check=True)
    metrics = json.loads((run / "metrics.json").read_text())
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    first = next(entry["score"] for entry in log if "score" in entry)
    assert metrics["score"] >= first + 0.1 and metrics["control_gain"] > 0
    assert metrics["step_of_jump"] is not None and metrics["seconds"] < 300
