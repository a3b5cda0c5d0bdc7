"""train.py and sample.py from end to end, and what they say to bad input."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CONFIGS
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_data import write_pairs

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
import sample  # noqa: E402
import train  # noqa: E402
from nanocontrol import ControlNet, InputError, load_control, load_sd, save_control  # noqa: E402
from nanocontrol import data, detector, evaluate, nine  # noqa: E402
from nanocontrol.canny import canny  # noqa: E402
from nanocontrol.data import HELD_OUT, Scenes, held_out_scenes  # noqa: E402
from nanocontrol.pictures import picture_size, read_picture, to_bytes  # noqa: E402

NANO = str(ROOT / "weights" / "nano.safetensors")
CONTROL = str(ROOT / "weights" / "nano-control-canny.safetensors")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"), n=20)  # two of them held out


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Whatever goes to its default folder goes to a temporary one."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def flags(pairs) -> list[str]:
    """A run of six steps that saves after three."""
    return ["--base", NANO, "--data", str(pairs), "--lr", "1e-3", "--batch-size", "2"] + [
        "--steps", "6", "--save-every", "3", "--sample-every", "9", "--device", "cpu"
    ]  # fmt: skip


def log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def stop_after(monkeypatch, steps: int) -> None:
    """Let the power fail in the step after these."""
    original, done = train.training_loss, [0]

    def training_loss(*args):
        done[0] += 1
        if done[0] > steps:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(train, "training_loss", training_loss)


def test_training_leaves_everything_and_resumes_to_the_bit(flags, tmp_path, monkeypatch):
    flags += ["--sample-every", "3"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train.main([*flags, "--out", str(whole)])
    for name in ("settings.json", "control.safetensors", "film.png", "state.pt"):
        assert (whole / name).stat().st_size > 0
    metrics = json.loads((whole / "metrics.json").read_text())
    assert {"iou", "control_gain", "step_of_jump", "seconds"} <= metrics.keys()
    sheets = sorted(file.name for file in (whole / "samples").iterdir())
    assert sheets == ["000000.png", "000003.png", "000006.png"]
    losses = [entry["loss"] for entry in log(whole) if "loss" in entry]
    assert len(losses) == 6

    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(SystemExit, match="stopped"):
            train.main([*flags, "--out", str(cut)])
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


def test_a_run_without_a_save_starts_over(flags, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(SystemExit):
            train.main([*flags, "--out", str(run)])
    assert not (run / "state.pt").exists()
    train.main(["--resume", str(run)])
    assert [entry["step"] for entry in log(run) if "loss" in entry] == [1, 2, 3, 4, 5, 6]


def test_a_controlnet_can_be_trained_on(flags, tmp_path):
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


def test_half_precision_learns_from_exact_weights(flags, tmp_path):
    """bf16 is the default on a GPU; a CPU can do it too."""
    half = [*flags, "--steps", "1", "--dtype", "bf16", "--out", str(tmp_path / "a")]
    train.main([*half, "--init-control", CONTROL, "--lr", "1e-9"])
    before, after = load_file(CONTROL), load_file(tmp_path / "a" / "control.safetensors")
    assert all(torch.allclose(after[k], before[k].float(), atol=1e-7) for k in before)
    train.main([*flags, "--dtype", "bf16", "--sample-every", "3", "--out", str(tmp_path / "b")])
    gains = [entry["control_gain"] for entry in log(tmp_path / "b") if "control_gain" in entry]
    assert gains[0] == 0 and gains[1] != 0  # three steps on, residuals are zero no more
    train.main([*flags, "--out", str(tmp_path / "c")])
    losses = [[e["loss"] for e in log(tmp_path / run) if "loss" in e] for run in "bc"]
    assert losses[0] == pytest.approx(losses[1], rel=0.03)


@pytest.mark.parametrize("unlock", ["decoder", "all"])
def test_unlocking_trains_and_saves_the_base(flags, tmp_path, unlock):
    train.main([*flags, "--steps", "1", "--unlock", unlock, "--out", str(tmp_path / "run")])
    before = load_sd(NANO).unet.state_dict()
    after = load_sd(tmp_path / "run" / "base.safetensors").unet.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    decoder = {name for name in before if name.startswith(("output_blocks", "out."))}
    assert decoder <= moved
    assert bool(moved - decoder) == (unlock == "all")


def test_the_locked_base_keeps_its_bits(flags, tmp_path, monkeypatch):
    seen = []
    original = train.models
    monkeypatch.setattr(train, "models", lambda args: seen.append(original(args)) or seen[-1])
    train.main([*flags, "--steps", "2", "--out", str(tmp_path / "run")])
    (sd, _, _), base = seen[0], load_sd(NANO)
    for part in ("unet", "vae", "text_encoder"):
        own, theirs = getattr(sd, part).state_dict(), getattr(base, part).state_dict()
        assert all(torch.equal(own[name], theirs[name]) for name in theirs)


def test_a_finished_run_can_be_made_longer(flags, tmp_path):
    flags += ["--accumulate", "2"]
    train.main([*flags, "--steps", "2", "--out", str(tmp_path / "a")])
    train.main(["--resume", str(tmp_path / "a"), "--steps", "4"])
    train.main([*flags, "--steps", "4", "--out", str(tmp_path / "b")])
    losses = [[e["loss"] for e in log(tmp_path / run) if "loss" in e] for run in "ab"]
    assert losses[0] == losses[1] and len(losses[0]) == 4


@pytest.mark.parametrize("stage", ["vae", "decoder", "base"])
def test_the_small_base_can_be_trained(stage, tmp_path):
    flags = [] if stage == "vae" else ["--base", NANO]
    flags += ["--steps", "1", "--batch-size", "2", "--out", str(tmp_path / "run")]
    train.main(["--stage", stage, *flags])
    made, nano = load_sd(tmp_path / "run" / "base.safetensors"), load_sd(NANO)
    assert made.unet.config == nano.unet.config

    parts = {
        "encoder": lambda sd: sd.vae.encoder, "decoder": lambda sd: sd.vae.decoder,
        "unet": lambda sd: sd.unet, "text": lambda sd: sd.text_encoder,
    }  # fmt: skip
    kept = {"vae": [], "decoder": ["encoder", "unet", "text"], "base": ["encoder", "decoder"]}
    for name, part in parts.items():
        a, b = part(made).state_dict(), part(nano).state_dict()
        same = all(torch.equal(a[key], b[key].float()) for key in a)
        assert same == (name in kept[stage]), name
    images = held_out_scenes(None, 64)[0]
    assert train.mean_latents(made, images).std() == pytest.approx(1, abs=0.1)


def test_the_base_learns_latents_that_are_encoded_once():
    sd, scenes = load_sd(NANO), Scenes(None)
    pairs = train.encoded(sd, scenes, n=70)
    assert len(pairs) == 70
    latent, _, prompt = pairs[69]
    again = train.mean_latents(sd, scenes[69][0][None])[0]  # but for the posterior's noise
    alike = torch.corrcoef(torch.stack([latent, again]).flatten(1))[0, 1]
    assert prompt == scenes[69][2] and alike > 0.98


def test_the_step_of_the_jump(tmp_path):
    def jump(name: str, values: list[float]) -> int | None:
        run = train.RunFolder(tmp_path)
        run.history = [{"step": 10 * i, name: value} for i, value in enumerate(values)]
        return train.step_of_jump(run)

    assert jump("score", [0.3, 0.3, 0.32, 0.5, 0.7]) == 30
    assert jump("iou", [0.3, 0.3, 0.6, 0.6]) == 20
    assert jump("control_gain", [0.0, 0.0, 0.01]) == 20
    assert jump("score", [0.3, 0.9, 0.35]) is None and jump("control_gain", [0, 0.001]) is None
    assert jump("loss", [1.0, 0.5]) is None


def test_a_control_knows_its_condition(tmp_path, monkeypatch):
    flags = ["--condition", "pose", "--steps", "1", "--batch-size", "2"]
    train.main([*flags, "--dtype", "bf16", "--out", str(tmp_path / "run")])
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert 0 <= metrics["score"] < 0.7 and metrics["iou"] > 0
    with monkeypatch.context() as patch:  # if the pictures were the true ones
        patch.setattr(train, "make_pictures", lambda *_, **__: held_out_scenes("pose", 32)[0])
        args = train.parse([*flags, "--out", str(tmp_path / "none")])
        sd, control, _ = train.models(args)
        detector = train.load_detector(train.DETECTOR)
        held_out = train.HeldOut(*held_out_scenes("pose", 32)[:3])
        held_out = held_out._replace(x0=train.mean_latents(sd, held_out.images))
        assert train.measure(args, sd, control, held_out, detector)[1]["score"] > 0.8
    control = ["--control", str(tmp_path / "run" / "control.safetensors")]
    sample.main([*control, "--n", "1", "--steps", "2", "--seed", "5"])
    hint = np.asarray(Image.open(tmp_path / "out" / "sheet.png"))[:, :64]
    drawn = Scenes("pose", HELD_OUT)[5][1].permute(1, 2, 0).numpy()
    assert np.abs(hint / 255 - drawn).max() < 0.005


def test_learning_rates(tmp_path):
    own, nano = train.parse(["--base", NANO]), train.parse([])
    base = train.parse(["--stage", "base", "--base", NANO])
    assert {train.learning_rate(own, step) for step in range(own.steps)} == {1e-5}
    rates = [train.learning_rate(nano, step) for step in range(nano.steps)]
    falling = nano.steps // 4
    assert set(rates[:-falling]) == {1e-3} and rates[-falling:] == sorted(rates[-falling:])[::-1]
    assert rates[-1] == pytest.approx(1e-3 / falling)
    rates = [train.learning_rate(base, step) for step in range(base.steps)]
    assert max(rates) == pytest.approx(1e-3, rel=1e-3) and rates[0] < 3e-5 > rates[-1]


def test_dry_run_prints_the_settings_and_writes_nothing(flags, tmp_path, capsys):
    train.main([*flags, "--out", str(tmp_path / "run"), "--dry-run"])
    settings = json.loads(capsys.readouterr().out)
    assert settings["lr"] == 1e-3 and settings["pairs"] == 18 and settings["held_out"] == 2
    assert not (tmp_path / "run").exists()


def test_defaults_are_the_papers_with_a_base_of_ones_own(flags):
    own = train.parse(["--base", NANO])
    assert (own.lr, own.batch_size, own.drop_prompt, own.accumulate) == (1e-5, 4, 0.5, 1)
    assert train.parse([]).lr == 1e-3 and train.parse([]).condition == "canny"
    assert own.condition == "canny" and train.parse(flags).condition is None


# ------------------------------------------------------------------------------------ sample.py


def test_sample_with_no_arguments_makes_controlled_pictures(tmp_path):
    command = [sys.executable, str(ROOT / "sample.py"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "sheet.png" in done.stdout and "20/20" in done.stderr
    assert Image.open(tmp_path / "out" / "sheet.png").size == (5 * 64, 64)
    picture = Image.open(tmp_path / "out" / "003.png")
    settings = json.loads(picture.text["settings"])
    assert settings["scale"] == load_sd(NANO).guidance and settings["steps"] == 20
    assert picture.text["seed"] == "0" and picture.text["prompt"] == settings["prompt"]


def test_one_seed_one_picture_and_sizes_of_the_hint(tmp_path, pairs):
    def made(*flags: str) -> bytes:
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        sample.main([*flags, "--steps", "2", "--n", "1", "--out", str(out)])
        return Image.open(out / "000.png").tobytes()

    assert made("--seed", "1") == made("--seed", "1") != made("--seed", "2")
    Image.new("L", (140, 70)).save(tmp_path / "wide.png")
    size = len(made("--hint", str(tmp_path / "wide.png")))
    assert size == 3 * 128 * 64
    plain = ["--base", NANO, "--prompt", "a yellow ball", "--height", "64", "--width", "128"]
    assert len(made(*plain)) == 3 * 128 * 64
    assert made(*plain) != made(*plain, "--negative", "a blue ring")
    hint = ["--hint", str(pairs / "hint0.png"), "--prompt", "a yellow ball"]
    assert made(*hint) != made(*hint, "--strength", "0")
    assert made(*hint) != made(*hint, "--sampler", "ddpm")
    assert made(*hint) != made(*hint, "--eta", "1")


def test_in_half_precision_the_vae_keeps_its_range(tmp_path, monkeypatch):
    """fp16 ends at 65504, which some of the VAE's values exceed."""
    seen, load = [], sample.load_sd
    monkeypatch.setattr(sample, "load_sd", lambda *args: seen.append(load(*args)) or seen[-1])
    for dtype, of_vae in [("fp16", torch.float32), ("bf16", torch.bfloat16)]:
        sample.main(["--dtype", dtype, "--n", "1", "--steps", "1", "--device", "cpu"])
        assert next(seen[-1].vae.parameters()).dtype == of_vae
        assert next(seen[-1].unet.parameters()).dtype == sample.DTYPES[dtype]


def test_a_controlnet_file_with_its_own_base_needs_no_other(tmp_path, pairs):
    """As the files of ControlNet 1.0."""
    with safe_open(NANO, "pt") as file:
        metadata = file.metadata()
    save_file(load_file(NANO) | load_file(CONTROL), tmp_path / "v1.0.safetensors", metadata)
    flags = ["--hint", str(pairs / "hint0.png"), "--n", "1", "--steps", "2", "--out", str(tmp_path)]
    sample.main(["--control", str(tmp_path / "v1.0.safetensors"), *flags])
    inside = Image.open(tmp_path / "000.png").tobytes()
    sample.main(["--base", NANO, "--control", CONTROL, *flags])
    assert Image.open(tmp_path / "000.png").tobytes() == inside


def made(out: Path, *flags: str) -> np.ndarray:
    """The picture that sample.py makes, in two steps if nothing else is said, [H, W, 3]."""
    sample.main(["--steps", "2", "--n", "1", "--out", str(out), *flags])
    return np.asarray(Image.open(out / "000.png"))


def test_four_kinds_of_prompts(tmp_path):
    caption = tmp_path / "photo.txt"
    caption.write_bytes("\ufeffa yellow ball\n on a blue background\n".encode())
    for flags, prompt in [
        ([], Scenes("canny", HELD_OUT).scene(0).prompt),  # what the hint shows
        (["--prompt", ""], ""),
        (["--prompt", "a yellow ball"], "a yellow ball"),
        (["--prompt", "default"], "a high-quality, detailed, and professional image"),
        (["--prompt-from", str(caption)], "a yellow ball on a blue background"),
    ]:
        made(tmp_path / "out", *flags)
        assert Image.open(tmp_path / "out" / "000.png").text["prompt"] == prompt


def test_every_way_to_apply_a_control_changes_the_picture(tmp_path, pairs):
    hint = str(pairs / "hint0.png")
    flags = ["--hint", hint, "--prompt", "a yellow ball"]
    pictures = [
        made(tmp_path, *flags, *more)
        for more in (
            [], ["--guess"], ["--resolution-weighting"], ["--control-to", "0.5"],
            ["--control-from", "0.5"], ["--strength", "0"], ["--strength", "0.5"],
            ["--strength", "0,0,0,0,0,0,1"], ["--canny", "100", "200"],
        )
    ]  # fmt: skip
    for i, picture in enumerate(pictures):
        assert not any(np.array_equal(picture, other) for other in pictures[:i]), i


def test_two_controls_of_which_one_has_strength_0(tmp_path, pairs):
    a, b = str(pairs / "hint0.png"), str(pairs / "hint1.png")
    both = ["--control", CONTROL, "--control", CONTROL, "--hint", a, "--hint", b]
    alone = made(tmp_path, "--hint", a)
    assert np.array_equal(made(tmp_path, *both, "--strength", "1", "--strength", "0"), alone)
    assert not np.array_equal(made(tmp_path, *both), alone)
    assert Image.open(tmp_path / "sheet.png").size == (3 * 64, 64)
    none = made(tmp_path, *both, "--control-from", "0.5", "--control-to", "0.5")
    plain = made(tmp_path, "--hint", a, "--strength", "0")
    assert np.array_equal(none, plain) and not np.array_equal(alone, plain)


def test_canny_is_of_the_hint_before_it(tmp_path, pairs):
    picture, edges = str(pairs / "image0.png"), canny(read_picture(pairs / "image0.png"), 20, 50)
    edges = to_bytes(edges)
    made(tmp_path, "--hint", picture, "--canny", "20", "50")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "sheet.png"))[:, :64], edges)
    two = ["--control", CONTROL, "--control", CONTROL, "--hint", picture]
    made(tmp_path, *two, "--hint", picture, "--canny", "20", "50")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert np.array_equal(sheet[:, 64:128], edges) and not np.array_equal(sheet[:, :64], edges)


def test_what_the_flags_become(tmp_path, pairs, monkeypatch):
    """What `sample` of the package is called with."""
    mask, seen, original = np.zeros((64, 64), np.uint8), [], sample.sample
    mask[7:9, 20], mask[40:, 40:] = 255, 100  # grey is not white
    Image.fromarray(mask).save(tmp_path / "mask.png")

    def spy(sd, *args, **options):
        seen.append({"sd": sd, "controls": args[3]} | options)
        return original(sd, *args, **options)

    monkeypatch.setattr(sample, "sample", spy)
    image = ["--image", str(pairs / "image0.png"), "--hint", str(pairs / "hint0.png")]
    strengths = ["--strength", "1,0,1,0,1,0,0.5"]
    window = ["--control-from", "0.25", "--control-to", "0.5"]
    made(tmp_path, *image, "--mask", str(tmp_path / "mask.png"), "--guess", "--prediction", "v")
    made(tmp_path, *image, "--resolution-weighting", "--noise", "0.5", *strengths, *window)
    (first, second), latents = seen, [[0, 0, 0, 2], [0, 0, 1, 2]]
    assert first["guess"] and not first["resolution_weighting"] and first["sd"].prediction == "v"
    assert first["noised"] is None and first["mask"].nonzero().tolist() == latents
    assert second["resolution_weighting"] and not second["guess"]
    assert second["sd"].prediction == "eps" and second["mask"] is None
    assert (second["noised"], second["control_from"], second["control_to"]) == (0.5, 0.25, 0.5)
    assert [c[2] for c in first["controls"]] == [1.0]
    assert [c[2] for c in second["controls"]] == [[1, 0, 1, 0, 1, 0, 0.5]]
    vae, picture = load_sd(NANO).vae, read_picture(pairs / "image0.png")[None] * 2 - 1
    with torch.no_grad():
        expected = first["sd"].scale_factor * vae.encode(picture)[0]
    torch.testing.assert_close(first["image"], expected)


def test_photographs_of_all_kinds(tmp_path):
    """A phone's orientation is followed, transparency is black, grey and 16 bits are read."""
    scene = np.zeros((64, 128, 3), np.uint8)
    scene[:32] = 200
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by a quarter
    Image.fromarray(scene).save(file := tmp_path / "phone.png", exif=turned)
    assert picture_size(file) == (64, 128) and read_picture(file).shape == (3, 128, 64)
    assert read_picture(file)[0, 0, -1] > 0.7 and read_picture(file)[0, 0, 0] == 0
    pen = np.full((64, 64, 4), 255, np.uint8)
    pen[8:, :, 3] = 0
    Image.fromarray(pen).save(file := tmp_path / "pen.png")
    assert read_picture(file)[:, :8].min() == 1 and read_picture(file)[:, 8:].max() == 0
    Image.fromarray(np.full((64, 64), 2**15, np.uint16)).save(file := tmp_path / "depth.png")
    assert 0.49 < read_picture(file).mean() < 0.51
    assert made(tmp_path / "out", "--hint", str(tmp_path / "phone.png")).shape == (128, 64, 3)


@pytest.mark.parametrize("control", [True, False])
def test_repainting_keeps_the_pictures_bytes(tmp_path, pairs, control):
    image, mask = np.asarray(Image.open(pairs / "image0.png")), np.zeros((64, 64), np.uint8)
    mask[5:30, 20:51] = 255  # its borders are no multiples of 8
    Image.fromarray(mask).save(tmp_path / "mask.png")
    flags = ["--image", str(pairs / "image0.png"), "--mask", str(tmp_path / "mask.png")]
    flags += ["--hint", str(pairs / "hint1.png")] if control else []
    picture = made(tmp_path / "out", *flags, "--prompt", "a yellow ball on a blue background")
    assert np.array_equal(picture[mask == 0], image[mask == 0])
    assert (picture[mask == 255] == image[mask == 255]).mean() < 0.5
    from_it = made(tmp_path / "out", *flags, "--noise", "0.5")
    assert np.array_equal(from_it[mask == 0], image[mask == 0])
    assert not np.array_equal(from_it, picture)


def test_from_a_picture(tmp_path, pairs):
    flags = ["--image", str(pairs / "image0.png"), "--steps", "8"]
    image = np.asarray(Image.open(pairs / "image0.png")).astype(float)
    pictures = [made(tmp_path, *flags)]
    pictures += [made(tmp_path, *flags, "--noise", noise) for noise in ("0.75", "0", "1")]
    assert np.array_equal(pictures[0], pictures[1])  # the default
    distances = [np.abs(picture - image).mean() for picture in pictures[1:]]
    assert distances[1] < distances[0] < distances[2]


def test_sizes_of_pictures(tmp_path):
    """As the original: the short side as the base likes it, both multiples of 64."""
    Image.new("RGB", (300, 150)).save(tmp_path / "wide.png")
    wide = ["--hint", str(tmp_path / "wide.png")]
    for flags, size in [
        ([], (64, 128)), (["--width", "64"], (64, 64)), (["--height", "128"], (128, 256)),
        (["--height", "64", "--width", "64"], (64, 64)),
    ]:  # fmt: skip
        assert made(tmp_path / "out", *wide, *flags).shape[:2] == size


def test_explain_prints_and_makes_nothing(tmp_path, capsys):
    sample.main(["--explain", NANO, "--out", str(tmp_path / "out")])
    assert "a base model" in capsys.readouterr().out and not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------ bad input


def refusal(main, capsys, *flags: str) -> str:
    """The one sentence that a script ends with, and with status 1 (train.py) or 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([*flags])
    if main is train.main and isinstance(end.value.code, str):  # printed by Python, with status 1
        assert "\n" not in end.value.code
        return end.value.code
    assert end.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_sample_refuses_bad_input(tmp_path, capsys, pairs, monkeypatch):
    text = tmp_path / "text.png"
    text.write_text("no picture")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(Path(NANO).read_bytes()[:100_000])
    (empty := tmp_path / "empty.txt").write_text("\n")
    Image.new("L", (128, 64)).save(wide := str(tmp_path / "wide.png"))
    Image.new("L", (64, 64)).save(black := str(tmp_path / "black.png"))
    save_control(ControlNet(CONFIGS["sd1"]), other := str(tmp_path / "other.safetensors"))
    hint = str(pairs / "hint0.png")
    for flags, words in [
        (["--base", "missing.safetensors"], "--base: missing.safetensors"),
        (["--base", str(cut)], "cut off"),
        (["--base", CONTROL], "--base"),
        (["--control", NANO, "--hint", hint], "ControlNet is wanted"),
        (["--control", str(cut)], "--control"),
        (["--hint", str(text)], "--hint"),
        (["--hint", "missing.png"], "missing.png does not exist"),
        (["--width", "128"], "--width"),
        (["--base", NANO, "--hint", hint], f"--hint {hint}: one --hint for each --control"),
        (["--base", NANO, "--control", CONTROL], f"--control {CONTROL}: one"),
        (["--control", CONTROL, "--control", CONTROL, "--hint", hint], f"--control {CONTROL}"),
        (["--hint", hint, "--strength", "1", "--strength", "2"], "--strength 1.0 --strength 2.0"),
        (["--base", NANO, "--strength", "0.5"], "--strength 0.5: one --hint"),
        (["--base", NANO, "--guess"], "--control is wanted"),
        (["--image", hint, "--control-to", "0.5"], "--control is wanted"),
        (["--image", hint, "--mask", black], "nothing in"),
        (["--scale", "nan"], "--scale"),
        (["--base", "a" * 300 + ".ckpt"], "--base"),
        (["--hint", hint, "--strength", "1,1"], "7 residuals"),
        (["--hint", hint, "--strength", "1,x"], "--strength"),
        (["--hint", hint, "--strength", "nan"], "--strength"),
        (["--control", other, "--hint", hint], f"{NANO} is nano"),
        (["--hint", hint, "--image", wide], "one shape"),
        (["--image", hint, "--mask", wide], "a mask of that size"),
        (["--image", hint, "--mask", str(text)], "--mask"),
        (["--image", "missing.png"], "--image"),
        (["--mask", hint], "--image is wanted"),
        (["--noise", "0.5"], "--image is wanted"),
        (["--image", hint, "--noise", "1.5"], "--noise"),
        (["--control-from", "0.6", "--control-to", "0.5"], "--control-from 0.6"),
        (["--control-to", "1.5"], "--control-to"),
        (["--guess", "--resolution-weighting"], "--guess"),
        (["--prompt", "x", "--prompt-from", "y"], "--prompt"),
        (["--prompt-from", "missing.txt"], "--prompt-from"),
        (["--prompt-from", hint], "no text"),
        (["--prompt-from", str(empty)], "is empty"),
        (["--canny", "100", "200"], "--hint is wanted"),
        (["--hint", hint, "--canny", "200", "100"], "--canny 200 100"),
        (["--hint", hint, "--canny", "-1", "100"], "--canny"),
        (["--explain", str(text)], "--explain"),
        (["--width", "100"], "multiple of 64"),
        (["--steps", "0"], "--steps"),
        (["--steps", "1001"], "--steps"),
        (["--eta", "2"], "--eta"),
        (["--sampler", "ddpm", "--eta", "1"], "--eta"),
        (["--device", "abacus"], "abacus"),
        (["--device", "meta"], "meta"),
        (["--seed", "18446744073709551616"], "--seed"),
        (["--n", "many"], "--n"),
        (["--out", str(text)], "--out"),
    ]:
        with monkeypatch.context() as patch:  # before anything slow starts
            patch.setattr(sample, "load_sd", lambda *args: pytest.fail("it was too late"))
            assert words in refusal(sample.main, capsys, *flags), flags


def test_train_refuses_bad_input(tmp_path, capsys, flags, pairs):
    run = str(tmp_path / "run")
    empty = tmp_path / "empty"
    empty.mkdir()
    short = [*flags, "--steps", "1"]
    train.main([*short, "--out", run])
    before = {file: file.read_bytes() for file in Path(run).rglob("*") if file.is_file()}
    for more, words in [
        (["--base", "missing.ckpt"], "--base"),
        (["--init-control", NANO], "--init-control"),
        (["--data", str(empty)], "--data"),
        (["--data", "nowhere"], "--data"),
        (["--condition", "depth"], "--condition"),
        (["--condition", "shuffle"], "--condition"),
        (["--out", run], "--resume"),
        (["--out", str(pairs / "hint0.png")], "--out"),
        (["--lr", "-1"], "--lr"),
        (["--drop-prompt", "1.5"], "--drop-prompt"),
        (["--batch-size", "0"], "--batch-size"),
        (["--resume", str(empty)], "--resume"),
        (["--resume", run, "--lr", "1e-2"], "--lr"),
        (["--resume", run, "--seed", "5"], "--seed"),
        (["--lr", "1e39", "--save-every", "1", "--out", str(tmp_path / "hotter")], "not finite"),
    ]:
        assert words in refusal(train.main, capsys, *short, *more), more
    assert "--base" in refusal(train.main, capsys, "--stage", "base")
    assert "--base" in refusal(train.main, capsys, "--stage", "decoder")
    for stage, flag, value in [
        ("vae", "--unlock", "all"), ("base", "--condition", "pose"), ("decoder", "--data", "x"),
        ("vae", "--base", NANO), ("vae", "--drop-prompt", "0.5"), ("base", "--prediction", "v"),
    ]:  # fmt: skip
        more = ["--base", NANO] if stage != "vae" else []
        assert flag in refusal(train.main, capsys, "--stage", stage, flag, value, *more)
    for text in ("[]", '{"stage": "control", "device": "cpu"}'):
        (empty / "settings.json").write_text(text)
        assert "--resume" in refusal(train.main, capsys, "--resume", str(empty))
    bad = write_pairs(tmp_path / "bad")
    (bad / "image3.png").write_bytes((bad / "image3.png").read_bytes()[:400])
    message = refusal(train.main, capsys, *short, "--data", str(bad), "--steps", "9")
    assert "image3.png" in message and message.startswith("train.py: /")
    assert before == {file: file.read_bytes() for file in before}
    assert not (tmp_path / "hotter" / "state.pt").exists()


def test_a_full_disk_loses_nothing(flags, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"

    def full(state, file):
        if state["step"] > 3:
            Path(file).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        return original(state, file)

    original = torch.save
    monkeypatch.setattr(torch, "save", full)
    assert "No space left" in refusal(train.main, capsys, *flags, "--out", str(run))
    assert torch.load(run / "state.pt")["step"] == 3
    assert not list(run.glob("*.tmp"))


def test_evaluate_prints_its_numbers(capsys):
    evaluate.main(["--n", "4"])
    numbers = json.loads(capsys.readouterr().out)
    measured = {"vae_db", "background", "colours", "shapes", "shapes_true", "iou", "conditions"}
    assert numbers.keys() == measured
    assert numbers["vae_db"] > 25 and numbers["iou"] > 0.5
    canny = numbers["conditions"]["canny"]
    assert canny["true"] == 1 and canny["with"] > canny["without"] + 0.1
    assert "--base" in refusal(evaluate.main, capsys, "--base", "missing.safetensors")
    assert "--detector" in refusal(evaluate.main, capsys, "--detector", "missing.safetensors")
    save_control(ControlNet(load_sd(NANO).unet.config), "bare.safetensors")
    message = refusal(evaluate.main, capsys, "--control", "bare.safetensors")
    assert "bare.safetensors names no condition" in message


def test_sheets_of_scenes_and_of_conditions(capsys):
    data.main(["--n", "3"])
    assert Image.open("out/world.png").size == (10 * 64, 16 + 3 * 64)
    nine.main(["--control", CONTROL])
    assert Image.open("out/nine.png").size == (2 * 64, 16 + 2 * 64)
    sd = load_sd(NANO)
    controls = {name: ControlNet.from_unet(sd.unet) for name in ("hough", "pose")}
    sheet = np.asarray(nine.side_by_side(sd, controls, HELD_OUT))
    assert sheet.shape == (16 + 2 * 64, 3 * 64, 3)
    hints = np.split(sheet[16:80], 3, axis=1)
    assert all(hint.std() > 5 for hint in hints)  # none is empty
    made = np.split(sheet[80:], 3, axis=1)
    assert all(np.array_equal(made[0], other) for other in made)  # untrained ones change nothing
    assert "are for canny" in refusal(nine.main, capsys, "--control", CONTROL, CONTROL)


def test_a_detector_can_be_trained(tmp_path, capsys):
    file = tmp_path / "new" / "d.safetensors"
    detector.main(["--steps", "2", "--scenes", "20", "--out", str(file)])
    assert detector.load_detector(file)
    (tmp_path / "f").write_text("no folder")
    assert "--out" in refusal(detector.main, capsys, "--out", str(tmp_path / "f" / "d.safetensors"))


def test_the_package_refuses_with_its_own_error():
    with pytest.raises(InputError):
        load_sd("missing.safetensors")
