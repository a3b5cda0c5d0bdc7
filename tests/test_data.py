"""Scores tell true pictures from wrong ones."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import write_pairs
from nanocontrol import InputError
from nanocontrol.nano import data as data_of_runs
from nanocontrol.nano.conditions import CONDITIONS, SEGMENT
from nanocontrol.nano.detector import (
    CARTOON,
    DEPTH,
    HOUGH,
    JOINTS,
    KIND,
    NORMALS,
    SOFT,
    load_detector,
    truth,
)
from nanocontrol.nano.evaluate import background_is, shows_colour, shows_kinds
from nanocontrol.nano.model import DETECTOR
from nanocontrol.nano.scenes import HELD_OUT, Scenes
from nanocontrol.nano.scores import SCORES, f1, score
from nanocontrol.nano.world import KINDS, draw, joints_of, random_scene
from nanocontrol.plumbing.pictures import read_picture, to_pixels
from nanocontrol.training.film import BORDER, COLUMNS, PLOT, ROWS, chosen, film, with_lines
from nanocontrol.training.measure import find_objects, iou, mean_iou


def test_measures_tell_true_pictures_from_wrong_ones():
    data = Scenes(None, HELD_OUT)
    scenes = [data.scene(i) for i in range(24)]
    images = torch.stack([data.take(i).image for i in range(24)])
    wrong = images.roll(1, dims=0)

    def share(pictures, check) -> float:
        return np.mean([check(picture, scene) for picture, scene in zip(pictures, scenes)])

    def all_colours(picture, scene) -> bool:
        return all(shows_colour(picture, thing.colour) for thing in scene.things)

    def background(picture, scene) -> bool:
        return background_is(picture, scene.background)

    assert share(images, background) >= 0.98 and share(wrong, background) < 0.2
    assert share(images, all_colours) >= 0.98 and share(wrong, all_colours) < 0.3
    masks = [torch.from_numpy(draw(scene).index[::2, ::2] > 0) for scene in scenes]
    assert np.mean([iou(image, mask) for image, mask in zip(images, masks)]) > 0.95
    assert mean_iou(images, images) == 1.0 and mean_iou(wrong, images) < 0.45
    assert mean_iou(images, torch.rand(24, 3, 64, 64) * 2 - 1) is None  # no uniform background
    assert not find_objects(torch.zeros(3, 8, 8)).any()
    detector = load_detector(DETECTOR)
    assert shows_kinds(detector, images, scenes) >= 0.95
    assert shows_kinds(detector, wrong, scenes) < 0.3
    pairs = [i for i, scene in enumerate(scenes) if len({t.kind for t in scene.things}) == 2]
    halves = [replace(scenes[i], things=scenes[i].things[:1]) for i in pairs]
    assert shows_kinds(detector, images[pairs], halves) < 0.05  # one kind too many is shown


@pytest.mark.slow
@pytest.mark.parametrize("condition", CONDITIONS)
def test_scores_tell_true_pictures_from_wrong_ones(condition):
    data, detector = Scenes(condition, HELD_OUT), load_detector(DETECTOR)
    scenes = [data.scene(i) for i in range(6)]
    images = torch.stack([data.take(i).image for i in range(6)])
    right = score(condition, images, scenes, detector)
    wrong = score(condition, images.roll(1, dims=0), scenes, detector)
    empty = score(condition, images * 0, scenes, detector)
    assert 0.8 < right <= 1.0001 and wrong < 0.7 * right and empty < 0.5 * right


def test_the_detectors_targets_are_the_scenes_maps():
    for seed in range(10):
        scene = random_scene(seed, kinds=("figure",))
        drawing = draw(scene)
        image, maps, kinds = truth(scene)
        assert np.allclose((image + 1) / 2, drawing.image.transpose(2, 0, 1), atol=1e-6)
        for channel, name in ((DEPTH, "depth"), (HOUGH, "hough"), (SOFT, "soft")):
            assert np.array_equal(maps[channel], CONDITIONS[name](drawing)[..., 0])
        assert np.array_equal(maps[CARTOON], CONDITIONS["cartoon"](drawing)[..., 0])
        normals = maps[NORMALS].permute(1, 2, 0).numpy()
        assert np.array_equal(normals, CONDITIONS["normals"](drawing))
        segments = np.stack(list(SEGMENT.values()))[maps[KIND].argmax(dim=0)]
        assert np.array_equal(segments, CONDITIONS["segmentation"](drawing))
        for i, (x, y) in enumerate(joints_of(scene.of("figure")[0])):
            assert maps[JOINTS][i, int(y * 64), int(x * 64)] > 0.8
        assert kinds.tolist() == [float(bool(scene.of(kind))) for kind in KINDS]


@cache
def true_maps(condition: str, size: int) -> list:
    """Drawings, pictures and maps of six scenes."""
    scenes = [Scenes(condition).scene(i) for i in range(6)]
    return [(draw(scene, size), *truth(scene, size)[:2]) for scene in scenes]


def score_of_shifted(condition: str, shift: int, scale: int = 1) -> float:
    """Mean score if a detector found the true maps, `shift` pixels of 64 to the right."""
    scores = []
    for drawing, image, maps in true_maps(condition, scale * 64):
        picture, pixels = ((image + 1) / 2).permute(1, 2, 0).numpy(), scale * shift
        picture, maps = np.roll(picture, pixels, axis=1), np.roll(maps.numpy(), pixels, axis=2)
        scores.append(SCORES[condition](picture, maps, drawing))
    return np.mean(scores)


@pytest.mark.slow
@pytest.mark.parametrize(
    "condition, near, far",  # shifts that cost little, and nearly everything
    [
        ("canny", 1, 4),
        ("hough", 1, 4),
        ("cartoon", 1, 6),
        ("scribble", 1, 12),
        ("soft", 0, 12),
        ("depth", 1, 40),
        ("pose", 2, 4),
        ("segmentation", 0, 24),
        ("normals", 0, 20),
    ],
)
def test_scores_drop_with_the_shift(condition, near, far):
    for scale in (1, 2):  # distances scale with the picture
        assert score_of_shifted(condition, 0, scale) > (0.75 if condition == "scribble" else 0.999)
        assert score_of_shifted(condition, near, scale) > 0.75
        assert score_of_shifted(condition, far, scale) < 0.5


def test_an_empty_map_scores_zero():
    drawing = draw(Scenes("depth").scene(0))
    for empty in (np.zeros, np.ones):
        for condition in ("soft", "depth"):
            assert SCORES[condition](drawing.image, empty((27, 64, 64)), drawing) == 0


def test_f1_of_lines_within_a_tolerance():
    lines = np.zeros((8, 8), bool)
    lines[3] = True
    assert f1(lines, lines, within=0) == 1.0
    assert f1(np.roll(lines, 1, axis=0), lines, within=1) == 1.0
    assert f1(np.roll(lines, 2, axis=0), lines, within=1) == 0.0
    half = lines.copy()
    half[3, 4:] = False
    assert f1(half, lines, within=0) == pytest.approx(2 * 1 * 0.5 / 1.5)
    assert f1(lines & False, lines, within=1) == 0.0 and f1(lines & False, lines & False, 1) == 1.0


def test_a_file_that_is_not_a_detector_is_refused(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="x.safetensors"):
        load_detector(tmp_path / "x.safetensors")


# ------------------------------------------------------------------------- pictures and films


def test_pixel_values_are_clipped_and_truncated():
    values = torch.tensor([-1.2, -1.0, -0.5, 0.0, 0.999, 1.0, 1.3]).expand(3, 1, -1)
    assert to_pixels(values)[0, :, 0].tolist() == [0, 0, 63, 127, 254, 255, 255]


def test_pictures_of_every_mode_are_read_as_rgb(tmp_path):
    path = tmp_path / "a.png"
    for mode in ("L", "RGBA", "P", "1", "I;16"):
        Image.new(mode, (8, 4)).save(path)
        assert read_picture(path).shape == (3, 4, 8)
    depths = np.array([[0, 300, 32768, 65535]], np.uint16)
    Image.fromarray(depths).save(path)
    assert (read_picture(path)[0, 0] * 255).tolist() == pytest.approx([0, 1, 128, 255])


@pytest.mark.parametrize("n", [1, 2, 12, 13, 17, 24, 500])
def test_a_film_has_few_columns_and_keeps_the_first_and_the_last(n):
    steps = [25 * i for i in range(n)]
    columns = chosen(steps)
    assert columns[0] == 0 and columns[-1] == steps[-1] and len(columns) < COLUMNS
    assert len({b - a for a, b in zip(columns[1:], columns[2:])}) <= 1  # evenly spaced


def test_a_film_shows_hints_pictures_with_the_hints_lines_and_a_plot():
    hints = np.zeros((64, 5 * 64, 3), np.uint8)
    hints[:, 10::64] = 255  # a line in every hint
    made = {step: np.full_like(hints, grey) for step, grey in ((0, 100), (50, 100), (100, 200))}
    leap = [(0, 0.0), (50, 0.0), (100, 0.8)]
    picture = np.asarray(film(hints, made, 64, {"follows": leap}, 0))
    height, left = 16 + ROWS * 64, 4 * 64  # four of the five pairs, and the plot to the right
    assert picture.shape == (height, left + PLOT, 3)
    columns = [picture[16:, 64 * i : 64 * (i + 1)] for i in range(4)]
    assert [np.unique(column).tolist() for column in columns] == [
        [0, 255],  # the hint
        [100, 255],
        [100, 255],
        [0, 200],  # black lines over a light picture
    ]
    plot = picture[:, left:]
    red = (plot[..., 0] > 150) & (plot[..., 1] < 60)
    middle, end = (left_of_plot := BORDER) + (PLOT - BORDER * 3 // 2) // 2, PLOT - BORDER // 2 - 1
    bottom, top = BORDER // 2 + height - BORDER, BORDER // 2
    for x, y in ((left_of_plot + 9, bottom), (middle - 9, bottom), (end, top)):
        assert abs(np.flatnonzero(red[top:, x]).mean() + top - y) <= 3


def test_hints_that_are_not_lines_are_not_laid_over_the_pictures():
    strip, area = np.full((64, 64, 3), 90, np.uint8), np.zeros((64, 64, 3), np.uint8)
    area[20:40, 20:44] = 255  # 12 % of the picture
    assert (with_lines(strip, area) == 90).all()
    assert (with_lines(strip, np.full((64, 64, 3), 255, np.uint8)) == 90).all()


def test_a_low_film_has_room_for_its_plots():
    strip = np.zeros((64, 64, 3), np.uint8)
    curves = {"follows": [(0, 0.0), (9, 0.8)], "held_out_loss": [(0, 0.1), (9, 0.1)]}
    picture = np.asarray(film(strip, {0: strip}, 64, curves, 0))
    red = (picture[..., 0] > 150) & (picture[..., 1] < 60)
    first, last = (np.flatnonzero(red[BORDER // 2 :, x]).mean() for x in (200, -BORDER // 2 - 3))
    assert picture.shape[0] >= 6 * BORDER and first > last + BORDER  # it rises


def test_pairs_are_those_of_the_settings(tmp_path):
    source = data_of_runs.Source(data=[str(write_pairs(tmp_path))], size="128x64", seed=3)
    pairs = data_of_runs.all_pairs(source, base_size=512)
    assert pairs.view.size == (128, 64)
    assert data_of_runs.all_pairs(source._replace(size=None), 64).view.size == (64, 64)
    trained, kept, _ = data_of_runs.divided(source, pairs)
    both = data_of_runs.divided(source._replace(mirror=True), pairs)[0]
    assert len(both) == 2 * len(trained) and len(trained) + len(kept) == 12
    assert torch.equal(both[len(trained)][0], trained[0][0].flip(-1))
    scenes = data_of_runs.all_pairs(data_of_runs.Source(condition="canny", scenes=5), 128)
    assert len(scenes) == 5 and len(data_of_runs.divided(source, scenes)[1]) == 32
