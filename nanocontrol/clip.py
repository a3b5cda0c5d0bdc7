"""From a prompt to the vectors that the U-Net attends to: CLIP's tokenizer and text encoders.

Shapes: B batch, T = 77 tokens, D the width (768 in Stable Diffusion 1, 1024 in 2).
Attribute names are the keys of the original checkpoints, below `cond_stage_model.transformer.` in
Stable Diffusion 1 (OpenAI's CLIP ViT-L/14, in the form that the transformers library gave it) and
below `cond_stage_model.model.` in 2 (OpenCLIP's ViT-H/14).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from nanocontrol.formats.tokenizer import open_clip_tokenizer

MAX_TOKENS = 77
END_OF_TEXT = 49407  # the vocabulary's last token


@dataclass(frozen=True)
class TextConfig:
    """The defaults are ViT-L/14's; OpenCLIP's ViT-H/14 is TextConfig(width=1024, layers=24)."""

    width: int = 768
    layers: int = 12
    vocabulary: int = 49408

    @property
    def heads(self) -> int:
        return self.width // 64


def tokenize(prompts: Sequence[str] | str, pad_with_end: bool) -> Tensor:
    """Prompts -> tokens [B, 77], int64: start, text (cut if too long), end, padding.

    Stable Diffusion 1 was trained with the end token as padding, 2 with zeros.
    """
    tokens = open_clip_tokenizer().tokenize(prompts, context_length=MAX_TOKENS)
    if pad_with_end:
        end = tokens.argmax(dim=1, keepdim=True)  # the end token is the largest of all
        tokens[torch.arange(MAX_TOKENS) > end] = END_OF_TEXT
    return tokens


def embedding(rows: int, width: int) -> nn.Embedding:
    # Uninitialised: drawing normal numbers on the "meta" device imports all of PyTorch's compiler,
    # which takes longer than loading the rest.
    return nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Causal attention, each [B, T, D]: a token sees itself and those before it."""
    q, k, v = (rearrange(x, "b t (heads d) -> b heads t d", heads=heads) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return rearrange(out, "b heads t d -> b t (heads d)")


# -------------------------------------------------- Stable Diffusion 1: OpenAI's CLIP ViT-L/14


class CLIPEmbeddings(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.token_embedding = embedding(config.vocabulary, config.width)
        self.position_embedding = embedding(MAX_TOKENS, config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.token_embedding(tokens) + self.position_embedding.weight


class CLIPAttention(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.heads = config.heads
        self.q_proj = nn.Linear(config.width, config.width)
        self.k_proj = nn.Linear(config.width, config.width)
        self.v_proj = nn.Linear(config.width, config.width)
        self.out_proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(attend(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.heads))


class CLIPMLP(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.width, 4 * config.width)
        self.fc2 = nn.Linear(4 * config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        return self.fc2(h * torch.sigmoid(1.702 * h))  # OpenAI's "quick" GELU


class CLIPLayer(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.self_attn = CLIPAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.width)
        self.mlp = CLIPMLP(config)
        self.layer_norm2 = nn.LayerNorm(config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class CLIPLayers(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.layers = nn.ModuleList(CLIPLayer(config) for _ in range(config.layers))


class CLIPTextTransformer(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.embeddings = CLIPEmbeddings(config)
        self.encoder = CLIPLayers(config)
        self.final_layer_norm = nn.LayerNorm(config.width)


class CLIPTextEncoder(nn.Module):
    """Tokens [B, 77] -> [B, 77, D]: the last layer's output, normalised."""

    def __init__(self, config: TextConfig = TextConfig()):
        super().__init__()
        self.config = config
        self.text_model = CLIPTextTransformer(config)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.text_model.embeddings(tokens)
        for layer in self.text_model.encoder.layers:
            x = layer(x)
        return self.text_model.final_layer_norm(x)


# -------------------------------------------------- Stable Diffusion 2: OpenCLIP's ViT-H/14


class FusedAttention(nn.Module):
    """Attention with its three projections in one matrix."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.heads = config.heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * config.width, config.width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * config.width))
        self.out_proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        return self.out_proj(attend(q, k, v, self.heads))


class OpenCLIPMLP(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.c_fc = nn.Linear(config.width, 4 * config.width)
        self.c_proj = nn.Linear(4 * config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x)))  # the exact GELU


class OpenCLIPLayer(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.width)
        self.attn = FusedAttention(config)
        self.ln_2 = nn.LayerNorm(config.width)
        self.mlp = OpenCLIPMLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class OpenCLIPTransformer(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.resblocks = nn.ModuleList(OpenCLIPLayer(config) for _ in range(config.layers))


class OpenCLIPTextEncoder(nn.Module):
    """Tokens [B, 77] -> [B, 77, D]: the penultimate layer's output, normalised.

    The last layer is in the file and in the model, but Stable Diffusion 2 never runs it.
    """

    def __init__(self, config: TextConfig = TextConfig(width=1024, layers=24)):
        super().__init__()
        self.config = config
        self.token_embedding = embedding(config.vocabulary, config.width)
        self.positional_embedding = nn.Parameter(torch.empty(MAX_TOKENS, config.width))
        self.transformer = OpenCLIPTransformer(config)
        self.ln_final = nn.LayerNorm(config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token_embedding(tokens) + self.positional_embedding
        for layer in self.transformer.resblocks[:-1]:
            x = layer(x)
        return self.ln_final(x)
