"""The diagnosis of a run: planted faults are reported, and healthy runs raise no alarm."""

import json
import random
from dataclasses import asdict, fields, replace
from functools import cache
from pathlib import Path
from types import NoneType
from typing import get_args

import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

import train
from conftest import CONTROL, NANO, refusal
from nanocontrol.doctor import past_run
from nanocontrol.doctor.__main__ import main as doctor
from nanocontrol.doctor.causes import NANO_COURSE, about_hints, about_rate, about_steps, course_of
from nanocontrol.doctor.hints import TrainingHints, could_be, differences, looks_of, usual
from nanocontrol.doctor.past_run import SomePairs, pairs_of_run, read_past_run, some_pairs
from nanocontrol.nano.conditions import APPEARANCE
from nanocontrol.nano.scenes import Scenes
from nanocontrol.plumbing.pictures import to_pixels
from nanocontrol.training.run import write_json

SEED = 1000  # distance between the first scenes of two seeds


@cache
def scenes(condition: str, size: int, first: int = 0, n: int = 8) -> SomePairs:
    data = Scenes(condition, first, n, size)
    images, hints, prompts = zip(*(data[i] for i in range(n)))
    return SomePairs([*images], [*hints], [*prompts])


def verdicts(
    seen: SomePairs, condition: str | None = None, made: bool = False, learnt: bool = False
) -> list[str]:
    return [finding.verdict for finding in about_hints(seen, condition, made, learnt)]


def report(capsys, *flags: object) -> str:
    """Run the diagnosis, which has to end with status 0 -> its output."""
    capsys.readouterr()
    doctor([*map(str, flags)])
    return capsys.readouterr().out


# ------------------------------------------------------------------------------------------ hints


@pytest.mark.parametrize("condition", APPEARANCE)
def test_hints_of_every_condition_are_recognised(condition):
    seen = scenes(condition, 64)
    common = usual([looks_of(hint) for hint in seen.hints])
    assert could_be(condition, common) and not verdicts(seen, condition)
    for other in {"canny", "pose", "depth", "normals"} - {condition}:
        if (other, condition) != ("canny", "hough"):  # both have thin lines in small pictures
            assert not could_be(other, common), other
    found = " ".join(verdicts(seen, "pose" if condition == "canny" else "depth"))
    assert condition == "depth" or "another condition" in found or "mostly white" in found


@pytest.mark.parametrize("condition", ["canny", "depth", "segmentation"])
def test_shifted_scaled_and_shuffled_hints_are_recognised(condition):
    images, hints, prompts = scenes(condition, 64)
    right = [hint.roll(8, dims=2) for hint in hints]
    assert (
        "shifted by 12% of the picture to the right."
        in verdicts(SomePairs(images, right, prompts))[0]
    )
    up = [hint.roll(-6, dims=1) for hint in hints]
    assert "shifted by 9% of the picture to the top." in verdicts(SomePairs(images, up, prompts))[0]
    small = [on_black(hint, lambda picture: scaled(picture, 0.5)) for hint in hints]
    assert "scaled by 0.5." in verdicts(SomePairs(images, small, prompts))[0]
    others = hints[3:] + hints[:3]
    assert "shuffled" in verdicts(SomePairs(images, others, prompts))[0]
    # Shuffled hints cannot be learnt.
    assert not verdicts(SomePairs(images, others, prompts), learnt=True)


def on_black(hint: Tensor, change) -> Tensor:
    """Apply a change of a PIL image to a hint [3, H, W]."""
    changed = change(Image.fromarray(to_pixels(hint * 2 - 1)))
    return torch.tensor([*changed.tobytes()]).view(*hint.shape[1:], 3).permute(2, 0, 1) / 255


def scaled(picture: Image.Image, scale: float) -> Image.Image:
    """Scale a picture about its middle, at the same size."""
    width, height = picture.size
    smaller = picture.resize((round(width * scale), round(height * scale)))
    ground = Image.new("RGB", picture.size, picture.getpixel((0, 0)))
    ground.paste(smaller, ((width - smaller.width) // 2, (height - smaller.height) // 2))
    return ground


def moved(picture: Image.Image, right: int, down: int) -> Image.Image:
    ground = Image.new("RGB", picture.size, picture.getpixel((0, 0)))
    ground.paste(picture, (right, down))
    return ground


# --------------------------------------------------------------------------------------- --hint


@cache
def training(condition: str) -> TrainingHints:
    return TrainingHints.of(scenes(condition, 128).hints)


def new(condition: str, size: int = 128) -> Tensor:
    return scenes(condition, size, first=SEED, n=1).hints[0]


@pytest.mark.slow
@pytest.mark.parametrize("condition", APPEARANCE)
def test_a_new_hint_of_the_same_condition_is_accepted(condition):
    for hint in scenes(condition, 128, first=SEED, n=4).hints:
        assert not differences(hint, training(condition))
        assert "inverted" in differences(1 - hint, training(condition))[0]


@pytest.mark.parametrize("condition", ["pose", "normals"])
def test_swapped_red_and_blue_are_recognised(condition):
    assert "red and blue" in differences(new(condition).flip(0), training(condition))[0]


def test_hints_of_other_kinds_widths_and_colours_are_recognised():
    for condition, hint, words in [
        ("canny", new("pose"), "another kind: colours on black"),
        ("canny", new("scribble"), "pixels wide"),
        ("scribble", new("canny"), "pixels wide"),
        ("cartoon", new("depth"), "another kind: grey areas"),
        ("pose", new("pose").roll(1, dims=0), "colours that no hint"),
        ("canny", torch.zeros(3, 128, 128), "empty"),
        ("canny", (scenes("canny", 128).images[0] + 1) / 2, "another kind"),
    ]:
        found = differences(hint, training(condition))
        assert found and words in found[0], (condition, found)


def test_a_hint_file_is_compared_with_the_hints_of_the_training(tmp_path, capsys):
    pairs = plant(tmp_path / "pairs", "canny", "none", seed=0, n=8, size=128)
    run = write_run(tmp_path / "run", data=[str(pairs)], size="128x128")
    for name, hint, words in [
        ("fine", new("canny"), "looks like the hints"),
        ("inverted", 1 - new("canny"), "it is inverted"),
        ("large", new("canny", 256), "another size"),
        ("pose", new("pose"), "another kind"),
    ]:
        file = tmp_path / f"{name}.png"
        Image.fromarray(to_pixels(hint * 2 - 1)).save(file)
        text = report(capsys, run, "--hint", file)
        assert words in text.splitlines()[0], text
    assert "it is 256x256 and is resized to 128x128" in report(
        capsys, run, "--hint", tmp_path / "large.png"
    )


# ------------------------------------------------------------------------------------ run folders


def write_run(folder: Path, log: list[dict] | None = None, **settings) -> Path:
    """Write a run folder like train.py's, without training."""
    folder.mkdir(exist_ok=True)
    given = {"base": NANO, "data": None, "hints": None, "size": "64x64", "condition": None}
    given |= {"init_control": None, "steps": 500, "lr": 1e-3, "prediction": "auto"}
    given |= {"seed": 0}
    (folder / "settings.json").write_text(json.dumps(given | settings))
    lines = [json.dumps(entry) + "\n" for entry in log or [{"step": 0, "held_out_loss": 0.04}]]
    (folder / "log.jsonl").write_text("".join(lines))
    return folder


def course(gain: float, steps: int, loss: float = 0.04) -> list[dict]:
    """A run's log, from step 0 to `steps`, with this control gain at the end."""
    losses = [{"step": step, "loss": loss} for step in range(1, steps + 1)]
    first = {"step": 0, "held_out_loss": 0.04, "control_gain": 0.0, "score": 0.2}
    last = {"step": steps, "held_out_loss": loss, "control_gain": gain, "score": 0.2 + 20 * gain}
    return [first, *losses, last]


@pytest.mark.parametrize(
    "log, settings, words",
    [
        (course(0.02, 300), {}, "it follows its hints."),
        (course(0.0, 100), {}, "before the jump"),
        (course(0.0, 450), {}, "no cause was found"),
        (course(0.0, 500), {"lr": 1e-5}, "learning rate is too low"),
        (course(0.0, 20), {"steps": 20}, "too few steps"),
        (course(0.0, 100, loss=1.0), {"lr": 0.1}, "learning rate is too high"),
        (course(0.0, 100), {"lr": 0.1}, "learning rate is too high"),
        (course(0.0, 60) + [{"step": 61, "skipped": 10}], {}, "before the jump"),
        ([{"step": i, "skipped": i} for i in range(1, 11)], {}, "learning rate is too high"),
        ([], {}, "too little to judge by"),
        (course(0.02, 9), {}, "too little to judge by"),
        (course(0.0, 9), {}, "too little to judge by"),
        (course(0.02, 11), {}, "it follows its hints"),
        (course(0.02, 5), {"init_control": CONTROL}, "it follows its hints."),
    ],
)
def test_learning_rate_and_progress_are_judged_from_the_log(tmp_path, log, settings, words):
    run = read_past_run(write_run(tmp_path / "run", log, **settings))
    found = [*about_rate(run, 0.04, NANO_COURSE), *about_steps(run, NANO_COURSE)]
    assert words in (found or [course_of(run, NANO_COURSE)])[0].verdict


def test_one_held_out_pair_is_too_little_to_judge_by(tmp_path):
    run = read_past_run(write_run(tmp_path / "run", course(0.03, 400)))
    assert "healthy" in course_of(replace(run, held_out=8), NANO_COURSE).verdict
    assert "too little to judge" in course_of(replace(run, held_out=1), NANO_COURSE).verdict


def test_few_held_out_pairs_need_a_larger_gain(tmp_path):
    run = read_past_run(write_run(tmp_path / "run", course(0.003, 300)))
    assert run.follows and not replace(run, held_out=2).follows
    assert replace(
        read_past_run(write_run(tmp_path / "run", course(0.01, 300))), held_out=2
    ).follows


def test_a_run_of_few_scenes_has_only_these_pairs(tmp_path):
    run = read_past_run(write_run(tmp_path / "run", condition="canny", scenes=6))
    assert len(some_pairs(pairs_of_run(run), 32).images) == 6


def test_a_report_has_a_verdict_evidence_and_advice(tmp_path, capsys):
    pairs = plant(tmp_path / "pairs", "canny", "none", seed=0, n=8)
    run = write_run(tmp_path / "run", course(0.02, 300), data=[str(pairs)])
    (run / "metrics.json").write_text(json.dumps(course(0.02, 300)[-1]))
    text = report(capsys, run)
    assert text.startswith("The run looks healthy: it follows its hints, since the jump at about")
    assert "\nEvidence:\n- control gain 0.0200" in text and "\nWhat to do: " in text


def test_unreadable_files_are_refused_in_one_line(tmp_path, capsys):
    assert "settings.json is missing" in refusal(doctor, capsys, str(tmp_path / "nowhere"))
    run = write_run(tmp_path / "run", condition="canny")
    for content, words in (("[1]", "damaged"), ("{}", "not a ControlNet's run"), ("{", "damaged")):
        (run / "settings.json").write_text(content)
        assert words in refusal(doctor, capsys, str(run))
    write_run(run, data=[str(tmp_path / "gone")])
    assert "--data: " in refusal(doctor, capsys, str(run))
    write_run(run, condition="canny")
    (tmp_path / "text.png").write_text("not a picture")
    for file in ("text.png", "gone.png"):
        assert "--hint: " in refusal(doctor, capsys, str(run), "--hint", str(tmp_path / file))
    write_run(run, condition="canny", base=str(tmp_path / "gone.safetensors"))
    for hint in ((), ("--hint", str(tmp_path / "text.png"))):
        assert refusal(doctor, capsys, str(run), *hint).startswith("doctor: --base: ")
    (run / "log.jsonl").write_text('{"step": 1, "loss": 0.1}\n{"step": 2, "lo')  # a killed run
    assert read_past_run(run).steps == 1
    (run / "log.jsonl").write_text('{"loss": 0.1}\n')
    assert "log.jsonl cannot be read" in refusal(doctor, capsys, str(run))


DAMAGED = [
    *(("lr", x) for x in ("x", "0.1", None, 0, [0.1], float("nan"))),
    *(("steps", x) for x in (None, "5", 0, 1.5, True)),
    *(("prediction", x) for x in ("x", None, 5)),
    *(("condition", x) for x in ("xyz", 5)),
    *(("data", x) for x in (5, "pairs", [5])),
    *(("size", x) for x in ("abc", "64", 64, "64x64x64", "65x64")),
    *(("scenes", x) for x in ("x", 0, None)),
    *(("base", x) for x in (5, None)),
    *(("seed", x) for x in ("0", None, -1)),
    ("init_control", 5),
]


@pytest.mark.parametrize("name, value", DAMAGED)
def test_settings_damaged_by_hand_are_refused_with_folder_and_name(tmp_path, capsys, name, value):
    run = write_run(tmp_path / "run", **{"condition": "canny", name: value})
    message = refusal(doctor, capsys, str(run))
    assert message.startswith(f"doctor: {run}: {name} = {value!r} in its settings.json")


def test_the_settings_that_are_read_are_those_of_train_py(tmp_path):
    settings = {setting.name: setting for setting in fields(train.Settings)}
    for name in ("data", *past_run.READERS):
        kinds = settings[name].type, *get_args(settings[name].type)
        assert past_run.can_be(name, None) == (NoneType in kinds)
    for name in ("size", "lr", "seed"):
        assert past_run.READERS[name] is settings[name].metadata["type"]
    assert all(past_run.can_be("prediction", x) for x in get_args(settings["prediction"].type))
    assert all(past_run.can_be("condition", x) for x in settings["condition"].metadata["choices"])
    for given in ({}, {"data": ["pairs"], "base": NANO, "size": "64x128", "lr": 1}):
        write_json(tmp_path / "settings.json", asdict(train.resolve(given)))
        read_past_run(tmp_path)


# ------------------------------------------------------------------------------- planted faults


def plant(folder: Path, condition: str, fault: str, seed: int, n: int = 24, size: int = 64) -> Path:
    """Write pairs of drawn scenes as files, with a fault in them."""
    chance, data = random.Random(seed), Scenes(condition, first=SEED * seed, size=size)
    pairs = [data[i] for i in range(n)]
    pictures, hints = (
        [Image.fromarray(to_pixels(x)) for x in some]
        for some in ([pair[0] for pair in pairs], [pair[1] * 2 - 1 for pair in pairs])
    )
    prompts, turn = [prompt for *_, prompt in pairs], chance.randrange(3, n - 3)
    right, down = (chance.choice([-1, 1]) * chance.randrange(8, 16) * size // 100 for _ in range(2))
    scale = chance.choice([0.5, 0.7, 0.8])
    if fault == "constant":
        hints = [Image.new("RGB", hint.size, "gray") for hint in hints]
    if fault == "white":
        hints = [ImageOps.invert(hint) for hint in hints]
    if fault == "shifted":
        hints = [moved(hint, right, down) for hint in hints]
    if fault == "scaled":
        hints = [scaled(hint, scale) for hint in hints]
    if fault == "shuffled":
        hints = hints[turn:] + hints[:turn]
    if fault == "captions":
        prompts = prompts[turn:] + prompts[:turn]
    folder.mkdir()
    for i in range(n):
        pictures[i].save(folder / f"image{i}.png")
        hints[i].save(folder / f"hint{i}.png")
    lines = [
        json.dumps({"target": f"image{i}.png", "source": f"hint{i}.png", "prompt": prompts[i]})
        for i in range(n)
    ]
    (folder / "prompt.json").write_text("\n".join(lines))
    return folder


SHORT = ["--steps", "10"]
FAULTS: dict[str, tuple[list[str], str]] = {  # flags, and words in the verdict
    "constant": (SHORT, "hints are constant"),
    "shuffled": (SHORT, "hints belong to other pictures"),
    "shifted": (SHORT, "they are shifted"),
    "scaled": (SHORT, "they are scaled"),
    "condition": ([*SHORT, "--init-control", CONTROL], "of another condition"),
    "white": (SHORT, "mostly white"),
    "captions": (SHORT, "captions belong to other pictures"),
    "prediction": ([*SHORT, "--prediction", "v"], "The base predicts eps"),
    "high": (["--steps", "40", "--lr", "0.1"], "learning rate is too high"),
    "low": (["--steps", "40", "--lr", "1e-5"], "learning rate is too low"),
    "few": (["--steps", "20"], "too few steps"),
}
CONDITIONS = "canny", "depth", "scribble"  # one per seed
OTHERS = "pose", "depth", "segmentation"


def train_on(folder: Path, seed: int, *flags: str) -> None:
    """A short training on these pairs at 64 pixels, in the folder `run`."""
    fixed = ["--base", NANO, "--data", str(folder), "--device", "cpu", "--out", "run"]
    fixed += ["--size", "64", "--hint-init", "variance", "--seed", str(seed)]
    defaults = {"--lr": "1e-3", "--batch-size": "4"} | dict(zip(flags[::2], flags[1::2]))
    train.main([*fixed, *(text for flag in defaults.items() for text in flag)])


FIRST, MORE = pytest.mark.slow, pytest.mark.long


@pytest.mark.parametrize(
    "seed", [pytest.param(0, marks=FIRST), *(pytest.param(seed, marks=MORE) for seed in (1, 2))]
)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_reported(tmp_path, capsys, hasty, fault, seed):
    flags, words = FAULTS[fault]
    condition = (OTHERS if fault == "condition" else CONDITIONS)[seed]
    train_on(plant(tmp_path / "pairs", condition, fault, seed), seed, *flags)
    text = report(capsys, "run")
    assert words in text.splitlines()[0], text


@pytest.mark.parametrize(
    "condition, seed, flags",
    [
        pytest.param("canny", 0, [*SHORT, "--init-control", CONTROL, "--lr", "1e-5"], marks=FIRST),
        *(
            pytest.param(name, seed, ["--steps", "200"], marks=MORE)
            for seed, name in enumerate(APPEARANCE, 3)
            if name != "cartoon"  # white hints are suspicious if the run names no condition
        ),
        pytest.param("canny", 1, ["--steps", "100"], marks=MORE),
    ],
)
def test_a_healthy_run_raises_no_alarm(tmp_path, capsys, hasty, condition, seed, flags):
    train_on(plant(tmp_path / "pairs", condition, "none", seed, n=64), seed, *flags)
    text = report(capsys, "run")
    assert "looks healthy" in text.splitlines()[0] and "Also" not in text, text
