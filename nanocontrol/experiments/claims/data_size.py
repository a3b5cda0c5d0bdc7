"""The size of the data.

The paper (section 4.5, figure 10): with 1,000 pictures the training does not collapse, and the
model makes something that can be recognised; with 50,000 and 3 million it is better. It shows one
picture of each. (Abstract: robust with less than 50,000.)

Four numbers of scenes at equal steps: 1,500 of 8 pairs, so that 100 scenes are seen 120 times each,
10,000 hardly more than once, and 12,000 once each, as from a world without end.

It does not collapse if every seed with 1,000 scenes jumps, and has half of the `follows` that the
largest number has. More is better if every seed with the largest number is above all with 1,000.

Expected before the first run:
no collapse, not even with 100 scenes: they jump at the same step as all, as the jump comes before
many repetitions; then their held-out loss turns and rises, while `follows` still grows, to two
thirds of the largest. 1,000 scenes are worse by a tenth. 10,000 and 12,000 do not differ: after
1,500 steps nothing was seen often enough to be learnt by heart.

Found:
No number of scenes collapses. With 100 scenes almost as many objects are right in the end as with
12,000, where a third less was expected; for the first 1,000 steps they are behind. They are
memorised all the same: the training loss keeps falling, while the held-out loss turns and ends 12 %
above its lowest. From 1,000 scenes on, more data gains nothing in `follows` or the score. nano's
world has few kinds and colours, so a hundred pictures show most of it; a hundred photographs would
not. Variants are evaluated every 250 steps: a jump before step 250 is a point on one straight line,
and says nothing.
"""

import math

import numpy as np

from nanocontrol.experiments.claims.shared import like_variance
from nanocontrol.experiments.frame import Chart, Experiment, Panel, claim, comparison, names_of
from nanocontrol.experiments.results import Results, all_below, listed, spoken, verdict

STEPS, EVERY = 1500, 250  # EVERY: between two evaluations
SCENES = {"100 scenes": 100, "1000 scenes": 1000, "10000 scenes": 10_000}
SCENES |= {"each scene once": STEPS * 8}
VARIANTS = tuple(
    like_variance(title, scenes=n, steps=STEPS, sample_every=EVERY) for title, n in SCENES.items()
)
NAMES = names_of(*VARIANTS)


@claim("section 4.5, figure 10")
def no_collapse(results: Results) -> tuple[str, str]:
    """With 1,000 pictures it does not collapse."""
    few, most = (results.values(NAMES[i], "follows") for i in (1, -1))
    jumps = results.jumps(NAMES[1])
    ours = f"`follows`: 1000 scenes {spoken(few)}, each once {spoken(most)}"
    learnt = bool(np.isfinite(jumps).all() and min(few) > np.mean(most) / 2)
    if learnt:
        ours += f"; jumped before step {EVERY * math.ceil(max(jumps) / EVERY)}"
    return ours, verdict(learnt)


@comparison("section 4.5, figure 10", *listed("`follows`", "follows", NAMES))
def more_is_better(hundred: list[float], thousand: list[float], *more: list[float]) -> bool:
    """With more data it is better."""
    return all_below(thousand, more[-1])


@claim("none (section 3.1 says that the locked base prevents it)")
def few_are_memorised(results: Results) -> tuple[str, str]:
    """Few pictures are memorised.

    Holds if with 100 scenes the held-out loss ends above its lowest, with every seed by more than
    with each scene once.
    """
    risen = []
    for name in (NAMES[0], NAMES[-1]):
        curves = results.curves(name, "held_out_loss")
        risen.append([curve[-1][1] / min(loss for _, loss in curve) for curve in curves])
    few, most = risen
    ours = f"held-out loss at the end by its lowest: {spoken(few)}, each once {spoken(most)}"
    return ours, verdict(all_below(most, few))


EXPERIMENT = Experiment(
    variants=VARIANTS,
    claims=(no_collapse, more_is_better, few_are_memorised),
    panels=(Panel("scenes", NAMES),),
    curves=("follows", "score", "held_out_loss", "loss"),
    charts=(Chart("at the end", NAMES, ("follows", "score"), joined=True),),
)
