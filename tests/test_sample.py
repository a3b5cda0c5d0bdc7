"""sample.py from end to end, and its messages for bad input."""

import copy
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import sample
from conftest import CONFIGS, CONTROL, NANO, ROOT, SIZE, opened, refusal, write_pairs
from nanocontrol import DDPM, ControlNet, load_control, load_sd, save_control
from nanocontrol.commands import inputs
from nanocontrol.formats.tensors import read_tensors
from nanocontrol.nano.scenes import HELD_OUT, Scenes
from nanocontrol.plumbing.canny import canny
from nanocontrol.plumbing.pictures import picture_size, read_picture, to_bytes

SMALL = ["--width", "64", "--height", "64"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"), n=20, size=(SIZE, SIZE))


@pytest.fixture
def read_once(monkeypatch):
    """Read nano and its ControlNet once in a test that samples many pictures."""
    kept, load_sd, read_control = {}, sample.load_sd, inputs.read_control

    def base(file, *others):
        key = file.path, *others
        if key not in kept:
            kept[key] = load_sd(file, *others)
        return kept[key]

    def control(file, config):
        if file.path not in kept:
            kept[file.path] = read_control(file, config)
        return kept[file.path]

    monkeypatch.setattr(sample, "load_sd", base)
    monkeypatch.setattr(inputs, "read_control", control)


@pytest.mark.slow
def test_sample_without_arguments_makes_controlled_pictures(tmp_path):
    command = [sys.executable, str(ROOT / "sample.py"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "sheet.png" in done.stdout and "20/20" in done.stderr
    assert opened(tmp_path / "out" / "sheet.png").size == (5 * SIZE, SIZE)
    picture = opened(tmp_path / "out" / "003.png")
    settings = json.loads(picture.text["settings"])
    assert settings["scale"] == load_sd(NANO).guidance and settings["steps"] == 20
    assert picture.text["seed"] == "0" and picture.text["prompt"] == settings["prompt"]


@pytest.mark.slow
def test_a_seed_determines_the_picture_and_the_hint_its_size(tmp_path, pairs, read_once):
    def made(*flags: str) -> bytes:
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        sample.main([*flags, "--steps", "2", "--n", "1", "--out", str(out)])
        return opened(out / "000.png").tobytes()

    assert made("--seed", "1") == made("--seed", "1") != made("--seed", "2")
    Image.new("L", (140, 70)).save(tmp_path / "wide.png")
    size = len(made("--hint", str(tmp_path / "wide.png")))
    assert size == 3 * 256 * 128
    plain = ["--base", NANO, "--prompt", "a yellow ball", "--height", "64", "--width", "128"]
    assert len(made(*plain)) == 3 * 128 * 64
    assert made(*plain) != made(*plain, "--negative", "a blue ring")
    hint = ["--hint", str(pairs / "hint0.png"), "--prompt", "a yellow ball", *SMALL]
    assert made(*hint) != made(*hint, "--strength", "0")
    assert made(*hint) != made(*hint, "--sampler", "ddpm")
    assert made(*hint) != made(*hint, "--eta", "1")


@pytest.mark.slow
def test_the_vae_stays_in_float32_with_fp16(tmp_path, monkeypatch, pairs):
    """Some of the VAE's values exceed fp16's maximum of 65504."""
    seen, load = [], sample.load_sd
    monkeypatch.setattr(sample, "load_sd", lambda *args: seen.append(load(*args)) or seen[-1])
    for dtype, of_vae in [("fp16", torch.float32), ("bf16", torch.bfloat16)]:
        flags = ["--dtype", dtype, "--hint", str(pairs / "hint0.png"), *SMALL]
        sample.main([*flags, "--n", "1", "--steps", "1", "--device", "cpu"])
        assert next(seen[-1].vae.parameters()).dtype == of_vae
        assert next(seen[-1].unet.parameters()).dtype == sample.DTYPES[dtype]


@pytest.mark.slow
def test_a_controlnet_file_that_contains_a_base_needs_no_other(tmp_path, pairs):
    """ControlNet 1.0 was published in this form."""
    with safe_open(NANO, "pt") as file:
        metadata = file.metadata()
    save_file(load_file(NANO) | load_file(CONTROL), tmp_path / "v1.0.safetensors", metadata)
    flags = ["--hint", str(pairs / "hint0.png"), "--n", "1", "--steps", "2", "--out", str(tmp_path)]
    sample.main(["--control", str(tmp_path / "v1.0.safetensors"), *flags])
    inside = opened(tmp_path / "000.png").tobytes()
    sample.main(["--base", NANO, "--control", CONTROL, *flags])
    assert opened(tmp_path / "000.png").tobytes() == inside


@pytest.mark.slow
def test_a_controlnet_without_metadata_has_its_heads_from_the_base(tmp_path, pairs, capsys):
    """Files saved by other programs have no metadata of ours."""
    tensors = load_file(CONTROL)
    save_file(tensors, bare := tmp_path / "bare.safetensors")
    torch.save({"state_dict": tensors}, pickled := tmp_path / "bare.pth")
    flags = ["--hint", str(pairs / "hint0.png"), "--n", "1", "--steps", "2", "--out", str(tmp_path)]

    def picture(control: Path) -> bytes:
        sample.main(["--control", str(control), *flags])
        return Image.open(tmp_path / "000.png").tobytes()

    expected = picture(Path(CONTROL))
    assert picture(bare) == expected and picture(pickled) == expected
    # Files with another number of heads, or with the shapes of another base, are still refused.
    config = json.dumps({"num_heads": 4, "norm_groups": 4})
    save_file(tensors, wrong := tmp_path / "wrong.safetensors", {"nanocontrol": config})
    assert "4 heads" in refusal(sample.main, capsys, "--control", str(wrong), *flags)
    other = ControlNet(CONFIGS["sd1"]).state_dict()
    save_file(other, wrong)
    assert f"but {NANO} is nano" in refusal(sample.main, capsys, "--control", str(wrong), *flags)
    save_file({name: t for name, t in tensors.items() if "zero_convs.5" not in name}, wrong)
    assert "zero_convs.5" in refusal(sample.main, capsys, "--control", str(wrong), *flags)


@pytest.mark.slow
def test_checkpoints_are_opened_once_and_a_controlnet_is_built_once(tmp_path, pairs, monkeypatch):
    tensors = load_file(NANO) | load_file(CONTROL)
    with safe_open(NANO, "pt") as file:
        save_file(tensors, whole := tmp_path / "v1.0.safetensors", file.metadata())
    hint, opened, built = ["--hint", str(pairs / "hint0.png")], [], []
    read, build = read_tensors, ControlNet.__init__
    monkeypatch.setattr(
        "nanocontrol.formats.tensors.read_tensors",
        lambda path, check: opened.append(path) or read(path, check),
    )
    monkeypatch.setattr(ControlNet, "__init__", lambda *args: built.append(args) or build(*args))
    for flags, files in [
        ([], [CONTROL, NANO]),
        (["--base", NANO, "--control", CONTROL, *hint], [CONTROL, NANO]),
        (["--control", CONTROL, *hint], [CONTROL, NANO]),
        (["--control", str(whole), *hint], [str(whole)]),
    ]:
        opened.clear(), built.clear()
        made(tmp_path / "out", *flags, "--steps", "1")
        assert sorted(map(str, opened)) == sorted(files) and len(built) == 1


def test_inputs_are_frozen_and_the_flags_unchanged(pairs):
    for flags in ([], ["--image", str(pairs / "image0.png"), "--hint", str(pairs / "hint0.png")]):
        args = sample.parse_flags(flags, "")
        before = copy.deepcopy(vars(args))
        found = sample.read_inputs(args)
        assert vars(args) == before
        with pytest.raises(dataclasses.FrozenInstanceError):
            found.width = 128


@pytest.mark.slow
def test_generate_can_be_called_from_other_code():
    """`generate` takes loaded networks and returns the pictures that the command makes."""
    sd, (_, hint, prompt) = load_sd(NANO), Scenes("canny", HELD_OUT, size=SIZE)[0]
    control = load_control(CONTROL, sd.unet)
    controls = [(control, hint[None], 1.0)]
    (picture,) = sample.generate(sd, prompt, controls=controls, n=1, steps=2)
    assert picture.shape == (SIZE, SIZE, 3) and picture.dtype == np.uint8
    assert np.array_equal(picture, made(Path("out")))
    ddpm = {"scheduler": DDPM(sd.prediction), "guess": True}
    (picture,) = sample.generate(sd, "", "", controls, 1, SIZE, SIZE, 3, 2, **ddpm)
    flags = ["--prompt", "", "--guess", "--sampler", "ddpm", "--seed", "3"]
    Image.fromarray(to_bytes(hint)).save("hint.png")
    assert np.array_equal(picture, made(Path("out"), "--hint", "hint.png", *flags))


def made(out: Path, *flags: str) -> np.ndarray:
    """The picture [H, W, 3] that sample.py makes, by default in two steps."""
    sample.main(["--steps", "2", "--n", "1", "--out", str(out), *flags])
    return np.asarray(Image.open(out / "000.png"))


@pytest.mark.slow
def test_prompts_come_from_the_hint_a_flag_or_a_file(tmp_path, read_once):
    caption = tmp_path / "photo.txt"
    caption.write_bytes("\ufeffa yellow ball\n on a blue background\n".encode())
    for flags, prompt in [
        ([], Scenes("canny", HELD_OUT).scene(0).prompt),  # the prompt of the hint's scene
        (["--prompt", ""], ""),
        (["--prompt", "a yellow ball"], "a yellow ball"),
        (["--prompt", "default"], "a high-quality, detailed, and professional image"),
        (["--prompt-from", str(caption)], "a yellow ball on a blue background"),
    ]:
        made(tmp_path / "out", *flags, "--steps", "1")
        assert opened(tmp_path / "out" / "000.png").text["prompt"] == prompt


@pytest.mark.slow
def test_every_way_to_apply_a_control_changes_the_picture(tmp_path, pairs, read_once):
    hint = str(pairs / "hint0.png")
    flags = ["--hint", hint, "--prompt", "a yellow ball", *SMALL]
    pictures = [
        made(tmp_path, *flags, *more)
        for more in (
            [],
            ["--guess"],
            ["--resolution-weighting"],
            ["--control-to", "0.5"],
            ["--control-from", "0.5"],
            ["--strength", "0"],
            ["--strength", "0.5"],
            ["--strength", "0,0,0,0,0,0,1"],
            ["--canny", "100", "200"],
        )
    ]
    for i, picture in enumerate(pictures):
        assert not any(np.array_equal(picture, other) for other in pictures[:i]), i


@pytest.mark.slow
def test_a_second_control_of_strength_0_changes_nothing(tmp_path, pairs):
    a, b = str(pairs / "hint0.png"), str(pairs / "hint1.png")
    both = ["--control", CONTROL, "--control", CONTROL, "--hint", a, "--hint", b, *SMALL]
    alone = made(tmp_path, "--hint", a, *SMALL)
    assert np.array_equal(made(tmp_path, *both, "--strength", "1", "--strength", "0"), alone)
    assert not np.array_equal(made(tmp_path, *both), alone)
    assert opened(tmp_path / "sheet.png").size == (3 * 64, 64)
    none = made(tmp_path, *both, "--control-from", "0.5", "--control-to", "0.5")
    plain = made(tmp_path, "--hint", a, "--strength", "0", *SMALL)
    assert np.array_equal(none, plain) and not np.array_equal(alone, plain)


@pytest.mark.slow
def test_canny_is_given_once_for_all_hints_or_once_per_hint(tmp_path, pairs, read_once):
    """The --image in the sheet is not turned into edges."""
    photo = read_picture(pairs / "image0.png")
    low, high = (to_bytes(canny(photo, *limits)) for limits in [(20, 50), (100, 200)])
    assert not np.array_equal(low, high)
    two = ["--control", CONTROL, "--control", CONTROL, *["--hint", str(pairs / "image0.png")] * 2]
    one, image = two[2:6], ["--image", str(pairs / "image0.png")]
    low_flag, high_flag = ["--canny", "20", "50"], ["--canny", "100", "200"]
    for flags, shown in [
        ([*one, *low_flag], [low]),
        ([*low_flag, *one, *image], [low, to_bytes(photo)]),
        ([*two, *low_flag], [low, low]),
        ([*two, *low_flag, *high_flag], [low, high]),
        ([*two, *high_flag, *low_flag, *image], [high, low, to_bytes(photo)]),
    ]:
        made(tmp_path, *flags, "--steps", "1")
        sheet = opened(tmp_path / "sheet.png")
        assert np.array_equal(np.asarray(sheet)[:, : len(shown) * SIZE], np.hstack(shown)), flags
    settings = json.loads(opened(tmp_path / "000.png").text["settings"])
    assert settings["canny"] == [[100, 200], [20, 50]]


@pytest.mark.slow
def test_flags_become_arguments_of_sample(tmp_path, pairs, monkeypatch):
    """The arguments with which nanocontrol.sample is called."""
    mask, seen, original = np.zeros((SIZE, SIZE), np.uint8), [], sample.sample
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


def test_photographs_of_all_kinds_are_read(tmp_path):
    """EXIF orientation is applied, transparency becomes black, grey and 16 bits are read."""
    scene = np.zeros((64, 128, 3), np.uint8)
    scene[:32] = 200
    turned = Image.Exif()
    turned[0x0112] = 6  # rotated by 90 degrees
    Image.fromarray(scene).save(file := tmp_path / "phone.png", exif=turned)
    assert picture_size(file) == (64, 128) and read_picture(file).shape == (3, 128, 64)
    assert read_picture(file)[0, 0, -1] > 0.7 and read_picture(file)[0, 0, 0] == 0
    pen = np.full((64, 64, 4), 255, np.uint8)
    pen[8:, :, 3] = 0
    Image.fromarray(pen).save(file := tmp_path / "pen.png")
    assert read_picture(file)[:, :8].min() == 1 and read_picture(file)[:, 8:].max() == 0
    Image.fromarray(np.full((64, 64), 2**15, np.uint16)).save(file := tmp_path / "depth.png")
    assert 0.49 < read_picture(file).mean() < 0.51
    assert made(tmp_path / "out", "--hint", str(tmp_path / "phone.png")).shape == (256, 128, 3)


@pytest.mark.slow
@pytest.mark.parametrize("control", [True, False])
def test_repainting_keeps_unmasked_bytes(tmp_path, pairs, control, read_once):
    image, mask = np.asarray(Image.open(pairs / "image0.png")), np.zeros((SIZE, SIZE), np.uint8)
    mask[5:30, 20:51] = 255  # its edges are not multiples of 8
    Image.fromarray(mask).save(tmp_path / "mask.png")
    flags = ["--image", str(pairs / "image0.png"), "--mask", str(tmp_path / "mask.png")]
    flags += ["--hint", str(pairs / "hint1.png")] if control else []
    picture = made(tmp_path / "out", *flags, "--prompt", "a yellow ball on a blue background")
    assert np.array_equal(picture[mask == 0], image[mask == 0])
    assert (picture[mask == 255] == image[mask == 255]).mean() < 0.5
    from_it = made(tmp_path / "out", *flags, "--noise", "0.5")
    assert np.array_equal(from_it[mask == 0], image[mask == 0])
    assert not np.array_equal(from_it, picture)


@pytest.mark.slow
def test_more_noise_moves_away_from_the_image(tmp_path, pairs, read_once):
    flags = ["--image", str(pairs / "image0.png"), "--steps", "8"]
    image = np.asarray(Image.open(pairs / "image0.png")).astype(float)
    pictures = [made(tmp_path, *flags)]
    pictures += [made(tmp_path, *flags, "--noise", noise) for noise in ("0.75", "0", "1")]
    assert np.array_equal(pictures[0], pictures[1])  # the default
    distances = [np.abs(picture - image).mean() for picture in pictures[1:]]
    assert distances[1] < distances[0] < distances[2]


@pytest.mark.slow
def test_picture_sizes_follow_the_hint_and_the_flags(tmp_path, read_once):
    """As in the original, the short side has the base's size and both are multiples of 64."""
    Image.new("RGB", (300, 150)).save(tmp_path / "wide.png")
    wide = ["--hint", str(tmp_path / "wide.png")]
    for flags, size in [
        ([], (128, 256)),
        (["--width", "64"], (64, 64)),
        (["--height", "128"], (128, 256)),
        (["--height", "64", "--width", "64"], (64, 64)),
    ]:
        assert made(tmp_path / "out", *wide, *flags, "--steps", "1").shape[:2] == size


def test_pickles_are_not_imported_for_files_that_hold_none():
    program = (
        "import sys, sample; from nanocontrol import load_sd\n"
        "load_sd(sys.argv[1]); print([m for m in sys.modules if m.startswith('nanocontrol.')])"
    )
    command = [sys.executable, "-c", program, NANO]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "nanocontrol.formats.tensors" in done.stdout
    for name in ("formats.pickles", "formats.zips", "tools"):
        assert f"nanocontrol.{name}" not in done.stdout


# ------------------------------------------------------------------------------------ bad input


def test_sample_refuses_bad_input(tmp_path, capsys, pairs, monkeypatch):
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(Path(NANO).read_bytes()[:100_000])
    (empty := tmp_path / "empty.txt").write_text("\n")
    Image.new("L", (128, 64)).save(wide := str(tmp_path / "wide.png"))
    Image.new("L", (900, 64)).save(long := str(tmp_path / "long.png"))
    Image.new("L", (SIZE, SIZE)).save(black := str(tmp_path / "black.png"))
    save_control(ControlNet(CONFIGS["sd1"]), other := str(tmp_path / "other.safetensors"))
    hint = str(pairs / "hint0.png")
    for flags, words in [
        (["--base", "missing.safetensors"], "--base: missing.safetensors"),
        (["--base", str(cut)], "cut off"),
        (["--base", CONTROL], "--base"),
        (["--control", NANO, "--hint", hint], "expected a ControlNet"),
        (["--control", str(cut)], "--control"),
        (["--hint", str(text)], "--hint"),
        (["--hint", "missing.png"], "missing.png does not exist"),
        (["--width", "256"], "--width"),
        (
            ["--base", NANO, "--hint", hint],
            f"--hint {hint}: expected one --hint for each --control",
        ),
        (["--base", NANO, "--control", CONTROL], f"--control {CONTROL}: expected one"),
        (["--control", CONTROL, "--control", CONTROL, "--hint", hint], f"--control {CONTROL}"),
        (["--hint", hint, "--strength", "1", "--strength", "2"], "--strength 1.0 --strength 2.0"),
        (["--base", NANO, "--strength", "0.5"], "--strength 0.5: expected one --hint"),
        (["--base", NANO, "--guess"], "need --control"),
        (["--image", hint, "--control-to", "0.5"], "need --control"),
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
        (["--mask", hint], "need --image"),
        (["--noise", "0.5"], "need --image"),
        (["--image", hint, "--noise", "1.5"], "--noise"),
        (["--control-from", "0.6", "--control-to", "0.5"], "--control-from 0.6"),
        (["--control-to", "1.5"], "--control-to"),
        (["--guess", "--resolution-weighting"], "--guess"),
        (["--prompt", "x", "--prompt-from", "y"], "--prompt"),
        (["--prompt", "caf\udce9"], "--prompt: 'caf\\udce9' is not UTF-8"),
        (["--negative", "caf\udce9"], "--negative: 'caf\\udce9' is not UTF-8"),
        (["--hint", long], "is 900x64; expected sides of at most 8 to 1, or --width and --height"),
        (["--hint", long, "--width", "128"], "is 900x64"),
        (["--prompt-from", "missing.txt"], "--prompt-from"),
        (["--prompt-from", hint], "not UTF-8"),
        (["--prompt-from", str(empty)], "is empty"),
        (["--canny", "100", "200"], "needs --hint"),
        (["--hint", hint, "--canny", "200", "100"], "--canny 200 100"),
        (["--hint", hint, "--canny", "-1", "100"], "--canny"),
        (
            ["--hint", hint, "--canny", "1", "2", "--canny", "1", "2"],
            "--canny is given 2 times, --hint 1 times",
        ),
        (["--canny", "1", "2", "--canny", "1", "2", *["--hint", hint] * 3], "--hint 3 times"),
        (["--hint", hint, *["--canny", "1", "2"], *["--hint", hint]], "expected one --hint"),
        (["--explain", NANO], "--explain and --check are a command of their own now: python -m"),
        (["--explain", NANO, "--check"], "python -m nanocontrol.tools.explain FILE [--check]"),
        (["--check"], "python -m nanocontrol.tools.explain FILE [--check]"),
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
        with monkeypatch.context() as patch:  # the refusal has to come before weights are read
            patch.setattr(sample, "load_sd", lambda *args: pytest.fail("weights were read first"))
            assert words in refusal(sample.main, capsys, *flags), flags


QUICK = ["--n", "1", "--steps", "2"]


@pytest.mark.parametrize(
    "flags", [["--scale", "1e30"], ["--strength", "1e38", "--hint", "HINT"], ["--scale", "1e25"]]
)
def test_latents_that_are_not_finite_are_refused(flags, pairs, tmp_path, capsys):
    flags = [str(pairs / "hint0.png") if flag == "HINT" else flag for flag in flags]
    message = refusal(sample.main, capsys, *flags, *QUICK, "--out", str(tmp_path))
    assert "NaN or infinite numbers came out: try --dtype fp32" in message
    assert not [*tmp_path.iterdir()]


def test_a_strength_may_begin_with_a_minus(pairs, tmp_path, monkeypatch):
    flags = ["--hint", str(pairs / "hint0.png"), *QUICK, "--out", str(tmp_path)]
    sample.main(["--strength", "-1,0,0,0,0,0,0.5", *flags])
    settings = json.loads(opened(tmp_path / "000.png").text["settings"])
    assert settings["strength"] == [[-1, 0, 0, 0, 0, 0, 0.5]]
    monkeypatch.setattr(sys, "argv", ["sample.py", *flags, "--strength", "-0.5"])
    sample.main()
    assert json.loads(opened(tmp_path / "000.png").text["settings"])["strength"] == [-0.5]


def test_an_unknown_flag_is_escaped(capsys):
    assert "arguments: pos\\x1b[31m" in refusal(sample.main, capsys, "pos\x1b[31m")


def test_the_tokens_that_are_cut_are_counted(tmp_path, capsys):
    for n in (77, 78):  # with the tokens of start and end
        sample.main(["--prompt", "ring " * (n - 2), *QUICK, "--out", str(tmp_path)])
        said = capsys.readouterr().err
        assert ("tokens" in said) == (n > 77)
    assert "has 78 tokens, of which 1 are cut (at most 77)" in said
    sample.main(["--negative", "ring " * 100, *QUICK, "--out", str(tmp_path)])
    assert "has 102 tokens, of which 25 are cut" in capsys.readouterr().err


@pytest.mark.slow
def test_what_the_terminal_cannot_show_is_escaped(tmp_path):
    """On Windows standard output may be cp1252."""
    command = [sys.executable, str(ROOT / "sample.py"), *QUICK, "--out", str(tmp_path / "\x1b[31m")]
    done = subprocess.run(
        [*command, "--prompt", "a 猫 ring"],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "cp1252"},
    )
    assert done.returncode == 0, done.stderr
    assert b"\\u732b ring" in done.stdout and b"\\x1b[31m" in done.stdout
    assert b"\x1b" not in done.stdout
    assert opened(tmp_path / "\x1b[31m" / "000.png").text["prompt"] == "a 猫 ring"
