"""A base model: the three networks of Stable Diffusion."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nanocontrol.clip import CLIPTextEncoder, OpenCLIPTextEncoder, tokenize
from nanocontrol.unet import UNet
from nanocontrol.vae import VAE

TextEncoder = CLIPTextEncoder | OpenCLIPTextEncoder


@dataclass
class StableDiffusion:
    """A base model: three networks, and the numbers that are needed to use them."""

    unet: UNet
    vae: VAE
    text_encoder: TextEncoder
    prediction: str  # what the U-Net predicts: "eps" or "v"
    scale_factor: float = 0.18215  # the U-Net's latents are the VAE's times this: variance 1
    guidance: float = 9.0  # default scale of classifier-free guidance
    size: int = 512  # width and height of the training pictures, in pixels

    def tokenize(self, prompts: Sequence[str] | str) -> Tensor:
        """Prompts -> tokens [B, 77], int64. A prompt that is longer is cut off."""
        return tokenize(prompts, pad_with_end=isinstance(self.text_encoder, CLIPTextEncoder))

    def encode_prompts(self, prompts: Sequence[str] | str) -> Tensor:
        """Prompts -> context [B, 77, D] for the U-Net."""
        device = next(self.text_encoder.parameters()).device
        return self.text_encoder(self.tokenize(prompts).to(device, non_blocking=True))

    def encode(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """pictures [B, 3, H, W], RGB in [-1, 1] -> mean and standard deviation of the VAE's
        posterior [B, 4, H/8, W/8], unscaled: a latent is scale_factor times a sample of it."""
        weight = next(self.vae.parameters())
        pictures = pictures.to(weight.device, non_blocking=True)
        mean, logvar = self.vae.encode(pictures.to(weight.dtype))
        return mean, torch.exp(0.5 * logvar).to(mean.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents [B, 4, h, w] -> pictures [B, 3, 8h, 8w], RGB in about [-1, 1], float32."""
        weight = next(self.vae.parameters())
        return self.vae.decode((latents / self.scale_factor).to(weight)).float()
