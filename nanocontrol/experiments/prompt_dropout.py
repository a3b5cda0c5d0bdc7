"""Prompt dropout.

The paper (section 3.3): half of the prompts are emptied in training, which increases the ability to
find meanings in the hints themselves, in the prompt's place. It has no experiment. Users argue:
too much for a short training (GeroldMeisinger/control-edgedrawing).

The dose: 0, 25, 50, 75 and 100 % of the prompts emptied. Two effects of it: without a prompt, how
many things are drawn as the hint has them (kind and place; a colour nobody can know); with one, how
many pictures show all of its colours.

Two doses differ where the ranges of their seeds do not meet.
"""

from nanocontrol.experiments.afterwards import Afterwards, by_hint_and_by_prompt
from nanocontrol.experiments.experiment import Chart, Claim, Experiment, Panel
from nanocontrol.experiments.numbers import spoken
from nanocontrol.experiments.results import Results
from nanocontrol.experiments.shared import VARIANCE, like_variance

EXPECTED = """
without prompts the share of right things rises with the dose, most from 0 to 25 %, little beyond
50 %: a quarter of the pairs is enough to learn to read the hints. With prompts the dose costs
little until 75 %; at 100 % the control has never seen a prompt, still the base has its own way to
it, and nine of ten pictures show the colours. What it costs is to know which thing has which:
`follows` falls.
"""

DOSES = {
    0: like_variance("0 % emptied", drop_prompt=0.0),
    25: like_variance("25 % emptied", drop_prompt=0.25),
    50: VARIANCE,
    75: like_variance("75 % emptied", drop_prompt=0.75),
    100: like_variance("100 % emptied", drop_prompt=1.0),
}
NAMES = tuple(arm.name for arm in DOSES.values())
NUMBERS = {
    "placed_alone": "without prompt: kind and place",
    "score_alone": "without prompt: score",
    "placed": "with: kind and place",
    "colours": "with: colours",
}


def in_words(results: Results, number: str) -> str:
    said = (f"{dose} % {spoken(results.values(arm.name, number))}" for dose, arm in DOSES.items())
    return "; ".join(said)


def does_it_help_without(results: Results) -> tuple[str, str]:
    none, half = (results.values(DOSES[dose].name, "placed_alone") for dose in (0, 50))
    ours = f"right kind and place without a prompt: {in_words(results, 'placed_alone')}"
    return ours, "reproduced" if min(half) > max(none) else "not reproduced"


def is_half_too_much(results: Results) -> tuple[str, str]:
    """Whether with prompts half of them emptied is worse than none and a quarter, in `follows`."""
    less, half = [results.values(DOSES[d].name, "follows") for d in (0, 25)], NAMES[2]
    ours = f"`follows`: {in_words(results, 'follows')}"
    worse = all(max(results.values(half, "follows")) < min(values) for values in less)
    return ours, "reproduced" if worse else "not reproduced"


def does_it_cost_colours(results: Results) -> tuple[str, str]:
    """Whether the most that can be emptied makes fewer pictures show their prompt's colours."""
    none, all_ = (results.values(DOSES[dose].name, "colours") for dose in (0, 100))
    ours = f"all prompted colours there: {in_words(results, 'colours')}"
    return ours, "reproduced" if max(all_) < min(none) else "not reproduced"


EXPERIMENT = Experiment(
    name="prompt_dropout",
    expected=EXPECTED,
    arms=tuple(DOSES.values()),
    quick=(NAMES[0], NAMES[4]),
    claims=(
        Claim(
            "half of the prompts emptied makes it find meanings in the hint",
            "section 3.3 (no experiment)",
            does_it_help_without,
        ),
        Claim(
            "half is too much in a short training",
            "GeroldMeisinger/control-edgedrawing",
            is_half_too_much,
        ),
        Claim("what is emptied costs obedience to prompts", "none", does_it_cost_colours),
    ),
    panels=(Panel("prompts emptied", NAMES),),
    afterwards=Afterwards(by_hint_and_by_prompt, pictures=2),
    numbers=NUMBERS,
    titles={VARIANCE.name: "50 % emptied"},
    charts=(
        Chart("without a prompt", NAMES, ("placed_alone", "score_alone"), joined=True),
        Chart("with the prompt", NAMES, ("placed", "colours", "follows"), joined=True),
    ),
)
