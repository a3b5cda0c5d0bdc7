"""Move a ControlNet to another base model of the same architecture, without training:

    python -m nanocontrol.transfer --control C --from A --to B --out F

For a ControlNet C that was trained with the base A, and another base B (say, A fine-tuned to an
artist's style), it writes C + B - A, tensor by tensor: the change that training made to the copy of
A is made to a copy of B. (The original's tool_transfer_control.py.) Zero convolutions and condition
encoder have no counterpart in a base; they stay as they are.
"""

import argparse
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from .checkpoint import (
    CONTROL_KEYS, UNET_KEYS, Tensors, below, holds_base, metadata_of, read_base, read_control,
    read_tensors, write_tensors,
)  # fmt: skip
from .explain import name_of
from .files import InputError
from .flags import blame, one_sentence


def transferred(tensors: Tensors, a: Tensors, b: Tensors) -> Tensors:
    """C + B - A for every tensor of C that the U-Nets of A and B have too; the others are C's."""
    return {
        name: moved(c, a[name], b[name]) if name in a and name in b else c
        for name, c in tqdm(tensors.items(), "transferring")
    }


def moved(c: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """In float32, whatever the files have. With B - A first, nothing changes where B is A."""
    a, b = (x.float().reshape(c.shape) for x in (a, b))  # a 1x1 convolution may be a linear layer
    return (c.float() + (b - a)).to(c.dtype)


def transfer(control: Path, base_a: Path, base_b: Path, out: Path) -> None:
    """As in the original, a file with a base inside (ControlNet 1.0) gets B's VAE and text encoder,
    and its U-Net (whose decoder may have been trained) is moved as well."""
    with blame("--control"):
        c, config = read_control(control)
    with blame("--from"):
        a, _, config_a = read_base(base_a)
    with blame("--to"):
        b, metadata_b, config_b = read_base(base_b)
    if not config == config_a == config_b:
        raise InputError(
            f"--control {control} is for {name_of(config)}, --from {base_a} is "
            f"{name_of(config_a)}, --to {base_b} is {name_of(config_b)}; one architecture is wanted"
        )
    unet_a, unet_b = below(UNET_KEYS, a), below(UNET_KEYS, b)
    new = {CONTROL_KEYS + name: t for name, t in transferred(c, unet_a, unet_b).items()}
    metadata = metadata_of(config)
    if holds_base(inside := read_tensors(control)[0]):
        unet = transferred(below(UNET_KEYS, inside), unet_a, unet_b)
        new |= b | {UNET_KEYS + name: tensor for name, tensor in unet.items()}
        metadata |= metadata_b
    write_tensors(out, new, metadata)


def main(argv: list[str] | None = None) -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("transfer", description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--control", type=Path, required=True, help="a ControlNet")
    add("--from", type=Path, required=True, dest="base_a", help="the base that it was trained with")
    add("--to", type=Path, required=True, dest="base_b", help="the base that it shall fit")
    add("--out", type=Path, required=True, help="a new .safetensors file")
    args = parser.parse_args(argv)
    if args.out.suffix != ".safetensors" or args.out.exists():
        parser.error(f"--out {args.out}: a new file, named .safetensors, is wanted")
    with one_sentence("transfer"):
        transfer(args.control, args.base_a, args.base_b, args.out)
    print(f"{args.out}: a ControlNet for {args.base_b}")


if __name__ == "__main__":
    main()
