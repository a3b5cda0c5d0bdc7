"""`nanocontrol.tools.score`: agreement with nano's own scores, matching by name, bad input."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from conftest import opened, refusal
from nanocontrol.nano.conditions import CONDITIONS
from nanocontrol.nano.detector import truth
from nanocontrol.nano.scenes import Scenes
from nanocontrol.nano.scores import SCORES
from nanocontrol.nano.world import draw
from nanocontrol.plumbing.pictures import read_picture, to_bytes, to_pixels
from nanocontrol.tools.score import main, score_map

N = 3  # scenes


def write(folder: Path, pictures: dict[str, Tensor]) -> str:
    """Write pictures [3, H, W] in [0, 1] as files of these names -> the folder."""
    folder.mkdir(exist_ok=True)
    for name, picture in pictures.items():
        Image.fromarray(to_pixels(picture * 2 - 1)).save(folder / name)
    return str(folder)


@cache
def hints_of(condition: str) -> list[Tensor]:
    """Hints [3, 64, 64] in [0, 1] of the first N scenes."""
    return [Scenes(condition).hint(i) for i in range(N)]


@cache
def true_pictures() -> list[Tensor]:
    """Pictures [3, 64, 64] in [0, 1] of the first N scenes for Canny."""
    return [Scenes("canny").take(i).image / 2 + 0.5 for i in range(N)]


def numbered(pictures: list[Tensor]) -> dict[str, Tensor]:
    return {f"{i}.png": picture for i, picture in enumerate(pictures)}


def scored(capsys, *flags: str) -> dict:
    """Run the command -> the JSON object that it prints."""
    capsys.readouterr()
    main([*flags])
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def folders(tmp_path) -> list[str]:
    """Flags for Canny: hints and their true pictures."""
    flags = ["--hints", write(tmp_path / "hints", numbered(hints_of("canny")))]
    flags += ["--pictures", write(tmp_path / "made", numbered(true_pictures()))]
    return [*flags, "--condition", "canny"]


def with_maps(folders: list[str], condition: str, maps: dict[str, Tensor]) -> list[str]:
    """Flags for another condition, with its hints and these maps."""
    hints = Path(folders[1])
    write(hints, numbered(hints_of(condition)))
    return [*folders[:-1], condition, "--maps", write(hints.parent / "maps", maps)]


# ------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize("size", [64, 128])
def test_canny_equals_nanos_own_score_for_true_and_wrong_pictures(size, tmp_path, capsys):
    data = Scenes("canny", size=size)
    drawing, hints = draw(data.scene(0), size), write(tmp_path / "hints", {"a.png": data.hint(0)})
    high = int(np.random.default_rng(drawing.scene.seed).integers(100, 300))  # as in canny_edges
    for i, least, most in (0, 0.98, 1), (1, 0.05, 0.5):
        made = write(tmp_path / "made", {"a.png": data.take(i).image / 2 + 0.5})
        flags = ["--hints", hints, "--pictures", made, "--condition", "canny"]
        found = scored(capsys, *flags, "--thresholds", str(high // 2), str(high))["score"]
        picture = read_picture(Path(made) / "a.png").permute(1, 2, 0).numpy()
        assert found == pytest.approx(SCORES["canny"](picture, np.zeros(0), drawing), abs=1e-4)
        assert least <= found <= most


@pytest.mark.parametrize("condition", ["hough", "soft", "segmentation", "depth", "cartoon"])
def test_maps_get_nanos_own_score(condition):
    data, hints = Scenes(condition), hints_of(condition)
    drawings = [draw(data.scene(i)) for i in range(N)]
    for j in range(N):
        maps = truth(data.scene(j))[1].numpy()
        for drawing, hint in zip(drawings, hints):
            expected = SCORES[condition](drawing.image, maps, drawing)
            assert score_map(condition, hint, hints[j]) == pytest.approx(expected, abs=1e-5)


def test_normals_get_nanos_score_except_at_the_edges_of_objects():
    data, hints = Scenes("normals"), hints_of("normals")
    for i in range(N):
        drawing = draw(data.scene(i))
        maps = truth(data.scene((i + 1) % N))[1].numpy()
        expected = SCORES["normals"](drawing.image, maps, drawing)
        assert score_map("normals", hints[i], hints[(i + 1) % N]) == pytest.approx(
            expected, abs=0.05
        )


# Largest shift, in pixels of 64, that costs nearly nothing.
NEAR = {"canny": 1, "hough": 1, "cartoon": 1, "scribble": 2, "pose": 3}


@pytest.mark.parametrize("condition", CONDITIONS)
def test_true_maps_score_1_and_shifted_ones_less(condition):
    def moved(pixels: int) -> float:
        pairs = [(hint, hint.roll(pixels, dims=2)) for hint in hints_of(condition)]
        return float(np.mean([score_map(condition, *pair) for pair in pairs]))

    near = NEAR.get(condition, 0)
    assert moved(0) == pytest.approx(1) and moved(near) > 0.98
    assert moved(near + 1) < 0.985 and moved(near + 8) < 0.7 and moved(near + 8) < moved(near + 1)


@pytest.mark.parametrize("condition", [name for name in CONDITIONS if name != "canny"])
def test_maps_are_read_from_files(condition, folders, capsys):
    hints = hints_of(condition)
    found = scored(capsys, *with_maps(folders, condition, numbered(hints)))
    assert found["condition"] == condition and found["pictures"] == N
    assert found["score"] == 1 and found["deviation"] == 0
    others = numbered([*hints[1:], hints[0]])
    assert scored(capsys, *with_maps(folders, condition, others))["score"] < 0.75


def test_a_pose_in_other_colours_scores_the_same():
    hint = hints_of("pose")[0]
    assert score_map("pose", hint, hint.flip(0)) == 1
    assert score_map("pose", hint, hint * 0) == 0


def test_segments_count_equally_whatever_their_size():
    hint = torch.zeros(3, 64, 64)
    hint[0, :8, :8] = 1
    assert score_map("segmentation", hint, hint * 0) == pytest.approx((63 / 64 + 0) / 2)


def test_the_flat_background_of_normals_does_not_count():
    flat = torch.tensor([128, 128, 255]).view(3, 1, 1) / 255
    hint, found = flat.repeat(1, 64, 64), flat.repeat(1, 64, 64)
    hint[:, :8] = torch.tensor([1, 0.5, 0.5]).view(3, 1, 1)
    assert score_map("normals", hint, found) == 0 and score_map("normals", hint, hint) == 1
    found[:, :4] = hint[:, :4]
    assert score_map("normals", hint, found) == 0.5


def test_the_tolerance_scales_with_the_short_side_and_is_at_least_a_pixel():
    for height, width, near in (32, 32, 1), (64, 256, 1), (128, 512, 2), (512, 512, 8):
        hint = torch.zeros(3, height, width)
        hint[:, :, 10] = 1
        assert score_map("canny", hint, hint.roll(near, dims=2)) == 1
        assert score_map("canny", hint, hint.roll(near + 1, dims=2)) == 0


def test_the_report_has_mean_deviation_and_the_five_worst(folders, capsys):
    maps = numbered(hints_of("hough"))
    names = [f"0-{c}.png" for c in "abcdef"]
    write(Path(folders[3]), dict.fromkeys(names, torch.zeros(3, 64, 64)))
    black = dict.fromkeys(names[:2], torch.zeros(3, 64, 64))
    right = dict.fromkeys(names[2:], maps["0.png"])
    found = scored(capsys, *with_maps(folders, "hough", maps | black | right))
    assert found["pictures"] == 9 and found["score"] == pytest.approx(7 / 9, abs=1e-4)
    assert found["deviation"] == pytest.approx(np.std([0, 0] + [1] * 7), abs=1e-4)
    assert found["worst"][:2] == [["0-a.png", 0], ["0-b.png", 0]]
    assert [score_map for _, score_map in found["worst"][2:]] == [1, 1, 1]


# -------------------------------------------------------------------- names, sizes and thresholds


def test_pictures_are_matched_to_hints_by_name(folders, capsys):
    hints, made = Path(folders[1]), Path(folders[3])
    (hints / "0.png").rename(hints / "cat.png")
    (hints / "1.png").rename(hints / "cat_b.png")
    (made / "2.png").unlink()
    # cat_b_1-x.png belongs to cat_b.png, the longest matching name.
    for old, new in ("0.png", "cat-1_x.png"), ("1.png", "cat_b_1-x.png"):
        (made / old).rename(made / new)
    opened(made / "cat-1_x.png").save(made / "cat.JPG", quality=100)
    (made / ".hidden.png").write_text("not a picture")
    (made / "notes.txt").write_text("not a picture")
    found = scored(capsys, *folders)
    assert found["pictures"] == 3 and min(score_map for _, score_map in found["worst"]) > 0.9


def test_hints_without_pictures_are_reported(folders, capsys):
    for i in range(2):
        (Path(folders[3]) / f"{i}.png").unlink()
    main(folders)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("score:")]
    assert lines == ["score: 2 of 3 hints have no picture: 0.png, 1.png"]


def test_pictures_are_resized_to_their_hints(folders, capsys):
    made = Path(folders[3])
    before = scored(capsys, *folders)
    for file in made.iterdir():
        pixels = to_bytes(read_picture(file)).repeat(2, axis=0).repeat(2, axis=1)
        Image.fromarray(pixels).save(file)
    assert scored(capsys, *folders) == before


def test_resizing_keeps_the_colours_of_segments(folders, capsys):
    maps = numbered(hints_of("segmentation"))
    flags = with_maps(folders, "segmentation", maps)
    for name in maps:
        file = Path(flags[-1]) / name
        opened(file).resize((48, 48), Image.Resampling.NEAREST).save(file)
    assert scored(capsys, *flags)["score"] > 0.94  # 0.71 if colours were interpolated


@pytest.mark.parametrize("hint_size, size", [((100, 67), (300, 200)), ((500, 350), (704, 512))])
def test_shapes_may_differ_by_rounding(hint_size, size, folders, capsys):
    for folder, (width, height) in (folders[1], hint_size), (folders[3], size):
        for i in range(N):
            write(Path(folder), {f"{i}.png": torch.zeros(3, height, width)})
    assert scored(capsys, *folders)["score"] == 1


def test_photographs_are_compared_by_their_edges(folders, capsys):
    hints, made = Path(folders[1]), Path(folders[3])
    for file in hints.iterdir():
        larger = opened(made / file.name).resize((640, 640), Image.Resampling.BICUBIC)
        larger.save(file)
    assert scored(capsys, *folders, "--photos")["score"] > 0.8
    for file in [*hints.iterdir()]:  # each picture gets the hint of another one
        file.rename(file.with_suffix(".of"))
    for i, file in enumerate(sorted(hints.iterdir())):
        file.rename(hints / f"{(i + 1) % N}.png")
    assert scored(capsys, *folders, "--photos")["score"] < 0.5


def test_thresholds_are_passed_to_canny(folders, capsys):
    default = scored(capsys, *folders)
    assert scored(capsys, *folders, "--thresholds", "100", "200") == default
    assert scored(capsys, *folders, "--thresholds", "2040", "2040")["score"] == 0  # no edges


# ---------------------------------------------------------------------------------- bad input


def test_contradicting_flags_are_refused(folders, capsys):
    depth = [*folders[:-1], "depth"]
    for flags, message in (
        ([*folders, "--maps", "m"], "--maps m: the edges of --condition canny are found here"),
        (depth, "--condition depth needs --maps, a folder of the pictures' maps"),
        (
            [*depth, "--maps", "m", "--thresholds", "1", "2"],
            "--thresholds is for --condition canny",
        ),
        ([*depth, "--maps", "m", "--photos"], "--photos is for --condition canny, not depth"),
        ([*folders, "--thresholds", "200", "100"], "--thresholds 200 100: expected the lower one"),
        ([*folders, "--thresholds", "1", str(2**31)], "--thresholds 1 2147483648: expected"),
        ([*folders, "--thresholds", "-1", "100"], "argument --thresholds: -1 is less than 0"),
        ([*folders[:-1], "edges"], "argument --condition: invalid choice: 'edges'"),
        (folders[:4], "the following arguments are required: --condition"),
    ):
        assert message in refusal(main, capsys, *flags)


@pytest.mark.parametrize("flag, at", [("--hints", 1), ("--pictures", 3)])
def test_unusable_folders_are_refused(flag, at, folders, tmp_path, capsys):
    empty, file = tmp_path / "empty", tmp_path / "file"
    empty.mkdir()
    file.write_text("not a folder")
    for folder, message in (
        (empty, "has no pictures; expected .png, .jpg"),
        (file, "cannot be read (Not a directory); expected a folder"),
        (tmp_path / "missing", "cannot be read (No such file or directory)"),
    ):
        flags = [*folders[:at], str(folder), *folders[at + 1 :]]
        assert f"score: {flag}: {folder} {message}" in refusal(main, capsys, *flags)


@pytest.mark.parametrize("flag, at", [("--hints", 1), ("--pictures", 3), ("--maps", 7)])
def test_unusable_files_are_refused(flag, at, folders, capsys):
    maps = numbered(hints_of("depth"))
    flags = with_maps(folders, "depth", maps) if flag == "--maps" else folders
    file = Path(flags[at]) / "1.png"
    whole = file.read_bytes()
    for data in b"", b"not a picture", whole[: len(whole) // 2]:
        file.write_bytes(data)
        message = refusal(main, capsys, *flags)
        assert f"{flag}: {file}" in message and "expected" in message
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(file)
    (file.parent / "1.jpg").write_bytes(b"")
    assert f"{flag}: {file.parent}/1.jpg and {file} have one name" in refusal(main, capsys, *flags)


def test_pictures_much_smaller_than_their_hints_are_refused(folders, capsys):
    write(Path(folders[1]), {"0.png": torch.zeros(3, 640, 640)})
    words = "0.png is much smaller than its hint", "expected hints of the pictures' size"
    message = refusal(main, capsys, *folders)
    assert all(part in message for part in words)


def test_pictures_without_hint_or_map_are_refused(folders, capsys):
    maps = numbered(hints_of("depth"))
    flags = with_maps(folders, "depth", maps)
    for at, name in (7, "--maps"), (1, "--hints"):
        (Path(flags[at]) / "2.png").unlink()
        message = refusal(main, capsys, *flags)
        assert f"--pictures: {flags[3]}/2.png has none of its name in {name} {flags[at]}" in message
    Image.new("RGB", (64, 64)).save(Path(flags[3]) / "01.png")  # no - or _ after a hint's name
    assert f"{flags[3]}/01.png has none" in refusal(main, capsys, *flags)


def test_different_shapes_are_refused_with_both_names(folders, capsys):
    write(Path(folders[3]), {"1.png": torch.zeros(3, 64, 80)})
    message = refusal(main, capsys, *folders)
    made, hint = f"{folders[3]}/1.png", f"{folders[1]}/1.png"
    assert f"--pictures: {made} is 80x64, but its hint {hint} 64x64; expected one shape" in message


@pytest.mark.parametrize(
    "condition, wrong, message",
    [
        ("canny", lambda hint: 1 - hint, "is more than half lines; expected light lines on black"),
        ("cartoon", lambda hint: 1 - hint, "is more than half lines; expected dark lines on white"),
        ("segmentation", lambda hint: torch.rand(3, 64, 64), "has more than 256 colours; expected"),
        ("normals", lambda hint: hint * 0 + hint[:, :1, :1], "is flat background all over"),
    ],
)
def test_hints_in_the_wrong_form_are_refused(condition, wrong, message, folders, capsys):
    hints = numbered(hints_of(condition))
    flags = folders if condition == "canny" else with_maps(folders, condition, hints)
    file = write(Path(flags[1]), {"1.png": wrong(hints["1.png"])}) + "/1.png"
    assert f"--hints: {file} {message}" in refusal(main, capsys, *flags)
    if condition in ("cartoon", "segmentation"):  # maps too
        write(Path(flags[1]), hints)
        file = write(Path(flags[7]), {"1.png": wrong(hints["1.png"])}) + "/1.png"
        assert f"--maps: {file} {message}" in refusal(main, capsys, *flags)


def test_every_kind_of_picture_that_training_knows_is_scored(folders, capsys):
    for kind in ("bmp", "tif", "webp"):
        for i in (1, 3):
            for file in Path(folders[i]).iterdir():
                Image.open(file).convert("RGB").save(file.with_suffix(f".{kind}"), lossless=True)
                file.unlink()
        main(folders)
        assert json.loads(capsys.readouterr().out)["pictures"] > 0
