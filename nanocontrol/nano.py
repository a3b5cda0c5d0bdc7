"""The embedded default: Stable Diffusion 1's architecture, only smaller, for scenes of 64 pixels.

`weights/README.md` tells how the bundled weights were trained.
"""

import torch
from torch import nn

from .checkpoint import StableDiffusion
from .clip import CLIPTextEncoder, TextConfig
from .controlnet import ControlNet, zero_module
from .unet import ResBlock, SpatialTransformer, UNet, UNetConfig
from .vae import VAE, VAEConfig
from .world import COLOURS, KINDS

UNET = UNetConfig(
    model_channels=32,
    channel_mult=(1, 2, 4),
    num_res_blocks=1,
    context_dim=64,
    num_heads=2,
    norm_groups=4,
)
TEXT = TextConfig(width=64, layers=2)
AUTOENCODER = VAEConfig(ch=16, ch_mult=(1, 2, 4, 4), num_res_blocks=1, norm_groups=4)
GUIDANCE = 2.5  # with much more these small models draw worse


def new_nano() -> StableDiffusion:
    """An untrained model; the scale factor can only be measured once the VAE is trained."""
    unet, vae, text_encoder = UNet(UNET), VAE(AUTOENCODER), CLIPTextEncoder(TEXT)
    initialise_unet(unet)
    initialise_vae(vae)
    sd = StableDiffusion(unet, vae, text_encoder, "eps", 1.0, GUIDANCE, size=64)
    # The rows of words that no prompt uses are and stay zero: an unknown word says nothing.
    embedding = text_encoder.text_model.embeddings.token_embedding.weight
    used = sd.tokenize(" ".join(["a an and on background", *COLOURS, *KINDS])).unique()
    with torch.no_grad():
        embedding.zero_()[used] = torch.randn(len(used), TEXT.width)
    nn.init.normal_(text_encoder.text_model.embeddings.position_embedding.weight, std=0.2)
    return sd


def initialise_unet(unet: UNet) -> None:
    """Every residual branch starts at zero, as in the original."""
    for module in unet.modules():
        if isinstance(module, ResBlock):
            zero_module(module.out_layers[3])
        if isinstance(module, SpatialTransformer):
            zero_module(module.proj_out)
    zero_module(unet.out[2])


@torch.no_grad()
def initialise_condition_encoder(control: ControlNet) -> None:
    """Convolutions pass on the hint, a little louder each time. With PyTorch's own initialisation,
    which is the original's, each of the seven passes on a fraction, and most of the wait for the
    sudden convergence is for them to learn better."""
    for module in list(control.input_hint_block)[:-1]:  # the last one has to stay zero
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight).mul_(1.4)
            nn.init.zeros_(module.bias)


def initialise_vae(vae: VAE) -> None:
    """Convolutions keep the variance, residual branches start at zero. (With PyTorch's own
    initialisation a small VAE learns only mean colours for a long time.)"""
    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            nn.init.zeros_(module.bias)
            if name.endswith(("conv2", "proj_out", "decoder.conv_out")):
                zero_module(module)
    with torch.no_grad():  # start with little noise in the posterior
        vae.quant_conv.weight[4:] *= 0.1
        vae.quant_conv.bias[4:] = -5.0
