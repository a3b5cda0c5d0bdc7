"""The middle block alone.

The paper (arXiv v1, small-scale training): with only the middle block connected to the locked U-Net
training is about 1.6 times as fast (on a laptop's RTX 3070 Ti). When the model follows its hints to
some extent, the other connections are joined again, for exactness.

Three questions. How many steps a second are gained? How well does the middle block alone follow?
With 200 steps of the middle block alone and 200 with everything, is the ControlNet as good as after
400 with everything?

The speed-up holds if at least half of it is there, 1.3 times. Reconnected, it is as good if its
seeds' `follows` are not all below the others'.

Expected before the first run:
hardly faster, 1.05 times at most: the gradient has to go through the whole decoder all the same,
and only the zero convolutions' own is saved. The middle block alone follows, roughly: its map is
of 4 x 4 places, so it says which thing is where but not its outline, and `follows` is half of the
whole ControlNet's. Reconnected for 200 steps it nearly reaches the whole one, and does not pass it.

Found:
Nothing is gained in speed: the zeroed convolutions are computed all the same, and the gradient
takes the same way. The middle block alone learns nothing in 400 steps; its control gain stays 0. So
the paper's recipe, to reconnect once it follows to some extent, could not be tried. `reconnected`
only shows that after 200 such steps two seeds of three jump a little later than a fresh ControlNet
does, and that one does not jump within its 200 steps.
"""

import time

import numpy as np

from nanocontrol.experiments import frame
from nanocontrol.experiments.claims.shared import VARIANCE, like_variance
from nanocontrol.experiments.frame import Experiment, Panel, Variant, claim, comparison, names_of
from nanocontrol.experiments.results import Results, all_below, of, verdict
from nanocontrol.experiments.runs import this_machine
from nanocontrol.plumbing.machine import default_device

FASTER = 1.3
TURNS, STEPS = 7, 3  # the two take turns, so that what else the machine does slows both
MIDDLE = like_variance("middle", only_mid_control=True)
FIRST = like_variance("middle first", only_mid_control=True, steps=200, schedule="constant")
RECONNECTED = Variant("reconnected", dict(VARIANCE.settings) | {"steps": 200}, continues=FIRST)


def steps_a_second() -> dict:
    """The median over turns, the slowest and the fastest."""
    steppings = {"whole": frame.first_steps(VARIANCE, 1), "middle": frame.first_steps(MIDDLE, 1)}
    found: dict[str, list[float]] = {name: [] for name in steppings}
    for turn in range(TURNS + 1):
        for name, steps in steppings.items():
            began = time.monotonic()
            for _ in range(STEPS):
                next(steps)
            if turn:  # the first steps are slower
                found[name].append(STEPS / (time.monotonic() - began))
    found["factor"] = [b / a for a, b in zip(found["whole"], found["middle"])]
    rows = {name: [float(np.median(all_)), min(all_), max(all_)] for name, all_ in found.items()}
    here = this_machine(default_device())
    machine = ", ".join(f"{name} {x}" for name, x in here.items())
    note = f"(Batches of 8 encoded pairs, one thread, interleaved {TURNS} times; {machine}.)"
    head = ["connected", "steps a second", "slowest", "fastest"]
    return {"head": head, "rows": rows, "note": note}


@claim("arXiv v1, small-scale training (a laptop's GPU)", ())
def middle_is_faster(results: Results) -> tuple[str, str]:
    """With the middle block alone a step takes less time: 1.6 times as fast."""
    factor, lowest, highest = results.content["once"]["rows"]["factor"]
    return f"{factor:.2f} times ({lowest:.2f} to {highest:.2f})", verdict(factor >= FASTER)


@comparison(
    "arXiv v1, small-scale training",
    "`follows`: middle {}; variance {}; jump at {}",
    [*of("follows", MIDDLE.name, VARIANCE.name), (MIDDLE.name, "jump")],
)
def middle_follows(middle: list[float], whole: list[float], jumps: list[float]) -> bool:
    """The middle block alone learns to follow."""
    return bool(np.isfinite(jumps).all())


@comparison(
    "arXiv v1, small-scale training (no numbers)",
    "`follows`: 200 + 200 steps {}, whole from the start {}",
    [*of("follows", RECONNECTED.name, VARIANCE.name), (FIRST.name, "jump")],
)
def reconnected_is_as_good(
    again: list[float], whole: list[float], first: list[float]
) -> bool | str:
    """Reconnected, it is as good as if it had been whole from the start."""
    if not np.isfinite(first).all():
        return "untestable: the middle block alone had learnt nothing"
    return not all_below(again, whole)


EXPERIMENT = Experiment(
    variants=(VARIANCE, MIDDLE, FIRST, RECONNECTED),
    claims=(middle_is_faster, middle_follows, reconnected_is_as_good),
    panels=(
        Panel("connected", names_of(VARIANCE, MIDDLE)),
        Panel("in two halves", names_of(FIRST, RECONNECTED)),
    ),
    titles={VARIANCE.name: "whole"},
    once=steps_a_second,
)
