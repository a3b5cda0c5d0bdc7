"""The networks' own tensors while a picture is made, taken by forward hooks; numbers; previews."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanocontrol.clip import MAX_TOKENS
from nanocontrol.controlnet import ControlNet
from nanocontrol.formats.tokenizer import tokenizer
from nanocontrol.nano.scenes import Scenes
from nanocontrol.nano.world import SIZES
from nanocontrol.sampling import Applied
from nanocontrol.stable_diffusion import StableDiffusion
from nanocontrol.training.measure import mean_latents
from nanocontrol.unet import CrossAttention, UNet

Taken = dict[nn.Module, Tensor]  # the last output of each watched module
Span = tuple[str, int, int]  # a word, its first token, and the one after its last
SCENES = 16  # for the previews' map: its error is 2 % larger than that of 256


@contextmanager
def watched(modules: Sequence[nn.Module], taken: Taken) -> Iterator[None]:
    """Keep the outputs of modules. Nothing is computed or copied here: a hook may run while a GPU's
    graph is recorded, and later replays overwrite the tensor with the newest values."""

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        taken[module] = output

    hooks = [module.register_forward_hook(keep) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def ends_of(control: ControlNet, unet: UNet) -> list[tuple[nn.Module, nn.Module]]:
    """The connections, shallowest first: a zero convolution, and the block to whose output its own
    is added."""
    zeros = [*control.zero_convs, control.middle_block_out]
    return [*zip(zeros, [*unet.input_blocks, unet.middle_block])]


def cross_attentions(unet: UNet) -> list[CrossAttention]:
    return [module for name, module in unet.named_modules() if name.endswith("attn2")]


def parts_to_watch(unet: UNet, control: ControlNet | None) -> Sequence[nn.Module]:
    """The layers' queries and keys, and the connections' ends."""
    asking = [(layer.to_q, layer.to_k) for layer in cross_attentions(unet)]
    return [*chain(*asking, *(ends_of(control, unet) if control else []))]


# ------------------------------------------------------------------------------------- numbers


def loudness(taken: Taken, unet: UNet, applied: Applied) -> list[float]:
    """The norm of each weighted residual, divided by that of the skip that it is added to, in the
    row with the prompt, which is the last."""
    found = []
    for ends, weight in zip(ends_of(applied.net, unet), applied.weights):
        residual, skip = (taken[end][-1].float().norm().item() for end in ends)
        found.append(abs(weight) * residual / max(skip, 1e-12))
    return found


def signals(control: ControlNet, hint: Tensor, empty: Tensor) -> list[dict]:
    """The share of a drawing's signal after each convolution of the condition encoder, and the SiLU
    that follows: the root mean square of the difference that the drawing makes. empty: the hint
    [3, H, W] without a drawing."""
    maps = [torch.stack([hint, empty]).to(next(control.parameters()))]
    for layer in control.input_hint_block:
        maps.append(layer(maps[-1]))
    ends = [*maps[::2], maps[-1]]
    sizes = [(a.float() - b.float()).square().mean().sqrt().item() for a, b in ends]
    shares = [size / max(sizes[0], 1e-12) for size in sizes]
    return [{"shape": [*x.shape[1:]], "share": share} for x, share in zip(ends, shares)]


def attention_maps(taken: Taken, unet: UNet, spans: list[Span], n: int) -> Tensor:
    """The attention that each word gets at each place [words, n, n], in the row with the prompt:
    softmax(q k^T / sqrt(d)) of the same queries and keys, summed over the word's tokens, a mean
    over heads and layers."""
    total, layers = torch.zeros(MAX_TOKENS, n, n), cross_attentions(unet)
    for layer in layers:
        q, k = (
            taken[module][-1].float().unflatten(-1, (layer.heads, -1)).transpose(0, 1)
            for module in (layer.to_q, layer.to_k)
        )  # [heads, places or tokens, d]
        share = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1).mean(dim=0).cpu()
        side = round(len(share) ** 0.5)
        total += F.interpolate(share.T.view(1, -1, side, side), (n, n))[0]
    words = [total[first:end].sum(dim=0, keepdim=True) for _, first, end in spans]
    return torch.cat([total[:0], *words]) / len(layers)


def spans_of(prompt: str) -> list[Span]:
    """The words of a prompt that are not cut off. Token 0 is the start's."""
    found, at = [], 1
    for word in prompt.split():
        end = at + len(tokenizer().encode(word))
        if at < end < MAX_TOKENS:
            found.append((word, at, end))
        at = end
    return found


def is_known(sd: StableDiffusion, word: str) -> bool:
    """Whether all tokens of a word have an embedding. nano has them for its world's words."""
    table = next(p for name, p in sd.text_encoder.named_parameters() if "token_embedding" in name)
    return bool(table[tokenizer().encode(word)].any(dim=1).all())


# ------------------------------------------------------------------------------------ previews


def preview_map(sd: StableDiffusion, n: int = SCENES) -> Tensor:
    """The map [5, 3] from a latent's four channels and 1 to RGB in [0, 1], fitted by least squares
    on n scenes."""
    size = sd.size if sd.size in SIZES else SIZES[-1]
    pictures = torch.stack([Scenes(None, size=size)[i][0] for i in range(n)])
    latents = mean_latents(sd, pictures)
    colours = F.avg_pool2d(pictures / 2 + 0.5, size // latents.shape[-1])
    x, y = (z.permute(0, 2, 3, 1).flatten(0, 2).double() for z in (latents, colours))
    x = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    return torch.linalg.lstsq(x, y).solution.float()


def preview(x0: Tensor, mapped: Tensor) -> Tensor:
    """A latent [4, h, w] -> RGB [3, h, w] in [0, 1], without the VAE."""
    x = x0.float().cpu()
    return (torch.einsum("chw,cr->rhw", x, mapped[:4]) + mapped[4, :, None, None]).clamp(0, 1)
