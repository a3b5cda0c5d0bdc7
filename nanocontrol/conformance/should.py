"""Checks of what a ControlNet should do to work with the released weights and others' programs."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from numpy import ndarray as Array

from nanocontrol.conformance.adapter import SamplingRun
from nanocontrol.conformance.bench import SAMPLED_STEPS, Bench, Found, explained, noised
from nanocontrol.conformance.cases import CONTROL, RESIDUALS, error, normal, shapes, weights

# How a program can read a hint's colour [3], RGB in [0, 1], before its first convolution.
ORDERS = {"RGB": 1, "BGR": -1}
RANGES: dict[str, Callable[[Array], Array]] = {
    " in [0, 1]": lambda c: c,
    " in [-1, 1]": lambda c: 2 * c - 1,
    ", inverted": lambda c: 1 - c,
    " in 0 to 255": lambda c: 255 * c,
}


def hint_is_read(bench: Bench, part: str, idea: str) -> Found:
    """Whether the hint is read in a way that has this part.

    The first convolution sees single pixels only, and the hint has one colour. So its output is
    the same number everywhere, which a bias gives as well, with weights of zero.
    """
    adapter, colour = bench.named(), np.array([0.9, 0.4, 0.2])
    hint = np.broadcast_to(colour[:, None, None], bench.given.hint.shape).copy()
    first, last = (CONTROL + f"input_hint_block.{i}." for i in (0, 14))
    pixel, bias = np.zeros(shapes()[first + "weight"]), normal("probe.bias", 16)
    pixel[:, :, 1, 1] = normal("probe", *pixel.shape[:2])
    # The stored weights have a faint last convolution.
    adapter.load({last + "weight": 100 * weights()[last + "weight"]})
    adapter.load({first + "weight": pixel, first + "bias": bias})
    made, errors = bench.residuals(hint), {}
    for order, step in ORDERS.items():
        for name, read in RANGES.items():
            equal = bias + pixel[:, :, 1, 1] @ read(colour[::step])
            adapter.load({first + "weight": np.zeros(pixel.shape), first + "bias": equal})
            each = [error(a, b) for a, b in zip(made, bench.residuals(hint))]
            errors[f"it is read as {order}{name}"] = max(each)
    return explained(idea, errors, bench.rounding, [name for name in errors if part in name])


def hint_is_rgb(bench: Bench) -> Found:
    return hint_is_read(bench, "RGB", "the hint's red and blue should not be exchanged")


def hint_in_0_1(bench: Bench) -> Found:
    return hint_is_read(bench, "in [0, 1]", "the hint should be read in [0, 1]")


def hint_encoded_once(bench: Bench) -> Found:
    adapter = bench.loaded()
    bench.sampled(5, 1.0)
    if adapter.hints_encoded is None:
        raise NotImplementedError("hints_encoded")
    times = adapter.hints_encoded
    return times, 1, f"the hint is encoded {times} times in 5 steps; it is the same at every step"


def rows_do_not_mix(bench: Bench) -> Found:
    """Guidance in one batch or in two gives equal results if each row of a batch is computed as if
    it were alone."""
    adapter, given, worst = bench.loaded(), bench.given, 0.0

    def outputs(rows: slice) -> list[Array]:
        x, hint, t, context = (a[rows] for a in (given.x, given.hint, given.t, given.context))
        residuals = [*adapter.residuals(x, hint, t, context)]
        controlled = adapter.predict(x, t, context, [*residuals])
        return [adapter.base(x, t, context), *residuals, controlled]

    together = outputs(slice(None))
    for i in range(len(given.x)):
        row = slice(i, i + 1)
        worst = max(worst, *(error(a, b[row]) for a, b in zip(outputs(row), together)))
    return worst, 2 * bench.rounding, "a picture depends on the others in its batch"


# ----------------------------------------------------------------------------------- sampling


def ddim_steps(bench: Bench) -> Found:
    return ddim(bench, "step")


def ddim_last_alpha(bench: Bench) -> Found:
    need_known_rule(bench)
    return ddim(bench, "last alpha")


def ddim(bench: Bench, part: str) -> Found:
    """Whether sampling follows a rule that has no mistake in this part."""
    _, errors = bench.rule
    right = [name for name in errors if part not in name]
    allowed = bench.allowed_after(max(SAMPLED_STEPS))
    return explained("sampling is not the original's DDIM", errors, allowed, right)


def need_known_rule(bench: Bench) -> None:
    """Raises NotImplementedError if sampling follows no known rule of DDIM, on which a check
    depends."""
    if min(bench.rule[1].values()) > bench.allowed_after(max(SAMPLED_STEPS)):
        raise NotImplementedError("known rule of DDIM: see ddim_steps")


SCALE, GUIDED_STEPS = 3.0, 2


def compare_guidance(bench: Bench, idea: str, guess: bool, known: dict[str, tuple]) -> Found:
    """Compare sampling with guidance with what `Bench.guided` gives, for each of these first three
    arguments."""
    rule, _ = bench.rule
    bench.loaded()
    made, errors = bench.sampled(GUIDED_STEPS, SCALE, guess), {}
    for name, how in known.items():
        expected = bench.reference(rule, partial(bench.guided, *how), GUIDED_STEPS)
        errors[name] = error(made, expected)
    # The outputs' errors are multiplied by SCALE and SCALE - 1.
    allowed = (2 * SCALE - 1) * bench.allowed_after(GUIDED_STEPS)
    if min(errors.values()) > allowed:
        need_known_rule(bench)
    return explained(idea, errors, allowed)


def guidance(bench: Bench) -> Found:
    known = {
        "": (SCALE, 1.0, 1.0),
        "the halves with and without the prompt are exchanged": (1 - SCALE, 1.0, 1.0),
        "its scale is one too large: 1 should be the prompt alone": (SCALE + 1, 1.0, 1.0),
        "it is not applied: the output with the prompt is used alone": (1.0, 1.0, 1.0),
    }
    return compare_guidance(bench, "guidance is not e_uncond + s (e_cond - e_uncond)", False, known)


def guess_mode(bench: Bench) -> Found:
    """The weight of residual i is 0.825^(12 - i), and there is no control without the prompt."""
    powers = 0.825 ** np.arange(RESIDUALS - 1, -1, -1.0)
    logarithmic = np.logspace(-1, 0, RESIDUALS)
    known = {
        "": (SCALE, None, powers),
        "they are reversed: the middle block's is 1": (SCALE, None, powers[::-1]),
        "they run from 0.1 to 1 on a logarithmic scale": (SCALE, None, logarithmic),
        "they are all 1": (SCALE, None, 1.0),
        "they control the half without the prompt too": (SCALE, powers, powers),
    }
    return compare_guidance(bench, "guess mode's weights are not 0.825^(12 - i)", True, known)


def sampling_leaves_its_inputs(bench: Bench) -> Found:
    """Arrays have the adapter's own precision here, so that it can use their memory."""
    adapter, given = bench.loaded(), bench.given
    kind, residuals = getattr(adapter, "dtype", "float32"), [r.copy() for r in bench.residuals()]
    arrays = [np.array(a, kind) for a in (given.x, given.context, bench.uncond, given.hint)]
    before = [a.copy() for a in [*arrays, *residuals]]
    x, context, uncond, hint = arrays
    adapter.sample(SamplingRun(x, context, uncond, hint, GUIDED_STEPS, SCALE))
    bench.predict(residuals)
    after = [*arrays, *residuals]
    written = sum(not np.array_equal(a, b) for a, b in zip(before, after))
    written += len(before) - len(after)  # a list of residuals can get shorter
    return written, 0, f"{written} arrays of the caller were overwritten"


# ----------------------------------------------------------------------------------- training


def dropped_prompt_is_the_empty_one(bench: Bench) -> Found:
    adapter, batch = bench.loaded(), bench.batch()
    batch = replace(batch, dropped=np.array([True, False]))
    made, own, (x, targets) = adapter.loss(batch), batch.context, noised(batch)
    empty, zero = (np.where(batch.dropped[:, None, None], c, own) for c in (batch.empty, 0.0))
    known = {  # the encoded prompts that the ControlNet and the base see
        "": (empty, empty),
        "it is replaced by zeros": (zero, zero),
        "prompts are not dropped": (own, own),
        "it is dropped for the ControlNet alone, not for the base": (empty, own),
        "it is dropped for the base alone, not for the ControlNet": (own, empty),
    }
    errors = {}
    for name, (control, base) in known.items():
        residuals = adapter.residuals(x, batch.hint, batch.t, control)
        output = adapter.predict(x, batch.t, base, residuals)
        errors[name] = error(made, np.mean((output - targets["eps"]) ** 2))
    idea = "a dropped prompt is not replaced by the encoded empty prompt"
    return explained(idea, errors, 4 * bench.rounding)
