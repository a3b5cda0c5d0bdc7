"""diffusers' names of a ControlNet's tensors (`diffusion_pytorch_model.safetensors`).

Such files are read like any other ControlNet; tools/to_diffusers.py writes them.
"""

import re

from nanocontrol.formats.tensors import Tensors

# A ResBlock's modules: the original's name, diffusers' name.
RES_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def name_table(levels: int, res_blocks: int, hint_layers: int) -> dict[str, str]:
    """The beginnings of tensors' names: the original's -> diffusers'. Below a SpatialTransformer
    both are equal.

    levels, res_blocks: Stable Diffusion has 4 resolutions with 2 ResBlocks each; hint_layers: the
    convolutions of the condition encoder before its last one.
    """
    names = {
        "time_embed.0.": "time_embedding.linear_1.",
        "time_embed.2.": "time_embedding.linear_2.",
        "input_hint_block.0.": "controlnet_cond_embedding.conv_in.",
        f"input_hint_block.{2 * hint_layers}.": "controlnet_cond_embedding.conv_out.",
        "input_blocks.0.0.": "conv_in.",
        "middle_block.1.": "mid_block.attentions.0.",
        "middle_block_out.0.": "controlnet_mid_block.",
    }
    for i in range(hint_layers - 1):
        names[f"input_hint_block.{2 * i + 2}."] = f"controlnet_cond_embedding.blocks.{i}."
    for i in range(levels * (res_blocks + 1)):
        names[f"zero_convs.{i}.0."] = f"controlnet_down_blocks.{i}."
    res = {"middle_block.0.": "mid_block.resnets.0.", "middle_block.2.": "mid_block.resnets.1."}
    for level in range(levels):
        first = 1 + level * (res_blocks + 1)
        for i in range(res_blocks):
            res[f"input_blocks.{first + i}.0."] = f"down_blocks.{level}.resnets.{i}."
            names[f"input_blocks.{first + i}.1."] = f"down_blocks.{level}.attentions.{i}."
        down = f"down_blocks.{level}.downsamplers.0.conv."
        names[f"input_blocks.{first + res_blocks}.0.op."] = down
    for ours, theirs in res.items():
        for our_module, their_module in RES_BLOCK.items():
            names[f"{ours}{our_module}."] = f"{theirs}{their_module}."
    return names


def renamed(tensors: Tensors, names: dict[str, str]) -> Tensors:
    """The tensors with the beginnings of their names replaced. A name that is not in the table is
    kept. Raises ValueError if two tensors get one name."""

    def rename(name: str) -> str:
        for old, new in names.items():
            if name.startswith(old):
                return new + name.removeprefix(old)
        return name

    found = {rename(name): tensor for name, tensor in tensors.items()}
    if len(found) < len(tensors):
        raise ValueError("two tensors of one name")
    return found


def is_diffusers(tensors: Tensors) -> bool:
    return any(name.startswith("controlnet_") for name in tensors)


def from_diffusers(tensors: Tensors, hint_layers: int) -> Tensors:
    """A ControlNet's tensors in diffusers' layout -> under the original's names. hint_layers: as in
    `name_table`."""

    def found(pattern: str) -> int:
        return len({match[0] for name in tensors if (match := re.match(pattern, name))})

    levels, res_blocks = found(r"down_blocks\.\d+"), found(r"down_blocks\.0\.resnets\.\d+")
    names = name_table(levels, res_blocks, hint_layers)
    return renamed(tensors, {theirs: ours for ours, theirs in names.items()})


def to_diffusers(tensors: Tensors, levels: int, res_blocks: int, hint_layers: int) -> Tensors:
    """A ControlNet's state dict -> the tensors under diffusers' names. The numbers: as in
    `name_table`."""
    return renamed(tensors, name_table(levels, res_blocks, hint_layers))
