"""Checks of what every ControlNet must do. A check returns what it measured, what is allowed, and
the idea that is missed if it measured more."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy import ndarray as Array

from nanocontrol.conformance.bench import ZERO_CONVOLUTIONS, Bench, Found, checks_of
from nanocontrol.conformance.cases import (
    BASE,
    CONFIG,
    CONTROL,
    RESIDUALS,
    error,
    normal,
    shapes,
    stored,
    weights,
)

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
    return (
        largest,
        0.0,
        "a fresh ControlNet's residuals are not zero: its convolutions are not zeros",
    )


def base_unchanged_at_start(bench: Bench) -> Found:
    bench.fresh()
    change = error(bench.predict(bench.residuals()), bench.base())
    return change, bench.bits, "a fresh ControlNet changes the base's output"


def copy_equals_base(bench: Bench) -> Found:
    locked, trained = bench.fresh().parameters()
    names = copied(locked, trained)
    wrong = [n for n in names if not np.array_equal(locked[BASE + n], trained[CONTROL + n])]
    if len(names) < (1 if bench.own else len(copied(shapes(), shapes()))):
        return 1, 0, "the ControlNet lacks parts of the base's encoder"
    message = f"{len(wrong)} tensors are not copies of the base's, such as {(wrong or ['-'])[0]}"
    return len(wrong), 0, message


def copied(locked: Iterable[str], trained: Iterable[str]) -> list[str]:
    """The tensors that base and ControlNet both have, without their prefixes."""
    base = {name.removeprefix(BASE) for name in locked if name.startswith(BASE)}
    return [n.removeprefix(CONTROL) for n in trained if n.removeprefix(CONTROL) in base]


def copy_shares_no_storage(bench: Bench) -> Found:
    """No memory is shared, and loading the base's encoder leaves the copy as it was."""
    adapter = bench.loaded()
    locked, trained = adapter.parameters()
    names = copied(locked, trained)
    shared = {n for n in names if np.shares_memory(locked[BASE + n], trained[CONTROL + n])}
    if not bench.own:
        before = {n: np.array(trained[CONTROL + n]) for n in names}
        adapter.load({BASE + n: 2 * weights()[BASE + n] + 1 for n in names})
        _, trained = adapter.parameters()
        shared |= {n for n in names if not np.array_equal(before[n], trained[CONTROL + n])}
    message = "the base's encoder is shared, not copied: training the one changes the other"
    return len(shared), 0, f"{message} ({len(shared)} tensors)"


# ------------------------------------------------------------------------------ the residuals


def number_and_shapes(bench: Bench) -> Found:
    bench.named()
    found = [r.shape for r in bench.residuals()]
    expected = [stored()[f"residual.{k}"].shape for k in range(RESIDUALS)]
    wrong = [k for k, (a, b) in enumerate(zip(found, expected)) if a != b]
    message = f"there are {len(found)} residuals, expected {RESIDUALS}, the shallowest first"
    if len(found) == RESIDUALS and wrong:
        k = wrong[0]
        message = f"the residual for {block_of(k)} is {found[k]}, expected {expected[k]}"
    return len(wrong) + abs(len(found) - RESIDUALS), 0, message


def residuals_pass_zero_convolutions(bench: Bench) -> Found:
    """With zeros in all zero convolutions of a trained ControlNet, all residuals are zero."""
    bench.named().load(zeros(range(RESIDUALS)))
    residuals = bench.residuals()
    largest = max(float(np.abs(r).max()) for r in residuals)
    passed_by = [k for k, r in enumerate(residuals) if np.abs(r).max() > 0]
    message = f"residuals do not pass the zero convolutions: those for {blocks_of(passed_by)}"
    return largest, 0.0, message


def one_residual_per_zero_convolution(bench: Bench) -> Found:
    """With zeros in all zero convolutions but one, its own residual is the only one."""
    adapter = bench.named()
    adapter.load(zeros(range(RESIDUALS)))
    made = {}
    for k, name in enumerate(ZERO_CONVOLUTIONS):
        adapter.load({f"{name}.{part}": weights()[f"{name}.{part}"] for part in ("weight", "bias")})
        made[k] = [i for i, r in enumerate(bench.residuals()) if np.abs(r).max() > 0]
        adapter.load(zeros([k]))
    wrong = [k for k, found in made.items() if found != [k]]
    return len(wrong), 0, exchanged(made, wrong)


def zeros(which: range | list[int]) -> dict[str, Array]:
    names = [f"{ZERO_CONVOLUTIONS[k]}.{part}" for k in which for part in ("weight", "bias")]
    return {name: np.zeros(shapes()[name]) for name in names}


def exchanged(made: dict[int, list[int]], wrong: list[int]) -> str:
    """A sentence about the residuals that are in others' places."""
    pairs = [(k, made[k][0]) for k in wrong if len(made[k]) == 1 and made[made[k][0]] == [k]]
    if pairs:
        return f"the residuals for {blocks_of([*pairs[0]])} are exchanged"
    return f"the residuals for {blocks_of(wrong)} are in the wrong places"


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


def every_residual_acts(bench: Bench) -> Found:
    bench.loaded()
    residuals = bench.residuals()
    without = bench.predict([np.zeros_like(r) for r in residuals])
    idle = [
        k
        for k in range(len(residuals))
        if np.array_equal(bench.predict(bench.only(residuals, k)), without)
    ]
    return len(idle), 0, f"residuals are never added to the base: those for {blocks_of(idle)}"


def residuals_on_own_connections(bench: Bench) -> Found:
    """A residual changes nothing while its own connection to the decoder is closed."""
    adapter = bench.named()
    residuals = bench.residuals()

    def leaks(k: int, closed: int) -> float:
        adapter.load(closing(closed))
        without = bench.predict([np.zeros_like(r) for r in residuals])
        change = error(bench.predict(bench.only(residuals, k)), without)
        adapter.load({name: weights()[name] for name in closing(closed)})
        return change

    leak = {k: leaks(k, k) for k in range(RESIDUALS)}
    wrong = [k for k in leak if leak[k] > bench.rounding]
    others = {k: [i for i in wrong if leaks(k, i) <= bench.rounding] for k in wrong[:4]}
    right = {k: [k] for k in leak if k not in others}
    return max(leak.values()), bench.rounding, exchanged(right | others, wrong)


def closing(k: int) -> dict[str, Array]:
    """Tensors with which the decoder's block in row k does not see skip k; with k = 12 its first
    block does not see the middle block. Its norm's scale is zero, so that only the shortcut sees
    the input, and the shortcut's weights for these channels are zero."""
    block = BASE + f"output_blocks.{max(0, MIDDLE - 1 - k)}.0."
    shortcut = np.array(weights()[block + "skip_connection.weight"])
    n = stored()[f"residual.{k}"].shape[1]
    shortcut[:, slice(n) if k == MIDDLE else slice(shortcut.shape[1] - n, None)] = 0
    scale = np.zeros(shapes()[block + "in_layers.0.weight"])
    return {block + "in_layers.0.weight": scale, block + "skip_connection.weight": shortcut}


# A residual that is constant over the map equals a shift of the bias of the block's last layer,
# where nothing but the skip sees this: the Downsample after it has zero weights.
SHIFTED = {
    2: ("input_blocks.2.1.proj_out.bias", "input_blocks.3.0.op.weight"),
    5: ("input_blocks.5.1.proj_out.bias", "input_blocks.6.0.op.weight"),
    8: ("input_blocks.8.1.proj_out.bias", "input_blocks.9.0.op.weight"),
    MIDDLE: ("middle_block.2.out_layers.3.bias", None),
}


def residuals_added_once(bench: Bench) -> Found:
    adapter, found = bench.named(), {0: 0.0, 1: 0.0, 2: 0.0}
    for k, (bias, cut) in SHIFTED.items():
        shape = stored()[f"residual.{k}"].shape
        shift = 0.05 * normal(f"shift.{k}", shape[1])
        if cut:
            adapter.load({BASE + cut: np.zeros(shapes()[BASE + cut])})
        constant = [np.zeros(stored()[f"residual.{i}"].shape) for i in range(RESIDUALS)]
        constant[k] = np.broadcast_to(shift[:, None, None], shape).copy()
        made = bench.predict(constant)
        for times in found:
            adapter.load({BASE + bias: weights()[BASE + bias] + times * shift})
            found[times] = max(found[times], error(made, bench.base()))
        restored = [BASE + name for name in (bias, cut) if name]
        adapter.load({name: weights()[name] for name in restored})
    message = "a residual is not added as it is: it is scaled, or added somewhere else"
    if found[2] <= bench.rounding:
        message = "the residuals are added twice"
    return found[1], bench.rounding, message


# ----------------------------------------------------------------------------------- training


def locked_keeps_its_bits(bench: Bench) -> Found:
    adapter = bench.fresh()
    locked, trained = ({k: np.array(v) for k, v in p.items()} for p in adapter.parameters())
    for _ in range(3):
        adapter.train_step(bench.batch())
    after, learnt = adapter.parameters()
    expected = [] if bench.own else [name for name in shapes() if name.startswith(BASE)]
    missing = [name for name in expected if name not in locked]
    changed = [name for name in locked if not np.array_equal(locked[name], after[name])]
    message = f"the base is not locked: training changed {len(changed)} of its tensors"
    if missing:
        message = f"parameters() lacks {len(missing)} tensors of the base, such as {missing[0]}"
    elif all(np.array_equal(trained[name], learnt[name]) for name in trained):
        return 1, 0, "three training steps change nothing"
    return len(changed) + len(missing), 0, message


ZERO, COPY, ENCODER = "the zero convolutions", "the copy", "the condition encoder"
LAST = "the condition encoder's zero convolution"


def group_of(name: str, last: str) -> str:
    """The group of a ControlNet's tensor; last: of the condition encoder's convolutions."""
    name = name.removeprefix(CONTROL)
    if name.startswith(("zero_convs", "middle_block_out")):
        return ZERO
    if name.startswith("input_hint_block"):
        return LAST if name.startswith(f"input_hint_block.{last}.") else ENCODER
    return COPY


def gradient_order(bench: Bench) -> Found:
    """Two zero layers lie between the loss and the condition encoder: each step opens one."""
    adapter = bench.fresh()
    hint = [name for name in adapter.parameters()[1] if name.startswith(CONTROL + "input_hint")]
    last = max((name.split(".")[2] for name in hint), key=int)
    expected = {ZERO}, {ZERO, COPY, LAST}, {ZERO, COPY, LAST, ENCODER}
    for step, groups in enumerate(expected):
        gradients = adapter.gradients(bench.batch())
        names = [n for n in gradients if n.startswith(CONTROL) and np.abs(gradients[n]).max() > 0]
        reached = {group_of(name, last) for name in names}
        if early := sorted(reached - groups):
            return step, -1, f"at step {step + 1} {early[0]} already has a gradient"
        if late := sorted(groups - reached):
            return step, -1, f"at step {step + 1} {late[0]} has no gradient yet"
        adapter.train_step(bench.batch())
    return 0, 0, ""


def loss_for_eps(bench: Bench) -> Found:
    return loss_for(bench, "eps")


def loss_for_v(bench: Bench) -> Found:
    return loss_for(bench, "v")


def loss_for(bench: Bench, prediction: str) -> Found:
    adapter, batch = bench.loaded(replace(CONFIG, prediction=prediction)), bench.batch()
    made, known = adapter.loss(batch), bench.losses(prediction, batch)
    # The output's error is relative to the output, and the loss is its square.
    allowed = 4 * bench.rounding

    def off(value: float) -> float:
        return abs(made - value) / value

    right = known.pop(f"the target is {prediction}")
    nearest = min(known, key=lambda name: off(known[name]))
    message = f"the loss is not the mean square against {prediction}"
    return (
        off(right),
        allowed,
        f"{message}: {nearest}" if off(known[nearest]) < allowed else message,
    )


# ------------------------------------------------------------------------ the original's outputs


def stored_base(bench: Bench) -> Found:
    bench.named()
    message = "the base without control is not the original's network"
    return error(bench.base(), stored()["base"]), bench.tolerance, message


def stored_residuals(bench: Bench) -> Found:
    bench.named()
    found = [error(r, stored()[f"residual.{k}"]) for k, r in enumerate(bench.residuals())]
    first = next((k for k, one in enumerate(found) if one > bench.tolerance), MIDDLE)
    message = f"residuals differ from the original's; the first is that for {block_of(first)}"
    return max(found), bench.tolerance, message


def stored_controlled(bench: Bench) -> Found:
    """The stored residuals, so that a mistake in one's own does not show here too."""
    bench.named()
    made = bench.predict([stored()[f"residual.{k}"] for k in range(RESIDUALS)])
    message = "with the original's residuals the base's output is not the original's"
    return error(made, stored()["controlled"]), bench.tolerance, message


CHECKS = checks_of("must", __name__)
