"""The drawn world: scenes from seeds, and nine maps that follow their definitions."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nanocontrol.nano.conditions import (
    APPEARANCE,
    CONDITIONS,
    NEEDED,
    OPENPOSE,
    SEGMENT,
    outlines_of,
)
from nanocontrol.nano.scenes import HELD_OUT, Scenes, sheet
from nanocontrol.nano.world import (
    COLOURS,
    KINDS,
    LIMBS,
    SIZES,
    Thing,
    apart,
    draw,
    edges_of,
    joints_of,
    random_scene,
)
from nanocontrol.plumbing.canny import canny

FIXTURES = Path(__file__).parent / "fixtures"


def maps(condition: str, n: int = 20, kinds: tuple[str, ...] = tuple(KINDS)):
    """(drawing, map) of the first n scenes."""
    for seed in range(n):
        drawing = draw(random_scene(seed, kinds))
        yield drawing, CONDITIONS[condition](drawing)


def alone(kind: str, z: float = 0.3, size: float = 0.3):
    """A drawing of one object in the middle, lit from the upper left."""
    thing = Thing(kind, "red", 0.5, 0.5, z, size, 0.4, -0.5, (0.6, 0.9, 0.2, 0.1) * 2)
    light = (-0.6, -0.6, 0.53)
    return draw(replace(random_scene(0), background="white", light=light, things=(thing,)))


# -------------------------------------------------------------------------------------- scenes


def test_a_seed_determines_a_scene():
    assert random_scene(3) == random_scene(3) != random_scene(4)
    scenes = [random_scene(seed) for seed in range(300)]
    assert {thing.kind for scene in scenes for thing in scene.things} == set(KINDS)
    assert {scene.background for scene in scenes} == set(COLOURS)
    assert {len(scene.things) for scene in scenes} == {1, 2}
    for scene in scenes:
        colours = [scene.background, *(thing.colour for thing in scene.things)]
        assert all(apart(a, b) > 0.28 for a, b in combinations(colours, 2))
        assert all(f"{thing.colour} {thing.kind}" in scene.prompt for thing in scene.things)
        assert scene.prompt.endswith(f"{scene.background} background")


def test_scenes_are_equal_on_every_machine():
    """Compared with a stored sheet. The last bit of a sine may differ, and with it a pixel."""
    stored = np.asarray(Image.open(FIXTURES / "world.png").convert("RGB")).astype(int)
    away = np.abs(np.asarray(sheet(0, 8)).astype(int) - stored).max(axis=-1) > 2
    for column in np.split(away, 10, axis=1):  # the pictures, then each kind of map
        assert column.sum() < 10


@pytest.mark.slow
def test_everything_is_inside_the_picture():
    for seed in range(200):
        drawing = draw(random_scene(seed))
        assert drawing.image.min() >= 0 and drawing.image.max() <= 1
        assert drawing.depth.min() == 0 and drawing.depth.max() <= 1
        edge = drawing.index.copy()
        edge[1:-1, 1:-1] = 0  # up to 20 pixels on the border are allowed
        for i, thing in enumerate(drawing.scene.things, 1):
            assert (edge == i).sum() <= 20
            if thing.kind == "figure":
                assert joints_of(thing).min() > 0 and joints_of(thing).max() < 1


@pytest.mark.slow
def test_a_nearer_object_hides_a_farther_one():
    for seed in range(200):
        drawing = draw(random_scene(seed))
        near = max(range(len(drawing.scene.things)), key=lambda i: drawing.scene.things[i].z)
        thing = drawing.scene.things[near]
        without = draw(replace(drawing.scene, things=(thing,)))
        assert ((without.index == 1) <= (drawing.index == near + 1)).all()


@pytest.mark.parametrize("condition", [None, *CONDITIONS])
def test_items_are_pictures_hints_and_prompts(condition):
    data = Scenes(condition)
    for i in (0, 7):
        image, hint, prompt = data[i]
        assert image.shape == hint.shape == (3, 64, 64)
        assert image.dtype == hint.dtype == torch.float32
        assert image.min() >= -1 and image.max() <= 1 and hint.min() >= 0 and hint.max() <= 1
        assert prompt == data.scene(i).prompt
        assert torch.equal(image, Scenes(condition, i)[0][0])
    with pytest.raises(IndexError):
        data[HELD_OUT]


# ---------------------------------------------------------------------------------- nine maps


def test_no_two_maps_are_equal():
    drawings = [draw(random_scene(seed, ("figure",))) for seed in range(5)]
    drawings += [draw(random_scene(seed, ("cube",))) for seed in range(5)]
    stacks = {name: np.stack([make(d) for d in drawings]) for name, make in CONDITIONS.items()}
    assert len(stacks) == 9
    for a, b in combinations(stacks, 2):
        assert np.abs(stacks[a] - stacks[b]).mean() > 0.015, (a, b)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES[1:])
def test_a_scene_is_the_same_at_every_size(size):
    """Downscaled to 64 pixels, picture and maps are nearly those drawn at 64, with as much ink.
    Canny's lines are the exception: they are one pixel wide at every size."""
    scale = size // 64

    def smaller(values: np.ndarray) -> np.ndarray:
        return values.reshape(64, scale, 64, scale, -1).mean(axis=(1, 3))

    scenes = [random_scene(seed) for seed in range(5)]
    for small, large in [(draw(scene), draw(scene, size)) for scene in scenes]:
        assert (large.size, large.scale, large.shown.shape) == (size, scale, (size, size))
        assert np.abs(smaller(large.image) - small.image).mean() < 0.005
        for name, make in CONDITIONS.items():
            a, b = make(small), make(large)
            assert b.shape == (size, size, 3) and b.min() >= 0 and b.max() <= 1
            if name == "canny":
                assert b.mean() == pytest.approx(a.mean() / scale, rel=0.3)
                continue
            assert np.abs(smaller(b) - a).mean() < 0.03, name
            assert b.mean() == pytest.approx(a.mean(), rel=0.05), name


def test_pairs_can_be_drawn_at_another_size():
    small, large = Scenes("depth"), Scenes("depth", size=128)
    image, hint, prompt = large[3]
    assert image.shape == hint.shape == (3, 128, 128) and prompt == small[3][2]
    assert torch.equal(large.hint(3), hint) and torch.equal(large.take(3).image, image)
    assert large.fingerprint(3) != small.fingerprint(3)  # cached latents have one size
    assert np.asarray(sheet(0, 1, 128)).shape == (16 + 128, 10 * 128, 3)


@pytest.mark.slow
def test_every_map_shows_something():
    for condition in CONDITIONS:
        for i in range(25):
            assert Scenes(condition)[i][1].std() > 0.02, (condition, i)
    assert NEEDED.keys() <= CONDITIONS.keys()
    assert APPEARANCE.keys() == CONDITIONS.keys()


def test_canny_edges_depend_on_the_picture_only_and_have_random_thresholds():
    found = set()
    for drawing, edges in maps("canny", 8):
        bare = replace(drawing, depth=0 * drawing.depth, index=0 * drawing.index)
        assert np.array_equal(CONDITIONS["canny"](bare), edges)
        picture = torch.from_numpy(drawing.image).permute(2, 0, 1)
        found.add(
            next(
                high
                for high in range(100, 300)
                if np.array_equal(canny(picture, high // 2, high).permute(1, 2, 0).numpy(), edges)
            )
        )
    assert len(found) > 2


def test_hough_lines_are_straight_and_not_hidden():
    for kind in ("ball", "ring", "figure"):
        assert CONDITIONS["hough"](alone(kind)).max() == 0
    for kind, seen, hidden in ("cube", 9, 3), ("pyramid", 5, 3):
        drawing = alone(kind)
        lines, counts = CONDITIONS["hough"](drawing)[..., 0], {True: 0, False: 0}
        for a, b in edges_of(drawing.scene.things[0]):
            x, y, z = (a + b) / 2
            in_front = bool(z > drawing.depth[int(y * 128), int(x * 128)] - 0.02)
            counts[in_front] += 1
            around = lines[int(y * 64) - 1 : int(y * 64) + 2, int(x * 64) - 1 : int(x * 64) + 2]
            assert (around.max() == 1) if in_front else (lines[int(y * 64), int(x * 64)] < 0.5)
        assert counts == {True: seen, False: hidden}
    # A nearer object hides lines.
    scene = alone("cube").scene
    ball = replace(scene.things[0], kind="ball", z=0.9, size=0.4)
    assert CONDITIONS["hough"](draw(replace(scene, things=(*scene.things, ball)))).max() == 0


def test_soft_edges_are_graded_and_wider_at_larger_depth_jumps():
    def width(soft: np.ndarray) -> float:
        """Width in pixels of the first line in the middle row."""
        return (soft[32, :32, 0] > 0.4 * soft[32, :32, 0].max()).sum()

    near, far = (CONDITIONS["soft"](alone("ball", z)) for z in (0.6, 0.2))
    assert width(near) > width(far)
    for _, soft in maps("soft"):
        assert len(np.unique(soft)) > 200 and 0.5 < soft.max() <= 1
    # A cube's inner edges are fainter than its outline.
    drawing, soft = alone("cube"), CONDITIONS["soft"](alone("cube"))[..., 0]
    inside = drawing.index[::2, ::2] > 0
    deep = inside & ~wider(outlines_of(inside), 5)
    assert 0.1 < soft[deep].max() < 0.7 * soft.max()


def wider(lines: np.ndarray, pixels: int) -> np.ndarray:
    grown = torch.from_numpy(lines)[None].float()
    return torch.max_pool2d(grown, 2 * pixels + 1, 1, pixels)[0].numpy() > 0


def test_scribbles_are_thick_wobbly_and_incomplete():
    off, missing = [], []
    for drawing, scribble in maps("scribble"):
        strokes = scribble[..., 0] > 0.5
        outline = outlines_of(drawing.index[::2, ::2])
        assert not (strokes & ~wider(outline, 6)).any()  # near the outline
        off.append((outline & ~strokes).sum() / outline.sum())
        missing.append((outline & ~wider(strokes, 2)).sum() / outline.sum())
        eroded = ~wider(~strokes, 1)
        assert eroded.any()  # three pixels thick
    assert 0.2 < np.mean(off) < 0.7 and 0.03 < np.mean(missing) < 0.3
    scene = random_scene(0)
    again = [CONDITIONS["scribble"](draw(replace(scene, seed=seed))) for seed in (0, 0, 1)]
    assert np.array_equal(again[0], again[1]) and not np.array_equal(again[0], again[2])


def test_poses_show_figures_in_openposes_colours():
    for kind in ("ball", "ring", "cube", "pyramid"):
        assert CONDITIONS["pose"](alone(kind)).max() == 0
    drawing = alone("figure", size=0.4)
    picture = CONDITIONS["pose"](drawing)
    for (x, y), colour in zip(joints_of(drawing.scene.things[0]), OPENPOSE):
        assert np.abs(picture[int(y * 64), int(x * 64)] - colour).max() < 0.3
        assert drawing.index[int(y * 128), int(x * 128)] == 1  # the joint is in the figure
    joints = joints_of(drawing.scene.things[0])
    for (a, b), colour in zip(LIMBS, OPENPOSE):
        x, y = (joints[a] + joints[b]) / 2
        around = picture[int(y * 64) - 1 : int(y * 64) + 2, int(x * 64) - 1 : int(x * 64) + 2]
        assert np.abs(around - 0.6 * colour).max(axis=-1).min() < 0.1
    assert (OPENPOSE[0] == (1, 0, 0)).all() and (OPENPOSE[6] == (0, 1, 0)).all()  # nose, left elbow


def test_segments_have_a_fixed_colour_for_each_kind():
    assert set(SEGMENT) == {"wall", *KINDS}
    for drawing, segments in maps("segmentation"):
        index = drawing.index[::2, ::2]
        for i, kind in enumerate(["wall", *(thing.kind for thing in drawing.scene.things)]):
            assert (segments[index == i] == SEGMENT[kind]).all()


def test_near_depth_is_bright():
    for drawing, depth in maps("depth"):
        assert depth[0, 0].max() == 0 and (depth[..., 0] == depth[..., 2]).all()
        things = sorted(enumerate(drawing.scene.things, 1), key=lambda pair: pair[1].z)
        brightness = [depth[drawing.index[::2, ::2] == i].mean() for i, _ in things]
        assert brightness == sorted(brightness) and brightness[0] > 0.15
    ball = CONDITIONS["depth"](alone("ball"))[..., 0]
    assert ball[32, 32] == ball.max() == pytest.approx(0.6, abs=0.01)  # z + size


def test_normals_point_out_of_the_surface():
    for drawing, normals in maps("normals"):
        assert np.linalg.norm(drawing.normal, axis=0) == pytest.approx(1, abs=1e-3)
        assert normals[0, 0] == pytest.approx([0.5, 0.5, 1])  # the wall
    ball = CONDITIONS["normals"](alone("ball"))
    assert ball[32, 32] == pytest.approx([0.5, 0.5, 1], abs=0.05)
    assert ball[32, 48, 0] > 0.85 and ball[32, 16, 0] < 0.15  # right and left
    assert ball[16, 32, 1] > 0.85 and ball[48, 32, 1] < 0.15  # above and below
    # Normals agree with the slope of the depth.
    drawing = alone("ball", size=0.4)
    down, right = np.gradient(drawing.depth.astype(np.float64), 1 / 128)
    steep = np.stack([-right, -down, np.ones_like(right)])
    steep /= np.linalg.norm(steep, axis=0)
    middle = np.hypot(*(np.mgrid[:128, :128] - 63.5)) < 40
    assert np.abs(steep - drawing.normal)[:, middle].max() < 0.03


def test_cartoons_are_ink_on_paper_with_varying_strokes_and_inner_lines():
    for _, cartoon in maps("cartoon"):
        assert cartoon[0, 0].min() == 1 and cartoon.min() == 0
        assert 0.02 < (cartoon < 0.5).mean() < 0.3
    ball = CONDITIONS["cartoon"](alone("ball", size=0.3))[..., 0] < 0.5  # lit from the upper left
    row = ball[32]
    assert row[40:].sum() >= row[:24].sum() + 1  # thick on the right
    assert ball[22:42, 22:42].any()  # the edge of the shadow
    cube = CONDITIONS["cartoon"](alone("cube"))[..., 0] < 0.5
    assert cube[28:36, 28:36].any()
