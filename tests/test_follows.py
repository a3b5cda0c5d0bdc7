"""`follows` tells right objects from wrong ones; `crisp` measures sharpness."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conftest import NANO
from nanocontrol import load_sd
from nanocontrol.nano.crisp import features_of, frechet_distance
from nanocontrol.nano.detector import Detector, kinds_of, load_detector
from nanocontrol.nano.evaluate import evaluate_crisp, has_kinds, kinds_shown
from nanocontrol.nano.follows import (
    colour_is_right,
    counted,
    follows,
    kind_and_place,
    nearest_colours,
)
from nanocontrol.nano.model import DETECTOR
from nanocontrol.nano.scenes import held_out_scenes
from nanocontrol.nano.world import COLOURS, SHADES, Scene, Thing, draw, random_scene


@pytest.fixture(scope="module")
def detector() -> Detector:
    return load_detector(DETECTOR)


def scene_of(*things: Thing) -> Scene:
    return replace(random_scene(0), background="white", light=(-0.6, -0.6, 0.53), things=things)


def thing(kind: str, colour: str = "red", x: float = 0.4, size: float = 0.25) -> Thing:
    return Thing(kind, colour, x, 0.5, 0.3, size, 0.4, -0.5, (0.6, 0.9, 0.2, 0.1) * 2)


def pictures_of(*scenes: Scene) -> Tensor:
    return torch.stack([torch.from_numpy(draw(s).image * 2 - 1).permute(2, 0, 1) for s in scenes])


def test_true_pictures_follow_and_pictures_of_other_scenes_do_not(detector):
    images, _, _, scenes = held_out_scenes("canny", 8)
    assert follows("canny", images, scenes, detector) > 0.99
    assert follows("canny", images.roll(1, dims=0), scenes, detector) < 0.1
    assert follows("canny", images * 0, scenes, detector) == 0
    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    assert follows("canny", soft, scenes, detector) > 0.95


@pytest.mark.parametrize("kind", ["ball", "cube", "pyramid", "ring", "figure"])
def test_kind_place_and_colour_must_all_be_right(kind, detector):
    own = thing(kind, size=0.35 if kind == "figure" else 0.25)
    scene = scene_of(own)
    other = "cube" if kind == "ball" else "ball"
    for wrong in (
        replace(own, colour="blue"),
        replace(own, x=own.x + 0.25),
        replace(own, kind=other),
    ):
        picture = pictures_of(scene_of(wrong))
        assert follows("canny", picture, [scene], detector) == 0, wrong
    assert follows("canny", pictures_of(scene), [scene], detector) == 1


def test_a_wrong_kind_place_or_colour_alone_makes_an_object_wrong():
    drawing = draw(scene_of(thing("ball")))
    kinds = kinds_of(drawing)  # output of a perfect detector
    assert kind_and_place(kinds, drawing, 1) and colour_is_right(drawing.image, drawing, 1)
    assert not kind_and_place(np.roll(kinds, 16, axis=1), drawing, 1)
    assert not kind_and_place(2 * kinds, drawing, 1)
    blue = draw(scene_of(thing("ball", "blue"))).image
    assert not colour_is_right(blue, drawing, 1)
    assert not colour_is_right(1 - drawing.image, drawing, 1)


def test_more_than_60_percent_overlap_and_colour_are_needed():
    drawing = draw(scene_of(thing("ball")))
    own = np.argwhere(drawing.shown == 1)
    blue = draw(scene_of(thing("ball", "blue"))).image

    def found(share: float) -> np.ndarray:
        kinds = np.zeros((64, 64), int)
        kinds[tuple(own[: round(share * len(own))].T)] = 1
        return kinds

    assert kind_and_place(found(0.65), drawing, 1) and not kind_and_place(found(0.55), drawing, 1)
    for share, right in (0.65, True), (0.55, False):
        picture = np.where(found(share)[..., None] == 1, drawing.image, blue)
        assert colour_is_right(picture, drawing, 1) == right


def test_a_colour_is_recognised_in_light_and_in_shade():
    for number, colour in enumerate(COLOURS.values()):
        shaded = np.stack([np.minimum(shade * colour, 1) for shade in np.linspace(*SHADES, 20)])
        assert (nearest_colours(shaded) == number).all()


def test_other_objects_of_the_same_kind_do_not_count_against_one():
    drawing = draw(scene_of(thing("ball", x=0.28, size=0.2), thing("ball", "blue", 0.72, 0.2)))
    kinds = kinds_of(drawing)
    assert kind_and_place(kinds, drawing, 1) and kind_and_place(kinds, drawing, 2)
    moved = np.where(drawing.shown == 2, 0, kinds)  # without the second object
    assert kind_and_place(moved, drawing, 1) and not kind_and_place(moved, drawing, 2)


def test_small_objects_do_not_count(detector):
    small, large = (scene_of(thing("ball", size=size)) for size in (0.05, 0.06))
    assert (draw(small).shown == 1).sum() < 40 <= (draw(large).shown == 1).sum()
    assert counted("canny", draw(small)) == [] and counted("canny", draw(large)) == [1]
    assert follows("canny", pictures_of(small), [small], detector) is None


def test_objects_that_a_condition_does_not_show_do_not_count(detector):
    figure, cube = thing("figure", x=0.3, size=0.35), thing("cube", "blue", 0.75, 0.2)
    drawing = draw(scene_of(figure, cube))
    expected = {"pose": [1], "hough": [2], "canny": [1, 2], "depth": [1, 2], None: [1, 2]}
    for condition, things in expected.items():
        assert counted(condition, drawing) == things, condition
    without_cube = pictures_of(scene_of(figure))
    followed = [follows(c, without_cube, [drawing.scene], detector) for c in ("pose", "canny")]
    assert followed == [1, 0.5]


@pytest.mark.slow
def test_pictures_may_differ_in_size_from_the_detectors(detector):
    images, _, _, scenes = held_out_scenes("canny", 8, size=256)
    assert images.shape[-1] == 256 and detector.size == 128
    assert detector(images)[0].shape[-1] == 128 and features_of(detector, images).shape == (8, 96)
    assert follows("canny", images, scenes, detector) == 1
    assert follows("canny", images.roll(1, dims=0), scenes, detector) < 0.2
    large, drawing = Detector(128), draw(scenes[0], 128)
    maps, kinds = large(held_out_scenes("canny", 1)[0])
    assert maps.shape == (1, 27, 128, 128) and kinds.shape == (1, 5)
    assert all(kind_and_place(kinds_of(drawing), drawing, i) for i in counted("canny", drawing))


def test_the_limit_for_small_objects_scales_with_the_picture():
    for size, things in (0.05, []), (0.06, [1]):
        assert counted("canny", draw(scene_of(thing("ball", size=size)), 128)) == things


def test_every_prompted_kind_must_be_shown(detector):
    one, two = scene_of(thing("ball")), scene_of(thing("ball", x=0.28), thing("cube", "blue", 0.7))
    assert kinds_shown([one, two]).tolist() == [[True] + [False] * 4, [True, True] + [False] * 3]
    assert has_kinds(detector, pictures_of(one, two), [one, two]).tolist() == [True, True]
    assert has_kinds(detector, pictures_of(two, one), [one, two]).tolist() == [True, False]


# -------------------------------------------------------------------------------------- crisp


def test_the_frechet_distance_of_known_distributions():
    a = np.random.default_rng(0).normal(size=(500, 8))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, a + 3) == pytest.approx(8 * 3**2)
    centred = a - a.mean(axis=0)
    variance = np.trace(np.cov(a, rowvar=False))
    assert frechet_distance(centred, 3 * centred) == pytest.approx((3 - 1) ** 2 * variance)


@pytest.mark.slow
def test_blur_increases_the_distance_to_true_pictures(detector):
    true = held_out_scenes(None, 40)[0]

    def blurred(pixels: int) -> np.ndarray:
        return features_of(detector, F.avg_pool2d(true, pixels, 1, pixels // 2))

    features = features_of(detector, true)
    assert features.shape == (40, 96)
    distances = [frechet_distance(blurred(pixels), features) for pixels in (1, 3, 5, 9)]
    assert distances[0] == pytest.approx(0, abs=1e-3) and distances == sorted(distances)
    assert distances[1] > 0.1


@pytest.mark.slow
def test_crisp_is_a_ratio_of_distances(detector):
    numbers = evaluate_crisp(load_sd(NANO), detector, n=4)
    distances = numbers["distances"]
    assert distances.keys() == {"generated", "rebuilt", "true"}
    assert distances["true"] > 0.01  # between two sets of scenes
    assert numbers["crisp"] == distances["generated"] / distances["rebuilt"] > 0
