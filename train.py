"""Train a ControlNet (Zhang & Agrawala 2023, section 3). A copy of a locked U-Net's encoder learns
to make the U-Net follow a hint.

    python train.py
        a ControlNet for the bundled small model, on scenes drawn in memory: minutes on a laptop
    python train.py --base weights/v1-5-pruned-emaonly.safetensors --data fill50k/
        a ControlNet for Stable Diffusion 1.5 on one GPU, with the paper's settings
    python train.py --base FILE --data photos/ --hints canny
        from pictures alone; --hints DIR takes a hint for each, DIR/a.png for photos/a.jpg

A folder of --data has a list (prompt.json; metadata.jsonl or .csv with file_name, text and
conditioning_image), a Hugging Face data set (.parquet), webdataset's archives (.tar), or pictures,
with captions (a.txt) or without.

The method is `diffusion_loss`, `training_loss` and the loop in `train`.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanocontrol import DDPM, ControlNet, StableDiffusion, UNet
from nanocontrol.checkpoint import load_control, load_sd, save_control, save_sd
from nanocontrol.controlnet import initialise_condition_encoder, zero_module
from nanocontrol.nano.conditions import CONDITIONS
from nanocontrol.nano.data import Source, check_training_flags
from nanocontrol.nano.healthy import bands_for
from nanocontrol.nano.model import NANO, UNET, hint_channels_for
from nanocontrol.plumbing import flags, machine
from nanocontrol.plumbing.errors import blame, one_sentence
from nanocontrol.plumbing.flags import absolute, at_least, fraction, positive
from nanocontrol.training.batches import Batch, Draws, random_draws
from nanocontrol.training.cache import batches_from
from nanocontrol.training.graph import replayed
from nanocontrol.training.measure import HeldOut, Scores, how_made, measure
from nanocontrol.training.optimizer import Optimizer
from nanocontrol.training.pairs import Pairs
from nanocontrol.training.place import checked, compiled, place
from nanocontrol.training.processes import Processes
from nanocontrol.training.settings import knob, parser_for, settings_of_run
from nanocontrol.training.start import Signals, run_alone, typed
from nanocontrol.training.watch import Watch

# ----------------------------------------------------------------------------------- settings

SIZE_HELP = "size of the crop from each --data picture: 512 or 768x512 (default: the base's size)"
DTYPE_HELP = "default: bf16 on a GPU that supports it, fp16 on other GPUs, fp32 on a CPU"
HINTS_HELP = "canny: made from the pictures; or a folder with a hint of each picture's name"
KEEP_HELP = "how many of the last evaluations' weights to keep, in half precision; or all"
VALIDATION_HELP = "a hint picture, to sample with a prompt at every evaluation; can be repeated"
LOW_MEMORY_HELP = "for small GPUs: gradient checkpointing; with bf16 or fp16 also AdamW on the CPU"


@dataclass(frozen=True)
class Settings:
    """A run's settings, one flag each. Defaults follow the paper and the original's guide."""

    base: str = knob(None, "Stable Diffusion 1 or 2 checkpoint (default: nano)", absolute)
    init_control: str | None = knob(None, "start from this ControlNet, not from a copy", absolute)
    data: list[str] | None = knob(None, "folder of pairs or pictures; repeat to join", absolute)
    hints: str | None = knob(None, HINTS_HELP, flags.canny_or_folder)
    size: str | None = knob(None, SIZE_HELP, flags.width_and_height)
    crop: Literal["middle", "random"] = knob("middle", "crop position; random: a new one each time")
    mirror: bool = knob(False, "also train on every pair of --data mirrored")
    skip_wrong: bool = knob(False, "skip pairs that cannot be used, listed in skipped.json")
    condition: str | None = knob(None, "hint of drawn scenes (default: canny)", choices=CONDITIONS)
    scenes: int = knob(None, "scenes to draw (default: 1600, more in long runs)", at_least(1))
    out: str = knob(None, "the run's folder (default: runs/canny-1, ...)", absolute, learnt=False)
    steps: int = knob(20_000, "optimizer steps", at_least(1))
    batch_size: int = knob(4, "pairs per forward pass", at_least(1))
    accumulate: int = knob(1, "forward passes per step", at_least(1))
    lr: float = knob(1e-5, "learning rate", positive)
    schedule: Literal["constant", "cooldown"] = knob("constant", "cooldown: falls to 0 at the end")
    drop_prompt: float = knob(0.5, "share of the prompts to drop", fraction)
    hint_init: Literal["pytorch", "variance"] = knob("pytorch", "condition encoder initialisation")
    unlock: Literal["decoder", "all"] | None = knob(None, "also train this part of the base")
    only_mid_control: bool = knob(False, "add control to the middle block only")
    prediction: Literal["auto", "eps", "v"] = knob("auto", "what the base predicts")
    seed: int = knob(0, "random seed of weights, order and noise", flags.seed)
    device: str = knob(None, "cpu, cuda, ... (default: a GPU, if any)", flags.device, learnt=False)
    dtype: Literal["fp32", "bf16", "fp16"] = knob(None, DTYPE_HELP, learnt=False)
    low_memory: bool = knob(False, LOW_MEMORY_HELP, learnt=False)
    compile: bool = knob(False, "compile the networks with torch.compile", learnt=False)
    graph: bool = knob(False, "replay steps as a CUDA graph, on one GPU", learnt=False)
    cache: str = knob("cache", "folder for encoded pairs; or --no-cache", absolute, learnt=False)
    keep: int = knob(0, KEEP_HELP, flags.number_or_all, learnt=False)
    validation: list[list[str]] | None = knob(None, VALIDATION_HELP, flags.utf8, learnt=False)
    save_every: int = knob(1000, "steps between saves", at_least(1), learnt=False)
    sample_every: int = knob(500, "steps between evaluations", at_least(1), learnt=False)

    # Settings that only earlier versions had, with their defaults.
    former: ClassVar[dict[str, Any]] = {"noisy": 0.0}


NANO_PRESET: dict[str, Any] = {
    "steps": 700,
    "batch_size": 8,
    "lr": 1e-3,
    "schedule": "cooldown",
    "hint_init": "variance",
    "save_every": 200,
    "sample_every": 70,
}

SCENES = 1600  # drawn by default; a run that would see each more than six times draws more
SHEET = 8  # held-out pairs evaluated during the run; the last evaluation uses all of them

# --------------------------------------------------------------------------------- the method


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
    """Equation 5 of the paper: the mean squared error of the predicted noise, for each pair [B].

    x0: scaled latents [B, 4, h, w]; noise [B, 4, h, w]; hint [B, 3, 8h, 8w] in [0, 1]; context
    [B, 77, D]; t [B] in 0..999. All are on one device, and so is the noise schedule of diffusion.
    """
    x_t, target = diffusion.add_noise(x0, noise, t), diffusion.target(x0, noise, t)
    dtype = next(control.parameters()).dtype  # the precision of the networks
    x_t, hint, context = x_t.to(dtype), hint.to(dtype), context.to(dtype)
    residuals = control(x_t, hint, t, context)
    # In a locked base neither the encoder's weights nor its inputs require gradients, so autograd
    # stores none of its activations. Gradients pass through the locked decoder to reach the
    # residuals, but its weights collect none. (In the original they do: 2 GB that nothing uses.)
    output = unet(x_t, t, context, residuals)
    return F.mse_loss(output.float(), target, reduction="none").mean(dim=(1, 2, 3))


def training_loss(
    unet: UNet,
    control: ControlNet,
    diffusion: DDPM,
    scale_factor: float,
    batch: Batch,
    draws: Draws,
    empty: Tensor,
) -> Tensor:
    """The losses of one pass, one per pair [B]. empty [1, 77, D]: the encoded empty prompt."""
    x0 = scale_factor * (batch.mean.float() + batch.deviation.float() * draws.posterior)
    # Without a prompt, the copy has to recognise the content in the hint (section 3.3).
    context = torch.where(draws.no_prompt[:, None, None], empty, batch.context)
    return diffusion_loss(unet, control, diffusion, x0, batch.hint, context, draws.noise, draws.t)


def models(settings: Settings) -> tuple[StableDiffusion, ControlNet, dict[str, nn.Module]]:
    """The base model, the ControlNet, and the networks to train, by name."""
    machine.allow_tf32(settings.device)
    torch.manual_seed(settings.seed)  # for the condition encoder's initialisation
    with blame("--base"):
        sd = checked(load_sd(settings.base, prediction=settings.prediction), settings.base)
    # The lock (section 3.1): the U-Net's weights never change, so a small data set cannot make the
    # base forget. load_sd returns a locked base; the lock is repeated here to be seen.
    sd.unet.requires_grad_(False)
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
    if settings.unlock:
        unlock(sd.unet, settings.unlock)
        trained["unet"] = sd.unet
    # On a CPU, channels_last makes large networks slower.
    channels_last = machine.is_gpu(settings.device) or sd.unet.config == UNET
    place(sd, control, settings.device, settings.dtype, channels_last, settings.low_memory)
    return sd, control, trained


def unlock(unet: UNet, part: str) -> None:
    """Make all of the U-Net trainable, or its "decoder" (sd_locked = False in the original)."""
    for network in [unet] if part == "all" else [unet.output_blocks, unet.out]:
        network.requires_grad_(True)


def learning_rate(lr: float, schedule: str, step: int, steps: int) -> float:
    """The rate at a step: constant as in the paper, or falling to zero in the last quarter."""
    return lr if schedule == "constant" else lr * min(1, 4 * (1 - step / steps))


def evaluate(
    sd: StableDiffusion,
    control: ControlNet,
    held_out: HeldOut,
    scores: Scores | None,
    batch_size: int,
) -> tuple[list[Tensor], dict]:
    """Rows of pictures, and numbers that say how well held-out hints are followed."""

    def mean_loss(x0: Tensor, *rest: Tensor) -> Tensor:
        return diffusion_loss(sd.unet, control, DDPM(sd.prediction, x0.device), x0, *rest).mean()

    return measure(sd, control, held_out, mean_loss, scores, batch_size)


def train(
    settings: Settings,
    signals: Signals,
    resume: bool,
    models: Callable = models,
    loss: Callable = training_loss,
    evaluate: Callable = evaluate,
) -> dict:
    """Train, and write the run's folder -> its final numbers, as in metrics.json.

    A variant of the method passes its own functions for models, loss and evaluate.
    """
    processes = Processes(settings.device)
    pairs, others, scores = pairs_of(settings, processes)  # checked while no GPU waits
    sd, controlnet, trained = models(settings)
    optimizer = optimizer_for(settings, trained)
    diffusion = DDPM(sd.prediction, settings.device)
    with torch.no_grad():
        held_out, empty = HeldOut.of(sd, others), sd.encode_prompts("")
    # Training uses compiled networks, whose gradients are averaged if there are several processes.
    # Evaluation uses the plain networks.
    networks = (compiled(network, settings.compile) for network in (sd.unet, controlnet))
    unet, control = map(processes.join, networks)

    def look(n: int = SHEET) -> tuple[list[Tensor], dict]:
        with machine.moved([sd.vae, sd.text_encoder], settings.device):
            return evaluate(sd, controlnet, held_out.first(n), scores, settings.batch_size)

    def add_gradients(batch: Batch, draws: Draws) -> Tensor:
        """Add the gradients of a pass -> its part of the step's loss."""
        losses = loss(unet, control, diffusion, sd.scale_factor, batch, draws, empty)
        optimizer.backward(losses.mean() / passes)
        return losses.detach().mean() / passes

    save = partial(save_weights, sd, trained, settings.condition)
    where = Path(settings.out), settings.steps, settings.sample_every, settings.save_every
    watch = Watch(*where, optimizer, processes, signals, bands_for(settings))
    start = watch.begin(asdict(settings), resume, pairs, look, how_made(sd), save)
    how = settings.seed, settings.steps, settings.batch_size, settings.accumulate
    batches = batches_from(start, sd, pairs, processes, settings.device, *how, settings.cache)
    passes, n = settings.accumulate, settings.accumulate * settings.batch_size * processes.size
    own_loss = loss is not training_loss
    backward, take_step = replayed(settings.graph, add_gradients, optimizer, processes, own_loss)

    for step in watch.steps(start):
        optimizer.set_lr(learning_rate(settings.lr, settings.schedule, step, settings.steps))
        draws = random_draws(settings.seed, step, n, held_out.size, settings.drop_prompt)
        total = torch.zeros((), device=settings.device)
        for i in range(passes):
            processes.average_next(i + 1 == passes, unet, control)
            mine = draws.of(processes.share(i, settings.batch_size), settings.device)
            total += backward(watch.next(batches), mine)
        watch.done(step, take_step(processes.mean(total)))
    return watch.finish(partial(look, len(held_out.images)), held_out.size)


def pairs_of(settings: Settings, processes: Any = None) -> tuple[Pairs, Pairs, Scores | None]:
    source, n = Source.of(asdict(settings)), settings.batch_size * settings.accumulate
    return source.read(settings.base, settings.steps, n, processes)


def optimizer_for(settings: Settings, trained: dict[str, nn.Module]) -> Optimizer:
    """An optimizer for the trained networks. It moves them to their device and precision."""
    on_cpu = settings.low_memory and settings.dtype != "fp32"
    return Optimizer(trained, settings.lr, settings.device, settings.dtype, on_cpu)


def save_weights(sd: StableDiffusion, trained: dict, condition: str | None, run: Path) -> None:
    """Write the files for sample.py: the ControlNet, and the base model if it was trained."""
    save_control(trained["control"], run / "control.safetensors", condition)
    if "unet" in trained:
        save_sd(sd, run / "base.safetensors")


# ---------------------------------------------------------------------------------- the flags


def resolve(given: dict[str, Any]) -> Settings:
    """All settings: those given, then nano's preset, then defaults and what this machine has."""
    check_training_flags(given)
    settings = Settings(**({} if "base" in given else NANO_PRESET) | given)
    on = settings.device or machine.default_device()
    pairs_seen = settings.steps * settings.accumulate * settings.batch_size
    return replace(
        settings,
        base=settings.base or str(NANO),
        condition=settings.condition
        or ("canny" if settings.hints == "canny" or not settings.data else None),
        scenes=settings.scenes or min(2**31, max(SCENES, pairs_seen // 6)),
        device=on,
        dtype=settings.dtype or machine.default_dtype(on),
        cache=settings.cache and absolute(settings.cache),
    )


def parse(argv: list[str] | None) -> tuple[Settings, bool, bool]:
    """The settings, whether to resume, and whether to stop after the checks."""
    continued = "; of what is learnt only --steps may grow, with --schedule constant; data may move"
    parser = parser_for(Settings, __doc__, {"nano": NANO_PRESET}, continued)
    parser.add_argument("--dry-run", action="store_true", help="check, print the settings, stop")
    given = vars(parser.parse_args(argv))
    resume, dry_run = given.pop("resume"), given.pop("dry_run")
    if resume:
        return settings_of_run(Settings, Path(resume), given, longer="constant"), True, dry_run
    return resolve(given), False, dry_run


def print_settings(settings: Settings) -> None:
    """Read all inputs of a training, then print its settings and sizes."""
    (pairs, held_out, _), (_, _, trained) = pairs_of(settings), models(settings)
    weights = (p.numel() for net in trained.values() for p in net.parameters() if p.requires_grad)
    sizes = {"pairs": len(pairs), "held_out": len(held_out), "weights_trained": sum(weights)}
    print(json.dumps(asdict(settings) | sizes, indent=2))


def main(argv: list[str] | None = None, **functions: Any) -> None:
    """functions: a variant's own models, loss or evaluate, passed on to `train`."""
    machine.keep_freed_memory()
    with one_sentence("train.py", "use a smaller --batch-size, or --low-memory"):
        settings, resume, dry_run = parse(argv)
        if dry_run:
            return print_settings(settings)
        kind, script = settings.condition or "control", typed(__file__)
        run_alone(partial(train, **functions), settings, resume, kind, script)


if __name__ == "__main__":
    main()
