"""The arithmetic of experiments: how fast a training learnt, how suddenly, and whether two arms
differ. A curve is a list of (step, value), with growing steps."""

from collections.abc import Sequence

import numpy as np

Curve = Sequence[tuple[float, float]]

# The score of the condition at which the jump is said to happen: of the 16 scenes without control
# it is 0.24, of true pictures 1. (A fixed level: half of an arm's own way would depend on how long
# it runs.)
JUMPED = 0.4
SHORTEST = 0.2  # a score's way from its first to its last value, below which it has no width


def area(curve: Curve) -> float:
    """Under the curve, by the steps: the mean value over the run."""
    steps, values = np.array(curve, dtype=float).T
    return float(np.trapezoid(values, steps) / (steps[-1] - steps[0]))


def step_at(curve: Curve, level: float) -> float | None:
    """The first step at which the curve reaches the level, on straight lines between its points;
    None if it never does."""
    if curve[0][1] >= level:
        return float(curve[0][0])
    for (before, low), (after, high) in zip(curve, curve[1:]):
        if high >= level:
            return float(before + (after - before) * (level - low) / (high - low))
    return None


def step_of_jump(score: Curve) -> float | None:
    return step_at(score, JUMPED)


def half_way(curve: Curve) -> float | None:
    """Of a single picture, whose score without control may be above or far below the fixed level:
    the step at half of its way from the first to the last value."""
    return step_at(curve, (curve[0][1] + curve[-1][1]) / 2)


def width_of_jump(curve: Curve) -> float | None:
    """The steps from a quarter to three quarters of the way from the first to the last value: to
    the first time that three quarters are reached, from the last time before it that the curve was
    at a quarter. None if the whole way is too short."""
    begin, end = curve[0][1], curve[-1][1]
    if end - begin < SHORTEST:
        return None
    quarter, three_quarters = begin + (end - begin) / 4, end - (end - begin) / 4
    top = step_at(curve, three_quarters)
    assert top is not None  # (the last value is above it)
    backwards = [(-step, -value) for step, value in reversed(curve) if step < top]
    bottom = step_at([(-top, -three_quarters), *backwards], -quarter)
    assert bottom is not None
    return top + bottom


def band(curves: Sequence[Curve]) -> tuple[list[float], list[float], list[float], list[float]]:
    """Of curves with the same steps: the steps, and there the lowest, mean and highest value."""
    steps = [step for step, _ in curves[0]]
    if any([step for step, _ in curve] != steps for curve in curves):
        raise ValueError("the curves were not measured at the same steps")
    values = np.array([[value for _, value in curve] for curve in curves])
    return steps, *(f(values, axis=0).tolist() for f in (np.min, np.mean, np.max))  # type: ignore


def apart(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether every value of one is below every value of the other. (With three seeds each, arms
    that do not differ are apart in one case of ten.)"""
    return max(a) < min(b) or max(b) < min(a)


def spoken(values: Sequence[float | None], digits: int = 2) -> str:
    """The mean over seeds, and from where to where they go: "0.55 (0.52 to 0.58)". Where some have
    no value: "none" or "none in 1 of 3"."""
    there = [value for value in values if value is not None]
    if not there:
        return "none"
    text = f"{np.mean(there):z.{digits}f}"  # (z: no -0.00)
    if len(there) > 1:
        text += f" ({min(there):z.{digits}f} to {max(there):z.{digits}f})"
    missing = len(values) - len(there)
    return text + (f", none in {missing} of {len(values)}" if missing else "")
