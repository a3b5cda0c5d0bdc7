"""Only the middle block connected, then reconnected.

The paper (arXiv v1, small-scale training): with only the middle block connected to the locked U-Net
training is about 1.6 times as fast (on a laptop's RTX 3070 Ti), and when the model follows its
hints to some extent, the other connections are joined again, for exactness.

Three questions. How many steps a second are gained? How well does the middle block alone follow?
With 200 steps of the middle block alone and 200 with everything, is the ControlNet as good as after
400 with everything?

The speed holds if at least half of the gain is there, 1.3 times. Reconnected, it is as good if its
seeds' `follows` are not all below the others'.
"""

import time
from pathlib import Path

import numpy as np
import torch

from nanocontrol.experiments.arm import Arm, settings_of
from nanocontrol.experiments.experiment import Claim, Experiment, Panel
from nanocontrol.experiments.numbers import spoken
from nanocontrol.experiments.results import Results
from nanocontrol.experiments.runs import this_machine
from nanocontrol.experiments.shared import VARIANCE, like_variance
from nanocontrol.experiments.speed import stepping

EXPECTED = """
hardly faster, 1.05 times at most: the gradient has to go through the whole decoder all the same,
and only the zero convolutions' own is saved. The middle block alone follows, roughly: its map is
of 4 x 4 places, so it says which thing is where but not its outline, and `follows` is half of the
whole ControlNet's. Reconnected for 200 steps it nearly reaches the whole one, and does not pass it.
"""

FASTER = 1.3
TURNS, STEPS = 7, 3  # of the two by turns, so that what else the machine does slows both
MIDDLE = like_variance("middle", only_mid_control=True)
FIRST = like_variance("middle first", only_mid_control=True, steps=200, schedule="constant")
RECONNECTED = Arm("reconnected", dict(VARIANCE.settings) | {"steps": 200}, goes_on_from=FIRST)


def steps_a_second() -> dict:
    """The median over turns, the slowest and the fastest."""
    torch.set_num_threads(1)
    arms = {"whole": VARIANCE, "middle": MIDDLE}
    settings = {name: settings_of(arm, 0, Path("unused")) for name, arm in arms.items()}
    steppings = {name: stepping(own)[2] for name, own in settings.items()}
    found: dict[str, list[float]] = {name: [] for name in steppings}
    for turn in range(TURNS + 1):
        for name, step in steppings.items():
            began = time.monotonic()
            for _ in range(STEPS):
                step()
            if turn:  # (the first steps are slower)
                found[name].append(STEPS / (time.monotonic() - began))
    found["factor"] = [b / a for a, b in zip(found["whole"], found["middle"])]
    rows = {name: [float(np.median(all_)), min(all_), max(all_)] for name, all_ in found.items()}
    here = this_machine(settings["whole"].device)
    machine = ", ".join(f"{name} {x}" for name, x in here.items())
    note = f"(Batches of 8 encoded pairs, one thread, the two by turns, {TURNS} times; {machine}.)"
    return {
        "head": ["connected", "steps a second", "slowest", "fastest"],
        "rows": rows,
        "note": note,
    }


def is_it_faster(results: Results) -> tuple[str, str]:
    """The median of the factors of all turns."""
    factor, lowest, highest = results.content["once"]["rows"]["factor"]
    ours = f"{factor:.2f} times ({lowest:.2f} to {highest:.2f})"
    return ours, "reproduced" if factor >= FASTER else "not reproduced"


def does_it_follow(results: Results) -> tuple[str, str]:
    jumped = np.isfinite(results.jumps(MIDDLE.name)).all()
    names = (MIDDLE.name, VARIANCE.name)
    ours = f"`follows`: {results.in_words('follows', names)}; jump at "
    ours += spoken(results.values(MIDDLE.name, "jump"), 0)
    return ours, "reproduced" if jumped else "not reproduced"


def does_it_catch_up(results: Results) -> tuple[str, str]:
    names = (RECONNECTED.name, VARIANCE.name)
    ours, whole = (results.values(name, "follows") for name in names)
    text = f"`follows`: 200 + 200 steps {spoken(ours)}, whole from the start {spoken(whole)}"
    if not np.isfinite(results.jumps(FIRST.name)).all():
        return text, "untestable: the middle block alone had learnt nothing"
    return text, "not reproduced" if max(ours) < min(whole) else "reproduced"


EXPERIMENT = Experiment(
    name="middle",
    expected=EXPECTED,
    arms=(VARIANCE, MIDDLE, FIRST, RECONNECTED),
    quick=(FIRST.name, RECONNECTED.name),
    claims=(
        Claim(
            "with the middle block alone a step takes less time: 1.6 times as fast",
            "arXiv v1, small-scale training (a laptop's GPU)",
            is_it_faster,
        ),
        Claim(
            "the middle block alone learns to follow",
            "arXiv v1, small-scale training",
            does_it_follow,
        ),
        Claim(
            "reconnected, it is as good as if it had been whole from the start",
            "arXiv v1, small-scale training (no numbers)",
            does_it_catch_up,
        ),
    ),
    panels=(
        Panel("connected", (VARIANCE.name, MIDDLE.name)),
        Panel("in two halves", (FIRST.name, RECONNECTED.name)),
    ),
    titles={VARIANCE.name: "whole"},
    once=steps_a_second,
)
