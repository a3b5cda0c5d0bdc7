"""Real photographs of several sizes, from scikit-image and scikit-learn."""

import json
from pathlib import Path

import numpy as np
import pytest

import sample
import train
from conftest import CONTROL, NANO, opened
from nanocontrol import load_control, load_sd
from nanocontrol.formats.tensors import read_tensors
from nanocontrol.nano.data import Source
from nanocontrol.training.measure import HeldOut
from nanocontrol.training.run import read_run

pytestmark = pytest.mark.slow  # importing the packages takes seconds


def test_a_training_on_photographs_runs(photos, hasty):
    flags = ["--data", str(photos), "--hints", "canny", "--mirror", "--steps", "3"]
    train.main([*flags, "--batch-size", "4", "--device", "cpu", "--out", "run"])
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["held_out_loss"] > 0 and 0 <= metrics["score"] <= 1 and metrics["skipped"] == 0
    sheet = np.asarray(opened("run/samples/000003.png"))
    assert sheet.shape[1] == 2 * 128  # two of eight photographs are held out


def test_the_best_weights_have_the_lowest_held_out_loss(photos, hasty):
    """In a short run of the training on photographs of training/README.md."""
    flags = ["--data", str(photos), "--hints", "canny", "--crop", "random", "--mirror"]
    flags += ["--unlock", "all", "--init-control", CONTROL, "--lr", "3e-4", "--batch-size", "2"]
    short = ["--steps", "5", "--sample-every", "1", "--keep", "all", "--device", "cpu"]
    train.main([*flags, *short, "--dtype", "fp32", "--out", "run"])
    run = read_run(Path("run"))
    losses = dict(run.measured("held_out_loss"))
    best = min(losses, key=losses.__getitem__)
    assert len({*losses.values()}) == 6

    def loss_of(base: Path, control: Path) -> float:
        sd = load_sd(base)
        _, others, _ = Source.of(run.settings).read(NANO, 1, 1)
        held_out = HeldOut.of(sd, others)
        return train.evaluate(sd, load_control(control, sd.unet), held_out, None, 2)[1][
            "held_out_loss"
        ]

    names = {step: f"-{step:07d}.safetensors" for step in losses}
    measured = {
        step: loss_of(*(Path(f"run/weights/{part}{name}") for part in ("base", "control")))
        for step, name in names.items()
    }
    away = sorted(losses.values())[1] - losses[best]  # the second best
    assert measured == pytest.approx(losses, abs=away / 4)
    kept = loss_of(Path("run/base-best.safetensors"), Path("run/control-best.safetensors"))
    assert kept == measured[best] == min(measured.values())
    assert read_tensors(Path("run/control-best.safetensors"))[1]["step"] == best


def test_pictures_are_sampled_from_the_edges_of_photographs(photos):
    for photo in [*photos.glob("*.png"), *photos.glob("*.jpg")]:
        hint = ["--hint", str(photo), "--canny", "100", "200", "--prompt", "a green ring"]
        sample.main([*hint, "--n", "1", "--steps", "1"])
        made, own = opened("out/000.png").size, opened(photo).size
        assert min(made) == 128 and made == tuple(
            round(side * 128 / min(own) / 64) * 64 for side in own
        )
