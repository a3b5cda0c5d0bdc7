"""Checks of what a ControlNet should do to work with the released weights and others' programs."""

from functools import partial

import numpy as np
from numpy import ndarray as Array

from nanocontrol.conformance.bench import UNEXPLAINED, Bench, Found, largest_error, noised
from nanocontrol.conformance.cases import CONTROL, RESIDUALS, normal, shapes, weights
from nanocontrol.conformance.ddim import ORIGINAL

# How a program can read a hint's colour, RGB in [0, 1], before its first convolution: the order of
# the channels, as a slice's step, and by how much it scales and shifts them.
ORDERS = {"RGB": 1, "BGR, with red and blue exchanged,": -1}
RANGES = {
    " in [0, 1]": (1, 0),
    " in [-1, 1]": (2, -1),
    ", inverted": (-1, 1),
    " in 0 to 255": (255, 0),
}


def hint_is_rgb_in_0_1(bench: Bench) -> Found:
    """The first convolution sees single pixels only, and the hint has one colour. So its output is
    the same number everywhere, which a bias gives as well, with weights of zero."""
    adapter, colour = bench.named().adapter, np.array([0.9, 0.4, 0.2])
    hint = np.broadcast_to(colour[:, None, None], bench.given.hint.shape).copy()
    first, last = (CONTROL + f"input_hint_block.{i}." for i in (0, 14))
    pixel, bias = np.zeros(shapes()[first + "weight"]), normal("probe.bias", 16)
    pixel[:, :, 1, 1] = normal("probe", *pixel.shape[:2])
    # The stored weights have a faint last convolution.
    louder = {last + "weight": 100 * weights()[last + "weight"]}
    adapter.load(louder | {first + "weight": pixel, first + "bias": bias})
    made, known = bench.residuals(hint=hint), {}
    for order, step in ORDERS.items():
        for name, (scale, shift) in RANGES.items():
            equal = bias + pixel[:, :, 1, 1] @ (scale * colour[::step] + shift)
            adapter.load({first + "weight": 0 * pixel, first + "bias": equal})
            known[f"it is read as {order}{name}"] = bench.residuals(hint=hint)
    return bench.explained("the hint should be read as RGB in [0, 1]", made, known)


def hint_encoded_once(bench: Bench) -> Found:
    bench.loaded().adapter.sample(bench.sampling(5, 1.0))
    times = bench.adapter.hints_encoded
    return times, 1, f"the hint is encoded {times} times in 5 steps; it is the same at every step"


def rows_do_not_mix(bench: Bench) -> Found:
    """Guidance in one batch or in two gives equal results if each row of a batch is computed as if
    it were alone."""
    adapter, given = bench.loaded().adapter, bench.given

    def output(rows: slice) -> Array:
        x, hint, t, context = (a[rows] for a in (given.x, given.hint, given.t, given.context))
        return adapter.predict(x, t, context, [*adapter.residuals(x, hint, t, context)])

    together = output(slice(None))
    alone = [output(slice(i, i + 1))[0] for i in range(len(together))]
    message = "a picture depends on the others in its batch"
    return largest_error(alone, together), 2 * bench.rounding, message


# ----------------------------------------------------------------------------------- sampling

SCALE, GUIDED_STEPS = 3.0, 2


def ddim(bench: Bench) -> Found:
    return bench.sampled[1]


def compare_guidance(bench: Bench, idea: str, guess: bool, ways: dict[str, tuple]) -> Found:
    """Compare sampling with guidance with what `Bench.guided` gives, for each of these first three
    arguments."""
    followed, _ = bench.sampled
    rule, known = followed or ORIGINAL, {}
    made = bench.loaded().adapter.sample(bench.sampling(GUIDED_STEPS, SCALE, guess))
    for mistake, way in ways.items():
        known[mistake] = rule.latents(partial(bench.guided, *way), bench.given.x, GUIDED_STEPS)
    # The outputs' errors are multiplied by SCALE and SCALE - 1, and each step adds one.
    found = bench.explained(idea, made, known, roundings=(2 * SCALE - 1) * GUIDED_STEPS)
    if not followed and found[2].endswith(UNEXPLAINED):
        raise NotImplementedError("known rule of DDIM: see ddim")
    return found


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
        "": (SCALE, 0.0, powers),
        "they are reversed: the middle block's is 1": (SCALE, 0.0, powers[::-1]),
        "they run from 0.1 to 1 on a logarithmic scale": (SCALE, 0.0, logarithmic),
        "they are all 1": (SCALE, 0.0, 1.0),
        "they control the half without the prompt too": (SCALE, powers, powers),
    }
    return compare_guidance(bench, "guess mode's weights are not 0.825^(12 - i)", True, known)


def sampling_leaves_its_inputs(bench: Bench) -> Found:
    """Arrays have the adapter's own precision here, so that it can use their memory."""
    adapter, run = bench.loaded().adapter, bench.sampling(GUIDED_STEPS, SCALE)
    residuals = bench.residuals()
    arrays = [run.noise, run.context, run.uncond, run.hint, *residuals]
    before = [array.copy() for array in arrays]
    adapter.sample(run)
    bench.predict(residuals)
    written = sum(not np.array_equal(a, b) for a, b in zip(arrays, before))
    written += len(arrays) - 4 - len(residuals)  # a list of residuals can get shorter
    return written, 0, f"{written} arrays of the caller were overwritten"


# ----------------------------------------------------------------------------------- training


def dropped_prompt_is_the_empty_one(bench: Bench) -> Found:
    adapter, batch = bench.loaded().adapter, bench.batch()
    batch.dropped[0] = True
    own, (x, _), known = batch.context, noised(batch), {}
    empty, zero = (np.where(batch.dropped[:, None, None], c, own) for c in (batch.empty, 0.0))
    seen = {  # the encoded prompts that the ControlNet and the base see
        "": (empty, empty),
        "it is replaced by zeros": (zero, zero),
        "prompts are not dropped": (own, own),
        "it is dropped for the ControlNet alone, not for the base": (empty, own),
        "it is dropped for the base alone, not for the ControlNet": (own, empty),
    }
    for mistake, (control, base) in seen.items():
        residuals = adapter.residuals(x, batch.hint, batch.t, control)
        output = adapter.predict(x, batch.t, base, residuals)
        known[mistake] = [np.mean((output - batch.noise) ** 2)]
    idea = "a dropped prompt is not replaced by the encoded empty prompt"
    return bench.explained(idea, [adapter.loss(batch)], known, roundings=4)
