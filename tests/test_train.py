"""train.py from end to end, and its messages for bad input."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import chdir
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import sample
import train
from conftest import CONTROL, NANO, SIZE, opened, refusal, write_pairs
from nanocontrol import InputError, load_control, load_sd
from nanocontrol.checkpoint import save_sd
from nanocontrol.formats.tensors import read_tensors
from nanocontrol.nano import data
from nanocontrol.nano.scenes import HELD_OUT, Scenes
from nanocontrol.nano.scores import scorer
from nanocontrol.plumbing.pictures import CAPTION
from nanocontrol.training import measure
from nanocontrol.training.measure import HeldOut, step_of_jump
from nanocontrol.training.run import RunFolder, read_log, read_run

pytestmark = pytest.mark.usefixtures("blind")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"), n=20)  # two are held out


@pytest.fixture
def flags(pairs) -> list[str]:
    """Flags of a run of four steps that saves every two."""
    return [
        "--base",
        NANO,
        "--data",
        str(pairs),
        "--size",
        "64",
        "--lr",
        "1e-3",
        "--batch-size",
        "2",
    ] + ["--steps", "4", "--save-every", "2", "--sample-every", "9", "--device", "cpu"]


def log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def interrupted_after(steps: int) -> Callable:
    """A loss function that interrupts the run after `steps` steps."""
    done = [0]

    def training_loss(*args):
        done[0] += 1
        if done[0] > steps:
            raise KeyboardInterrupt
        return train.training_loss(*args)

    return training_loss


def test_training_writes_its_files_and_resumes_bitwise(flags, tmp_path, hasty, capsys):
    flags += ["--sample-every", "2"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train.main([*flags, "--out", str(whole)])
    for name in ("settings.json", "control.safetensors", "film.png", "state.pt"):
        assert (whole / name).stat().st_size > 0
    # All files have the same permissions.
    assert len({file.stat().st_mode for file in whole.iterdir() if file.is_file()}) == 1
    metrics = json.loads((whole / "metrics.json").read_text())
    assert {"iou", "control_gain", "step_of_jump", "seconds"} <= metrics.keys()
    sheets = sorted(file.name for file in (whole / "samples").iterdir())
    assert sheets == ["000000.png", "000002.png", "000004.png"]
    losses = [entry["loss"] for entry in log(whole) if "loss" in entry]
    assert len(losses) == 4

    stopped = partial(train.main, loss=interrupted_after(3))
    assert "--resume cut" in refusal(stopped, capsys, *flags, "--out", str(cut))
    assert len(log(cut)) < len(log(whole)) and not (cut / "metrics.json").exists()
    train.main(["--resume", str(cut), *flags])
    assert log(cut) == log(whole)
    ours, theirs = (load_file(run / "control.safetensors") for run in (whole, cut))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    control = str(whole / "control.safetensors")
    trained = load_control(control, load_sd(NANO).unet)
    assert any(conv[0].weight.abs().max() > 0 for conv in trained.zero_convs)
    hint = ["--hint", str(Path(flags[3]) / "hint0.png"), "--steps", "1"]
    sample.main(["--control", control, *hint, "--out", str(tmp_path / "out")])


def test_ctrl_c_finishes_the_step_and_prints_how_to_resume(flags, tmp_path, capsys):
    """test_interrupted.py covers signals to whole processes."""

    def stopped(*args):
        signal.raise_signal(signal.SIGINT)
        return train.training_loss(*args)

    main = partial(train.main, loss=stopped)
    message = refusal(main, capsys, *flags, "--out", str(tmp_path / "run"))
    assert "stopped" in message and message.endswith("--resume run")
    assert (
        torch.load(tmp_path / "run" / "state.pt")["step"] == 1 == log(tmp_path / "run")[-1]["step"]
    )


@pytest.mark.slow
def test_a_run_interrupted_before_its_first_save_starts_over(flags, tmp_path, capsys):
    run = tmp_path / "run"
    stopped = partial(train.main, loss=interrupted_after(1))
    message = refusal(stopped, capsys, *flags, "--out", str(run))
    assert "before anything was saved" in message and "--resume" in message
    assert not (run / "state.pt").exists()
    train.main(["--resume", str(run)])
    assert [entry["step"] for entry in log(run) if "loss" in entry] == [1, 2, 3, 4]


@pytest.mark.slow
def test_other_files_in_a_runs_folder_are_kept(flags, tmp_path):
    run = tmp_path / "run"
    kept = [run / "notes.txt", run / ".tmpabcdef", run / "samples" / "000009.png"]
    for file in kept:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
    train.main([*flags, "--steps", "1", "--out", str(run)])
    assert [file.read_text() for file in kept] == ["mine"] * 3


@pytest.mark.slow
def test_a_run_resumes_with_the_same_number_of_pairs_in_a_step(flags, tmp_path, capsys):
    run = tmp_path / "run"
    train.main([*flags, "--steps", "1", "--out", str(run)])
    n = json.loads((run / "settings.json").read_text())["batch_size"]
    state = torch.load(run / "state.pt", weights_only=True)
    torch.save(state | {"processes": 2}, run / "state.pt")
    message = refusal(train.main, capsys, "--resume", str(run))
    assert f"has {2 * n} (2 processes" in message and f"pairs in a step; these are {n}" in message
    for more in (["--accumulate", "2"], ["--batch-size", str(2 * n)]):
        train.main(["--resume", str(run), *more])


@pytest.mark.slow
def test_an_incomplete_state_is_refused(flags, tmp_path, capsys):
    run = tmp_path / "run"
    train.main([*flags, "--steps", "1", "--out", str(run)])
    state = torch.load(run / "state.pt", weights_only=True)
    moments = state["optimizer"]["state"][0] | {"exp_avg": torch.zeros(1)}
    damaged = {"state": state["optimizer"]["state"] | {0: moments}}
    torch.save(state | {"optimizer": state["optimizer"] | damaged}, run / "state.pt")
    assert "damaged" in refusal(train.main, capsys, "--resume", str(run), "--steps", "2")
    for name in state:
        torch.save({key: value for key, value in state.items() if key != name}, run / "state.pt")
        message = refusal(train.main, capsys, "--resume", str(run))
        assert "state.pt is damaged or of another version" in message, name


@pytest.mark.slow
def test_training_continues_from_a_controlnet(flags, tmp_path):
    one = [*flags, "--steps", "1", "--init-control", CONTROL, "--drop-prompt", "1"]
    train.main([*one, "--out", str(tmp_path / "a"), "--accumulate", "2"])
    base = load_sd(NANO)
    before = load_control(CONTROL, base.unet)
    after = load_control(tmp_path / "a" / "control.safetensors", base.unet)
    moved = (after.middle_block_out[0].weight - before.middle_block_out[0].weight).abs().max()
    assert 0 < moved < 0.01
    train.main([*one, "--out", str(tmp_path / "b"), "--only-mid-control"])
    middle_only = load_control(tmp_path / "b" / "control.safetensors", base.unet)
    assert all(conv[0].weight.abs().max() == 0 for conv in middle_only.zero_convs)
    assert middle_only.middle_block_out[0].weight.abs().max() > 0


@pytest.mark.slow
def test_half_precision_training_keeps_float32_weights(flags, tmp_path, monkeypatch, hasty):
    """bf16 is the default on a GPU. A CPU supports it too."""
    monkeypatch.setattr(measure, "make_pictures", lambda sd, prompts, controls, **_: controls[0][1])
    half = [*flags, "--steps", "1", "--dtype", "bf16", "--out", str(tmp_path / "a")]
    train.main([*half, "--init-control", CONTROL, "--lr", "1e-9"])
    before, after = load_file(CONTROL), load_file(tmp_path / "a" / "control.safetensors")
    assert all(torch.allclose(after[k], before[k].float(), atol=1e-7) for k in before)
    flags += ["--steps", "2", "--hint-init", "variance"]  # else rounding loses the hint
    train.main([*flags, "--dtype", "bf16", "--out", str(tmp_path / "b")])
    gains = [entry["control_gain"] for entry in log(tmp_path / "b") if "control_gain" in entry]
    assert gains[0] == 0 and gains[1] != 0  # after two steps the residuals are non-zero
    train.main([*flags, "--out", str(tmp_path / "c")])
    losses = [[e["loss"] for e in log(tmp_path / run) if "loss" in e] for run in "bc"]
    assert losses[0] == pytest.approx(losses[1], rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("unlock", "dtype"), [("decoder", "fp32"), ("decoder", "bf16"), ("all", "fp32")]
)
def test_unlocking_trains_and_saves_the_base(flags, tmp_path, unlock, dtype):
    flags += ["--steps", "1", "--unlock", unlock, "--dtype", dtype]
    train.main([*flags, "--out", str(tmp_path / "run")])
    before = load_sd(NANO).unet.state_dict()
    after = load_sd(tmp_path / "run" / "base.safetensors").unet.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    decoder = {name for name in before if name.startswith(("output_blocks", "out."))}
    assert decoder <= moved
    assert bool(moved - decoder) == (unlock == "all")


def test_the_locked_base_is_bitwise_unchanged(flags, tmp_path):
    seen = []

    def models(settings):
        seen.append(train.models(settings))
        return seen[-1]

    train.main([*flags, "--steps", "1", "--out", str(tmp_path / "run")], models=models)
    (sd, _, _), base = seen[0], load_sd(NANO)
    for part in ("unet", "vae", "text_encoder"):
        own, theirs = getattr(sd, part).state_dict(), getattr(base, part).state_dict()
        assert all(torch.equal(own[name], theirs[name]) for name in theirs)


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--only-mid-control"], ["--unlock", "decoder"]])
def test_a_finished_run_can_be_extended(flags, tmp_path, more):
    flags += ["--accumulate", "2", *more]
    train.main([*flags, "--steps", "1", "--out", str(tmp_path / "a")])
    train.main(["--resume", str(tmp_path / "a"), "--steps", "2"])
    train.main([*flags, "--steps", "2", "--out", str(tmp_path / "b")])
    losses = [[e["loss"] for e in log(tmp_path / run) if "loss" in e] for run in "ab"]
    assert losses[0] == losses[1] and len(losses[0]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("lost", [["samples"], ["log.jsonl"], ["log.jsonl", "samples"]], ids=str)
def test_a_finished_run_replaces_what_it_can_of_missing_files(flags, tmp_path, lost):
    """The weights are in state.pt. Pictures and numbers of the past are not."""
    run, weights = tmp_path / "run", ["control.safetensors", "base.safetensors"]
    train.main([*flags, "--steps", "1", "--unlock", "decoder", "--out", str(run)])
    before = [load_file(run / name) for name in weights]
    for name in [*lost, *weights, "metrics.json", "film.png"]:
        shutil.rmtree(run / name) if name == "samples" else (run / name).unlink()
    train.main(["--resume", str(run)])
    for saved, name in zip(before, weights):
        again = load_file(run / name)
        assert saved.keys() == again.keys()
        assert all(torch.equal(saved[key], again[key]) for key in saved)
    assert (run / "metrics.json").exists() and not (run / "film.png").exists()


@pytest.fixture
def filmed() -> RunFolder:
    """A run with contact sheets of three pictures at three steps."""
    run = RunFolder(Path("run"))
    run.create({}, 0)
    for step in (0, 5, 10):
        rows = torch.rand(2, 3, 3, 64, 64, generator=torch.Generator().manual_seed(step))
        run.contact_sheet(step, [*rows * 2 - 1], "made")
        run.log(step, iou=step / 10)
    return run


def film_of(run: RunFolder) -> Image.Image:
    run.film(64, 64)
    return opened(run.path / "film.png")


def test_a_film_leaves_out_sheets_that_do_not_fit(filmed):
    whole = film_of(filmed).size
    first, middle, last = filmed.sheets()
    opened(first).convert("L").save(first)
    assert film_of(filmed).size == whole
    opened(first).resize((64, 64)).save(first)
    without_one = film_of(filmed).size
    assert without_one[0] == whole[0] - 64 and without_one[1] == whole[1]
    middle.unlink()
    middle.mkdir()
    assert film_of(filmed).size[0] == whole[0] - 128
    (filmed.path / "film.png").unlink()
    for size in ((192, 64 + CAPTION - 1), (100, 64 + CAPTION), (63, 144), (1, 1)):
        opened(last).resize(size).save(last)
        filmed.film(64, 64)
        assert not (filmed.path / "film.png").exists()


def test_a_film_needs_sheets(filmed):
    for sheet in filmed.sheets():
        sheet.unlink()
    filmed.film(64, 64)
    filmed.history.clear()
    filmed.film(64, 64)
    assert not (filmed.path / "film.png").exists()


@pytest.mark.slow
def test_ones_own_hints_are_sampled_next_to_the_held_out_pairs(flags, pairs, tmp_path, hasty):
    """They come first in sheets and film, and change neither the numbers nor the other pictures."""
    Image.open(pairs / "hint3.png").resize((128, 64)).save("wide.png")
    flags += ["--steps", "2", "--sample-every", "1", "--unlock", "all"]
    own = ["--validation", str(pairs / "hint3.png"), "a cup", "--validation", "wide.png", ""]
    train.main([*flags, "--out", "plain"])
    train.main([*flags, *own, "--out", "own"])
    assert log(Path("plain")) == log(Path("own"))
    sheets = [np.asarray(opened(f"{run}/samples/000002.png")) for run in ("plain", "own")]
    rows = [sheet[: 3 * 64].reshape(3, 64, -1, 64, 3).swapaxes(1, 2) for sheet in sheets]
    assert [row.shape[1] for row in rows] == [2, 4] and (rows[1][:, 2:] == rows[0]).all()
    hints, targets, made = rows[1][:, :2]
    assert (hints[0] == np.asarray(opened(pairs / "hint3.png").convert("RGB"))).all()
    assert hints[1].any() and (targets == 255).all() and (made[0] != made[1]).any()

    elsewhere = tmp_path / "elsewhere"  # a path in settings.json does not depend on the folder
    elsewhere.mkdir()
    shutil.copytree("own", elsewhere / "own")
    with chdir(elsewhere):
        train.main(["--resume", "own", "--steps", "3"])
        assert opened("own/samples/000003.png").width == 4 * 64
        other = ["--validation", str(pairs / "hint1.png"), "a dog"]
        train.main(["--resume", "own", "--steps", "4", *other])
        assert opened("own/samples/000004.png").width == 3 * 64


def test_a_sheet_that_is_cut_off_is_named(filmed):
    sheet = filmed.sheets()[1]
    sheet.write_bytes(sheet.read_bytes()[:900])
    with pytest.raises(InputError, match=r"samples/000005\.png is cut off or damaged"):
        filmed.film(64, 64)


NESTED = "[" * 200_000  # deeper than Python's stack


@pytest.mark.parametrize(
    "line",
    ['{"follows": "x"}', '{"follows": [1]}', '{"follows": {}}', '{"step": true}', '{"loss": NaN}']
    + ['{"loss": 1e999}', f'{{"loss": {10**400}}}', "{}", '{"step": null}', NESTED + "}"],
    ids=lambda line: line[:20],
)
def test_a_log_with_something_other_than_numbers_is_refused(line):
    Path("log.jsonl").write_text('{"step": 1, "loss": 0.5, "follows": null}\n')
    assert read_log(Path()) == [{"step": 1, "loss": 0.5, "follows": None}]
    numbered = line.replace("{", '{"step": 2, ', 1) if "step" not in line and line != "{}" else line
    with open("log.jsonl", "a") as file:
        file.write(numbered + "\n")
    with pytest.raises(InputError, match="log.jsonl cannot be read"):
        read_log(Path())


def test_deeply_nested_settings_are_refused():
    Path("settings.json").write_text(NESTED)
    with pytest.raises(InputError, match="settings.json is missing or damaged"):
        read_run(Path())


def test_the_step_of_the_jump_is_found_in_the_log(tmp_path):
    def jump(name: str, values: list[float]) -> int | None:
        run = RunFolder(tmp_path)
        run.history = [{"step": 10 * i, name: value} for i, value in enumerate(values)]
        return step_of_jump(run.measured)

    assert jump("score", [0.3, 0.3, 0.32, 0.5, 0.7]) == 30
    assert jump("iou", [0.3, 0.3, 0.6, 0.6]) == 20
    assert jump("control_gain", [0.0, 0.0, 0.01]) == 20
    assert jump("score", [0.3, 0.9, 0.35]) is None and jump("control_gain", [0, 0.001]) is None
    assert jump("loss", [1.0, 0.5]) is None


@pytest.mark.slow
def test_a_controlnet_file_names_its_condition(tmp_path, monkeypatch, hasty):
    monkeypatch.setattr(data, "MEASURED", 2)
    flags = ["--condition", "pose", "--steps", "1", "--batch-size", "2", "--scenes", "2"]
    train.main([*flags, "--out", str(tmp_path / "run")])
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert 0 <= metrics["score"] < 0.7 and metrics["iou"] > 0
    assert 0 <= metrics["follows"] < 0.7 and "follows" in log(tmp_path / "run")[0]
    scenes = Scenes("pose", HELD_OUT, n=4, size=SIZE)
    true_pictures = torch.stack([scenes[i][0] for i in range(4)])
    scores = scorer("pose", scenes)(true_pictures)
    assert scores["score"] > 0.8 and scores["follows"] > 0.9
    control = ["--control", str(tmp_path / "run" / "control.safetensors")]
    sample.main([*control, "--n", "1", "--steps", "1", "--seed", "5"])
    hint = np.asarray(Image.open(tmp_path / "out" / "sheet.png"))[:, :SIZE]
    drawn = Scenes("pose", HELD_OUT, size=SIZE)[5][1].permute(1, 2, 0).numpy()
    assert np.abs(hint / 255 - drawn).max() < 0.005


@pytest.mark.slow
def test_scenes_are_drawn_at_the_bases_size(tmp_path, capsys):
    sd = load_sd(NANO)
    sd.size = 64
    save_sd(sd, base := tmp_path / "small.safetensors")
    settings = train.resolve({"condition": "pose", "base": str(base), "out": str(tmp_path / "run")})
    pairs, others, scores = train.pairs_of(settings)
    held_out = HeldOut.of(sd, others)
    assert pairs[0][0].shape == pairs.hint(0).shape == (3, 64, 64)
    assert held_out.images.shape == (32, 3, 64, 64) and held_out.x0.shape == (32, 4, 8, 8)
    assert scores(held_out.images[:8])["follows"] > 0.9
    sd.size = 512
    save_sd(sd, large := tmp_path / "large.safetensors")
    message = refusal(train.main, capsys, "--base", str(large), "--dry-run")
    assert "for pictures of 512 pixels" in message and "64, 128, 192, 256" in message


def test_the_learning_rate_is_constant_or_cools_down():
    constant = {train.learning_rate(1e-5, "constant", step, 100) for step in range(100)}
    assert constant == {1e-5}
    rates = [train.learning_rate(1e-3, "cooldown", step, 100) for step in range(100)]
    assert set(rates[:-25]) == {1e-3} and rates[-25:] == sorted(rates[-25:])[::-1]
    assert rates[-1] == pytest.approx(1e-3 / 25)


def test_data_without_a_base_trains_for_nano_and_says_so(pairs, tmp_path, capsys):
    train.main(["--data", str(pairs), "--dry-run"])
    printed = capsys.readouterr()
    assert "training a ControlNet for nano" in printed.err
    settings = json.loads(printed.out)
    assert settings["lr"] == 1e-3 and settings["hint_init"] == "variance"


def test_the_initialisation_of_the_condition_encoder_is_a_setting(tmp_path):
    def signal(initialisation: str) -> torch.Tensor:
        """Standard deviation over the picture at the input of the encoder's zero convolution."""
        torch.manual_seed(0)
        settings = train.resolve(
            {"base": NANO, "hint_init": initialisation, "out": str(tmp_path / initialisation)}
        )
        _, control, _ = train.models(settings)
        assert control.input_hint_block[-1].weight.abs().max() == 0
        with torch.no_grad():
            return control.input_hint_block[:-1](torch.rand(1, 3, 64, 64)).std(dim=(2, 3)).mean()

    assert signal("variance") > 100 * signal("pytorch")


def test_dry_run_prints_the_settings_and_writes_nothing(flags, tmp_path, capsys):
    train.main([*flags, "--out", str(tmp_path / "run"), "--dry-run"])
    settings = json.loads(capsys.readouterr().out)
    assert settings["lr"] == 1e-3 and settings["pairs"] == 18 and settings["held_out"] == 2
    assert not (tmp_path / "run").exists()


def test_defaults_with_your_own_base_are_the_papers(flags):
    own, nano = train.resolve({"base": NANO}), train.resolve({})
    assert (own.lr, own.batch_size, own.drop_prompt, own.accumulate) == (1e-5, 4, 0.5, 1)
    assert (own.schedule, own.hint_init) == ("constant", "pytorch")
    assert (nano.lr, nano.schedule, nano.hint_init) == (1e-3, "cooldown", "variance")
    assert nano.condition == own.condition == "canny"
    assert train.parse(flags)[0].condition is None
    endless = {"steps": 2**31, "batch_size": 2**31}
    assert train.resolve(endless).scenes == 2**31  # so that the run can be resumed


# ------------------------------------------------------------------------------------ bad input


@pytest.mark.slow
def test_train_refuses_bad_input(tmp_path, capsys, flags, pairs):
    run = str(tmp_path / "run")
    empty = tmp_path / "empty"
    empty.mkdir()
    short = [*flags, "--steps", "1"]
    train.main([*short, "--out", run])
    before = {file: file.read_bytes() for file in Path(run).rglob("*") if file.is_file()}
    (tmp_path / "loop").symlink_to(loop := str(tmp_path / "loop"))
    for more, words in [
        (["--base", "missing.ckpt"], "--base"),
        (["--init-control", NANO], "--init-control"),
        (["--data", str(empty)], "--data"),
        (["--data", "nowhere"], "--data"),
        (["--condition", "depth"], "--condition"),
        (["--size", "100"], "--size"),
        (["--size", "64x64x64"], "--size"),
        (["--size", "64x0"], "--size"),
        (["--crop", "left"], "--crop"),
        (["--hints", "depth"], "--hints"),
        (["--condition", "shuffle"], "--condition"),
        (["--out", run], "--resume"),
        (["--out", str(pairs / "hint0.png")], "--out"),
        (["--out", "x" * 300], "--out"),
        (["--data", loop], loop),
        (["--init-control", loop], "--init-control"),
        (["--lr", "-1"], "--lr"),
        (["--drop-prompt", "1.5"], "--drop-prompt"),
        (["--batch-size", "0"], "--batch-size"),
        (["--batch-size", str(2**70)], "--batch-size: 1180591620717411303424 is more than 2^31"),
        (["--lr", "inf"], "--lr: inf is not above 0 and finite"),
        (["--resume", str(empty)], "--resume"),
        (["--resume", run, "--lr", "1e-2"], "--lr"),
        (["--resume", run, "--seed", "5"], "--seed"),
        (["--schedule", "linear"], "--schedule"),
        (["--hint-init", "zero"], "--hint-init"),
        (["--lr", "1e39", "--save-every", "1", "--out", str(tmp_path / "hotter")], "not finite"),
        (["--low-memory", "--unlock", "decoder"], "--low-memory is for a locked base"),
        (["--validation", "nowhere.png", "a cat"], "--validation: "),
        (["--validation", str(pairs / "prompt.json"), "a cat"], "cannot be read as a picture"),
        (["--validation", str(pairs / "hint0.png")], "--validation: expected 2 arguments"),
    ]:
        assert words in refusal(train.main, capsys, *short, *more), more
    for alone in (["--size", "64"], ["--crop", "random"], ["--mirror"], ["--hints", "canny"]):
        assert f"{alone[0]} is for" in refusal(train.main, capsys, *alone)
    for text in ("[]", '{"steps": 3, "device": "cpu"}'):
        (empty / "settings.json").write_text(text)
        assert "--resume" in refusal(train.main, capsys, "--resume", str(empty))
    kept = json.loads(Path(run, "settings.json").read_text())
    for name, wrong in [
        ("steps", "3"),
        ("steps", -3),
        ("steps", None),
        ("batch_size", 2.5),
        ("lr", -1e-3),
        ("mirror", 1),
        ("schedule", "bogus"),
        ("condition", "shuffle"),
        ("data", "folder"),
        ("device", 0),
    ]:
        (empty / "settings.json").write_text(json.dumps(kept | {name: wrong}))
        message = refusal(train.main, capsys, "--resume", str(empty))
        assert f"{name} = {wrong!r} in settings.json" in message
    for changed, more, words in [
        ({"steps": 9}, "3", "--steps 3 contradicts"),
        ({"steps": 9, "schedule": "cooldown"}, "10", "its learning rate depends on --steps"),
        ({"steps": 9, "schedule": "cooldown"}, "3", "its learning rate depends on --steps"),
    ]:
        (empty / "settings.json").write_text(json.dumps(kept | changed))
        assert words in refusal(train.main, capsys, "--resume", str(empty), "--steps", more)
    bad = write_pairs(tmp_path / "bad")
    for i in (3, 5):
        (bad / f"image{i}.png").write_bytes((bad / f"image{i}.png").read_bytes()[:400])
    message = refusal(train.main, capsys, *short, "--data", str(bad), "--steps", "9")
    assert "prompt.json, line 4" in message and "image3.png" in message
    assert "1 more" in message and "check_data" in message
    assert before == {file: file.read_bytes() for file in before}
    assert not (tmp_path / "hotter" / "state.pt").exists()


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_save(flags, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"

    def full(state, file):
        if state["step"] > 2:
            Path(file).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        return original(state, file)

    original = torch.save
    monkeypatch.setattr(torch, "save", full)
    assert "No space left" in refusal(train.main, capsys, *flags, "--out", str(run))
    assert torch.load(run / "state.pt")["step"] == 2
    assert not list(run.glob("*.tmp"))


@pytest.mark.slow
def test_the_best_and_the_last_weights_are_kept(flags, tmp_path, monkeypatch):
    run, sync, on_disk = tmp_path / "run", os.fsync, [0]

    def measure(file):  # whenever a file is whole, before it takes an older one's place
        on_disk.append(sum(path.stat().st_size for path in run.rglob("*.safetensors*")))
        sync(file)

    monkeypatch.setattr(os, "fsync", measure)
    short = [*flags, "--steps", "6", "--sample-every", "1", "--save-every", "3"]

    def evaluate(sd, control, held_out, scores, batch_size):
        return [held_out.images], {"held_out_loss": losses.pop(0)}

    for keep in (["--keep", "3"], []):
        losses = [5.0, 4.0, 3.0, 6.0, 2.0, 7.0, 8.0, 1.0]  # of steps 0 to 6, then of the end
        train.main([*short, *keep, "--out", str(run)], evaluate=evaluate)
        tensors, metadata = read_tensors(run / "control-best.safetensors")
        assert metadata["step"] == 4 and {x.dtype for x in tensors.values()} == {torch.float16}
        load_control(run / "control-best.safetensors", load_sd(NANO).unet)
        assert not (run / "keeping").exists()
        if keep:
            names = [f"control-000000{step}.safetensors" for step in (4, 5, 6)]
            assert sorted(path.name for path in (run / "weights").iterdir()) == names
            last, _ = read_tensors(run / "weights" / names[-1])
            whole, _ = read_tensors(run / "control.safetensors")
            assert all(torch.equal(last[name], whole[name].half()) for name in whole)
            best, _ = read_tensors(run / "weights" / names[0])
            assert all(torch.equal(best[name], tensors[name]) for name in tensors)
            one = (run / "control.safetensors").stat().st_size  # in float32
            sizes = [file.stat().st_size for file in run.rglob("*.safetensors")]
            assert len(sizes) == 5 and sum(sizes) < 3.1 * one
            assert sum(sizes) < max(on_disk) <= (3 + 2) * one
        else:
            assert not (run / "weights").exists()
        run = tmp_path / "plain"
