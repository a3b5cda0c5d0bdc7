"""Checks of what every ControlNet must do. A check returns what it measured, what is allowed, and
the idea that is missed if it measured more."""

from itertools import combinations

import numpy as np
from numpy import ndarray as Array

from nanocontrol.conformance import cases
from nanocontrol.conformance.adapter import Arrays
from nanocontrol.conformance.bench import Bench, Found, copies, different, noised
from nanocontrol.conformance.cases import BASE, CONTROL, RESIDUALS, Config, error, stored, weights

MIDDLE = RESIDUALS - 1


def blocks_of(numbers: list[int]) -> str:
    """Where residuals belong, as the front page's drawing names it."""
    blocks = [str(k + 1) for k in numbers if k != MIDDLE]
    joined = (" and " if len(blocks) == 2 else ", ").join(blocks)
    said = [f"blocks {joined}" if len(blocks) > 1 else f"block {joined}"] if blocks else []
    return " and ".join([*said, "the middle block"] if MIDDLE in numbers else said)


def tensors_match(bench: Bench) -> Found:
    """The networks have the tensors of the stored cases, under their names."""
    missing, others = bench.fresh().unmatched
    message = f"the adapter lacks {len(missing)} tensors: {few(missing)}"
    return len(missing), 0, f"{message}; it has {len(others)} others: {few(others)}"


def few(tensors: list) -> str:
    names = [f"{name} {[*shape]}" for name, shape in tensors]
    return ", ".join(names[:3] + ["..."] * (len(names) > 3)) or "none"


# -------------------------------------------------------------------------------- at the start


def zero_at_start(bench: Bench) -> Found:
    most = max(float(np.abs(r).max()) for r in bench.fresh().residuals())
    return most, 0.0, "a fresh ControlNet's residuals are not zero: its convolutions are not zeros"


def base_unchanged_at_start(bench: Bench) -> Found:
    made = bench.fresh().predict(bench.residuals())
    return error(made, bench.base()), bench.bits, "a fresh ControlNet changes the base's output"


def encoders(locked: Arrays, trained: Arrays) -> Arrays:
    """The copy's tensors, under the names that they have in the base."""
    names = {name: BASE + name.removeprefix(CONTROL) for name in trained}
    return {names[name]: trained[name] for name in trained if names[name] in locked}


def copy_equals_base(bench: Bench) -> Found:
    locked, trained = bench.fresh().adapter.parameters()
    copy = encoders(locked, trained)
    if not copy:
        return 1, 0, "the ControlNet lacks the base's encoder"
    wrong = different(copy, locked)
    message = f"{len(wrong)} tensors are not copies of the base's, such as {', '.join(wrong[:1])}"
    return len(wrong), 0, message


def copy_shares_no_storage(bench: Bench) -> Found:
    """No memory is shared, and loading the base's encoder leaves the copy as it was."""
    adapter = bench.loaded().adapter
    locked, trained = adapter.parameters()
    copy = encoders(locked, trained)
    shared = {name for name in copy if np.shares_memory(locked[name], copy[name])}
    before = copies(copy)
    adapter.load({name: 2 * before[name] + 1 for name in before})
    shared |= {*different(before, encoders(locked, adapter.parameters()[1]))}
    message = "the base's encoder is shared, not copied: training the one changes the other"
    return len(shared), 0, f"{message} ({len(shared)} tensors)"


# ------------------------------------------------------------------------------ the residuals


def number_and_shapes(bench: Bench) -> Found:
    made = [residual.shape for residual in bench.named().residuals()]
    expected = [residual.shape for residual in cases.original_residuals()]
    if len(made) != RESIDUALS:
        message = f"there are {len(made)} residuals, expected {RESIDUALS}, the shallowest first"
        return abs(len(made) - RESIDUALS), 0, message
    wrong = [k for k in range(RESIDUALS) if made[k] != expected[k]]
    shapes = ", ".join(f"{made[k]} for {expected[k]}" for k in wrong)
    return len(wrong), 0, f"the residuals for {blocks_of(wrong)} have other shapes: {shapes}"


def probes() -> list[Array]:
    """Numbers for the channels of each residual."""
    originals = cases.original_residuals()
    return [0.05 * cases.normal(f"shift.{k}", r.shape[1]) for k, r in enumerate(originals)]


def constant(values: list[Array]) -> list[Array]:
    """Residuals with these numbers in their channels, the same at every place."""
    return [0 * r + v[:, None, None] for r, v in zip(cases.original_residuals(), values)]


def arrangements() -> dict[str, list[Array]]:
    """The probes as they should arrive, and with two of equal shape exchanged, by the mistake."""
    originals, found = cases.original_residuals(), {"": probes()}
    for i, k in combinations(range(RESIDUALS), 2):
        if originals[i].shape == originals[k].shape:
            exchanged = probes()
            exchanged[i], exchanged[k] = exchanged[k], exchanged[i]
            found[f"the residuals for {blocks_of([i, k])} are exchanged"] = exchanged
    return found


def zeros(*beginnings: str) -> Arrays:
    """Zeros for the tensors whose names begin so."""
    return {name: 0 * array for name, array in weights().items() if name.startswith(beginnings)}


ZERO_CONVOLUTIONS = [f"{CONTROL}zero_convs.{k}.0." for k in range(MIDDLE)]
ZERO_CONVOLUTIONS.append(CONTROL + "middle_block_out.0.")


def residuals_pass_zero_convolutions(bench: Bench) -> Found:
    """Zero convolutions whose weights are zeros give their biases, whatever the copy computes."""
    biases = {name + "bias": probe for name, probe in zip(ZERO_CONVOLUTIONS, probes())}
    bench.named().adapter.load(zeros(*ZERO_CONVOLUTIONS) | biases)
    known = {mistake: constant(values) for mistake, values in arrangements().items()}
    idea = "residuals do not pass the zero convolutions"
    return bench.explained(idea, bench.residuals(), known)


def hint_enters_after_the_first_block(bench: Bench) -> Found:
    """The hint is added to block 1's output, before its zero convolution."""
    a, b = bench.loaded().residuals(), bench.residuals(hint=bench.given.hint[:, :, ::-1, ::-1])
    deaf = [k for k in range(len(a)) if np.array_equal(a[k], b[k])]
    message = f"the hint is added after block {len(deaf) + 1}, not after block 1"
    if len(deaf) == len(a):
        message = "no residual depends on the hint"
    return len(deaf), 0, f"{message}: the residuals for {blocks_of(deaf)} do not depend on it"


# ------------------------------------------------------------------------ the base with control


def every_residual_acts(bench: Bench) -> Found:
    """The output changes with each residual, added alone."""
    residuals = bench.loaded().residuals()
    masks = np.eye(len(residuals) + 1, dtype=bool)[:, 1:]  # no residual, then each one alone
    without, *alone = [bench.predict([m * r for m, r in zip(mask, residuals)]) for mask in masks]
    idle = [k for k, output in enumerate(alone) if np.array_equal(output, without)]
    return len(idle), 0, f"residuals are never added to the base: those for {blocks_of(idle)}"


BLOCKS = [f"{BASE}input_blocks.{k}." for k in range(MIDDLE)] + [BASE + "middle_block."]
# What sees a block's input: without these only the shortcut of a ResBlock of equal channels.
INPUTS = "0.in_layers.0.weight", "0.skip_connection.weight", "0.op.weight"


def shifted(shifts: list[Array]) -> Arrays:
    """Biases with which each encoder block's output is larger by its shift. The block's last layer
    adds the shift, and the next block, which has no INPUTS, takes it away from its shortcut."""
    made = {n: w for n, w in weights().items() if n.startswith((*BLOCKS,)) and n.endswith("bias")}
    for block, following, shift in zip(BLOCKS, [*BLOCKS[1:], "none"], shifts):
        last = [name for name in made if name.startswith(block)][-1]
        made[last] = made[last] + shift
        shortcut = following + "0.out_layers.3.bias"
        if shortcut in made and following + "0.skip_connection.weight" not in weights():
            made[shortcut] = made[shortcut] - shift
    return made


def residuals_on_own_connections(bench: Bench) -> Found:
    """A constant residual equals a shift of its encoder block's output that no other block sees,
    if it is added there once and nowhere else."""
    adapter = bench.named().adapter
    adapter.load(zeros(*(block + name for block in BLOCKS[1:] for name in INPUTS)))
    made, known = bench.predict(constant(probes())), {}
    shifts = arrangements()
    shifts["the residuals are added twice"] = [2 * probe for probe in probes()]
    shifts["the residuals are not added"] = [0 * probe for probe in probes()]
    for mistake, values in shifts.items():
        adapter.load(shifted(values))
        known[mistake] = bench.base()
    idea = "a residual is not added as it is, once, where it belongs"
    return bench.explained(idea, made, known)


# ----------------------------------------------------------------------------------- training


def locked_keeps_its_bits(bench: Bench) -> Found:
    adapter = bench.fresh().adapter
    locked, trained = map(copies, adapter.parameters())
    for _ in range(3):
        adapter.train_step(bench.batch())
    after, learnt = adapter.parameters()
    if not different(trained, learnt):
        return 1, 0, "three training steps change nothing"
    changed = different(locked, after)
    message = f"the base is not locked: training changed {len(changed)} of its tensors"
    return len(changed), 0, message


ZERO, COPY, ENCODER = "the zero convolutions", "the copy", "the condition encoder"
LAST = "the condition encoder's zero convolution"
GROUPS = {"zero_convs": ZERO, "middle_block_out": ZERO, "input_hint_block": ENCODER}


def gradient_order(bench: Bench) -> Found:
    """Two zero layers lie between the loss and the condition encoder: each step opens one."""
    adapter = bench.loaded().fresh().adapter  # loaded: it does not run if names do not match
    names = [name for name in adapter.parameters()[1] if name.startswith(CONTROL)]
    group_of = {name: GROUPS.get(name.split(".")[1], COPY) for name in names}
    numbers = {name: int(name.split(".")[2]) for name in names if group_of[name] == ENCODER}
    group_of |= {name: LAST for name in numbers if numbers[name] == max(numbers.values())}
    expected = {ZERO}, {ZERO, COPY, LAST}, {ZERO, COPY, LAST, ENCODER}
    for step, groups in enumerate(expected, start=1):
        gradients = adapter.gradients(bench.batch())
        reached = {group_of[name] for name in names if np.any(gradients.get(name, 0))}
        if wrong := sorted(reached ^ groups):
            state = "already" if wrong[0] in reached else "not yet"
            why = "" if bench.base().any() else "; the base's output is zero: see the README"
            return step, 0, f"gradients at step {step}: {state} in {wrong[0]}{why}"
        adapter.train_step(bench.batch())
    return 0, 0, ""


def loss_for_eps(bench: Bench) -> Found:
    return loss_for(bench, "eps")


def loss_for_v(bench: Bench) -> Found:
    return loss_for(bench, "v")


def loss_for(bench: Bench, prediction: str) -> Found:
    batch = bench.loaded(Config(prediction=prediction)).batch()
    x, targets = noised(batch)
    output = bench.controlled(x, batch.t, batch.context)
    plain, target = bench.adapter.base(x, batch.t, batch.context), targets.pop(prediction)
    losses = {
        "": (output - target) ** 2,
        "it is a sum, not a mean": target.size * (output - target) ** 2,
        "it is the absolute error, not the square": np.abs(output - target),
        "the residuals are not added": (plain - target) ** 2,
    }
    losses |= {f"the target is {name}": (output - other) ** 2 for name, other in targets.items()}
    known = {name: [loss.mean()] for name, loss in losses.items()}
    idea = f"the loss is not the mean square against {prediction}"
    # The output's error is relative to the output, and the loss is its square.
    return bench.explained(idea, [bench.adapter.loss(batch)], known, roundings=4)


# ------------------------------------------------------------------------ the original's outputs


def stored_base(bench: Bench) -> Found:
    message = "the base without control is not the original's network"
    return error(bench.named().base(), stored()["base"]), bench.tolerance, message


def stored_residuals(bench: Bench) -> Found:
    found = [*map(error, bench.named().residuals(), cases.original_residuals())]
    wrong = blocks_of([k for k, one in enumerate(found) if not one <= bench.tolerance])
    return max(found), bench.tolerance, f"the residuals for {wrong} are not the original's"


def stored_controlled(bench: Bench) -> Found:
    """The stored residuals, so that a mistake in one's own does not show here too."""
    made = bench.named().predict(cases.original_residuals())
    message = "with the original's residuals the base's output is not the original's"
    return error(made, stored()["controlled"]), bench.tolerance, message
