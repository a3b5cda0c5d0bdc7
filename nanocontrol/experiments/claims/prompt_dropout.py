"""Prompt dropout.

The paper (section 3.3): half of the prompts are dropped in training, which increases the ability to
find meanings in the hints themselves, in the prompt's place. It has no experiment. Users argue: too
much for a short training (GeroldMeisinger/control-edgedrawing).

0, 25, 50, 75 and 100 % of the prompts are dropped. Two effects: how many objects are drawn without
a prompt as the hint has them (kind and place; nobody can know the colour), and how many pictures
with a prompt show all of its colours.

Two of them differ where the ranges of their seeds do not meet.

Expected before the first run:
without prompts the share of right things rises with the dose, most from 0 to 25 %, little beyond
50 %: a quarter of the pairs is enough to learn to read the hints. With prompts the dose costs
little until 75 %; at 100 % the control has never seen a prompt, still the base has its own way to
it, and nine of ten pictures show the colours. What it costs is to know which thing has which:
`follows` falls.

Found:
Without a prompt the share of right objects rises with the dropout: by more than 25 % already when
25 % are dropped, and by a fifth from 75 to 100 %, which was not expected. With a prompt, dropping
up to 50 % costs nothing visible; from 75 % on the score is lower on average. Nearly all pictures
show their prompts' colours, even where the ControlNet never saw a prompt, so this number could not
show a small loss. 50 % is a good value here too, and nothing special: 25 % is nearly as good
without a prompt. Seeds 1 and 2 ran on a GPU, except with 50 %; each of the others alone gives the
same verdicts.
"""

from functools import partial

import numpy as np

from nanocontrol import ControlNet, StableDiffusion
from nanocontrol.experiments.claims.shared import VARIANCE, like_variance
from nanocontrol.experiments.frame import Chart, Experiment, Numbers, Panel, comparison, names_of
from nanocontrol.experiments.measure import detector, held_out_scenes_of, placed
from nanocontrol.experiments.results import all_below, listed
from nanocontrol.nano.evaluate import shows_colours
from nanocontrol.nano.scores import score
from nanocontrol.training.measure import make_pictures

NONE, QUARTER, MOST, ALL = (
    like_variance(f"{share} % emptied", drop_prompt=share / 100) for share in (0, 25, 75, 100)
)
VARIANTS = (NONE, QUARTER, VARIANCE, MOST, ALL)
NAMES = names_of(*VARIANTS)
DOSES = dict(zip(NAMES, ("0 %", "25 %", "50 %", "75 %", "100 %")))
each = partial(listed, names=NAMES, titles=DOSES)


def by_hint_and_by_prompt(sd: StableDiffusion, control: ControlNet) -> Numbers:
    """How well the hint is followed without a prompt; whether a prompt's colours are there."""
    pairs, scenes = held_out_scenes_of(sd)
    alone = make_pictures(sd, [""] * len(scenes), [(control, pairs.hints, 1.0)])
    both = make_pictures(sd, pairs.prompts, [(control, pairs.hints, 1.0)])
    return {
        "score_alone": score("canny", alone, scenes, detector()),
        "placed_alone": placed("canny", alone, scenes),
        "placed": placed("canny", both, scenes),
        "colours": float(np.mean(shows_colours(both, scenes))),
    }


@comparison(
    "section 3.3 (no experiment)", *each("right kind and place without a prompt", "placed_alone")
)
def half_helps_without(*by_dose: list[float]) -> bool:
    """Dropping half of the prompts teaches it to read the hint."""
    return all_below(by_dose[0], by_dose[2])


@comparison("GeroldMeisinger/control-edgedrawing", *each("`follows`", "follows"))
def half_is_too_much(none: list[float], quarter: list[float], *more: list[float]) -> bool:
    """Half is too much in a short training."""
    return all_below(more[0], none) and all_below(more[0], quarter)


@comparison("none", *each("all prompted colours there", "colours"))
def dropping_costs_colours(*by_dose: list[float]) -> bool:
    """Dropping prompts costs obedience to prompts."""
    return all_below(by_dose[-1], by_dose[0])


EXPERIMENT = Experiment(
    variants=VARIANTS,
    claims=(half_helps_without, half_is_too_much, dropping_costs_colours),
    panels=(Panel("prompts dropped", NAMES),),
    afterwards=by_hint_and_by_prompt,
    numbers={
        "placed_alone": "without prompt: kind and place",
        "score_alone": "without prompt: score",
        "placed": "with: kind and place",
        "colours": "with: colours",
    },
    titles={name: f"{dose} dropped" for name, dose in DOSES.items()},
    charts=(
        Chart("without a prompt", NAMES, ("placed_alone", "score_alone"), joined=True),
        Chart("with the prompt", NAMES, ("placed", "colours", "follows"), joined=True),
    ),
)
