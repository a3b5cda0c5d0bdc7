"""Move a ControlNet to another base model of the same architecture, without training:

    python -m nanocontrol.tools.transfer --control C --from A --to B --out F

For a ControlNet C that was trained with the base A, and another base B (say, A fine-tuned to an
artist's style), it writes C + B - A, tensor by tensor: the change that training made to the copy of
A is made to a copy of B. (The original's tool_transfer_control.py.) Zero convolutions and condition
encoder have no counterpart in a base; they stay as they are.
"""

import argparse
import os
from pathlib import Path

from tqdm import tqdm

from nanocontrol.checkpoint import load_sd, metadata_of, read_base, read_control
from nanocontrol.formats.original_names import CONTROL_KEYS, UNET_KEYS, holds_base
from nanocontrol.formats.tensors import (
    Tensors,
    below,
    load_weights,
    open_tensors,
    without_weights,
    write_tensors,
)
from nanocontrol.nano.model import name_of
from nanocontrol.plumbing.errors import LONGEST, InputError, blame, one_sentence, say
from nanocontrol.plumbing.flags import Parser
from nanocontrol.unet import UNet


def plus_difference(c: Tensors, a: Tensors, b: Tensors) -> Tensors:
    """C + B - A for every tensor of C that the U-Nets of A and B have too; the others are C's."""

    new = {}
    for name, own in tqdm(c.items(), "transferring"):
        new[name] = own
        if name in a:
            # In float32, in C's precision at last. With B - A first, nothing changes where B is A.
            new[name] = (own.float() + (b[name].float() - a[name].float())).to(own.dtype)
        if not new[name].isfinite().all():
            kind = str(own.dtype).removeprefix("torch.")
            raise InputError(f"{name} would leave {kind}'s range; expected float32")
    return new


def transfer(control: Path, base_a: Path, base_b: Path, out: Path) -> None:
    """As in the original, a file with a base inside (ControlNet 1.0) gets B's VAE and text encoder,
    and its U-Net (whose decoder may have been trained) is moved as well."""
    with blame("--from"):
        file_a, config_a = read_base(base_a)
    with blame("--to"):
        file_b, config_b = read_base(base_b)
    with blame("--control"):
        file_c = open_tensors(control)
        c = read_control(file_c, config_a)
    if not c.config == config_a == config_b:
        raise InputError(
            f"--control {control} is for {name_of(c.config)}, --from {base_a} is "
            f"{name_of(config_a)}, --to {base_b} is {name_of(config_b)}; expected one architecture",
            longest=3 * LONGEST,
        )
    with blame("--from"):  # what they predict does not matter here
        unet_a = load_sd(file_a, prediction="eps").unet.state_dict()
    with blame("--to"):
        unet_b = load_sd(file_b, prediction="eps").unet.state_dict()
    with blame(f"--control {control}"):
        moved = plus_difference(c.state_dict(), unet_a, unet_b)
    new = {CONTROL_KEYS + k: t for k, t in moved.items()}
    metadata = metadata_of(c.config, file_c.metadata.get("condition"))
    if holds_base(file_c.tensors):
        with without_weights():
            empty = UNet(c.config)
        unet_c = load_weights(empty, below(UNET_KEYS, file_c.tensors), control).state_dict()
        new |= file_b.tensors
        new |= {UNET_KEYS + k: t for k, t in plus_difference(unet_c, unet_a, unet_b).items()}
        metadata |= file_b.metadata
    write_tensors(out, new, metadata)


def can_begin(out: Path) -> bool:
    return not os.path.exists(out) and os.path.isdir(out.parent)


def main(argv: list[str] | None = None) -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser("transfer", description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--control", type=Path, required=True, help="a ControlNet")
    add("--from", type=Path, required=True, dest="base_a", help="the base that it was trained with")
    add("--to", type=Path, required=True, dest="base_b", help="the base that it shall fit")
    add("--out", type=Path, required=True, help="a new .safetensors file")
    args = parser.parse_args(argv)
    with one_sentence("transfer"):
        if args.out.suffix != ".safetensors" or not can_begin(args.out):
            where = "expected a new .safetensors file in an existing folder"
            raise InputError(f"--out {args.out}: {where}")
        transfer(args.control, args.base_a, args.base_b, args.out)
    say(f"{args.out}: a ControlNet for {args.base_b}")


if __name__ == "__main__":
    main()
