"""The autoencoder between pictures and latents, 8x smaller (Rombach et al. 2022, KL-regularised).

Shapes: B batch, H and W the picture's height and width in pixels (multiples of 8), h = H/8,
w = W/8, c = ch (128 in Stable Diffusion; 1, 2, 4 and 4 times that going down).
Attribute names are the keys of the original checkpoint below `first_stage_model.`.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from nanocontrol.unet import Upsample


@dataclass(frozen=True)
class VAEConfig:
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)  # four resolutions, three halvings
    num_res_blocks: int = 2  # at each resolution of the encoder; the decoder has one more
    norm_groups: int = 32


class Norm(nn.GroupNorm):
    """eps is 1e-6 in all of the VAE, not PyTorch's 1e-5. With the wrong one pictures still look
    right, so the mistake is hard to see."""

    def __init__(self, channels: int, groups: int):
        super().__init__(groups, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    def __init__(self, channels: int, out_channels: int, groups: int):
        super().__init__()
        self.norm1 = Norm(channels, groups)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = Norm(out_channels, groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut: nn.Module = nn.Identity()
        if channels != out_channels:
            self.nin_shortcut = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.nin_shortcut(x) + h


class AttnBlock(nn.Module):
    """Self-attention over all positions, with one head."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = Norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (rearrange(f(h), "b c h w -> b 1 (h w) c") for f in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(rearrange(h, "b 1 (h w) c -> b c h w", h=x.shape[2]))


class VAEDownsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        # A column on the right and a row below, none on the left or above: this is how the original
        # was trained (its U-Net pads evenly); even padding would shift the picture.
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Level(nn.Module):
    """The blocks of one resolution; Encoder and Decoder add `downsample` or `upsample` to it."""

    def __init__(self, channels: int, out_channels: int, blocks: int, groups: int):
        super().__init__()
        later = [ResnetBlock(out_channels, out_channels, groups) for _ in range(blocks - 1)]
        self.block = nn.ModuleList([ResnetBlock(channels, out_channels, groups), *later])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return x


class Middle(nn.Module):
    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups)
        self.attn_1 = AttnBlock(channels, groups)
        self.block_2 = ResnetBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    def __init__(self, config: VAEConfig):
        super().__init__()
        groups = config.norm_groups
        channels = config.ch
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1)
        self.down = nn.ModuleList()
        for i, mult in enumerate(config.ch_mult):
            self.down.append(Level(channels, mult * config.ch, config.num_res_blocks, groups))
            channels = mult * config.ch
            if i < len(config.ch_mult) - 1:
                self.down[i].downsample = VAEDownsample(channels)
        self.mid = Middle(channels, groups)
        self.norm_out = Norm(channels, groups)
        self.conv_out = nn.Conv2d(channels, 8, 3, padding=1)  # mean and log-variance of 4 channels

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)  # [B, c, H, W]
        for level in self.down[:-1]:
            h = level.downsample(level(h))  # [B, c, H/2, W/2] ... [B, 4c, h, w]
        h = self.mid(self.down[-1](h))
        return self.conv_out(F.silu(self.norm_out(h)))  # [B, 8, h, w]


class Decoder(nn.Module):
    def __init__(self, config: VAEConfig):
        super().__init__()
        groups, blocks = config.norm_groups, config.num_res_blocks + 1
        channels = config.ch_mult[-1] * config.ch
        self.conv_in = nn.Conv2d(4, channels, 3, padding=1)
        self.mid = Middle(channels, groups)
        levels = []
        for i, mult in enumerate(reversed(config.ch_mult)):
            levels.append(Level(channels, mult * config.ch, blocks, groups))
            channels = mult * config.ch
            if i < len(config.ch_mult) - 1:
                levels[i].upsample = Upsample(channels)
        # The checkpoint counts resolutions from the largest, so up[3] is the first to be run.
        self.up = nn.ModuleList(reversed(levels))
        self.norm_out = Norm(channels, groups)
        self.conv_out = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))  # [B, 4c, h, w]
        for level in reversed(self.up[1:]):
            h = level.upsample(level(h))  # [B, 4c, 2h, 2w] ... [B, 2c, H, W]
        h = self.up[0](h)  # [B, c, H, W]
        return self.conv_out(F.silu(self.norm_out(h)))  # [B, 3, H, W]


class VAE(nn.Module):
    """Latents here are unscaled; diffusion works on `scale_factor` times them."""

    def __init__(self, config: VAEConfig = VAEConfig()):
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(8, 8, 1)
        self.post_quant_conv = nn.Conv2d(4, 4, 1)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image [B, 3, H, W], RGB in [-1, 1] -> mean and log-variance, each [B, 4, h, w]."""
        mean, logvar = self.quant_conv(self.encoder(image)).chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20)

    def decode(self, latent: Tensor) -> Tensor:
        """latent [B, 4, h, w] -> image [B, 3, 8h, 8w], RGB in about [-1, 1], not clipped."""
        return self.decoder(self.post_quant_conv(latent))


def sample_posterior(mean: Tensor, logvar: Tensor, generator: torch.Generator) -> Tensor:
    """A latent drawn from N(mean, exp(logvar)). The generator is the CPU's: a seed gives the same
    on every device."""
    noise = torch.randn(mean.shape, generator=generator)
    return mean + torch.exp(0.5 * logvar) * noise.to(mean)
