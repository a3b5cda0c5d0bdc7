"""The command line of sample.py."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nanocontrol.plumbing.flags import (
    Parser,
    at_least,
    device,
    finite,
    fraction,
    multiple_of_64,
    numbers,
    seed,
    utf8,
)
from nanocontrol.plumbing.machine import default_device, default_dtype

SEVERAL: dict[str, Any] = {"action": "append", "default": []}
OF_STEPS: dict[str, Any] = {"type": fraction, "metavar": "FRACTION"}


def parse_flags(argv: list[str] | None, description: str) -> argparse.Namespace:
    """The flags with their defaults, checked against each other; no file is opened."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=description, formatter_class=formatter)
    add_networks_and_hints(parser.add_argument)
    add_prompts(parser)
    add_sampling(parser)
    add_image(parser.add_argument)
    add_output(parser.add_argument)
    args = parser.parse_args(argv)
    args.dtype = args.dtype or default_dtype(args.device)
    check_flags(parser, args)
    return args


def add_networks_and_hints(add: Callable) -> None:
    base = "a Stable Diffusion 1 or 2 (default: the one in --control, else nano)"
    add("--base", type=Path, metavar="FILE", help=base)
    control = "a ControlNet for that base; may be repeated"
    add("--control", type=Path, metavar="FILE", **SEVERAL, help=control)
    add("--hint", type=Path, metavar="FILE", **SEVERAL, help="control image; one per --control")
    strength = "1 as trained: a number, or one for each residual, like 1,1,0.5; one per --control"
    add("--strength", type=numbers, metavar="NUMBERS", **SEVERAL, help=strength)
    canny = "the --hint files are photos, all of them: follow their edges; once, or one per --hint"
    add("--canny", nargs=2, type=at_least(0), metavar=("LOW", "HIGH"), **SEVERAL, help=canny)


def add_prompts(parser: argparse.ArgumentParser) -> None:
    words = parser.add_mutually_exclusive_group()
    prompt = "what the picture shows; 'default' is the paper's default prompt (default: none)"
    words.add_argument("--prompt", type=utf8, help=prompt)
    words.add_argument("--prompt-from", type=Path, metavar="FILE", help="a caption file (text)")
    negative = "what the picture does not show"
    parser.add_argument("--negative", type=utf8, default="", metavar="PROMPT", help=negative)


def add_sampling(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--n", type=at_least(1), default=4, help="pictures to make (default: 4)")
    add("--steps", type=at_least(1), default=20, help="1 to 1000 (default: 20)")
    add("--scale", type=finite, help="of guidance (default: 9; nano has its own)")
    rule = parser.add_mutually_exclusive_group()
    guess = "guess mode, for hints without a prompt"
    rule.add_argument("--guess", action="store_true", help=guess)
    rule.add_argument("--resolution-weighting", action="store_true", help="the paper's CFG-RW")
    begins = "share of the steps before control begins (default: 0)"
    add("--control-from", **OF_STEPS, default=0.0, help=begins)
    add("--control-to", **OF_STEPS, default=1.0, help="and before it ends (default: 1)")
    add("--eta", type=fraction, default=0.0, help="DDIM's noise, 0 to 1 (default: 0)")
    add("--sampler", choices=["ddim", "ddpm"], default="ddim", help="default: ddim")
    add("--prediction", choices=["auto", "eps", "v"], default="auto", help="what the base predicts")
    add("--seed", type=seed, default=0)


def add_image(add: Callable) -> None:
    image = "a picture to begin with (--noise) or to repaint (--mask)"
    add("--image", type=Path, metavar="FILE", help=image)
    mask = "the part of --image that is white here is repainted, the rest is kept"
    add("--mask", type=Path, metavar="FILE", help=mask)
    noise = "img2img: share of the steps to run on --image (default: 0.75, or noise with --mask)"
    add("--noise", **OF_STEPS, help=noise)


def add_output(add: Callable) -> None:
    size = "in pixels (default: the shape of hint or image, with the base's size as short side)"
    add("--height", type=multiple_of_64, help=size)
    add("--width", type=multiple_of_64)
    add("--device", type=device, default=default_device(), help="default: a GPU if there is one")
    dtype = "default: bf16 on a GPU that has it, fp16 on others, fp32 (exact) on a CPU"
    add("--dtype", choices=["fp32", "bf16", "fp16"], help=dtype)
    add("--out", type=Path, default=Path("out"), metavar="DIR", help="default: out")
    # The flags of a command that moved; they are refused with its new name.
    add("--explain", "--check", nargs="?", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def check_flags(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse flags that contradict each other."""
    if "explain" in args:
        command = "python -m nanocontrol.tools.explain FILE [--check]"
        parser.error(f"--explain and --check are a command of their own now: {command}")
    if args.steps > 1000:
        parser.error(f"--steps {args.steps}: must be at most 1000")
    if args.eta and args.sampler == "ddpm":
        parser.error("--eta is DDIM's: it cannot be used with --sampler ddpm")
    if args.control_from > args.control_to:
        order = f"--control-from {args.control_from:g} is after --control-to {args.control_to:g}"
        parser.error(f"{order}; expected numbers from 0 to 1, in this order")
    if (args.mask or args.noise is not None) and not args.image:
        parser.error("--mask and --noise are for a picture: they need --image")
    if args.canny and not args.hint:
        parser.error("--canny is for a picture: it needs --hint")
    if len(args.canny) not in (0, 1, len(args.hint)):
        given = f"--canny is given {len(args.canny)} times, --hint {len(args.hint)} times"
        parser.error(f"{given}; expected one --canny, or one for each --hint")
    for low, high in args.canny:
        if low > high:
            parser.error(f"--canny {low} {high}: expected the lower threshold first")
