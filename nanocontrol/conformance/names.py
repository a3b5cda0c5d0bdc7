"""diffusers' names of all tensors, the base's included, for adapters of code with those names."""

from functools import cache

from nanocontrol.conformance.cases import BASE, CONFIG, CONTROL, shapes
from nanocontrol.controlnet import HINT_LAYERS
from nanocontrol.formats.diffusers_names import RES_BLOCK, name_table


@cache
def diffusers_names() -> dict[str, str]:
    """The original's name -> diffusers', without the prefixes: of all tensors in `cases.shapes`,
    the base's, which is diffusers' UNet2DConditionModel, and the ControlNet's."""
    beginnings, found = table_of_beginnings(), {}
    for name in shapes():
        own = name.removeprefix(BASE).removeprefix(CONTROL)
        ours = next(beginning for beginning in beginnings if own.startswith(beginning))
        found[name] = beginnings[ours] + own.removeprefix(ours)
    return found


def table_of_beginnings() -> dict[str, str]:
    """`name_table` with the base's decoder."""
    levels, res_blocks = len(CONFIG.channel_mult), CONFIG.num_res_blocks
    names = name_table(levels, res_blocks, len(HINT_LAYERS))
    names |= {"out.0.": "conv_norm_out.", "out.2.": "conv_out."}
    for i in range(levels * (res_blocks + 1)):
        level, number = divmod(i, res_blocks + 1)
        attends = levels - 1 - level in CONFIG.attention_levels
        for ours, theirs in RES_BLOCK.items():
            names[f"output_blocks.{i}.0.{ours}."] = f"up_blocks.{level}.resnets.{number}.{theirs}."
        names[f"output_blocks.{i}.{1 + attends}.conv."] = f"up_blocks.{level}.upsamplers.0.conv."
        names[f"output_blocks.{i}.1."] = f"up_blocks.{level}.attentions.{number}."
    return names
