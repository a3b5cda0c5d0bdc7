"""The files that sample.py's flags name: choosing, checking and reading them."""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from nanocontrol.checkpoint import read_base, read_control
from nanocontrol.clip import MAX_TOKENS
from nanocontrol.controlnet import ControlNet
from nanocontrol.formats.original_names import holds_base
from nanocontrol.formats.tensors import TensorFile, open_tensors
from nanocontrol.formats.tokenizer import count_tokens
from nanocontrol.nano.model import NANO, NANO_CONTROL, condition_of, name_of
from nanocontrol.nano.scenes import HELD_OUT, Scenes
from nanocontrol.nano.world import SIZES
from nanocontrol.plumbing.canny import canny
from nanocontrol.plumbing.errors import LONGEST, InputError, blame, say
from nanocontrol.plumbing.pictures import picture_size, read_caption, read_picture, size_to_sample
from nanocontrol.sampling import Strength
from nanocontrol.unet import UNetConfig

DEFAULT_PROMPT = "a high-quality, detailed, and professional image"  # section 4.2 of the paper


MOST_OBLONG = 8  # ratio of a picture's sides


@dataclass(frozen=True)
class Inputs:
    """The files that the flags name, read and checked against each other."""

    base: TensorFile
    control_files: list[Path]
    controls: list[ControlNet]  # on the CPU, in their files' precision
    strengths: list[Strength]  # one for each ControlNet
    hints: list[Tensor]  # [3, H, W], RGB in [0, 1], one for each ControlNet
    image: Tensor | None  # [3, H, W], RGB in [0, 1]
    mask: Tensor | None  # [H, W], bool: True where the image is repainted
    prompt: str
    height: int  # of all pictures, in pixels
    width: int
    noised: float | None  # the share of the steps to run on the image; None without img2img

    def settings(self) -> dict:
        """The values used for flags that can be left out, by the flags' names."""
        return {
            "base": self.base.path,
            "control": self.control_files,
            "strength": self.strengths,
            "prompt": self.prompt,
            "height": self.height,
            "width": self.width,
            "noise": self.noised,
        }


def read_inputs(args: argparse.Namespace) -> Inputs:
    """Read the files that the flags name, each once. Weights and pictures' sizes are checked before
    pictures are read. Nothing is computed, and no weight is read yet.

    Raises InputError, naming flag and file, for files that cannot be read or do not match.
    """
    base, files, drawn = choose_files(args)
    check_numbers(args, files, drawn)
    with blame("--base"):
        _, config = read_base(base)
    strengths = args.strength or [[1.0]] * len(files)
    controls = [
        build_control(file, strength, base.path, config)
        for file, strength in zip(files, strengths, strict=True)
    ]
    prompt = read_prompt(args)
    if drawn:
        hint, scene = draw_hint(args, files[0], base.metadata.get("size", 512))
        pictures, mask, size = [hint], None, (hint.shape[2], hint.shape[1])
        prompt = scene if prompt is None else prompt
    else:
        size = common_size(args, base.metadata.get("size", 512))
        pictures, mask = read_pictures(args, size)
    for text in (prompt or "", args.negative):
        if (n := count_tokens(text)) > MAX_TOKENS:
            cut = f"has {n} tokens, of which {n - MAX_TOKENS} are cut (at most {MAX_TOKENS})"
            say(f"the prompt {text[:60]!r}... {cut}", sys.stderr)
    begins_with_image = args.image and not args.mask and args.noise is None
    return Inputs(
        base=base,
        control_files=[file.path for file in files],
        controls=controls,
        strengths=[s[0] if len(s) == 1 else s for s in strengths],
        hints=pictures[: len(controls)],
        image=pictures[-1] if args.image else None,
        mask=mask,
        prompt=prompt or "",
        height=size[1],
        width=size[0],
        noised=0.75 if begins_with_image else args.noise,
    )


def refuse_oblong(file: Path, size: tuple[int, int]) -> None:
    """Refuse a picture that would be sampled far larger than the base's pictures."""
    if max(size) > MOST_OBLONG * min(size):
        expected = f"sides of at most {MOST_OBLONG} to 1, or --width and --height"
        raise InputError(f"{file} is {times(size)}; expected {expected}")


def refuse_nan(numbers: Tensor) -> Tensor:
    """Latents or a picture, if all numbers are finite."""
    if not numbers.isfinite().all():
        raise InputError(
            "NaN or infinite numbers came out: try --dtype fp32, a smaller --strength or --scale; "
            "python -m nanocontrol.tools.explain FILE --check looks for NaN in a --base"
        )
    return numbers


# ------------------------------------------------------------------------------- checkpoints


def choose_files(args: argparse.Namespace) -> tuple[TensorFile, list[TensorFile], bool]:
    """The base's file, the ControlNets' files, and whether the hint is drawn. Without --base the
    base is inside a ControlNet 1.0 file, or it is nano, for which a hint can be drawn."""
    with blame("--control"):
        controls = [open_tensors(file) for file in args.control]
    if args.base is not None:
        with blame("--base"):
            return open_tensors(args.base), controls, False
    if inside := [file for file in controls if holds_base(file.tensors)]:
        return inside[0], controls, False
    drawn = not args.hint and args.image is None
    if not controls and (drawn or args.hint):
        controls = [open_tensors(NANO_CONTROL)]
    return open_tensors(NANO), controls, drawn


def check_numbers(args: argparse.Namespace, controls: list[TensorFile], drawn: bool) -> None:
    """Refuse wrong numbers of hints and strengths, and flags for ControlNets without one."""
    hints = len(args.hint) + drawn
    if not len(controls) == hints == len(args.strength or controls):
        given = [f"--control {file.path}" for file in controls]
        given += [f"--hint {file}" for file in args.hint]
        given += [f"--strength {joined(values)}" for values in args.strength]
        raise InputError(
            f"{' '.join(given)}: expected one --hint for each --control, and one --strength for "
            "each or none",
            longest=LONGEST * (1 + len(given)),
        )
    whole = (args.control_from, args.control_to) == (0, 1)
    if not controls and (args.guess or args.resolution_weighting or not whole):
        raise InputError(
            "--guess, --resolution-weighting, --control-from and --control-to are for a "
            "ControlNet: they need --control"
        )


def build_control(
    file: TensorFile, strength: list[float], base: Path, config: UNetConfig
) -> ControlNet:
    """The ControlNet in a file. Refuse one for another base, or a wrong number of strengths.

    base, config: the file of the base and the configuration of its U-Net.
    """
    with blame("--control"):
        control = read_control(file, config)
    if control.config != config:
        raise InputError(
            f"--control: {file.path} is a ControlNet for {name_of(control.config)}, but {base} is "
            f"{name_of(config)}",
            longest=2 * LONGEST,
        )
    n = len(control.zero_convs) + 1
    if len(strength) not in (1, n):
        raise InputError(
            f"--strength {joined(strength)}: {len(strength)} numbers, expected one, or one for "
            f"each of the {n} residuals of {file.path}"
        )
    return control


def joined(values: list[float]) -> str:
    return ",".join(map(str, values))


# -------------------------------------------------------------------------- prompt and pictures


def read_prompt(args: argparse.Namespace) -> str | None:
    """The prompt; None if no flag gives one."""
    if args.prompt_from:
        with blame("--prompt-from"):
            caption = read_caption(args.prompt_from)
        if not caption:
            raise InputError(f"--prompt-from: {args.prompt_from} is empty; expected a caption")
        return caption
    return DEFAULT_PROMPT if args.prompt == "default" else args.prompt


def draw_hint(args: argparse.Namespace, control: TensorFile, size: int) -> tuple[Tensor, str]:
    """A hint [3, size, size] for a ControlNet of nano, drawn from the scene of --seed, and the
    scene's prompt."""
    with blame("--control"):
        condition = condition_of(control)
    if size not in SIZES:
        raise InputError(f"--control: no scene is drawn at the base's {size} pixels: use --hint")
    _, hint, prompt = Scenes(condition, HELD_OUT, size=size)[args.seed % HELD_OUT]
    height, width = hint.shape[1:]
    if (args.width or width, args.height or height) != (width, height):
        raise InputError(
            f"--width and --height: the drawn hint is {times((width, height))}; other sizes need a "
            "--hint"
        )
    return hint, prompt


def named_pictures(args: argparse.Namespace) -> list[tuple[str, Path]]:
    """Flag and file of every hint, then of the image if there is one."""
    image = [("--image", args.image)] if args.image else []
    return [("--hint", file) for file in args.hint] + image


def common_size(args: argparse.Namespace, short_side: int) -> tuple[int, int]:
    """(width, height) of all pictures. Refuse pictures of different shapes. Only headers are read.

    short_side: of the pictures that the base was trained on.
    """
    sizes = []
    for flag, file in named_pictures(args):
        with blame(flag):
            own = picture_size(file)
        sizes.append(size_to_sample(own, short_side, args.width, args.height))
        if not (args.width and args.height):
            with blame(flag):
                refuse_oblong(file, own)
        if sizes[-1] != sizes[0]:
            other_flag, other = named_pictures(args)[0]
            raise InputError(
                f"{flag}: {file} is for {times(sizes[-1])}, {other_flag} {other} for "
                f"{times(sizes[0])}; expected one shape, or --width and --height",
                longest=2 * LONGEST,
            )
    if args.mask:
        with blame("--mask"):
            mask_size = picture_size(args.mask)
        if mask_size != own:  # the last picture is the image
            raise InputError(
                f"--mask: {args.mask} is {times(mask_size)}, but the picture {args.image} is "
                f"{times(own)}; expected a mask of that size",
                longest=2 * LONGEST,
            )
    return sizes[0] if sizes else (args.width or short_side, args.height or short_side)


def times(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def read_pictures(
    args: argparse.Namespace, size: tuple[int, int]
) -> tuple[list[Tensor], Tensor | None]:
    """The hints, then the image if there is one, and the mask, resized to (width, height)."""
    pictures, mask = [], None
    with_thresholds = len(args.hint) if args.canny else 0
    if len(args.canny) == 1 < with_thresholds:
        say(f"--canny is for all {with_thresholds} hints", sys.stderr)
    for i, (flag, file) in enumerate(named_pictures(args)):
        with blame(flag):
            pictures.append(read_picture(file, size))
        if i < with_thresholds:  # a hint; --canny is given once for all, or once for each
            pictures[i] = canny(pictures[i], *args.canny[i % len(args.canny)])
    if args.mask:
        with blame("--mask"):
            mask = read_picture(args.mask, size).mean(dim=0) > 0.5
        if not mask.any():
            raise InputError(f"--mask: nothing in {args.mask} is white, so nothing would be new")
    return pictures, mask
