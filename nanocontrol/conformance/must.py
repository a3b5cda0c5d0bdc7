"""Checks of what every ControlNet must do. A check returns what it measured, what is allowed, and
the idea that is missed if it measured more."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy import ndarray as Array

from nanocontrol.conformance import cases
from nanocontrol.conformance.adapter import Arrays
from nanocontrol.conformance.bench import Bench, Found, copies, different, explained, noised
from nanocontrol.conformance.cases import BASE, CONFIG, CONTROL, RESIDUALS, error, weights

MIDDLE = RESIDUALS - 1


def block_of(k: int) -> str:
    """Where a residual belongs, as the front page's drawing names it."""
    return "the middle block" if k == MIDDLE else f"block {k + 1}"


def blocks_of(found: list[int]) -> str:
    if len(found) == 2 and MIDDLE not in found:
        return f"blocks {found[0] + 1} and {found[1] + 1}"
    return "all blocks" if len(found) == RESIDUALS else ", ".join(map(block_of, found))


# -------------------------------------------------------------------------------- at the start


def zero_at_start(bench: Bench) -> Found:
    bench.fresh()
    largest = max(float(np.abs(r).max()) for r in bench.residuals())
    message = "a fresh ControlNet's residuals are not zero: its convolutions are not zeros"
    return largest, 0.0, message


def base_unchanged_at_start(bench: Bench) -> Found:
    bench.fresh()
    change = error(bench.predict(bench.residuals()), bench.base())
    return change, bench.bits, "a fresh ControlNet changes the base's output"


def encoders(locked: Iterable[str], trained: Arrays) -> Arrays:
    """The copy's tensors, under the names that they have in the base."""
    names = {name: BASE + name.removeprefix(CONTROL) for name in trained}
    return {names[name]: trained[name] for name in trained if names[name] in locked}


def copy_equals_base(bench: Bench) -> Found:
    locked, trained = bench.fresh().parameters()
    copy = encoders(locked, trained)
    if len(copy) < (1 if bench.own else len(encoders(weights(), weights()))):
        return 1, 0, "the ControlNet lacks parts of the base's encoder"
    wrong = different(copy, locked)
    message = f"{len(wrong)} tensors are not copies of the base's, such as {', '.join(wrong[:1])}"
    return len(wrong), 0, message


def copy_shares_no_storage(bench: Bench) -> Found:
    """No memory is shared, and loading the base's encoder leaves the copy as it was."""
    adapter = bench.loaded()
    locked, trained = adapter.parameters()
    copy = encoders(locked, trained)
    shared = {name for name in copy if np.shares_memory(locked[name], copy[name])}
    if not bench.own:
        before = copies(copy)
        adapter.load({name: 2 * weights()[name] + 1 for name in copy})
        shared |= {*different(before, encoders(locked, adapter.parameters()[1]))}
    message = "the base's encoder is shared, not copied: training the one changes the other"
    return len(shared), 0, f"{message} ({len(shared)} tensors)"


# ------------------------------------------------------------------------------ the residuals


def number_and_shapes(bench: Bench) -> Found:
    bench.named()
    found, expected = bench.residuals(), cases.original_residuals()
    if len(found) != RESIDUALS:
        message = f"there are {len(found)} residuals, expected {RESIDUALS}, the shallowest first"
        return abs(len(found) - RESIDUALS), 0, message
    wrong = [
        f"the residual for {block_of(k)} is {a.shape}, expected {b.shape}"
        for k, (a, b) in enumerate(zip(found, expected))
        if a.shape != b.shape
    ]
    return len(wrong), 0, ", ".join(wrong[:1])


def zeros(*beginnings: str) -> Arrays:
    """Zeros for the tensors whose names begin so."""
    names = [name for name in cases.shapes() if name.startswith(beginnings)]
    return {name: np.zeros(cases.shapes()[name]) for name in names}


ZERO_CONVOLUTIONS = [f"{CONTROL}zero_convs.{k}." for k in range(MIDDLE)]
ZERO_CONVOLUTIONS.append(CONTROL + "middle_block_out.")


def not_zero(residuals: list[Array]) -> list[int]:
    return [k for k, r in enumerate(residuals) if np.any(r)]


def residuals_pass_zero_convolutions(bench: Bench) -> Found:
    """With zeros in all zero convolutions of a trained ControlNet, all residuals are zero."""
    bench.named().load(zeros(*ZERO_CONVOLUTIONS))
    passed_by = not_zero(bench.residuals())
    message = f"residuals do not pass the zero convolutions: those for {blocks_of(passed_by)}"
    return len(passed_by), 0, message


def one_residual_per_zero_convolution(bench: Bench) -> Found:
    """With zeros in all zero convolutions but one, its own residual is the only one."""
    bench.named()
    places = {}
    for k, name in enumerate(ZERO_CONVOLUTIONS):
        with bench.changed(zeros(*(other for other in ZERO_CONVOLUTIONS if other != name))):
            places[k] = not_zero(bench.residuals())
    return misplaced(places)


def misplaced(places: dict[int, list[int]]) -> Found:
    """How many residuals are in other places than their own; places: of residual k, those found."""
    wrong = [k for k in places if places[k] != [k]]
    message = f"the residuals for {blocks_of(wrong)} are in the wrong places"
    for k in wrong:
        if len(places[k]) == 1 and places.get(places[k][0]) == [k]:
            message = f"the residuals for {blocks_of([k, *places[k]])} are exchanged"
            break
    return len(wrong), 0, message


def hint_enters_after_the_first_block(bench: Bench) -> Found:
    """The hint is added to block 1's output, before its zero convolution."""
    bench.loaded()
    a, b = bench.residuals(), bench.residuals(bench.given.hint[:, :, ::-1, ::-1])
    deaf = [k for k in range(len(a)) if np.array_equal(a[k], b[k])]
    message = f"the hint is added after block {len(deaf) + 1}, not after block 1"
    if len(deaf) == len(a):
        message = "no residual depends on the hint"
    return len(deaf), 0, f"{message}: the residuals for {blocks_of(deaf)} do not depend on it"


# ------------------------------------------------------------------------ the base with control


def changes(bench: Bench, residuals: list[Array], numbers: Iterable[int]) -> dict[int, float]:
    """How much the output changes with each residual of these numbers, added alone."""
    none = [np.zeros_like(r) for r in residuals]
    without = bench.predict([*none])
    alone = {k: [*none[:k], residuals[k], *none[k + 1 :]] for k in numbers}
    return {k: error(bench.predict(alone[k]), without) for k in alone}


def every_residual_acts(bench: Bench) -> Found:
    bench.loaded()
    residuals = bench.residuals()
    change = changes(bench, residuals, range(len(residuals)))
    idle = [k for k in change if change[k] == 0]
    return len(idle), 0, f"residuals are never added to the base: those for {blocks_of(idle)}"


def residuals_on_own_connections(bench: Bench) -> Found:
    """A residual changes nothing while its own connection to the decoder is closed."""
    bench.named()
    residuals = bench.residuals()

    def leaks(closed: int, numbers: list[int]) -> dict[int, float]:
        with bench.changed(closing(closed)):
            return changes(bench, residuals, numbers)

    leak = {k: leaks(k, [k])[k] for k in range(RESIDUALS)}
    wrong = [k for k in leak if leak[k] > bench.rounding]
    closed = {i: leaks(i, wrong) for i in wrong}
    places = {k: [i for i in wrong if closed[i][k] <= bench.rounding] for k in wrong}
    _, _, message = misplaced({k: [k] for k in leak} | places)
    return max(leak.values()), bench.rounding, message


def closing(k: int) -> Arrays:
    """Tensors with which the decoder's block in row k does not see skip k; with k = 12 its first
    block does not see the middle block. Its norm's scale is zero, so that only the shortcut sees
    the input, and the shortcut's weights for these channels are zero."""
    block = BASE + f"output_blocks.{max(0, MIDDLE - 1 - k)}.0."
    shortcut = np.array(weights()[block + "skip_connection.weight"])
    n = cases.original_residuals()[k].shape[1]
    shortcut[:, slice(n) if k == MIDDLE else slice(-n, None)] = 0
    return zeros(block + "in_layers.0.weight") | {block + "skip_connection.weight": shortcut}


# A residual that is constant over the map equals a shift of the bias of the block's last layer.
# Only the skip shows this shift while the Downsample after the block has zero weights.
SHIFTED = {k: f"{BASE}input_blocks.{k}.1.proj_out.bias" for k in (2, 5, 8)}
SHIFTED[MIDDLE] = BASE + "middle_block.2.out_layers.3.bias"
DOWNSAMPLES = [f"{BASE}input_blocks.{k}.0.op.weight" for k in (3, 6, 9)]
TIMES = {"": 1, "the residuals are added twice": 2, "the residuals are not added": 0}


def residuals_added_once(bench: Bench) -> Found:
    bench.named().load(zeros(*DOWNSAMPLES))
    errors = dict.fromkeys(TIMES, 0.0)
    for k, bias in SHIFTED.items():
        constant = [np.zeros_like(r) for r in cases.original_residuals()]
        shift = 0.05 * cases.normal(f"shift.{k}", constant[k].shape[1])
        constant[k] += shift[:, None, None]
        made = bench.predict(constant)
        for name, times in TIMES.items():
            with bench.changed({bias: weights()[bias] + times * shift}):
                errors[name] = max(errors[name], error(made, bench.base()))
    idea = "a residual is not added as it is, once, where it belongs"
    return explained(idea, errors, bench.rounding)


# ----------------------------------------------------------------------------------- training


def locked_keeps_its_bits(bench: Bench) -> Found:
    adapter = bench.fresh()
    locked, trained = map(copies, adapter.parameters())
    for _ in range(3):
        adapter.train_step(bench.batch())
    after, learnt = adapter.parameters()
    expected = [] if bench.own else [name for name in cases.shapes() if name.startswith(BASE)]
    if missing := [name for name in expected if name not in locked]:
        message = f"parameters() lacks {len(missing)} tensors of the base, such as {missing[0]}"
        return len(missing), 0, message
    if not different(trained, learnt):
        return 1, 0, "three training steps change nothing"
    changed = different(locked, after)
    message = f"the base is not locked: training changed {len(changed)} of its tensors"
    return len(changed), 0, message


ZERO, COPY, ENCODER = "the zero convolutions", "the copy", "the condition encoder"
LAST = "the condition encoder's zero convolution"


def group_of(name: str, last: int) -> str:
    """The group of a ControlNet's tensor; last: the number of the condition encoder's last
    convolution."""
    if name.startswith((CONTROL + "zero_convs.", CONTROL + "middle_block_out.")):
        return ZERO
    if name.startswith(CONTROL + "input_hint_block."):
        return LAST if int(name.split(".")[2]) == last else ENCODER
    return COPY


def gradient_order(bench: Bench) -> Found:
    """Two zero layers lie between the loss and the condition encoder: each step opens one."""
    adapter = bench.fresh()
    names = [name for name in adapter.parameters()[1] if name.startswith(CONTROL)]
    last = max(int(name.split(".")[2]) for name in names if "input_hint_block." in name)
    expected = {ZERO}, {ZERO, COPY, LAST}, {ZERO, COPY, LAST, ENCODER}
    for step, groups in enumerate(expected, start=1):
        gradients = adapter.gradients(bench.batch())
        reached = {group_of(name, last) for name in names if np.any(gradients.get(name, 0))}
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
    adapter, batch = bench.loaded(replace(CONFIG, prediction=prediction)), bench.batch()
    x, targets = noised(batch)
    output = bench.controlled(x, batch.t, batch.context)
    plain, target = adapter.base(x, batch.t, batch.context), targets.pop(prediction)
    known = {
        "": np.mean((output - target) ** 2),
        "it is a sum, not a mean": np.sum((output - target) ** 2),
        "it is the absolute error, not the square": np.mean(np.abs(output - target)),
        "the residuals are not added": np.mean((plain - target) ** 2),
    }
    for name, other in targets.items():
        known[f"the target is {name}"] = np.mean((output - other) ** 2)
    made = adapter.loss(batch)
    errors = {name: error(made, loss) for name, loss in known.items()}
    # The output's error is relative to the output, and the loss is its square.
    idea = f"the loss is not the mean square against {prediction}"
    return explained(idea, errors, 4 * bench.rounding)


# ------------------------------------------------------------------------ the original's outputs


def stored_base(bench: Bench) -> Found:
    bench.named()
    message = "the base without control is not the original's network"
    return error(bench.base(), cases.stored()["base"]), bench.tolerance, message


def stored_residuals(bench: Bench) -> Found:
    bench.named()
    found = [error(a, b) for a, b in zip(bench.residuals(), cases.original_residuals())]
    first = next((k for k, one in enumerate(found) if one > bench.tolerance), MIDDLE)
    message = f"residuals differ from the original's; the first is that for {block_of(first)}"
    return max(found), bench.tolerance, message


def stored_controlled(bench: Bench) -> Found:
    """The stored residuals, so that a mistake in one's own does not show here too."""
    bench.named()
    made = bench.predict(cases.original_residuals())
    message = "with the original's residuals the base's output is not the original's"
    return error(made, cases.stored()["controlled"]), bench.tolerance, message
