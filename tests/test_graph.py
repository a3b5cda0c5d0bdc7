"""Replayed training steps, recorded on a tape of operations instead of a CUDA graph: tape.py."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tape import tapes

import train
from conftest import CONTROL, NANO, write_pairs
from in_float64 import no_pictures
from nanocontrol.plumbing.machine import Recorded
from nanocontrol.training import graph, optimizer
from nanocontrol.training.optimizer import Optimizer

# A learning rate that float32 holds exactly, falling from step 6 on; two passes in each step.
FLAGS = ["--base", NANO, "--init-control", CONTROL, "--data", "pairs", "--size", "64"]
FLAGS += "--device cpu --steps 8 --batch-size 1 --accumulate 2".split()
FLAGS += "--lr 0.0009765625 --schedule cooldown".split()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(graph, "is_gpu", lambda device: True)
    write_pairs(Path("pairs"), n=4)


def trained(out: str, *flags: str) -> dict[str, torch.Tensor]:
    with no_pictures():
        train.main([*FLAGS, "--out", out, *flags])
    return load_file(f"{out}/control.safetensors")


def replayed(out: str, *flags: str) -> dict[str, torch.Tensor]:
    with tapes() as made:
        weights = trained(out, "--graph", *flags)
    assert len(made) == 2  # a pass, and AdamW's step
    return weights


def equal(ours: dict, theirs: dict) -> bool:
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


def logged(run: str) -> list[dict]:
    return [json.loads(line) for line in Path(run, "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_replayed_steps_equal_eager_ones_bitwise():
    assert equal(replayed("replayed"), trained("eager"))
    assert logged("replayed") == logged("eager")


@pytest.mark.slow
def test_replayed_steps_in_half_precision_survive_an_overflow(monkeypatch):
    """The loss scale is so high that the first steps are skipped, also replayed ones."""
    scaler = partial(torch.amp.GradScaler, init_scale=2.0**22)
    monkeypatch.setattr(optimizer.torch.amp, "GradScaler", scaler)
    assert equal(replayed("replayed", "--dtype", "fp16"), trained("eager", "--dtype", "fp16"))
    assert logged("replayed") == logged("eager")
    skipped = [line["step"] for line in logged("eager") if "skipped" in line]
    assert 3 <= max(skipped) < 8, skipped


@pytest.mark.slow
def test_a_replayed_run_resumes_as_an_eager_one_and_back():
    for first, then in ((replayed, []), (trained, ["--graph"])):
        first("run", "--steps", "4", "--schedule", "constant")
        with tapes(), no_pictures():
            train.main(["--resume", "run", "--steps", "8", *then])
        Path("run").rename(f"run-{len(then)}")
    ours, theirs = (load_file(f"run-{n}/control.safetensors") for n in (0, 1))
    assert equal(ours, theirs)


@pytest.mark.slow
def test_planted_mistakes_change_the_weights(monkeypatch):
    eager = trained("eager")

    def replace_inputs(self, inputs):
        self.inputs = list(inputs)  # the graph still reads the old ones
        self.graph.replay()
        return self.output

    def bake_the_rate(self, lr):
        for group in self.adamw.param_groups:
            group["lr"] = lr

    for name, owner, mistake in (
        ("__call__", Recorded, replace_inputs),
        ("set_lr", Optimizer, bake_the_rate),
    ):
        with monkeypatch.context() as planted:
            planted.setattr(owner, name, mistake)
            assert not equal(replayed(name), eager)


def test_obstacles_are_named(monkeypatch, capsys):
    def said(size: int = 1, between: tuple = (), own_loss: bool = False) -> str:
        optimizer = SimpleNamespace(device="cuda", between=between, step=None)
        parts = graph.replayed(True, None, optimizer, SimpleNamespace(size=size), own_loss)
        assert parts == (None, None)
        return capsys.readouterr().out

    assert "several processes" in said(size=2)
    assert "--low-memory" in said(between=(torch.zeros(1),))
    assert "variant's own" in said(own_loss=True)
    monkeypatch.setattr(graph, "is_gpu", lambda device: False)
    assert "no GPU" in said()
