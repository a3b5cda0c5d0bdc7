"""The networks' own tensors while a picture is made, taken by forward hooks, and numbers of them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from nanocontrol.controlnet import ControlNet
from nanocontrol.formats.tokenizer import tokenizer
from nanocontrol.sampling import Applied
from nanocontrol.stable_diffusion import StableDiffusion
from nanocontrol.unet import CrossAttention, UNet

Taken = dict[nn.Module, Tensor]  # the last output of each watched module
CUT = 75  # tokens of a prompt that are used, without those of start and end


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


def zeros_of(control: ControlNet) -> list[nn.Module]:
    """The zero convolutions of the connections, shallowest first."""
    return [*control.zero_convs, control.middle_block_out]


def encoder_of(unet: UNet) -> list[nn.Module]:
    """The U-Net's blocks whose outputs the residuals are added to, in the same order."""
    return [*unet.input_blocks, unet.middle_block]


def cross_attentions(unet: UNet) -> list[CrossAttention]:
    return [m for name, m in unet.named_modules() if name.endswith("attn2")]


def convolutions(control: ControlNet) -> list[tuple[str, nn.Module]]:
    """The condition encoder's convolutions, each with the module whose output is its signal: the
    SiLU that follows, or itself at the end."""
    layers = list(control.input_hint_block)
    last = len(layers) - 1
    return [(f"input_hint_block.{i}", layers[min(i + 1, last)]) for i in range(0, last + 1, 2)]


def parts_to_watch(unet: UNet, control: ControlNet | None, attention: bool) -> list[nn.Module]:
    found: list[nn.Module] = []
    if control is not None:
        found = [*zeros_of(control), *encoder_of(unet), *control.input_hint_block]
    if attention:
        found += [m for block in cross_attentions(unet) for m in (block.to_q, block.to_k)]
    return found


# ----------------------------------------------------------------------------------- numbers


def connections(taken: Taken, unet: UNet, applied: Applied) -> list[dict[str, float]]:
    """The norms of each weighted residual and of the skip that it is added to, in the row with the
    prompt, which is the last."""
    found = []
    for zero, block, weight in zip(zeros_of(applied.net), encoder_of(unet), applied.weights):
        residual = (weight * taken[zero][-1].float()).norm().item()
        skip = taken[block][-1].float().norm().item()
        found.append({"residual": residual, "skip": skip, "ratio": residual / max(skip, 1e-12)})
    return found


@torch.no_grad()
def signals(taken: Taken, control: ControlNet, hint: Tensor, empty: Tensor) -> list[dict]:
    """The root mean square of the difference that the drawing makes after each convolution of the
    condition encoder. hint: [1, 3, H, W], whose pass was watched; empty: the same without a drawing.
    """
    blank: Taken = {}
    weight = next(control.parameters())
    with watched([*control.input_hint_block], blank):
        control.input_hint_block(empty.to(weight))
    rows = [("hint", hint.float(), empty.float())]
    rows += [(name, taken[m].float(), blank[m].float()) for name, m in convolutions(control)]
    sizes = [(a[0] - b[0]).square().mean().sqrt().item() for _, a, b in rows]
    return [
        {"name": name, "shape": [*a.shape[1:]], "signal": x, "share": x / max(sizes[0], 1e-12)}
        for (name, a, _), x in zip(rows, sizes)
    ]


def attention_maps(
    taken: Taken, unet: UNet, spans: list[tuple[int, int]], shape: Sequence[int]
) -> Tensor:
    """The attention that each word gets at each place [words, h, w], in the row with the prompt:
    softmax(q k^T / sqrt(d)) of the same queries and keys, a mean over heads and layers.

    spans: of each word, its first token and the one after its last. shape: h, w of the latent.
    """
    total = torch.zeros(len(spans), *shape)
    layers = cross_attentions(unet)
    for layer in layers:
        q, k = (
            taken[m][-1].float().unflatten(-1, (layer.heads, -1)).transpose(0, 1)
            for m in (layer.to_q, layer.to_k)
        )  # [heads, positions or tokens, d]
        share = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1).mean(dim=0).cpu()
        height = round((len(share) * shape[0] / shape[1]) ** 0.5)
        maps = [share[:, a:b].sum(dim=1).unflatten(0, (height, -1)) for a, b in spans]
        for i, one in enumerate(maps):
            total[i] += nn.functional.interpolate(one[None, None], tuple(shape))[0, 0]
    return total / len(layers)


def spans_of(prompt: str) -> list[tuple[str, int, int]]:
    """The words of a prompt, each with its first token and the one after its last. Token 0 is the
    start's."""
    found, at = [], 1
    for word in prompt.split():
        n = len(tokenizer().encode(word))
        if n and at + n <= CUT + 1:
            found.append((word, at, at + n))
        at += n
    return found


def is_known(sd: StableDiffusion, word: str) -> bool:
    """Whether any token of the word has an embedding. nano's are zero but for the words of drawn
    scenes."""
    tokens = torch.tensor(tokenizer().encode(word))
    table = next(p for name, p in sd.text_encoder.named_parameters() if "token_embedding" in name)
    return bool(table[tokens].any(dim=1).all()) if tokens.max() < len(table) else True


# ----------------------------------------------------------------------------------- diagram


@torch.no_grad()
def blocks_of(sd: StableDiffusion, control: ControlNet | None) -> list[dict]:
    """The blocks of both networks in the order of their computation, with shapes and times of one
    step without guidance."""
    weight = next(sd.unet.parameters())
    n = sd.size // 8
    x, t = weight.new_zeros(1, 4, n, n), torch.tensor([500], device=weight.device)
    context = sd.encode_prompts("")
    rows: list[dict] = []
    named = [] if control is None else [("control", *pair) for pair in control_blocks(control)]
    named += [("unet", *pair) for pair in unet_blocks(sd.unet)]
    hooks = []
    for part, name, module in named:
        n_own = sum(p.numel() for p in module.parameters())
        row = {"part": part, "name": name, "type": types_of(module), "parameters": n_own}
        before, after = timed(row, rows)
        hooks.append(module.register_forward_pre_hook(before))
        hooks.append(module.register_forward_hook(after))
    residuals = None
    if control is not None:
        residuals = control(x, weight.new_zeros(1, 3, sd.size, sd.size), t, context)
    sd.unet(x, t, context, residuals)
    for hook in hooks:
        hook.remove()
    return rows


def timed(row: dict, rows: list[dict]) -> tuple[Callable, Callable]:
    """Hooks that complete a row with the shape of a module's output and its milliseconds."""
    began = []

    def before(module: nn.Module, inputs: Any) -> None:
        began.append(perf_counter())

    def after(module: nn.Module, inputs: Any, output: Tensor) -> None:
        milliseconds = round(1000 * (perf_counter() - began[-1]), 2)
        rows.append(row | {"shape": [*output.shape[1:]], "ms": milliseconds})

    return before, after


def control_blocks(control: ControlNet) -> list[tuple[str, nn.Module]]:
    layers = enumerate(control.input_hint_block)
    found: list[tuple[str, nn.Module]] = [
        (f"input_hint_block.{i}", m) for i, m in layers if isinstance(m, nn.Conv2d)
    ]
    found += [(f"input_blocks.{i}", m) for i, m in enumerate(control.input_blocks)]
    found += [("middle_block", control.middle_block)]
    found += [(f"zero_convs.{i}", m) for i, m in enumerate(control.zero_convs)]
    return [*found, ("middle_block_out", control.middle_block_out)]


def unet_blocks(unet: UNet) -> list[tuple[str, nn.Module]]:
    found = [(f"input_blocks.{i}", m) for i, m in enumerate(unet.input_blocks)]
    found += [("middle_block", unet.middle_block)]
    found += [(f"output_blocks.{i}", m) for i, m in enumerate(unet.output_blocks)]
    return [*found, ("out", unet.out)]


def types_of(module: nn.Module) -> str:
    parts = [*module] if isinstance(module, nn.Sequential) else [module]
    return ", ".join(type(part).__name__ for part in parts)
