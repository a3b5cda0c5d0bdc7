"""The browser's requests: JSON -> checked values. Every refusal is one sentence with an HTTP status."""

import math
import re
from base64 import b64decode
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from nanocontrol.nano.world import COLOURS, KINDS, Scene, Thing
from nanocontrol.plumbing.errors import InputError, one_line
from nanocontrol.plumbing.pictures import as_tensor, read_image

STROKES, POINTS, PROMPT, THINGS, STEPS = 500, 20_000, 400, 4, 100  # at most
NONE = "none"  # the column without control
TOOLS = ("pen", "line", "eraser")
SCENE, THING = ("background", "light", "seed", "things"), tuple(Thing.__dataclass_fields__)
RANGES = {"x": (0, 1), "y": (0, 1), "z": (0, 1), "size": (0.05, 0.6)}
RANGES |= {"turn": (-6.3, 6.3), "tilt": (-1.6, 1.6)}


class Refused(InputError):
    """A request that is not answered. status: HTTP's."""

    def __init__(self, message: str, status: int = 400):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Stroke:
    """A line of a drawing: pixels, from the picture's upper left corner."""

    tool: str  # of TOOLS
    width: float
    colour: str | None  # "#rrggbb"; None: the condition's
    points: np.ndarray  # [n, 2], x and y


@dataclass(frozen=True)
class Sketch:
    """A drawing: a picture or the hint of a scene, with strokes above it."""

    condition: str
    under: Tensor | None  # [3, size, size] in [0, 1]
    scene: Scene | None
    strokes: tuple[Stroke, ...]


@dataclass(frozen=True)
class Wanted:
    """The pictures that a request asks for."""

    client: str
    sketch: Sketch
    columns: list[str]
    prompt: str
    negative: str
    seed: int
    steps: int
    scale: float
    strength: float | list[float]
    control_from: float
    control_to: float
    guess: bool
    resolution_weighting: bool
    run_step: int | None
    attention: bool


# ---------------------------------------------------------------------------- JSON's own types


def fields(given: Any, name: str, known: tuple[str, ...], needed: tuple[str, ...] = ()) -> dict:
    """An object with known fields only."""
    if not isinstance(given, dict):
        raise Refused(f"{name}: expected an object")
    for field in given:
        if field not in known:
            raise Refused(f"{name}: unknown field {one_line(field, 40)!r}")
    for field in needed:
        if field not in given:
            raise Refused(f"{name}: the field {field!r} is missing")
    return given


def entries(given: Any, name: str, most: int, least: int = 0) -> list:
    if not isinstance(given, list) or not least <= len(given) <= most:
        raise Refused(f"{name}: expected a list of {least} to {most} entries")
    return given


def within(given: Any, name: str, low: float, high: float) -> float:
    known = isinstance(given, int | float) and not isinstance(given, bool)
    if not known or not low <= given <= high:
        raise Refused(f"{name}: expected a number from {low:g} to {high:g}")
    return float(given)


def whole(given: Any, name: str, low: int, high: int) -> int:
    if type(given) is not int or not low <= given <= high:
        raise Refused(f"{name}: expected a whole number from {low} to {high}")
    return given


def choice(given: Any, name: str, known: Any) -> str:
    if not isinstance(given, str) or given not in known:
        raise Refused(f"{name}: expected one of {', '.join(known)}")
    return given


def switch(given: Any, name: str) -> bool:
    if not isinstance(given, bool):
        raise Refused(f"{name}: expected true or false")
    return given


def words(given: Any, name: str) -> str:
    if not isinstance(given, str) or len(given) > PROMPT or not given.isprintable():
        raise Refused(f"{name}: expected a text of at most {PROMPT} printable characters")
    return given


class Sent:
    """Bytes of a picture from the browser, named in messages as a file would be."""

    def __init__(self, data: bytes, name: str):
        self.data, self.name = data, name

    def __str__(self) -> str:
        return self.name

    def read_bytes(self) -> bytes:
        return self.data


def picture(given: Any, name: str, size: int) -> Tensor:
    """A PNG in base64 -> [3, size, size] in [0, 1]."""
    try:
        data = b64decode(given, validate=True)
    except (TypeError, ValueError):
        raise Refused(f"{name}: expected a PNG file in base64") from None
    image = read_image(Sent(data, name))
    if image.size != (size, size):
        raise Refused(
            f"{name}: the picture is {image.width}x{image.height}, expected {size}x{size}"
        )
    return as_tensor(image)


# ------------------------------------------------------------------------------ what is asked


def scene_of(given: Any) -> Scene:
    given = fields(given, "scene", SCENE, SCENE)
    light = [within(x, "scene.light", -1e3, 1e3) for x in entries(given["light"], "light", 3, 3)]
    length = math.hypot(*light)
    if length < 1e-6:
        raise Refused("scene.light: expected a direction, not 0, 0, 0")
    background = choice(given["background"], "scene.background", COLOURS)
    things = [thing_of(thing) for thing in entries(given["things"], "scene.things", THINGS)]
    seed = whole(given["seed"], "scene.seed", 0, 2**31 - 1)
    x, y, z = (value / length for value in light)
    return Scene(seed, background, (x, y, z), tuple(things))


def thing_of(given: Any) -> Thing:
    given = fields(given, "thing", THING, THING)
    kind = choice(given["kind"], "thing.kind", KINDS)
    colour = choice(given["colour"], "thing.colour", COLOURS)
    numbers = {name: within(given[name], f"thing.{name}", *RANGES[name]) for name in RANGES}
    bends = entries(given["bends"], "thing.bends", 8, 8)
    return Thing(kind, colour, bends=tuple(within(b, "bends", -3.2, 3.2) for b in bends), **numbers)


def sketch_of(given: Any, conditions: Any, size: int, scenes: bool) -> Sketch:
    """conditions: the known ones; size: the picture's side; scenes: whether scenes can be drawn."""
    known = ("condition", "under", "scene", "strokes")
    given = fields(given, "drawing", known, ("condition",))
    condition = choice(given["condition"], "drawing.condition", conditions)
    under, scene = given.get("under"), given.get("scene")
    if scene is not None and (under is not None or not scenes):
        raise Refused("drawing.scene: expected none with this base or with drawing.under")
    strokes = entries(given.get("strokes", []), "drawing.strokes", STROKES)
    drawn = tuple(stroke_of(stroke, size) for stroke in strokes)
    if sum(len(stroke.points) for stroke in drawn) > POINTS:
        raise Refused(f"drawing.strokes: more than {POINTS} points")
    return Sketch(
        condition,
        None if under is None else picture(under, "drawing.under", size),
        None if scene is None else scene_of(scene),
        drawn,
    )


def stroke_of(given: Any, size: int) -> Stroke:
    given = fields(given, "stroke", ("tool", "width", "colour", "points"), ("tool", "points"))
    tool, colour = choice(given["tool"], "stroke.tool", TOOLS), given.get("colour")
    if colour is not None and not (
        isinstance(colour, str) and re.fullmatch(r"#[0-9a-f]{6}", colour)
    ):
        raise Refused("stroke.colour: expected #rrggbb in lower case")
    least, most = (2, 2) if tool == "line" else (1, POINTS)
    points = [
        [within(x, "stroke.points", -size, 2 * size) for x in entries(point, "point", 2, 2)]
        for point in entries(given["points"], "stroke.points", most, least)
    ]
    width = within(given.get("width", 1), "stroke.width", 1, 12)
    return Stroke(tool, width, colour, np.array(points, np.float64))


def wanted_of(
    given: Any, conditions: dict[str, int], size: int, scenes: bool, scale: float
) -> Wanted:
    """conditions: the number of connections of each; see `sketch_of`; scale: the base's guidance."""
    given = fields(
        given, "request", (*Wanted.__dataclass_fields__, "drawing"), ("client", "drawing")
    )
    given = {name: value for name, value in given.items() if name != "sketch"}
    if not re.fullmatch(r"[A-Za-z0-9-]{1,64}", str(given["client"])):
        raise Refused("client: expected 1 to 64 letters, digits or hyphens")
    sketch = sketch_of(given["drawing"], conditions, size, scenes)
    columns = entries(given.get("columns", [NONE, sketch.condition]), "columns", 10, 1)
    for column in columns:
        choice(column, "columns", (NONE, *conditions))
    if len({*columns}) < len(columns):
        raise Refused("columns: expected each only once")
    others = {*columns} - {NONE, sketch.condition}
    if others and not sketch.scene:
        raise Refused(f"columns: {min(others)} needs drawing.scene, or a drawing of that condition")
    strength = given.get("strength", 1)
    if isinstance(strength, list):
        n = conditions[sketch.condition]
        strength = [within(x, "strength", -4, 4) for x in entries(strength, "strength", n, n)]
    else:
        strength = within(strength, "strength", -4, 4)
    begin = within(given.get("control_from", 0), "control_from", 0, 1)
    rules = [switch(given.get(rule, False), rule) for rule in ("guess", "resolution_weighting")]
    if all(rules):
        raise Refused("guess, resolution_weighting: expected at most one of them")
    step = given.get("run_step")
    return Wanted(
        given["client"],
        sketch,
        columns,
        words(given.get("prompt", ""), "prompt"),
        words(given.get("negative", ""), "negative"),
        whole(given.get("seed", 0), "seed", 0, 2**32 - 1),
        whole(given.get("steps", 20), "steps", 1, STEPS),
        within(given.get("scale", scale), "scale", 0, 30),
        strength,
        begin,
        within(given.get("control_to", 1), "control_to", begin, 1),
        rules[0],
        rules[1],
        None if step is None else whole(step, "run_step", 0, 10**9),
        switch(given.get("attention", False), "attention"),
    )
