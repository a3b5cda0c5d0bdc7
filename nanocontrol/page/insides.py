"""The networks' own tensors while a picture is made, taken by forward hooks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nanocontrol.clip import MAX_TOKENS
from nanocontrol.controlnet import ControlNet
from nanocontrol.formats.tokenizer import tokenizer
from nanocontrol.sampling import Applied
from nanocontrol.stable_diffusion import StableDiffusion
from nanocontrol.unet import CrossAttention, UNet

Taken = dict[nn.Module, Tensor]  # the last output of each watched module
Named = list[tuple[str, nn.Module]]
Span = tuple[str, int, int]  # a word, its first token, and the one after its last


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


def parts_of(network: nn.Module) -> Named:
    """The blocks of a U-Net or ControlNet in the order of their computation."""
    lists = "input_hint_block", "input_blocks", "middle_block", "zero_convs", "middle_block_out"
    found: Named = []
    for name in (*lists, "output_blocks", "out"):
        part = getattr(network, name, None)
        if isinstance(part, nn.ModuleList) or name == "input_hint_block" and part is not None:
            found += [(f"{name}.{i}", module) for i, module in enumerate(part)]
        elif part is not None:
            found.append((name, part))
    return found


def ends_of(network: nn.Module, blocks: str) -> list[nn.Module]:
    """The connections' ends, shallowest first: `input_blocks` or `zero_convs`, and the middle's."""
    return [m for name, m in parts_of(network) if name.startswith((blocks, END[blocks]))]


END = {"input_blocks": "middle_block", "zero_convs": "middle_block_out"}


def cross_attentions(unet: UNet) -> list[CrossAttention]:
    return [module for name, module in unet.named_modules() if name.endswith("attn2")]


def parts_to_watch(unet: UNet, control: ControlNet | None, attention: bool) -> list[nn.Module]:
    layers = cross_attentions(unet) if attention else []
    found: list[nn.Module] = [module for layer in layers for module in (layer.to_q, layer.to_k)]
    if control is not None:
        found += [*control.input_hint_block, *ends_of(control, "zero_convs")]
        found += ends_of(unet, "input_blocks")
    return found


# ------------------------------------------------------------------------------------- numbers


def connections(taken: Taken, unet: UNet, applied: Applied) -> list[dict[str, float]]:
    """The norms of each weighted residual and of the skip that it is added to, in the row with the
    prompt, which is the last."""
    found = []
    ends = zip(ends_of(applied.net, "zero_convs"), ends_of(unet, "input_blocks"))
    for (zero, block), weight in zip(ends, applied.weights):
        residual = (weight * taken[zero][-1].float()).norm().item()
        skip = taken[block][-1].float().norm().item()
        found.append({"residual": residual, "skip": skip, "ratio": residual / max(skip, 1e-12)})
    return found


def signals(taken: Taken, control: ControlNet, hint: Tensor, empty: Tensor) -> list[dict]:
    """The root mean square of the difference that a drawing makes after each convolution of the
    condition encoder, and the SiLU that follows. hint: [1, 3, H, W], whose pass was watched; empty:
    the hint without a drawing."""
    blank: Taken = {}
    layers = [*control.input_hint_block]
    with watched(layers, blank):
        control.input_hint_block(empty.to(next(control.parameters())))
    rows = [("hint", hint.to(empty), empty)]
    for i in range(0, len(layers), 2):
        last = layers[min(i + 1, len(layers) - 1)]
        rows.append((f"input_hint_block.{i}", taken[last], blank[last]))
    sizes = [(a.float() - b.float()).square().mean().sqrt().item() for _, a, b in rows]
    return [
        {"name": name, "shape": [*a.shape[1:]], "signal": x, "share": x / max(sizes[0], 1e-12)}
        for (name, a, _), x in zip(rows, sizes)
    ]


def attention_maps(taken: Taken, unet: UNet, spans: list[Span], n: int) -> Tensor:
    """The attention that each word gets at each place [words, n, n], in the row with the prompt:
    softmax(q k^T / sqrt(d)) of the same queries and keys, summed over the word's tokens, a mean
    over heads and layers."""
    total, layers = torch.zeros(len(spans), n, n), cross_attentions(unet)
    for layer in layers:
        q, k = (
            taken[module][-1].float().unflatten(-1, (layer.heads, -1)).transpose(0, 1)
            for module in (layer.to_q, layer.to_k)
        )  # [heads, places or tokens, d]
        share = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1).mean(dim=0).cpu()
        side = round(len(share) ** 0.5)
        for i, (_, first, end) in enumerate(spans):
            own = share[:, first:end].sum(dim=1).view(1, 1, side, side)
            total[i] += nn.functional.interpolate(own, (n, n))[0, 0]
    return total / len(layers)


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


@torch.no_grad()
def diagram_of(sd: StableDiffusion, control: ControlNet | None) -> list[dict]:
    """The blocks of both networks in the order of their computation, with their outputs' shapes."""
    taken: Taken = {}
    weight, n = next(sd.unet.parameters()), sd.size // 8
    x, t = weight.new_zeros(1, 4, n, n), torch.tensor([500], device=weight.device)
    context, residuals = sd.encode_prompts(""), None
    copy = [] if control is None else parts_of(control)
    named = [("control", *pair) for pair in copy] + [("unet", *pair) for pair in parts_of(sd.unet)]
    with watched([module for *_, module in named], taken):
        if control is not None:
            hint = weight.new_zeros(1, 3, sd.size, sd.size)
            residuals = control(x, hint, t, context)
        sd.unet(x, t, context, residuals)
    return [
        {
            "part": part,
            "name": name,
            "type": ", ".join(type(m).__name__ for m in module.children()) or type(module).__name__,
            "shape": [*taken[module].shape[1:]],
            "parameters": sum(p.numel() for p in module.parameters()),
        }
        for part, name, module in named
        if not isinstance(module, nn.SiLU)
    ]
