"""Causes that keep a run from following its hints, each checked against evidence.

The evidence comes from the run's folder and pairs (past_run.py): its hints, its captions, the
base's prediction type, the learning rate and the number of steps.
"""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch import Tensor

from nanocontrol.doctor.hints import Looks, Place, could_be, looks_of, place_of, usual
from nanocontrol.doctor.past_run import PastRun, SomePairs
from nanocontrol.nano.conditions import APPEARANCE
from nanocontrol.training.check import FLAT, OTHERS, WHITE, agreement, edge_map
from nanocontrol.training.measure import step_of_jump
from nanocontrol.training.watch import TOO_MANY

PREDICTIONS = "eps", "v"
OWN, OTHER, EMPTY = range(3)  # prompts

ENOUGH = 8  # pairs needed to decide whether hints or captions belong to other pictures
SURE = 3.0  # standard errors
WRONG = 0.5  # a base with the wrong prediction type has a higher loss: about 1, as by chance
FEW = 20  # step losses needed for a mean
DIVERGED = 2.0  # multiple of the base's own loss
LATE = 1.5  # multiple of the expected steps after which the jump is overdue
FAR = 10.0  # factor from the usual learning rate, up or down, that is a fault
# The usual learning rate, and the product of rate and steps at which runs jump, from and to. AdamW
# moves a weight by about the learning rate per step, so the product measures how far weights move.
# Ten healthy runs of nano jumped after 140 to 210 steps (nano/README.md). For Stable Diffusion, the
# original's guide expects 3,000 to 7,000 steps at 1e-5.
NANO_COURSE = 1e-3, 0.14, 0.21
COURSE = 1e-5, 0.03, 0.07


class Finding(NamedTuple):
    verdict: str  # a sentence
    evidence: list[str]
    advice: str


# ------------------------------------------------------------------------------------ hints


def about_hints(
    seen: SomePairs, condition: str | None, made: bool, learnt: bool
) -> Iterator[Finding]:
    """Faults of the hints.

    condition: the one that the run names. made: whether the hints are made from the pictures and
    so cannot be shuffled. learnt: whether the ControlNet has learnt to follow the hints; then they
    are right, however they look.
    """
    n, looks = len(seen.hints), [looks_of(hint) for hint in seen.hints]
    flat = sum(one.deviation < FLAT for one in looks)
    ((_, same),) = Counter(hint.numpy().tobytes() for hint in seen.hints).most_common(1)
    if max(flat, same if n > 1 else 0) > n / 2:
        how = f"{flat} of {n} hints are a single colour"
        if n > 1 and same > n / 2:
            how = f"{same} of {n} hints are the same picture"
        yield Finding(
            "The hints are constant: nothing can be learnt from them.",
            [how],
            "make the hints again, and inspect them (check_data writes a sheet)",
        )
        return
    pairs = zip(seen.images, seen.hints)
    edges = [(edge_map((image + 1) / 2), edge_map(hint)) for image, hint in pairs]
    place = place_of(*zip(*edges))
    margins = np.array([margin(edges, i) for i in range(n)])
    if place.moved:
        yield about_place(place, n)
    yield from about_looks(usual(looks), n, condition, learnt)
    foreign = n >= ENOUGH and not is_above_zero(margins)
    if foreign and not place.moved and not made and not learnt:
        yield Finding(
            "The hints belong to other pictures: they are shuffled.",
            [
                f"the edges of {n} hints agree with those of their own pictures (correlation "
                f"{place.unmoved:.2f}) no better than with those of others "
                f"({place.unmoved - margins.mean():.2f})",
                "no shift and no scale makes them agree better",
            ],
            "inspect the pairs (check_data writes a sheet): does each hint fit its picture?",
        )


def margin(edges: list[tuple[Tensor, Tensor]], i: int) -> float:
    """How much better hint i agrees with its own picture than with others, in correlation."""
    n, (picture, hint) = len(edges), edges[i]
    others = [agreement(hint, edges[(i + k) % n][0]) for k in range(1, min(OTHERS, n - 1) + 1)]
    return agreement(hint, picture) - float(np.mean(others or [0.0]))


def is_above_zero(values: np.ndarray) -> bool:
    """Whether the values' mean is above zero by at least SURE standard errors."""
    return bool(values.mean() > SURE * values.std() / len(values) ** 0.5)


def about_looks(common: Looks, n: int, condition: str | None, learnt: bool) -> Iterator[Finding]:
    """Faults in the appearance of the hints. common: the medians of n hints. The other arguments
    are those of `about_hints`."""
    if condition in APPEARANCE and could_be(condition, common):
        return
    evidence = [f"the {n} hints look like {described(common)}"]
    if condition in APPEARANCE:
        kind, (thin, thick) = APPEARANCE[condition]
        width = f", {thin:g} or more pixels wide" * (thin > 0) or ", thin" * (thick < 100)
        evidence.append(f"the run's condition is {condition}: {kind}{width}")
    inverted = common._replace(mean=1 - common.mean, white=common.black, black=common.white)
    if common.white > WHITE and not learnt:
        fits = condition in APPEARANCE and could_be(condition, inverted)
        evidence += ["inverted, they would fit"] if fits else []
        yield Finding(
            "The hints are mostly white: they are probably inverted.",
            [f"{common.white:.0%} of a hint is white (median)", *evidence],
            "invert the hints, because lines should be white on black; if dark lines on white are "
            "intended, give sample.py such hints too",
        )
    elif condition in APPEARANCE:
        yield Finding(
            "The hints are of another condition than the run's.",
            evidence,
            "give hints of this condition with --data, or start from a ControlNet for these hints "
            "(--init-control), or from none",
        )


def described(looks: Looks) -> str:
    """The appearance of hints in words and numbers."""
    names = [name for name in APPEARANCE if could_be(name, looks)]
    of = f" (as for {' or '.join(names)})" if names else ""
    lines = f", {looks.width:.1f} pixels wide" if looks.has_lines else ""
    return f"{looks.kind}{lines}{of}; mean {looks.mean:.2f}"


def about_place(place: Place, n: int) -> Finding:
    """The fault of hints that are shifted or scaled. n: the number of pairs compared."""
    shift = [
        f"{abs(share):.0%} of the picture to the {way[share < 0]}"
        for share, way in ((place.right, ("right", "left")), (place.down, ("bottom", "top")))
        if share
    ]
    how = [f"shifted by {' and '.join(shift)}"] if shift else []
    how += [f"scaled by {place.scale:g}"] if place.scale != 1 else []
    return Finding(
        f"The hints are not aligned with their pictures: they are {' and '.join(reversed(how))}.",
        [
            f"the edges of {n} hints agree best with those of their pictures when this is undone: "
            f"correlation {place.agreement:.2f}, instead of {place.unmoved:.2f}; each half of the "
            "pairs gives the same result"
        ],
        "crop and resize hints and pictures in the same way, or make the hints again from these "
        "pictures",
    )


# ------------------------------------------------------------- the base: captions, prediction


def about_captions(losses: np.ndarray) -> Iterator[Finding]:
    """Captions of other pictures. losses [3, n]: the base's, with own prompts, others', and
    none."""
    own, other, empty = losses[:, losses[OWN] != losses[OTHER]]  # without pairs of equal captions
    if len(own) < ENOUGH or not is_above_zero(own - empty) or is_above_zero(other - own):
        return
    yield Finding(
        "The captions belong to other pictures (shuffled), or the base does not know their words.",
        [
            f"the base's loss on {len(own)} pairs is {own.mean():.4f} with their own captions, "
            f"{empty.mean():.4f} with none and {other.mean():.4f} with those of other pairs; "
            "captions that belong to their pictures lower it"
        ],
        "check the list of the pairs: does each caption fit its picture?",
    )


def about_prediction(losses: np.ndarray, prediction: str) -> Iterator[Finding]:
    """A wrong prediction type. losses [2]: the base's, for eps and v; prediction: the run's."""
    ours = PREDICTIONS.index(prediction)
    if losses[ours] < WRONG or losses[1 - ours] > losses[ours] / 2:
        return
    right = PREDICTIONS[1 - ours]
    yield Finding(
        f"The base predicts {right}, but the run was trained with {prediction}.",
        [
            f"the base's loss is {losses[ours]:.2f} as the run uses it, and "
            f"{losses[1 - ours]:.3f} with {right}"
        ],
        f"start a new run with --prediction {right}",
    )


# ------------------------------------------------------------------------- rate, steps, course


def about_rate(
    run: PastRun, base_loss: float, course: tuple[float, float, float]
) -> Iterator[Finding]:
    """A learning rate that is too high. base_loss: the base's, without a ControlNet."""
    rate, skipped = run.settings["lr"], len(run.measured("skipped"))
    losses = [loss for _, loss in run.measured("loss")]
    last = losses[-max(FEW, len(losses) // 5) :]
    held_out = [loss for _, loss in run.measured("held_out_loss")]
    evidence = [f"--lr {rate:g}; usual with this base: {course[0]:g}"]
    late = np.mean(last) if len(last) >= FEW else 0.0
    if late > DIVERGED * base_loss:
        own = f"the base's own {base_loss:.3f}"
        evidence.append(f"the mean of the last {len(last)} losses is {late:.3f}, {own}")
    if len(held_out) > 1 and held_out[-1] > DIVERGED * held_out[0]:
        evidence.append(f"the held-out loss rose from {held_out[0]:.3f} to {held_out[-1]:.3f}")
    if any(entry.get("held_out_loss", 0) is None for entry in run.log):
        evidence.append("the held-out loss is not finite")
    if skipped >= max(TOO_MANY, run.steps // 100):  # fp16 skips a few while it finds its scale
        evidence.append(f"{skipped} steps were skipped: losses or gradients were not finite")
    if len(evidence) > 1 or not run.follows and rate > FAR * course[0]:
        yield Finding(
            "The learning rate is too high.",
            [*evidence, *gain_of(run)],
            f"start a new run with --lr {course[0]:g}",
        )


def about_steps(run: PastRun, course: tuple[float, float, float]) -> Iterator[Finding]:
    """A learning rate that is too low, or too few steps, for a run that does not follow yet."""
    if run.follows:
        return
    rate, steps = run.settings["lr"], run.settings["steps"]
    usual_rate, early, late = course
    way = [
        f"--lr {rate:g} (usual with this base: {usual_rate:g}), {run.steps} steps done: a weight "
        f"moves by about the learning rate per step, so none has moved by more than about "
        f"{run.way:.2g}; runs jump at about {early:g} to {late:g}"
    ]
    if rate < usual_rate / FAR:
        yield Finding(
            "The learning rate is too low.",
            [*way, *gain_of(run)],
            f"start a new run with --lr {usual_rate:g}",
        )
    elif rate <= FAR * usual_rate and rate * steps < early / 2:
        yield Finding(
            "There are too few steps.",
            [*way, f"--steps {steps}", *gain_of(run)],
            f"train for {early / rate:,.0f} to {late / rate:,.0f} steps or more",
        )


def course_of(run: PastRun, course: tuple[float, float, float]) -> Finding:
    """The progress of a run in which no fault was found."""
    first, last = (way / run.settings["lr"] for way in course[1:])
    expected = f"the jump comes after about {first:,.0f} to {last:,.0f} steps at this rate"
    evidence = gain_of(run)
    if scores := run.measured("score"):
        (_, at_first), (step, now) = scores[0], scores[-1]
        evidence.append(f"score {at_first:.2f} at first, {now:.2f} at step {step}")
    fine_tuned = run.follows and run.settings.get("init_control")  # maybe from step 0 on
    if run.held_out < 2 or run.steps < first / 15 and not fine_tuned:
        few = f"{run.steps} steps are done and {run.held_out} held-out pairs are measured"
        return Finding(
            "There is too little to judge by.",
            [*evidence, few],
            f"train on, with four pairs or more; {expected}",
        )
    if run.follows:
        jump = step_of_jump(run.measured) if run.metrics else None  # halfway to the last value
        when = f", since the jump at about step {jump}" if jump else ""
        return Finding(
            f"The run looks healthy: it follows its hints{when}.",
            evidence,
            "nothing; with more steps it follows more closely. If it does not follow one of your "
            "hints, use --hint",
        )
    evidence.append(f"{run.steps} of {run.settings['steps']} steps are done")
    if run.steps < LATE * last:
        return Finding(
            "The run looks healthy so far: it is before the jump.",
            evidence,
            f"{'start a longer run' if run.metrics else 'wait'}; {expected}",
        )
    return Finding(
        "The run does not follow its hints, and no cause was found.",
        [*evidence, "hints, captions, prediction and learning rate look right", expected],
        "try larger batches (--accumulate) and more pairs",
    )


def gain_of(run: PastRun) -> list[str]:
    if run.gain is None:
        return ["the control gain was not measured"]
    gain, loss = run.gain
    return [
        f"control gain {gain:.4f}: other pairs' hints raise the held-out loss of {loss:.4f} by "
        f"{gain / loss:.0%} (a ControlNet that follows: by {run.enough:.0%} or more)"
    ]
