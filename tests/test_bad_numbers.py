"""A step whose loss or gradients are not finite changes nothing."""

import json
import math
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import train
from conftest import refusal
from nanocontrol.training.optimizer import Optimizer

pytestmark = pytest.mark.usefixtures("blind")


def strictly(text: str) -> dict:
    """JSON without NaN, which others could not read."""
    return json.loads(text, parse_constant=pytest.fail)


def log(run: str) -> list[dict]:
    lines = (Path(run) / "log.jsonl").read_text().splitlines()
    return [entry for entry in map(strictly, lines) if "loss" in entry]


class Trial:
    """A network of two layers, after one good step."""

    def __init__(self, dtype: str):
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 1))
        self.optimizer = Optimizer({"": self.network}, 1e-2, "cpu", dtype)
        self.step(self.loss())

    def loss(self) -> Tensor:
        x = torch.ones(2, 4).to(self.network[0].weight)
        return 0.01 * self.network(x).float().mean()  # times 65536 it fits into fp16

    def step(self, *passes: Tensor) -> None:
        for loss in passes:
            self.optimizer.backward(loss)
        self.optimizer.step()

    def all_numbers(self) -> list[Tensor]:
        state = self.optimizer.state()
        moments = [x for own in state["optimizer"]["state"].values() for x in own.values()]
        rounded = [p.detach() for p in self.network.parameters()]
        return deepcopy([*state["weights"][""].values(), *moments, *rounded])


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("bad", ["nan loss", "inf loss", "nan gradient", "one bad pass"])
def test_a_bad_step_changes_nothing(dtype, bad):
    trial = Trial(dtype)
    before = trial.all_numbers()
    if bad == "nan gradient":
        hook = trial.network[0].weight.register_hook(
            lambda g: torch.where(torch.arange(8)[:, None] == 3, math.nan, g)
        )
        trial.step(trial.loss())
        hook.remove()
    else:
        # What is added has no gradient: that of the weights would be finite.
        wrong = trial.loss() + (math.inf if bad == "inf loss" else math.nan)
        trial.step(*([trial.loss()] if bad == "one bad pass" else []), wrong)
    assert same(before, trial.all_numbers()) and trial.optimizer.steps_taken() == 1
    trial.step(trial.loss())
    assert not same(before, trial.all_numbers()) and trial.optimizer.steps_taken() == 2


def test_fp16_takes_a_smaller_scale_where_gradients_do_not_fit():
    trial = Trial("fp16")
    trial.step(trial.loss() * 10_000)
    assert trial.optimizer.steps_taken() == 1  # times 65536 that is beyond 65504
    for _ in range(8):
        trial.step(trial.loss() * 10_000)
    assert trial.optimizer.steps_taken() > 1 and trial.optimizer.scaler.get_scale() < 2.0**16


@pytest.fixture
def spoilt(monkeypatch):
    """Losses of these steps are NaN."""
    steps, calls, original = [], [0], train.training_loss

    def loss(*args):
        calls[0] += 1
        return original(*args) * (math.nan if calls[0] in steps else 1)

    monkeypatch.setattr(train, "training_loss", loss)
    return steps


FLAGS = ["--scenes", "8", "--batch-size", "2", "--device", "cpu", "--dtype", "fp32"]


def test_skipped_steps_are_counted_and_the_run_goes_on(spoilt):
    spoilt += [2, 3]
    train.main([*FLAGS, "--steps", "6", "--save-every", "3", "--out", "run"])
    entries = log("run")
    assert [entry["step"] for entry in entries if entry.get("skipped")] == [2, 3]
    assert [entry["loss"] is None for entry in entries] == [False, True, True, False, False, False]
    assert strictly(Path("run/metrics.json").read_text())["skipped_steps"] == 2


def test_a_run_that_skipped_steps_is_resumed_to_the_bit(spoilt, monkeypatch):
    spoilt += [2]
    train.main([*FLAGS, "--steps", "6", "--save-every", "3", "--out", "whole"])
    whole, spoilt[:] = log("whole"), [8]  # the second step of the next run
    train.main([*FLAGS, "--steps", "3", "--schedule", "constant", "--out", "cut"])
    train.main(["--resume", "cut", "--steps", "6"])
    assert [entry["loss"] for entry in log("cut")][:3] == [entry["loss"] for entry in whole][:3]
    assert [entry.get("skipped") for entry in log("cut")] == [None, True] + [None] * 4


def test_ten_skipped_steps_in_a_row_end_the_run(spoilt, capsys):
    spoilt += range(4, 14)
    flags = [*FLAGS, "--steps", "30", "--save-every", "2", "--out", "run"]
    message = refusal(train.main, capsys, *flags)
    assert "--lr" in message and "10 steps in a row" in message and "--dtype fp32" in message
    state = torch.load("run/state.pt", weights_only=True)
    assert all(weight.isfinite().all() for weight in state["weights"]["control"].values())
    assert len([entry for entry in log("run") if entry.get("skipped")]) == 10


def test_nine_skipped_steps_do_not(spoilt):
    spoilt += [*range(2, 11), *range(12, 14)]
    train.main([*FLAGS, "--steps", "14", "--save-every", "14", "--out", "run"])
    assert strictly(Path("run/metrics.json").read_text())["skipped_steps"] == 11
