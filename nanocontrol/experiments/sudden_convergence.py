"""Sudden convergence.

The paper (section 3.3, figure 4): the condition is not learnt gradually. At some step, usually
before 10,000, the model abruptly begins to follow the hint; in the figure between steps 6,100 and
6,133. It shows one picture.

Three questions. Is it sudden for each picture, or only for the mean? Is there a jump at every
learning rate and batch size, or at those of the paper alone? Does it come after so many steps, or
after so many pairs? Three rates and three batch sizes, from the start with which nano learns soon
(`variance`); and the paper's start (`plain`), to see whether the loss, the score or the control
gain tells while one waits.

The width of a jump: steps from a quarter to three quarters of the score's way (numbers.py). A jump
is called sudden where its width is less than half of the steps that passed before it. (At first
this was asked of `variance` alone; the row of the paper's start was added when both had run.)
"""

from functools import partial

import numpy as np

from nanocontrol.experiments.arm import PLAIN
from nanocontrol.experiments.experiment import ROWS, Claim, Experiment, Panel
from nanocontrol.experiments.numbers import spoken
from nanocontrol.experiments.results import Results
from nanocontrol.experiments.shared import BY_BATCH, BY_RATE, VARIANCE

EXPECTED = """
sudden for each picture (width below half of its step of the jump), and two to three times as wide
in the mean, as pictures jump at different steps. At every rate and batch size: a larger rate brings
it sooner, nearly in proportion. It counts steps more than pairs: with twice the batch it comes
after somewhat fewer steps, but after more pairs. The control gain leaves zero before the score
does; the loss in training shows nothing. The plain arm jumps between 1,000 steps, for which it had
been watched, and 1,600.
"""

SUDDEN = 0.5
ARMS = (*BY_RATE.values(), BY_BATCH[4], BY_BATCH[16])


def median_pictures(results: Results, arm: str) -> tuple[list[float], list[float]]:
    """For each seed, of the pictures that have both: the median width of the jump, and the median
    of the width by the picture's own step of the jump."""
    widths, shares = [], []
    for run in results.runs(arm):
        both = zip(run["compared"]["picture_widths"], run["compared"]["picture_jumps"])
        known = [(width, jump) for width, jump in both if width is not None and jump]
        if known:
            widths.append(float(np.median([width for width, _ in known])))
            shares.append(float(np.median([width / jump for width, jump in known])))
    return widths, shares


def is_it_sudden(results: Results, arm: str) -> tuple[str, str]:
    widths, shares = median_pictures(results, arm)
    ours = f"median picture: {spoken(widths, 0)} steps wide, {spoken(shares)} of the wait"
    return ours, "reproduced" if shares and max(shares) < SUDDEN else "not reproduced"


def is_the_mean_gradual(results: Results) -> tuple[str, str]:
    pictures, mean = (
        median_pictures(results, VARIANCE.name)[0],
        results.values(VARIANCE.name, "width"),
    )
    known = [x for x in mean if x is not None]
    ours = (
        f"mean of 16 pictures: {spoken(mean, 0)} steps wide, median picture {spoken(pictures, 0)}"
    )
    wider = bool(known and pictures) and min(known) > max(pictures)
    return ours, "reproduced" if wider else "not reproduced"


def is_it_everywhere(results: Results) -> tuple[str, str]:
    jumped = [arm.name for arm in ARMS if np.isfinite(results.jumps(arm.name)).all()]
    shares = {name: median_pictures(results, name)[1] for name in jumped}
    sudden = [name for name in jumped if shares[name] and max(shares[name]) < SUDDEN]
    ours = f"{len(jumped)} of {len(ARMS)} arms jump, {len(sudden)} of them suddenly"
    return ours, "reproduced" if jumped and len(sudden) == len(jumped) else "not reproduced"


def steps_or_pairs(results: Results) -> tuple[str, str]:
    """How much the mean step of the jump, and the pairs seen until then, change from the smallest
    to the largest batch: factors."""
    means = {size: float(np.mean(results.jumps(arm.name))) for size, arm in BY_BATCH.items()}
    if not np.isfinite([*means.values()]).all():
        return "not every batch size jumps", "untestable"
    seen = [size * mean for size, mean in means.items()]
    steps, pairs = max(means.values()) / min(means.values()), max(seen) / min(seen)
    at = ", ".join(f"{mean:.0f} with {size}" for size, mean in means.items())
    ours = f"at step {at} pairs a step: the steps differ {steps:.1f} times, the pairs {pairs:.1f}"
    return ours, "reproduced" if steps < pairs else "not reproduced"


def does_it_wait(results: Results) -> tuple[str, str]:
    """The paper's start against the one that passes the hint on."""
    ours = f"jumps at step: {results.in_words('jump', (PLAIN.name, VARIANCE.name), 0)}"
    later = min(results.jumps(PLAIN.name)) > 2 * max(results.jumps(VARIANCE.name))
    return ours + " (of 2,000 and 400)", "reproduced" if later else "not reproduced"


EXPERIMENT = Experiment(
    name="sudden_convergence",
    expected=EXPECTED,
    arms=(PLAIN, *ARMS),
    quick=(VARIANCE.name, BY_RATE[2e-3].name),
    claims=(
        Claim(
            "with the paper's start a picture follows its hint suddenly",
            "section 3.3, figure 4",
            partial(is_it_sudden, arm=PLAIN.name),
        ),
        Claim(
            "also with a start that passes the hint on",
            "none",
            partial(is_it_sudden, arm=VARIANCE.name),
        ),
        Claim(
            "the mean over pictures follows gradually",
            "none (the figure shows one picture)",
            is_the_mean_gradual,
        ),
        Claim(
            "it happens at every learning rate and batch size that learn",
            "section 3.3 (one of each)",
            is_it_everywhere,
        ),
        Claim(
            "it counts steps of the optimizer, not pairs seen",
            "the author, lllyasviel/ControlNet#215",
            steps_or_pairs,
        ),
        Claim(
            "with the paper's start it comes after a long wait",
            "section 3.3 (6,100 steps)",
            does_it_wait,
        ),
    ),
    rows=ROWS | {"spread_last": "spread after the last SiLU"},
    front=("score", "spread_last"),
    panels=(
        Panel("the paper's start, and one that passes the hint on", (PLAIN.name, VARIANCE.name)),
        Panel("learning rates, batch 8", tuple(arm.name for arm in BY_RATE.values())),
        Panel("batch sizes, lr 0.001", tuple(arm.name for arm in BY_BATCH.values())),
        Panel("batch sizes, by pairs", tuple(arm.name for arm in BY_BATCH.values()), "pairs"),
    ),
)
