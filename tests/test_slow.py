"""What takes minutes: the bundled weights' floors, and the whole of `python train.py`.

Run with  pytest -m slow
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def test_bundled_weights_reach_their_floors():
    command = [sys.executable, "-m", "nanocontrol.evaluate"]
    numbers = json.loads(subprocess.check_output(command, cwd=ROOT))
    assert numbers["vae_db"] >= 26 and numbers["iou"] >= 0.70
    assert numbers["background"] >= 0.95 and numbers["colours"] >= 0.90


def test_training_with_no_arguments_finds_the_jump(tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, str(ROOT / "train.py"), "--device", "cpu", "--out", str(run)]
    subprocess.run(command, check=True)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["iou"] >= 0.55 and metrics["control_gain"] > 0
    assert metrics["step_of_jump"] is not None and metrics["seconds"] < 480
