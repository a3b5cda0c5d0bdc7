"""Concatenation in a ControlNet's place.

The paper (section 4.3) compares a ControlNet with Stable Diffusion 2's depth model: users tell
their pictures apart with a precision of 0.52, that is hardly. That model appends the depth map to
the U-Net's input and trains all of it; it took a cluster and 12 million pairs, the ControlNet
200,000 pairs and one RTX 3090 Ti for five days.

Here both start from nano. At equal compute: a step of this one has fewer multiplications
(compute.py counts them), so it is given more steps. With much data, 1,600 scenes, and little, 100.
What it forgets is measured as in `unlocked`. With the ControlNets' learning rate (nano itself was
trained at nearly the same), and with a fifth of it; half of it was added when both had been seen,
as the one harmed the base and with the other little was learnt.

An arm is below another where all of its seeds are. The hint is the same, as is what is seen of
it: no line is lost by the latent's size (concatenated.py).
"""

import numpy as np

from nanocontrol.experiments.afterwards import Afterwards, what_is_left
from nanocontrol.experiments.concatenated import concatenated
from nanocontrol.experiments.experiment import Chart, Claim, Experiment, Panel
from nanocontrol.experiments.results import Results
from nanocontrol.experiments.shared import LEFT, VARIANCE, like_variance

EXPECTED = """
concatenation learns sooner and more gradually, as the hint goes through the whole network from the
first step on and nothing has to be found before something else moves; at equal compute it ends
level with the ControlNet with much data, and above it at equal pairs, too. With little data it is
worse, as the whole base can learn 100 scenes by heart. Without a hint it makes worse pictures than
nano: its loss is a tenth above the base's, with little data more.
"""

STEPS = 458  # as much arithmetic as 400 of the ControlNet's; a test holds it
LITTLE = 100
SETTINGS = {"unlock": "all", "steps": STEPS}
CONCATENATION = like_variance("concatenation", concatenated(), **SETTINGS)
HALF = like_variance("concatenation, half", concatenated(), **SETTINGS, lr=5e-4)
SLOW = like_variance("concatenation, a fifth", concatenated(), **SETTINGS, lr=2e-4)
FEW = like_variance("variance, 100 scenes", scenes=LITTLE)
CONCATENATION_FEW = like_variance(
    "concatenation, 100 scenes", concatenated(), **SETTINGS, scenes=LITTLE
)
ARMS = (VARIANCE, CONCATENATION, HALF, SLOW, FEW, CONCATENATION_FEW)
NAMES = tuple(arm.name for arm in ARMS)
RATES = (CONCATENATION.name, HALF.name, SLOW.name)
MUCH_DATA, LITTLE_DATA = (VARIANCE.name, *RATES), (FEW.name, CONCATENATION_FEW.name)
TITLES = {VARIANCE.name: "ControlNet", FEW.name: "ControlNet, 100 scenes"}


def is_it_as_good(results: Results) -> tuple[str, str]:
    """The better of its rates, by the mean of `follows`."""
    best = max(RATES, key=lambda name: np.mean(results.values(name, "follows")))
    said, below = [], {}
    for number in "follows", "score":
        control, other = (results.values(name, number) for name in (VARIANCE.name, best))
        said.append(f"`{number}`: {results.in_words(number, MUCH_DATA, 2, TITLES)}")
        below[number] = max(control) < min(other)
    verdict = "reproduced by `follows`, not by the score" if below["score"] else "reproduced"
    return "; ".join(said), "not reproduced" if below["follows"] else verdict


def is_it_worse_with_little(results: Results) -> tuple[str, str]:
    control, other = (results.values(arm.name, "follows") for arm in (FEW, CONCATENATION_FEW))
    ours = f"`follows`: {results.in_words('follows', LITTLE_DATA, 2, TITLES)}"
    return ours, "reproduced" if max(other) < min(control) else "not reproduced"


def does_it_forget(results: Results) -> tuple[str, str]:
    locked = max(results.values(VARIANCE.name, "base_loss"))
    others = (*RATES, CONCATENATION_FEW.name)
    more = all(min(results.values(name, "base_loss")) > locked for name in others)
    text = results.in_words("base_loss", (VARIANCE.name, *others), 4, TITLES)
    ours = f"loss without hint: {text}"
    return ours, "reproduced" if more else "not reproduced"


EXPERIMENT = Experiment(
    name="concatenation",
    expected=EXPECTED,
    arms=ARMS,
    quick=(VARIANCE.name, CONCATENATION.name),
    claims=(
        Claim(
            "a ControlNet is as good as concatenation with all of the base trained",
            "section 4.3 (users tell them apart with a precision of 0.52)",
            is_it_as_good,
        ),
        Claim(
            "with little data it is better",
            "section 4.3 (200,000 pairs against 12 million)",
            is_it_worse_with_little,
        ),
        Claim(
            "concatenation forgets what the base could do without a hint",
            "section 3.1 (no experiment)",
            does_it_forget,
        ),
    ),
    panels=(Panel("1,600 scenes", MUCH_DATA), Panel("100 scenes", LITTLE_DATA)),
    afterwards=Afterwards(what_is_left, pictures=1),
    numbers=LEFT,
    titles=TITLES,
    charts=(
        Chart("followed", NAMES, ("follows", "score")),
        Chart("without control", NAMES, ("background", "colours", "kinds")),
        Chart("without control", NAMES, ("base_loss",)),
    ),
)
