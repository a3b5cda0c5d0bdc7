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
is called sudden where its width is less than half of the steps until its middle. (At first
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
    """For each seed, of the pictures whose score rises: the median width of the jump, and the
    median of the width by the steps until its middle."""
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
    ours = f"median picture: {spoken(widths, 0)} steps wide, {spoken(shares)} of its wait"
    return ours, "reproduced" if shares and max(shares) < SUDDEN else "not reproduced"


def is_the_mean_gradual(results: Results) -> tuple[str, str]:
    """Whether with every seed the jump of the mean is wider than that of its median picture. (At
    first the narrowest mean was compared with the widest picture of all seeds.)"""
    pictures, _ = median_pictures(results, VARIANCE.name)
    mean = results.values(VARIANCE.name, "width")
    ours = (
        f"mean of 16 pictures: {spoken(mean, 0)} steps wide, median picture {spoken(pictures, 0)}"
    )
    known = None not in mean and len(mean) == len(pictures)
    wider = known and all(a > b for a, b in zip(mean, pictures))
    return ours, "reproduced" if wider else "not reproduced"


def is_it_everywhere(results: Results) -> tuple[str, str]:
    jumped = [arm.name for arm in ARMS if np.isfinite(results.jumps(arm.name)).all()]
    shares = {name: median_pictures(results, name)[1] for name in jumped}
    sudden = [name for name in jumped if shares[name] and max(shares[name]) < SUDDEN]
    ours = f"{len(jumped)} of {len(ARMS)} arms jump, {len(sudden)} of them suddenly"
    return ours, "reproduced" if jumped and len(sudden) == len(jumped) else "not reproduced"


def steps_or_pairs(results: Results) -> tuple[str, str]:
    """By which factors the step of the jump, and the pairs seen until then, differ between batch
    sizes, for each seed. Undecided if seeds disagree."""
    jumps = {size: results.jumps(arm.name) for size, arm in BY_BATCH.items()}
    seeds = results.by_seed([arm.name for arm in BY_BATCH.values()], "jump")
    if any(None in seed for seed in seeds):
        return "not every batch size jumps", "untestable"
    pairs = [[size * step for size, step in zip(jumps, seed)] for seed in seeds]
    of_steps, of_pairs = ([max(seed) / min(seed) for seed in some] for some in (seeds, pairs))
    at = "; ".join(f"{size} pairs {spoken(steps, 0)}" for size, steps in jumps.items())
    ours = f"jumps at step: {at}. The steps differ {spoken(of_steps, 1)} times, the pairs "
    by_pairs = {a > b for a, b in zip(of_steps, of_pairs)}
    verdict = "not reproduced" if by_pairs == {True} else "reproduced"
    return ours + spoken(of_pairs, 1), "undecided" if len(by_pairs) > 1 else verdict


def does_it_wait(results: Results) -> tuple[str, str]:
    """The paper's start against the one that passes the hint on: more than twice as long with every
    seed."""
    own, other = (spoken(results.values(arm.name, "jump"), 0) for arm in (PLAIN, VARIANCE))
    ours = f"jumps at step {own} of 2,000; with a start that passes the hint on at {other} of 400"
    later = min(results.jumps(PLAIN.name)) > 2 * max(results.jumps(VARIANCE.name))
    return ours, "reproduced" if later else "not reproduced"


EXPERIMENT = Experiment(
    name="sudden_convergence",
    expected=EXPECTED,
    arms=(PLAIN, *ARMS),
    quick=(VARIANCE.name, BY_RATE[2e-3].name),
    claims=(
        Claim(
            "with the paper's start a picture follows its hint suddenly (asked after the runs)",
            "section 3.3, figure 4",
            partial(is_it_sudden, arm=PLAIN.name),
            (PLAIN.name,),
        ),
        Claim(
            "also with a start that passes the hint on",
            "none",
            partial(is_it_sudden, arm=VARIANCE.name),
            (VARIANCE.name,),
        ),
        Claim(
            "there, the mean over pictures jumps less steeply than a picture",
            "none (the figure shows one picture)",
            is_the_mean_gradual,
            (VARIANCE.name,),
        ),
        Claim(
            "there, every learning rate and batch size that learns does so suddenly",
            "section 3.3 (one of each)",
            is_it_everywhere,
            tuple(arm.name for arm in ARMS),
        ),
        Claim(
            "it counts steps of the optimizer, not pairs seen",
            "the author, lllyasviel/ControlNet#215",
            steps_or_pairs,
            tuple(arm.name for arm in BY_BATCH.values()),
        ),
        Claim(
            "with the paper's start pictures follow only after a long wait",
            "section 3.3 (6,100 steps)",
            does_it_wait,
            (PLAIN.name, VARIANCE.name),
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
