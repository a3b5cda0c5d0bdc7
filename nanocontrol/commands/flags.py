"""sample.py's command line."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nanocontrol.plumbing.flags import (
    at_least,
    device,
    finite,
    fraction,
    multiple_of_64,
    numbers,
    seed,
)
from nanocontrol.plumbing.machine import default_device, default_dtype

SEVERAL: dict[str, Any] = {"action": "append", "default": []}
OF_STEPS: dict[str, Any] = {"type": fraction, "metavar": "FRACTION"}


class CannyOfHint(argparse.Action):
    """--canny belongs to the --hint before it, or to the first."""

    def __call__(self, parser, args, values, option_string=None):
        args.canny = args.canny | {max(0, len(args.hint) - 1): values}


def parse(argv: list[str] | None, description: str) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=formatter)
    add_networks_and_hints(parser.add_argument)
    add_prompts(parser)
    add_sampling(parser)
    add_image(parser.add_argument)
    add_output(parser.add_argument)
    args = parser.parse_args(argv)
    args.dtype = args.dtype or default_dtype(args.device)
    check(parser, args)
    return args


def add_networks_and_hints(add: Callable) -> None:
    add("--base", type=Path, help="a Stable Diffusion 1 or 2 (default: in --control, else nano)")
    add("--control", type=Path, **SEVERAL, help="a ControlNet for that base; may be repeated")
    add("--hint", type=Path, **SEVERAL, help="the picture that it follows; one for each")
    strength = "of a control, 1 as trained: a number, or one for each residual, like 1,1,0.5"
    add("--strength", type=numbers, **SEVERAL, help=strength)
    add(
        "--canny",
        nargs=2,
        type=at_least(0),
        metavar=("LOW", "HIGH"),
        action=CannyOfHint,
        default={},
        help="the --hint before this is a photo: follow its edges",
    )


def add_prompts(parser: argparse.ArgumentParser) -> None:
    words = parser.add_mutually_exclusive_group()
    prompt = "what the picture shows; 'default' is the paper's default prompt (not given: none)"
    words.add_argument("--prompt", help=prompt)
    words.add_argument("--prompt-from", type=Path, metavar="FILE", help="a caption file (text)")
    negative = "what it does not show"
    parser.add_argument("--negative", default="", metavar="PROMPT", help=negative)


def add_sampling(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--n", type=at_least(1), default=4, help="pictures to make (default: 4)")
    add("--steps", type=at_least(1), default=20, help="1 to 1000 (default: 20)")
    add("--scale", type=finite, help="of guidance (default: 9; nano has its own)")
    rule = parser.add_mutually_exclusive_group()
    rule.add_argument("--guess", action="store_true", help="guess mode: for hints without prompt")
    rule.add_argument("--resolution-weighting", action="store_true", help="the paper's CFG-RW")
    add("--control-from", **OF_STEPS, default=0.0, help="of the steps, where control begins")
    add("--control-to", **OF_STEPS, default=1.0, help="and where it ends")
    add("--eta", type=fraction, default=0.0, help="DDIM's noise, 0 to 1 (default: 0)")
    add("--sampler", choices=["ddim", "ddpm"], default="ddim")
    add("--prediction", choices=["auto", "eps", "v"], default="auto", help="what the base predicts")
    add("--seed", type=seed, default=0)


def add_image(add: Callable) -> None:
    add("--image", type=Path, help="a picture to begin with (see --noise), or to repaint (--mask)")
    add("--mask", type=Path, help="white is painted anew, all else stays")
    noise = "how far to noise --image, 0 to 1 (default: 0.75; with --mask: begin with noise)"
    add("--noise", **OF_STEPS, help=noise)


def add_output(add: Callable) -> None:
    size = "in pixels (default: the hint's or image's shape, its short side being the base's size)"
    add("--height", type=multiple_of_64, help=size)
    add("--width", type=multiple_of_64)
    add("--device", type=device, default=default_device(), help="default: a GPU if there is one")
    dtype = "default: bf16 on a GPU that has it, fp16 on others, fp32 (exact) on a CPU"
    add("--dtype", choices=["fp32", "bf16", "fp16"], help=dtype)
    add("--out", type=Path, default=Path("out"), metavar="DIR", help="default: out")
    add("--explain", type=Path, metavar="FILE", help="say what a checkpoint is, and stop")
    every = "with --explain: read every byte (of files up to 1 GB this is always done)"
    add("--check", action="store_true", help=every)


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse flags that do not go together."""
    if args.steps > 1000:
        parser.error(f"--steps {args.steps}: must be at most 1000")
    if args.eta and args.sampler == "ddpm":
        parser.error("--eta is DDIM's: it cannot be used with --sampler ddpm")
    if args.control_from > args.control_to:
        order = f"--control-from {args.control_from:g} is after --control-to {args.control_to:g}"
        parser.error(f"{order}; expected numbers from 0 to 1, in this order")
    if (args.mask or args.noise is not None) and not args.image:
        parser.error("--mask and --noise are for a picture: they need --image")
    if args.check and not args.explain:
        parser.error("--check needs --explain FILE, the checkpoint to be read")
    if args.canny and not args.hint:
        parser.error("--canny is for a picture: it needs --hint")
    for low, high in args.canny.values():
        if low > high:
            parser.error(f"--canny {low} {high}: expected the lower threshold first")
