"""Walk through a model in the order of its data flow:

    python -m nanocontrol.tools.walk
    python -m nanocontrol.tools.walk --base sd15
    python -m nanocontrol.tools.walk --run
    python -m nanocontrol.tools.walk --gradients

prints each part's key, modules, shapes, parameters and multiplications (MACs, of one picture and
one step), whether it is locked, trained or zero at first, and the decoder block that a residual
goes to. Parts in a row that are alike share a line. sd15 and sd21 need no file: only shapes are
computed. --run computes one step for a drawn scene, and prints the root mean square of every map
and residual. --gradients takes the first four training steps of a fresh ControlNet.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nanocontrol import DDPM, ControlNet, StableDiffusion, UNet, load_control, load_sd
from nanocontrol.checkpoint import architecture, read_base, read_control
from nanocontrol.controlnet import HINT_CHANNELS, read_hint_channels
from nanocontrol.nano.model import NANO, NANO_CONTROL, UNET, hint_channels_for, name_of
from nanocontrol.nano.scenes import Scenes
from nanocontrol.plumbing.errors import InputError, blame, one_sentence, say
from nanocontrol.plumbing.flags import Parser
from nanocontrol.unet import SD1, SD2, UNetConfig
from train import diffusion_loss

NAMED = {"sd15": SD1, "sd21": SD2}
SHORT = {"ResBlock": "Res", "SpatialTransformer": "Attn", "Downsample": "Down", "Upsample": "Up"}
SHORT |= {"Linear": "Lin", "Conv2d": "Conv", "GroupNorm": "Norm"}
BASE, COPY = "the locked U-Net", "the trainable copy"
T, STEPS, PAIRS = 500, 4, 4  # the noise level of --run; steps and pairs of --gradients


@dataclass(frozen=True)
class WalkedPart:
    """A part of the model. Shapes are without the batch."""

    network: str
    key: str
    module: str
    shape_in: tuple[int, ...]
    shape_out: tuple[int, ...]
    parameters: int
    macs: int
    state: str  # LOCKED, TRAINED or ZERO AT START
    to: str = ""  # the decoder block that a residual goes to
    rms: float | None = None  # of the output
    ratio: float | None = None  # of a residual to what it is added to


# ------------------------------------------------------------------------------- the structure


Named = tuple[str, str, nn.Module]  # network, key, module


def modules_of(unet: UNet, control: ControlNet) -> Iterator[Named]:
    """All parts, in the order of the data flow."""
    for network, net in ((BASE, unet), (COPY, control)):
        yield network, "time_embed", net.time_embed
        if net is control:
            every = numbered(COPY, "input_hint_block", control.input_hint_block)
            yield from (one for one in every if isinstance(one[2], nn.Conv2d))
        yield from numbered(network, "input_blocks", net.input_blocks)
        yield network, "middle_block", net.middle_block
    yield from numbered(COPY, "zero_convs", control.zero_convs)
    yield COPY, "middle_block_out", control.middle_block_out
    yield from numbered(BASE, "output_blocks", unet.output_blocks)
    yield BASE, "out", unet.out


def numbered(network: str, key: str, modules: Iterable[nn.Module]) -> Iterator[Named]:
    return ((network, f"{key}.{i}", module) for i, module in enumerate(modules))


def words(module: nn.Module) -> str:
    """The modules in a block, short: Res, Attn, Up."""
    inside = module if isinstance(module, nn.Sequential) else [module]
    names = [type(one).__name__ for one in inside if not isinstance(one, nn.SiLU)]
    return " ".join(SHORT.get(name, name) for name in names)


def training_state(network: str, key: str) -> str:
    if network == BASE:
        return "LOCKED"
    zero = key.startswith(("zero_convs", "middle_block_out", "input_hint_block.14"))
    return "ZERO AT START" if zero else "TRAINED"


def destination(key: str, n: int) -> str:
    """The decoder block that a residual goes to, of n blocks. The middle block's is added to the
    map from below, the others to a skip."""
    if key == "middle_block_out":
        return "0 below"
    return str(n - 1 - int(key.split(".")[1])) if key.startswith("zero_convs") else ""


def walk(unet: UNet, control: ControlNet, inputs: dict[str, Tensor]) -> list[WalkedPart]:
    """All parts, from a pass with these inputs for `ControlNet.forward`, on any device.

    Shapes, MACs and the outputs' root mean squares come from hooks in this pass.
    """
    found: dict[nn.Module, list] = {}
    maps: dict[nn.Module, float] = {}
    parts = [*modules_of(unet, control)]
    with FlopCounterMode(display=False) as counter:

        def before(module: nn.Module, given: tuple) -> None:
            found[module] = [given[0].shape[1:], counter.get_total_flops()]

        def after(module: nn.Module, _: tuple, output: Tensor) -> None:
            found[module][1] = counter.get_total_flops() - found[module][1]
            found[module].append(output.shape[1:])
            if not output.is_meta:
                maps[module] = output.square().mean().sqrt().item()

        hooks = [m.register_forward_pre_hook(before) for *_, m in parts]
        hooks += [m.register_forward_hook(after) for *_, m in parts]
        residuals = control(**inputs)
        unet(inputs["x"], inputs["t"], inputs["context"], residuals)
        for hook in hooks:
            hook.remove()
    skips = [*unet.input_blocks, unet.middle_block]
    zeros = [*control.zero_convs, control.middle_block_out]
    added_to = {zero: maps.get(skip) for zero, skip in zip(zeros, skips)}
    every = []
    for network, key, module in parts:
        given, flops, made = found[module]
        numbers = sum(p.numel() for p in module.parameters()), flops // 2 // len(inputs["x"])
        to = destination(key, len(unet.output_blocks))
        share = maps[module] / added_to[module] if added_to.get(module) else None
        what = network, key, words(module), tuple(given), tuple(made), *numbers
        state = training_state(network, key)
        every.append(WalkedPart(*what, state, to, maps.get(module), share))
    return every + free(unet, control, parts)


def free(unet: UNet, control: ControlNet, parts: list[Named]) -> list[WalkedPart]:
    """Parameters and buffers that are in none of the parts, one by one."""
    inside = {id(x) for *_, m in parts for x in [*m.parameters(), *m.buffers()]}
    found = []
    for network, net, state in ((BASE, unet, "LOCKED"), (COPY, control, "TRAINED")):
        tensors = [*net.named_parameters(), *net.named_buffers()]
        for key, x in ((key, x) for key, x in tensors if id(x) not in inside):
            trained = isinstance(x, nn.Parameter)
            kind, n = ("Parameter", x.numel()) if trained else ("Buffer", 0)
            what = network, key, kind, (), tuple(x.shape), n, 0
            found.append(WalkedPart(*what, state if trained else "LOCKED"))
    return found


def on_meta(
    config: UNetConfig, widths: tuple[int, ...], size: int
) -> tuple[UNet, ControlNet, dict]:
    """Networks without weights, and inputs of one picture of this size in pixels."""
    with torch.device("meta"):
        unet, control = UNet(config).requires_grad_(False), ControlNet(config, widths)
        h = size // 8
        inputs = {"x": torch.empty(1, 4, h, h), "hint": torch.empty(1, 3, size, size)}
        inputs |= {"t": torch.empty(1), "context": torch.empty(1, 77, config.context_dim)}
    return unet, control, inputs


def training_flops(unet: UNet, control: ControlNet, inputs: dict[str, Tensor]) -> int:
    """Operations of a training step of one pair: forward and backward, without the optimizer."""
    with FlopCounterMode(display=False) as counter:
        residuals = control(**inputs)
        unet(inputs["x"], inputs["t"], inputs["context"], residuals).square().mean().backward()
    control.zero_grad()
    return counter.get_total_flops()


def totals(parts: list[WalkedPart], flops: int, name: str, size: int) -> dict:
    """The sums, and a sentence about each."""

    def parameters(network: str, *beginnings: str) -> int:
        its = (p for p in parts if p.network == network and p.key.startswith(beginnings))
        return sum(part.parameters for part in its)

    base, copy = parameters(BASE, ""), parameters(COPY, "")
    zeros = parameters(COPY, "zero_convs", "middle_block_out")
    hint = parameters(COPY, "input_hint_block")
    macs = {network: sum(p.macs for p in parts if p.network == network) for network in (BASE, COPY)}
    n = sum(bool(part.to) for part in parts)
    said = [
        f"{name}, pictures of {size} x {size} pixels.",
        f"The U-Net has {short(base)} parameters, all locked.",
        f"The copy has {short(copy)} parameters, {100 * copy / base:.0f} % of the U-Net's.",
        f"Of these, {n} zero convolutions have {short(zeros)}, the hint's encoder {short(hint)}.",
        f"A step needs {short(macs[BASE])} MACs in the U-Net, {short(macs[COPY])} in the copy.",
        f"A training step is {short(flops, 'FLOP')} for one pair.",
    ]
    sums = {"base": base, "control": copy, "zero_convolutions": zeros, "condition_encoder": hint}
    return sums | {"macs": macs, "training_flops": flops, "said": said}


def short(number: float, unit: str = "") -> str:
    """A number with three digits and a prefix: 361 M, 2.27 T."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * factor:
            return f"{number / factor:.3g} {prefix}{unit}"
    return f"{number:.3g}{' ' if unit else ''}{unit}"


# ---------------------------------------------------------------------------- with real numbers


@torch.no_grad()
def example(sd: StableDiffusion, n: int) -> dict[str, Tensor]:
    """Latents, hints and encoded prompts of n drawn scenes, with noise."""
    scenes = [Scenes("canny", size=sd.size)[i] for i in range(n)]
    mean, _ = sd.encode(torch.stack([image for image, *_ in scenes]))
    prompts = sd.encode_prompts([prompt for *_, prompt in scenes])
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    hints = torch.stack([hint for _, hint, _ in scenes])
    return {"x0": sd.scale_factor * mean, "hint": hints, "context": prompts, "noise": noise}


@torch.no_grad()
def running(sd: StableDiffusion, control: ControlNet) -> list[WalkedPart]:
    """All parts, with root mean squares for one scene."""
    given, t = example(sd, 1), torch.tensor([T])
    x = DDPM(sd.prediction).add_noise(given["x0"], given["noise"], t)
    inputs = {"x": x, "hint": given["hint"], "t": t, "context": given["context"]}
    return walk(sd.unet, control, inputs)


LAYERS = {
    "zero convolutions": ("zero_convs", "middle_block_out"),
    "copy": ("time_embed", "input_blocks", "middle_block."),
    "condition encoder, last": ("input_hint_block.14",),
    "condition encoder, others": ("input_hint_block",),
}


def layer_of(name: str) -> str:
    return next(layer for layer, beginnings in LAYERS.items() if name.startswith(beginnings))


def gradient_norms(sd: StableDiffusion, control: ControlNet) -> dict[str, list[float]]:
    """The gradients' norms by layer in the first training steps of this ControlNet."""
    given, found = example(sd, PAIRS), {layer: [0.0] * STEPS for layer in LAYERS}
    optimizer = torch.optim.AdamW(control.parameters(), 1e-3)
    t = torch.linspace(50, 950, PAIRS).long()
    pair = given["x0"], given["hint"], given["context"], given["noise"]
    for step in range(STEPS):
        diffusion_loss(sd.unet, control, DDPM(sd.prediction), *pair, t).mean().backward()
        for name, parameter in control.named_parameters():
            found[layer_of(name)][step] += float(torch.linalg.vector_norm(parameter.grad)) ** 2
        optimizer.step()
        optimizer.zero_grad()
    return {layer: [square**0.5 for square in squares] for layer, squares in found.items()}


# ------------------------------------------------------------------------------------ the text


def collapsed(parts: list[WalkedPart]) -> list[list[WalkedPart]]:
    """The parts, with those in a row that are alike together."""
    return [list(group) for _, group in groupby(parts, plain)]


def plain(part: WalkedPart) -> WalkedPart:
    """The part without its number and destination. Parts without a number are never alike."""
    key, _, number = part.key.rpartition(".")
    return replace(part, key=key, to="") if number.isdigit() else part


def line_of(group: list[WalkedPart], ran: bool) -> str:
    """A line of at most 100 columns."""
    first, last = group[0], group[-1]
    key = first.key if first is last else f"{first.key}-{last.key.rpartition('.')[2]}"
    given, made = ("x".join(map(str, shape)) for shape in (first.shape_in, first.shape_out))
    each = f" x {len(group)}" if len(group) > 1 else ""
    to = first.to if first.to == last.to else f"{first.to} to {last.to}"
    numbers = f"{each:<4}{short(first.macs):>8}"
    if ran:
        share = "" if first.ratio is None else f"{100 * first.ratio:.0f} %"
        numbers = f"{'' if first.rms is None else format(first.rms, '.3g'):>6}{share:>6}"
    columns = f"{key:<20}{first.module:<13}{given:<11}{made:<11}{first.parameters:>11,}{numbers}"
    return f"{columns} {first.state:<13} {to}".rstrip()


def text_of(parts: list[WalkedPart], sums: dict, ran: bool) -> list[str]:
    numbers = f"{'RMS':>6}{'share':>6}" if ran else f"{'MACs':>12}"
    columns = f"{'part':<20}{'modules':<13}{'in':<11}{'out':<11}{'parameters':>11}{numbers}"
    lines, network = [f"{columns} {'state':<13} to"], ""
    for group in [[part] for part in parts] if ran else collapsed(parts):
        if group[0].network != network:
            network = group[0].network
            lines += ["", network.upper()]
        lines.append(line_of(group, ran))
    to = "to: the block of output_blocks that reads skip + residual; below: middle block + residual"
    lines += ["", to]
    if ran:
        lines.append("share: the residual's RMS, divided by that of the skip or the middle block")
    return [*lines, *sums["said"]]


def main(argv: list[str] | None = None) -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser("walk", description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--base", metavar="FILE", help="base model's file, or sd15 or sd21 (default: nano)")
    add(
        "--control", metavar="FILE", help="a ControlNet (default: nano's; with --base, a fresh one)"
    )
    add("--run", action="store_true", help="compute a step, and print the maps' root mean squares")
    add("--gradients", action="store_true", help="take four training steps of a fresh ControlNet")
    add("--json", action="store_true", help="print everything as JSON")
    args = parser.parse_args(argv)
    with one_sentence("walk"):
        found = walked(args.base, args.control, args.run, args.gradients)
        if args.json:
            found["parts"] = [asdict(part) for part in found["parts"]]
            return print(json.dumps(found, indent=2))
        for line in text_of(found["parts"], found["totals"], args.run):
            say(line)
        if gradients := found.get("gradients"):
            say("The gradients' norms at the first four training steps:")
        for layer, norms in (gradients or {}).items():
            say(f"{layer:<26}" + "".join(f"{norm:>11.3g}" for norm in norms))


def walked(base: str | None, file: str | None, run: bool, gradients: bool) -> dict:
    """Parts, totals and, if asked for, gradients of the named files."""
    if (run or gradients) and base in NAMED:
        raise InputError(f"--base: {base} has no weights here; expected a file, or nano by default")
    named = NAMED.get(base or "")
    with blame("--base"):
        sd = None if named else load_sd(base or NANO) if run or gradients else None
        config = named or read_base(base or NANO)[1]
    size = sd.size if sd else 128 if config == UNET else 512
    file = file or (str(NANO_CONTROL) if base is None else None)
    widths: tuple[int, ...] = HINT_CHANNELS
    if file:
        with blame("--control"):
            control = read_control(file, config)
            if control.config != config:
                wrong = f"{file} is a ControlNet for {architecture(control.config)}"
                raise InputError(f"{wrong}, expected one for {architecture(config)}")
        widths = read_hint_channels(control.state_dict())
    unet, empty, inputs = on_meta(config, widths, size)
    parts = walk(unet, empty, inputs)
    sums = totals(parts, training_flops(unet, empty, inputs), name_of(config), size)
    if sd and run:
        with blame("--control"):
            control = load_control(file, sd.unet) if file else ControlNet.from_unet(sd.unet)
        ran = running(sd, control)  # on a CPU not all operations are counted
        parts = [replace(ours, rms=p.rms, ratio=p.ratio) for ours, p in zip(parts, ran)]
    found = {"parts": parts, "totals": sums}
    if sd and gradients:
        torch.manual_seed(0)
        fresh = ControlNet.from_unet(sd.unet, hint_channels_for(sd.unet))
        found["gradients"] = gradient_norms(sd, fresh)
    return found


if __name__ == "__main__":
    main()
