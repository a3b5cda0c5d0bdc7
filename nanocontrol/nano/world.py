"""The drawn world: shaded solids and a jointed figure in front of a wall.

A scene is a short list of objects. `draw` computes for every point which object is visible there,
its depth and its surface normal. The picture and all hints (conditions.py) are computed from these,
exactly.

Lengths are fractions of the picture's side: x to the right, y down, z towards the viewer. The
projection is parallel, so objects do not get smaller with distance. The wall is at z = 0. Lengths
in pixels, such as widths of lines, are those of a picture of 64 and grow in proportion.
"""

from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from numpy.random import Generator, default_rng

# RGB in 0..1, in full light. Any two colours of a scene can be distinguished in light and shade.
COLOURS = {
    name: np.array([int(code[i : i + 2], 16) for i in (0, 2, 4)], np.float32) / 255
    for name, code in {
        "red": "cd3c37",
        "orange": "eb8c32",
        "yellow": "f0cd50",
        "green": "50a050",
        "teal": "288c8c",
        "blue": "4169c8",
        "purple": "8250aa",
        "pink": "eb96af",
        "white": "f0eee6",
    }.items()
}

# Corners in the solid's own frame, and faces as lists of corners.
CUBE = np.array(list(product((-0.62, 0.62), repeat=3)))
PYRAMID = np.array([[0, -0.95, 0], *([x, 0.6, z] for x, z in product((-0.75, 0.75), repeat=2))])
POLYHEDRA: dict[str, tuple[np.ndarray, list[tuple[int, ...]]]] = {
    "cube": (
        CUBE,
        [(0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5)],
    ),
    "pyramid": (PYRAMID, [(1, 2, 4, 3), (0, 1, 2), (0, 2, 4), (0, 4, 3), (0, 3, 1)]),
}
PIXELS = 64  # side of the picture that lengths in pixels refer to
SIZES = range(PIXELS, 4 * PIXELS + 1, PIXELS)  # possible sides of a drawn picture
KINDS = ("ball", "cube", "pyramid", "ring", "figure")
SHADES = 0.5, 1.05  # brightness of a surface that faces away from the light, and towards it
TUBE = 0.32  # radius of a ring's tube, relative to the whole ring's

# OpenPose's joints, without eyes and ears, which would be less than a pixel apart: 0 nose, 1 neck;
# shoulder, elbow, wrist: 2 to 4 right, 5 to 7 left; hip, knee, ankle: 8 to 10 right, 11 to 13 left.
# Limbs join two joints, in OpenPose's order. The figure faces the viewer, so its right is our left.
LIMBS = [
    (1, 2),
    (1, 5),
    (2, 3),
    (3, 4),
    (5, 6),
    (6, 7),
    (1, 8),
    (8, 9),
    (9, 10),
    (1, 11),
    (11, 12),
    (12, 13),
    (1, 0),
]


@dataclass(frozen=True)
class Thing:
    """An object of a scene: a solid or a figure. x, y, z: its middle."""

    kind: str  # of KINDS
    colour: str  # of COLOURS
    x: float
    y: float
    z: float
    size: float  # about the radius of a solid; half of a figure's height
    turn: float  # rotation of a solid about its upright axis, in radians
    tilt: float  # tilt of a solid in radians; below 0 its top leans towards the viewer
    # Angles of a figure's upper arm, lower arm, thigh and shin, right, then left, in radians: 0
    # hangs down, pi / 2 points away from the body.
    bends: tuple[float, ...]


@dataclass(frozen=True)
class Scene:
    seed: int  # also decides the maps that are random
    background: str  # of COLOURS
    light: tuple[float, float, float]  # unit vector towards the light
    things: tuple[Thing, ...]

    @property
    def prompt(self) -> str:
        """'a red figure and a blue ball on a white background'"""
        things = " and ".join(f"{article(t.colour)} {t.colour} {t.kind}" for t in self.things)
        return f"{things} on {article(self.background)} {self.background} background"

    def of(self, *kinds: str) -> list[Thing]:
        """The scene's objects of these kinds."""
        return [thing for thing in self.things if thing.kind in kinds]


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def random_scene(seed: int, kinds: tuple[str, ...] = KINDS) -> Scene:
    """A scene of one or two objects with clearly different colours. The first object is of one of
    `kinds`."""
    rng = default_rng(seed)
    colours = [str(rng.choice(list(COLOURS)))]
    while len(colours) < 3:
        new = str(rng.choice(list(COLOURS)))
        if all(apart(new, other) > 0.28 for other in colours):
            colours.append(new)
    two = rng.random() < 0.5
    towards = np.array([rng.uniform(-0.7, 0.7), -0.6, 0.7])
    lx, ly, lz = (float(v) for v in towards / np.linalg.norm(towards))
    chosen = [str(rng.choice(kinds)), str(rng.choice(KINDS))][: 1 + two]
    sides = rng.permutation([0.28, 0.72]) if two else [0.5]
    nearness = rng.permutation([0.25, 0.6])  # one of two objects is in front
    things = [
        random_thing(rng, kind, colour, x, z, two)
        for kind, colour, x, z in zip(chosen, colours[1:], sides, nearness)
    ]
    return Scene(seed, colours[0], (lx, ly, lz), tuple(things))


def apart(a: str, b: str) -> float:
    """The distance of two colours, the smallest one with either of them in the shade."""
    shades = np.linspace(0.55, 1, 4, dtype=np.float32)[:, None]
    either = (COLOURS[a] - shades * COLOURS[b], COLOURS[b] - shades * COLOURS[a])
    return float(min(np.linalg.norm(difference, axis=1).min() for difference in either))


def random_thing(rng: Generator, kind: str, colour: str, x: float, z: float, two: bool) -> Thing:
    """A random object near x. It is small enough to be inside the picture and, if it is one of two,
    to leave room for the other."""
    if kind == "figure":
        size, room = rng.uniform(0.36, 0.42), 0.03
        if two:  # smaller and nearer to the middle, so that its arms are in the picture
            size, room, x = 0.9 * size, 0.02, x + 0.3 * (0.5 - x)
    else:
        size = rng.uniform(0.21, 0.27) if two else rng.uniform(0.26, 0.34)
        room = 0.03 if two else 0.46 - size
    # Lower arms bend upwards, shins inwards.
    arms = [(a, a + rng.uniform(0, 1.2)) for a in rng.uniform(0.1, 0.95 if two else 2.2, 2)]
    legs = [(a, a - rng.uniform(0, 0.3)) for a in rng.uniform(0.05, 0.4 if two else 0.5, 2)]
    bends = tuple(float(angle) for arm, leg in zip(arms, legs) for angle in (*arm, *leg))
    x, y = x + rng.uniform(-room, room), 0.5 + rng.uniform(-1, 1) * (0.5 - size - 0.04)
    turn, tilt = rng.uniform(0, 2 * np.pi), -rng.uniform(0.4, 0.7)
    return Thing(kind, colour, float(x), float(y), float(z), float(size), turn, tilt, bends)


# ---------------------------------------------------------------------------------- surfaces


def corners_of(thing: Thing) -> np.ndarray:
    """A polyhedron's corners in the scene [n, 3]."""
    c, s, d, e = np.cos(thing.turn), np.sin(thing.turn), np.cos(thing.tilt), np.sin(thing.tilt)
    turned = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    tilted = np.array([[1, 0, 0], [0, d, -e], [0, e, d]])
    own = POLYHEDRA[thing.kind][0] @ turned.T @ tilted.T
    return thing.size * own + [thing.x, thing.y, thing.z]


def edges_of(thing: Thing) -> list[tuple[np.ndarray, np.ndarray]]:
    """A polyhedron's edges, as pairs of points."""
    corners, faces = corners_of(thing), POLYHEDRA[thing.kind][1]
    pairs = {tuple(sorted(pair)) for face in faces for pair in zip(face, face[1:] + face[:1])}
    return [(corners[a], corners[b]) for a, b in sorted(pairs)]


def joints_of(figure: Thing) -> np.ndarray:
    """A figure's joints in the scene [14, 2], in OpenPose's order."""
    unit = figure.size * 2 / 7  # a figure is about seven units high
    joints = np.zeros((14, 2))
    joints[0], joints[1] = (0, -2.8), (0, -1.75)
    for side, shoulder, hip, bends in ((-1, 2, 8, figure.bends[:4]), (1, 5, 11, figure.bends[4:])):
        along = np.array([(side * np.sin(angle), np.cos(angle)) for angle in bends])
        joints[shoulder] = joints[1] + (side * 0.95, 0.15)
        joints[shoulder + 1] = joints[shoulder] + 1.25 * along[0]
        joints[shoulder + 2] = joints[shoulder + 1] + 1.15 * along[1]
        joints[hip] = joints[1] + (side * 0.5, 2.3)
        joints[hip + 1] = joints[hip] + 1.4 * along[2]
        joints[hip + 2] = joints[hip + 1] + 1.35 * along[3]
    return unit * joints + (figure.x, figure.y)


def surface(thing: Thing, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An object's visible surface -> z, which is -inf outside the object, and normal [3, ...].

    x, y: positions in the scene, arrays of one shape.
    """
    if thing.kind == "figure":
        return figure_surface(thing, x, y)
    if thing.kind in POLYHEDRA:
        return polyhedron_surface(thing, x, y)
    x, y = (x - thing.x) / thing.size, (y - thing.y) / thing.size
    if thing.kind == "ball":
        z, normal = ball(x, y)
        return thing.z + thing.size * z, normal
    # A ring: the circle of its tube's middle has the radius 1 - TUBE.
    r = np.hypot(x, y) + 1e-6
    z, (outward, _, nz) = ball((r - 1 + TUBE) / TUBE, np.zeros_like(r))
    return thing.z + thing.size * TUBE * z, np.stack([outward * x / r, outward * y / r, nz])


def ball(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The surface of a ball of radius 1 about the origin."""
    square = 1 - x * x - y * y
    z = np.sqrt(np.maximum(square, 0))
    return np.where(square > 0, z, -np.inf), np.stack([x, y, z])


def polyhedron_surface(thing: Thing, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The surface of a convex solid, as in `surface`.

    A line of sight crosses the planes of all faces. It enters the solid at the farthest plane of
    the faces that look at the viewer, and leaves it at the nearest plane of the others. It hits the
    solid if it enters before it leaves.
    """
    corners, faces = corners_of(thing).astype(np.float32), POLYHEDRA[thing.kind][1]
    front, back = np.full_like(x, np.inf), np.full_like(x, -np.inf)
    normal = np.zeros((3, *x.shape), np.float32)
    for face in faces:
        a, b, c = corners[list(face[:3])]
        n = np.cross(b - a, c - a)
        n /= np.linalg.norm(n)
        if n @ (a - (thing.x, thing.y, thing.z)) < 0:  # the normal has to point outwards
            n = -n
        if abs(n[2]) < 1e-4:  # the face is seen exactly from its side
            n[2] = 1e-4
        z = a[2] - (n[0] * (x - a[0]) + n[1] * (y - a[1])) / n[2]  # the face's plane
        if n[2] < 0:
            back = np.maximum(back, z)
        else:
            nearer = z < front
            front = np.where(nearer, z, front)
            normal[:, nearer] = n[:, None]
    return np.where(front > back, front, -np.inf), normal


def figure_surface(thing: Thing, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A figure's surface, as in `surface`: capsules along arms, legs and shoulders, a trunk, and a
    ball for the head."""
    j, unit = joints_of(thing), thing.size * 2 / 7
    chest, hips = (j[2] + j[5]) / 2 + (0, 0.45 * unit), (j[8] + j[11]) / 2
    parts = [
        (j[2], j[3], 0.45),
        (j[3], j[4], 0.4),
        (j[5], j[6], 0.45),
        (j[6], j[7], 0.4),
        (j[8], j[9], 0.55),
        (j[9], j[10], 0.48),
        (j[11], j[12], 0.55),
        (j[12], j[13], 0.48),
        (chest, hips, 0.95),
        (j[2], j[5], 0.5),
        (j[0], j[0], 0.78),
    ]
    best, normal = np.full_like(x, -np.inf), np.zeros((3, *x.shape), np.float32)
    for a, b, radius in parts:
        offset, _ = from_segment(a, b, x, y)
        z, n = ball(*(offset / np.float32(radius * unit)))
        z = thing.z + np.float32(radius * unit) * z
        nearer = z > best
        best = np.where(nearer, z, best)
        normal = np.where(nearer, n, normal)
    return best, normal


def from_segment(
    a: np.ndarray, b: np.ndarray, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The offset of each point from the nearest point of the segment [2, ...], and the position of
    that point between a (0) and b (1)."""
    ax, ay, dx, dy = (np.float32(v) for v in (*a, *(b - a)))
    along = np.clip(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy + 1e-9), 0, 1)
    return np.stack([x - ax - along * dx, y - ay - along * dy]), along


# ----------------------------------------------------------------------------------- drawing


@dataclass(frozen=True)
class Drawing:
    """A drawn scene. Except for the image, the arrays have four points per pixel:
    [2 * size, 2 * size]."""

    scene: Scene
    index: np.ndarray  # 0 for the wall, 1 for the first object, ...
    depth: np.ndarray  # z
    normal: np.ndarray  # [3, ...], of unit length
    image: np.ndarray  # [size, size, 3], RGB in 0..1

    @property
    def size(self) -> int:
        return len(self.image)

    @property
    def scale(self) -> int:
        """The ratio of the picture's side to 64."""
        return self.size // PIXELS

    @property
    def shown(self) -> np.ndarray:
        """`index` for each pixel [size, size], from the first of its four points."""
        return self.index[::2, ::2]


@cache
def points(size: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of all points, as fractions of the side; each [2 * size, 2 * size]."""
    y, x = (np.mgrid[: 2 * size, : 2 * size].astype(np.float32) + 0.5) / (2 * size)
    return x, y


def around(thing: Thing, size: int) -> tuple[slice, slice]:
    """The rows and columns of points that contain an object."""
    reach = 1.3 * thing.size
    rows, columns = (
        slice(max(0, int((c - reach) * 2 * size)), int((c + reach) * 2 * size))
        for c in (thing.y, thing.x)
    )
    return rows, columns


def draw(scene: Scene, size: int = PIXELS) -> Drawing:
    """Draw a scene. size: one of SIZES.

    The projection is parallel, and the nearest object at a point is visible. Objects have matt
    surfaces under one light (Lambert). The wall is a little brighter towards the light.
    """
    x, y = points(size)
    index, depth = np.zeros(x.shape, np.uint8), np.zeros(x.shape, np.float32)
    normal = np.zeros((3, *x.shape), np.float32)
    normal[2] = 1
    for i, thing in enumerate(scene.things, 1):
        rows, columns = around(thing, size)
        z, n = surface(thing, x[rows, columns], y[rows, columns])
        nearest = z > depth[rows, columns]
        index[rows, columns][nearest] = i
        depth[rows, columns][nearest] = z[nearest]
        normal[:, rows, columns][:, nearest] = n[:, nearest]
    lx, ly, lz = (np.float32(v) for v in scene.light)
    facing = lx * normal[0] + ly * normal[1] + lz * normal[2]
    wall = 1 + 0.15 * ((x - 0.5) * lx + (y - 0.5) * ly)
    shade = np.where(index > 0, SHADES[0] + (SHADES[1] - SHADES[0]) * np.maximum(facing, 0), wall)
    colours = np.stack([COLOURS[c] for c in (scene.background, *(t.colour for t in scene.things))])
    image = np.clip(halved(colours[index] * shade[..., None]), 0, 1)
    return Drawing(scene, index, depth, normal, image)


def halved(values: np.ndarray) -> np.ndarray:
    """Points [2 * size, 2 * size, ...] -> pixels [size, size, ...], the means of four points."""
    return (values[::2, ::2] + values[::2, 1::2] + values[1::2, ::2] + values[1::2, 1::2]) / 4
