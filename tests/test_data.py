"""Scenes, folders of pairs, and the measures, which must know true pictures from wrong ones."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from nanocontrol import InputError
from nanocontrol.data import COLOURS, HELD_OUT, SHAPES, Folder, Scenes, draw, random_scene
from nanocontrol.evaluate import background_is, find_objects, iou, mean_iou, shows_colour
from nanocontrol.pictures import read_picture, to_pixels
from PIL import Image


def test_one_seed_one_scene():
    assert random_scene(3) == random_scene(3) != random_scene(4)
    for a, b in zip(Scenes(3)[0][:2], Scenes()[3][:2]):
        assert torch.equal(a, b)
    scenes = [random_scene(i) for i in range(300)]
    assert {s.shape for scene in scenes for s in scene.solids} == set(SHAPES)
    assert {scene.background for scene in scenes} == set(COLOURS)


def test_a_known_scene():
    """Drawn once and looked at; the same on every machine."""
    scene = random_scene(2)
    assert scene.prompt == "a coral square on a violet background"
    maps = draw(scene)
    assert maps["image"].shape == (64, 64, 3) and maps["image"].dtype == np.float32
    square = scene.solids[0]
    x, y = int(square.x * 64), int(square.y * 64)
    assert np.abs(maps["image"][y, x] - COLOURS["coral"]).max() < 0.05
    assert np.abs(maps["image"][0, 0] - COLOURS["violet"]).max() < 0.15
    side = np.sqrt(2) * 1.15 * square.radius * 64
    assert maps["mask"].sum() == pytest.approx(side**2, rel=0.02)
    assert maps["outline"].sum() == pytest.approx(4 * side * 1.5, rel=0.05)


def test_image_hint_and_prompt_agree():
    for i in range(20):
        image, hint, prompt = Scenes()[i]
        scene = random_scene(i)
        assert image.shape == hint.shape == (3, 64, 64)
        assert image.min() >= -1 and image.max() <= 1 and hint.min() >= 0 and hint.max() <= 1
        assert all(f"{s.colour} {s.shape}" in prompt for s in scene.solids)
        mask = torch.from_numpy(draw(scene)["mask"] > 0.5)
        inner_edge = hint[0].bool() & mask
        assert iou(image, mask) > 0.85
        assert inner_edge.any() and hint[0].mean() < 0.2


def test_measures_know_true_pictures_from_wrong_ones():
    scenes = [random_scene(HELD_OUT + i) for i in range(100)]
    images = torch.stack([Scenes(HELD_OUT)[i][0] for i in range(100)])
    wrong = images.roll(1, dims=0)

    def share(pictures, check) -> float:
        return np.mean([check(picture, scene) for picture, scene in zip(pictures, scenes)])

    def all_colours(picture, scene) -> bool:
        return all(shows_colour(picture, solid.colour) for solid in scene.solids)

    def background(picture, scene) -> bool:
        return background_is(picture, scene.background)

    assert share(images, background) >= 0.98 and share(wrong, background) < 0.2
    assert share(images, all_colours) >= 0.98 and share(wrong, all_colours) < 0.2
    assert mean_iou(images, images) == 1.0 and mean_iou(wrong, images) < 0.4
    assert mean_iou(images, torch.rand(100, 3, 64, 64) * 2 - 1) is None  # no plain background
    assert not find_objects(torch.zeros(3, 8, 8)).any()


# ------------------------------------------------------------------------------------ folders


def write_pairs(folder: Path, form: str = "prompt.json", n: int = 12, size: int = 64) -> Path:
    """Drawn scenes as files, listed in one of the two forms."""
    folder.mkdir(exist_ok=True)
    names = {
        "prompt.json": ("target", "source", "prompt"),
        "metadata.jsonl": ("file_name", "conditioning_image", "text"),
    }[form]
    lines = []
    for i in range(n):
        image, hint, prompt = Scenes()[i]
        for name, picture in (("image", image), ("hint", hint * 2 - 1)):
            pixels = Image.fromarray(to_pixels(picture)).resize((size, size))
            pixels.save(folder / f"{name}{i}.png")
        lines.append(json.dumps(dict(zip(names, (f"image{i}.png", f"hint{i}.png", prompt)))))
    (folder / form).write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("form", ["prompt.json", "metadata.jsonl"])
def test_folders_of_both_forms(tmp_path, form):
    pairs = Folder(write_pairs(tmp_path, form, n=3))
    assert len(pairs) == 3
    for i in range(3):
        for ours, drawn in zip(pairs[i][:2], Scenes()[i][:2]):
            assert (ours - drawn).abs().max() <= 2 / 255
        assert pairs[i][2] == random_scene(i).prompt


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as error:
        Folder(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_bad_folders_are_refused_with_file_and_line(tmp_path):
    assert "prompt.json or metadata.jsonl" in refused(tmp_path)
    list_file = tmp_path / "prompt.json"
    list_file.write_text("\n\n")
    assert "no pairs" in refused(tmp_path)
    write_pairs(tmp_path, n=3)
    good = list_file.read_text().splitlines()
    for bad in ("{not json", "[1, 2]", '"text"', '{"source": "hint0.png"}', '{"target": 3}',
                '{"source": 1, "target": 2, "prompt": ""}',
                '{"source": "hint0.png", "target": "image0.png", "prompt": null}'):
        list_file.write_text("\n".join([good[0], bad, good[2]]))
        assert "line 2" in refused(tmp_path) and "target" in refused(tmp_path)
    list_file.write_bytes(b"\xff\xfe\x00")
    assert "prompt.json" in refused(tmp_path)

    list_file.write_text("\n".join(good))
    Image.new("RGB", (128, 64)).save(tmp_path / "hint1.png")
    assert "line 2" in refused(tmp_path) and "128x64" in refused(tmp_path)
    (tmp_path / "hint1.png").write_text("no picture")
    assert "line 2" in refused(tmp_path) and "picture" in refused(tmp_path)
    (tmp_path / "hint1.png").unlink()
    assert "hint1.png does not exist" in refused(tmp_path)
    write_pairs(tmp_path, n=3, size=100)
    assert "100x100" in refused(tmp_path) and "64" in refused(tmp_path)


def test_a_picture_that_ends_early(tmp_path):
    write_pairs(tmp_path, n=1)
    data = (tmp_path / "image0.png").read_bytes()
    (tmp_path / "image0.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="image0.png"):
        Folder(tmp_path)[0]


def test_pictures_are_cut_off_not_rounded():
    values = torch.tensor([-1.2, -1.0, -0.5, 0.0, 0.999, 1.0, 1.3]).expand(3, 1, -1)
    assert to_pixels(values)[0, :, 0].tolist() == [0, 0, 63, 127, 254, 255, 255]


def test_pictures_of_every_mode_become_rgb(tmp_path):
    path = tmp_path / "a.png"
    for mode in ("L", "RGBA", "P", "1", "I;16"):
        Image.new(mode, (8, 4)).save(path)
        assert read_picture(path).shape == (3, 4, 8)
    Image.fromarray(np.array([[0, 300, 32768, 65535]], np.uint16)).save(path)  # depth, often
    assert (read_picture(path)[0, 0] * 255).tolist() == pytest.approx([0, 1, 128, 255])


def test_lists_with_odd_marks_in_their_text(tmp_path):
    write_pairs(tmp_path, n=1)
    entry = {"source": "hint0.png", "target": "image0.png", "prompt": "one\u2028two"}
    text = json.dumps(entry, ensure_ascii=False) + "\r\n"
    (tmp_path / "prompt.json").write_text(text, encoding="utf-8-sig")
    assert Folder(tmp_path)[0][2] == "one\u2028two"
