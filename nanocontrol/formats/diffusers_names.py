"""The names that diffusers gives to a ControlNet's tensors (`diffusion_pytorch_model.safetensors`).

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


def table(levels: int, res_blocks: int) -> dict[str, str]:
    """The beginning of every tensor's name: the original's, diffusers'. Below a SpatialTransformer
    the two agree. Stable Diffusion has 4 levels (resolutions) with 2 ResBlocks each."""
    names = {
        "time_embed.0.": "time_embedding.linear_1.",
        "time_embed.2.": "time_embedding.linear_2.",
        "input_hint_block.0.": "controlnet_cond_embedding.conv_in.",
        "input_hint_block.14.": "controlnet_cond_embedding.conv_out.",
        "input_blocks.0.0.": "conv_in.",
        "middle_block.1.": "mid_block.attentions.0.",
        "middle_block_out.0.": "controlnet_mid_block.",
    }
    for i in range(6):
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
    """Each tensor with the beginning of its name replaced; one that is not in the table stays.
    Raises ValueError if two come to have one name."""

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


def from_diffusers(tensors: Tensors) -> Tensors:
    """A ControlNet in diffusers' layout -> the same tensors under the original's names."""

    def found(pattern: str) -> int:
        return len({match[0] for name in tensors if (match := re.match(pattern, name))})

    names = table(found(r"down_blocks\.\d+"), found(r"down_blocks\.0\.resnets\.\d+"))
    return renamed(tensors, {theirs: ours for ours, theirs in names.items()})


def to_diffusers(tensors: Tensors, levels: int, res_blocks: int) -> Tensors:
    """The other way; the names without `control_model.`. levels, res_blocks: as in `table`."""
    return renamed(tensors, table(levels, res_blocks))
