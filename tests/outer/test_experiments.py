"""The frame of the experiments: its arithmetic, its variants, a run from end to end, the report."""

import json
import pickle
import re
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import asdict, field, fields, make_dataclass, replace
from functools import cache, partial
from pathlib import Path
from time import sleep
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

import train
from conftest import CONTROL, ROOT
from nanocontrol import DDPM
from nanocontrol.experiments import __main__ as command
from nanocontrol.experiments import frame, measure, report, results, runs
from nanocontrol.experiments.claims import (
    cause,
    concatenation,
    encoder_at_size,
    limits,
    middle,
    prompt_settings,
    rule,
    shared,
    sudden_convergence,
    zero_convolutions,
)
from nanocontrol.experiments.claims.shared import PLAIN, VARIANCE
from nanocontrol.experiments.frame import NAMES, Row, Variant, experiment_of, loss_of, models_of
from nanocontrol.experiments.results import ASSETS, DIGITS, Results, all_below, results_of, spoken
from nanocontrol.experiments.runs import Measurement, Training
from nanocontrol.nano import data
from nanocontrol.nano.detector import kinds_of
from nanocontrol.nano.model import NANO
from nanocontrol.nano.scenes import HELD_OUT
from nanocontrol.nano.world import draw, random_scene
from nanocontrol.plumbing.errors import InputError
from nanocontrol.plumbing.files import hash_of
from nanocontrol.sampling import sample
from nanocontrol.training import measure as making
from nanocontrol.training import watch
from nanocontrol.training.run import write_json
from nanocontrol.training.settings import knob
from nanocontrol.training.start import Signals

EXPERIMENTS = [experiment_of(name) for name in NAMES]
# weights/nano.safetensors of the first round
FIRST_BASE = "2734e6504cb60261498d985965439a0ddffcd5e47ba1af2b45df27c1acb06d16"
SECOND_BASE = "5ec0" * 16
VARIANTS = [variant for experiment in EXPERIMENTS for variant in experiment.variants]
BROUGHT = 'the extra `photos` is not installed: pip install -e ".[photos]"'
TINY = {"steps": 2, "batch_size": 2, "scenes": 4, "sample_every": 1, "save_every": 1}


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    """Trainings draw few scenes to measure with, and no curves."""
    monkeypatch.setattr(data, "MEASURED", train.SHEET + 1)
    monkeypatch.setattr(watch, "draw_curves", lambda *_, **__: None)


@pytest.fixture
def few(monkeypatch, hasty):
    """Two scenes are measured, three at the end, and pictures are made in one step."""
    monkeypatch.setattr(measure, "DURING", 2)
    monkeypatch.setattr(measure, "AT_END", 3)
    monkeypatch.setattr(making, "sample", partial(sample, steps=1))


class Here(Executor):
    """In the place of the pool: jobs are done in this process."""

    def submit(self, function):
        future = Future()
        try:
            future.set_result(function())
        except Exception as error:
            future.set_exception(error)
        return future


do_here = partial(runs.do_all, pool=Here(), n=1)


def tiny(variant: Variant) -> Variant:
    return replace(variant, settings=dict(variant.settings) | TINY)


# ------------------------------------------------------------------------------- the arithmetic


def test_the_area_is_the_mean_over_the_steps():
    assert results.area([(0, 0.5), (10, 0.5), (40, 0.5)]) == 0.5
    assert results.area([(0, 0.0), (10, 0.0), (40, 1.0)]) == pytest.approx(15 / 40)


def test_the_step_of_the_jump_lies_between_two_evaluations():
    flat = [(0, 0.2), (25, 0.3), (50, 0.3)]
    assert results.step_at(flat, results.JUMPED) is None
    assert results.step_at([*flat, (75, 0.7), (100, 0.6)], results.JUMPED) == pytest.approx(56.25)
    assert results.step_at([(0, 0.6), (25, 0.7)], results.JUMPED) == 0


def test_a_pictures_jump_is_half_of_its_own_way():
    assert results.half_way([(0, 0.5), (10, 0.5), (20, 1.0)]) == 15


def test_the_width_is_that_of_the_rise_and_not_of_the_wait():
    rise = [(0, 0.2), (100, 0.2), (140, 1.0), (200, 1.0)]
    assert results.width_of_jump(rise) == pytest.approx(20)
    # Noise before the rise does not widen it: the last quarter before it counts.
    noisy = [(0, 0.2), (50, 0.45), (100, 0.2), (140, 1.0), (200, 1.0)]
    assert results.width_of_jump(noisy) == pytest.approx(20)
    slow = [(0, 0.2), (200, 1.0)]
    assert results.width_of_jump(slow) == pytest.approx(100)
    assert results.width_of_jump([(0, 0.2), (200, 0.3)]) is None


def test_a_band_is_of_the_same_steps():
    steps, lowest, mean, highest = report.band([[(0, 1.0), (5, 2.0)], [(0, 3.0), (5, 6.0)]])
    assert (steps, lowest, mean, highest) == ([0, 5], [1, 2], [2, 4], [3, 6])
    with pytest.raises(ValueError, match="same steps"):
        report.band([[(0, 1.0)], [(1, 1.0)]])


def test_variants_differ_where_their_ranges_do_not_meet():
    assert all_below([1, 2, 3], [4, 5]) and not all_below([4, 5], [1, 2, 3])
    assert not all_below([1, 2, 4.5], [4, 5])
    assert all_below([1], [2, 3], [4]) and not all_below([1], [2, 4], [4])


def test_a_range_is_said_in_words():
    assert spoken([0.5, 0.6, 0.55]) == "0.55 (0.50 to 0.60)"
    assert spoken([100.0, None], 0) == "100, none in 1 of 2"
    assert spoken([None]) == "none"
    assert spoken([-1e-6, 1e-6], 4) == "0.0000 (0.0000 to 0.0000)"


# ------------------------------------------------------------------------------- the variants


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=NAMES)
def test_an_experiment_is_whole(experiment):
    variants, names = [variant.name for variant in experiment.variants], experiment.names
    title, asked, expected, found, *_ = experiment.parts
    assert len(names) == len(set(names)) and len(title.split()) < 10
    assert all(len(part.split()) > 20 for part in (asked, expected, found))
    assert len(re.sub(r"!\[.*", "", found, flags=re.DOTALL).split()) <= 125
    for i, variant in enumerate(experiment.variants):
        frame.settings_of(variant, 0)  # refuses those that train.py does not have
        assert not variant.continues or variant.continues in experiment.variants[:i]
    assert {name for panel in experiment.panels for name in panel.variants} <= {*variants}
    assert {name for chart in experiment.charts for name in chart.names} <= {*names}
    assert {name for claim in experiment.claims for name in claim.compares or ()} <= {*names}
    assert all(claim.claim for claim in experiment.claims)
    assert len(command.quick(experiment).names) in (0, 2)
    files = [j.file for j in runs.jobs_of(experiment, range(1), 1, Path()) if hasattr(j, "file")]
    assert len(files) == len(set(files)) == len(experiment.rows)


def test_variants_of_one_name_are_one_variant():
    """Their folders are the same."""
    for variant in VARIANTS:
        assert all(other is variant for other in VARIANTS if other.name == variant.name)


def test_what_processes_are_given_can_be_pickled():
    for experiment in EXPERIMENTS:
        pickle.dumps(runs.jobs_of(experiment, range(1), 1, Path()))


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def unmeasured(sd, control, held_out, scores, batch_size):
    return [held_out.images], {}


def trained(variant: Variant, folder: str, **functions) -> tuple[dict, list[float]]:
    """Its weights and losses, after two steps and no evaluation."""
    settings = frame.settings_of(tiny(variant), 0, Path(folder))
    with Signals() as signals:
        train.train(settings, signals, False, evaluate=unmeasured, **functions)
    losses = [entry["loss"] for entry in log_of(Path(folder)) if "loss" in entry]
    return load_file(f"{folder}/control.safetensors"), losses


@cache
def plain_training() -> tuple[dict, list[float]]:
    return trained(PLAIN, "plain")


def as_variant(variant: Variant, folder: str) -> tuple[dict, list[float]]:
    functions = {"models": partial(models_of, variant), "loss": partial(loss_of, variant)}
    return trained(variant, folder, **functions)


def gaussian_and_zero_again(sd, control):
    shared.gaussian_convolutions(sd, control)
    zeros = [*control.zero_convs.parameters(), *control.middle_block_out.parameters()]
    for weight in [*zeros, control.input_hint_block[-1].weight]:
        torch.nn.init.zeros_(weight)


def with_its_own_copy(sd, control):
    with patch.object(zero_convolutions, "ControlNet", lambda config: control):
        zero_convolutions.random_copy(sd, control)


def with_its_own_encoder(sd, control):
    with patch.object(concatenation, "AppendedHint", lambda control: control):
        return concatenation.concatenated(sd, control)


def same_block(old, *shape):
    return old


TAKEN_OUT = {
    "plain": None,
    "gaussian": gaussian_and_zero_again,
    "cross norm": cause.cross_norm,
    "light": partial(zero_convolutions.other_blocks, make=same_block),
    "random copy": with_its_own_copy,
    "concatenation": with_its_own_encoder,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TAKEN_OUT)
def test_without_its_difference_a_variant_is_the_plain_training_to_the_bit(name, monkeypatch):
    monkeypatch.setattr(cause, "matched", lambda residual, skip: residual)
    if name == "cross norm":
        monkeypatch.setattr(shared, "gaussian_convolutions", lambda *_: None)
    ones = torch.ones_like  # weights that change nothing
    variant = Variant(name, change=TAKEN_OUT[name], weight=ones, draw=lambda t: t)
    plain, losses = plain_training()
    weights, own_losses = as_variant(variant, "variant")
    assert own_losses == losses and weights.keys() == plain.keys()
    assert all(torch.equal(weights[name], plain[name]) for name in plain)


@pytest.mark.slow
def test_the_scaled_initialisation_is_that_of_train_py():
    scaled = Variant("", change=shared.scaled_kaiming(1.4))
    ours = models_of(scaled, frame.settings_of(PLAIN, 0))[1]
    variance = Variant("", {"hint_init": "variance"})
    theirs = models_of(variance, frame.settings_of(variance, 0))[1]
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b) and a.stride() == b.stride()


WEIGHTED = cause.LIKE_X0, cause.MIN_SNR, cause.LATE


@pytest.mark.slow
@pytest.mark.parametrize("variant", WEIGHTED, ids=lambda variant: variant.name)
def test_with_its_weights_or_draws_a_variant_trains_another_network(variant):
    plain, losses = plain_training()
    weights, own_losses = as_variant(replace(variant, settings=PLAIN.settings), "variant")
    assert own_losses != losses and weights.keys() == plain.keys()
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    assert any(not torch.equal(weights[name], plain[name]) for name in plain)


CONVOLUTIONS = {"input_hint_block", "zero_convs", "middle_block_out"}
BLOCKS = {"input_blocks", "middle_block"}
CHANGED = [
    *(
        (variant, {"input_hint_block"})
        for variant in (cause.HALF, cause.ONE_ZERO, cause.GAINS[2.0])
    ),
    *((variant, CONVOLUTIONS) for variant in (shared.GAUSSIAN, cause.CROSS_NORM)),
    *((zero_convolutions.UNDER_PYTORCH[name], BLOCKS) for name in ("lite", "lite wide")),
    (zero_convolutions.UNDER_PYTORCH["random copy"], BLOCKS | {"time_embed"}),
    (concatenation.CONCATENATION, BLOCKS | CONVOLUTIONS | {"time_embed"}),
]


@pytest.mark.slow
@pytest.mark.parametrize("variant, parts", CHANGED, ids=lambda x: getattr(x, "name", ""))
def test_a_variant_begins_with_these_parts_changed(variant, parts):
    plain, own = (models_of(v, on_a_cpu(v))[1].state_dict() for v in (PLAIN, variant))
    differ = plain.keys() ^ own.keys()
    differ |= {name for name in plain.keys() - differ if not torch.equal(plain[name], own[name])}
    assert {name.split(".")[0] for name in differ} == parts


def test_weights_and_draws_are_those_of_their_papers():
    t = torch.tensor([0, 250, 500, 999])
    abar = DDPM().alphas_cumprod[t]
    snr = abar / (1 - abar)
    assert snr[0] > 5 and snr[-1] < 0.01
    assert torch.allclose(cause.like_x0(t, most=1e9), 1 / snr)
    assert cause.like_x0(t)[-1] == 5
    assert torch.allclose(cause.min_snr(t), torch.minimum(snr, torch.tensor(5.0)) / snr)
    every = torch.arange(1000)
    drawn = cause.late(every)
    assert drawn.min() >= 0 and drawn.max() <= 999
    assert drawn.float().mean() == pytest.approx(750, abs=2)  # of 1 - u^3 it is 3/4


def on_a_cpu(variant):
    """Its settings, whatever this machine has: a variant's ControlNet begins there."""
    return replace(frame.settings_of(variant, 0), device="cpu")


def test_a_weight_multiplies_a_pairs_loss_at_the_t_that_was_drawn():
    """Each pair's loss is computed by itself as well."""
    sd, control, _ = models_of(PLAIN, on_a_cpu(PLAIN))
    draws = train.random_draws(0, 0, 3, (64, 64), 0.0)
    latent, hint = torch.randn(3, 4, 8, 8), torch.rand(3, 3, 64, 64)
    batch = train.Batch(latent, latent.exp(), torch.randn(3, 77, 64), hint)
    given, empty = (sd.unet, control, DDPM(), 1.0), torch.zeros(1, 77, 64)
    other = Variant("", weight=lambda t: t / 100, draw=lambda t: t // 2)
    weighted = loss_of(other, *given, batch, draws, empty)
    draws = draws._replace(t=draws.t // 2)
    each = [
        train.training_loss(*given, train.Batch(*(x[i : i + 1] for x in batch)), one, empty)
        for i, one in ((i, draws.of(slice(i, i + 1), "cpu")) for i in range(3))
    ]
    torch.testing.assert_close(weighted, torch.cat(each) * draws.t / 100)


def test_cross_normalisation_gives_a_residual_the_skips_mean_and_deviation():
    residual, skip = torch.randn(2, 3, 4, 4), 5 * torch.randn(2, 3, 4, 4) + 2
    matched = cause.matched(residual, skip) / cause.STRENGTH
    torch.testing.assert_close(matched.mean((1, 2, 3)), skip.mean((1, 2, 3)), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(matched.std((1, 2, 3)), skip.std((1, 2, 3)), rtol=1e-3, atol=1e-3)


def test_appended_channels_are_a_convolution_of_the_joined_maps():
    variant = concatenation.CONCATENATION
    sd, control, trained = models_of(variant, on_a_cpu(variant))
    assert isinstance(control, concatenation.AppendedHint) and trained["control"] is control
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
    variant = concatenation.CONCATENATION
    settings = on_a_cpu(variant)
    (sd, control, _), (plain, *_) = models_of(variant, settings), train.models(settings)
    x, t, context = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 77, 64)
    residuals = control(x, torch.rand(1, 3, 64, 64), t, context)
    assert len(residuals) == 1
    assert torch.equal(sd.unet(x, t, context, residuals), plain.unet(x, t, context))


def operations(variant: Variant) -> int:
    """The arithmetic of a step's networks for one pair, as PyTorch counts it: matrix products and
    convolutions, forwards and backwards."""
    sd, control, _ = models_of(variant, on_a_cpu(variant))
    side = sd.size
    latent, hint = torch.ones(1, 4, side // 8, side // 8), torch.ones(1, 3, side, side)
    context, t = torch.ones(1, 77, sd.unet.config.context_dim), torch.tensor([500])
    with FlopCounterMode(display=False) as counter:
        given = sd.unet, control, DDPM(sd.prediction), latent, hint, context
        train.diffusion_loss(*given, latent, t).backward()
    return counter.get_total_flops()


@pytest.mark.slow
def test_at_equal_compute_concatenation_has_more_steps():
    steps = VARIANCE.settings["steps"]
    a, b = operations(VARIANCE), operations(concatenation.CONCATENATION)
    assert concatenation.STEPS == round(steps * a / b)


def test_a_caption_says_what_a_picture_shows():
    for seed in range(HELD_OUT, HELD_OUT + 10):
        scene = random_scene(seed)
        drawing = draw(scene, 64)
        picture = torch.from_numpy(drawing.image).permute(2, 0, 1) * 2 - 1
        words = prompt_settings.caption(picture, kinds_of(drawing)).split()
        kinds = {thing.kind for thing in scene.things}
        if len(kinds) == len(scene.things):  # two of one kind are one object to it
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
    drawn = rule.resampled(rows, rows @ powers)  # a few have less than four different runs
    assert drawn.shape == (1000, 4) and np.allclose(np.percentile(drawn, (5, 95), axis=0), powers)
    low, high = np.percentile(rule.resampled(rows, rows[:, 1] ** 2), (5, 95), axis=0)
    assert (high - low > 0.01).all()


@pytest.mark.slow
def test_a_light_network_has_as_many_weights_as_the_copy():
    makes = same_block, zero_convolutions.as_many_weights, zero_convolutions.one_convolution
    n, n_wide, n_lite = (
        sum(p.numel() for b in (net.input_blocks, net.middle_block) for p in b.parameters())
        for change in (partial(zero_convolutions.other_blocks, make=make) for make in makes)
        for net in (models_of(Variant("", change=change), frame.settings_of(PLAIN, 0))[1],)
    )
    assert abs(n_wide / n - 1) < 0.01 and n_lite < n / 2


@pytest.mark.slow
def test_a_light_network_passes_on_what_differs_as_the_copy_does():
    spreads = zero_convolutions.spreads_by_network()["rows"]
    for name in ("copy", "lite", "lite wide"):
        assert 0.3 < spreads[name][-1] / spreads[name][0] < 10
    for name in ("lite", "lite wide"):
        faded = spreads[f"{name}, PyTorch's weights"]
        assert faded[-1] / faded[0] < 0.01


# ------------------------------------------------------------------------------ runs and files


def test_a_run_of_another_machine_counts_and_one_of_another_version_does_not(tmp_path):
    run = Training("", PLAIN, 0, tmp_path)
    there = {"device": "cuda:7", "out": "/x", "cache": "/y", "base": f"/z/{NANO.name}"}
    write_json(tmp_path / "settings.json", asdict(run.settings) | there)
    assert run.has_begun
    with pytest.raises(InputError, match="another version"):
        _ = replace(run, subject=replace(PLAIN, version=2)).has_begun
    write_json(tmp_path / "settings.json", asdict(run.settings) | there | {"lr": 1e-4})
    with pytest.raises(InputError, match="other settings"):
        _ = run.has_begun


@pytest.mark.slow
def test_a_stopped_run_continues_and_a_done_one_is_not_trained_again(few):
    done = [0]

    def power_cut(t):
        done[0] += 1
        if done[0] == 2:
            raise KeyboardInterrupt
        return t

    run = Training("", tiny(PLAIN), 0, Path("runs/plain-0"))
    with pytest.raises(KeyboardInterrupt):
        replace(run, subject=replace(run.subject, draw=power_cut)).do()
    assert run.has_begun and not run.is_done
    do_here([run], lambda: None)
    whole = Training("", tiny(PLAIN), 0, Path("runs/whole-0"))
    do_here([whole], lambda: None)
    assert run.is_done and log_of(run.folder) == log_of(whole.folder)
    assert not (run.folder / "state.pt").exists()
    with patch.object(Training, "do", None):
        do_here([run], lambda: None)

    other = replace(run, subject=replace(run.subject, settings=TINY | {"lr": 1e-4}))
    with pytest.raises(InputError, match="other settings"):
        _ = other.is_done

    found = results.run_as_json(run.folder)
    assert found["looks"]["step"] == [0, 1, 2] and found["end"]["follows"] is not None
    names = ["score_1", "spread_6", "spread_last", "gradient_encoder", "gradient_zeros", "loss"]
    assert all(len(found["looks"][name]) == 3 for name in names)
    assert found["looks"]["gradient_encoder"][0] == 0 < found["looks"]["gradient_zeros"][0]
    assert found["looks"]["loss"][1:] == [e["loss"] for e in log_of(run.folder) if "loss" in e]
    assert found["version"] == 1 and re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"])


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no clone")
def test_a_run_names_the_commit_that_it_was_made_with(monkeypatch):
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    head = subprocess.run(git, capture_output=True, text=True).stdout
    assert head.startswith(runs.origin("cpu", 1)["commit"].removesuffix("-dirty"))
    monkeypatch.setenv("PATH", "")
    assert runs.origin("cpu", 3)["commit"] is None and runs.origin("cpu", 3)["version"] == 3


def test_a_run_begins_with_the_one_of_the_same_seed():
    (ours,) = (
        job
        for job in runs.jobs_of(experiment_of("middle"), range(1), 1, runs.RUNS)
        if job.subject is middle.RECONNECTED
    )
    before = Path("runs/experiments/middle-first-0").absolute()
    assert ours.settings.init_control == str(before / "control.safetensors")
    assert not ours.can_begin
    before.mkdir(parents=True)
    (before / "metrics.json").touch()
    assert ours.can_begin


@pytest.mark.slow
def test_reconnected_it_begins_where_the_middle_block_alone_ended(few):
    both = tuple(map(tiny, (middle.FIRST, middle.RECONNECTED)))
    experiment = replace(experiment_of("middle"), variants=both)
    do_here(runs.jobs_of(experiment, range(1), 1, Path("runs")), lambda: None)
    first, second = (
        results.run_as_json(Path(f"runs/{name}-0")) for name in ("middle-first", "reconnected")
    )
    assert first["looks"]["held_out_loss"][-1] == second["looks"]["held_out_loss"][0]
    zeros = "control_model.zero_convs.0.0.weight"
    assert not load_file("runs/middle-first-0/control.safetensors")[zeros].any()
    assert load_file("runs/reconnected-0/control.safetensors")[zeros].any()


def test_a_run_waits_for_the_one_that_it_continues():
    begun = []

    class Pretends(ThreadPoolExecutor):
        def submit(self, do):
            return super().submit(self.pretend, do.__self__)

        def pretend(self, job):
            begun.append((job.subject.name, job.can_begin))
            sleep(0.1)
            job.folder.mkdir(parents=True)
            (job.folder / "metrics.json").touch()

    experiment = replace(experiment_of("middle"), variants=(middle.FIRST, middle.RECONNECTED))
    jobs, after = runs.jobs_of(experiment, range(1), 1, Path("runs")), []
    with Pretends(2) as pool:
        runs.do_all(jobs, lambda: after.append(len(begun)), pool, 2)
    assert begun == [("middle first", True), ("reconnected", True)] and after == [1, 2]


def test_where_one_fails_the_command_ends_with_its_sentence():
    def refuse(n, seed):
        raise InputError("runs/nine/canny does not exist")

    jobs = [Measurement(Row("a", refuse), 0, 1, Path("a.json"))]
    with pytest.raises(InputError, match="does not exist"):
        do_here(jobs, lambda: None)


@pytest.mark.slow
def test_afterwards_a_run_is_measured_with_the_weights_that_it_saved(few, monkeypatch):
    run = Training("", tiny(concatenation.CONCATENATION), 0, Path("runs/concatenation-0"))
    run.do()
    assert run.is_done
    found = {}

    def measure_it(sd, control):
        found.update(control=control.state_dict(), unet=sd.unet.state_dict())
        return {"kinds": 0.5}

    asked = replace(run, experiment="unlocked", afterwards=measure_it)
    assert not asked.is_done and asked.is_trained
    monkeypatch.setattr(train, "train", None)  # it is not trained again
    asked.do()
    assert asked.is_done
    saved = load_file(run.folder / "control.safetensors")
    saved |= load_file(run.folder / "base.safetensors")
    for prefix, network in (("control_model.", "control"), ("model.diffusion_model.", "unet")):
        assert all(torch.equal(saved[prefix + name], x) for name, x in found[network].items())
    assert asked.as_json()["end"]["kinds"] == 0.5


def test_a_measured_row_is_not_measured_again():
    asked = []

    def measure_it(n, seed):
        asked.append((n, seed))
        return {"score": 0.5 + seed}

    row = Row("a / b", measure_it)
    experiment = replace(experiment_of("limits"), rows=(row,))
    for seeds in (1, 2):
        do_here(runs.jobs_of(experiment, range(seeds), 7, Path("runs")), lambda: None)
    assert asked == [(7, 0), (7, 1)]
    older = {"runs": [{"seed": 4, "end": {"score": 9}}, {"seed": 1, "end": {"score": 9}}]}
    before = {"arms": {}, "sampled": {row.name: older}}

    def kept(experiment: frame.Experiment) -> list:
        found = runs.content_of(experiment, {}, Path("runs"), before)["sampled"]["a / b"]["runs"]
        return [(one["seed"], one["end"]["score"]) for one in found]

    assert kept(experiment) == [(0, 0.5), (1, 1.5), (4, 9)]
    changed = replace(experiment, rows=(row._replace(version=2),))
    assert kept(changed) == []
    do_here(runs.jobs_of(changed, range(1), 7, Path("runs")), lambda: None)
    assert kept(changed) == [(0, 0.5)]


def test_runs_of_other_machines_stay_until_their_seed_is_run_here(tmp_path, monkeypatch):
    monkeypatch.setattr(Training, "is_done", property(lambda run: run.seed == 1))
    monkeypatch.setattr(Training, "as_json", lambda run: {"seed": run.seed, "here": True})
    experiment = replace(experiment_of("middle"), variants=(VARIANCE, PLAIN), afterwards=None)
    content = runs.content_of(experiment, {}, tmp_path / "runs", None)
    for arm in content["arms"].values():
        arm["runs"] = [{"seed": seed, "here": False} for seed in (3, 1, 0)]
    content["arms"]["plain"]["settings"]["steps"] += 1  # since then the variant was changed
    merged = runs.content_of(experiment, {}, tmp_path / "runs", content)["arms"]
    seeds = {
        name: [(run["seed"], run["here"]) for run in arm["runs"]] for name, arm in merged.items()
    }
    assert seeds == {"variance": [(0, False), (1, True), (3, False)], "plain": [(1, True)]}


def of_one_row(row: Row) -> frame.Experiment:
    return replace(experiment_of("limits"), rows=(row,), charts=())


def test_a_run_on_another_base_changes_nothing_of_the_first(monkeypatch):
    """No number and no line of it. Back on the first base, the other one stays the newest."""
    other, drawn, own = Path("other.safetensors"), [], hash_of(NANO)
    other.write_bytes(b"another base")
    monkeypatch.setattr(command, "write_plots", lambda found, *_: drawn.append([*found]))
    first = {own: results.sections_in(ASSETS / "limits.json")[FIRST_BASE]}
    results.write_results(Path("limits.json"), first)
    before = Path("limits.json").read_text()
    row = Row("prompt agrees", lambda n, seed: {"score": 0.123})
    here = range(1), 1, do_here, Path("runs"), Path()
    monkeypatch.setattr(command, "NANO", other)
    command.run_experiment(of_one_row(row), *here)
    after = results.sections_in(Path("limits.json"))
    (base, second) = after.popitem()
    assert after == first and list(after) == [own] != [base] == [hash_of(other)]
    assert Path("limits.json").read_text().startswith(before.removesuffix("\n}\n") + ",\n")
    assert [run["end"] for run in second["sampled"][row.name]["runs"]] == [{"score": 0.123}]

    monkeypatch.setattr(command, "NANO", NANO)
    unmeasured = row._replace(measure=lambda n, seed: {"score": 0.456})
    command.run_experiment(of_one_row(unmeasured), *here)
    after = results.sections_in(Path("limits.json"))
    assert list(after) == [own, base] and after[base] == second
    assert after[own]["sampled"][row.name]["runs"][0]["end"] == {"score": 0.456}
    assert drawn == [[own, base]] * len(drawn) != []


def test_a_run_of_another_base_is_neither_continued_nor_counted(monkeypatch):
    """Its settings are the same, as the base's file has the same name."""
    base, folders = Path(NANO.name), []
    monkeypatch.setattr(command, "NANO", base)
    experiment = replace(experiment_of("middle"), once=None)

    def note(jobs, write):
        folders.extend(job.folder for job in jobs)

    for content in b"one", b"two":
        base.write_bytes(content)
        command.run_experiment(experiment, range(1), 1, note, Path("runs"), Path("results"))
    assert len({*folders}) == len(folders) == 2 * len(experiment.variants)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_quick_run(name, few, monkeypatch, capsys):
    if name in ("encoder_at_size", "limits"):
        pytest.importorskip("skimage", reason=BROUGHT)
        pytest.importorskip("sklearn", reason=BROUGHT)
    monkeypatch.setattr(encoder_at_size, "SEEDS", 1)
    monkeypatch.setattr(cause, "FIRST_STEPS", 1)
    monkeypatch.setattr(middle, "TURNS", 1)
    monkeypatch.setattr(middle, "STEPS", 1)
    for condition in ("canny", "hough") if name == "nine_conditions" else ():
        Path("runs/nine", condition).mkdir(parents=True)
        shutil.copy(CONTROL, f"runs/nine/{condition}/control.safetensors")
    before = report.RESULTS.read_text()
    experiment, folder = command.quick(experiment_of(name), **TINY), Path("quick")
    command.run_experiment(experiment, range(1), 2, do_here, folder, folder)
    (content,) = results.sections_in(Path(f"quick/{name}.json")).values()
    rows = content["arms"] | content["sampled"]
    assert len(rows) == len(experiment.names) and all(
        len(row["runs"]) == 1 for row in rows.values()
    )
    own = {number for row in rows.values() for run in row["runs"] for number in run["end"]}
    if content["arms"]:
        assert own >= {*experiment.numbers}
    if rows:
        pytest.importorskip("matplotlib")
        assert Path(f"quick/{name}.png").stat().st_size > 0
        with patch.object(Training, "do", None), patch.object(Measurement, "do", None):
            command.run_experiment(experiment, range(1), 2, do_here, folder, folder)  # all is done
    assert report.RESULTS.read_text() == before


@pytest.mark.slow
def test_a_sheet_has_a_row_for_each_scene(few, monkeypatch, tmp_path):
    pytest.importorskip("skimage", reason=BROUGHT)
    pytest.importorskip("sklearn", reason=BROUGHT)
    (tmp_path / "assets").mkdir()
    shutil.copy(ASSETS.parent / "pen.png", tmp_path)
    monkeypatch.setattr(limits, "ASSETS", tmp_path / "assets")
    limits.main(3)
    for name, columns in ("prompts", 8), ("hints", 7):
        picture = np.array(Image.open(tmp_path / "assets" / f"limits-{name}.png"))
        assert picture.shape == (16 + 3 * 128, columns * 128, 3)
    assert (picture[16 : 16 + 128, :128].reshape(-1, 3).max(0) == 255).all()  # the edges


@pytest.mark.long
def test_two_processes_at_a_time():
    """(Minutes: their evaluations are whole ones.)"""
    command.main(["zero_convolutions", "--quick"])
    file = Path("runs/experiments/quick/zero_convolutions.json")
    (content,) = results.sections_in(file).values()
    assert all(arm["runs"] for arm in content["arms"].values())


@pytest.mark.slow
def test_without_train_py_it_says_so(tmp_path):
    command_line = [sys.executable, "-c", "import nanocontrol.experiments"]
    shutil.copytree(ROOT / "nanocontrol", tmp_path / "nanocontrol")
    environment = {"PYTHONPATH": str(tmp_path)}
    ended = subprocess.run(
        command_line, env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert ended.returncode == 1 and len(ended.stderr.splitlines()) == 1
    assert "train.py was not found" in ended.stderr


# -------------------------------------------------------------------------------- the stored runs


def with_a_knob_more(settings: type) -> type:
    new = [("new", int, knob(7, "a new knob"))]
    return make_dataclass("Settings", new, bases=(settings,), frozen=True)


def with_a_knob_less(settings: type) -> type:
    """Without `mirror`, which no experiment sets."""
    kept = [f for f in fields(settings) if f.name != "mirror"]
    kept = [(f.name, f.type, field(default=f.default, metadata=f.metadata)) for f in kept]
    fewer = make_dataclass("Settings", kept, frozen=True)
    fewer.former = settings.former | {"mirror": False}
    return fewer


@pytest.mark.parametrize("changed", [None, with_a_knob_more, with_a_knob_less])
@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=NAMES)
def test_stored_runs_are_kept(experiment, changed, tmp_path, monkeypatch):
    """All that were trained with the settings that variants have now, whatever knobs come or go."""
    if changed:
        monkeypatch.setattr(train, "Settings", changed(train.Settings))
    for base, before in results.sections_in(ASSETS / f"{experiment.name}.json").items():
        now = runs.content_of(experiment, before["once"], tmp_path, before)
        for kind in "arms", "sampled":
            assert before[kind].keys() == now[kind].keys()
            for name, entry in before[kind].items():
                assert entry["runs"] or base != FIRST_BASE  # the first round is complete
                assert entry["runs"] == now[kind][name]["runs"], name
        assert now["expected"] == before["expected"]
        for arm in now["arms"].values():
            arm["settings"] |= {"lr": 0.5}
        other = runs.content_of(experiment, {}, tmp_path, now)["arms"]
        assert all(arm["runs"] == [] for arm in other.values())


# ------------------------------------------------------------------------------------- the report


def test_every_number_of_the_tables_is_that_of_the_json():
    found = {name: results_of(name) for name in NAMES}
    remedy = "run: python -m nanocontrol.experiments report"
    assert report.results_page(found) == report.RESULTS.read_text(encoding="utf-8"), remedy
    front = report.FRONT.read_text(encoding="utf-8")
    assert report.front_page(front, found) == front, remedy


def test_the_front_page_says_where_nothing_was_run():
    """Neither without a file nor where one has no run of this variant."""
    nothing: dict = {name: {} for name in NAMES}
    half = {"middle": on_a_base(made_up({name: [] for name in experiment_of("middle").names}))}
    for found in nothing, nothing | half:
        table = report.front_table(found)
        assert ": None" not in table and ": none" not in table
        assert "| middle alone: not run | all connections: not run | not run yet |" in table


def test_the_front_page_counts_claims_and_experiments():
    front = report.FRONT.read_text(encoding="utf-8")
    assert f"We checked {sum(len(one.claims) for one in EXPERIMENTS)} claims" in front
    assert f"[{len(NAMES)} experiments](nanocontrol/experiments/README.md)" in front


def counted(cell: str) -> Counter[str]:
    """Verdicts in the words of the index: "1 reproduced, 1 in part, 2 not; 1 not seen"."""
    found: Counter[str] = Counter()
    for group in cell.split(";"):
        verb = "seen" if "seen" in group else "reproduced"
        for part in group.split(","):
            number, words = part.split(maxsplit=1)
            short = {"not": f"not {verb}", "in part": "reproduced in part"}
            found[short.get(words.strip(), words.strip())] += int(number)
    return found


def in_short(verdict: str) -> str:
    if verdict.startswith("untestable"):
        return "untestable"
    if verdict.startswith("reproduced "):
        return "reproduced in part"
    return verdict.removeprefix("a ")


def test_an_index_names_every_experiment():
    lines = report.RESULTS.with_name("README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    for name in NAMES:
        (line,) = (line for line in lines if f"](claims/{name}.py)" in line)
        assert "](RESULTS.md#" in line
        assert f"](../../assets/experiments/{name}.png)" in line or name == "encoder_at_size"
        experiment, own = experiment_of(name), results_of(name)[FIRST_BASE]
        verdicts = [report.judged(claim, experiment, own).verdict for claim in experiment.claims]
        assert counted(line.split("|")[3]) == Counter(map(in_short, verdicts))


def on_a_base(*each: Results) -> dict[str, Results]:
    """On the first base, and on a second one."""
    return dict(zip((FIRST_BASE, SECOND_BASE), each))


def made_up(values: dict[str, list[float]], experiment: frame.Experiment | None = None) -> Results:
    """Results of runs that end with such a `follows`, one for each seed. The rows of an experiment
    have the same values; its own numbers have them, too."""
    own = experiment.numbers if experiment else {}
    rows = [row.name for row in experiment.rows] if experiment else []

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

    settings = {"batch_size": 8, "lr": 1e-3, "steps": 75}
    arms = {
        name: {"settings": settings.copy(), "runs": [trained(i, x) for i, x in enumerate(xs)]}
        for name, xs in values.items()
        if name not in rows
    }
    sampled = {
        name: {"runs": [measured(i, x) for i, x in enumerate(xs)]}
        for name, xs in values.items()
        if name in rows
    }
    once = {"pytorch": [1.0, 0.00123], "variance": [1.0, 0.5]}
    once |= {"whole": [2.0, 1.9], "middle": [2.2, 2.1], "factor": [1.1, 1.0, 1.2]}
    table = {"head": ["", "a", "b"], "rows": once}
    return Results({"expected": "", "once": table, "arms": arms, "sampled": sampled})


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=NAMES)
def test_the_report_says_what_was_found_and_no_more(experiment):
    names, rows = experiment.names, {row.name for row in experiment.rows}
    nothing: dict = {name: {} for name in NAMES}
    half = made_up({name: [0.7] if i else [] for i, name in enumerate(names)}, experiment)
    whole = made_up({name: [0.6, 0.8] for name in names}, experiment)
    for some, missing in ((None, None), (half, names[:1]), (whole, [])):
        own = {} if some is None else on_a_base(some)
        text = report.results_page(nothing | {experiment.name: own})
        begin = f"| [{experiment.parts[0]}](#"
        lines = [line for line in text.splitlines() if line.startswith(begin)]
        assert len(lines) == len(experiment.claims)
        for line, claim in zip(lines, experiment.claims):
            assert f"| {claim.claim} | {claim.evidence} | " in line
            asked = {*(names if claim.compares is None else claim.compares)}
            waits = missing is None or bool(asked & {*missing})
            assert ("not run yet" in line) == waits
            # Of those that have run, `half` has one seed.
            assert ("(1 seed)" in line) == (some is half and bool(asked) and not waits)
    for line, claim in zip(lines, experiment.claims):
        some_compared = bool(names) and claim.compares != ()
        assert ("(2 seeds)" in line) == some_compared
    assert all(f"{2 * len(names)} minutes in all" in text for _ in names[:1])
    lines = [line for line in text.splitlines() if line.endswith("| 1.0 (1.0 to 1.0) |")]
    for name, line in zip(names, lines, strict=True):
        title, seeds, *cells = line.strip("| ").split(" | ")
        assert (title, seeds) == (experiment.title_of(name), "2")
        own = [spoken([0.6, 0.8], DIGITS.get(n, 2)) for n in experiment.numbers]
        if name in rows:
            assert all(cell in cells for cell in own)
        else:
            expected = ["75", "0.35 (0.30 to 0.40)", "60 (60 to 60)", *["0.70 (0.60 to 0.80)"] * 2]
            expected += ["0.0100 (0.0100 to 0.0100)", "0.1000 (0.1000 to 0.1000)", *own]
            assert cells[:-1] == expected
    assert "| pytorch | 1 | 0.0012 |" in text


PART = "reproduced with scaled initialisation, not with released initialisation"
NOT_RUN = " (the other base was not run)"


@pytest.mark.parametrize(
    "first, second, expected",
    [
        (("reproduced", 3), ("reproduced", 5), "reproduced"),
        (("not seen", 3), ("not seen", 3), "not seen"),
        ((PART, 3), (PART, 3), PART),
        (("reproduced", 3), ("not reproduced", 3), "reproduced on one base of two"),
        (("not seen", 3), ("seen", 3), "seen on one base of two"),
        (("reproduced", 3), ("not run yet", 0), "reproduced on one base of two" + NOT_RUN),
        (("not run yet", 0), ("not seen", 3), "not seen on one base of two" + NOT_RUN),
        ((PART, 3), ("reproduced", 3), "reproduced on one base of two"),
        (("not reproduced", 3), (PART, 3), f"{PART} on one base of two"),
        (("untestable", 3), ("not reproduced", 3), "not reproduced on one base of two"),
        (("not run yet", 0), ("not run yet", 0), "not run yet"),
        (("reproduced", 1), ("reproduced", 1), "reproduced (1 seed)"),
        (("seen", 3), ("seen", 1), "seen (one of the bases: 1 seed)"),
        (("seen", 2), ("seen", 3), "seen (one of the bases: 2 seeds)"),
    ],
)
def test_a_verdict_is_on_both_bases_or_on_one_of_two(first, second, expected):
    said = report.joint([report.Judged("", *first), report.Judged("", *second)])
    assert said == expected


def on_the_first_base() -> dict[str, dict[str, Results]]:
    return {name: on_a_base(results_of(name)[FIRST_BASE]) for name in NAMES}


def with_a_second_base(name: str, results: Results) -> dict[str, dict[str, Results]]:
    found = on_the_first_base()
    return found | {name: found[name] | {SECOND_BASE: results}}


def test_with_a_second_base_the_report_has_the_verdict_on_each():
    """On it nothing of this experiment is reproduced."""
    experiment = experiment_of("unlocked")
    found = with_a_second_base("unlocked", level_except("unlocked", {}))
    text = report.results_page(found)
    table = report.claims_table(found)
    assert table.startswith(
        f"Verdicts are on the first base (`{FIRST_BASE[:8]}`) and the second base (`5ec05ec0`)"
    )
    assert "Limits 0 of 72" in table and "Locked and unlocked 15 of 15" in table
    assert "| ours | first base | second base | verdict |" in table
    lines = [line for line in table.splitlines() if "[Locked and unlocked]" in line]
    for claim, line in zip(experiment.claims, lines, strict=True):
        ours, *verdicts = line.strip("| ").split(" | ")[3:]
        before, now = (claim.judged(own) for own in found["unlocked"].values())
        assert ours == now[0] and verdicts[:2] == [before[1], now[1]]
        same = before[1] == now[1]
        assert verdicts[2] == (now[1] if same else "reproduced on one base of two")
        assert f"- {claim.claim}: **{verdicts[2]}**" in text
    assert "not reproduced | not reproduced |" in table and "on one base of two" in table
    # The first base's numbers and the one plot are still there.
    start = text.index("## Locked and unlocked")
    part = text[start : text.index("\n## ", start)]
    for own in found["unlocked"].values():
        assert part.count(report.numbers_table(own, experiment)) == 1
    assert part.count("### Locked and unlocked, ") == 2 and part.count("![") == 1


def test_a_note_is_printed_once():
    experiment = experiment_of("zero_convolutions")
    low = level_except("zero_convolutions", {})
    text = report.section(experiment, on_a_base(low, low), [FIRST_BASE, SECOND_BASE])
    assert text.count(experiment.parts[4]) == 1 and text.count("minutes in all") == 2


def test_what_was_not_run_on_the_second_base_is_said_and_what_is_settled_is_not_awaited():
    table = report.claims_table(with_a_second_base("unlocked", level_except("unlocked", {})))
    lines = {title: [] for title in ("A rule for the step of the jump", "Nine conditions")}
    for line in table.splitlines():
        for title in lines:
            if line.startswith(f"| [{title}]"):
                lines[title].append(line.strip("| ").split(" | ")[-3:])
    settled, waits = lines.values()
    assert [one[1] for one in settled] == ["settled on the first base"] * 2
    assert settled[0][2] == "not seen on one base of two" + NOT_RUN
    assert waits == [["reproduced", "not run yet", "reproduced on one base of two" + NOT_RUN]] * 9


def test_the_front_page_has_the_verdict_on_each_base_and_the_newest_numbers():
    found = with_a_second_base("unlocked", level_except("unlocked", {}))
    before, now = (report.front_table(one) for one in (on_the_first_base(), found))
    lines = {line.split("]")[0]: line for line in now.splitlines()}
    forgets = lines["| [A base that is not locked forgets"]
    assert "locked: 0.3100 (0.3000 to 0.3200)" in forgets
    assert forgets.endswith("| reproduced | not reproduced |")
    dropped = lines["| [Dropping half of the prompts teaches it to read the hint"]
    assert dropped.endswith("| reproduced | not run yet |")
    assert dropped.removesuffix(" not run yet |") in before


@pytest.mark.parametrize("seeds", [3, 1])
def test_numbers_and_plots_are_of_the_newest_base_with_three_seeds(seeds, monkeypatch):
    experiment = experiment_of("unlocked")
    new = made_up({name: LEVEL[:seeds] for name in experiment.names}, experiment)
    drawn: dict[str, Results] = {}
    found = with_a_second_base("unlocked", new)
    monkeypatch.setattr(report, "results_of", found.get)
    monkeypatch.setattr(report, "write_pages", lambda: None)
    monkeypatch.setattr(report, "write_plot", lambda own, one, _: drawn.update({one.name: own}))
    report.write_report()
    shown = new if seeds == 3 else found["unlocked"][FIRST_BASE]
    assert drawn["unlocked"] is shown and drawn["middle"] is found["middle"][FIRST_BASE]
    locked = "locked: " + report.spoken_with_n(shown, "variance", "base_loss")
    assert locked in report.front_table(found)
    ours = experiment.claims[0].judged(shown)[0]
    assert f"| {ours} |" in report.claims_table(found)


def test_a_rule_is_fitted_to_runs_on_its_own_base():
    own = results_of("rule")[FIRST_BASE]
    assert judged("rule", "The encoder's signal", own) == NOT_SEEN
    assert judged("rule", "The encoder's signal", Results(own.content, SECOND_BASE)) == "untestable"
    assert judged("rule", "At Stable", Results(own.content, SECOND_BASE)) == "untestable"


def test_the_json_has_five_digits_and_a_line_for_a_list(tmp_path):
    content = {"x": [1 / 3, 200.0, None], "n": 123456}
    results.write_results(tmp_path / "a" / "x.json", {"base": content})
    text = (tmp_path / "a" / "x.json").read_text()
    assert '"x": [ 0.33333, 200.0, null ]' in text and '"n": 123456' in text


def test_claims_are_judged_by_their_rules():
    zero = experiment_of("zero_convolutions")
    judges = {claim.claim: claim.judge for claim in zero.claims}
    judge = judges["Zero convolutions end better than Gaussian ones"]
    lower = made_up({name: [0.2] * 3 if "gaussian" in name else [0.6] * 3 for name in zero.names})
    assert judge(lower)[1] == "reproduced"
    one = made_up({n: [0.2] * 3 if n == "gaussian variance" else [0.6] * 3 for n in zero.names})
    assert (
        judge(one)[1] == "reproduced with scaled initialisation, not with released initialisation"
    )
    level = made_up({name: [0.5, 0.6, 0.7] for name in zero.names})
    assert judge(level)[1] == "not reproduced"
    like = judges["A ControlNet with Gaussian convolutions performs like ControlNet-lite"]
    assert like(level)[1] == "reproduced" and like(lower)[1] == "not reproduced"


HIGH = {
    ("middle", "Reconnected, it is as good"): ("variance",),
    ("unlocked", "A base that is not locked forgets"): experiment_of("unlocked").names[1:],
    ("unlocked", "Its pictures without control show it"): ("variance",),
    ("unlocked", "With the decoder unlocked"): ("decoder unlocked, a fifth",),
    ("data_size", "With 1,000 pictures"): ("each scene once",),
    ("data_size", "With more data"): ("each scene once",),
    ("prompt_dropout", "Dropping half of the prompts"): ("variance",),
    ("prompt_dropout", "Half is too much"): ("0 % emptied", "25 % emptied"),
    ("prompt_dropout", "Dropping prompts costs"): ("0 % emptied",),
    ("prompt_settings", "Without a prompt, resolution"): ("none, weighted",),
    ("prompt_settings", "With a prompt, plain"): ("user's, plain",),
    ("prompt_settings", "Guidance 9 is as good"): ("user's, plain",),
    ("concatenation", "A ControlNet is as good"): ("concatenation, a fifth",),
    ("concatenation", "With little data"): ("variance, 100 scenes",),
    ("concatenation", "Concatenation forgets"): concatenation.FORGETS[1:],
    ("limits", "A hint is still followed"): ("prompt names other kinds",),
    ("limits", "Colours that the hint"): ("prompt agrees",),
    ("limits", "The first half counts more"): ("in the first 50 %",),
    ("limits", "If two controls disagree"): ("edges and depth agree",),
    ("limits", "Edges of photographs"): ("photographs",),
    ("limits", "So is a drawing"): ("by hand",),
}
REFUTED = {"Reconnected, it is as good", "With 1,000 pictures", "Guidance 9 is as good"}
REFUTED |= {"A ControlNet is as good", "Colours that the hint"}


LEVEL, MIDDLE_HIGH, ALL_HIGH = [0.3, 0.32, 0.31], [0.5, 0.52, 0.51], [0.8, 0.9, 0.85]
SEEN, NOT_SEEN = "reproduced", "not reproduced"  # as a judge says it, whoever made the claim


def level_except(experiment: str, higher: dict[str, list[float]]) -> Results:
    values = {name: LEVEL for name in experiment_of(experiment).names}
    return made_up(values | higher, experiment_of(experiment))


def judged(experiment: str, begin: str, results: Results) -> str:
    """The verdict of the claim that begins so."""
    claims = experiment_of(experiment).claims
    (judge,) = (claim.judge for claim in claims if claim.claim.startswith(begin))
    return judge(results)[1]


@pytest.mark.parametrize("which", HIGH, ids=" ".join)
def test_a_claim_is_judged_by_what_is_higher(which):
    """With every seed; where all are level the verdict is the other one."""
    higher = dict.fromkeys(HIGH[which], ALL_HIGH)
    verdicts = [judged(*which, level_except(which[0], some)) for some in (higher, {})]
    assert verdicts == ([NOT_SEEN, SEEN] if which[1] in REFUTED else [SEEN, NOT_SEEN])


@pytest.mark.parametrize(
    "half, whole, expected",
    [(MIDDLE_HIGH, ALL_HIGH, SEEN), (ALL_HIGH, ALL_HIGH, NOT_SEEN), (LEVEL, ALL_HIGH, NOT_SEEN)],
)
def test_half_of_the_steps_lie_between_none_and_all(half, whole, expected):
    found = level_except("limits", {"in the first 50 %": half, "prompt agrees": whole})
    assert judged("limits", "Control in the first half", found) == expected


@pytest.mark.parametrize(
    "default, expected", [(LEVEL, SEEN), (MIDDLE_HIGH, SEEN), (ALL_HIGH, NOT_SEEN)]
)
def test_more_words_help_if_each_setting_is_no_worse_than_the_one_before(default, expected):
    others = {"automatic, plain": MIDDLE_HIGH, "user's, plain": ALL_HIGH}
    found = level_except("prompt_settings", {"default, plain": default} | others)
    assert judged("prompt_settings", "The more a prompt says", found) == expected
    found = level_except("prompt_settings", {})
    assert judged("prompt_settings", "The more a prompt says", found) == NOT_SEEN


@pytest.mark.parametrize("rival", ["none, plain", "none, guess"])
def test_resolution_weighting_has_to_be_better_than_each_other_way(rival):
    found = level_except("prompt_settings", {"none, weighted": ALL_HIGH, rival: ALL_HIGH})
    assert judged("prompt_settings", "Without a prompt, resolution", found) == NOT_SEEN


def changed(results: Results, name: str, part: str, **numbers: object) -> Results:
    """Put these numbers into that part of each run of this name -> the results."""
    for run in results.runs(name):
        run[part] |= numbers
    return results


@pytest.mark.parametrize("of_prompt, expected", [(0.4, SEEN), (0.5, NOT_SEEN)])
def test_the_hint_wins_if_more_objects_are_of_its_kind(of_prompt, expected):
    numbers = {"of_hint": 0.5, "of_prompt": of_prompt}
    found = changed(level_except("limits", {}), "prompt names other kinds", "end", **numbers)
    assert judged("limits", "The hint wins", found) == expected


def test_the_middle_block_follows_if_each_seed_jumps():
    found = level_except("middle", {})
    assert judged("middle", "The middle block alone", found) == SEEN
    found.runs("middle")[0]["compared"]["jump"] = None
    assert judged("middle", "The middle block alone", found) == NOT_SEEN


@pytest.mark.parametrize(
    "scores, expected", [((0.6, 0.6), SEEN), ((0.6, 0.5), NOT_SEEN), ((0.5, 0.5), NOT_SEEN)]
)
def test_a_condition_is_followed_above_half_of_the_way(scores, expected):
    found = changed(level_except("nine_conditions", {}), "depth", "end", without=0.2, true=0.9)
    for run, score in zip(found.runs("depth"), scores):
        run["end"]["with"] = score
    del found.runs("depth")[2:]
    assert judged("nine_conditions", "A ControlNet follows: depth", found) == expected


@pytest.mark.parametrize(
    "experiment, begin, rows, expected",
    [
        ("middle", "With the middle block alone", {"factor": [1.4, 1.0, 1.6]}, SEEN),
        ("middle", "With the middle block alone", {"factor": [1.2, 1.0, 1.6]}, NOT_SEEN),
        ("encoder_at_size", "", {"pytorch": [2, 0.01], "variance": [2, 0.4]}, SEEN),
        ("encoder_at_size", "", {"pytorch": [2, 0.03], "variance": [2, 0.4]}, NOT_SEEN),
        ("encoder_at_size", "", {"pytorch": [2, 0.01], "variance": [2, 0.1]}, NOT_SEEN),
    ],
)
def test_a_table_is_judged_by_its_limits(experiment, begin, rows, expected):
    found = level_except(experiment, {})
    found.content["once"]["rows"] |= rows
    assert judged(experiment, begin, found) == expected


@pytest.mark.parametrize("width, expected", [(20.0, SEEN), (40.0, NOT_SEEN)])
def test_a_jump_is_sudden_if_it_takes_less_than_half_of_its_wait(width, expected):
    """It is at step 60. One gradual variant is enough against "every"."""
    found = level_except("sudden_convergence", {})
    for name in ("plain", "variance"):
        changed(found, name, "compared", picture_widths=[width])
    for begin in ("With the released code's", "With scaled Kaiming", "With it, every learning"):
        assert judged("sudden_convergence", begin, found) == expected


@pytest.mark.parametrize("pictures, expected", [([15.0], SEEN), ([25.0], NOT_SEEN)])
def test_a_mean_is_gradual_if_it_is_wider_than_a_picture(pictures, expected):
    """The mean's width is 20 with every seed; one seed is enough against it."""
    found = level_except("sudden_convergence", {})
    found.runs("variance")[1]["compared"]["picture_widths"] = pictures
    begin = "With it, the mean over pictures"
    assert judged("sudden_convergence", begin, found) == expected
    changed(found, "variance", "compared", width=None)
    assert judged("sudden_convergence", begin, found) == NOT_SEEN


@pytest.mark.parametrize("first, expected", [(250, SEEN), (230, NOT_SEEN)])
def test_a_wait_is_long_if_it_is_twice_the_other(first, expected):
    found = jumping({"plain": [first, 500], "variance": [100, 120]})
    assert judged("sudden_convergence", "With the released initialisation", found) == expected


@pytest.mark.parametrize("at_first, expected", [(0.5, SEEN), (0.4, NOT_SEEN)])
def test_harm_is_a_larger_loss_at_step_0(at_first, expected):
    found = level_except("zero_convolutions", {})
    changed(found, "gaussian", "looks", held_out_loss=[at_first, 0.3, 0.2, 0.1])
    assert judged("zero_convolutions", "Zero convolutions do the base no harm", found) == expected


@pytest.mark.parametrize("last, expected", [(0.15, SEEN), (0.1, NOT_SEEN)])
def test_pictures_are_memorised_if_the_held_out_loss_rises_again(last, expected):
    found = level_except("data_size", {})
    changed(found, "100 scenes", "looks", held_out_loss=[0.4, 0.2, 0.1, last])
    assert judged("data_size", "Few pictures are memorised", found) == expected


def test_an_initialisation_with_which_neither_jumps_says_nothing():
    """With the scaled one zero convolutions are better, with the released one neither jumps."""
    scaled = {"variance": ALL_HIGH, "random copy variance": MIDDLE_HIGH}
    found = level_except("zero_convolutions", scaled)
    begin = "The copied weights matter"
    one_of_two = "reproduced with scaled initialisation, not with released initialisation"
    assert judged("zero_convolutions", begin, found) == one_of_two
    for name in ("plain", "random copy"):
        assert judged("zero_convolutions", begin, found) == one_of_two
        changed(found, name, "compared", jump=None)
    assert judged("zero_convolutions", begin, found) == SEEN


@pytest.mark.parametrize(
    "off, off_of_mean, expected",
    [(1.3, 2.0, SEEN), (1.6, 2.0, NOT_SEEN), (1.3, 1.25, NOT_SEEN), (1.1, 1.05, NOT_SEEN)],
)
def test_a_rule_holds_if_it_is_near_and_nearer_than_the_mean(
    off, off_of_mean, expected, monkeypatch
):
    """All steps found are 100. The rule is fitted to runs with the same settings, whose steps are
    `off` times smaller, and to runs with another rate, so that the mean is `off_of_mean` times
    smaller."""
    names = tuple(variant.name for variant in rule.TEN)
    found = jumping(dict.fromkeys(names, [100.0, 100.0]))
    rows, steps = rule.known_and_found(found, names)
    near, mean = steps - np.log(off), steps - np.log(off_of_mean)
    known = np.concatenate([rows, rows + [0, 0, 1, 0]]), np.concatenate([near, 2 * mean - near])
    monkeypatch.setattr(rule, "runs_fitted_to", lambda base: known)
    assert judged("rule", "The encoder's signal", found) == expected


def test_what_is_drawn_never_lies_outside_its_bar():
    """The mean of three times 0.1 is a little more than 0.1."""
    below, above = report.points_of(made_up({"same": [0.1] * 3}), ["same"], "follows")[0, 2:]
    assert (below, above) == pytest.approx((0, 0)) and below >= 0 and above >= 0


def jumping(jumps: dict[str, list[float | None]], steps: int = 400) -> Results:
    results = made_up({name: [0.5] * len(own) for name, own in jumps.items()})
    for name, own in jumps.items():
        results.arms[name]["settings"]["steps"] = steps
        for run, jump in zip(results.runs(name), own):
            run["compared"]["jump"] = jump
    return results


@pytest.mark.parametrize(
    "jumps, verdict",
    [([100, 120], "reproduced"), ([100, 160], "not reproduced"), ([100, None], "not reproduced")],
)
def test_a_variant_comes_sooner_if_all_its_seeds_do(jumps, verdict):
    results = jumping({"than": [150, 200], "variant": jumps})
    assert cause.does_it_come_sooner(results, "than", "variant")[1] == verdict


def test_what_ended_before_the_other_variant_jumped_is_left_open():
    results = jumping({"than": [1500], "variant": [None]})
    assert cause.does_it_come_sooner(results, "than", "variant")[1].startswith("untestable")


def test_what_never_jumped_has_not_learnt():
    nothing, all_ = (jumping({cause.ONE_ZERO.name: jumps}) for jumps in ([None] * 3, [1, None, 2]))
    judge = cause.one_zero_learns_nothing.judge
    assert judge(nothing) == (
        "jumps at step none; score at the end 0.50 (0.50 to 0.50)",
        "reproduced",
    )
    assert judge(all_)[1] == "not reproduced"


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
    names = [variant.name for variant in shared.BY_BATCH.values()]
    results = jumping(dict(zip(names, map(list, zip(*seeds)))))
    assert sudden_convergence.steps_or_pairs.judge(results)[1] == verdict


def test_only_seeds_that_all_variants_have_are_compared():
    results = jumping({"a": [1, 2, 3], "b": [4, 5, 6]})
    del results.runs("b")[1]
    assert results.by_seed(["a", "b"], "jump") == [[1, 4], [3, 6]]


def test_the_readme_counts_the_claims_with_another_verdict_on_the_second_base():
    folder = ROOT / "nanocontrol" / "experiments"
    rows = (folder / "RESULTS.md").read_text(encoding="utf-8").splitlines()
    cells = [row.strip("| ").split(" | ") for row in rows if row.startswith("| [")]
    pairs = [re.fullmatch(r"(.*) \(\d seeds?\)", row[5]) and (row[4], row[5]) for row in cells]
    both = [(first, second.rpartition(" (")[0]) for first, second in filter(None, pairs)]
    differ = sum(first != second for first, second in both)
    said = " ".join((folder / "README.md").read_text(encoding="utf-8").split())
    assert f"Of {len(both)} claims tested on both bases, {differ} have another verdict" in said
