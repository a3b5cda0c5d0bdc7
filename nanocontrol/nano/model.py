"""nano, the bundled base: a small model of Stable Diffusion 1's architecture, for drawn scenes.

`weights/README.md` describes how the bundled weights were trained.
"""

from pathlib import Path

import torch
from torch import nn

from nanocontrol.checkpoint import architecture, load_control
from nanocontrol.clip import CLIPTextEncoder, TextConfig
from nanocontrol.controlnet import HINT_CHANNELS, ControlNet, zero_module
from nanocontrol.formats.tensors import TensorFile, open_tensors
from nanocontrol.nano.conditions import CONDITIONS
from nanocontrol.nano.world import COLOURS, KINDS
from nanocontrol.plumbing.errors import LONGEST, InputError
from nanocontrol.stable_diffusion import StableDiffusion
from nanocontrol.unet import ResBlock, SpatialTransformer, UNet, UNetConfig
from nanocontrol.vae import VAE, VAEConfig

WEIGHTS = Path(__file__).parents[2] / "weights"
NANO, NANO_CONTROL = WEIGHTS / "nano.safetensors", WEIGHTS / "nano-control-canny.safetensors"
DETECTOR = WEIGHTS / "nano-detector.safetensors"

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
# Channels of the condition encoder. With Stable Diffusion's, two thirds of a step's arithmetic
# would be in this encoder.
NARROW = (8, 16, 32, 64)
GUIDANCE = 2.5  # much higher values make nano's pictures worse


def new_nano(size: int) -> StableDiffusion:
    """An untrained model for pictures of this size. Its scale factor of the latents is 1 until the
    VAE is trained and it can be measured."""
    unet, vae, text_encoder = UNet(UNET), VAE(AUTOENCODER), CLIPTextEncoder(TEXT)
    initialise_unet(unet)
    initialise_vae(vae)
    sd = StableDiffusion(unet, vae, text_encoder, "eps", 1.0, GUIDANCE, size)
    # The embeddings of words that no prompt uses stay zero, so unknown words have no effect.
    embedding = text_encoder.text_model.embeddings.token_embedding.weight
    used = sd.tokenize(" ".join(["a an and on background", *COLOURS, *KINDS])).unique()
    with torch.no_grad():
        embedding.zero_()[used] = torch.randn(len(used), TEXT.width)
    nn.init.normal_(text_encoder.text_model.embeddings.position_embedding.weight, std=0.2)
    return sd


def name_of(config: UNetConfig) -> str:
    """The name of a base with this configuration, for messages."""
    return "nano" if config == UNET else architecture(config)


def hint_channels_for(unet: UNet) -> tuple[int, ...]:
    """The channels of the condition encoder in a new ControlNet for this U-Net. Loading reads them
    from a file's shapes instead."""
    return NARROW if unet.config == UNET else HINT_CHANNELS


def initialise_unet(unet: UNet) -> None:
    """Initialise every residual branch to zero, as in the original."""
    for module in unet.modules():
        if isinstance(module, ResBlock):
            zero_module(module.out_layers[3])
        if isinstance(module, SpatialTransformer):
            zero_module(module.proj_out)
    zero_module(unet.out[2])


@torch.no_grad()
def initialise_vae(vae: VAE) -> None:
    """Initialise convolutions so that they preserve the variance, and residual branches to zero.
    With PyTorch's default initialisation, a small VAE learns only mean colours for a long time."""
    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            module.bias.zero_()
            if name.endswith(("conv2", "proj_out", "decoder.conv_out")):
                zero_module(module)
    vae.quant_conv.weight[4:] *= 0.1  # start with little noise in the posterior
    vae.quant_conv.bias.narrow(0, 4, 4).fill_(-5.0)


def condition_of(control: Path | TensorFile) -> str:
    """The condition that a ControlNet of nano was trained on, from its file's metadata."""
    control, _, metadata = open_tensors(control)
    condition = metadata.get("condition")
    if condition not in CONDITIONS:
        raise InputError(
            f"{control} names no condition of drawn scenes: expected a ControlNet trained on "
            "drawn scenes by train.py, or a --hint for sample.py"
        )
    return condition


def controls_by_condition(files: list[Path], sd: StableDiffusion) -> dict[str, ControlNet]:
    """ControlNets of nano by condition, in the order of CONDITIONS.

    Raises InputError if one has no condition, or two have the same one.
    """
    found: dict[str, Path] = {}
    for file in files:
        condition = condition_of(file)
        if condition in found:
            both = f"{found[condition]} and {file}"
            message = f"{both} are for {condition}: expected one for each condition"
            raise InputError(message, longest=2 * LONGEST)
        found[condition] = file
    return {name: load_control(found[name], sd.unet) for name in CONDITIONS if name in found}


def halve_condition_encoder(control: ControlNet) -> None:
    """Keep every second convolution of the condition encoder, with new weights, and the last one:
    four of eight. More of the hint's signal gets through."""
    layers: list[nn.Module] = []
    width = 3
    for old in control.input_hint_block:
        if isinstance(old, nn.Conv2d) and old.stride == (2, 2):
            layers += [nn.Conv2d(width, old.out_channels, 3, 2, padding=1), nn.SiLU()]
            width = old.out_channels
    control.input_hint_block = nn.Sequential(*layers, control.input_hint_block[-1])
