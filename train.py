"""Train a ControlNet (Zhang & Agrawala 2023, section 3): a copy of a locked U-Net's encoder learns
to make the U-Net follow a hint.

    python train.py
        a ControlNet for the bundled small model, on scenes drawn in memory: minutes on a laptop
    python train.py --base weights/v1-5-pruned-emaonly.safetensors --data fill50k/
        the real thing on one GPU, with the paper's settings

The method is `diffusion_loss`, `training_loss` and the loop in `train`.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanocontrol import DDPM, ControlNet, InputError, StableDiffusion, UNet
from nanocontrol.checkpoint import load_control, load_sd, save_control, save_sd
from nanocontrol.controlnet import initialise_condition_encoder, zero_module
from nanocontrol.nano.conditions import CONDITIONS
from nanocontrol.nano.healthy import bands_for
from nanocontrol.nano.model import NANO, UNET, hint_channels_for
from nanocontrol.nano.scenes import HELD_OUT, Scenes
from nanocontrol.nano.scores import scorer
from nanocontrol.nano.world import SIZES
from nanocontrol.plumbing import machine
from nanocontrol.plumbing.errors import blame, one_sentence
from nanocontrol.plumbing.flags import (
    absolute,
    at_least,
    device,
    fraction,
    positive,
    seed,
    width_and_height,
)
from nanocontrol.schedulers import STEPS
from nanocontrol.training.batches import Batch, generator_of, load_batches
from nanocontrol.training.cache import encoded_once
from nanocontrol.training.check import tell_or_refuse
from nanocontrol.training.measure import HeldOut, Scores, edge_scores, how_made, measure
from nanocontrol.training.optimizer import PRECISIONS, Optimizer
from nanocontrol.training.pairs import Folder, Pairs, View, split
from nanocontrol.training.processes import Processes
from nanocontrol.training.settings import knob, parser_for, settings_of_run
from nanocontrol.training.start import Signals, check_new, run_alone, typed
from nanocontrol.training.watch import Watch
from nanocontrol.unet import Block

# ----------------------------------------------------------------------------------- settings


@dataclass(frozen=True)
class Settings:
    """A flag each. The defaults are those of the paper and of the original's training guide."""

    base: str = knob(None, "a Stable Diffusion 1 or 2 (default: the bundled nano)", absolute)
    init_control: str | None = knob(None, "begin with this ControlNet, not with a copy", absolute)
    data: list[str] | None = knob(None, "a folder of pairs or pictures; twice: both", absolute)
    hints: Literal["canny"] | None = knob(None, "make the hints from the pictures of --data")
    size: str | None = knob(
        None,
        "of what is cut out of each picture of --data: 512, or 768x512 (default: the base's)",
        width_and_height,
    )
    crop: Literal["middle", "random"] = knob("middle", "where it is cut out; random: never twice")
    mirror: bool = knob(False, "also show the pairs of --data reversed")
    condition: str | None = knob(
        None, "of scenes drawn without --data (default: canny)", choices=CONDITIONS
    )
    scenes: int = knob(None, "to draw (default: 1600, in long runs more)", at_least(1))
    out: str = knob(None, "the run's folder (default: runs/canny-1, -2, ...)", absolute)
    steps: int = knob(20_000, "of the optimizer", at_least(1))
    batch_size: int = knob(4, "pairs in a pass", at_least(1))
    accumulate: int = knob(1, "passes in a step", at_least(1))
    lr: float = knob(1e-5, "learning rate", positive)
    schedule: Literal["constant", "cooldown"] = knob(
        "constant", "cooldown: it falls to 0 in the last quarter"
    )
    drop_prompt: float = knob(0.5, "share of the prompts that are emptied", fraction)
    noisy: float = knob(0.0, "share of the pairs that are trained at t from 800 on", fraction)
    hint_init: Literal["pytorch", "variance"] = knob("pytorch", "the condition encoder's start")
    unlock: Literal["decoder", "all"] | None = knob(None, "train this part of the base, too")
    only_mid_control: bool = knob(False, "control the middle block alone")
    prediction: Literal["auto", "eps", "v"] = knob("auto", "what the base predicts")
    seed: int = knob(0, "of weights, order and noise", seed)
    device: str = knob(None, "cpu, cuda, ... (default: a GPU if there is one)", device)
    dtype: Literal["fp32", "bf16", "fp16"] = knob(
        None, "default: bf16 on a GPU that has it, fp16 on others, fp32 on a CPU"
    )
    low_memory: bool = knob(
        False,
        "for small GPUs, slower: gradient checkpointing, and with bf16 or fp16 the optimizer in "
        "the CPU's memory",
    )
    compile: bool = knob(None, "torch.compile (default: on a GPU, with --base, from 2000 steps on)")
    cache: str = knob("cache", "where encoded pairs are kept", absolute)
    save_every: int = knob(1000, "steps between saves", at_least(1))
    sample_every: int = knob(500, "steps between sheets of pictures", at_least(1))


NANO_PRESET: dict[str, Any] = {
    "steps": 500,
    "batch_size": 16,
    "lr": 1e-3,
    "schedule": "cooldown",
    "hint_init": "variance",
    "save_every": 200,
    "sample_every": 50,
}

SCENES = 1600  # drawn ones; a run that would see each more than six times draws more
COMPILE_FROM = 2000  # steps: compiling Stable Diffusion pays from about there on (not measured)
# From here on it is decided what goes where, and in which colour; the error of the predicted noise
# hardly tells.
NOISY = 800
SHEET = 8  # held-out pairs to look at during the run; at its end all are measured

# --------------------------------------------------------------------------------- the method


class Draws(NamedTuple):
    """What is drawn at random for n pairs in a step."""

    posterior: Tensor  # [n, 4, h, w], normal: which of a picture's possible latents is taken
    noise: Tensor  # [n, 4, h, w], normal
    t: Tensor  # [n], 0..999
    no_prompt: Tensor  # [n], bool: whether the prompt is emptied

    def of(self, pairs: slice) -> "Draws":
        return Draws(*(drawn[pairs] for drawn in self))


def random_draws(
    seed: int, step: int, n: int, size: tuple[int, int], drop_prompt: float, noisy: float = 0.0
) -> Draws:
    """For all n pairs of a step at once: however many passes and processes it is divided into, the
    draws are the same. size: height and width of the pictures in pixels."""
    generator, shape = generator_of(seed, step), (n, 4, size[0] // 8, size[1] // 8)
    posterior, noise = (torch.randn(shape, generator=generator) for _ in range(2))
    t = torch.randint(STEPS, (n,), generator=generator)
    no_prompt = torch.rand(n, generator=generator) < drop_prompt
    noisiest = torch.randint(NOISY, STEPS, (n,), generator=generator)
    t = torch.where(torch.rand(n, generator=generator) < noisy, noisiest, t)
    return Draws(posterior, noise, t, no_prompt)


def diffusion_loss(
    unet: UNet,
    control: ControlNet,
    diffusion: DDPM,
    x0: Tensor,
    hint: Tensor,
    context: Tensor,
    noise: Tensor,
    t: Tensor,
) -> Tensor:
    """Equation 5 of the paper: the mean square error of the predicted noise.

    x0 (scaled latents) and noise [B, 4, h, w], hint [B, 3, 8h, 8w] in [0, 1], context [B, 77, D];
    t [B] in 0..999, on the CPU, as the schedule is: reading it from a GPU would make the CPU wait.
    """
    x_t, target = diffusion.add_noise(x0, noise, t), diffusion.target(x0, noise, t)
    dtype = next(control.parameters()).dtype  # in which the networks compute
    x_t, hint, context = x_t.to(dtype), hint.to(dtype), context.to(dtype)
    t = machine.to_device(t, x0.device)
    residuals = control(x_t, hint, t, context)
    # Unless the base is unlocked, neither weights nor inputs of its encoder ask for gradients, so
    # autograd keeps nothing of it. Gradients pass through the locked decoder on their way to the
    # residuals, but its weights collect none. (In the original they do: 2 GB that nobody uses.)
    output = unet(x_t, t, context, residuals)
    return F.mse_loss(output.float(), target)


def training_loss(
    unet: UNet,
    control: ControlNet,
    diffusion: DDPM,
    scale_factor: float,
    batch: Batch,
    draws: Draws,
    empty: Tensor,
) -> Tensor:
    """The loss of one pass. empty [1, 77, D] is the context of the empty prompt."""
    posterior, noise, no_prompt = (
        machine.to_device(x, batch.hint.device)
        for x in (draws.posterior, draws.noise, draws.no_prompt)
    )
    x0 = scale_factor * (batch.mean.float() + batch.deviation.float() * posterior)
    # Where the prompt is emptied, the copy must find the meaning in the hint (section 3.3).
    context = torch.where(no_prompt[:, None, None], empty, batch.context)
    return diffusion_loss(unet, control, diffusion, x0, batch.hint, context, noise, draws.t)


def models(settings: Settings) -> tuple[StableDiffusion, ControlNet, dict[str, nn.Module]]:
    """The base model, the ControlNet, and the networks with weights to be trained, by name."""
    machine.allow_tf32(settings.device)
    torch.manual_seed(settings.seed)  # of the condition encoder's first weights
    with blame("--base"):  # (on the CPU, where the file is mapped)
        sd = load_sd(settings.base, prediction=settings.prediction)
    if settings.init_control:
        with blame("--init-control"):
            control = load_control(settings.init_control, sd.unet)
    else:
        control = ControlNet.from_unet(sd.unet, hint_channels_for(sd.unet))
        if settings.hint_init == "variance":
            initialise_condition_encoder(control)
    trained: dict[str, nn.Module] = {"control": control}
    if settings.only_mid_control:  # the other residuals stay zero, here and in sample.py
        zero_module(control.zero_convs).requires_grad_(False)
    if settings.unlock == "decoder":  # the original's sd_locked=False
        sd.unet.output_blocks.requires_grad_(True)
        sd.unet.out.requires_grad_(True)
    if settings.unlock == "all":  # the paper's training of the whole model
        sd.unet.requires_grad_(True)
    if settings.unlock:
        trained["unet"] = sd.unet
    if not settings.unlock:  # (a base that is trained is saved as well: its other parts stay exact)
        precision = PRECISIONS[settings.dtype]
        sd.unet.to(precision), sd.text_encoder.to(precision)
        if settings.dtype == "bf16":  # (fp16 ends at 65504, and Stable Diffusion's VAE goes beyond)
            sd.vae.to(precision)
    sd.unet.to(settings.device), sd.vae.to(settings.device), sd.text_encoder.to(settings.device)
    for network in (sd.unet, sd.vae, control):
        # (On a CPU large networks lose by it.)
        if machine.is_gpu(settings.device) or sd.unet.config == UNET:
            network.to(memory_format=torch.channels_last)
    for module in [*sd.unet.modules(), *control.modules()]:
        if isinstance(module, Block):
            module.checkpointed = settings.low_memory
    return sd, control, trained


def learning_rate(lr: float, schedule: str, step: int, steps: int) -> float:
    """Constant as in the paper; "cooldown" falls to zero in the last quarter."""
    return lr if schedule == "constant" else lr * min(1, 4 * (1 - step / steps))


class Variant(NamedTuple):
    """What an experiment (nanocontrol/experiments/) puts in the place of these functions."""

    models: Callable
    training_loss: Callable
    measured: Callable


def train(settings: Settings, signals: Signals, resume: bool, use: Variant | None = None) -> dict:
    """Leaves a run's folder -> its final numbers, as in metrics.json."""
    use = use or Variant(models, training_loss, measured)
    processes = Processes(settings.device)
    sd, controlnet, trained = use.models(settings)
    optimizer = optimizer_for(settings, trained)
    diffusion = DDPM(sd.prediction)
    with torch.no_grad():
        pairs, held_out, score_of = datasets(settings, sd)
        empty, size = sd.encode_prompts(""), held_out.size
    # In training compiled and, of several processes, joined; pictures are made without that.
    unet, control = (processes.join(compiled(settings, net)) for net in (sd.unet, controlnet))
    passes, n = settings.accumulate, settings.batch_size * processes.size  # n pairs in a pass
    # Pairs that are seen more than once are encoded once (`encoded_once`), after which VAE and text
    # encoder are on the CPU: their home, to which measuring brings them back.
    again = settings.crop == "middle" and settings.steps * passes * n > len(pairs)
    cached = bool(settings.cache) and again
    home = "cpu" if cached else settings.device

    save = partial(save_weights, sd, trained, settings.condition)
    look = partial(use.measured, settings, sd, controlnet, held_out, score_of, home)
    caption = how_made(sd)
    watch = Watch(
        settings, optimizer, processes, partial(look, SHEET), caption, save, signals, pairs.digest()
    )
    start = watch.begin(resume)
    dataset: Any = pairs
    if cached:
        dataset = encoded_once(sd, pairs, settings.cache, settings.batch_size, processes)
    # (Batches are of one pass, draws of a whole step: the share of pass 0 here, of i below.)
    seen, share = start * passes * n, processes.share(0, settings.batch_size)
    random = settings.crop == "random"
    batches = load_batches(sd, dataset, settings.seed, seen, n, share, settings.device, random)

    for step in watch.steps(start):
        optimizer.set_lr(learning_rate(settings.lr, settings.schedule, step, settings.steps))
        shares = settings.drop_prompt, settings.noisy
        draws = random_draws(settings.seed, step, passes * n, size, *shares)
        total = torch.zeros((), device=settings.device)
        for i in range(passes):
            processes.average_next(i + 1 == passes, unet, control)
            batch, mine = next(batches), draws.of(processes.share(i, settings.batch_size))
            loss = use.training_loss(unet, control, diffusion, sd.scale_factor, batch, mine, empty)
            optimizer.backward(loss / passes)
            total += loss.detach() / passes
        watch.done(step, optimizer.step(processes.mean(total)))
    return watch.finish(partial(look, len(held_out.images)), size, bands_for(asdict(settings)))


# ------------------------------------------------------------------------------ what it needs


def datasets(settings: Settings, sd: StableDiffusion) -> tuple[Pairs, HeldOut, Scores | None]:
    """Pairs to train on, others to measure with, and a function that scores pictures of the first
    of these others (None for hints from files: what they show is not known)."""
    if settings.data:
        with blame("--data"):
            folder, kept = split(folder_of(settings, sd), settings.seed)
            scores = edge_scores(kept) if settings.hints == "canny" else None
            return folder.mirrored() if settings.mirror else folder, HeldOut.of(sd, kept), scores
    if sd.size not in SIZES:
        drawn = f"scenes are drawn at {', '.join(map(str, SIZES))}"
        mismatch = f"is for pictures of {sd.size} pixels, and {drawn}"
        raise InputError(f"--base: {settings.base} {mismatch}: expected --data DIR")
    condition = settings.condition or ""
    scenes = Scenes(condition, n=settings.scenes, size=sd.size)
    others = Scenes(condition, HELD_OUT, n=32, size=sd.size)
    return scenes, HeldOut.of(sd, others), scorer(condition, others)


def folder_of(settings: Settings, sd: StableDiffusion) -> Folder:
    """The pairs of --data; what one should know of them is printed."""
    width, height = settings.size.split("x") if settings.size else (sd.size, sd.size)
    view = View((int(width), int(height)), settings.crop, settings.hints, settings.seed)
    folder = Folder(map(Path, settings.data or []), view)
    tell_or_refuse(folder, settings.steps, settings.batch_size * settings.accumulate)
    return folder


def optimizer_for(settings: Settings, trained: dict[str, nn.Module]) -> Optimizer:
    """The networks then compute in the precision that is set, on their device."""
    on_cpu = settings.low_memory and settings.dtype != "fp32"
    return Optimizer(trained, settings.lr, settings.device, settings.dtype, on_cpu)


def compiled(settings: Settings, network: Any) -> Any:
    """Where a compiler is missing PyTorch says so, and the network stays as it is."""
    if not settings.compile:
        return network
    torch._dynamo.config.suppress_errors = True
    return torch.compile(network)


def measured(
    settings: Settings,
    sd: StableDiffusion,
    control: ControlNet,
    held_out: HeldOut,
    score_of: Scores | None,
    home: str,
    n: int,
) -> tuple[list[Tensor], dict]:
    """On the first n of the held-out pairs: rows of pictures, and numbers. home: the device where
    VAE and text encoder are otherwise."""
    loss = partial(diffusion_loss, sd.unet, control, DDPM(sd.prediction))
    with machine.moved([sd.vae, sd.text_encoder], settings.device, back_to=home):
        return measure(sd, control, held_out.first(n), loss, score_of, settings.batch_size)


def save_weights(
    sd: StableDiffusion, trained: dict[str, Any], condition: str | None, folder: Path
) -> None:
    """What sample.py takes: the ControlNet, and the base model if that was trained."""
    save_control(trained["control"], folder / "control.safetensors", condition)
    if "unet" in trained:
        save_sd(sd, folder / "base.safetensors")


# ---------------------------------------------------------------------------------- the flags


def resolve(given: dict[str, Any]) -> Settings:
    """Every setting: as given, or by a preset, or its default, or by what this machine has."""
    check(given)
    check_new(given.get("out"))
    settings = Settings(**({} if "base" in given else NANO_PRESET) | given)
    condition = settings.condition or settings.hints or (None if settings.data else "canny")
    on = settings.device or machine.default_device()
    pairs_seen = settings.steps * settings.accumulate * settings.batch_size
    long = settings.steps >= COMPILE_FROM and "base" in given and not settings.low_memory
    return replace(
        settings,
        base=settings.base or str(NANO),
        condition=condition,
        scenes=settings.scenes or max(SCENES, pairs_seen // 6),
        device=on,
        dtype=settings.dtype or machine.default_dtype(on),
        compile=long and machine.is_gpu(on) if settings.compile is None else settings.compile,
        cache=settings.cache and absolute(settings.cache),
    )


def check(given: dict[str, Any]) -> None:
    """Refuse flags that do not go together."""
    if "condition" in given and "data" in given:
        raise InputError("--condition is for drawn scenes: it cannot be used with --data")
    for name in ("hints", "size", "crop", "mirror"):
        if name in given and "data" not in given:
            raise InputError(f"--{name} is for pictures of your own: expected --data DIR")
    if given.get("low_memory") and "unlock" in given:
        raise InputError("--low-memory is for a locked base: it cannot be used with --unlock")
    if "data" in given and "base" not in given:
        note = "--data without --base: training a ControlNet for nano, the bundled small model"
        print(note, file=sys.stderr)


def parse(argv: list[str] | None) -> tuple[Settings, bool, bool]:
    """The settings, whether to resume, and whether only to check."""
    parser = parser_for(Settings, __doc__, {"nano": NANO_PRESET})
    continued = "continue this run; no other flag may differ, but --steps may grow with --schedule "
    continued += "constant"
    parser.add_argument("--resume", metavar="RUN", type=absolute, help=continued)
    parser.add_argument(
        "--no-cache",
        dest="cache",
        action="store_const",
        const="",
        default=argparse.SUPPRESS,
        help="encode at every step",
    )
    parser.add_argument("--dry-run", action="store_true", help="check, print the settings, stop")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    given = vars(parser.parse_args(argv))
    resume, dry_run, stage = (given.pop(name) for name in ("resume", "dry_run", "stage"))
    if stage:
        raise InputError(
            f"--stage {stage}: nano's parts have a command of their own, "
            "python -m nanocontrol.nano.train vae|base|decoder|detector"
        )
    if resume:
        return settings_of_run(Settings, Path(resume), given, longer="constant"), True, dry_run
    return resolve(given), False, dry_run


def print_settings(settings: Settings) -> None:
    """Read everything that a training would read, then print what it would do."""
    sd, _, trained = models(settings)
    with torch.no_grad():
        pairs, held_out, _ = datasets(settings, sd)
    weights = (p.numel() for net in trained.values() for p in net.parameters() if p.requires_grad)
    sizes = {"pairs": len(pairs), "held_out": len(held_out.images), "weights_trained": sum(weights)}
    print(json.dumps(asdict(settings) | sizes, indent=2))


def main(argv: list[str] | None = None) -> None:
    machine.keep_freed_memory()
    with one_sentence("train.py", "use a smaller --batch-size, or --low-memory"):
        settings, resume, dry_run = parse(argv)
        if dry_run:
            print_settings(settings)
        else:
            run_alone(train, settings, resume, settings.condition or "control", typed(__file__))


if __name__ == "__main__":
    main()
