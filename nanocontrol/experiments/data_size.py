"""The size of the data.

The paper (section 4.5, figure 10): with 1,000 pictures the training does not collapse, and the
model makes something that can be recognised; with 50,000 and 3 million it is better. It shows one
picture of each. (Abstract: robust with less than 50,000.)

Four numbers of scenes at equal steps: 1,500 of 8 pairs, so that 100 scenes are seen 120 times each,
10,000 hardly more than once, and of 12,000 each once, as of a world without end.

It does not collapse if every seed with 1,000 scenes jumps, and has half of the `follows` that the
largest number has. More is better if every seed with the largest number is above all with 1,000.
"""

import math

import numpy as np

from nanocontrol.experiments.experiment import Chart, Claim, Experiment, Panel
from nanocontrol.experiments.numbers import spoken
from nanocontrol.experiments.results import Results
from nanocontrol.experiments.shared import like_variance

EXPECTED = """
no collapse, not even with 100 scenes: they jump at the same step as all, as the jump comes before
many repetitions; then their held-out loss turns and rises, while `follows` still grows, to two
thirds of the largest. 1,000 scenes are worse by a tenth. 10,000 and 12,000 do not differ: after
1,500 steps nothing was seen often enough to be learnt by heart.
"""

STEPS, BATCH = 1500, 8
EVERY = 250  # steps, between two looks
SIZES = (100, 1000, 10_000, STEPS * BATCH)
TITLES = ("100 scenes", "1000 scenes", "10000 scenes", "each scene once")
ARMS = {
    n: like_variance(title, scenes=n, steps=STEPS, sample_every=EVERY)
    for n, title in zip(SIZES, TITLES)
}


def is_there_no_collapse(results: Results) -> tuple[str, str]:
    name = ARMS[1000].name
    few, most = (results.values(n, "follows") for n in (name, ARMS[SIZES[-1]].name))
    jumps = results.jumps(name)
    ours = f"`follows`: 1000 scenes {spoken(few)}, each once {spoken(most)}"
    learnt = np.isfinite(jumps).all() and min(few) > np.mean(most) / 2
    if learnt:
        ours += f"; jumped before step {EVERY * math.ceil(max(jumps) / EVERY)}"
    return ours, "reproduced" if learnt else "not reproduced"


def is_more_better(results: Results) -> tuple[str, str]:
    found = [results.values(name, "follows") for name in TITLES]
    rises = max(found[1]) < min(found[-1])
    ours = f"`follows`: {results.in_words('follows', TITLES)}"
    return ours, "reproduced" if rises else "not reproduced"


def is_it_learnt_by_heart(results: Results) -> tuple[str, str]:
    """Whether with 100 scenes the held-out loss ends above its lowest, with every seed by more than
    with each scene once."""
    risen: dict[str, list[float]] = {}
    for name in (TITLES[0], TITLES[-1]):
        curves = results.curves(name, "held_out_loss")
        risen[name] = [curve[-1][1] / min(loss for _, loss in curve) for curve in curves]
    few, most = risen.values()
    ours = f"held-out loss at the end by its lowest: {spoken(few)}, each once {spoken(most)}"
    return ours, "reproduced" if min(few) > max(most) else "not reproduced"


EXPERIMENT = Experiment(
    name="data_size",
    expected=EXPECTED,
    arms=tuple(ARMS.values()),
    quick=(TITLES[0], TITLES[1]),
    claims=(
        Claim(
            "with 1,000 pictures it does not collapse",
            "section 4.5, figure 10",
            is_there_no_collapse,
        ),
        Claim("with more data it is better", "section 4.5, figure 10", is_more_better),
        Claim(
            "few pictures are learnt by heart",
            "none (section 3.1 says that the locked base prevents it)",
            is_it_learnt_by_heart,
        ),
    ),
    panels=(Panel("scenes", TITLES),),
    rows={
        "follows": "share of things that are right",
        "score": "score of the condition",
        "held_out_loss": "held-out loss",
        "loss": "loss in training",
    },
    charts=(Chart("at the end", TITLES, ("follows", "score"), joined=True),),
)
