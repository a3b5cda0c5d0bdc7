"""Sudden convergence.

The paper (section 3.3, figure 4): the condition is not learnt gradually. At some step, usually
before 10,000, the model abruptly begins to follow the hint; in the figure between steps 6,100 and
6,133. It shows one picture.

Three questions. Is it sudden for each picture, or only for the mean? Is there a jump at every
learning rate and batch size, or at those of the paper alone? Does it come after so many steps, or
after so many pairs? The plain training with three rates and three batch sizes; arms of
one rate have the same number of steps.

The width of a jump: steps from a quarter to three quarters of the score's way (numbers.py). A jump
is called sudden where its width is less than half of the steps that passed before it.
"""

import numpy as np

from nanocontrol.experiments.arm import PLAIN
from nanocontrol.experiments.experiment import Claim, Experiment, Panel
from nanocontrol.experiments.numbers import spoken
from nanocontrol.experiments.results import Results
from nanocontrol.experiments.shared import BATCHES, BY_RATE_AND_BATCH, RATES

EXPECTED = """
sudden for each picture (width below half of its step of the jump), and two to three times as wide
in the mean, as pictures jump at different steps. At every rate and batch size that jumps at all: a
larger rate brings it sooner, nearly in proportion. It counts steps more than pairs: with twice the
batch it comes after somewhat fewer steps, but after more pairs. The control gain leaves zero before
the score does; the loss in training shows nothing.
"""

SUDDEN = 0.5
NAMES = {which: arm.name for which, arm in BY_RATE_AND_BATCH.items()}


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


def is_it_sudden(results: Results) -> tuple[str, str]:
    widths, shares = median_pictures(results, PLAIN.name)
    ours = (
        f"plain arm, median picture: {spoken(widths, 0)} steps wide, {spoken(shares)} of the wait"
    )
    return ours, "reproduced" if shares and max(shares) < SUDDEN else "not reproduced"


def is_the_mean_gradual(results: Results) -> tuple[str, str]:
    pictures, mean = median_pictures(results, PLAIN.name)[0], results.values(PLAIN.name, "width")
    known = [x for x in mean if x is not None]
    ours = (
        f"mean of 16 pictures: {spoken(mean, 0)} steps wide, median picture {spoken(pictures, 0)}"
    )
    wider = bool(known and pictures) and min(known) > max(pictures)
    return ours, "reproduced" if wider else "not reproduced"


def is_it_everywhere(results: Results) -> tuple[str, str]:
    jumped = [name for name in NAMES.values() if np.isfinite(results.jumps(name)).all()]
    shares = {name: median_pictures(results, name)[1] for name in jumped}
    sudden = [name for name in jumped if shares[name] and max(shares[name]) < SUDDEN]
    ours = f"{len(jumped)} of {len(NAMES)} arms jump, {len(sudden)} of them suddenly"
    return ours, "reproduced" if jumped and len(sudden) == len(jumped) else "not reproduced"


def steps_or_pairs(results: Results) -> tuple[str, str]:
    """How much the mean step of the jump, and the pairs seen until then, change from the smallest
    to the largest batch: factors, at the rates where all seeds of all batches jumped."""
    steps, pairs = [], []
    for lr in RATES:
        means = [float(np.mean(results.jumps(NAMES[lr, batch]))) for batch in BATCHES]
        if np.isfinite(means).all():
            seen = [mean * batch for mean, batch in zip(means, BATCHES)]
            steps.append(max(means) / min(means))
            pairs.append(max(seen) / min(seen))
    ours = f"batches change the steps {spoken(steps, 1)} times, the pairs {spoken(pairs, 1)} times"
    if not steps:
        return ours, "untestable: too few arms jump"
    return ours, "reproduced" if max(steps) < min(pairs) else "not reproduced"


EXPERIMENT = Experiment(
    name="sudden_convergence",
    expected=EXPECTED,
    arms=tuple(BY_RATE_AND_BATCH.values()),
    quick=(NAMES[4e-3, 4], NAMES[4e-3, 8]),
    claims=(
        Claim("a picture follows its hint suddenly", "section 3.3, figure 4", is_it_sudden),
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
    ),
    panels=(
        Panel("learning rates, batch 8", tuple(NAMES[lr, 8] for lr in RATES)),
        Panel("batch sizes, lr 0.001", tuple(NAMES[1e-3, batch] for batch in BATCHES)),
        Panel("batch sizes, by pairs", tuple(NAMES[1e-3, batch] for batch in BATCHES), "pairs"),
    ),
)
