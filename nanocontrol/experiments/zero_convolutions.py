"""Zero convolutions and the copy.

The paper (section 4.2, figure 8) compares (a) the ControlNet, (b) one whose zero convolutions start
with Gaussian weights, (c) ControlNet-lite, whose blocks are one convolution each. It finds (b)
about as weak as (c), and takes that as a sign that training destroys the copied weights; (c) is too
weak to follow hints without a prompt. Section 3.1: zero convolutions keep harmful noise from the
base at the beginning.

(c) differs from (a) in its number of weights as well as in being no copy, and it knows neither t
nor the prompt. So two arms more: a light network with the copy's number of weights (two
convolutions a block: "wide"), and the copy's architecture with random weights. All under PyTorch's
start of the condition encoder, and under the variance-keeping one: where the encoder passes nothing
on, whatever moves first learns first. A start under which neither of two arms jumps tells nothing
of them. A light network's convolutions have no way around them, and fade with PyTorch's weights as
the condition encoder does (the table of spreads); so that the network is judged, and not its first
weights, they start with others.

Damage: the loss on held-out pairs at step 0, less that of the base alone. Repaired: the first look
at which it is no larger. Arms differ where the ranges of their seeds do not meet.
"""

from pathlib import Path

import numpy as np

from nanocontrol.experiments.arm import PLAIN, WAITING, Arm, models_of, settings_of, unchanged
from nanocontrol.experiments.experiment import Claim, Experiment, Panel
from nanocontrol.experiments.inside import spread_by_block
from nanocontrol.experiments.light import (
    as_many_weights,
    blocks_by,
    one_convolution,
    passing_on,
    random_weights,
)
from nanocontrol.experiments.numbers import apart, spoken
from nanocontrol.experiments.results import Results
from nanocontrol.experiments.shared import GAUSSIAN, GAUSSIAN_SOON, VARIANCE, like_variance

EXPECTED = """
zero convolutions do no damage at step 0; Gaussian ones multiply the loss and repair it within 100
steps. Under PyTorch's start Gaussian convolutions jump sooner than zero ones; under the
variance-keeping start later, and they end lower. The light network jumps as soon as the copy and
ends lower; with the copy's number of weights between the two. A copy with random weights learns,
but ends lower than the copy: at this size by little.
"""

CHANGES = {
    "lite": blocks_by(passing_on(one_convolution)),
    "lite wide": blocks_by(passing_on(as_many_weights)),
    "random copy": random_weights(),
}
UNDER_PYTORCH = {
    "zero": PLAIN,
    "gaussian": GAUSSIAN,
    **{name: Arm(name, WAITING, change) for name, change in CHANGES.items()},
}
UNDER_VARIANCE = {
    "zero": VARIANCE,
    "gaussian": GAUSSIAN_SOON,
    **{name: like_variance(f"{name} variance", change) for name, change in CHANGES.items()},
}
BOTH = {"PyTorch's start": UNDER_PYTORCH, "the variance-keeping start": UNDER_VARIANCE}


def damage(results: Results, arm: str) -> list[float]:
    base = np.mean(results.first(PLAIN.name, "held_out_loss"))
    return [loss - float(base) for loss in results.first(arm, "held_out_loss")]


def repaired(results: Results, arm: str) -> list[float | None]:
    """The step of the first look, for each seed, at which the damage is gone."""
    base = np.mean(results.first(PLAIN.name, "held_out_loss"))
    curves = results.curves(arm, "held_out_loss")
    return [next((step for step, loss in curve if loss <= base), None) for curve in curves]


def is_zero_harmless(results: Results) -> tuple[str, str]:
    zero, gaussian = damage(results, PLAIN.name), damage(results, GAUSSIAN.name)
    steps = spoken(repaired(results, GAUSSIAN.name), 0)
    ours = f"damage {spoken(zero, 3)}; Gaussian {spoken(gaussian, 3)}, repaired at step {steps}"
    return ours, "reproduced" if max(zero) < min(gaussian) else "not reproduced"


def compared(results: Results, a: str, b: str) -> tuple[str, dict[str, bool], bool]:
    """Under each start `follows` at the end of two arms; whether the first is above the second, for
    each start that tells of them; and whether they differ under any."""
    texts, above, differ = [], {}, False
    for start, arms in BOTH.items():
        names = arms[a].name, arms[b].name
        ours, other = (results.values(name, "follows") for name in names)
        texts.append(f"{start}: {a} {spoken(ours)}, {b} {spoken(other)}")
        if any(np.isfinite(results.jumps(name)).any() for name in names):
            above[start] = min(ours) > max(other)
            differ = differ or apart(ours, other)
    return "; ".join(texts), above, differ


def spreads() -> dict:
    """At step 0, after each of the copy's blocks; PyTorch's weights beside those of the arms."""
    by_pytorch = {"lite": blocks_by(one_convolution), "lite wide": blocks_by(as_many_weights)}
    starts = {"copy": unchanged, **CHANGES}
    starts |= {f"{name}, PyTorch's weights": start for name, start in by_pytorch.items()}
    rows = {}
    for name, start in starts.items():
        sd, control, _ = models_of(Arm(name, start=start), settings_of(PLAIN, 0, Path("unused")))
        rows[name] = spread_by_block(sd, control)
    blocks = [*(str(i) for i in range(len(rows["copy"]) - 1)), "middle"]
    return {"head": ["spread after block", *blocks], "rows": rows}


def zero_above(claim: str, evidence: str, other: str) -> Claim:
    """Whether the plain ControlNet ends better than this one."""

    def judge(results: Results) -> tuple[str, str]:
        text, above, _ = compared(results, "zero", other)
        where = [start for start in above if above[start]]
        if where and len(where) < len(above):
            return text, f"reproduced with {where[0]} only"
        return text, "reproduced" if where else "not reproduced"

    return Claim(claim, evidence, judge, names_of("zero", other))


def names_of(*both: str) -> tuple[str, ...]:
    return tuple(arms[name].name for arms in BOTH.values() for name in both)


def is_gaussian_like_lite(results: Results) -> tuple[str, str]:
    text, _, differ = compared(results, "gaussian", "lite")
    return text, "not reproduced" if differ else "reproduced"


EXPERIMENT = Experiment(
    name="zero_convolutions",
    expected=EXPECTED,
    arms=tuple(arm for arms in BOTH.values() for arm in arms.values()),
    titles={PLAIN.name: "zero", VARIANCE.name: "zero variance"},
    quick=(UNDER_VARIANCE["zero"].name, UNDER_VARIANCE["gaussian"].name),
    claims=(
        Claim(
            "zero convolutions do the base no harm at first, Gaussian ones do",
            "section 3.1",
            is_zero_harmless,
            (PLAIN.name, GAUSSIAN.name),
        ),
        zero_above("zero convolutions end better", "section 4.2, figure 8", "gaussian"),
        Claim(
            "with Gaussian convolutions a ControlNet is as good as ControlNet-lite",
            "section 4.2, figure 8",
            is_gaussian_like_lite,
            names_of("gaussian", "lite"),
        ),
        zero_above("ControlNet-lite is weaker", "section 4.2, figure 8, tables 1 to 3", "lite"),
        zero_above(
            "it would be with as many weights, too",
            "none (its light network is smaller)",
            "lite wide",
        ),
        zero_above("the copied weights matter", "section 3.1 (no experiment)", "random copy"),
    ),
    once=spreads,
    panels=tuple(
        Panel(start, tuple(arm.name for arm in arms.values())) for start, arms in BOTH.items()
    ),
)
