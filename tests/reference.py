"""Small models and inputs for fixtures/reference.safetensors.

The file holds their outputs as computed by the original code (lllyasviel/ControlNet:
cldm.ControlNet, ldm's UNetModel and AutoencoderKL) in float32 on a CPU. The weights were loaded
there with strict=True.
"""

import torch

from conftest import CONFIGS, randomise
from nanocontrol import VAE, ControlNet, UNet, VAEConfig
from nanocontrol.unet import ResBlock


def unet_and_control(style: str) -> tuple[UNet, ControlNet]:
    unet = randomise(UNet(CONFIGS[style]), seed=10)
    control = randomise(ControlNet(CONFIGS[style]), seed=11)
    with torch.no_grad():  # a small variance makes the norms' eps matter
        for module in [*unet.modules(), *control.modules()]:
            if isinstance(module, ResBlock):
                module.out_layers[3].weight *= 0.01
    return unet, control


def vae() -> VAE:
    # One channel per group and dim pictures: the variance is small here as well.
    return randomise(VAE(VAEConfig(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1)), seed=12)


def inputs(style: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(13)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "x": 0.01 * normal(2, 4, 8, 8),
        "t": torch.tensor([7, 981]),
        "context": normal(2, 77, CONFIGS[style].context_dim),
        "hint": normal(2, 3, 64, 64).sigmoid(),
        "image": 0.01 * normal(1, 3, 64, 40),
        "latent": 0.01 * normal(1, 4, 8, 5),
    }
