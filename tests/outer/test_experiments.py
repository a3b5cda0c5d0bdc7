"""The frame of the experiments: its arithmetic, its variants, a run from end to end."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import train
from conftest import CONTROL, ROOT
from nanocontrol import DDPM
from nanocontrol.experiments import __main__ as command
from nanocontrol.experiments import (
    beginnings,
    cause,
    compute,
    concatenated,
    concatenation,
    cross_norm,
    encoder_at_size,
    first_steps,
    gathered,
    light,
    limits,
    limits_sheet,
    looks,
    middle,
    numbers,
    pictures,
    plot,
    prompt_settings,
    readme,
    rule,
    runs,
    sampled,
    sudden_convergence,
    weighting,
    zero_convolutions,
)
from nanocontrol.experiments.afterwards import Afterwards
from nanocontrol.experiments.arm import PLAIN, Arm, models_of, settings_of, variant_of
from nanocontrol.experiments.experiment import NAMES, Experiment, experiment_of
from nanocontrol.experiments.numbers import spoken
from nanocontrol.experiments.results import ASSETS, Results, results_of, run_as_json, write_results
from nanocontrol.experiments.shared import VARIANCE
from nanocontrol.nano.detector import kinds_of
from nanocontrol.nano.model import NANO
from nanocontrol.nano.scenes import HELD_OUT, Scenes
from nanocontrol.nano.world import draw, random_scene
from nanocontrol.plumbing.errors import InputError
from nanocontrol.sampling import sample
from nanocontrol.training import watch
from nanocontrol.training.run import write_json
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
    monkeypatch.setattr(command, "QUICK_SCENES", 2)
    monkeypatch.setattr(pictures, "sample", partial(sample, steps=1))


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
    assert numbers.spoken([-1e-6, 1e-6], 4) == "0.0000 (0.0000 to 0.0000)"


# ----------------------------------------------------------------------------------- the arms


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=NAMES)
def test_an_experiment_is_whole(experiment):
    arms, names = [arm.name for arm in experiment.arms], experiment.names
    assert len(names) == len(set(names)) and len(experiment.expected.split()) > 20
    for i, arm in enumerate(experiment.arms):
        settings_of(arm, 0, Path("run"))  # (refuses those that train.py does not have)
        assert not arm.goes_on_from or arm.goes_on_from in experiment.arms[:i]
    assert set(experiment.quick) <= {*arms} and len(experiment.quick) in (0, 2)
    assert {name for panel in experiment.panels for name in panel.arms} <= {*arms}
    assert {name for chart in experiment.charts for name in chart.names} <= {*names}
    files = [sampled.file_name(row.name) for row in experiment.sampled]
    assert len(files) == len(set(files))


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
    "concatenation": Arm("", start=concatenated.concatenated(concatenated.as_it_is)),
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
    "lite": Arm("", start=light.blocks_by(light.passing_on(light.one_convolution))),
    "lite wide": Arm("", start=light.blocks_by(light.passing_on(light.as_many_weights))),
    "random copy": Arm("", start=light.random_weights()),
    "concatenation": Arm("", {"unlock": "all"}, concatenated.concatenated()),
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


def on_a_cpu(arm):
    """Its settings, whatever this machine has: an arm's ControlNet begins there."""
    return replace(settings_of(arm, 0, Path("run")), device="cpu")


def test_a_weight_multiplies_a_pairs_loss(blind):
    """As if each pair's loss were computed by itself."""
    sd, control, _ = models_of(PLAIN, on_a_cpu(PLAIN))
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


CONCATENATED = Arm("", {"unlock": "all"}, concatenated.concatenated())


def test_appended_channels_are_a_convolution_of_the_joined_maps():
    sd, control, trained = models_of(CONCATENATED, on_a_cpu(CONCATENATED))
    assert isinstance(control, concatenated.HandedOver) and trained["control"] is control
    x, hint = torch.randn(2, 4, 8, 8), torch.rand(2, 3, 64, 64)
    added, first = control.input_hint_block[-1], sd.unet.input_blocks[0][0]
    torch.nn.init.normal_(added.weight)
    weight = torch.cat([first.weight, added.weight], dim=1)
    joined = torch.cat([x, torch.nn.functional.pixel_unshuffle(hint, 8)], dim=1)
    expected = torch.nn.functional.conv2d(joined, weight, first.bias, padding=1)
    seen = []
    sd.unet.input_blocks[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    t, context = torch.tensor([3, 700]), torch.randn(2, 77, 64)
    sd.unet(x, t, context, control(x, hint, t, context))
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-4)
    sd.unet(x, t, context)  # a hint is not kept for later
    torch.testing.assert_close(seen[1], first(x))


def test_concatenation_begins_as_the_base():
    settings = on_a_cpu(CONCATENATED)
    (sd, control, _), (plain, *_) = models_of(CONCATENATED, settings), train.models(settings)
    x, t, context = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 77, 64)
    residuals = control(x, torch.rand(1, 3, 64, 64), t, context)
    assert len(residuals) == 1
    assert torch.equal(sd.unet(x, t, context, residuals), plain.unet(x, t, context))


@pytest.mark.slow
def test_at_equal_compute_concatenation_has_more_steps():
    steps = VARIANCE.settings["steps"]
    a, b = compute.operations(VARIANCE), compute.operations(concatenation.CONCATENATION)
    assert concatenation.STEPS == round(steps * a / b)


def test_a_caption_says_what_a_picture_shows():
    for seed in range(HELD_OUT, HELD_OUT + 10):
        scene = random_scene(seed)
        drawing = draw(scene, 64)
        picture = torch.from_numpy(drawing.image).permute(2, 0, 1) * 2 - 1
        words = prompt_settings.caption(picture, kinds_of(drawing)).split()
        kinds = {thing.kind for thing in scene.things}
        if len(kinds) == len(scene.things):  # (two of one kind are one thing to it)
            assert sorted(words) == sorted(scene.prompt.split())


def test_a_contradicting_prompt_names_nothing_of_the_scene():
    for seed in range(HELD_OUT, HELD_OUT + 50):
        scene = random_scene(seed)
        kinds, colours = limits.other_kinds(scene), limits.other_colours(scene)
        assert kinds.background == colours.background == scene.background
        for own, of_kinds, of_colours in zip(scene.things, kinds.things, colours.things):
            assert of_kinds == replace(own, kind=of_kinds.kind) and of_kinds.kind != own.kind
            assert of_colours == replace(own, colour=of_colours.colour)
            assert of_colours.colour not in (own.colour, scene.background)
        assert len({thing.colour for thing in colours.things}) == len(scene.things)


def test_whose_kind_is_drawn_is_read_off_the_picture():
    scenes = [random_scene(HELD_OUT + i) for i in range(4)]
    images = torch.stack(
        [torch.from_numpy(draw(s, 128).image).permute(2, 0, 1) * 2 - 1 for s in scenes]
    )
    others = [limits.other_kinds(scene) for scene in scenes]
    assert limits.kinds_drawn(images, scenes, others) == (1, 0)
    assert limits.kinds_drawn(images, scenes, scenes) == (1, 1)


def test_a_rule_is_found_again_in_what_it_made():
    powers = [0.5, -0.2, -0.8, -0.1]
    made = torch.Generator().manual_seed(0)
    rows = np.hstack([np.ones((9, 1)), torch.randn(9, 3, generator=made).numpy()])
    assert np.allclose(rule.fitted(rows, rows @ powers), powers)
    assert rule.off_by(rows, rows @ powers + np.log(1.3), np.array(powers)) == pytest.approx(1.3)
    drawn = rule.resampled(rows, rows @ powers)  # (a few have less than four different runs)
    assert drawn.shape == (1000, 4) and np.allclose(np.percentile(drawn, (5, 95), axis=0), powers)
    low, high = np.percentile(rule.resampled(rows, rows[:, 1] ** 2), (5, 95), axis=0)
    assert (high - low > 0.01).all()


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


@pytest.mark.slow
def test_a_light_network_passes_on_what_differs_as_the_copy_does():
    spreads = zero_convolutions.spreads()["rows"]
    for name in ("copy", "lite", "lite wide"):
        assert 0.3 < spreads[name][-1] / spreads[name][0] < 10
    for name in ("lite", "lite wide"):
        faded = spreads[f"{name}, PyTorch's weights"]
        assert faded[-1] / faded[0] < 0.01


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
    here = lambda waiting, _: (sampled.measure(one) for one in waiting)  # noqa: E731
    monkeypatch.setattr(sampled, "done_in_processes", here)


def tiny(arm: Arm) -> Arm:
    return replace(arm, settings=dict(arm.settings) | TINY)


def test_a_run_of_another_machine_counts(tmp_path):
    run = runs.Run("", PLAIN, 0, tmp_path)
    there = {"device": "cuda:7", "out": "/x", "cache": "/y", "base": f"/z/{NANO.name}"}
    write_json(tmp_path / "settings.json", asdict(run.settings) | there)
    assert run.has_begun
    write_json(tmp_path / "settings.json", asdict(run.settings) | there | {"dtype": "bf16"})
    with pytest.raises(InputError, match="other settings"):
        _ = run.has_begun


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


def test_a_run_goes_on_from_the_one_with_the_same_seed():
    (ours,) = (
        run for run in runs.runs_of(experiment_of("middle"), (middle.RECONNECTED,), range(1))
    )
    before = Path("runs/experiments/middle-first-0").absolute()
    assert ours.settings.init_control == str(before / "control.safetensors")
    assert not ours.can_begin
    before.mkdir(parents=True)
    (before / "metrics.json").touch()
    assert ours.can_begin


@pytest.mark.slow
def test_reconnected_it_begins_where_the_middle_block_alone_ended(few):
    arms = tiny(middle.FIRST), tiny(middle.RECONNECTED)
    for run in runs.runs_of(experiment_of("middle"), arms, range(1), Path("runs")):
        runs.train_run(run)
    first, second = (
        run_as_json(Path(f"runs/{name}-0")) for name in ("middle-first", "reconnected")
    )
    assert first["looks"]["held_out_loss"][-1] == second["looks"]["held_out_loss"][0]
    zeros = "control_model.zero_convs.0.0.weight"
    assert not load_file("runs/middle-first-0/control.safetensors")[zeros].any()
    assert load_file("runs/reconnected-0/control.safetensors")[zeros].any()


def test_a_run_waits_for_the_one_that_it_goes_on_from(monkeypatch):
    begun = []

    class Ends:
        """At the second look."""

        def __init__(self, run):
            self.run, self.looks = run, 0

        def poll(self):
            self.looks += 1
            if self.looks < 2:
                return None
            self.run.folder.mkdir(parents=True)
            (self.run.folder / "metrics.json").touch()
            self.returncode = 0
            return 0

        terminate = wait = lambda self: None

    def begin(run):
        begun.append((run.arm.name, run.can_begin))
        return Ends(run)

    monkeypatch.setattr(runs, "begin", begin)
    monkeypatch.setattr(runs, "check_ended", lambda *_: None)
    monkeypatch.setattr(runs.time, "sleep", lambda _: None)
    arms = middle.FIRST, middle.RECONNECTED
    runs.train_all(runs.runs_of(experiment_of("middle"), arms, range(1)), 2, lambda: None)
    assert begun == [("middle first", True), ("reconnected", True)]


@pytest.mark.slow
def test_afterwards_a_run_is_measured_with_the_weights_that_it_saved(few, monkeypatch):
    run = runs.Run("", tiny(concatenation.CONCATENATION), 0, Path("runs/concatenation-0"))
    runs.train_run(run)
    assert run.is_done
    found = {}

    def measure(sd, control):
        found.update(control=control.state_dict(), unet=sd.unet.state_dict())
        return {"kinds": 0.5}

    asked = replace(run, experiment="unlocked", afterwards=Afterwards(measure, 1))
    assert not asked.is_done and asked.is_trained
    monkeypatch.setattr(train, "train", None)  # it is not trained again
    runs.train_run(asked)
    assert asked.is_done
    saved = load_file(run.folder / "control.safetensors")
    saved |= load_file(run.folder / "base.safetensors")
    for prefix, network in (("control_model.", "control"), ("model.diffusion_model.", "unet")):
        assert all(torch.equal(saved[prefix + name], x) for name, x in found[network].items())
    assert run_as_json(run.folder, asked.file_afterwards)["end"]["kinds"] == 0.5


def test_a_measured_row_is_not_measured_again(in_this_process, monkeypatch):
    asked = []

    def measure(n, seed):
        asked.append((n, seed))
        return {"score": 0.5 + seed}

    limits_ = experiment_of("limits")
    row = limits_.sampled[0]._replace(measure=measure)
    monkeypatch.setattr(sampled, "experiment_of", lambda _: replace(limits_, sampled=(row,)))
    for seeds in (1, 2):
        some = sampled.measurements_of(limits_, (row.name,), range(seeds), 7, Path("runs"))
        sampled.measure_all(some, 2, lambda: None)
    assert asked == [(7, 0), (7, 1)]
    of_another = {row.name: {"runs": [{"seed": 4, "end": {"score": 9}}]}}
    asked_for = replace(limits_, sampled=(row,)), Path("runs"), of_another
    kept = gathered.sampled_of(*asked_for)[row.name]["runs"]
    assert [(one["seed"], one["end"]["score"]) for one in kept] == [(0, 0.5), (1, 1.5), (4, 9)]


def test_runs_of_other_machines_stay_until_their_seed_is_run_here(tmp_path, monkeypatch):
    def run_here(folder, afterwards=None):
        return {"seed": int(folder.name[-1]), "here": True}

    monkeypatch.setattr(runs.Run, "is_done", property(lambda run: run.seed == 1))
    monkeypatch.setattr(gathered, "run_as_json", run_here)
    experiment = replace(experiment_of("middle"), arms=(VARIANCE, PLAIN))
    file = tmp_path / "middle.json"
    content = gathered.content_of(experiment, {}, tmp_path / "runs", file)
    for arm in content["arms"].values():
        arm["runs"] = [{"seed": seed, "here": False} for seed in (3, 1, 0)]
    content["arms"]["plain"]["settings"]["steps"] += 1  # since then the arm was changed
    write_results(file, content)
    merged = gathered.content_of(experiment, {}, tmp_path / "runs", file)["arms"]
    seeds = {
        name: [(run["seed"], run["here"]) for run in arm["runs"]] for name, arm in merged.items()
    }
    assert seeds == {"variance": [(0, False), (1, True), (3, False)], "plain": [(1, True)]}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_quick_run(name, few, in_this_process, monkeypatch, capsys):
    if name == "encoder_at_size":
        pytest.importorskip("skimage", reason=BROUGHT)
        pytest.importorskip("sklearn", reason=BROUGHT)
    monkeypatch.setattr(encoder_at_size, "SEEDS", 1)
    monkeypatch.setattr(first_steps, "STEPS", 1)
    monkeypatch.setattr(middle, "TURNS", 1)
    monkeypatch.setattr(middle, "STEPS", 1)
    for condition in ("canny", "hough") if name == "nine_conditions" else ():
        Path("runs/nine", condition).mkdir(parents=True)
        shutil.copy(CONTROL, f"runs/nine/{condition}/control.safetensors")
    original = command.shortened
    monkeypatch.setattr(command, "QUICK_STEPS", 2)
    monkeypatch.setattr(command, "shortened", lambda arm: original(tiny(arm)))
    before = README.read_text()
    command.main([name, "--quick"])
    content = json.loads(Path(f"runs/experiments/quick/{name}.json").read_text())
    assert len(content["arms"]) == len(experiment_of(name).quick)
    rows = content["arms"] | content["sampled"]
    assert all(len(row["runs"]) == 1 for row in rows.values())
    own = {number for row in rows.values() for run in row["runs"] for number in run["end"]}
    if content["arms"]:
        assert own >= {*experiment_of(name).numbers}
    if rows:
        assert len(rows) == 2
        pytest.importorskip("matplotlib")
        assert Path(f"runs/experiments/quick/{name}.png").stat().st_size > 0
        assert ", 0 of them done: about" in capsys.readouterr().out
        command.main([name, "--quick"])  # nothing is left to do
        assert "2 of them done: about 0.0 hours" in capsys.readouterr().out
    assert README.read_text() == before


@pytest.mark.slow
def test_a_sheet_has_a_row_for_each_scene(few, monkeypatch, tmp_path):
    pytest.importorskip("skimage", reason=BROUGHT)
    pytest.importorskip("sklearn", reason=BROUGHT)
    monkeypatch.setattr(limits_sheet, "SCENES", 3)
    monkeypatch.setattr(limits_sheet, "ASSETS", tmp_path)
    limits_sheet.main()
    for name, columns in ("prompts", 8), ("hints", 7):
        picture = np.array(Image.open(tmp_path / f"limits-{name}.png"))
        assert picture.shape == (16 + 3 * 128, columns * 128, 3)
    assert (picture[16 : 16 + 128, :128].reshape(-1, 3).max(0) == 255).all()  # the edges


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
    for file, with_results in ((README, readme.written), (readme.FRONT, readme.front_written)):
        text = file.read_text()
        assert with_results(text, found) == text, "run: python -m nanocontrol.experiments.readme"


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=NAMES)
def test_runs_in_the_json_had_the_settings_that_arms_have_now(experiment, tmp_path):
    file = ASSETS / f"{experiment.name}.json"
    before = json.loads(file.read_text()) if file.exists() else {"arms": {}}
    now = gathered.arms_of(experiment, tmp_path, before["arms"])
    for name, arm in before["arms"].items():
        assert arm["runs"] == now[name]["runs"], name


def made_up(arms: dict[str, list[float]], experiment: Experiment | None = None) -> Results:
    """As of runs that end with such a `follows`, one for each seed. Of an experiment's rows, which
    are no runs, the same values; its own numbers have them, too."""
    own = experiment.numbers if experiment else {}
    rows = [row.name for row in experiment.sampled] if experiment else []

    def measured(seed: int, x: float) -> dict:
        end = dict.fromkeys(own, x) | {"follows": x, "score": x}
        end |= {"control_gain": 0.01, "held_out_loss": 0.1}
        return {"seed": seed, "seconds": 60, "machine": {"cores": 2}, "end": end}

    def trained(seed: int, x: float) -> dict:
        curve = [0.2, 0.2, 0.3, x]
        columns = {"step": [0, 25, 50, 75], "held_out_loss": [0.4, 0.3, 0.2, 0.1], "follows": curve}
        columns |= {"score": curve, "spread_last": [0.1] * 4}
        compared = {"area": x / 2, "jump": 60.0, "width": 20.0}
        compared |= {"picture_jumps": [60.0], "picture_widths": [10.0]}
        return measured(seed, x) | {"compared": compared, "looks": columns}

    entries = {
        name: {
            "settings": {"batch_size": 8, "lr": 1e-3, "steps": 75},
            "runs": [trained(i, x) for i, x in enumerate(xs)],
        }
        for name, xs in arms.items()
        if name not in rows
    }
    of_rows = {
        name: {"runs": [measured(i, x) for i, x in enumerate(xs)]}
        for name, xs in arms.items()
        if name in rows
    }
    once_rows = {"pytorch": [1.0, 0.00123], "variance": [1.0, 0.5]}
    once_rows |= {"whole": [2.0, 1.9], "middle": [2.2, 2.1], "factor": [1.1, 1.0, 1.2]}
    once = {"head": ["", "a", "b"], "rows": once_rows}
    return Results({"expected": "", "once": once, "arms": entries, "sampled": of_rows})


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=NAMES)
def test_the_readme_says_what_was_found_and_no_more(experiment):
    names, rows_ = experiment.names, [row.name for row in experiment.sampled]
    nothing = {name: None for name in NAMES}
    half = made_up({name: [0.7] if i else [] for i, name in enumerate(names)}, experiment)
    whole = made_up({name: [0.6, 0.8] for name in names}, experiment)
    for results, missing in ((None, None), (half, names[:1]), (whole, [])):
        text = readme.written(README.read_text(), nothing | {experiment.name: results})
        own = [f"| {claim.claim} | {claim.evidence} | " for claim in experiment.claims]
        rows = [row for row in text.splitlines() if row.startswith(tuple(own))]
        assert len(rows) == len(own)
        for row, claim in zip(rows, experiment.claims):
            asked = {*(claim.compares or names)}
            assert ("not run yet" in row) == (missing is None or bool(asked & {*missing}))
    assert all(row.endswith(f" | {2 * len(names)} |") for row in rows)
    assert all(("(some arms: 2 seeds only)" in row) == bool(names) for row in rows)
    numbers = "| 2 | 75 | 0.35 (0.30 to 0.40) | 60 (60 to 60) | 0.70 (0.60 to 0.80) "
    numbers += "| 0.70 (0.60 to 0.80) | 0.0100 (0.0100 to 0.0100) | 0.1000 (0.1000 to 0.1000) "
    digits = [4 if number.endswith("loss") else 2 for number in experiment.numbers]
    own = "".join(f"| {spoken([0.6, 0.8], n)} " for n in digits)
    arms = [name for name in names if name not in rows_]
    assert all(f"| {experiment.title(a)} {numbers}{own}| 1.0 (1.0 to 1.0) |" in text for a in arms)
    assert all(f"| {name} | 2 {own}|" in text for name in rows_)
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
    one = made_up({n: [0.2] * 3 if n == "gaussian variance" else [0.6] * 3 for n in names})
    assert judge(one)[1] == "reproduced with the variance-keeping start only"
    level = made_up({name: [0.5, 0.6, 0.7] for name in names})
    assert judge(level)[1] == "not reproduced"
    assert (
        judges["with Gaussian convolutions a ControlNet is as good as ControlNet-lite"](level)[1]
        == "reproduced"
    )


HIGH = {
    ("middle", "reconnected, it is as good"): ("variance",),
    ("unlocked", "a base that is not locked forgets"): experiment_of("unlocked").names[1:],
    ("unlocked", "its pictures without control show it"): ("variance",),
    ("data_size", "with 1,000 pictures"): ("each scene once",),
    ("data_size", "with more data"): ("each scene once",),
    ("prompt_dropout", "half of the prompts emptied"): ("variance",),
    ("prompt_dropout", "half is too much"): ("0 % emptied", "25 % emptied"),
    ("prompt_settings", "without a prompt, resolution"): ("none, weighted",),
    ("prompt_settings", "guidance 9 is as good"): ("user's, plain",),
    ("concatenation", "a ControlNet is as good"): ("concatenation, a fifth",),
    ("concatenation", "with little data"): ("variance, 100 scenes",),
    ("limits", "the first half counts more"): ("in the first 50 %",),
    ("limits", "of two controls that disagree"): ("edges and depth agree",),
    ("limits", "edges of photographs"): ("photographs",),
}
REFUTED = {"reconnected, it is as good", "with 1,000 pictures", "guidance 9 is as good"}
REFUTED |= {"a ControlNet is as good"}


@pytest.mark.parametrize("which", HIGH, ids=" ".join)
def test_a_claim_is_judged_by_what_is_higher(which):
    """With every seed; where all are level the verdict is the other one."""
    experiment = experiment_of(which[0])
    (judge,) = (claim.judge for claim in experiment.claims if claim.claim.startswith(which[1]))
    level = {name: [0.3, 0.32, 0.31] for name in experiment.names}
    higher = level | {name: [0.8, 0.9, 0.85] for name in HIGH[which]}
    verdicts = [judge(made_up(values, experiment))[1] for values in (higher, level)]
    expected = ["reproduced", "not reproduced"]
    assert verdicts == (expected[::-1] if which[1] in REFUTED else expected)


def test_the_two_arms_of_quick_share_a_panel():
    for experiment in map(experiment_of, NAMES):
        if experiment.quick:
            assert any({*experiment.quick} <= {*panel.arms} for panel in experiment.panels)


def test_what_is_drawn_never_lies_outside_its_bar():
    """The mean of three times 0.1 is a little more than 0.1."""
    below, above = plot.points_of(made_up({"same": [0.1] * 3}), ["same"], "follows")[0, 2:]
    assert (below, above) == pytest.approx((0, 0)) and below >= 0 and above >= 0


def jumping(jumps: dict[str, list[float | None]], steps: int = 400) -> Results:
    results = made_up({name: [0.5] * len(of_arm) for name, of_arm in jumps.items()})
    for name, of_arm in jumps.items():
        results.arms[name]["settings"]["steps"] = steps
        for run, jump in zip(results.runs(name), of_arm):
            run["compared"]["jump"] = jump
    return results


@pytest.mark.parametrize(
    "jumps, verdict",
    [([100, 120], "reproduced"), ([100, 160], "not reproduced"), ([100, None], "not reproduced")],
)
def test_an_arm_comes_sooner_if_all_its_seeds_do(jumps, verdict):
    results = jumping({"than": [150, 200], "arm": jumps})
    assert cause.does_it_come_sooner(results, "than", "arm")[1] == verdict


def test_what_ended_before_the_other_arm_jumped_is_left_open():
    results = jumping({"than": [1500], "arm": [None]})
    assert cause.does_it_come_sooner(results, "than", "arm")[1].startswith("untestable")


@pytest.mark.parametrize(
    "seeds, verdict",
    [
        ([(100, 100, 100), (110, 100, 90)], "reproduced"),
        ([(400, 200, 100), (360, 200, 100)], "not reproduced"),
        ([(100, 100, 100), (400, 200, 100)], "undecided"),
        ([(100, 100, None)], "untestable"),
    ],
)
def test_steps_count_or_pairs_or_it_is_undecided(seeds, verdict):
    names = [arm.name for arm in sudden_convergence.BY_BATCH.values()]
    results = jumping(dict(zip(names, map(list, zip(*seeds)))))
    assert sudden_convergence.steps_or_pairs(results)[1] == verdict


def test_only_seeds_that_all_arms_have_are_compared():
    results = jumping({"a": [1, 2, 3], "b": [4, 5, 6]})
    del results.runs("b")[1]
    assert results.by_seed(["a", "b"], "jump") == [[1, 4], [3, 6]]


def test_a_pictures_jump_is_half_of_its_own_way():
    assert numbers.half_way([(0, 0.5), (10, 0.5), (20, 1.0)]) == 15
