"""A small ControlNet and a small base model as files, for cases that need complete ones."""

from pathlib import Path

from torch import Tensor

from conftest import CONFIGS, randomise, small
from nanocontrol import ControlNet, load_control, load_sd
from nanocontrol.formats.original_names import CLIP_KEYS, CONTROL_KEYS, UNET_KEYS, VAE_KEYS

Tensors = dict[str, Tensor]

CONFIG = CONFIGS["sd1"]
SD = small("sd1")  # with Stable Diffusion's heads and groups, so that its file needs no metadata
CONTROL: Tensors = randomise(ControlNet(CONFIG), seed=1).requires_grad_(False).state_dict()
UNET: Tensors = dict(SD.unet.state_dict())


def below(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


CONTROL_FILE = below(CONTROL_KEYS, CONTROL)
BASE_FILE = (
    below(UNET_KEYS, UNET)
    | below(VAE_KEYS, SD.vae.requires_grad_(False).state_dict())
    | below(CLIP_KEYS, SD.text_encoder.requires_grad_(False).state_dict())
)
CONV = CONTROL_KEYS + "input_blocks.0.0.weight"  # a tensor of CONTROL_FILE [32, 4, 3, 3]
BIAS = CONTROL_KEYS + "input_blocks.0.0.bias"


def read_control_file(path: Path) -> Tensors:
    return dict(load_control(path, SD.unet).state_dict())


def read_base_file(path: Path) -> Tensors:
    return dict(load_sd(path, prediction="eps").unet.state_dict())
