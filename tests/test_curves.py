"""A run's curves, drawn over the band of healthy runs."""

from pathlib import Path

import numpy as np
import pytest

import train
from conftest import opened
from nanocontrol.training import curves, watch
from nanocontrol.training.curves import draw_curves


def history(gain: float) -> list[dict]:
    losses = [{"step": step, "loss": 0.1} for step in range(40)]
    evaluations = [{"step": s, "held_out_loss": 0.1, "control_gain": gain * s} for s in (0, 20, 40)]
    return losses + evaluations


def pixels_of(colour: tuple[int, int, int], picture: np.ndarray) -> int:
    return (np.abs(picture.astype(int) - colour).max(axis=-1) < 12).sum()


@pytest.mark.slow
def test_curves_are_drawn_over_the_band_of_healthy_runs():
    pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")
    band = {"runs": 2, "steps": [0, 20, 40], "lowest": [0, 1, 2], "highest": [1, 2, 3]}
    pictures = []
    for bands in ({}, {"control_gain": band}):
        draw_curves(history(0.05), Path("curves.png"), bands, note=True)
        pictures.append(np.asarray(opened("curves.png").convert("RGB")))
    plain, banded = pictures
    line, shade = (0x20, 0x40, 0x80), (221, 226, 236)
    assert pixels_of(line, plain) > 300 and pixels_of(line, banded) > 300
    assert pixels_of(shade, banded) > pixels_of(shade, plain) + 2000
    draw_curves(history(0.05)[:1], Path("one.png"), {}, note=True)  # a run of one step
    assert opened("one.png").size == opened("curves.png").size


@pytest.mark.slow
def test_a_training_draws_its_curves_at_every_evaluation(blind, monkeypatch):
    pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")
    steps = []

    def drawn(history, path, *others, **more):  # `blind` replaces it
        path.unlink(missing_ok=True)
        draw_curves(history, path, *others, **more)
        assert opened(path).size == (800, 900)
        steps.append(history[-1]["step"])

    monkeypatch.setattr(watch, "draw_curves", drawn)
    short = ["--steps", "4", "--batch-size", "1", "--sample-every", "2", "--device", "cpu"]
    train.main([*short, "--out", "run"])
    assert steps == [0, 2, 4, 4]  # the last time at the end of the run


def test_without_matplotlib_the_extra_to_install_is_named(capsys, monkeypatch):
    monkeypatch.setattr(curves, "find_spec", lambda name: None)
    draw_curves(history(0.05), Path("curves.png"), {}, note=False)
    assert not capsys.readouterr().err
    draw_curves(history(0.05), Path("curves.png"), {}, note=True)
    assert 'pip install -e ".[plots]"' in capsys.readouterr().err
    assert not Path("curves.png").exists()
