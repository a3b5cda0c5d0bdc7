"""`nanocontrol.tools.to_diffusers`: export to a folder that diffusers reads."""

import json

import torch
from safetensors.torch import load_file, save_file

from conftest import CONTROL, NANO, refusal
from nanocontrol import ControlNet, load_control, load_sd
from nanocontrol.tools.to_diffusers import config_of
from nanocontrol.tools.to_diffusers import main as export
from nanocontrol.unet import SD1, SD2


def test_an_exported_controlnet_is_read_back_bitwise(tmp_path, capsys):
    folder = tmp_path / "for-diffusers"
    export(["--control", str(CONTROL), "--out", str(folder)])
    file = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    assert "controlnet_mid_block.weight" in tensors and len(tensors) == len(load_file(CONTROL))
    unet = load_sd(NANO).unet
    ours, theirs = load_control(CONTROL, unet).state_dict(), load_control(file, unet).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    config = json.loads((folder / "config.json").read_text())
    assert config["block_out_channels"] == [32, 64, 128] and config["norm_num_groups"] == 4
    del tensors["controlnet_mid_block.bias"]
    save_file(tensors, cut := tmp_path / "cut.safetensors")
    for file, out, word in [(CONTROL, folder, "--out"), (cut, tmp_path / "new", "--control")]:
        flags = "--control", str(file), "--out", str(out)
        assert word in refusal(export, capsys, *flags)
    assert not (tmp_path / "new").exists()


def test_the_exported_config_describes_the_architecture():
    sd1 = {
        "block_out_channels": [320, 640, 1280, 1280],
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "layers_per_block": 2,
        "cross_attention_dim": 768,
        "attention_head_dim": [8, 8, 8, 8],
        "use_linear_projection": False,
        "norm_num_groups": 32,
        "conditioning_embedding_out_channels": [16, 32, 96, 256],
        "_class_name": "ControlNetModel",
    }
    sd2 = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20]}
    with torch.device("meta"):
        assert config_of(ControlNet(SD1)) == sd1
        assert config_of(ControlNet(SD2)) == sd1 | sd2 | {"use_linear_projection": True}
        narrow = {"conditioning_embedding_out_channels": [8, 16, 32, 64]}
        assert config_of(ControlNet(SD1, (8, 16, 32, 64))) == sd1 | narrow
