"""Nano's commands: evaluation, sheets of pictures, and the training of its parts."""

import json
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from conftest import CONTROL, NANO, SIZE, opened, refusal
from nanocontrol import ControlNet, InputError, load_sd, save_control
from nanocontrol.nano import evaluate, nine, scenes
from nanocontrol.nano import train as nano_train
from nanocontrol.nano.detector import load_detector
from nanocontrol.nano.model import DETECTOR
from nanocontrol.nano.scenes import HELD_OUT, Scenes
from nanocontrol.training import measure
from nanocontrol.training.measure import mean_latents


@pytest.mark.slow
def test_evaluate_prints_its_measurements(capsys, monkeypatch):
    monkeypatch.setattr(measure, "sample", partial(measure.sample, steps=5))
    evaluate.main(["--n", "2", "--more", "--control", CONTROL])
    numbers = json.loads(capsys.readouterr().out)
    measured = {
        "vae_db",
        "noisy_db",
        "edges",
        "background",
        "colours",
        "shapes",
        "shapes_true",
        "iou",
        "conditions",
    }
    assert numbers.keys() == measured | {"all_there"} and 0 <= numbers["all_there"] <= 1
    edges = numbers["edges"]
    assert edges["true"] == 1 >= edges["rebuilt"] > edges["with"] > 0
    assert numbers["vae_db"] > numbers["noisy_db"] > 25
    assert numbers["vae_db"] > 25 and numbers["iou"] > 0.5
    canny = numbers["conditions"]["canny"]
    more = {"follows_without", "follows_other", "follows_told"}
    assert canny.keys() == {"with", "without", "true", "follows", "follows_true"} | more
    assert canny["true"] == 1 and canny["with"] > canny["without"] + 0.1
    assert canny["follows_true"] == 1 and 0 <= canny["follows"] <= 1
    assert "--base" in refusal(evaluate.main, capsys, "--base", "missing.safetensors")
    assert "--detector" in refusal(evaluate.main, capsys, "--detector", "missing.safetensors")
    save_control(ControlNet(load_sd(NANO).unet.config), "bare.safetensors")
    message = refusal(evaluate.main, capsys, "--control", "bare.safetensors")
    assert "bare.safetensors names no condition" in message


@pytest.mark.slow
def test_sheets_of_scenes_and_conditions_are_drawn(capsys, hasty):
    scenes.main(["--n", "3"])
    assert opened("out/world.png").size == (10 * 64, 16 + 3 * 64)
    nine.main(["--control", CONTROL])
    assert opened("out/nine.png").size == (2 * SIZE, 16 + 2 * SIZE)
    sd = load_sd(NANO)
    controls = {name: ControlNet.from_unet(sd.unet) for name in ("hough", "pose")}
    sheet = np.asarray(nine.side_by_side(sd, controls, HELD_OUT))
    assert sheet.shape == (16 + 2 * SIZE, 3 * SIZE, 3)
    hints = np.split(sheet[16 : 16 + SIZE], 3, axis=1)
    assert all(hint.std() > 5 for hint in hints)  # no hint is empty
    assert not np.array_equal(hints[1], hints[2])
    made = np.split(sheet[16 + SIZE :], 3, axis=1)
    assert all(np.array_equal(made[0], other) for other in made)  # untrained: no effect
    assert "are for canny" in refusal(nine.main, capsys, "--control", CONTROL, CONTROL)


def test_a_guidance_of_zero_is_not_taken_for_the_bases_own():
    sd = load_sd(NANO)
    own, same, none = (
        measure.make_pictures(sd, ["a red ball"], steps=2, **how)
        for how in ({}, {"scale": sd.guidance}, {"scale": 0.0})
    )
    assert torch.equal(own, same) and not torch.equal(own, none)


@pytest.mark.slow
def test_a_larger_base_is_measured_and_shown_at_its_size(hasty):
    sd = replace(load_sd(NANO), size=192)
    numbers = evaluate.evaluate_nano(sd, {}, load_detector(DETECTOR), n=1)
    assert numbers["vae_db"] > numbers["noisy_db"] > 25
    assert numbers["vae_db"] > 25 and numbers["conditions"] == {}
    scenes.main(["--n", "1", "--size", "128"])
    assert opened("out/world.png").size == (10 * 128, 16 + 128)
    assert nine.side_by_side(sd, {}, HELD_OUT).size == (192, 16 + 2 * 192)


# ------------------------------------------------------------------------- training nano's parts

held_out = cache(scenes.held_out_scenes)  # drawn once for all tests


@pytest.fixture
def brief(hasty, monkeypatch):
    """Evaluations take little time: few pictures, each sampled in one step."""
    monkeypatch.setattr(nano_train, "SHEET", 2)
    monkeypatch.setattr(nano_train, "HELD_OUT_SCENES", 4)
    monkeypatch.setattr(nano_train, "held_out_scenes", held_out)


@pytest.mark.slow
@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("part", ["decoder", "vae", "base"])
def test_training_one_part_of_the_base_keeps_the_others(part, tmp_path):
    flags = [] if part == "vae" else ["--base", NANO]
    flags += ["--steps", "1", "--batch-size", "2", "--out", str(tmp_path / "run")]
    nano_train.main([part, *flags])
    made, nano = load_sd(tmp_path / "run" / "base.safetensors"), load_sd(NANO)
    assert made.unet.config == nano.unet.config

    parts = {
        "encoder": lambda sd: sd.vae.encoder,
        "decoder": lambda sd: sd.vae.decoder,
        "unet": lambda sd: sd.unet,
        "text": lambda sd: sd.text_encoder,
    }
    kept = {"vae": [], "decoder": ["encoder", "unet", "text"], "base": ["encoder", "decoder"]}
    for name, network in parts.items():
        a, b = network(made).state_dict(), network(nano).state_dict()
        same = all(torch.equal(a[key], b[key].float()) for key in a)
        assert same == (name in kept[part]), name
    images = held_out(None, 64, size=made.size)[0]
    assert mean_latents(made, images).std() == pytest.approx(1, abs=0.1)


@pytest.mark.usefixtures("brief")
@pytest.mark.slow
@pytest.mark.parametrize("part", ["vae", "base", "decoder", "detector"])
def test_an_interrupted_training_resumes_bitwise(part, tmp_path, monkeypatch, capsys):
    flags = ["--base", NANO] if part in ("base", "decoder") else []
    flags += ["--steps", "4", "--batch-size", "2", "--save-every", "2", "--scenes", "9"]
    flags += ["--sample-every", "4"]
    nano_train.main([part, *flags, "--out", "whole"])

    def power_fails(lr: float, step: int, steps: int) -> float:
        if step == 3:
            raise KeyboardInterrupt
        return rate(lr, step, steps)

    rate = nano_train.cosine_rate
    with monkeypatch.context() as patch:
        patch.setattr(nano_train, "cosine_rate", power_fails)
        assert "--resume" in refusal(nano_train.main, capsys, part, *flags, "--out", "cut")
    message = refusal(nano_train.main, capsys, part, "--resume", "cut", "--steps", "9")
    assert "--steps 9 contradicts" in message  # the learning rate depends on the number of steps
    nano_train.main([part, "--resume", "cut"])
    assert Path("cut/log.jsonl").read_text() == Path("whole/log.jsonl").read_text()
    files = {file.name for file in Path("whole").glob("*.safetensors")}
    (name,) = files - {"latents.safetensors", "base-best.safetensors"}
    ours, theirs = (load_file(f"{run}/{name}") for run in ("whole", "cut"))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.slow
def test_a_trained_detector_can_be_loaded(capsys, brief):
    nano_train.main(["detector", "--steps", "2", "--scenes", "20", "--out", "run"])
    assert load_detector(Path("run/detector.safetensors")).size == SIZE


@pytest.mark.slow
def test_every_part_can_be_trained_at_another_size(capsys, monkeypatch, brief):
    monkeypatch.setattr(nano_train, "measured_scale_factor", lambda *_: 1.0)  # takes seconds
    few = ["--steps", "1", "--batch-size", "2", "--scenes", "4"]
    nano_train.main(["vae", *few, "--size", "128", "--out", "vae"])
    assert load_sd("vae/base.safetensors").size == 128
    for given, size in ({}, SIZE), ({"size": 192}, 192):
        settings = nano_train.resolve_part({"part": "base", "base": NANO, "out": "base", **given})
        assert nano_train.load_base(settings).size == size
    nano_train.main(["detector", *few, "--size", "64", "--out", "detector"])
    assert load_detector(Path("detector/detector.safetensors")).size == 64
    assert "--size" in refusal(nano_train.main, capsys, "vae", "--size", "100")


@pytest.mark.slow
def test_the_base_trains_on_latents_that_are_encoded_once(monkeypatch):
    sd = load_sd(NANO)
    settings = nano_train.resolve_part(
        {"part": "base", "base": NANO, "scenes": 70, "out": str(Path("run").resolve())}
    )
    pairs = nano_train.latents_of(settings, sd)
    assert len(pairs) == 70
    latent, prompt = pairs[69]
    scenes = Scenes(None, size=sd.size)
    again = mean_latents(sd, scenes[69][0][None])[0]  # equal up to the posterior's noise
    alike = torch.corrcoef(torch.stack([latent, again]).flatten(1))[0, 1]
    assert prompt == scenes[69][2] and alike > 0.98
    with monkeypatch.context() as patch:
        patch.setattr(sd, "encode", None)
        kept = nano_train.latents_of(settings, sd)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(pairs, kept, strict=True))
    other = nano_train.latents_of(replace(settings, seed=1), sd)
    assert not torch.equal(pairs[0][0], other[0][0])


def test_nanos_learning_rate_warms_up_and_decays():
    rates = [nano_train.cosine_rate(1e-3, step, 6000) for step in range(6000)]
    assert max(rates) == pytest.approx(1e-3, rel=1e-3) and rates[0] < 3e-5 > rates[-1]


def test_training_nano_refuses_bad_input(capsys):
    Path("file").write_text("not a folder")
    for flags, words in [
        (["base"], "--base FILE"),
        (["decoder"], "--base FILE"),
        (["detector", "--base", NANO], "--base is not used by detector"),
        (["vae", "--drop-prompt", "0.5"], "--drop-prompt"),
        (["base", "--base", "missing.safetensors"], "--base"),
        (["unet"], "unet"),
        (["detector", "--scenes", "16", "--out", "file"], "--out"),
        (["vae", "--resume", "file"], "--resume"),
    ]:
        assert words in refusal(nano_train.main, capsys, *flags), flags


def test_the_package_raises_its_own_error():
    with pytest.raises(InputError):
        load_sd("missing.safetensors")
