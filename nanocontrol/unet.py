"""The U-Net that predicts the noise in a latent (Rombach et al. 2022), of Stable Diffusion 1 and 2.

Shapes: B batch, h and w the latent's height and width (the picture's / 8), C channels of a feature
map, c = model_channels (320), T = 77 tokens, D = context_dim (768 or 1024).
Attribute names are the keys of the original checkpoint below `model.diffusion_model.`.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nanocontrol.plumbing.machine import Conv3x3


@dataclass(frozen=True)
class UNetConfig:
    """The defaults are Stable Diffusion 1's."""

    model_channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)  # by resolution, each half the one before
    num_res_blocks: int = 2  # at each resolution going down; going up there is one more
    attention_levels: tuple[int, ...] = (0, 1, 2)  # the resolutions with a SpatialTransformer
    context_dim: int = 768
    num_heads: int = 8  # in every attention, of 40 to 160 channels each
    head_dim: int | None = None  # if set, the channels of a head instead (64 make 5 to 20 heads)
    linear_proj: bool = False  # whether SpatialTransformers project tokens or the feature map
    norm_groups: int = 32


SD1 = UNetConfig()
SD2 = UNetConfig(context_dim=1024, head_dim=64, linear_proj=True)


def timestep_embedding(t: Tensor, channels: int) -> Tensor:
    """t [B], 0..999 -> [B, channels]: cosines, then sines, of t times 1 down to nearly 1/10000."""
    half = channels // 2
    steps = torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t.float()[:, None] * torch.exp(-math.log(10000) * steps / half)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class ResBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; the time embedding is added between the two."""

    def __init__(self, channels: int, out_channels: int, config: UNetConfig):
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(config.norm_groups, channels), nn.SiLU(), Conv3x3(channels, out_channels)
        )
        time_channels = 4 * config.model_channels
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time_channels, out_channels))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(config.norm_groups, out_channels),
            nn.SiLU(),
            nn.Identity(),  # the original's dropout of 0: it makes the next key out_layers.3
            Conv3x3(out_channels, out_channels),
        )
        self.skip_connection: nn.Module = nn.Identity()
        if channels != out_channels:
            self.skip_connection = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x [B, C, h, w], emb [B, 4c] -> [B, out_channels, h, w]"""
        h = self.in_layers(x)
        h = h + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class CrossAttention(nn.Module):
    """Each of N positions x [B, N, C] gathers from M others, context [B, M, D] -> [B, N, C]."""

    def __init__(self, channels: int, context_dim: int, config: UNetConfig):
        super().__init__()
        self.heads = channels // config.head_dim if config.head_dim else config.num_heads
        if channels % self.heads:
            raise ValueError(f"{self.heads} heads cannot share {channels} channels")
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_dim, channels, bias=False)
        self.to_v = nn.Linear(context_dim, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = (
            rearrange(y, "b n (heads d) -> b heads n d", heads=self.heads)
            for y in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        out = F.scaled_dot_product_attention(q, k, v)  # softmax(q k^T / sqrt(d)) v
        return self.to_out(rearrange(out, "b heads n d -> b n (heads d)"))


class GEGLU(nn.Module):
    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.proj = nn.Linear(channels, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)  # the exact GELU, not its tanh approximation


class FeedForward(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        hidden = 4 * channels
        self.net = nn.Sequential(
            GEGLU(channels, hidden), nn.Identity(), nn.Linear(hidden, channels)
        )  # the identity is a dropout of 0 in the original

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class BasicTransformerBlock(nn.Module):
    """Positions attend to each other, then to the prompt's tokens, then change on their own."""

    def __init__(self, channels: int, config: UNetConfig):
        super().__init__()
        self.attn1 = CrossAttention(channels, channels, config)
        self.attn2 = CrossAttention(channels, config.context_dim, config)
        self.ff = FeedForward(channels)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.norm3 = nn.LayerNorm(channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.attn1(h, h)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """A transformer block over the positions of a feature map [B, C, h, w]."""

    def __init__(self, channels: int, config: UNetConfig):
        super().__init__()
        self.norm = nn.GroupNorm(config.norm_groups, channels, eps=1e-6)  # ResBlocks have 1e-5
        self.linear_proj = config.linear_proj
        projection = nn.Linear if self.linear_proj else lambda a, b: nn.Conv2d(a, b, kernel_size=1)
        self.proj_in = projection(channels, channels)
        self.transformer_blocks = nn.ModuleList([BasicTransformerBlock(channels, config)])
        self.proj_out = projection(channels, channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        block, height = self.transformer_blocks[0], x.shape[2]
        h = self.norm(x)
        if self.linear_proj:  # Stable Diffusion 2 has linear layers where 1 has 1x1 convolutions
            h = self.proj_out(block(self.proj_in(to_tokens(h)), context))
            return x + to_map(h, height)
        h = block(to_tokens(self.proj_in(h)), context)
        return x + self.proj_out(to_map(h, height))


def to_tokens(x: Tensor) -> Tensor:
    return rearrange(x, "b c h w -> b (h w) c")


def to_map(tokens: Tensor, height: int) -> Tensor:
    return rearrange(tokens, "b (h w) c -> b c h w", h=height)


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        # Padded evenly, unlike the VAE's.
        self.op = Conv3x3(channels, channels, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Block(nn.Sequential):
    """Modules in a row. Each is given what it takes next to the map: time, prompt or nothing."""

    # Gradient checkpointing: only the inputs are kept for the backward pass, which computes the
    # rest again. That is more arithmetic for much less memory.
    checkpointed = False

    def forward(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        if self.checkpointed:
            return checkpoint(
                self.run, x, emb, context, use_reentrant=False, preserve_rng_state=False
            )
        return self.run(x, emb, context)

    def run(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        for module in self:
            if isinstance(module, ResBlock):
                x = module(x, emb)
            elif isinstance(module, SpatialTransformer):
                x = module(x, context)
            else:
                x = module(x)
        return x


def res_block(channels: int, out_channels: int, level: int, config: UNetConfig) -> Block:
    """A ResBlock, and a SpatialTransformer where the resolution has one."""
    block = Block(ResBlock(channels, out_channels, config))
    if level in config.attention_levels:
        block.append(SpatialTransformer(out_channels, config))
    return block


class UNetEncoder(nn.Module):
    """The part that ControlNet copies: time embedding, encoder blocks and middle block.

    In Stable Diffusion, for a picture of 512 pixels (channels and size are those of the output):

    | block           | modules                                | channels | size |
    |-----------------|----------------------------------------|----------|------|
    | input_blocks.0  | Conv2d                                 | 320      | 64   |
    | input_blocks.1  | ResBlock, SpatialTransformer           | 320      | 64   |
    | input_blocks.2  | ResBlock, SpatialTransformer           | 320      | 64   |
    | input_blocks.3  | Downsample                             | 320      | 32   |
    | input_blocks.4  | ResBlock, SpatialTransformer           | 640      | 32   |
    | input_blocks.5  | ResBlock, SpatialTransformer           | 640      | 32   |
    | input_blocks.6  | Downsample                             | 640      | 16   |
    | input_blocks.7  | ResBlock, SpatialTransformer           | 1280     | 16   |
    | input_blocks.8  | ResBlock, SpatialTransformer           | 1280     | 16   |
    | input_blocks.9  | Downsample                             | 1280     | 8    |
    | input_blocks.10 | ResBlock                               | 1280     | 8    |
    | input_blocks.11 | ResBlock                               | 1280     | 8    |
    | middle_block    | ResBlock, SpatialTransformer, ResBlock | 1280     | 8    |
    """

    def __init__(self, config: UNetConfig = SD1):
        super().__init__()
        self.config = config
        c = config.model_channels
        self.time_embed = nn.Sequential(nn.Linear(c, 4 * c), nn.SiLU(), nn.Linear(4 * c, 4 * c))
        self.input_blocks = nn.ModuleList([Block(nn.Conv2d(4, c, 3, padding=1))])
        channels = c
        # Channels of every encoder block's output, and how often its size has been halved.
        self.skip_channels, self.skip_levels = [c], [0]
        for level, mult in enumerate(config.channel_mult):
            if level > 0:
                self.input_blocks.append(Block(Downsample(channels)))
                self.skip_channels.append(channels)
                self.skip_levels.append(level)
            for _ in range(config.num_res_blocks):
                self.input_blocks.append(res_block(channels, mult * c, level, config))
                channels = mult * c
                self.skip_channels.append(channels)
                self.skip_levels.append(level)
        self.middle_block = Block(
            ResBlock(channels, channels, config),
            SpatialTransformer(channels, config),
            ResBlock(channels, channels, config),
        )

    def embed_time(self, t: Tensor) -> Tensor:
        """t [B], 0..999 -> [B, 4c]."""
        embedding = timestep_embedding(t, self.config.model_channels)
        return self.time_embed(embedding.to(next(self.time_embed.parameters())))

    def encode(
        self, x: Tensor, emb: Tensor, context: Tensor, encoded_hint: Tensor | None = None
    ) -> list[Tensor]:
        """The outputs of all encoder blocks, shallowest first, then the middle block's.

        `encoded_hint` [B, c, h, w] is ControlNet's alone, added after the first convolution.
        """
        h = self.input_blocks[0](x, emb, context)
        outputs = [h if encoded_hint is None else h + encoded_hint]
        for block in [*self.input_blocks[1:], self.middle_block]:
            outputs.append(block(outputs[-1], emb, context))
        return outputs


class UNet(UNetEncoder):
    """Encoder, middle and decoder; a decoder block first joins the skip of its own resolution.

    In Stable Diffusion, for a picture of 512 pixels:

    | block            | modules                                | channels | size |
    |------------------|----------------------------------------|----------|------|
    | output_blocks.0  | ResBlock                               | 1280     | 8    |
    | output_blocks.1  | ResBlock                               | 1280     | 8    |
    | output_blocks.2  | ResBlock, Upsample                     | 1280     | 16   |
    | output_blocks.3  | ResBlock, SpatialTransformer           | 1280     | 16   |
    | output_blocks.4  | ResBlock, SpatialTransformer           | 1280     | 16   |
    | output_blocks.5  | ResBlock, SpatialTransformer, Upsample | 1280     | 32   |
    | output_blocks.6  | ResBlock, SpatialTransformer           | 640      | 32   |
    | output_blocks.7  | ResBlock, SpatialTransformer           | 640      | 32   |
    | output_blocks.8  | ResBlock, SpatialTransformer, Upsample | 640      | 64   |
    | output_blocks.9  | ResBlock, SpatialTransformer           | 320      | 64   |
    | output_blocks.10 | ResBlock, SpatialTransformer           | 320      | 64   |
    | output_blocks.11 | ResBlock, SpatialTransformer           | 320      | 64   |
    """

    def __init__(self, config: UNetConfig = SD1):
        super().__init__(config)
        c = config.model_channels
        self.output_blocks = nn.ModuleList()
        skips = list(self.skip_channels)
        channels = skips[-1]
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            for _ in range(config.num_res_blocks + 1):
                block = res_block(channels + skips.pop(), mult * c, level, config)
                self.output_blocks.append(block)
                channels = mult * c
            if level > 0:
                block.append(Upsample(channels))
        out = nn.Conv2d(c, 4, 3, padding=1)
        self.out = nn.Sequential(nn.GroupNorm(config.norm_groups, c), nn.SiLU(), out)

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor, residuals: list[Tensor] | None = None
    ) -> Tensor:
        """Predict the noise (or v, see schedulers.py) in x.

        x [B, 4, h, w] noisy latent, t [B] its step 0..999, context [B, T, D] encoded prompt,
        residuals: ControlNet's, shallowest first, the middle block's last -> [B, 4, h, w].
        """
        emb = self.embed_time(t)
        *skips, h = self.encode(x, emb, context)
        if residuals is not None:
            *for_skips, for_middle = residuals
            skips = [skip + residual for skip, residual in zip(skips, for_skips, strict=True)]
            h = h + for_middle
        for block, skip in zip(self.output_blocks, reversed(skips), strict=True):
            h = block(torch.cat([h, skip], dim=1), emb, context)
        return self.out(h)
