"""Conversion between the original's and diffusers' names of a ControlNet's tensors."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from conftest import CONFIGS, CONTROL, NANO, ROOT
from nanocontrol import ControlNet, InputError, UNet, load_control, load_sd
from nanocontrol.controlnet import HINT_LAYERS
from nanocontrol.formats.diffusers_names import from_diffusers, to_diffusers
from nanocontrol.unet import SD1, SD2

# Original name -> diffusers' name, from `convert_controlnet_checkpoint` of diffusers 0.42.1. It is
# the same for Stable Diffusion 1 and 2.
NAMES = json.loads((ROOT / "tests" / "fixtures" / "diffusers_names.json").read_text())
LAYERS = len(HINT_LAYERS)


@pytest.mark.parametrize("config", [SD1, SD2])
def test_converted_names_equal_diffusers(config):
    with torch.device("meta"):
        ours = ControlNet(config).state_dict()
    theirs = to_diffusers(ours, len(config.channel_mult), config.num_res_blocks, LAYERS)
    assert len(theirs) == len(NAMES) == 340
    assert all(theirs[NAMES[name]] is tensor for name, tensor in ours.items())
    back = from_diffusers(theirs, LAYERS)
    assert back.keys() == ours.keys() and all(back[name] is ours[name] for name in ours)


def test_an_unknown_tensor_in_diffusers_layout_is_refused(tmp_path):
    """ControlNets for larger models have such tensors."""
    with safe_open(CONTROL, "pt") as file:
        metadata, unet = file.metadata(), load_sd(NANO).unet
    tensors = to_diffusers(load_control(CONTROL, unet).state_dict(), 3, 1, LAYERS)
    save_file(tensors, tmp_path / "c.safetensors", metadata)
    load_control(tmp_path / "c.safetensors", unet)
    tensors["added.linear_1.weight"] = torch.zeros(1)
    save_file(tensors, tmp_path / "c.safetensors", metadata)
    with pytest.raises(InputError, match="holds 1 tensors without a place: added"):
        load_control(tmp_path / "c.safetensors", unet)


def test_names_convert_for_any_number_of_levels():
    for config in CONFIGS.values():
        with torch.device("meta"):
            ours, unet = ControlNet(config).state_dict(), UNet(config).state_dict()
        theirs = to_diffusers(ours, len(config.channel_mult), config.num_res_blocks, LAYERS)
        assert from_diffusers(theirs, LAYERS).keys() == ours.keys()
        assert not theirs.keys() & unet.keys()  # no ControlNet name is a U-Net name
