"""Train nano itself, part by part. Its ControlNets are trained by train.py.

    python -m nanocontrol.nano.train vae
    python -m nanocontrol.nano.train base --base runs/vae-1/base.safetensors
    python -m nanocontrol.nano.train decoder --base runs/vae-1/base.safetensors
    python -m nanocontrol.nano.train detector

vae: the autoencoder. base: the text encoder and the U-Net, for the latents of --base's VAE.
decoder: more training of the VAE's decoder alone. The latents stay the same, so the base can be
trained at the same time. detector: the network that scores pictures. `weights/README.md` describes
how the bundled weights were trained.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from nanocontrol.checkpoint import load_sd, save_sd
from nanocontrol.formats.tensors import read_tensors, write_tensors
from nanocontrol.nano.detector import DEPTH, Detector, truth
from nanocontrol.nano.evaluate import psnr, rebuild, shows_kinds
from nanocontrol.nano.model import new_nano
from nanocontrol.nano.scenes import HELD_OUT, Scenes, held_out_scenes
from nanocontrol.nano.world import PIXELS, SIZES, random_scene
from nanocontrol.plumbing import machine
from nanocontrol.plumbing.errors import InputError, blame, one_sentence
from nanocontrol.plumbing.files import make_folder
from nanocontrol.plumbing.flags import absolute, at_least, device, fraction, positive, seed
from nanocontrol.schedulers import DDPM, STEPS
from nanocontrol.stable_diffusion import StableDiffusion
from nanocontrol.training.batches import generator_of, groups, ignore_ctrl_c, loader, shuffled
from nanocontrol.training.measure import HeldOut, held_out_loss, make_pictures, mean_latents
from nanocontrol.training.optimizer import Optimizer
from nanocontrol.training.processes import Processes
from nanocontrol.training.settings import knob, parser_for, settings_of_run
from nanocontrol.training.start import Signals, check_new, run_alone
from nanocontrol.training.watch import Watch
from nanocontrol.vae import sample_posterior


@dataclass(frozen=True)
class Settings:
    """A run's settings, one flag each."""

    part: str
    base: str | None = knob(
        None,
        "checkpoint with a trained VAE (base, decoder), or one to train further (vae)",
        absolute,
    )
    out: str = knob(
        None, "the run's folder (default: runs/PART-1, runs/PART-2, ...)", absolute, learnt=False
    )
    steps: int = knob(6000, "optimizer steps, over which the learning rate decays", at_least(1))
    batch_size: int = knob(32, "pictures per step", at_least(1))
    lr: float = knob(1e-3, "highest learning rate", positive)
    latent_noise: float = knob(0.0, "most noise on latents, in standard deviations", fraction)
    drop_prompt: float = knob(0.1, "share of the prompts to drop (base)", fraction)
    scenes: int = knob(50_000, "drawn scenes to train on", at_least(1))
    size: int | None = knob(
        None, "side of a picture (default: --base's, or 64; detector: 128)", int, SIZES
    )
    seed: int = knob(0, "random seed of weights, order and noise", seed)
    device: str = knob(
        None, "cpu, cuda, ... (default: a GPU if there is one)", device, learnt=False
    )
    dtype: Literal["fp32", "bf16", "fp16"] = knob(
        None, "default: bf16 on a GPU that supports it, else fp16; fp32 on a CPU", learnt=False
    )
    save_every: int = knob(500, "steps between saves", at_least(1), learnt=False)
    sample_every: int = knob(500, "steps between evaluations", at_least(1), learnt=False)


PRESETS: dict[str, dict[str, Any]] = {
    "vae": {
        "steps": 14_000,
        "batch_size": 8,
        "lr": 1.2e-3,
        "scenes": HELD_OUT,
        "latent_noise": 0.25,
    },
    "base": {},
    "decoder": {"batch_size": 8, "lr": 6e-4, "scenes": HELD_OUT, "latent_noise": 0.2},
    "detector": {"steps": 2500, "batch_size": 16, "lr": 2e-3, "scenes": 6000},
}
USED_BY = {
    "base": ("vae", "base", "decoder"),
    "latent_noise": ("vae", "decoder"),
    "drop_prompt": ("base",),
}
SHEET, HELD_OUT_SCENES = 8, 32  # evaluated during a run, and at its end
REBUILT = "true pictures, and rebuilt by the VAE"
ENCODING = 2  # with (seed, 0): makes draws from the posterior differ from those of every step


class Part(NamedTuple):
    """The networks and functions that differ between the trainings of nano's parts."""

    trained: dict[str, nn.Module]
    data: Any  # a data set
    loss: Callable[[int, Any, Generator], Tensor]  # (step, batch, generator) -> loss
    look: Callable[[int], tuple[list[Tensor], dict]]  # n scenes -> rows of pictures, and numbers
    caption: str  # of these pictures
    save: Callable[[Path], None]  # writes the weights into a folder


def train(settings: Settings, signals: Signals, resume: bool) -> dict:
    """Train one part and write the run's folder -> its final numbers."""
    processes = Processes(settings.device)
    if processes.size > 1:
        raise InputError("nano's parts are trained by one process: expected no torchrun")
    machine.allow_tf32(settings.device)
    torch.manual_seed(settings.seed)  # for the initialisation
    part = PARTS[settings.part](settings)
    adamw: dict[str, Any] = {"betas": (0.9, 0.99), "weight_decay": 0.0}
    on = settings.device, settings.dtype
    optimizer = Optimizer(part.trained, settings.lr, *on, clip=1.0, **adamw)
    where = Path(settings.out), settings.steps, settings.sample_every, settings.save_every
    watch = Watch(*where, optimizer, processes, signals)
    look = partial(part.look, SHEET)
    start = watch.begin(asdict(settings), resume, None, look, part.caption, part.save)
    order = shuffled(len(part.data), settings.seed, start * settings.batch_size)
    batches = loader(part.data, groups(order, settings.batch_size, slice(None)), settings.device)
    for step in watch.steps(start):
        optimizer.set_lr(cosine_rate(settings.lr, step, settings.steps))
        loss = part.loss(step, next(batches), generator_of(settings.seed, step))
        optimizer.backward(loss)
        watch.done(step, optimizer.step(loss.detach()))
    return watch.finish(partial(part.look, HELD_OUT_SCENES))


def cosine_rate(lr: float, step: int, steps: int) -> float:
    """The learning rate at a step: a warm-up of 50 steps, then half a cosine."""
    return lr * min(1, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * step / steps))


# ------------------------------------------------------------------------- the VAE, its decoder


def vae_part(settings: Settings) -> Part:
    """The VAE: a new one, or that of --base to train further."""
    size = settings.size or PIXELS
    sd = load_base(settings) if settings.base else channels_last(new_nano(size))
    sd.vae.to(settings.device).requires_grad_(True)
    some = held_out_scenes(None, 256, size=sd.size)[0]

    def save(folder: Path) -> None:
        sd.scale_factor = measured_scale_factor(sd, some)
        save_sd(sd, folder / "base.safetensors")

    return reconstructing_part(settings, sd, {"vae": sd.vae}, save)


def decoder_part(settings: Settings) -> Part:
    sd = load_base(settings)
    trained = {"decoder": sd.vae.decoder, "post_quant_conv": sd.vae.post_quant_conv}
    for network in trained.values():
        network.requires_grad_(True)
    return reconstructing_part(settings, sd, trained, partial(save_base, sd))


def reconstructing_part(
    settings: Settings, sd: StableDiffusion, trained: dict[str, nn.Module], save: Callable
) -> Part:
    def loss(step: int, batch: tuple, generator: Generator) -> Tensor:
        images = seen(settings, step, batch[0], generator)
        return vae_loss(sd, images, settings.latent_noise, generator)

    scenes = Scenes(None, n=settings.scenes, size=sd.size)
    return Part(trained, scenes, loss, partial(look_at_reconstructions, sd), REBUILT, save)


def seen(settings: Settings, step: int, images: Tensor, generator: Generator) -> Tensor:
    """The images of a step, on the device. Most steps train on quarters of the pictures, which is
    faster. The last ones train on half as many whole pictures."""
    early = step < 0.85 * settings.steps
    images = random_quarter(images, generator) if early else images[: (len(images) + 1) // 2]
    return images.to(settings.device)


def random_quarter(images: Tensor, generator: Generator) -> Tensor:
    """A crop [B, 3, H/2, W/2] of images [B, 3, H, W], at the same random place in each."""
    half = images.shape[-1] // 2
    top, left = torch.randint(half + 1, (2,), generator=generator).tolist()
    return images[:, :, top : top + half, left : left + half]


def vae_loss(sd: StableDiffusion, images: Tensor, noise: float, generator: Generator) -> Tensor:
    """Reconstruction error of images [B, 3, H, W] with noise on the latents, plus the KL term.

    noise: the largest standard deviation of this noise, in units of the latents' own; each
    picture's is drawn from 0 to this. The latents that the U-Net generates are never exact. A
    decoder trained on exact latents turns their errors into visible dents. An encoder trained with
    noise stores information in a form that noise does not destroy.
    """
    mean, logvar = sd.vae.encode(images.to(next(sd.vae.parameters())))
    latents = sample_posterior(mean, logvar, generator)
    deviation = noise * torch.rand((len(latents), 1, 1, 1), generator=generator)
    normal = torch.randn(latents.shape, generator=generator)
    rebuilt = sd.vae.decode(latents + latents.std() * (deviation * normal).to(latents)).float()
    mean, logvar = mean.float(), logvar.float()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    # Absolute errors keep edges sharp. Squared errors alone would give the best signal-to-noise
    # ratio, but blurred edges.
    return F.l1_loss(rebuilt, images) + 6 * F.mse_loss(rebuilt, images) + 1e-5 * kl


def look_at_reconstructions(sd: StableDiffusion, n: int) -> tuple[list[Tensor], dict]:
    images = held_out_scenes(None, n, size=sd.size)[0]
    rebuilt = rebuild(sd, images)
    return [images, rebuilt], {"vae_db": psnr(rebuilt, images)}


@torch.no_grad()
def measured_scale_factor(sd: StableDiffusion, images: Tensor) -> float:
    """The factor that scales the latents of images [B, 3, H, W] to unit variance."""
    return 1 / sd.encode(images)[0].std().item()


# ------------------------------------------------------------------- the base: text and U-Net


def base_part(settings: Settings) -> Part:
    """The text encoder and U-Net of --base: untrained, as part `vae` saves them, or trained, to
    continue at a larger size."""
    sd = load_base(settings)
    for network in (sd.unet, sd.text_encoder):
        network.requires_grad_(True)
    diffusion = DDPM(sd.prediction, settings.device)

    def denoising_loss(x0: Tensor, context: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Equation 3 of Rombach et al. 2022: train.py's diffusion_loss without a ControlNet."""
        x_t, target = diffusion.add_noise(x0, noise, t), diffusion.target(x0, noise, t)
        output = sd.unet(x_t.to(context.dtype), t, context)
        return F.mse_loss(output.float(), target)

    def loss(step: int, batch: tuple, generator: Generator) -> Tensor:
        x0, prompts = batch
        noise = torch.randn(x0.shape, generator=generator)
        t = torch.randint(STEPS, (len(x0),), generator=generator)
        dropped = torch.rand(len(x0), generator=generator) < settings.drop_prompt
        prompts = ["" if drop else prompt for drop, prompt in zip(dropped, prompts)]
        x0, noise, t = (x.to(settings.device) for x in (x0, noise, t))
        return denoising_loss(x0, sd.encode_prompts(prompts), noise, t)

    def without_hint(x0: Tensor, hint: Tensor, *rest: Tensor) -> Tensor:
        return denoising_loss(x0, *rest)

    def look(n: int) -> tuple[list[Tensor], dict]:
        images, hints, prompts, _ = held_out_scenes(None, n, size=sd.size)
        pairs = HeldOut(images, hints, list(prompts), mean_latents(sd, images))
        made = make_pictures(sd, prompts, at_once=2 * settings.batch_size)
        number = held_out_loss(sd, pairs, without_hint, settings.batch_size)
        return [images, made], {"held_out_loss": number}

    caption = f"true pictures, and from their prompts alone: 20 steps, guidance {sd.guidance:g}"
    trained: dict[str, nn.Module] = {"unet": sd.unet, "text_encoder": sd.text_encoder}
    return Part(trained, latents_of(settings, sd), loss, look, caption, partial(save_base, sd))


@torch.no_grad()
def latents_of(settings: Settings, sd: StableDiffusion) -> Any:
    """Latents and prompts of the drawn scenes. Each latent is sampled from its posterior once, and
    all are kept in the run's folder."""
    n = min(settings.scenes, settings.steps * settings.batch_size)
    scenes, file = Scenes(None, n=n, size=sd.size), Path(settings.out) / "latents.safetensors"
    prompts = [scenes.scene(i).prompt for i in range(len(scenes))]
    made_from = {"base": settings.base, "scenes": n, "size": sd.size, "seed": settings.seed}
    # A run that was killed before it wrote settings.json may have left latents of other settings.
    kept = read_tensors(file) if file.exists() else ({}, None)
    if kept[1] != made_from:
        generator, latents = generator_of(settings.seed, 0, ENCODING), []
        drawn = DataLoader(scenes, batch_size=64, num_workers=1, worker_init_fn=ignore_ctrl_c)
        for images, *_ in tqdm(drawn, "encoding"):
            mean, deviation = sd.encode(images)
            noise = torch.randn(mean.shape, generator=generator).to(mean)
            latents.append(sd.scale_factor * (mean + deviation * noise).float().cpu())
        make_folder("--out", file.parent)
        kept = {"latents": torch.cat(latents)}, made_from
        write_tensors(file, *kept)
    return list(zip(kept[0]["latents"], prompts))


def load_base(settings: Settings) -> StableDiffusion:
    if settings.base is None:
        part = settings.part
        raise InputError(f"{part}: expected --base FILE, with a trained VAE (train vae first)")
    with blame("--base"):
        sd = load_sd(settings.base, settings.device)
    sd.size = settings.size or sd.size
    if sd.size not in SIZES:
        at = f"scenes are drawn at {', '.join(map(str, SIZES))}"
        raise InputError(f"--base: it is for pictures of {sd.size} pixels, and {at}: use --size")
    return channels_last(sd)


def channels_last(sd: StableDiffusion) -> StableDiffusion:
    """Set the memory format in which small convolutions are fastest."""
    for network in (sd.unet, sd.vae):
        network.to(memory_format=torch.channels_last)
    return sd


def save_base(sd: StableDiffusion, folder: Path) -> None:
    save_sd(sd, folder / "base.safetensors")


# ------------------------------------------------------------------------------- the detector


def detector_part(settings: Settings) -> Part:
    size = settings.size or 2 * PIXELS
    network = Detector(size).to(settings.device)
    scenes = tqdm(range(settings.scenes), "drawing")
    truths = (truth(random_scene(seed), size) for seed in scenes)
    # Half precision, because maps of 128 pixels would take 10 GB in float32.
    images, maps, kinds = zip(*((image, maps.half(), kinds) for image, maps, kinds in truths))
    data = TensorDataset(torch.stack(images), torch.stack(maps), torch.stack(kinds))

    def loss(step: int, batch: tuple, generator: Generator) -> Tensor:
        images, maps, kinds = (x.to(settings.device) for x in batch)
        images = spoilt(images, generator).to(next(network.parameters()))
        found, shown = network(images)
        loss = F.binary_cross_entropy_with_logits(found.float(), maps.float())
        return loss + 0.1 * F.binary_cross_entropy_with_logits(shown.float(), kinds)

    @torch.no_grad()
    def look(n: int) -> tuple[list[Tensor], dict]:
        images, _, _, scenes = held_out_scenes(None, n, size=size)
        found = network(images.to(next(network.parameters())))[0][:, DEPTH : DEPTH + 1]
        found = found.float().sigmoid().cpu()
        right = shows_kinds(network, images, scenes)
        return [images, found.repeat(1, 3, 1, 1) * 2 - 1], {"shapes_true": right}

    def save(folder: Path) -> None:
        weights = {name: weight.half().cpu() for name, weight in network.state_dict().items()}
        write_tensors(folder / "detector.safetensors", weights, {"size": network.size})

    return Part(
        {"detector": network}, data, loss, look, "true pictures, and the depth found in them", save
    )


def spoilt(images: Tensor, generator: Generator) -> Tensor:
    """Images with some blur and noise, because generated pictures are not quite sharp."""
    reach = images.shape[-1] // PIXELS
    soft = F.pad(images, (reach, reach, reach, reach), mode="replicate")
    soft = F.avg_pool2d(soft, 2 * reach + 1, stride=1)
    share = torch.rand((len(images), 1, 1, 1), generator=generator).to(images)
    noise = torch.randn(images.shape, generator=generator).to(images)
    return images + share * (soft - images) + 0.05 * noise


PARTS = {"vae": vae_part, "base": base_part, "decoder": decoder_part, "detector": detector_part}

# ---------------------------------------------------------------------------------- the flags


def resolve_part(given: dict[str, Any]) -> Settings:
    """All settings: those given, then the part's preset, then defaults and what this machine
    has."""
    part = given["part"]
    for name, parts in USED_BY.items():
        if name in given and part not in parts:
            raise InputError(f"--{name.replace('_', '-')} is not used by {part}: expected none")
    check_new(given.get("out"))
    settings = Settings(**PRESETS[part] | given)
    on = settings.device or machine.default_device()
    dtype = settings.dtype or machine.default_dtype(on)
    return replace(settings, device=on, dtype=dtype)


def main(argv: list[str] | None = None) -> None:
    parser = parser_for(Settings, __doc__, PRESETS, "; other flags must not change")
    parser.add_argument("part", choices=PARTS, help="the part to train")
    given = vars(parser.parse_args(argv))
    resume = given.pop("resume")
    machine.keep_freed_memory()
    with one_sentence("train", "use a smaller --batch-size"):
        settings = settings_of_run(Settings, Path(resume), given) if resume else resolve_part(given)
        command = f"-m nanocontrol.nano.train {settings.part}"
        run_alone(train, settings, bool(resume), settings.part, command)


if __name__ == "__main__":
    main()
