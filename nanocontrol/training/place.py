"""Device, precision and memory format of the networks, set before training."""

from typing import Any

import torch

from nanocontrol.controlnet import ControlNet
from nanocontrol.plumbing.errors import InputError
from nanocontrol.stable_diffusion import StableDiffusion
from nanocontrol.training.optimizer import PRECISIONS
from nanocontrol.unet import Block


def checked(sd: StableDiffusion, file: str) -> StableDiffusion:
    """The base of a file, if all weights are finite. (Large files are not checked when read.)"""
    for network in (sd.unet, sd.vae, sd.text_encoder):
        if not all(weight.isfinite().all() for weight in network.parameters()):
            raise InputError(f"{file} holds NaN or infinity; expected weights")
    return sd


def place(
    sd: StableDiffusion,
    control: ControlNet,
    device: str,
    dtype: str,
    channels_last: bool,
    checkpointed: bool,
) -> None:
    """Move the base to the device. Set memory format and gradient checkpointing of base and
    ControlNet.

    dtype: "fp32", "bf16" or "fp16". A locked base is rounded to it. A base that is trained stays in
    float32, because it will be saved and its untrained parts must stay exact. The optimizer rounds
    the trained parts.
    """
    if not any(parameter.requires_grad for parameter in sd.unet.parameters()):
        sd.unet.to(PRECISIONS[dtype]), sd.text_encoder.to(PRECISIONS[dtype])
        if dtype == "bf16":  # fp16 ends at 65504, which Stable Diffusion's VAE exceeds
            sd.vae.to(PRECISIONS[dtype])
    sd.unet.to(device), sd.vae.to(device), sd.text_encoder.to(device)
    if channels_last:
        for network in (sd.unet, sd.vae, control):
            network.to(memory_format=torch.channels_last)
    for module in [*sd.unet.modules(), *control.modules()]:
        if isinstance(module, Block):
            module.checkpointed = checkpointed


def compiled(network: Any, wanted: bool) -> Any:
    """The network, compiled if wanted. Without a compiler, PyTorch warns and runs it as it is."""
    if not wanted:
        return network
    torch._dynamo.config.suppress_errors = True
    return torch.compile(network)
