"""What sample.py is given: which files, whether they go together, and reading them."""

import argparse
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from nanocontrol.checkpoint import holds_base, read_base, read_control
from nanocontrol.nano.model import NANO, NANO_CONTROL, condition_of
from nanocontrol.nano.scenes import HELD_OUT, Scenes
from nanocontrol.plumbing.canny import canny
from nanocontrol.plumbing.errors import InputError, blame
from nanocontrol.plumbing.pictures import picture_size, read_caption, read_picture, size_to_sample
from nanocontrol.plumbing.tensors import read_tensors
from nanocontrol.tools.explain import name_of

DEFAULT_PROMPT = "a high-quality, detailed, and professional image"  # section 4.1 of the paper


class Inputs(NamedTuple):
    hints: list[Tensor]  # [3, H, W] in [0, 1], one for each ControlNet
    image: Tensor | None  # [3, H, W] in [0, 1]
    mask: Tensor | None  # [H, W], bool: where it is painted anew
    prompt: str


def choose_files(args: argparse.Namespace) -> None:
    """Without --base: the base inside a ControlNet v1.0 file, or nano, which draws its own hint."""
    if args.base is None:
        with blame("--control"):
            inside = (file for file in args.control if holds_base(read_tensors(file)[0]))
            args.base = next(inside, None)
    args.drawn = args.base is None and not args.hint and args.image is None
    if args.base is None:
        args.base = NANO
        if not args.control and (args.drawn or args.hint):
            args.control = [NANO_CONTROL]


def check_files(args: argparse.Namespace) -> None:
    """Refuse files that do not go together. Nothing is computed and no weight is read. Sets the
    base's size, and a strength for each ControlNet."""
    hints = len(args.hint) + args.drawn
    if not len(args.control) == hints == len(args.strength or args.control):
        given = [f"--control {file}" for file in args.control]
        given += [f"--hint {file}" for file in args.hint]
        given += [f"--strength {listed(values)}" for values in args.strength]
        wanted = "one --hint for each --control, and one --strength for each or none"
        raise InputError(f"{' '.join(given)}: {wanted} are wanted")
    if not args.control:
        whole = (args.control_from, args.control_to) == (0, 1)
        if args.guess or args.resolution_weighting or not whole:
            raise InputError(
                "--guess, --resolution-weighting, --control-from and --control-to are for a "
                "ControlNet: --control is wanted"
            )
    args.strength = args.strength or [[1.0]] * hints
    with blame("--base"):
        _, metadata, base = read_base(args.base)
    args.size = metadata.get("size", 512)
    for i, file in enumerate(args.control):
        with blame("--control"):
            control = read_control(file)
        if control.config != base:
            raise InputError(
                f"--control: {file} is a ControlNet for {name_of(control.config)}, {args.base} is "
                f"{name_of(base)}; a ControlNet for that is wanted"
            )
        given, n = args.strength[i], len(control.zero_convs) + 1
        if len(given) not in (1, n):
            raise InputError(
                f"--strength {listed(given)}: {len(given)} numbers; one, or one for each of the "
                f"{n} residuals of {file} is wanted"
            )
        args.strength[i] = given[0] if len(given) == 1 else given


def listed(values: list) -> str:
    return ",".join(map(str, values))


def times(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def read_inputs(args: argparse.Namespace) -> Inputs:
    """The pictures and the prompt; sets --width and --height to the size of all pictures."""
    prompt = DEFAULT_PROMPT if args.prompt == "default" else args.prompt or ""
    if args.prompt_from:
        with blame("--prompt-from"):
            prompt = read_caption(args.prompt_from)
    if args.drawn:
        with blame("--control"):
            condition = condition_of(args.control[0])
        _, hint, shown = Scenes(condition, HELD_OUT)[args.seed % HELD_OUT]
        size = (hint.shape[2], hint.shape[1])
        if (args.width or size[0], args.height or size[1]) != size:
            raise InputError(
                f"--width and --height: the drawn hint is {times(size)}; for other sizes a --hint "
                "is wanted"
            )
        args.width, args.height = size
        no_prompt = args.prompt is None and args.prompt_from is None
        return Inputs([hint], None, None, shown if no_prompt else prompt)

    files = [("--hint", file) for file in args.hint] + [("--image", args.image)] * bool(args.image)
    check_sizes(args, files)
    size = (args.width, args.height)
    pictures = []
    for i, (flag, file) in enumerate(files):
        with blame(flag):
            picture = read_picture(file, size)
        pictures.append(canny(picture, *args.canny[i]) if i in args.canny else picture)
    image = pictures.pop() if args.image else None
    mask = None
    if args.mask:
        with blame("--mask"):
            mask = read_picture(args.mask, size).mean(dim=0) > 0.5
        if not mask.any():
            raise InputError(f"--mask: nothing in {args.mask} is white, so nothing would be new")
    return Inputs(pictures, image, mask, prompt)


def check_sizes(args: argparse.Namespace, files: list[tuple[str, Path]]) -> None:
    """Set width and height; refuse pictures that do not go together. Only headers are read."""
    if not files:
        args.width, args.height = args.width or args.size, args.height or args.size
        return
    sizes = []
    for flag, file in files:
        with blame(flag):
            own = picture_size(file)
        sizes.append(size_to_sample(own, args.size, args.width, args.height))
        if sizes[-1] != sizes[0]:
            raise InputError(
                f"{flag}: {file} is for {times(sizes[-1])}, {files[0][0]} {files[0][1]} "
                f"for {times(sizes[0])}; one shape, or --width and --height, are wanted"
            )
    if args.mask:
        with blame("--mask"):
            mask_size = picture_size(args.mask)
        if mask_size != own:  # the image's: it is the last of the files
            raise InputError(
                f"--mask: {args.mask} is {times(mask_size)}, the picture {args.image} is "
                f"{times(own)}; a mask of that size is wanted"
            )
    args.width, args.height = sizes[0]
