"""The frame of the experiments: its arithmetic, its variants, a run from end to end."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import train
from conftest import ROOT
from nanocontrol import DDPM
from nanocontrol.experiments import __main__ as command
from nanocontrol.experiments import (
    beginnings,
    cross_norm,
    encoder_at_size,
    first_steps,
    light,
    looks,
    numbers,
    readme,
    rule,
    runs,
    weighting,
)
from nanocontrol.experiments.arm import PLAIN, Arm, models_of, settings_of, variant_of
from nanocontrol.experiments.experiment import NAMES, experiment_of
from nanocontrol.experiments.results import Results, results_of, run_as_json, write_results
from nanocontrol.nano.scenes import Scenes
from nanocontrol.plumbing.errors import InputError
from nanocontrol.training import watch
from nanocontrol.training.start import Signals

README = ROOT / "nanocontrol" / "experiments" / "README.md"
EXPERIMENTS = [experiment_of(name) for name in NAMES]
BROUGHT = 'the extra `photos` is not installed: pip install -e ".[photos]"'
TINY = {"steps": 2, "batch_size": 2, "scenes": 4, "sample_every": 1, "save_every": 1}


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    """Trainings draw few scenes to measure with, and no curves."""
    monkeypatch.setattr(
        train, "Scenes", lambda *which, n, size: Scenes(*which, n=min(n, 4), size=size)
    )
    monkeypatch.setattr(watch, "draw_curves", lambda *_: None)


@pytest.fixture
def few(monkeypatch, hasty):
    """Two scenes are looked at, and pictures are made in one step."""
    monkeypatch.setattr(looks, "DURING", 2)
    monkeypatch.setattr(looks, "AT_END", 3)


# ------------------------------------------------------------------------------- the arithmetic


def test_the_area_is_the_mean_over_the_steps():
    assert numbers.area([(0, 0.5), (10, 0.5), (40, 0.5)]) == 0.5
    assert numbers.area([(0, 0.0), (10, 0.0), (40, 1.0)]) == pytest.approx(15 / 40)


def test_the_step_of_the_jump_lies_between_two_looks():
    flat = [(0, 0.2), (25, 0.3), (50, 0.3)]
    assert numbers.step_of_jump(flat) is None
    assert numbers.step_of_jump([*flat, (75, 0.7), (100, 0.6)]) == pytest.approx(56.25)
    assert numbers.step_of_jump([(0, 0.6), (25, 0.7)]) == 0


def test_the_width_is_that_of_the_rise_and_not_of_the_wait():
    rise = [(0, 0.2), (100, 0.2), (140, 1.0), (200, 1.0)]
    assert numbers.width_of_jump(rise) == pytest.approx(20)
    # What is noisy before the rise does not widen it: the last quarter before it counts.
    noisy = [(0, 0.2), (50, 0.45), (100, 0.2), (140, 1.0), (200, 1.0)]
    assert numbers.width_of_jump(noisy) == pytest.approx(20)
    slow = [(0, 0.2), (200, 1.0)]
    assert numbers.width_of_jump(slow) == pytest.approx(100)
    assert numbers.width_of_jump([(0, 0.2), (200, 0.3)]) is None


def test_a_band_is_of_the_same_steps():
    steps, lowest, mean, highest = numbers.band([[(0, 1.0), (5, 2.0)], [(0, 3.0), (5, 6.0)]])
    assert (steps, lowest, mean, highest) == ([0, 5], [1, 2], [2, 4], [3, 6])
    with pytest.raises(ValueError, match="same steps"):
        numbers.band([[(0, 1.0)], [(1, 1.0)]])


def test_arms_differ_where_their_ranges_do_not_meet():
    assert numbers.apart([1, 2, 3], [4, 5]) and numbers.apart([4, 5], [1, 2, 3])
    assert not numbers.apart([1, 2, 4.5], [4, 5])


def test_a_spread_is_said_in_words():
    assert numbers.spoken([0.5, 0.6, 0.55]) == "0.55 (0.50 to 0.60)"
    assert numbers.spoken([100.0, None], 0) == "100, none in 1 of 2"
    assert numbers.spoken([None]) == "none"


# ----------------------------------------------------------------------------------- the arms


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=NAMES)
def test_an_experiment_is_whole(experiment):
    names = [arm.name for arm in experiment.arms]
    assert len(names) == len(set(names)) and len(experiment.expected.split()) > 20
    for arm in experiment.arms:  # (refuses settings that train.py does not have)
        settings_of(arm, 0, Path("run"))
    assert set(experiment.quick) <= {*names} and len(experiment.quick) in (0, 2)
    assert {name for panel in experiment.panels for name in panel.arms} <= {*names}


def test_arms_of_one_name_are_one_arm():
    """Their folders are the same."""
    every = [arm for experiment in EXPERIMENTS for arm in experiment.arms]
    for arm in every:
        assert all(other is arm for other in every if other.name == arm.name), arm.name


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def trained(arm: Arm, folder: str, use: train.Variant | None) -> tuple[dict, list[float]]:
    """Its weights and losses, after steps too few to be looked at more than twice."""
    arm = replace(arm, settings=dict(arm.settings) | TINY | {"sample_every": 9})
    with Signals() as signals:
        train.train(settings_of(arm, 0, Path(folder)), signals, False, use)
    losses = [entry["loss"] for entry in log_of(Path(folder)) if "loss" in entry]
    return load_file(f"{folder}/control.safetensors"), losses


def identity(residual, skip):
    return residual


TAKEN_OUT = {
    "plain": PLAIN,
    "gaussian": Arm("", start=beginnings.gaussian_convolutions(share=0)),
    "cross norm": Arm("", start=cross_norm.cross_norm(identity, lambda *_: None)),
    "light": Arm("", start=light.blocks_by(light.as_it_is)),
    "random copy": Arm("", start=light.random_weights(parts=())),
}


@cache
def plain_training() -> tuple[dict, list[float]]:
    return trained(PLAIN, "plain", None)


@pytest.mark.slow
@pytest.mark.parametrize("arm", TAKEN_OUT.values(), ids=TAKEN_OUT)
def test_without_its_difference_an_arm_is_the_plain_training_to_the_bit(arm, blind):
    plain, losses = plain_training()
    weights, own_losses = trained(arm, "arm", variant_of(arm)._replace(measured=train.measured))
    assert own_losses == losses and weights.keys() == plain.keys()
    assert all(torch.equal(weights[name], plain[name]) for name in plain)


@pytest.mark.slow
def test_the_variance_keeping_start_is_that_of_train_py():
    ours = models_of(
        Arm("", start=beginnings.variance_keeping(1.4)), settings_of(PLAIN, 0, Path("a"))
    )[1]
    variance = Arm("", {"hint_init": "variance"})
    theirs = models_of(variance, settings_of(variance, 0, Path("b")))[1]
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


CHANGED = {
    "half as deep": Arm("", start=beginnings.half_as_deep),
    "one zero convolution": Arm("", start=beginnings.one_zero_convolution),
    "gaussian": Arm("", start=beginnings.gaussian_convolutions()),
    "cross norm": Arm("", start=cross_norm.cross_norm()),
    "lite": Arm("", start=light.blocks_by(light.one_convolution)),
    "lite wide": Arm("", start=light.blocks_by(light.as_many_weights)),
    "random copy": Arm("", start=light.random_weights()),
}


@pytest.mark.slow
@pytest.mark.parametrize("arm", CHANGED.values(), ids=CHANGED)
def test_with_its_difference_an_arm_trains_another_network(arm, blind):
    plain, _ = plain_training()
    weights, _ = trained(arm, "arm", variant_of(arm)._replace(measured=train.measured))
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    assert weights.keys() != plain.keys() or any(
        weights[name].shape != plain[name].shape or not torch.equal(weights[name], plain[name])
        for name in plain
    )


def test_weights_and_draws_are_those_of_their_papers():
    t = torch.tensor([0, 250, 500, 999])
    abar = DDPM().alphas_cumprod[t]
    snr = abar / (1 - abar)
    assert snr[0] > 5 and snr[-1] < 0.01
    assert torch.allclose(weighting.like_x0(t, most=1e9), 1 / snr)
    assert weighting.like_x0(t)[-1] == 5
    assert torch.allclose(weighting.min_snr(t), torch.minimum(snr, torch.tensor(5.0)) / snr)
    every = torch.arange(1000)
    drawn = weighting.late(every)
    assert drawn.min() >= 0 and drawn.max() <= 999
    assert drawn.float().mean() == pytest.approx(750, abs=2)  # of 1 - u^3 it is 3/4


def test_a_weight_multiplies_a_pairs_loss(blind):
    """As if each pair's loss were computed by itself."""
    settings = settings_of(PLAIN, 0, Path("run"))
    sd, control, _ = models_of(PLAIN, settings)
    draws = train.random_draws(0, 0, 3, (64, 64), 0.0)
    latent, hint = torch.randn(3, 4, 8, 8), torch.rand(3, 3, 64, 64)
    batch = train.Batch(latent, latent.exp(), torch.randn(3, 77, 64), hint)
    weights = torch.tensor([0.5, 1.0, 4.0])
    given = sd.unet, control, DDPM(), 1.0
    empty = torch.zeros(1, 77, 64)
    weighted = variant_of(Arm("", weight=lambda t: weights)).training_loss
    whole = weighted(*given, batch, draws, empty)
    each = [
        train.training_loss(*given, train.Batch(*(x[i : i + 1] for x in batch)), one, empty)
        for i, one in ((i, draws.of(slice(i, i + 1))) for i in range(3))
    ]
    torch.testing.assert_close(whole, (torch.stack(each) * weights).mean())


def test_cross_normalization_gives_a_residual_the_skips_mean_and_deviation():
    residual, skip = torch.randn(2, 3, 4, 4), 5 * torch.randn(2, 3, 4, 4) + 2
    matched = cross_norm.matched(residual, skip) / cross_norm.STRENGTH
    torch.testing.assert_close(matched.mean((1, 2, 3)), skip.mean((1, 2, 3)), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(matched.std((1, 2, 3)), skip.std((1, 2, 3)), rtol=1e-3, atol=1e-3)


def test_a_rule_is_found_again_in_what_it_made():
    powers = [0.5, -0.2, -0.8, -0.1]
    made = torch.Generator().manual_seed(0)
    rows = np.hstack([np.ones((9, 1)), torch.randn(9, 3, generator=made).numpy()])
    assert np.allclose(
        rule.fitted([(rows[:4], rows[:4] @ powers), (rows[4:], rows[4:] @ powers)]), powers
    )
    assert rule.off_by(rows, rows @ powers + np.log(1.3), np.array(powers)) == pytest.approx(1.3)


@pytest.mark.slow
def test_a_light_network_has_as_many_weights_as_the_copy():
    settings = settings_of(PLAIN, 0, Path("run"))
    copy, wide, lite = (
        models_of(Arm("", start=light.blocks_by(make)), settings)[1]
        for make in (light.as_it_is, light.as_many_weights, light.one_convolution)
    )
    n, n_wide, n_lite = (
        sum(p.numel() for b in (net.input_blocks, net.middle_block) for p in b.parameters())
        for net in (copy, wide, lite)
    )
    assert abs(n_wide / n - 1) < 0.01 and n_lite < n / 2


# ------------------------------------------------------------------------------ runs and files


class Here:
    """As a process that has ended."""

    returncode = 0

    def poll(self) -> int:
        return 0


@pytest.fixture
def in_this_process(monkeypatch):
    """Runs are trained here, where the tests have made looks cheap."""

    def begin(run):
        runs.train_run(run)
        return Here()

    monkeypatch.setattr(runs, "begin", begin)


def tiny(arm: Arm) -> Arm:
    return replace(arm, settings=dict(arm.settings) | TINY)


@pytest.mark.slow
def test_a_stopped_run_goes_on_and_a_done_one_is_not_trained_again(few, monkeypatch):
    run = runs.Run("", tiny(PLAIN), 0, Path("runs/plain-0"))
    original, done = train.training_loss, [0]

    def power_cut(*given):
        done[0] += 1
        if done[0] == 2:
            raise KeyboardInterrupt
        return original(*given)

    with monkeypatch.context() as patch:
        patch.setattr(train, "training_loss", power_cut)
        with pytest.raises(KeyboardInterrupt):
            runs.train_run(run)
    assert run.has_begun and not run.is_done and run.steps_done == 1
    runs.train_run(run)
    whole = runs.Run("", tiny(PLAIN), 0, Path("runs/whole-0"))
    runs.train_run(whole)
    assert run.is_done and log_of(run.folder) == log_of(whole.folder)
    assert not (run.folder / "state.pt").exists()

    other = replace(run, arm=replace(run.arm, settings=TINY | {"lr": 1e-4}))
    with pytest.raises(InputError, match="other settings"):
        _ = other.is_done

    found = run_as_json(run.folder)
    assert found["looks"]["step"] == [0, 1, 2] and found["end"]["follows"] is not None
    names = ["score_1", "spread_6", "spread_last", "gradient_encoder", "gradient_zeros", "loss"]
    assert all(len(found["looks"][name]) == 3 for name in names)
    assert found["looks"]["gradient_encoder"][0] == 0 < found["looks"]["gradient_zeros"][0]
    assert found["looks"]["loss"][1:] == [e["loss"] for e in log_of(run.folder) if "loss" in e]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_quick_run(name, few, in_this_process, monkeypatch, capsys):
    if name == "encoder_at_size":
        pytest.importorskip("skimage", reason=BROUGHT)
        pytest.importorskip("sklearn", reason=BROUGHT)
    monkeypatch.setattr(encoder_at_size, "SEEDS", 1)
    monkeypatch.setattr(first_steps, "STEPS", 1)
    original = command.shortened
    monkeypatch.setattr(command, "QUICK_STEPS", 2)
    monkeypatch.setattr(command, "shortened", lambda arm: original(tiny(arm)))
    before = README.read_text()
    command.main([name, "--quick"])
    content = json.loads(Path(f"runs/experiments/quick/{name}.json").read_text())
    assert len(content["arms"]) == len(experiment_of(name).quick)
    assert all(len(arm["runs"]) == 1 for arm in content["arms"].values())
    if content["arms"]:
        pytest.importorskip("matplotlib")
        assert Path(f"runs/experiments/quick/{name}.png").stat().st_size > 0
        assert "runs, 0 of them done: about" in capsys.readouterr().out
        command.main([name, "--quick"])  # nothing is left to do
        assert "2 of them done: about 0.0 hours" in capsys.readouterr().out
    assert README.read_text() == before


@pytest.mark.long
def test_two_processes_beside_each_other(monkeypatch):
    """(Minutes: their looks are whole ones.)"""
    monkeypatch.setattr(command, "QUICK_STEPS", 2)
    command.main(["zero_convolutions", "--quick"])
    file = Path("runs/experiments/quick/zero_convolutions.json")
    assert all(arm["runs"] for arm in json.loads(file.read_text())["arms"].values())


@pytest.mark.slow
def test_without_train_py_it_says_so(tmp_path):
    command_line = [sys.executable, "-c", "import nanocontrol.experiments"]
    (tmp_path / "nanocontrol").symlink_to(ROOT / "nanocontrol")
    environment = {"PYTHONPATH": str(tmp_path)}
    ended = subprocess.run(
        command_line, env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert ended.returncode == 1 and len(ended.stderr.splitlines()) == 1
    assert "repository's root" in ended.stderr


# ------------------------------------------------------------------------------------- the README


def test_every_number_of_the_tables_is_that_of_the_json():
    found = {name: results_of(name) for name in NAMES}
    assert readme.written(README.read_text(), found) == README.read_text(), (
        "run: python -m nanocontrol.experiments.readme"
    )


def made_up(arms: dict[str, list[float]]) -> Results:
    """As of runs that end with such a `follows`, one for each seed."""

    def one(seed: int, x: float) -> dict:
        curve = [0.2, 0.2, 0.3, x]
        columns = {"step": [0, 25, 50, 75], "held_out_loss": [0.4, 0.3, 0.2, 0.1], "follows": curve}
        columns |= {"score": curve, "spread_last": [0.1] * 4}
        compared = {"area": x / 2, "jump": 60.0, "width": 20.0}
        compared |= {"picture_jumps": [60.0], "picture_widths": [10.0]}
        end = {"follows": x, "score": x, "control_gain": 0.01, "held_out_loss": 0.1}
        own = {"seed": seed, "seconds": 60, "machine": {"cores": 2}}
        return own | {"compared": compared, "end": end, "looks": columns}

    entries = {
        name: {
            "settings": {"batch_size": 8, "lr": 1e-3, "steps": 75},
            "runs": [one(i, x) for i, x in enumerate(xs)],
        }
        for name, xs in arms.items()
    }
    once = {"head": ["", "a", "b"], "rows": {"pytorch": [1.0, 0.00123], "variance": [1.0, 0.5]}}
    return Results({"expected": "", "once": once, "arms": entries})


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=NAMES)
def test_the_readme_says_what_was_found_and_no_more(experiment):
    names = [arm.name for arm in experiment.arms]
    nothing = {name: None for name in NAMES}
    half = made_up({name: [0.7] if i else [] for i, name in enumerate(names)})
    whole = made_up({name: [0.6, 0.8] for name in names})
    for results, judged in ((None, False), (half, not names), (whole, True)):
        text = readme.written(README.read_text(), nothing | {experiment.name: results})
        own = [f"| {claim.claim} | {claim.evidence} | " for claim in experiment.claims]
        rows = [row for row in text.splitlines() if row.startswith(tuple(own))]
        assert len(rows) == len(own)
        assert all(("not run yet" in row) != judged for row in rows)
    assert all(row.endswith(f" | {2 * len(names)} |") for row in rows)
    assert all(("(of 2 seeds only)" in row) == bool(names) for row in rows)
    numbers = "| 2 | 75 | 0.35 (0.30 to 0.40) | 60 (60 to 60) | 0.70 (0.60 to 0.80) "
    numbers += "| 0.70 (0.60 to 0.80) | 0.0100 (0.0100 to 0.0100) | 0.1000 (0.1000 to 0.1000) "
    assert all(f"| {name} {numbers}| 1.0 (1.0 to 1.0) |" in text for name in names)
    assert "| pytorch | 1 | 0.0012 |" in text


def test_the_json_has_five_digits_and_a_line_for_a_list(tmp_path):
    write_results(tmp_path / "a" / "x.json", {"x": [1 / 3, 200.0, None], "n": 123456})
    text = (tmp_path / "a" / "x.json").read_text()
    assert '"x": [ 0.33333, 200.0, null ]' in text and '"n": 123456' in text


def test_claims_are_judged_by_their_rules():
    zero = experiment_of("zero_convolutions")
    names = [arm.name for arm in zero.arms]
    judges = {claim.claim: claim.judge for claim in zero.claims}
    judge = judges["zero convolutions end better"]
    lower = made_up({name: [0.2] * 3 if "gaussian" in name else [0.6] * 3 for name in names})
    assert judge(lower)[1] == "reproduced"
    level = made_up({name: [0.5, 0.6, 0.7] for name in names})
    assert judge(level)[1] == "not reproduced"
    assert (
        judges["with Gaussian convolutions a ControlNet is as good as ControlNet-lite"](level)[1]
        == "reproduced"
    )
