"""A step whose loss or gradients are not finite is skipped as a whole.

    torchrun ... tests/test_bad_numbers.py ...

is train.py with an infinite loss in the second process, in step 2.
"""

import json
import math
import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import train
from conftest import CONTROL, NANO, refusal, write_pairs
from in_float64 import no_pictures
from nanocontrol.nano import train as nano_train
from nanocontrol.training.optimizer import Optimizer
from nanocontrol.training.run import RunFolder

BAD = math.inf, -math.inf, math.nan
BAD_STEP = 2


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"), n=10)  # two are held out


@pytest.fixture
def flags(pairs, blind) -> list[str]:
    flags = ["--base", NANO, "--data", str(pairs), "--size", "64"]
    flags += ["--init-control", CONTROL, "--lr", "1e-4"]
    return [*flags, "--batch-size", "1", "--device", "cpu", "--dtype", "fp32"]


@pytest.fixture
def bad_draws(monkeypatch):
    """bad_draws(steps, pair): the noise of that pair is NaN in these steps, counted from 0."""
    original = train.random_draws

    def plant(steps, pair: int = 0) -> None:
        def random_draws(seed: int, step: int, *others) -> train.Draws:
            draws = original(seed, step, *others)
            if step in steps:
                draws.noise[pair] = math.nan
            return draws

        monkeypatch.setattr(train, "random_draws", random_draws)

    return plant


def strictly(text: str):
    """Parse JSON as the standard has it, without NaN and infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def log(run: str) -> list[dict]:
    return [strictly(line) for line in (Path(run) / "log.jsonl").read_text().splitlines()]


def state(run: str) -> dict:
    """Saved weights, moments and counters."""
    return flat({k: v for k, v in torch.load(Path(run) / "state.pt").items() if k != "seconds"})


def flat(tree, path: str = "") -> dict:
    if isinstance(tree, dict):
        return {k: v for key in tree for k, v in flat(tree[key], f"{path}/{key}").items()}
    return {path: tree}


def same(a: dict, b: dict) -> bool:
    """Whether two states are bitwise equal."""
    assert a.keys() == b.keys() and len(a) > 10
    return all(torch.equal(a[k], b[k]) if isinstance(a[k], Tensor) else a[k] == b[k] for k in a)


# ----------------------------------------------------------------------------------- one step


def trained_network(clip: float, dtype: str = "fp32") -> tuple[nn.Module, Optimizer]:
    """A network and its optimizer after two good steps."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = Optimizer({"net": network}, 1e-2, "cpu", dtype, clip=clip)
    good_step(network, optimizer), good_step(network, optimizer)
    return network, optimizer


def backward(network: nn.Module, optimizer: Optimizer) -> Tensor:
    x = torch.ones(1, 3, dtype=next(network.parameters()).dtype)
    loss = 1e-3 * network(x).square().sum().float()  # in fp16 it is multiplied by 65536
    optimizer.backward(loss)
    return loss.detach()


def good_step(network: nn.Module, optimizer: Optimizer) -> float:
    return optimizer.step(backward(network, optimizer)).item()


def state_of(network: nn.Module, optimizer: Optimizer) -> dict:
    """The optimizer's state and the weights, without the loss scale, which may change."""
    numbers = {k: v for k, v in optimizer.state().items() if k != "scaler"}
    return deepcopy(flat(numbers) | dict(network.named_parameters()))


@pytest.mark.parametrize("clip", [math.inf, 1.0])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_bad_step_changes_nothing_and_does_not_affect_the_next(clip, dtype):
    network, optimizer = trained_network(clip, dtype)
    before = state_of(network, optimizer)
    assert {int(v) for k, v in before.items() if k.endswith("/step")} == {2}
    for bad in BAD:  # in the loss only
        loss = backward(network, optimizer)
        assert math.isnan(optimizer.step(loss + bad))
        assert same(before, state_of(network, optimizer))
    for bad in (*BAD, 1e30):  # in one gradient only; 1e30 overflows when squared
        loss = backward(network, optimizer)
        optimizer.computing[-1].grad[-1] = bad
        assert math.isnan(optimizer.step(loss))
        assert same(before, state_of(network, optimizer))
    others, theirs = trained_network(clip, dtype)
    assert good_step(network, optimizer) == good_step(others, theirs)
    assert same(state_of(others, theirs), state_of(network, optimizer))
    assert not same(before, state_of(network, optimizer))


def test_one_bad_pass_skips_the_step():
    network, optimizer = trained_network(math.inf)
    before = state_of(network, optimizer)
    total = backward(network, optimizer)
    bad = backward(network, optimizer) * math.nan
    total = total + bad + backward(network, optimizer)
    assert math.isnan(optimizer.step(total)) and same(before, state_of(network, optimizer))


def test_skipping_a_step_needs_no_read_on_the_cpu():
    """On a GPU, the CPU would wait for such a read."""

    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            assert "_local_scalar_dense" not in str(function) and "nonzero" not in str(function)
            return function(*args, **kwargs or {})

    for clip in (math.inf, 1.0):
        network, optimizer = trained_network(clip)
        for bad in (0.0, math.nan):
            loss = backward(network, optimizer) + bad
            with Reads():
                optimizer.step(loss)


def test_fp16_lowers_its_scale_until_gradients_fit():
    network, optimizer = trained_network(math.inf, "fp16")
    before = optimizer.scaler.get_scale()
    for _ in range(16):  # to a scale of 1
        optimizer.backward(1e2 * network(torch.ones(1, 3).half()).square().sum().float())
        taken = optimizer.step(torch.zeros(())).isfinite().item()
        if taken:
            break
    assert taken and optimizer.scaler.get_scale() < before


# ------------------------------------------------------------------------------------- a run


@pytest.mark.slow
def test_a_skipped_step_is_counted_and_leaves_the_state_unchanged(flags, bad_draws):
    train.main([*flags, "--steps", "2", "--out", "before"])
    bad_draws([2, 4])
    train.main([*flags, "--steps", "3", "--out", "after"])
    before, after = state("before"), state("after")
    for name, numbers in {"step": (2, 3), "skipped_in_a_row": (0, 1)}.items():
        assert (before.pop(f"/{name}"), after.pop(f"/{name}")) == numbers
    assert same(before, after)
    train.main([*flags, "--steps", "6", "--out", "long"])
    entries = [entry for entry in log("long") if len(entry) > 1]
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4, 5, 6]
    assert [entry.get("skipped") for entry in entries] == [None, None, 1, None, 2, None]
    assert all(("loss" in entry) != ("skipped" in entry) for entry in entries)
    metrics = [strictly(Path(run, "metrics.json").read_text()) for run in ("before", "long")]
    assert [numbers["skipped"] for numbers in metrics] == [0, 2]


@pytest.mark.slow
def test_one_bad_pass_skips_the_step_of_a_run(flags, bad_draws):
    flags += ["--accumulate", "3"]
    train.main([*flags, "--steps", "1", "--out", "before"])
    bad_draws([1], pair=1)
    train.main([*flags, "--steps", "2", "--out", "after"])
    before, after = state("before"), state("after")
    for name in "step", "skipped_in_a_row":
        del before[f"/{name}"], after[f"/{name}"]
    assert same(before, after)


@pytest.mark.slow
def test_a_run_with_skipped_steps_resumes_bitwise(flags, bad_draws):
    bad_draws([1, 3])
    flags += ["--steps", "5", "--save-every", "2"]
    train.main([*flags, "--out", "whole"])
    original, calls = train.training_loss, []

    def power_cut(*args):
        calls.append(0)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*args)

    with pytest.raises(SystemExit):
        train.main([*flags, "--out", "cut"], loss=power_cut)
    assert state("cut")["/step"] == 2
    train.main(["--resume", "cut"])
    assert same(state("whole"), state("cut")) and log("whole") == log("cut")
    assert strictly(Path("cut", "metrics.json").read_text())["skipped"] == 2


@pytest.mark.slow
def test_ten_bad_steps_in_a_row_end_a_run_and_keep_the_last_good_state(flags, bad_draws, capsys):
    train.main([*flags, "--steps", "4", "--out", "good"])
    bad_draws([4, 5, 6, 7, 8, 9, 10, 11, 12, 13])  # losses are read after steps 10 and 20
    flags += ["--steps", "30"]
    message = refusal(train.main, capsys, *flags, "--out", "bad")
    for words in ("--lr 0.0001", "10 steps in a row", "NaN", "kept in", "bad"):
        assert words in message
    assert "fp32" not in message  # the run is already in fp32
    kept = state("bad")
    assert kept["/step"] == 20 and log("bad")[-1]["step"] == 20
    weights = train.load_control("bad/control.safetensors", train.load_sd(NANO).unet)
    assert all(
        torch.equal(weight, kept[f"/weights/control/{name}"])
        for name, weight in weights.state_dict().items()
    )
    assert sum("skipped" in entry for entry in log("bad")) == 10
    bad_draws(range(4, 30))
    refusal(train.main, capsys, *flags, "--out", "worse")
    good, worse = state("good"), state("worse")
    for name, numbers in {"step": (4, 20), "skipped_in_a_row": (0, 16)}.items():
        assert (good.pop(f"/{name}"), worse.pop(f"/{name}")) == numbers
    assert same(good, worse)


@pytest.mark.slow
def test_nine_bad_steps_in_a_row_do_not_end_a_run(flags, bad_draws):
    bad_draws([*range(0, 9), *range(10, 19)])
    train.main([*flags, "--steps", "21", "--out", "run"])
    assert strictly(Path("run", "metrics.json").read_text())["skipped"] == 18


@pytest.mark.slow
@pytest.mark.parametrize("part", ["vae", "detector"])
def test_nano_trainings_skip_bad_steps(part, monkeypatch):
    calls, original = [], nano_train.PARTS[part]

    def with_one_bad_loss(settings: nano_train.Settings) -> nano_train.Part:
        planted = original(settings)

        def loss(step: int, *others) -> Tensor:
            calls.append(step)
            return planted.loss(step, *others) * (math.nan if step == 1 else 1)

        return planted._replace(loss=loss)

    flags = [part, "--scenes", "8", "--batch-size", "2", "--device", "cpu", "--dtype", "fp32"]
    monkeypatch.setattr(nano_train, "HELD_OUT_SCENES", 4)
    monkeypatch.setattr(nano_train, "SHEET", 2)
    monkeypatch.setitem(nano_train.PARTS, part, with_one_bad_loss)
    nano_train.main([*flags, "--steps", "3", "--out", "run"])
    assert calls == [0, 1, 2]
    assert strictly(Path("run", "metrics.json").read_text())["skipped"] == 1
    assert all(x.isfinite().all() for x in state("run").values() if isinstance(x, Tensor))
    counters = {float(v) for k, v in state("run").items() if k.endswith("/step") and len(k) > 6}
    assert counters == {2.0}


def test_nan_is_null_in_the_log(tmp_path):
    run = RunFolder(tmp_path)
    run.log(1, score=math.nan, iou=math.inf, loss=0.5, gain=None)
    assert log(str(tmp_path)) == [
        {"step": 1, "score": None, "iou": None, "loss": 0.5, "gain": None}
    ]


@pytest.mark.slow
def test_processes_skip_together(flags, tmp_path):
    """One process has an infinite loss, but finite gradients."""
    flags += ["--steps", str(BAD_STEP + 1)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = [*torchrun, "--standalone", __file__, *flags, "--out", "two"]
    logs_here = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=logs_here)
    assert done.returncode == 0, done.stderr
    first, second = (flat(torch.load(f"{rank}.pt")) for rank in (0, 1))
    assert same(first, second)
    assert {float(v) for k, v in first.items() if k.endswith("/step")} == {BAD_STEP}
    assert strictly(Path("two", "metrics.json").read_text())["skipped"] == 1


def main() -> None:
    rank, steps, loss_of, optimizers = int(os.environ["RANK"]), [0], train.training_loss, []

    def training_loss(*args) -> Tensor:
        steps[0] += 1
        return loss_of(*args) + (math.inf if rank == 1 and steps[0] == BAD_STEP + 1 else 0)

    def optimizer_for(*args) -> Optimizer:
        optimizers.append(Optimizer_for(*args))
        return optimizers[0]

    Optimizer_for, train.optimizer_for = train.optimizer_for, optimizer_for
    with no_pictures():
        train.main(loss=training_loss)
    torch.save(optimizers[0].state(), f"{rank}.pt")


@pytest.mark.slow
def test_a_base_that_never_gives_a_finite_loss_is_named(flags, capsys):
    with safe_open(NANO, "pt") as file:
        metadata = file.metadata()
    weights = {name: weight.float() for name, weight in load_file(NANO).items()}
    weights["model.diffusion_model.input_blocks.0.0.weight"][:] = 3e38  # finite
    save_file(weights, "large.safetensors", metadata)
    more = ["--base", "large.safetensors", "--steps", "20", "--out", "run"]
    message = refusal(train.main, capsys, *flags, *more)
    assert "no loss was ever finite" in message and "large.safetensors" in message


if __name__ == "__main__":
    main()
