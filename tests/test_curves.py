"""The curves of a run, and what healthy runs have in common."""

import json
from pathlib import Path

import numpy as np
import pytest

import train
from conftest import opened, refusal
from nanocontrol.nano import healthy
from nanocontrol.training import curves, watch
from nanocontrol.training.curves import draw_curves

SETTINGS = {"base": "/somewhere/nano.safetensors", "steps": 40, "lr": 1e-3, "seed": 0, "out": "x"}


def history(gain: float) -> list[dict]:
    losses = [{"step": step, "loss": 0.1} for step in range(40)]
    looks = [{"step": s, "held_out_loss": 0.1, "control_gain": gain * s} for s in (0, 20, 40)]
    return losses + looks


def run(name: str, gain: float, **settings) -> Path:
    folder = Path(name)
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps(SETTINGS | settings, indent=1))
    (folder / "log.jsonl").write_text("".join(json.dumps(e) + "\n" for e in history(gain)))
    return folder


def is_of(colour: tuple[int, int, int], picture: np.ndarray) -> int:
    return (np.abs(picture.astype(int) - colour).max(axis=-1) < 12).sum()


@pytest.mark.slow
def test_curves_are_drawn_over_the_band_of_healthy_runs():
    pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")
    band = {"runs": 2, "steps": [0, 20, 40], "lowest": [0, 1, 2], "highest": [1, 2, 3]}
    pictures = []
    for bands in ({}, {"control_gain": band}):
        draw_curves(history(0.05), Path("curves.png"), bands)
        pictures.append(np.asarray(opened("curves.png").convert("RGB")))
    plain, banded = pictures
    line, shade = (0x20, 0x40, 0x80), (221, 226, 236)
    assert is_of(line, plain) > 300 and is_of(line, banded) > 300
    assert is_of(shade, banded) > is_of(shade, plain) + 2000
    draw_curves(history(0.05)[:1], Path("one.png"), {})  # a run of one step
    assert opened("one.png").size == opened("curves.png").size


@pytest.mark.slow
def test_a_training_leaves_its_curves(blind, monkeypatch):
    pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")
    monkeypatch.setattr(watch, "draw_curves", draw_curves)  # which `blind` leaves out
    train.main(["--steps", "2", "--batch-size", "1", "--device", "cpu", "--out", "run"])
    assert opened("run/curves.png").size == (800, 900)


def test_without_matplotlib_it_says_what_brings_it(capsys, monkeypatch):
    monkeypatch.setattr(curves, "find_spec", lambda name: None)
    draw_curves(history(0.05), Path("curves.png"), {})
    assert 'pip install -e ".[plots]"' in capsys.readouterr().err
    assert not Path("curves.png").exists()


def test_bands_are_the_lowest_and_highest_of_runs_with_other_seeds(monkeypatch, capsys):
    monkeypatch.setattr(healthy, "HEALTHY", Path("healthy.json"))
    assert healthy.bands_for(SETTINGS) == {}
    runs = [run("a", 0.1), run("b", 0.3, seed=1, out="y"), run("c", 0.2, seed=2)]
    healthy.main([*map(str, runs)])
    numbers = healthy.bands_for(SETTINGS | {"seed": 9, "base": "elsewhere/nano.safetensors"})
    assert numbers["control_gain"] == {
        "runs": 3,
        "steps": [0, 20, 40],
        "lowest": [0.0, 2.0, 4.0],
        "highest": [0.0, 6.0, 12.0],
    }
    assert healthy.bands_for(SETTINGS | {"lr": 1e-4}) == {}
    other = str(run("d", 0.2, lr=1e-4))
    assert "other seeds only" in refusal(healthy.main, capsys, "a", other)
    assert "nowhere: no settings.json" in refusal(healthy.main, capsys, "nowhere")
    short = run("e", 0.2)
    (short / "log.jsonl").write_text(json.dumps(history(0.1)[-1]) + "\n")
    assert "same steps" in refusal(healthy.main, capsys, "a", "e")
    other = run("f", 0.2, base=None)
    (other / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    assert "f was never measured" in refusal(healthy.main, capsys, "f")
