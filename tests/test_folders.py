"""Your own pictures: folder formats, crops, and the data check."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import train
from conftest import NANO, opened, refusal, write_pairs
from nanocontrol.checkpoint import load_sd
from nanocontrol.formats.tensors import open_tensors
from nanocontrol.nano.conditions import CONDITIONS
from nanocontrol.nano.scenes import Scenes
from nanocontrol.plumbing.canny import canny
from nanocontrol.plumbing.pictures import as_tensor, read_image
from nanocontrol.training import check
from nanocontrol.training.batches import in_unit
from nanocontrol.training.cache import Keys, batches_from
from nanocontrol.training.check import agreement, edge_map, evenly_spaced, look_through, not_met
from nanocontrol.training.pairs import Folder, View, split
from nanocontrol.training.processes import Processes
from nanocontrol.training.run import read_run

SQUARE = View((64, 64))


def pairs_in(folder: Path, **how) -> Folder:
    return Folder([folder], SQUARE._replace(**how))


def gradient(size: tuple[int, int]) -> Image.Image:
    """A picture that gets redder to the right and greener downwards."""
    right, down = np.meshgrid(*(np.linspace(0, 255, side) for side in size))
    return Image.fromarray(np.stack([right, down, 0 * right], axis=-1).round().astype(np.uint8))


# ------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("form", ["prompt.json", "metadata.jsonl"])
def test_both_list_formats_are_read(tmp_path, form):
    pairs = pairs_in(write_pairs(tmp_path, form, n=3))
    assert len(pairs) == 3 and not pairs.wrong
    for i in range(3):
        for ours, drawn in zip(pairs[i][:2], Scenes("canny")[i][:2]):
            assert (ours - drawn).abs().max() <= 2 / 255
        assert pairs[i][2] == Scenes("canny").scene(i).prompt
        assert torch.equal(pairs[i][0], pairs.take(i).image)
        assert torch.equal(pairs[i][1], in_unit(pairs.hint(i)))


def test_a_folder_of_photographs_with_caption_files_is_read(tmp_path):
    for name in ("b.jpg", "a.PNG", "c.webp"):
        gradient((80, 64)).save(tmp_path / name)
    (tmp_path / "a.txt").write_text("\ufeffa\n red  ramp\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("")
    for name in ("d.heic", "notes.md", ".DS_Store"):
        (tmp_path / name).write_text("not a picture")
    (tmp_path / "more").mkdir()
    pairs = pairs_in(tmp_path, hints="canny")
    assert [entry.picture.name for entry in pairs.entries] == ["a.PNG", "b.jpg", "c.webp"]
    assert [pairs[i][2] for i in range(3)] == ["a red ramp", "", ""]
    notes = found(pairs)
    assert "2 captions missing, so these prompts are empty: b.jpg, c.webp" in notes
    assert "3 other items in the folder, not used: d.heic, more, notes.md" in notes


def test_hints_are_made_from_listed_pictures(tmp_path):
    write_pairs(tmp_path, "metadata.jsonl", n=2)
    text = (tmp_path / "metadata.jsonl").read_text().replace("conditioning_image", "other")
    (tmp_path / "metadata.jsonl").write_text(text)
    assert "line 1" in pairs_in(tmp_path).wrong[0]
    pairs = pairs_in(tmp_path, hints="canny")
    image, hint, _ = pairs[1]
    low, high = pairs.thresholds(pairs.entries[1])
    assert high // 2 == low and torch.equal(hint, canny((image + 1) / 2, low, high))
    assert torch.equal(hint, pairs.hint(1)) and hint.any()


def test_thresholds_are_random_but_fixed_for_each_picture(tmp_path):
    pairs = pairs_in(write_pairs(tmp_path, n=12), hints="canny")
    thresholds = [pairs.thresholds(entry) for entry in pairs.entries]
    assert len({*thresholds}) > 6 and all(100 <= high < 300 for _, high in thresholds)
    kept = pairs.some([7, 3])
    assert [kept.thresholds(entry) for entry in kept.entries] == [thresholds[7], thresholds[3]]
    other = pairs_in(tmp_path, hints="canny", seed=1)
    assert [other.thresholds(entry) for entry in other.entries] != thresholds


def test_two_folders_are_joined(tmp_path):
    for name in "ab":
        write_pairs(tmp_path / name, n=2)
    both = Folder([tmp_path / "a", tmp_path / "b"], SQUARE)
    assert len(both) == 4 and both.entries[2].where.startswith(str(tmp_path / "b"))


def test_lists_may_contain_unusual_characters(tmp_path):
    write_pairs(tmp_path, n=1)
    entry = {"source": "hint0.png", "target": "image0.png", "prompt": "one\u2028two"}
    text = json.dumps(entry, ensure_ascii=False) + "\r\n"
    (tmp_path / "prompt.json").write_text(text, encoding="utf-8-sig")
    assert pairs_in(tmp_path)[0][2] == "one\u2028two"


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2]",
        '"text"',
        '{"source": "hint0.png"}',
        '{"target": 3}',
        '{"source": 1, "target": 2, "prompt": ""}',
        '{"source": "hint0.png", "target": "image0.png", "prompt": null}',
        r'{"source": "hint0.png", "target": "image0.png", "prompt": "\ud83d"}',
    ],
)
def test_invalid_lines_are_reported(tmp_path, text):
    write_pairs(tmp_path, n=3)
    good = (tmp_path / "prompt.json").read_text().splitlines()
    (tmp_path / "prompt.json").write_text("\n".join([good[0], text, good[2]]))
    pairs = pairs_in(tmp_path)
    assert len(pairs) == 2 and len(pairs.wrong) == 1
    assert "line 2" in pairs.wrong[0]
    assert any(word in pairs.wrong[0] for word in ("target", "`prompt`", "does not exist"))


# ------------------------------------------------------------------------------ sizes and crops


@pytest.mark.parametrize("size", [(64, 64), (100, 64), (64, 100), (300, 200), (40, 50)])
@pytest.mark.parametrize("shape", [(64, 64), (128, 64)])
def test_pictures_are_cropped_to_the_middle(tmp_path, size, shape):
    gradient(size).save(tmp_path / "a.png")
    image = (pairs_in(tmp_path, hints="canny", size=shape).take(0).image + 1) / 2
    assert image.shape == (3, shape[1], shape[0])
    # The colours show that the crop is as large as its shape allows, and in the middle.
    part = min(size[0] / shape[0], size[1] / shape[1])
    for channel, side, whole, length in ((0, 2, size[0], shape[0]), (1, 1, size[1], shape[1])):
        ramp = image[channel].mean(dim=2 - side)
        reach = (ramp[-1] - ramp[0]).item()
        assert ramp.mean().item() == pytest.approx(0.5, abs=0.02)
        assert reach == pytest.approx(part * (length - 1) / (whole - 1), abs=0.05)


def test_a_picture_of_the_right_size_is_unchanged(tmp_path):
    gradient((64, 64)).save(tmp_path / "a.png")
    assert torch.equal(
        pairs_in(tmp_path, hints="canny").image(0, (0.5, 0.5))[0], as_tensor(gradient((64, 64)))
    )


def test_a_hint_is_cropped_like_its_picture(tmp_path):
    picture = gradient((300, 200))
    picture.save(tmp_path / "p.png")
    picture.resize((150, 100)).save(tmp_path / "h.png")  # another size, the same aspect ratio
    entry = {"target": "p.png", "source": "h.png", "prompt": ""}
    (tmp_path / "prompt.json").write_text(json.dumps(entry))
    pairs = pairs_in(tmp_path)
    for i in (0, (0, 5), (0, 6)):
        image, hint, _ = pairs[i]
        assert (image - (hint * 2 - 1)).abs().max() < 0.05
    assert "1 hint with another size" in found(pairs)


def test_random_crops_change_each_time_and_depend_on_the_seed(tmp_path):
    gradient((300, 100)).save(tmp_path / "a.png")
    pairs = pairs_in(tmp_path, hints="canny", crop="random")
    places = [pairs[0, seen][0][0].mean().item() for seen in range(12)]
    assert len({*places}) == 12 and max(places) - min(places) > 0.5
    again = pairs_in(tmp_path, hints="canny", crop="random")
    assert places == [again[0, seen][0][0].mean() for seen in range(12)]
    assert places != [
        pairs_in(tmp_path, hints="canny", crop="random", seed=1)[0, s][0][0].mean()
        for s in range(12)
    ]


def test_a_resumed_training_sees_the_same_crops(tmp_path):
    write_pairs(tmp_path, n=5, size=(100, 64))
    pairs, sd = pairs_in(tmp_path, crop="random"), load_sd(NANO)

    def hints(start: int, batches: int) -> torch.Tensor:
        some = batches_from(start, sd, pairs, Processes("cpu"), "cpu", 0, 9, 2, 1, "")
        return torch.cat([next(some).hint for _ in range(batches)])

    whole = hints(0, 4)
    assert torch.equal(whole[4:], hints(2, 2)) and not torch.equal(whole[:2], whole[2:4])


def test_mirrored_pairs_follow_the_originals(tmp_path):
    pairs = pairs_in(write_pairs(tmp_path, n=3))
    both = pairs.mirrored()
    assert len(both) == 6 and len(pairs) == 3
    for i in range(3):
        for plain, same, turned in zip(pairs[i], both[i], both[i + 3]):
            if isinstance(plain, str):
                assert plain == same == turned
            else:
                assert torch.equal(plain, same) and torch.equal(plain.flip(-1), turned)
    assert torch.equal(both.hint(4), pairs.hint(1).flip(1))
    with pytest.raises(IndexError):
        both[6]
    with pytest.raises(IndexError):
        pairs[3]


def test_pictures_are_read_as_a_viewer_shows_them(tmp_path):
    """Upright, with a background for transparent pixels, in the full range of values."""
    photo = gradient((64, 64))
    grey = photo.convert("L")
    cases: dict[str, Image.Image] = {
        "palette.png": photo.quantize(256),
        "cmyk.jpg": photo.convert("CMYK"),
        "grey.jpg": grey,
        "bits.png": Image.fromarray(np.asarray(grey).astype(np.uint16) * 257),
        "alpha.png": photo.convert("RGBA"),
        "once.gif": photo,
    }
    for name, picture in cases.items():
        picture.save(tmp_path / name)
    photo.save(tmp_path / "moving.gif", save_all=True, append_images=[ImageOps.invert(photo)])
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    photo.rotate(90).save(tmp_path / "turned.png", exif=exif)
    pairs = pairs_in(tmp_path, hints="canny")
    assert not pairs.wrong and len(pairs) == 8
    for entry, i in zip(pairs.entries, range(8)):
        true = as_tensor(
            (grey if entry.picture.name in ("grey.jpg", "bits.png") else photo).convert("RGB")
        )
        image = (pairs[i][0] + 1) / 2
        assert (image - true).abs().mean() < 0.05, entry.picture
    cut_out = photo.convert("RGBA")
    cut_out.putalpha(0)
    cut_out.save(tmp_path / "hole.png")
    assert read_image(tmp_path / "hole.png", "white").getextrema() == ((255, 255),) * 3
    assert read_image(tmp_path / "hole.png").getextrema() == ((0, 0),) * 3


# ------------------------------------------------------------------------- held-out pairs, cache


def test_the_seed_determines_the_held_out_pairs(tmp_path):
    pairs = pairs_in(write_pairs(tmp_path, n=30))

    def held(seed: int) -> list[int]:
        training, kept = split(pairs, seed)
        numbers = [entry.number for entry in kept.entries]
        assert sorted(numbers + [entry.number for entry in training.entries]) == [*range(30)]
        return numbers

    assert held(0) == held(0) != held(1) and len(held(0)) == 3
    assert [len(split(pairs.some(range(n)), 0)[1]) for n in (2, 3, 4, 19, 30)] == [1, 1, 2, 2, 3]
    one, same = split(pairs.some([4]), 0)
    assert [e.number for e in one.entries] == [e.number for e in same.entries] == [4]


def test_the_cache_distinguishes_sizes_and_mirrored_pairs(tmp_path):
    write_pairs(tmp_path, n=2, size=(128, 100))
    sd = load_sd(NANO)
    views = [pairs_in(tmp_path), pairs_in(tmp_path, size=(128, 64)), pairs_in(tmp_path).mirrored()]
    for view in views:
        look_through(view, 1, 1)  # after which the files' hashes are known
    assert len({Keys(sd, view, False).every["latents"].tobytes() for view in views}) == 3
    plain = views[2]
    assert plain.fingerprint(0) != plain.fingerprint(2)


# ---------------------------------------------------------------------------------- the data check


def found(pairs: Folder) -> str:
    return "\n".join(look_through(pairs, 100, 4).notes)


def test_the_check_reports_nothing_odd_in_good_pairs(tmp_path):
    pairs = pairs_in(write_pairs(tmp_path, n=12))
    notes = found(pairs)
    assert "12 pairs, 2 held out; the others will be seen 40.0 times each" in notes
    assert "64x64 (12)" in notes and "tokens" in notes
    for word in ("constant", "white", "dupli", "missing", "enlarged", "another", "truncated"):
        assert word not in notes, word


def test_what_is_used_of_a_folder_is_not_called_unused(tmp_path):
    for name in ("img/a.png", "img/b.png", "edges/a.png", "edges/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        gradient((64, 64)).save(tmp_path / name)
    (tmp_path / "notes.md").write_text("not a picture")
    assert "1 other item in the folder, not used: notes.md" in found(
        pairs_in(tmp_path, hints=str(tmp_path / "edges"))
    )
    pairs = pairs_in(tmp_path / "img", hints=str(tmp_path / "edges"))
    assert "not used" not in found(pairs) and "the first pair: a.png; a.png; ''" in found(pairs)


def test_a_folder_of_hints_with_all_pictures_is_refused(tmp_path):
    gradient((64, 64)).save(tmp_path / "a.png")
    assert pairs_in(tmp_path, hints=str(tmp_path)).wrong == [
        f"{tmp_path} lists no pairs; expected some besides the hints in {tmp_path}"
    ]


def test_an_empty_list_is_not_taken_for_hints(tmp_path):
    (tmp_path / "edges").mkdir()
    gradient((64, 64)).save(tmp_path / "edges" / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\n")
    for hints, besides in (None, ""), ("edges", f" besides the hints in {tmp_path / 'edges'}"):
        wrong = pairs_in(tmp_path, hints=hints and str(tmp_path / hints)).wrong
        assert wrong == [f"{tmp_path} lists no pairs; expected some{besides}"]


def test_the_check_reports_every_oddity(tmp_path):
    write_pairs(tmp_path, n=12)
    Image.new("RGB", (64, 64), "gray").save(tmp_path / "hint1.png")
    with Image.open(tmp_path / "hint2.png") as hint:
        ImageOps.invert(hint.convert("RGB")).save(tmp_path / "hint2.png")
    (tmp_path / "image4.png").write_bytes((tmp_path / "image3.png").read_bytes())
    for name in ("image5.png", "hint5.png"):
        opened(tmp_path / name).resize((20, 20)).save(tmp_path / name)
    lines = [json.loads(line) for line in (tmp_path / "prompt.json").read_text().splitlines()]
    lines[6]["prompt"], lines[7]["prompt"] = "red " * 80, ""
    (tmp_path / "prompt.json").write_text("\n".join(map(json.dumps, lines)))
    notes = found(pairs_in(tmp_path))
    assert "1 hint constant, so useless for training: hint1.png" in notes
    assert "1 hint mostly white (inverted?): hint2.png" in notes
    assert "1 duplicate picture, as seen by training: image3.png, image4.png" in notes
    assert "1 picture enlarged by a factor above 2: image5.png" in notes
    assert "1 prompt longer than 77 tokens, truncated: image6.png" in notes
    assert "1 caption missing, so these prompts are empty: image7.png" in notes
    assert "2 to 82 tokens" in notes


def test_the_check_reports_constant_generated_hints(tmp_path):
    for i in range(3):
        Image.new("RGB", (64, 64), "gray").save(tmp_path / f"{i}.png")  # without edges
    assert "3 hints constant" in found(pairs_in(tmp_path, hints="canny"))


def test_the_check_calls_a_hint_of_one_colour_constant(tmp_path):
    write_pairs(tmp_path, n=4)
    Image.new("RGB", (64, 64), "red").save(tmp_path / "hint1.png")
    assert "1 hint constant, so useless for training: hint1.png" in found(pairs_in(tmp_path))


def test_an_interrupted_check_stops_reading(tmp_path, monkeypatch):
    checked, pairs = [], pairs_in(write_pairs(tmp_path, n=12))

    def stopped(folder: Folder, i: int, compare: bool, bar: object):
        checked.append(i)
        time.sleep(0.02)
        raise KeyboardInterrupt

    monkeypatch.setattr(check, "check_pair", stopped)
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyboardInterrupt):
            look_through(pairs, 1, 1)
        assert len(checked) < 12 and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_a_sample_of_pairs_is_evenly_spaced():
    assert evenly_spaced(63, 32)[-1] > 60 and len({*evenly_spaced(63, 32)}) == 32
    assert evenly_spaced(5, 32) == [0, 1, 2, 3, 4] and evenly_spaced(0, 3) == []


@pytest.mark.parametrize("condition", CONDITIONS)
def test_hints_of_other_pictures_are_detected(tmp_path, condition):
    scenes = [Scenes(condition)[i] for i in range(16)]
    edges = [(edge_map((image + 1) / 2), edge_map(hint)) for image, hint, _ in scenes]
    foreign = [(edges[i][0], edges[(i + 7) % 16][1]) for i in range(16)]
    assert sum(not_met(edges)) <= 4 and sum(not_met(foreign)) >= 8


def test_agreement_of_constant_maps_is_zero():
    assert agreement(torch.zeros(4, 4), torch.rand(4, 4)) == 0


# ------------------------------------------------------------------------------------ train.py


@pytest.mark.slow
def test_a_run_resumes_with_the_same_pairs_only(tmp_path, capsys, blind):
    pairs = write_pairs(tmp_path / "pairs", n=5)
    flags = ["--base", NANO, "--data", str(pairs), "--size", "64", "--device", "cpu"]
    train.main([*flags, "--steps", "1", "--out", "run"])
    write_pairs(tmp_path / "pairs", n=6)
    message = refusal(train.main, capsys, "--resume", "run", "--steps", "2")
    assert "run began with other pairs than --data has now" in message
    write_pairs(tmp_path / "pairs", n=5)
    train.main(["--resume", "run", "--steps", "2"])


@pytest.mark.slow
def test_a_run_resumes_with_its_data_in_another_folder(tmp_path, capsys, blind):
    write_pairs(tmp_path / "pairs", n=8)
    (tmp_path / "hints").mkdir()
    for hint in [*(tmp_path / "pairs").glob("hint*")]:
        hint.rename(tmp_path / "hints" / hint.name.replace("hint", "image"))
    flags = ["--base", NANO, "--data", "pairs", "--hints", "hints", "--size", "64"]
    flags += ["--device", "cpu", "--batch-size", "2", "--save-every", "1", "--out"]
    train.main([*flags, "whole", "--steps", "6"])
    train.main([*flags, "run", "--steps", "3"])
    shutil.move("pairs", "new"), shutil.move("hints", "elsewhere")
    shutil.move("cache", "new-cache"), shutil.move("run", "new-run")
    moved = ["--resume", "new-run", "--steps", "6", "--data", "new", "--hints", "elsewhere"]
    moved += ["--cache", "new-cache"]

    def refused_with(file: str, content: bytes) -> str:
        kept = Path(file).read_bytes()
        Path(file).write_bytes(content)
        message = refusal(train.main, capsys, *moved)
        Path(file).write_bytes(kept)
        return message

    for folder in ("new", "elsewhere"):  # the same pixels in other bytes
        other = Path(folder, "image7.png").read_bytes() + b"more"
        message = refused_with(f"{folder}/image7.png", other)
        assert f"{folder}/image7.png has another content than when" in message
    lines = Path("new/prompt.json").read_bytes().splitlines(keepends=True)
    other = lines[3].replace(b"background", b"sky")
    text = b"".join([*lines[:3], other, *lines[4:]])
    assert "prompt.json, line 4 is another pair than" in refused_with("new/prompt.json", text)
    text = b"".join(lines[:7])
    assert "began with 8 pairs; these are 7" in refused_with("new/prompt.json", text)
    message = refusal(train.main, capsys, *moved[:4], "--hints", "canny")
    assert "--hints canny contradicts" in message
    assert "cannot be read, or is no folder" in refusal(train.main, capsys, *moved[:4])
    train.main(moved)
    losses = [read_run(Path(run)).measured("loss") for run in ("whole", "new-run")]
    assert (
        losses[0] == losses[1]
        and len(losses[0]) == 6
        and len([*Path("new-cache/encoded").rglob("*.safetensors")]) == 1
    )
    train.main(["--resume", "new-run", "--steps", "7"])  # the new places are kept


@pytest.mark.slow
def test_training_on_photographs(tmp_path, capsys, hasty):
    for i in range(6):
        image = Scenes(None, size=128).take(i).image
        pixels = ((image + 1) * 127.5).byte().permute(1, 2, 0).numpy()
        (tmp_path / "photos").mkdir(exist_ok=True)
        ImageOps.expand(Image.fromarray(pixels), 20).save(tmp_path / "photos" / f"{i}.jpg")
    flags = ["--base", NANO, "--data", str(tmp_path / "photos"), "--hints", "canny", "--mirror"]
    flags += ["--size", "64", "--steps", "3", "--device", "cpu", "--out", "run"]
    train.main(flags)
    printed = capsys.readouterr().err
    assert "6 pairs" in printed and "6 captions missing" in printed
    assert open_tensors("run/control.safetensors").metadata["condition"] == "canny"
    assert "score" in json.loads(Path("run/metrics.json").read_text())
    (cached,) = Path("cache/encoded").iterdir()  # 5 pairs and their mirror images; training saw 12
    cached.unlink()
    train.main([*flags[:-2], "--crop", "random", "--out", "elsewhere"])
    assert Path("elsewhere/metrics.json").exists() and not list(Path("cache/encoded").iterdir())
