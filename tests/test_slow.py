"""Minimum scores of the bundled weights, whole runs of train.py, and an installed copy."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import CONTROL, NANO, ROOT
from nanocontrol.nano.conditions import CONDITIONS


@pytest.mark.long
def test_bundled_weights_reach_their_minimum_scores():
    command = [sys.executable, "-m", "nanocontrol.nano.evaluate"]
    numbers = json.loads(subprocess.check_output(command, cwd=ROOT))
    assert numbers["vae_db"] >= 36 and numbers["noisy_db"] >= 35 and numbers["iou"] >= 0.9
    assert numbers["edges"]["rebuilt"] >= 0.95 and numbers["edges"]["with"] >= 0.88
    assert min(numbers[name] for name in ("background", "colours", "shapes")) >= 0.95
    follows = {name: found["follows"] for name, found in numbers["conditions"].items()}
    assert follows["canny"] >= 0.8 and min(follows["depth"], follows["pose"]) >= 0.7


@pytest.mark.long
@pytest.mark.parametrize("condition", CONDITIONS)
def test_every_condition_is_learnt_with_a_jump(condition, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, str(ROOT / "train.py"), "--condition", condition]
    subprocess.run([*command, "--device", "cpu", "--out", str(run)], check=True)
    metrics = json.loads((run / "metrics.json").read_text())
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    scores = [entry["score"] for entry in log if "score" in entry]  # all on the same scenes
    assert scores[-1] >= scores[0] + 0.1 and metrics["control_gain"] > 0
    assert metrics["step_of_jump"] is not None


@pytest.mark.slow
def test_an_installed_copy_works_from_another_folder(tmp_path):
    pytest.importorskip("setuptools")
    source, site, elsewhere = tmp_path / "source", tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    without = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "nanocontrol", source / "nanocontrol", ignore=without)
    for file in "setup.cfg", "pyproject.toml":
        shutil.copy(ROOT / file, source / file)
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*install, "--target", str(site), str(source)], check=True)
    files = [file for file in (source / "nanocontrol").rglob("*") if file.is_file()]
    data = [file for file in files if file.suffix not in (".py", ".md")]
    assert "healthy.json" in {file.name for file in data}
    for file in data:
        assert (site / file.relative_to(source)).read_bytes() == file.read_bytes()
    weights = ["--base", NANO, "--control", CONTROL]
    weights += ["--detector", str(Path(NANO).with_name("nano-detector.safetensors"))]
    command = [sys.executable, "-m", "nanocontrol.nano.evaluate", "--n", "2", *weights]
    environment = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "canny" in json.loads(done.stdout)["conditions"]
    where = [sys.executable, "-c", "import nanocontrol; print(nanocontrol.__file__)"]
    found = subprocess.check_output(where, cwd=elsewhere, env=environment, text=True)
    assert found.startswith(str(site))
