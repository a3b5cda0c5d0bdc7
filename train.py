"""Train a ControlNet (Zhang & Agrawala 2023, section 3): a copy of a locked U-Net's encoder learns
to make the U-Net follow a hint.

    python train.py
        a ControlNet for the bundled small model, on scenes drawn in memory: minutes on a laptop
    python train.py --base weights/v1-5-pruned-emaonly.safetensors --data fill50k/
        the real thing on one GPU, with the paper's settings

The method is `diffusion_loss`, `training_loss` and `train`; the rest keeps books. The stages "vae",
"decoder" and "base" train the small base model itself (see weights/README.md).
"""

import argparse
import copy
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, StackDataset, Subset
from tqdm import tqdm

from nanocontrol import (
    DDPM,
    ControlNet,
    InputError,
    StableDiffusion,
    load_control,
    load_sd,
    save_control,
    save_sd,
)
from nanocontrol.controlnet import zero_module
from nanocontrol.nano.conditions import CONDITIONS
from nanocontrol.nano.detector import FILE as DETECTOR
from nanocontrol.nano.detector import Detector, load_detector
from nanocontrol.nano.evaluate import psnr, rebuild
from nanocontrol.nano.model import NANO, UNET, initialise_condition_encoder, new_nano
from nanocontrol.nano.scenes import HELD_OUT, Scenes, held_out_scenes
from nanocontrol.nano.scores import score
from nanocontrol.plumbing.errors import blame
from nanocontrol.plumbing.flags import at_least, device, fraction, positive, seed
from nanocontrol.plumbing.machine import available, default_device, keep_freed_memory
from nanocontrol.schedulers import STEPS
from nanocontrol.training.cache import Cached, encode, fill
from nanocontrol.training.measure import make_pictures, mean_iou
from nanocontrol.training.pairs import Folder, Pairs
from nanocontrol.training.run import RunFolder
from nanocontrol.unet import Block
from nanocontrol.vae import sample_posterior

# What differs by what is trained: a ControlNet for a base of one's own, with the settings of the
# paper and its released code; and the stages of the small model.
DEFAULTS = {
    "sd": {
        "steps": 20_000,
        "batch_size": 4,
        "lr": 1e-5,
        "drop_prompt": 0.5,
        "save_every": 1000,
        "sample_every": 500,
        "schedule": "constant",
    },
    "control": {
        "steps": 400,
        "batch_size": 16,
        "lr": 1e-3,
        "drop_prompt": 0.5,
        "save_every": 200,
        "sample_every": 25,
        "schedule": "cooldown",
    },
    "base": {
        "steps": 6000,
        "batch_size": 32,
        "lr": 1e-3,
        "drop_prompt": 0.1,
        "save_every": 500,
        "sample_every": 500,
        "schedule": "cosine",
    },
    "vae": {
        "steps": 14_000,
        "batch_size": 8,
        "lr": 1.2e-3,
        "drop_prompt": 0.0,
        "save_every": 500,
        "sample_every": 500,
        "schedule": "cosine",
    },
    "decoder": {
        "steps": 6000,
        "batch_size": 4,
        "lr": 6e-4,
        "drop_prompt": 0.0,
        "save_every": 500,
        "sample_every": 500,
        "schedule": "cosine",
    },
}

SCENES = 2000  # drawn ones that a ControlNet is trained on; in long runs more, each four times
EARLY = 2**26  # weights: when that many have their gradients, AdamW takes its step for them
ORDER = 1  # beside (seed, epoch): the order of the pairs is no step's draw
LOG_EVERY = 10  # steps: to read a loss is to wait for the GPU, so the loop does it seldom
COMPILE_FROM = 2000  # steps: with as many, and a GPU, --compile is the default

Settings = argparse.Namespace  # the flags, resolved
# A batch of pairs: images in [-1, 1], hints in [0, 1], prompts. From the cache (see cache.py) it
# comes as means and deviations of latents, contexts, hints.
Batch = tuple[Tensor, Tensor, list[str]] | tuple[Tensor, Tensor, Tensor, Tensor]


class Chance(NamedTuple):
    """What chance decides about n pairs."""

    posterior: Tensor  # [n, 4, h, w], normal: which of the possible latents is taken
    noise: Tensor  # [n, 4, h, w], normal
    t: Tensor  # [n], 0..999
    emptied: Tensor  # [n], bool: whether the prompt is taken away


class HeldOut(NamedTuple):
    """Pairs that are not trained on."""

    images: Tensor  # [n, 3, H, W] in [-1, 1]
    hints: Tensor  # [n, 3, H, W] in [0, 1]
    prompts: list[str]
    x0: Tensor | None = None  # [n, 4, H/8, W/8], scaled latents


class Team(NamedTuple):
    """The processes that train together, one for each GPU."""

    rank: int = 0  # of this one
    size: int = 1


# ------------------------------------------------------------------------------- the method


def diffusion_loss(
    sd: StableDiffusion,
    control: ControlNet | None,
    x0: Tensor,
    hint: Tensor,
    context: Tensor,
    noise: Tensor,
    t: Tensor,
) -> Tensor:
    """Equation 5 of the paper: the mean square error of the predicted noise. (Without a ControlNet
    it is the base model's own loss: Rombach et al. 2022, equation 3.)

    x0 and noise [B, 4, h, w], hint [B, 3, 8h, 8w] in [0, 1], context [B, 77, D]; t [B] in 0..999,
    on the CPU, as the schedule is: to ask a GPU for it would be to wait for it.
    """
    diffusion = DDPM(sd.prediction)
    x_t, target = diffusion.add_noise(x0, noise, t), diffusion.target(x0, noise, t)
    t = to_device(t, x0.device)
    residuals = None if control is None else control(x_t, hint, t, context)
    # Neither weights nor inputs of the locked encoder ask for gradients, so autograd keeps nothing
    # of it. Gradients pass through the locked decoder on their way to the residuals, but its
    # weights collect none. (In the original they do: 2 GB that nobody uses.)
    output = sd.unet(x_t, t, context, residuals)
    return F.mse_loss(output.float(), target.float())


def generator_of(*numbers: int) -> torch.Generator:
    """A generator of its own for (seed, step), on the CPU. So a step's draws are the same on every
    device and in a resumed run, and no random state has to be saved."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def draw(generator: torch.Generator, n: int, height: int, width: int, drop_prompt: float) -> Chance:
    """For all n pairs of a step at once: it is the same step into however many passes and processes
    it is divided."""
    shape = (n, 4, height // 8, width // 8)
    posterior, noise = (torch.randn(shape, generator=generator) for _ in range(2))
    t = torch.randint(STEPS, (n,), generator=generator)
    return Chance(posterior, noise, t, torch.rand(n, generator=generator) < drop_prompt)


def training_loss(
    args: Settings,
    sd: StableDiffusion,
    control: ControlNet | None,
    batch: Batch,
    chance: Chance,
    empty: Tensor,
    step: int,
    generator: torch.Generator,
) -> Tensor:
    """The loss of one batch: take latents, empty some prompts, add noise, predict it.
    empty [1, 77, D] is the context of the empty prompt."""
    if args.stage in ("vae", "decoder"):
        return rebuilding_loss(args, sd, batch[0].to(args.device), step, generator)
    if args.stage == "base":  # its latents are taken already, and its text encoder learns
        x0, hint, prompts = batch
        words = ["" if e else prompt for e, prompt in zip(chance.emptied, prompts)]
        x0, context = x0.to(args.device), sd.encode_prompts(words)
    else:
        if len(batch) == 3:  # not from the cache
            images, hint, prompts = batch
            batch = (*encode(sd, images, prompts), hint)
        mean, deviation, context, hint = (to_device(x, args.device) for x in batch)
        x0 = latents(sd, mean, deviation, to_device(chance.posterior, args.device))
        # Where the prompt is emptied, the copy must find the meaning in the hint (section 3.3).
        emptied = to_device(chance.emptied, args.device)
        context = torch.where(emptied[:, None, None], empty, context)
    noise = to_device(chance.noise, args.device)
    return diffusion_loss(sd, control, x0, hint, context, noise, chance.t)


def latents(sd: StableDiffusion, mean: Tensor, deviation: Tensor, noise: Tensor) -> Tensor:
    """A draw from the VAE's posterior, in float32 and scaled to about unit variance: x_0."""
    return sd.scale_factor * (mean.float() + deviation.float() * noise)


def random_quarter(image: Tensor, generator: torch.Generator) -> Tensor:
    """[B, 3, H, W] -> [B, 3, H/2, W/2], from the same place of each."""
    half = image.shape[-1] // 2
    top, left = torch.randint(half + 1, (2,), generator=generator).tolist()
    return image[:, :, top : top + half, left : left + half]


def vae_loss(sd: StableDiffusion, image: Tensor, generator: torch.Generator) -> Tensor:
    """How far rebuilt pictures are from the true ones."""
    mean, logvar = sd.vae.encode(image)
    rebuilt = sd.vae.decode(sample_posterior(mean, logvar, generator))
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    # Absolute errors keep edges crisp; square ones alone would blur them, and alone would be best
    # for the signal-to-noise ratio.
    return F.l1_loss(rebuilt, image) + 6 * F.mse_loss(rebuilt, image) + 1e-5 * kl


def rebuilding_loss(
    args: Settings, sd: StableDiffusion, image: Tensor, step: int, generator: torch.Generator
) -> Tensor:
    if args.stage == "vae":  # most steps see parts of pictures, which is faster
        early = step < 0.85 * args.steps
        image = random_quarter(image, generator) if early else image[: (len(image) + 1) // 2]
    return vae_loss(sd, image, generator)


def models(args: Settings) -> tuple[StableDiffusion, ControlNet | None, dict[str, nn.Module]]:
    """The base model, the ControlNet, and the modules with weights to be trained, by name."""
    if args.stage == "vae":
        sd = new_nano()
        return sd, None, {"vae": sd.vae.to(args.device)}
    with blame("--base"):
        sd = load_sd(args.base, args.device, prediction=args.prediction)
    if args.stage == "decoder":  # the latents stay as they are, so that the base can learn them
        decoder = {"decoder": sd.vae.decoder, "post_quant_conv": sd.vae.post_quant_conv}
        return sd, None, {name: part.requires_grad_(True) for name, part in decoder.items()}
    if args.stage == "base":
        new = new_nano()
        sd.unet, sd.text_encoder = new.unet.to(args.device), new.text_encoder.to(args.device)
        return sd, None, {"unet": sd.unet, "text_encoder": sd.text_encoder}

    if args.init_control:
        with blame("--init-control"):
            control = load_control(args.init_control, sd.unet)
    else:
        control = ControlNet.from_unet(sd.unet)
        if sd.unet.config == UNET:  # of nano
            initialise_condition_encoder(control)
    if args.low_memory:
        for module in [*sd.unet.modules(), *control.modules()]:
            if isinstance(module, Block):
                module.checkpointed = True
    if args.only_mid_control:  # the other residuals stay zero, here and in sample.py
        zero_module(control.zero_convs).requires_grad_(False)
    if not args.unlock:
        if args.dtype == "bf16":  # only what is trained needs more
            for network in (sd.unet, sd.vae, sd.text_encoder):
                network.bfloat16()
        return sd, control, {"control": control}
    # "decoder" is the original's sd_locked=False, "all" the paper's training of the whole model.
    for part in [sd.unet] if args.unlock == "all" else [sd.unet.output_blocks, sd.unet.out]:
        part.requires_grad_(True)
    return sd, control, {"control": control, "unet": sd.unet}


class Training:
    """A run's networks and optimizer, and its step.

    What training calls may be wrapped: compiled, or joined to its copies in other processes. What
    pictures are made with is not. With --low-memory and bf16 the weights that are trained (and
    their gradients, and AdamW's two moments) stay in the CPU's memory, in float32, and the device
    works with a copy.
    """

    def __init__(self, args: Settings, team: Team):
        self.args, self.team = args, team
        self.sd, self.control, self.trained = models(args)
        for network in [self.sd.unet, self.sd.vae, *self.trained.values()]:
            if on_gpu(args) or self.sd.unet.config == UNET:  # on a CPU large ones lose by it
                network.to(memory_format=torch.channels_last)
        modules = self.trained.values()
        self.parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
        self.master = None
        if args.low_memory and args.dtype == "bf16":
            self.master = self.control.cpu()
            self.control = copy.deepcopy(self.master).to(args.device, torch.bfloat16)
        self.optimizer = make_optimizer(args, self.parameters)
        self.wrapped_sd = replace(self.sd, unet=self.wrap(self.sd.unet))
        self.wrapped_control = self.control and self.wrap(self.control)
        with torch.no_grad(), precision(args):
            self.empty = self.sd.encode_prompts("")
        self.ready = 0
        alone = args.accumulate == 1 and team.size == 1 and self.master is None
        for parameter in self.parameters if alone and args.stage == "control" else []:
            parameter.register_post_accumulate_grad_hook(self.update_early)

    def update_early(self, parameter: nn.Parameter) -> None:
        """Called when the backward pass is done with a weight. The optimizer takes its step for all
        such weights while the pass goes on to others, so that few gradients exist at a time: of
        Stable Diffusion's ControlNet at most 0.3 GB of 1.4."""
        self.ready += parameter.numel()
        if self.ready >= EARLY:
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.ready = 0

    def wrap(self, network: nn.Module) -> nn.Module:
        if self.args.compile:
            network = torch.compile(network)
        if self.team.size > 1 and any(p.requires_grad for p in network.parameters()):
            network = DistributedDataParallel(network)
        return network

    def restore(self, run: RunFolder) -> tuple[int, float]:
        step, seconds = run.restore(self.trained, self.optimizer)
        if self.master is not None:
            copy_weights(self.master, self.control)
        return step, seconds

    def step(self, step: int, batches: Iterator[Batch], height: int, width: int) -> Tensor:
        """Train on the next batches -> the mean loss, on the device."""
        args, total = self.args, torch.zeros((), device=self.args.device)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(args, step)
        n = args.batch_size * self.team.size  # pairs in a pass
        generator = generator_of(args.seed, step)
        chance = draw(generator, n * args.accumulate, height, width, args.drop_prompt)
        for i in range(args.accumulate):
            for network in (self.wrapped_sd.unet, self.wrapped_control):
                if isinstance(network, DistributedDataParallel):  # add up the passes, then average
                    last = i + 1 == args.accumulate or self.master is not None
                    network.require_backward_grad_sync = last
            first = n * i + args.batch_size * self.team.rank
            mine = Chance(*(drawn[first : first + args.batch_size] for drawn in chance))
            batch, nets = next(batches), (self.wrapped_sd, self.wrapped_control)
            with precision(args):
                loss = training_loss(args, *nets, batch, mine, self.empty, step, generator)
            loss = loss / args.accumulate
            loss.backward()
            if self.master is not None:
                move_gradients(self.control, self.master)
            total += loss.detach()
        if args.stage != "control":
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ready = 0
        if self.master is not None:
            copy_weights(self.master, self.control)
        return total


def move_gradients(worker: nn.Module, master: nn.Module) -> None:
    """Add the worker's gradients to the master's, and forget them."""
    for own, kept in zip(worker.parameters(), master.parameters(), strict=True):
        if own.grad is not None:
            if kept.grad is None:
                kept.grad = torch.zeros_like(kept)
            kept.grad += own.grad.to(kept)
            own.grad = None


@torch.no_grad()
def copy_weights(master: nn.Module, worker: nn.Module) -> None:
    for kept, own in zip(master.parameters(), worker.parameters(), strict=True):
        own.copy_(kept)


def make_optimizer(args: Settings, parameters: list[nn.Parameter]) -> torch.optim.AdamW:
    """The original's, PyTorch's defaults, for a ControlNet; the small base is trained afresh."""
    if args.stage == "control":
        return torch.optim.AdamW(parameters, args.lr, fused=True)
    return torch.optim.AdamW(parameters, args.lr, (0.9, 0.99), weight_decay=0.0, fused=True)


def learning_rate(args: Settings, step: int) -> float:
    """Constant as in the paper, for a base of one's own. For the small model's ControlNets the last
    quarter falls to zero; a short rise and a cosine for the small base itself."""
    if args.schedule == "constant":
        return args.lr
    if args.schedule == "cooldown":
        return args.lr * min(1, 4 * (1 - step / args.steps))
    return args.lr * min(1, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * step / args.steps))


def train(args: Settings) -> None:
    team = join_team(args)
    torch.manual_seed(args.seed)
    if on_gpu(args):  # where float32 is left, products have 10 bits of mantissa (TF32)
        torch.set_float32_matmul_precision("high")
    pairs, held_out = datasets(args)
    training = Training(args, team)
    if args.dry_run:
        weights = sum(p.numel() for p in training.parameters)
        sizes = {"pairs": len(pairs), "held_out": len(held_out.images), "weights_trained": weights}
        print(json.dumps(vars(args) | sizes, indent=2))
        return

    began = time.monotonic()
    sd, first = training.sd, team.rank == 0  # the first process looks, measures and writes
    run, start = RunFolder(Path(args.out)), 0
    if first and not args.resume:
        run.create(vars(args), start)
    detector = load_detector(DETECTOR) if args.condition else None
    with torch.no_grad(), precision(args):
        held_out = held_out._replace(x0=mean_latents(sd, held_out.images))
        pairs, home = prepared(args, sd, pairs, team)
    if args.resume:
        start, seconds = training.restore(run)
        began -= seconds
        if first:
            run.create(vars(args), start)
    batches = load_batches(args, pairs, start, team)

    def look(some: HeldOut) -> tuple[list[Tensor], dict]:
        with visiting(args.device, home, sd.vae, sd.text_encoder), precision(args):
            return measure(args, sd, training.control, some, detector)

    def observe(step: int) -> None:
        rows, numbers = look(HeldOut(*(column[:8] for column in held_out)))
        run.contact_sheet(step, rows)
        run.log(step, **numbers)

    if start == 0 and first:
        observe(0)
    losses: list[Tensor] = []  # those not logged yet
    steps = range(start, args.steps)
    bar = tqdm(steps, "training", args.steps, initial=start, smoothing=0.05, disable=not first)
    for step in bar:
        losses.append(training.step(step, batches, *held_out.images.shape[-2:]))
        done, last = step + 1, step + 1 == args.steps
        looks, saves = (last or done % n == 0 for n in (args.sample_every, args.save_every))
        if looks or saves or done % LOG_EVERY == 0:
            bar.set_postfix(loss=f"{log_losses(args, run, team, losses, done):.4f}", refresh=False)
        if looks and first:
            observe(done)
        if saves and first:
            if not all(parameter.isfinite().all() for parameter in training.parameters):
                raise diverged(args, done)
            save_weights(sd, training.trained, run.path, args.condition)
            took = time.monotonic() - began
            run.save(done, took, training.trained, training.optimizer)
    if first:
        _, metrics = look(held_out)
        if args.stage == "control":
            metrics["step_of_jump"] = step_of_jump(run)
            run.film(*held_out.images.shape[-2:])
        run.finish(metrics | {"seconds": round(time.monotonic() - began, 1)})
        print(f"{run.path}: {json.dumps(metrics)}")
    if team.size > 1:
        dist.destroy_process_group()


def log_losses(
    args: Settings, run: RunFolder, team: Team, losses: list[Tensor], done: int
) -> float:
    """Log the losses of the last steps, up to the one just done, and forget them -> its own."""
    values = torch.stack(losses)
    if team.size > 1:
        dist.all_reduce(values)
    for i, loss in enumerate((values / team.size).tolist()):
        step = done - len(losses) + 1 + i
        if not math.isfinite(loss):
            raise diverged(args, step)
        if team.rank == 0:
            run.log(step, loss=loss)
    losses.clear()
    return loss


def diverged(args: Settings, step: int) -> InputError:
    return InputError(
        f"--lr {args.lr:g}: loss or weights are not finite at step {step}; a new run with a lower "
        f"rate is wanted (the last save in {args.out}, if any, stands; --init-control takes it)"
    )


def save_weights(
    sd: StableDiffusion, trained: dict[str, nn.Module], path: Path, condition: str | None
) -> None:
    """The files that sample.py takes: the ControlNet, and the base model if that was trained."""
    if "control" in trained:
        save_control(trained["control"], path / "control.safetensors", condition)
    if "vae" in trained:
        sd.scale_factor = measured_scale_factor(sd)
    if trained.keys() != {"control"}:
        save_sd(sd, path / "base.safetensors")


# ------------------------------------------------------------------------------------- data


def datasets(args: Settings) -> tuple[Pairs, HeldOut]:
    """What is trained on, and pairs to measure with that are not."""
    if args.data:
        with blame("--data"):
            pairs = Folder(Path(args.data))
            first_held_out = len(pairs) - min(8, max(1, len(pairs) // 10))
            held_out = [pairs[i] for i in range(first_held_out, len(pairs))]
        pairs = pairs.first(max(1, first_held_out))  # of one pair, that one
    elif args.stage == "control":
        n = max(SCENES, args.steps * args.accumulate * args.batch_size // 4)
        return Scenes(args.condition, n=n), HeldOut(*held_out_scenes(args.condition, 32)[:3])
    else:
        return Scenes(None), HeldOut(*held_out_scenes(None, 32)[:3])
    images, hints, prompts = zip(*held_out)
    return pairs, HeldOut(torch.stack(images), torch.stack(hints), prompts)


def prepared(args: Settings, sd: StableDiffusion, pairs: Pairs, team: Team) -> tuple[Dataset, str]:
    """The pairs as training takes them, and the device where VAE and text encoder stay meanwhile.

    What would be encoded more than once is taken from the cache, and then neither of the two is
    needed on a GPU, but to look at pictures."""
    n = args.steps * args.accumulate * args.batch_size * team.size
    if args.stage == "base":
        return encoded(sd, pairs, n=min(50_000, n)), args.device
    if args.stage != "control" or not args.cache or n <= len(pairs):
        return pairs, args.device
    files = fill(sd, pairs, Path(args.cache), args.dtype, args.batch_size, loaders(args), *team)
    if team.size > 1:
        dist.barrier()  # until the others have written theirs
    for network in (sd.vae, sd.text_encoder):
        network.cpu()
    return Cached(pairs, files), "cpu"


@contextmanager
def visiting(device: str, home: str, *networks: nn.Module) -> Iterator[None]:
    """Have networks on the device for a while."""
    for network in networks:
        network.to(device)
    yield
    for network in networks:
        network.to(home)


@torch.no_grad()
def mean_latents(sd: StableDiffusion, images: Tensor) -> Tensor:
    """Of pictures [n, 3, H, W]: x_0 [n, 4, H/8, W/8] without the posterior's noise, on the CPU."""
    weight = next(sd.vae.parameters())
    means = [sd.vae.encode(image[None].to(weight))[0] for image in images]
    return sd.scale_factor * torch.cat(means).float().cpu()


def encoded(sd: StableDiffusion, dataset: Dataset, n: int) -> Dataset:
    """The first n pairs with latents in place of pictures, and without hints: what the base model
    is trained on many times is encoded once. (So each latent is drawn once from its posterior.)"""
    taken: list[Tensor] = []
    prompts: list[str] = []
    loader = DataLoader(Subset(dataset, range(n)), batch_size=64, num_workers=1)
    generator = torch.Generator().manual_seed(0)
    for images, _, texts in tqdm(loader, "encoding"):
        posterior = sd.vae.encode(images.to(next(sd.vae.parameters())))
        drawn = sample_posterior(*posterior, generator)
        taken.append(sd.scale_factor * drawn.float().cpu())
        prompts.extend(texts)
    return StackDataset(torch.cat(taken), torch.zeros(n, 1), prompts)


def shuffled(n: int, seed: int, start: int) -> Iterator[int]:
    """0..n-1 in an order that the seed decides, another one every epoch, without end, beginning
    with the start-th."""
    for epoch in itertools.count(start // n):
        order = torch.randperm(n, generator=generator_of(seed, epoch, ORDER)).tolist()
        yield from order[start % n :]
        start = 0


def loaders(args: Settings) -> int:
    """How many processes read pairs. On a CPU they would take time away from training."""
    return 4 if on_gpu(args) else 0


def load_batches(
    args: Settings, dataset: Dataset, start: int, team: Team = Team()
) -> Iterator[Batch]:
    """This process's part of all batches, without end, beginning with the first of step `start`."""
    n = args.batch_size * team.size
    order = shuffled(len(dataset), args.seed, start * args.accumulate * n)
    first = args.batch_size * team.rank

    def groups() -> Iterator[list[int]]:
        while True:
            yield list(itertools.islice(order, n))[first : first + args.batch_size]

    return iter(
        DataLoader(
            dataset, batch_sampler=groups(), num_workers=loaders(args), pin_memory=on_gpu(args)
        )
    )


# ---------------------------------------------------------------------------- several processes


def join_team(args: Settings) -> Team:
    """Of the processes that torchrun has started; alone otherwise. All make the same draws and keep
    the same weights; each takes its part of every batch, and DistributedDataParallel averages their
    gradients. So N of them make the steps of one with N times the --batch-size."""
    if "LOCAL_RANK" not in os.environ:
        return Team()
    if args.stage != "control":
        raise InputError(f"--stage {args.stage} is trained by one process; no torchrun is wanted")
    if args.device not in ("cpu", "cuda"):
        raise InputError(f"--device {args.device}: with torchrun, cpu or cuda is wanted")
    if on_gpu(args):
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    a_day = timedelta(days=1)  # while one encodes, saves or looks, the others wait
    dist.init_process_group("nccl" if on_gpu(args) else "gloo", timeout=a_day)
    return Team(dist.get_rank(), dist.get_world_size())


def on_gpu(args: Settings) -> bool:
    return args.device.startswith("cuda")


def precision(args: Settings) -> torch.autocast:
    """To be entered anew each time: within one autocast, weights are cast once and remembered."""
    return torch.autocast(torch.device(args.device).type, torch.bfloat16, args.dtype == "bf16")


def to_device(x: Tensor, device: str | torch.device) -> Tensor:
    """A GPU fetches from pinned memory without anybody's waiting."""
    if torch.device(device).type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


# --------------------------------------------------------------------- looking and measuring


def measure(
    args: Settings,
    sd: StableDiffusion,
    control: ControlNet | None,
    held_out: HeldOut,
    detector: Detector | None,
) -> tuple[list[Tensor], dict]:
    """Rows of pictures, what the model makes last, and numbers that tell how good that is. With a
    detector the pairs are the first of the held-out scenes."""
    images, hints, prompts, _ = held_out
    if args.stage in ("vae", "decoder"):
        rebuilt = rebuild(sd, images)
        return [images, rebuilt], {"vae_db": psnr(rebuilt, images)}
    made = make_pictures(sd, prompts, control, hints, at_once=2 * args.batch_size)
    loss = held_out_loss(sd, control, held_out, args.batch_size)
    if args.stage == "base":
        return [images, made], {"held_out_loss": loss}
    gain = None  # of one pair alone there are no wrong hints
    if len(hints) > 1:
        swapped = held_out._replace(hints=hints.roll(1, dims=0))
        gain = held_out_loss(sd, control, swapped, args.batch_size) - loss
    numbers = {"held_out_loss": loss, "control_gain": gain, "iou": mean_iou(made, images)}
    if detector:
        scenes = [Scenes(args.condition, HELD_OUT).scene(i) for i in range(len(made))]
        numbers["score"] = score(args.condition, made, scenes, detector)
    return [hints * 2 - 1, images, made], numbers


@torch.no_grad()
def held_out_loss(
    sd: StableDiffusion, control: ControlNet | None, held_out: HeldOut, batch_size: int
) -> float:
    """The loss on these pairs, with the same noise each time and t spread evenly over 0..999."""
    device, n = next(sd.unet.parameters()).device, len(held_out.images)
    noise = torch.randn(held_out.x0.shape, generator=torch.Generator().manual_seed(0))
    t = ((torch.arange(n) + 0.5) / n * STEPS).long()
    loss = 0.0
    for part in torch.arange(n).split(batch_size):  # to need no more memory than training does
        x0, hints, eps = (x[part].to(device) for x in (held_out.x0, held_out.hints, noise))
        context = sd.encode_prompts([held_out.prompts[i] for i in part])
        loss += len(part) / n * diffusion_loss(sd, control, x0, hints, context, eps, t[part]).item()
    return loss


def step_of_jump(run: RunFolder) -> int | None:
    """The first contact sheet's step at which the score of the condition had come half of the way
    from its first to its last value; for a user's pairs the IoU, and where their pictures show no
    objects, the control gain. None if the whole way is too short to be a jump."""
    for number, least in ("score", 0.1), ("iou", 0.1), ("control_gain", 0.002):
        if measured := run.measured(number):
            break
    if not measured or measured[-1][1] - measured[0][1] < least:
        return None
    first, last = measured[0][1], measured[-1][1]
    return next(step for step, value in measured if value >= (first + last) / 2)


@torch.no_grad()
def measured_scale_factor(sd: StableDiffusion) -> float:
    """What brings the latents of 256 drawn scenes to unit variance."""
    images = held_out_scenes(None, 256)[0]
    return 1 / sd.vae.encode(images.to(next(sd.vae.parameters())))[0].std().item()


# ------------------------------------------------------------------------------------ flags


def parse(argv: list[str] | None) -> Settings:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add(
        "--base",
        metavar="FILE",
        help="a Stable Diffusion 1 or 2 (default: the bundled nano); "
        "with one of your own, the defaults below are the second ones",
    )
    add("--init-control", metavar="FILE", help="begin with this ControlNet, not with a copy")
    add("--condition", choices=CONDITIONS, help="what drawn scenes are hinted by (default: canny)")
    add("--data", metavar="DIR", help="pairs, with prompt.json or metadata.jsonl (default: scenes)")
    add(
        "--stage",
        choices=["control", "base", "vae", "decoder"],
        help="what to train (default: control)",
    )
    add("--out", metavar="RUN", help="the folder to write (default: runs/canny-1, -2, ...)")
    add("--resume", metavar="RUN", help="continue this one; of the flags, only --steps may grow")
    add("--steps", type=at_least(1), help="of the optimizer (default: 400; 20000)")
    add("--batch-size", type=at_least(1), help="pairs in one pass (default: 16; 4)")
    add("--accumulate", type=at_least(1), help="passes in one step (default: 1)")
    add(
        "--low-memory",
        action="store_true",
        default=None,
        help="for small GPUs, slower: gradient "
        "checkpointing, --batch-size 1 and --accumulate 4, and with bf16 the optimizer in the "
        "CPU's memory",
    )
    add(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=None,
        help=f"torch.compile (default: on a GPU with {COMPILE_FROM} steps or more)",
    )
    add("--cache", metavar="DIR", help="where encoded pairs are kept (default: cache)")
    add("--no-cache", dest="cache", action="store_const", const="", help="encode at every step")
    add("--lr", type=positive, help="learning rate (default: 1e-3; 1e-5)")
    add("--drop-prompt", type=fraction, help="share of prompts that are emptied (default: 0.5)")
    add("--unlock", choices=["decoder", "all"], help="train the base's decoder, or its U-Net, too")
    add("--only-mid-control", action="store_true", default=None, help="control the middle alone")
    add("--prediction", choices=["auto", "eps", "v"], help="what the base predicts (default: auto)")
    add("--seed", type=seed, help="of weights, order and noise (default: 0)")
    add("--device", type=device, help="cpu, cuda, ... (default: a GPU if there is one)")
    add("--dtype", choices=["fp32", "bf16"], help="precision (default: bf16 on a GPU, else fp32)")
    add("--save-every", type=at_least(1), help="steps between saves (default: 200; 1000)")
    add("--sample-every", type=at_least(1), help="steps between sheets (default: 25; 500)")
    add("--dry-run", action="store_true", help="check everything, print the settings, stop")
    return resolve(parser.parse_args(argv))


def resolve(flags: Settings) -> Settings:
    """Every setting: as given, or else as the run to be resumed has it, or else the default."""
    given = {name: value for name, value in vars(flags).items() if value is not None}
    for name in ("base", "init_control", "data", "out", "resume", "cache"):
        if given.get(name):
            given[name] = str(Path(given[name]).resolve())
    if flags.resume:
        return Settings(**resumed(given))
    stage = given.get("stage", "control")
    if stage in ("base", "decoder") and "base" not in given:
        raise InputError(f"--stage {stage}: --base FILE with a trained VAE is wanted (--stage vae)")
    if "condition" in given and "data" in given:
        raise InputError("--condition is of drawn scenes: it is not wanted with --data")
    unwanted = {
        "control": [],
        "base": [
            "condition",
            "data",
            "init_control",
            "prediction",
            "unlock",
            "only_mid_control",
            "low_memory",
            "cache",
        ],
    }
    unwanted["decoder"] = [*unwanted["base"], "drop_prompt", "compile"]
    unwanted["vae"] = [*unwanted["decoder"], "base"]
    for name in unwanted[stage]:
        if name in given:
            flag = "--" + name.replace("_", "-")
            raise InputError(f"{flag} has no meaning for --stage {stage}; it is not wanted")
    kind = "sd" if stage == "control" and "base" in given else stage
    on = given.get("device", default_device())
    drawn = stage == "control" and "data" not in given
    condition = given.get("condition", "canny") if drawn else None
    if "out" not in given:
        names = (Path("runs") / f"{condition or stage}-{i}" for i in itertools.count(1))
        given["out"] = str(next(path for path in names if not path.exists()).resolve())
    elif (Path(given["out"]) / "settings.json").exists():
        raise InputError(f"--out {flags.out} holds a run; a new folder is wanted, or --resume")
    if given.get("low_memory") and "unlock" in given:
        raise InputError("--low-memory is for a locked base: --unlock is not wanted with it")
    general = {"stage": stage, "base": str(NANO), "init_control": None, "prediction": "auto"}
    general |= {"data": None, "condition": condition, "accumulate": 1}
    general |= {"unlock": None, "only_mid_control": False}
    half = on.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False)
    general |= {"seed": 0, "device": on, "dtype": "bf16" if half else "fp32"}
    general |= {"low_memory": False, "cache": str(Path("cache").resolve()), "resume": None}
    defaults = general | DEFAULTS[kind]
    if "low_memory" in given:
        defaults |= {"batch_size": 1, "accumulate": 4}
    settings = defaults | given
    long = on.startswith("cuda") and settings["steps"] >= COMPILE_FROM
    long = long and not settings["low_memory"]
    return Settings(**{"compile": long and stage in ("control", "base")} | settings)


def resumed(given: dict) -> dict:
    """The settings of the run to be resumed, which no flag beside --resume may contradict."""
    run = Path(given["resume"])
    try:
        settings = json.loads((run / "settings.json").read_text())
        ran_on, schedule, _ = (settings[name] for name in ("device", "schedule", "low_memory"))
    except (OSError, ValueError, LookupError, TypeError):
        raise InputError(
            f"--resume {run}: no settings.json, or one of another version; a run's folder is wanted"
        ) from None
    if not available(ran_on):
        raise InputError(f"--resume {run}: it ran on {ran_on}, which is not here")
    for name, value in given.items():
        more = name == "steps" and schedule == "constant" and value > settings["steps"]
        if not (name in ("resume", "dry_run") or more or settings[name] == value):
            flag = "--" + name.replace("_", "-")
            raise InputError(f"{flag} {value} contradicts {run}, which has {settings[name]}")
    return settings | given | {"out": str(run)}


def main(argv: list[str] | None = None) -> None:
    keep_freed_memory()
    try:
        train(parse(argv))
    except InputError as error:  # one from a loader's process comes at the end of its traceback
        message = str(error).strip().splitlines()[-1]
        sys.exit("train.py: " + message.removeprefix("nanocontrol.plumbing.errors.InputError: "))
    except torch.OutOfMemoryError:
        full = "the GPU's memory is full"
        sys.exit(f"train.py: --batch-size: {full}; a smaller one, or --low-memory, is wanted")
    except KeyboardInterrupt:
        sys.exit("train.py: stopped; --resume continues from the last save")


if __name__ == "__main__":
    main()
