"""The browser's requests: JSON -> checked values. Every refusal is one sentence with a status."""

import re
from base64 import b64decode
from collections.abc import Callable, Collection
from functools import partial
from math import hypot
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from nanocontrol.nano.world import COLOURS, KINDS, Scene, Thing, random_scene
from nanocontrol.plumbing.errors import InputError, blame, one_line
from nanocontrol.plumbing.pictures import as_tensor, picture_size, read_image

LIMITS = {"strokes": 500, "points": 20_000, "prompt": 400, "things": 4, "steps": 100}
NONE = "none"  # the column without control
RULES = ("guess", "resolution_weighting")
Check = Callable[[Any, str], Any]  # a value and its name -> the value, or it raises Refused
NEEDED = object()


class Refused(InputError):
    """A request that is not answered. status: HTTP's."""

    def __init__(self, message: str, status: int = 400):
        super().__init__(message)
        self.status_code = status


def expect(condition: object, name: str, expected: str, status: int = 400) -> None:
    if not condition:
        raise Refused(f"{name}: expected {expected}", status)


# --------------------------------------------------------------------------- checks of values


def checking(types: tuple[type, ...], holds: Callable[[Any], object], expected: str) -> Check:
    def check(given: Any, name: str) -> Any:
        expect(type(given) in types and holds(given), name, expected)
        return given

    return check


def real(low: float, high: float) -> Check:
    expected = f"a number from {low:g} to {high:g}"
    return checking((int, float), lambda x: low <= x <= high, expected)


def integer(most: int, least: int = 0) -> Check:
    expected = f"a whole number from {least} to {most}"
    return checking((int,), lambda x: least <= x <= most, expected)


def one_of(known: Collection[str]) -> Check:
    return checking((str,), lambda x: x in known, f"one of {', '.join(known)}")


def matching(pattern: str) -> Check:
    return checking((str,), re.compile(pattern).fullmatch, f"like {pattern}")


def many(check: Check, least: int, most: int) -> Check:
    def check_all(given: Any, name: str) -> tuple:
        known = isinstance(given, list) and least <= len(given) <= most
        expect(known, name, f"a list of {least} to {most} entries")
        return tuple(check(one, name) for one in given)

    return check_all


def fields_of(make: Callable = SimpleNamespace, /, **parts: Any) -> Check:
    """An object with these fields: a check for each, or a check and the default."""

    def check(given: Any, name: str) -> Any:
        expect(isinstance(given, dict), name, "an object")
        for field in given.keys() - parts.keys():
            raise Refused(f"{name}: there is no field {one_line(field, 40)!r}")
        found = {}
        for field, part in parts.items():
            own, default = part if isinstance(part, tuple) else (part, NEEDED)
            value = given.get(field, default)
            expect(value is not NEEDED, f"{name}.{field}", "a value, but it is missing")
            found[field] = value if value is default else own(value, f"{name}.{field}")
        return make(**found)

    return check


class Sent(bytes):
    """A picture from the browser, to be read as a file would be."""

    def __str__(self) -> str:
        return "the picture"

    def read_bytes(self) -> bytes:
        return self


def picture(size: int, given: Any, name: str) -> Tensor:
    """A PNG file in base64 -> [3, size, size]."""
    try:
        sent = Sent(b64decode(given, validate=True))
    except (TypeError, ValueError):
        raise Refused(f"{name}: expected a PNG file in base64") from None
    with blame(name):
        expect(picture_size(sent) == (size, size), str(sent), f"{size}x{size} pixels")
        return as_tensor(read_image(sent))


def direction(given: Any, name: str) -> tuple[float, ...]:
    vector = many(real(-1, 1), 3, 3)(given, name)
    expect(abs(hypot(*vector) - 1) < 1e-6, name, "a vector of length 1")
    return vector


# ------------------------------------------------------------------------------ what is asked

SWITCH = checking((bool,), lambda x: True, "true or false")
MOST = f"at most {LIMITS['prompt']} printable characters"
PROSE = checking((str,), lambda x: len(x) <= LIMITS["prompt"] and x.isprintable(), MOST)
ANGLE, PLACE, SEED = real(-6.3, 6.3), real(0, 1), integer(2**31 - 1)
THING = fields_of(
    Thing,
    **{"kind": one_of(KINDS), "colour": one_of(COLOURS), "x": PLACE, "y": PLACE, "z": PLACE},
    **{"size": real(0.05, 0.6), "turn": ANGLE, "tilt": ANGLE, "bends": many(ANGLE, 8, 8)},
)
SCENE = fields_of(
    Scene,
    **{"background": one_of(COLOURS), "light": direction, "seed": SEED},
    things=many(THING, 0, LIMITS["things"]),
)
THRESHOLDS = {"low": (integer(1000), 100), "high": (integer(1000), 200)}  # of Canny


def scene(given: Any, name: str) -> Scene:
    """A scene, or the random one of a seed."""
    return random_scene(SEED(given, name)) if isinstance(given, int) else SCENE(given, name)


def drawing(models: Any, given: Any, name: str) -> SimpleNamespace:
    size = models.size
    stroke = fields_of(
        tool=one_of(("pen", "line", "eraser")),
        width=(real(1, 12), 1.0),
        colour=(matching("#[0-9a-f]{6}"), None),
        points=many(many(real(-size, 2 * size), 2, 2), 1, LIMITS["points"]),
    )
    found = fields_of(
        condition=one_of(models.conditions),
        under=(partial(picture, size), None),
        scene=(scene, None),
        strokes=(many(stroke, 0, LIMITS["strokes"]), ()),
    )(given, name)
    alone = found.scene is None or models.scenes and found.under is None
    expect(alone, f"{name}.scene", "none with `under` or with this base")
    n = sum(len(stroke.points) for stroke in found.strokes)
    expect(n <= LIMITS["points"], f"{name}.strokes", f"at most {LIMITS['points']} points")
    return found


def wanted(models: Any, given: Any, name: str = "request") -> SimpleNamespace:
    """The pictures that are asked for."""
    one, each = real(-4, 4), many(real(-4, 4), models.n, models.n)
    found = fields_of(
        client=matching("[A-Za-z0-9-]{1,64}"),
        drawing=partial(drawing, models),
        columns=(many(one_of((NONE, *models.conditions)), 1, 10), None),
        **dict.fromkeys(("prompt", "negative"), (PROSE, "")),
        **{"seed": (integer(2**32 - 1), 0), "steps": (integer(LIMITS["steps"], 1), 20)},
        scale=(real(0, 30), models.sd.guidance),
        strength=(lambda x, name: (each if isinstance(x, list) else one)(x, name), 1.0),
        **{"control_from": (PLACE, 0.0), "control_to": (PLACE, 1.0)},
        **dict.fromkeys((*RULES, "attention"), (SWITCH, False)),
        run_step=(integer(10**7 - 1), None),
    )(given, name)
    own = found.drawing.condition
    found.columns = found.columns or (NONE, own)
    expect(len({*found.columns}) == len(found.columns), f"{name}.columns", "each only once")
    others = {*found.columns} - {NONE, own}
    expect(found.drawing.scene or not others, f"{name}.columns", f"{own}, or a drawing.scene")
    order = found.control_from <= found.control_to
    expect(order, f"{name}.control_to", "no less than control_from")
    expect(not (found.guess and found.resolution_weighting), name, "at most one of the rules")
    kept = "a step whose weights are kept by the run that --run RUN names"
    expect(found.run_step in (None, *models.steps()), "run_step", kept, 404)
    return found
