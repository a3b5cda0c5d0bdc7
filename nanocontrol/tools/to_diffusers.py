"""Write a ControlNet as diffusers reads it:

    python -m nanocontrol.tools.to_diffusers --control control.safetensors --out my-controlnet

makes a folder for `ControlNetModel.from_pretrained("my-controlnet")`. (Nothing is needed the other
way: diffusers' files are read like any other ControlNet.)
"""

import argparse
import json
import os
from pathlib import Path

from nanocontrol.checkpoint import metadata_of, read_control
from nanocontrol.controlnet import HINT_LAYERS, ControlNet, read_hint_channels
from nanocontrol.formats.diffusers_names import to_diffusers
from nanocontrol.formats.tensors import open_tensors, write_tensors
from nanocontrol.plumbing.errors import InputError, blame, one_sentence, say
from nanocontrol.plumbing.files import make_folder, write_atomically
from nanocontrol.plumbing.flags import Parser


def config_of(control: ControlNet) -> dict:
    """The architecture, by diffusers' names: it builds the network from this."""
    config = control.config
    levels = range(len(config.channel_mult))
    channels = [config.model_channels * mult for mult in config.channel_mult]
    heads = [c // config.head_dim if config.head_dim else config.num_heads for c in channels]
    kinds = [
        "CrossAttnDownBlock2D" if i in config.attention_levels else "DownBlock2D" for i in levels
    ]
    return {
        "_class_name": "ControlNetModel",
        "block_out_channels": channels,
        "down_block_types": kinds,
        "layers_per_block": config.num_res_blocks,
        "cross_attention_dim": config.context_dim,
        "attention_head_dim": heads,  # the number of heads, in spite of its name
        "use_linear_projection": config.linear_proj,
        "norm_num_groups": config.norm_groups,
        "conditioning_embedding_out_channels": [*read_hint_channels(control.state_dict())],
    }


def export(control: Path, out: Path) -> None:
    with blame("--control"):
        net = read_control(control)
    make_folder("--out", out)
    text = json.dumps(config_of(net), indent=2) + "\n"
    write_atomically(out / "config.json", lambda temporary: temporary.write_text(text))
    levels, res_blocks = len(net.config.channel_mult), net.config.num_res_blocks
    tensors = to_diffusers(net.state_dict(), levels, res_blocks, len(HINT_LAYERS))
    metadata = metadata_of(net.config, open_tensors(control).metadata.get("condition"))
    write_tensors(out / "diffusion_pytorch_model.safetensors", tensors, metadata)


def main(argv: list[str] | None = None) -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser("to_diffusers", description=__doc__, formatter_class=formatter)
    parser.add_argument("--control", type=Path, required=True, help="a ControlNet")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    args = parser.parse_args(argv)
    with one_sentence("to_diffusers"):
        if os.path.exists(args.out):
            raise InputError(f"--out: {args.out} exists; expected a new folder")
        export(args.control, args.out)
    say(f"{args.out}: a folder for diffusers")


if __name__ == "__main__":
    main()
