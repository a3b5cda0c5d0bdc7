"""Real photographs of several sizes, from scikit-image and scikit-learn."""

import json
from pathlib import Path

import numpy as np
import pytest

import sample
import train
from conftest import opened

pytestmark = pytest.mark.slow  # importing the packages takes seconds


def test_a_training_on_photographs_runs(photos, hasty):
    flags = ["--data", str(photos), "--hints", "canny", "--mirror", "--steps", "3"]
    train.main([*flags, "--batch-size", "4", "--device", "cpu", "--out", "run"])
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["held_out_loss"] > 0 and 0 <= metrics["score"] <= 1 and metrics["skipped"] == 0
    sheet = np.asarray(opened("run/samples/000003.png"))
    assert sheet.shape[1] == 2 * 128  # two of eight photographs are held out


def test_pictures_are_sampled_from_the_edges_of_photographs(photos):
    for photo in [*photos.glob("*.png"), *photos.glob("*.jpg")]:
        hint = ["--hint", str(photo), "--canny", "100", "200", "--prompt", "a green ring"]
        sample.main([*hint, "--n", "1", "--steps", "1"])
        made, own = opened("out/000.png").size, opened(photo).size
        assert min(made) == 128 and made == tuple(
            round(side * 128 / min(own) / 64) * 64 for side in own
        )
