"""diffusers' names of all tensors, the base's included, for adapters of code with those names."""

from functools import cache

from nanocontrol.conformance.cases import BASE, CONFIG, CONTROL, shapes
from nanocontrol.controlnet import HINT_LAYERS
from nanocontrol.formats.diffusers_names import RES_BLOCK, name_table


@cache
def diffusers_names() -> dict[str, str]:
    """The original's name -> diffusers', without the prefixes: of all tensors in `cases.shapes`,
    the base's, which is diffusers' UNet2DConditionModel, and the ControlNet's."""
    levels, res_blocks = len(CONFIG.channel_mult), CONFIG.num_res_blocks
    beginnings = name_table(levels, res_blocks, len(HINT_LAYERS))
    beginnings |= {"out.0.": "conv_norm_out.", "out.2.": "conv_out."}
    for i in range(levels * (res_blocks + 1)):  # the decoder, which a ControlNet does not have
        level, number = divmod(i, res_blocks + 1)
        block, up = f"output_blocks.{i}.", f"up_blocks.{level}."
        for ours, theirs in RES_BLOCK.items():
            beginnings[f"{block}0.{ours}."] = f"{up}resnets.{number}.{theirs}."
        attends = levels - 1 - level in CONFIG.attention_levels
        beginnings[f"{block}{1 + attends}.conv."] = f"{up}upsamplers.0.conv."
        beginnings[f"{block}1."] = f"{up}attentions.{number}."
    found = {}
    for name in shapes():
        own = name.removeprefix(BASE).removeprefix(CONTROL)
        ours = next(beginning for beginning in beginnings if own.startswith(beginning))
        found[name] = beginnings[ours] + own.removeprefix(ours)
    return found
