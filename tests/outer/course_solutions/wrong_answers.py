"""Known wrong answers: each is a solution with one passage replaced, and the sentence that a check
has for it."""

# ruff: noqa: E501

from typing import NamedTuple

from nanocontrol.course.checks import (
    copy,
    ddim,
    gain,
    guidance,
    hints,
    jump,
    noise,
    residuals,
    scale,
    weights,
    zero,
)


class WrongAnswer(NamedTuple):
    exercise: int
    old: str  # in the solution
    new: str
    sentence: str  # a part of what the check says


def answers(exercise: int, *three: tuple[str, str, str]) -> list[WrongAnswer]:
    return [WrongAnswer(exercise, *passage) for passage in three]


MIXED = "share.sqrt() * x0 + (1 - share).sqrt() * noise"
LEVEL = "return 1000 * from_below // steps + 1"
STEP = "return then.sqrt() * x0 + (1 - then).sqrt() * noise"
GUIDED = "without + scale * (prompted - without)"
DECODE = "reversed(controlled)"
BELOW = """reversed(controlled)):
        h = block(torch.cat([h, skip], dim=1))"""
BELOW_TOO = """reversed(list(zip(skips, for_skips)))):
        h = block(torch.cat([h + skip[1], skip[0]], dim=1))"""
TWO_RIGHT = """middle + for_middle
    controlled = [skip + residual for skip, residual in zip(skips, for_skips)]"""
TWO_WRONG = """middle
    controlled = [skip + residual for skip, residual in zip(skips, reversed(for_skips))]"""
MEASURED = "return 1 / variance.sqrt().item()"

WRONG = [
    *answers(
        1,
        (MIXED, "share * x0 + (1 - share) * noise", noise.SAY.NO_ROOTS),
        (MIXED, "(1 - share).sqrt() * x0 + share.sqrt() * noise", noise.SAY.SWAPPED),
        (MIXED, "share.sqrt() * x0 + (1 - share.sqrt()) * noise", noise.SAY.ONE_ROOT),
        ("abar[t].view(-1, 1, 1, 1)", "abar[t[0]]", noise.SAY.ONE_T),
        (LEVEL, "return i", noise.SAY.STEP_IS_T),
        (LEVEL, "return 1000 * i // steps + 1", noise.SAY.RISING),
        (LEVEL, "return 1000 * from_below // steps", noise.SAY.NO_OFFSET),
        (LEVEL, "return i / steps", noise.SAY.FRACTION),
    ),
    *answers(
        2,
        (MEASURED, "return 0.18215", scale.SAY.SD),
        (MEASURED, "return variance.sqrt().item()", scale.SAY.INVERSE),
        (MEASURED, "return 1 / variance.item()", scale.SAY.VARIANCE),
        (MEASURED, "return 1 / deviation.square().mean().sqrt().item()", scale.SAY.POSTERIOR),
        (MEASURED, "return 1 / pictures.std().item()", scale.SAY.PIXELS),
        (MEASURED, "return 1 / mean.abs().max().item()", scale.SAY.LARGEST),
    ),
    *answers(
        3,
        ("0 if following is None else following", "t - 1", ddim.SAY.ONE_LOWER),
        ("0 if following is None else following", "t", ddim.SAY.STAYS),
        (STEP, "return x0", ddim.SAY.ONLY_X0),
        (" / now.sqrt()", "", ddim.SAY.NOT_UNDONE),
        (STEP, f"{STEP} if following is not None else x0", ddim.SAY.ALL_CLEAN),
        ("0 if following is None", "t if following is None", ddim.SAY.LAST_IS_T1),
    ),
    *answers(
        4,
        ("without, prompted =", "prompted, without =", guidance.SAY.EXCHANGED),
        (GUIDED, "prompted + scale * (prompted - without)", guidance.SAY.FROM_PROMPT),
        ("output.chunk(2)", "output[::2], output[1::2]", guidance.SAY.INTERLEAVED),
        (GUIDED, "scale * (prompted - without)", guidance.SAY.ONLY_DIFFERENCE),
        (GUIDED, "(prompted + without) / 2", guidance.SAY.MEAN),
        ("PROMPT_HAS_NO_EFFECT = 0", "PROMPT_HAS_NO_EFFECT = 1", guidance.SAY.NOTHING_AT_1),
        ("NEGATIVE_PROMPT_HAS_NO_EFFECT = 1", "NEGATIVE_PROMPT_HAS_NO_EFFECT = 0", guidance.SAY.NOTHING_AT_0),
    ),
    *answers(
        5,
        ("return of_weight,", "return of_weight * bool(weight.any()),", zero.SAY.NEVER),
        ("of_weight, of_bias, of_x", "of_weight / 32, of_bias, of_x", zero.SAY.MEAN),
        ("of_bias, of_x\n", "of_bias, of_x + 1\n", zero.SAY.PASSES),
        ('"copy": below', '"copy": 1', zero.SAY.ALL_AT_ONCE),
        ('"zero convolutions": 1', '"zero convolutions": 0', zero.SAY.NEVER),
        ("below + 1 if end_starts_zero else below", "below", zero.SAY.ONE_LAYER),
        ("below + 1 if end_starts_zero else below", "below + 2", zero.SAY.LATER),
        ("2 if convolutions_start_zero else 1", "2", zero.SAY.GAUSSIAN),
    ),
    *answers(
        6,
        ("trainable = copy.deepcopy(block)", "trainable = block", copy.SAY.SHARED),
        ("copy.deepcopy(block)", "copy.copy(block)", copy.SAY.SHARED),
        ("block.requires_grad_(False)", "block.train()", copy.SAY.COLLECTS),
        ("trainable.parameters()\n", "[*trainable.parameters(), *block.requires_grad_(True).parameters()]\n", copy.SAY.NOT_LOCKED),
        ("return block, trainable", "trainable.requires_grad_(False)\n    return block, trainable", copy.SAY.FROZEN),
        ("return block", "trainable[0].reset_parameters()\n    return block", copy.SAY.RANDOM),
        ("return block,", "return type(block)(*block, block[1]),", copy.SAY.DIFFERS),
    ),
    *answers(
        7,
        ("middle + for_middle\n    controlled = [skip + residual for", "middle\n    controlled = [skip for", residuals.SAY.NEVER),
        ("zip(skips, for_skips)", "zip(skips, reversed(for_skips))", residuals.SAY.REVERSED),
        (DECODE, "controlled", residuals.SAY.SKIPS),
        ("*for_skips, for_middle", "for_middle, *for_skips", residuals.SAY.MIDDLE_FIRST),
        ("middle + for_middle", "middle", residuals.SAY.NO_MIDDLE),
        ("[h, skip]", "[skip, h]", residuals.SAY.JOINED),
        (BELOW, BELOW_TOO, residuals.SAY.TO_BELOW),
        ("*for_skips, for_middle = residuals", "*for_skips, for_middle = [2 * x for x in residuals]", residuals.SAY.TWICE),
        (DECODE, "controlled[:0]", residuals.SAY.ONCE),
        (TWO_RIGHT, TWO_WRONG, residuals.SAY.REVERSED),
        (TWO_RIGHT, TWO_WRONG, residuals.SAY.NO_MIDDLE),
    ),
    *answers(
        8,
        ("return 1 - hint\n", "return hint\n", hints.SAY.INVERTED),
        ("hint.flip(0)", "hint", hints.SAY.EXCHANGED),
        ("hint.flip(0)", "hint.roll(1, 0)", hints.SAY.NOT_A_SWAP),
        ("(hint + 1) / 2", "hint", hints.SAY.BELOW_0),
        ("(hint + 1) / 2", "hint.clamp(0, 1)", hints.SAY.CUT_OFF),
        ("(hint > 0.26).float()", "(2 * hint).clamp(0, 1)", hints.SAY.GREY),
        ("(hint > 0.26).float()", "(hint > 0.6).float()", hints.SAY.EMPTY),
        ("hint.roll((-SHIFT[0], -SHIFT[1]), (1, 2))", "hint", hints.SAY.SHIFTED),
        ("(-SHIFT[0], -SHIFT[1])", "(-SHIFT[0], 0)", hints.SAY.SHIFTED),
        ("(-SHIFT[0], -SHIFT[1])", "(SHIFT[0], SHIFT[1])", hints.SAY.WRONG_WAY),
        ("1 - F.max_pool2d(1 - hint[None], 5, 1, 2)[0]", "hint", hints.SAY.THICK),
    ),
    *answers(
        9,
        ("loss(hints.roll(1, dims=0)) - loss(hints)", "loss(hints) - loss(hints.roll(1, dims=0))", gain.SAY.SIGN),
        ("hints.roll(1, dims=0)", "hints", gain.SAY.NO_GAIN),
        ("hints.roll(1, dims=0)", "0 * hints", gain.SAY.BLACK),
        (") - loss", ") / loss", gain.SAY.RATIO),
        (" - loss(hints)", "", gain.SAY.ONLY_LOSS),
    ),
    *answers(
        10,
        ("return a + (b - a) * (level - low) / (high - low)", "return b", jump.SAY.LOOKED_AT),
        ("points = list(zip(steps, scores))\n", "points = list(zip(steps, scores))\n    rises = [b[1] - a[1] for a, b in zip(points, points[1:])]\n    if level < 0.9:\n        return steps[rises.index(max(rises))]\n", jump.SAY.STEEPEST),
        ("zip(points, points[1:])", "reversed([*zip(points, points[1:])])", jump.SAY.LAST_TIME),
        ("return None", "return steps[-1]", jump.SAY.NEVER),
        ("BROKEN_AFTER_300 = False", "BROKEN_AFTER_300 = True", jump.SAY.NOT_BROKEN),
        ('"half": 250}', '"half": 2000}', jump.SAY.BOTH_HELP),
        ('"half": 250}', '"half": 2000}', "Right so far: BROKEN_AFTER_300, first_step_at, runs/scaled, runs/half."),
        ("FOUND = {run: found(run)", "FOUND = {run: 0.9 * found(run)", jump.SAY.NOT_FOUND.format(run="scaled", level=0.4)),
    ),
    *answers(
        11,
        ("0.825 ** (n - 1 - i)", "0.825 ** i", weights.SAY.GUESS_REVERSED),
        ("0.825 ** (n - 1 - i)", "0.825 ** (n - i)", weights.SAY.GUESS_ONE_MORE),
        ("0.825 ** (n - 1 - i)", "10 ** (i / (n - 1) - 1)", weights.SAY.GUESS_EVEN),
        ("for height in heights]", "for height in heights[::-1]]", weights.SAY.EIGHT_FIRST),
        ("heights[0] / height", "height / heights[0]", weights.SAY.INVERTED),
        ("heights[0] / height", "64 / height", weights.SAY.FIXED_64),
        ("[strength] * n", "[1] * n", weights.SAY.NO_STRENGTH.format(mode="plain")),
        ('[mode == "plain"] * pictures + [True] * pictures', '[True] * pictures + [mode == "plain"] * pictures', weights.SAY.OTHER_HALF.format(mode="guess")),
        ('[mode == "plain"] * pictures', "[True] * pictures", weights.SAY.ALL_ROWS.format(mode="guess")),
        ('[mode == "plain"] * pictures', "[False] * pictures", weights.SAY.PLAIN_ROWS),
    ),
    *answers(
        12,
        ("enumerate(ORDER, 1)", "enumerate(ORDER[::-1], 1)", "is something else than"),
        ('": name for', '": name.replace("_", "-") for', "is no word of ERRORS"),
        ("self.inputs(x, hint, t, context)", "self.inputs(x, hint[:, ::-1], t, context)", "has the right name and is not mended"),
        ("MENDED[name] | {", "{", "has the right name, and no code of its own for"),
        ('convolutions": {"run_control": run_control}', 'convolutions": {"run_control": lambda self, x, hint, *others: run_control(self, x, 0 * hint, *others)}', "no longer has this error, but it is no working ControlNet now"),
        ("return (self.unet(x, t, prompts, residuals) - noise)", "return (self.unet(x, t, prompts, residuals) - noise).detach()", "no longer has this error, but it is no working ControlNet now"),
    ),
]  # fmt: skip
