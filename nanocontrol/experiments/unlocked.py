"""Locked, decoder unlocked, all unlocked.

The paper (section 3.1): the base is locked, so that what it learnt from billions of pictures is not
lost, and a small data set does not make it overfit. The original's guide to training: where many
pictures of one kind are there, the decoder may be unlocked (`sd_locked = False`), with a fifth of
the learning rate, 2e-6.

Two questions. Does an unlocked base follow better? What does it forget: used without control, what
of their prompts do its pictures show (as nanocontrol.nano.evaluate counts it), and how large is its
loss? Both at the ControlNets' learning rate (nano itself was trained at nearly the same), and at a
fifth of it.

It follows better if every seed's `follows` is above every one of the locked base's; it forgets if
every seed's loss is.
"""

from nanocontrol.experiments.afterwards import Afterwards, what_is_left
from nanocontrol.experiments.experiment import Chart, Claim, Experiment, Panel
from nanocontrol.experiments.results import Results
from nanocontrol.experiments.shared import LEFT, VARIANCE, like_variance

EXPECTED = """
unlocked bases follow better, all more than the decoder, since 400 steps are few and more weights
can move; at a fifth of the rate by little. All forget: the loss without control rises in every
unlocked arm, by a tenth with everything unlocked, less with the decoder. Pictures without control
still show the prompted kinds and colours in nine of ten cases, as the scenes are those that nano
was made of: this world is too small to show a base that loses its other worlds.
"""

FIFTH = 2e-4
DECODER, ALL = (like_variance(f"{part} unlocked", unlock=part) for part in ("decoder", "all"))
SLOW_DECODER, SLOW_ALL = (
    like_variance(f"{part} unlocked, a fifth", unlock=part, lr=FIFTH) for part in ("decoder", "all")
)
UNLOCKED = (DECODER, ALL, SLOW_DECODER, SLOW_ALL)
ARMS = (VARIANCE, *UNLOCKED)
NAMES = tuple(arm.name for arm in ARMS)
TITLES = {VARIANCE.name: "locked"}


def compared(results: Results, number: str, digits: int) -> tuple[str, list[str]]:
    """In words, and the unlocked arms that have more of it with every seed."""
    locked = max(results.values(VARIANCE.name, number))
    more = [name for name in NAMES[1:] if min(results.values(name, number)) > locked]
    return results.in_words(number, NAMES, digits, TITLES), more


def do_they_forget(results: Results) -> tuple[str, str]:
    text, more = compared(results, "base_loss", 4)
    return f"loss without control: {text}", "reproduced" if len(more) == 4 else "not reproduced"


def do_pictures_lose(results: Results) -> tuple[str, str]:
    """Whether with everything unlocked fewer pictures show the prompted kinds, with every seed."""
    said = [
        f"{number}: {results.in_words(number, (VARIANCE.name, DECODER.name, ALL.name), 2, TITLES)}"
        for number in ("colours", "kinds")
    ]
    locked, unlocked = (results.values(arm.name, "kinds") for arm in (VARIANCE, ALL))
    return "; ".join(said), "reproduced" if max(unlocked) < min(locked) else "not reproduced"


def do_they_follow_better(results: Results) -> tuple[str, str]:
    text, more = compared(results, "follows", 2)
    return f"`follows`: {text}", "reproduced" if {*more} & {
        DECODER.name,
        SLOW_DECODER.name,
    } else "not reproduced"


EXPERIMENT = Experiment(
    name="unlocked",
    expected=EXPECTED,
    arms=ARMS,
    quick=(VARIANCE.name, ALL.name),
    claims=(
        Claim("a base that is not locked forgets", "section 3.1 (no experiment)", do_they_forget),
        Claim(
            "its pictures without control show it", "section 3.1 (no experiment)", do_pictures_lose
        ),
        Claim(
            "with the decoder unlocked it follows better",
            "the original's docs/train.md (no numbers)",
            do_they_follow_better,
        ),
    ),
    panels=(
        Panel("learning rate 0.001", NAMES[:3]),
        Panel("a fifth of it", (NAMES[0], *NAMES[3:])),
    ),
    afterwards=Afterwards(what_is_left, pictures=1),
    numbers=LEFT,
    titles=TITLES,
    charts=(
        Chart("followed", NAMES, ("follows", "score")),
        Chart("without control", NAMES, ("background", "colours", "kinds")),
        Chart("without control", NAMES, ("base_loss",)),
    ),
)
