"""The browser's requests: JSON -> checked values. Every refusal is one sentence with a status."""

import math
import re
from base64 import b64decode
from collections.abc import Callable, Collection
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from nanocontrol.nano.world import COLOURS, KINDS, Scene, Thing
from nanocontrol.plumbing.errors import InputError, one_line
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
        self.status = status


def expect(condition: object, name: str, expected: str) -> None:
    if not condition:
        raise Refused(f"{name}: expected {expected}")


# --------------------------------------------------------------------------- checks of values


def checking(
    holds: Callable[[Any], object], expected: str, convert: Callable = lambda given: given
) -> Check:
    def check(given: Any, name: str) -> Any:
        expect(holds(given), name, expected)
        return convert(given)

    return check


def real(low: float, high: float) -> Check:
    expected = f"a number from {low:g} to {high:g}"
    return checking(lambda x: type(x) in (int, float) and low <= x <= high, expected, float)


def integer(most: int, least: int = 0) -> Check:
    expected = f"a whole number from {least} to {most}"
    return checking(lambda x: type(x) is int and least <= x <= most, expected)


def one_of(known: Collection[str]) -> Check:
    return checking(lambda x: isinstance(x, str) and x in known, f"one of {', '.join(known)}")


def matching(pattern: str) -> Check:
    return checking(lambda x: isinstance(x, str) and re.fullmatch(pattern, x), f"like {pattern}")


def prose(most: int) -> Check:
    expected = f"at most {most} printable characters"
    return checking(lambda x: isinstance(x, str) and len(x) <= most and x.isprintable(), expected)


switch = checking(lambda x: isinstance(x, bool), "true or false")


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


class Sent:
    """Bytes of a picture from the browser, named in messages as a file would be."""

    def __init__(self, data: bytes, name: str):
        self.data, self.name = data, name

    def __str__(self) -> str:
        return self.name

    def read_bytes(self) -> bytes:
        return self.data


def picture(size: int) -> Check:
    def check(given: Any, name: str) -> Tensor:
        try:
            data = b64decode(given, validate=True)
        except (TypeError, ValueError):
            raise Refused(f"{name}: expected a PNG file in base64") from None
        sent = Sent(data, name)
        expect(picture_size(sent) == (size, size), name, f"a picture of {size}x{size}")
        return as_tensor(read_image(sent))

    return check


def direction(given: Any, name: str) -> tuple[float, ...]:
    vector = many(real(-1e3, 1e3), 3, 3)(given, name)
    length = math.hypot(*vector)
    expect(length > 1e-6, name, "a direction, not 0, 0, 0")
    return tuple(x / length for x in vector)


# ------------------------------------------------------------------------------ what is asked

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


def drawing(conditions: Collection[str], size: int, scenes: bool) -> Check:
    """size: the picture's side; scenes: whether the base knows the drawn world."""
    point = many(real(-size, 2 * size), 2, 2)
    stroke = fields_of(
        tool=one_of(("pen", "line", "eraser")),
        width=(real(1, 12), 1.0),
        colour=(matching("#[0-9a-f]{6}"), None),
        points=many(point, 1, LIMITS["points"]),
    )
    parts = fields_of(
        condition=one_of(conditions),
        under=(picture(size), None),
        scene=(SCENE, None),
        strokes=(many(stroke, 0, LIMITS["strokes"]), ()),
    )

    def check(given: Any, name: str) -> SimpleNamespace:
        found = parts(given, name)
        alone = found.scene is None or scenes and found.under is None
        expect(alone, f"{name}.scene", "none with `under` or with this base")
        n = sum(len(stroke.points) for stroke in found.strokes)
        expect(n <= LIMITS["points"], f"{name}.strokes", f"at most {LIMITS['points']} points")
        return found

    return check


def wanted(conditions: Collection[str], n: int, size: int, scenes: bool, scale: float) -> Check:
    """The pictures that are asked for. n: connections; scale: the base's guidance; the others are
    as in `drawing`."""
    one, each = real(-4, 4), many(real(-4, 4), n, n)
    parts = fields_of(
        client=matching("[A-Za-z0-9-]{1,64}"),
        drawing=drawing(conditions, size, scenes),
        columns=(many(one_of((NONE, *conditions)), 1, 10), None),
        **dict.fromkeys(("prompt", "negative"), (prose(LIMITS["prompt"]), "")),
        **{"seed": (integer(2**32 - 1), 0), "steps": (integer(LIMITS["steps"], 1), 20)},
        scale=(real(0, 30), scale),
        strength=(lambda x, name: (each if isinstance(x, list) else one)(x, name), 1.0),
        **{"control_from": (PLACE, 0.0), "control_to": (PLACE, 1.0)},
        **dict.fromkeys((*RULES, "attention"), (switch, False)),
        run_step=(integer(10**7 - 1), None),
    )

    def check(given: Any, name: str) -> SimpleNamespace:
        found = parts(given, name)
        own = found.drawing.condition
        found.columns = found.columns or (NONE, own)
        expect(len({*found.columns}) == len(found.columns), f"{name}.columns", "each only once")
        others = {*found.columns} - {NONE, own}
        expect(found.drawing.scene or not others, f"{name}.columns", f"{own}, or a drawing.scene")
        order = found.control_from <= found.control_to
        expect(order, f"{name}.control_to", "no less than control_from")
        expect(not (found.guess and found.resolution_weighting), name, "at most one of the rules")
        return found

    return check
