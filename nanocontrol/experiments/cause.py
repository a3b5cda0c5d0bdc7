"""Why does it converge suddenly, and so late? Explanations in print, and one that is not:

  x0-supervision (2604.05761): the loss of the noise gives the noisy steps, where the layout is
      decided, almost no weight; times 1/SNR it converges up to twice as soon.
  min-SNR (2303.09556): the steps of little noise get too much weight.
  T2I-Adapter (2302.08453, section 3.4): the noisy t should be drawn more often.
  ControlNeXt (2408.06070): it is the zero convolutions; cross normalization in their place.
  Ours: with PyTorch's first weights the condition encoder passes on next to nothing of the hint.
  Against ours: lllyasviel/ControlNet#373 and #752, where the condition encoder was one single zero
      convolution, so that nothing could fade, and nothing was learnt in 50,000 steps.

Main effects. The condition encoder's first weights are compared with the paper's start (`plain`),
of which is known that it waits long. All else differs in one thing from the arm that jumps soon
(`variance`), where a change of the step of the jump can be seen both ways; Gaussian convolutions
and a larger rate also from the plain one. Then the two strongest together. An explanation holds
here if its arm jumps sooner with every seed.
"""

import math

import numpy as np

from nanocontrol import ControlNet, StableDiffusion
from nanocontrol.experiments.arm import PLAIN, SOONER, WAITING, Arm
from nanocontrol.experiments.beginnings import half_as_deep, one_zero_convolution, variance_keeping
from nanocontrol.experiments.cross_norm import cross_norm
from nanocontrol.experiments.experiment import Claim, Experiment, Panel
from nanocontrol.experiments.first_steps import STEPS, first_gradients
from nanocontrol.experiments.numbers import spoken
from nanocontrol.experiments.results import Results
from nanocontrol.experiments.shared import (
    BY_RATE,
    GAUSSIAN,
    GAUSSIAN_SOON,
    SOON,
    VARIANCE,
    like_variance,
)
from nanocontrol.experiments.weighting import late, like_x0, min_snr

EXPECTED = """
the condition encoder's first weights decide most: every variance-keeping start jumps at least three
times sooner than PyTorch's, the encoder of half the depth in between. The learning rate comes next.
Weights of the loss and draws of t change the step of the jump by less than a third; more weight on
the noisy t brings it a little sooner. Gaussian convolutions jump sooner than zero ones, since the
encoder has a gradient from the first step on, and cross normalization as they do; from the paper's
start they and four times the rate bring it sooner, too. The one zero convolution learns here: it
has no depth to fade in, and what it lacks is only capacity.
"""

GAINS = {
    1.0: Arm("variance x1", SOONER, variance_keeping(1.0)),
    1.4: VARIANCE,
    2.0: Arm("variance x2", SOONER, variance_keeping(2.0)),
}
HALF = Arm("half as deep", start=half_as_deep)
ONE_ZERO = Arm("one zero convolution", start=one_zero_convolution)
FASTER = Arm("plain lr 0.004", WAITING | {"lr": 4e-3})
CROSS_NORM = like_variance("cross norm", cross_norm())
LIKE_X0, MIN_SNR = Arm("like x0", SOON, weight=like_x0), Arm("min-SNR", SOON, weight=min_snr)
LATE = Arm("noisy t", SOON, draw=late)


def together(a: Arm, b: Arm) -> Arm:
    """Both changes in one arm, a's first."""

    def start(sd: StableDiffusion, control: ControlNet) -> None:
        a.start(sd, control)
        b.start(sd, control)

    return Arm(
        f"{a.name} and {b.name}",
        dict(a.settings) | dict(b.settings),
        start,
        lambda t: a.weight(t) * b.weight(t),
        lambda t: b.draw(a.draw(t)),
    )


# Named when the main effects of the first seed were known: of the arms that can be joined the two
# with the earliest jumps (two weights of the loss would contradict each other).
STRONGEST = together(LIKE_X0, LATE)

RIVAL_ARMS = (GAUSSIAN_SOON, CROSS_NORM, LIKE_X0, MIN_SNR, LATE)
FIRST_WEIGHTS = (PLAIN, *GAINS.values(), HALF, ONE_ZERO)
ARMS = (*FIRST_WEIGHTS, *RIVAL_ARMS, *(BY_RATE[5e-4], BY_RATE[2e-3], GAUSSIAN, FASTER), STRONGEST)


def does_it_come_sooner(results: Results, than: str, *arms: str) -> tuple[str, str]:
    """Whether every seed of these arms jumps before the first seed of `than` does. What ended
    without a jump, but before that step, leaves it open."""
    reference = min(results.jumps(than))
    jumps = [
        (step, results.arms[name]["settings"]["steps"])
        for name in arms
        for step in results.jumps(name)
    ]
    ours = f"jumps at step: {results.in_words('jump', (than, *arms), 0)}"
    if any(math.isinf(step) and steps < reference for step, steps in jumps):
        return ours, "untestable: too few steps"
    sooner = all(step < reference for step, _ in jumps)
    return ours, "reproduced" if sooner else "not reproduced"


def sooner(claim: str, evidence: str, than: Arm, *arms: Arm) -> Claim:
    names = tuple(arm.name for arm in (than, *arms))
    return Claim(claim, evidence, lambda results: does_it_come_sooner(results, *names), names)


def does_it_never_learn(results: Results) -> tuple[str, str]:
    learnt = np.isfinite(results.jumps(ONE_ZERO.name)).any()
    ours = f"jumps at step {spoken(results.values(ONE_ZERO.name, 'jump'), 0)}; score at the end "
    ours += spoken(results.values(ONE_ZERO.name, "score"))
    return ours, "not reproduced" if learnt else "reproduced"


def gradients() -> dict:
    """Of a few arms, the norm of each part's gradient in the first steps."""
    rows = {}
    for arm in (PLAIN, VARIANCE, GAUSSIAN, CROSS_NORM, ONE_ZERO):
        for part, norms in first_gradients(arm).items():
            rows[f"{arm.name}: {part}"] = norms
    return {"head": ["gradient of", *(f"step {i + 1}" for i in range(STEPS))], "rows": rows}


def panel(title: str, *arms: Arm) -> Panel:
    return Panel(title, tuple(arm.name for arm in arms))


RIVALS = (
    ("more weight for the noisy steps brings it sooner", "x0-supervision, 2604.05761", LIKE_X0),
    ("less weight for the steps of little noise brings it sooner", "min-SNR, 2303.09556", MIN_SNR),
    ("drawing the noisy t more often brings it sooner", "T2I-Adapter, section 3.4", LATE),
    ("cross normalization brings it sooner", "ControlNeXt, 2408.06070", CROSS_NORM),
    ("Gaussian convolutions bring it sooner", "none; the paper has them as worse", GAUSSIAN_SOON),
)
EXPERIMENT = Experiment(
    name="cause",
    expected=EXPECTED,
    arms=ARMS,
    quick=(VARIANCE.name, LIKE_X0.name),
    claims=(
        sooner(
            "an encoder that passes the hint on from the start brings it sooner",
            "none in print",
            *(PLAIN, *GAINS.values(), HALF),
        ),
        *(sooner(claim, where, VARIANCE, arm) for claim, where, arm in RIVALS),
        sooner("a larger learning rate brings it sooner", "none", VARIANCE, BY_RATE[2e-3]),
        sooner("like x0 with the noisy t is sooner than like x0", "none", LIKE_X0, STRONGEST),
        sooner(
            "from the paper's start Gaussian convolutions bring it sooner, too",
            "none",
            *(PLAIN, GAUSSIAN),
        ),
        sooner(
            "from the paper's start four times the rate brings it sooner, too",
            "none",
            *(PLAIN, FASTER),
        ),
        Claim(
            "with one zero convolution as condition encoder nothing is learnt",
            "lllyasviel/ControlNet#373, #752",
            does_it_never_learn,
            (ONE_ZERO.name,),
        ),
    ),
    panels=(
        panel("first weights of the encoder", *FIRST_WEIGHTS),
        panel("what joins the networks", VARIANCE, GAUSSIAN_SOON, CROSS_NORM),
        panel("loss and t", VARIANCE, LIKE_X0, MIN_SNR, LATE, STRONGEST),
        panel("learning rate", *BY_RATE.values()),
        panel("from the paper's start", PLAIN, GAUSSIAN, FASTER),
    ),
    rows={
        "follows": "share of things that are right",
        "score": "score of the condition",
        "spread_last": "spread after the last SiLU",
        "gradient_encoder": "gradient of the encoder",
        "gradient_zeros": "gradient of the zero convolutions",
    },
    once=gradients,
)
