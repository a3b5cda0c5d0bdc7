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
import itertools
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, StackDataset, Subset
from tqdm import tqdm

from nanocontrol import DDPM, ControlNet, InputError, StableDiffusion
from nanocontrol import load_control, load_sd, save_control, save_sd
from nanocontrol.conditions import CONDITIONS
from nanocontrol.controlnet import zero_module
from nanocontrol.data import HELD_OUT, Folder, Scenes, held_out_scenes
from nanocontrol.detector import FILE as DETECTOR
from nanocontrol.detector import Detector, load_detector
from nanocontrol.evaluate import make_pictures, mean_iou, psnr, rebuild
from nanocontrol.flags import (
    at_least, available, blame, default_device, device, fraction, positive, seed
)  # fmt: skip
from nanocontrol.inputs import NANO
from nanocontrol.nano import UNET, initialise_condition_encoder, new_nano
from nanocontrol.run import RunFolder
from nanocontrol.schedulers import STEPS
from nanocontrol.scores import score
from nanocontrol.vae import sample_posterior

# What differs by what is trained: a ControlNet for a base of one's own, with the settings of the
# paper and its released code; and the stages of the small model.
DEFAULTS = {
    "sd": {
        "steps": 20_000, "batch_size": 4, "lr": 1e-5, "drop_prompt": 0.5,
        "save_every": 1000, "sample_every": 500, "schedule": "constant",
    },
    "control": {
        "steps": 500, "batch_size": 16, "lr": 1e-3, "drop_prompt": 0.5,
        "save_every": 250, "sample_every": 25, "schedule": "cooldown",
    },
    "base": {
        "steps": 6000, "batch_size": 32, "lr": 1e-3, "drop_prompt": 0.1,
        "save_every": 500, "sample_every": 500, "schedule": "cosine",
    },
    "vae": {
        "steps": 14_000, "batch_size": 8, "lr": 1.2e-3, "drop_prompt": 0.0,
        "save_every": 500, "sample_every": 500, "schedule": "cosine",
    },
    "decoder": {
        "steps": 6000, "batch_size": 4, "lr": 6e-4, "drop_prompt": 0.0,
        "save_every": 500, "sample_every": 500, "schedule": "cosine",
    },
}  # fmt: skip

Settings = argparse.Namespace  # the flags, resolved
Batch = tuple[Tensor, Tensor, list[str]]  # images in [-1, 1], hints in [0, 1], prompts


# ------------------------------------------------------------------------------- the method


@torch.no_grad()
def encode_images(sd: StableDiffusion, image: Tensor) -> Tensor:
    """image [B, 3, H, W] in [-1, 1] -> x_0 [B, 4, H/8, W/8], drawn from the VAE's posterior and
    scaled to about unit variance."""
    return sd.scale_factor * sample_posterior(*sd.vae.encode(image)).float()


def diffusion_loss(
    sd: StableDiffusion, control: ControlNet | None, x0: Tensor, hint: Tensor, context: Tensor,
    noise: Tensor, t: Tensor,
) -> Tensor:  # fmt: skip
    """Equation 5 of the paper: the mean square error of the predicted noise. (Without a ControlNet
    it is the base model's own loss: Rombach et al. 2022, equation 3.)

    x0 and noise [B, 4, h, w], hint [B, 3, 8h, 8w] in [0, 1], context [B, 77, D], t [B] in 0..999.
    """
    diffusion = DDPM(sd.prediction)
    x_t = diffusion.add_noise(x0, noise, t)
    residuals = control(x_t, hint, t, context) if control else None
    # Neither weights nor inputs of the locked encoder ask for gradients, so autograd keeps nothing
    # of it. Gradients pass through the locked decoder on their way to the residuals, but its
    # weights collect none. (In the original they do: 2 GB that nobody uses.)
    output = sd.unet(x_t, t, context, residuals)
    return F.mse_loss(output.float(), diffusion.target(x0, noise, t).float())


def random_quarter(image: Tensor) -> Tensor:
    """[B, 3, H, W] -> [B, 3, H/2, W/2], from the same place of each."""
    half = image.shape[-1] // 2
    top, left = torch.randint(half + 1, (2,)).tolist()
    return image[:, :, top : top + half, left : left + half]


def vae_loss(sd: StableDiffusion, image: Tensor) -> Tensor:
    """How far rebuilt pictures are from the true ones."""
    mean, logvar = sd.vae.encode(image)
    rebuilt = sd.vae.decode(sample_posterior(mean, logvar))
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    # Absolute errors keep edges crisp; square ones alone would blur them, and alone would be best
    # for the signal-to-noise ratio.
    return F.l1_loss(rebuilt, image) + 6 * F.mse_loss(rebuilt, image) + 1e-5 * kl


def training_loss(
    args: Settings, sd: StableDiffusion, control: ControlNet | None, batch: Batch, step: int
) -> Tensor:
    """The loss of one batch: encode the pictures, empty some prompts, add noise, predict it."""
    image, hint, prompts = batch
    image, hint = image.to(next(sd.vae.parameters())), hint.to(args.device)
    if args.stage == "vae":  # most steps see parts of pictures, which is faster
        early = step < 0.85 * args.steps
        return vae_loss(sd, random_quarter(image) if early else image[: (len(image) + 1) // 2])
    if args.stage == "decoder":
        return vae_loss(sd, image)
    x0 = image if args.stage == "base" else encode_images(sd, image)  # see `encoded`
    # Where the prompt is emptied, the copy must find the meaning in the hint (section 3.3).
    emptied = torch.rand(len(prompts)) < args.drop_prompt
    context = sd.encode_prompts(["" if e else p for e, p in zip(emptied, prompts)])
    noise, t = torch.randn(x0.shape).to(x0), torch.randint(STEPS, (len(x0),)).to(x0.device)
    return diffusion_loss(sd, control, x0, hint, context, noise, t)


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
    torch.manual_seed(args.seed)
    dataset, held_out = datasets(args)
    sd, control, trained = models(args)
    detector = load_detector(DETECTOR) if args.condition else None
    for network in (sd.unet, sd.vae, *trained.values()):
        network.to(memory_format=torch.channels_last)  # convolutions are fastest with it
    parameters = [p for m in trained.values() for p in m.parameters() if p.requires_grad]
    optimizer = make_optimizer(args, parameters)
    if args.dry_run:
        weights = sum(p.numel() for p in parameters)
        pairs = {"pairs": len(dataset), "held_out": len(held_out[2]), "weights_trained": weights}
        print(json.dumps(vars(args) | pairs, indent=2))
        return

    if args.stage == "base":
        dataset = encoded(sd, dataset, n=min(50_000, args.steps * args.batch_size))
    run = RunFolder(Path(args.out))
    start, seconds = run.restore(trained, optimizer) if args.resume else (0, 0.0)
    run.create(vars(args))
    began = time.monotonic() - seconds
    batches = load_batches(args, dataset, start)

    def precision() -> torch.autocast:
        # Entered anew each time: within one autocast, weights are cast once and then remembered.
        return torch.autocast(torch.device(args.device).type, torch.bfloat16, args.dtype == "bf16")

    def observe(step: int) -> None:
        with precision():
            some = tuple(column[:8] for column in held_out)
            rows, numbers = measure(args, sd, control, some, detector)
        run.contact_sheet(step, rows)
        run.log(step, **numbers)

    if start == 0:
        observe(0)
    steps = range(start, args.steps)
    bar = tqdm(steps, "training", initial=start, total=args.steps, smoothing=0.05)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(args, step)
        mean_loss = 0.0
        for _ in range(args.accumulate):
            with precision():
                loss = training_loss(args, sd, control, next(batches), step) / args.accumulate
            loss.backward()
            mean_loss += loss.item()
        if not math.isfinite(mean_loss):
            raise diverged(args, step + 1)
        if args.stage != "control":
            nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        bar.set_postfix(loss=f"{mean_loss:.4f}", refresh=False)
        run.log(step + 1, loss=mean_loss)
        last = step + 1 == args.steps
        if last or (step + 1) % args.sample_every == 0:
            observe(step + 1)
        if last or (step + 1) % args.save_every == 0:
            if not all(parameter.isfinite().all() for parameter in parameters):
                raise diverged(args, step + 1)
            save_weights(sd, control, trained, run.path, args.condition)
            run.save(step + 1, time.monotonic() - began, trained, optimizer)
    with precision():
        _, metrics = measure(args, sd, control, held_out, detector)
    if control:
        metrics["step_of_jump"] = step_of_jump(run)
        run.film(*held_out[0].shape[-2:])
    run.finish(metrics | {"seconds": round(time.monotonic() - began, 1)})
    print(f"{run.path}: {json.dumps(metrics)}")


def diverged(args: Settings, step: int) -> InputError:
    return InputError(
        f"--lr {args.lr:g}: loss or weights are not finite at step {step}; a new run with a lower "
        f"rate is wanted (the last save in {args.out}, if any, stands; --init-control takes it)"
    )


def save_weights(
    sd: StableDiffusion, control: ControlNet | None, trained: dict[str, nn.Module], path: Path,
    condition: str | None,
) -> None:  # fmt: skip
    """The files that sample.py takes: the ControlNet, and the base model if that was trained."""
    if control:
        save_control(control, path / "control.safetensors", condition)
    if "vae" in trained:
        sd.scale_factor = measured_scale_factor(sd)
    if trained.keys() != {"control"}:
        save_sd(sd, path / "base.safetensors")


# ------------------------------------------------------------------------------------- data


def datasets(args: Settings) -> tuple[Dataset, Batch]:
    """What is trained on, and pairs to measure with that are not."""
    if args.data:
        with blame("--data"):
            pairs = Folder(Path(args.data))
            first_held_out = len(pairs) - min(8, max(1, len(pairs) // 10))
            held_out = [pairs[i] for i in range(first_held_out, len(pairs))]
        dataset = Subset(pairs, range(max(1, first_held_out)))  # of one pair, that one
    else:
        return Scenes(args.condition), held_out_scenes(args.condition, 32)[:3]
    images, hints, prompts = zip(*held_out)
    return dataset, (torch.stack(images), torch.stack(hints), list(prompts))


def encoded(sd: StableDiffusion, dataset: Dataset, n: int) -> Dataset:
    """The first n pairs with latents in place of pictures, and without hints: what the base model
    is trained on many times is encoded once. (So each latent is drawn once from its posterior.)"""
    latents: list[Tensor] = []
    prompts: list[str] = []
    loader = DataLoader(Subset(dataset, range(n)), batch_size=64, num_workers=1)
    for images, _, texts in tqdm(loader, "encoding"):
        latents.append(encode_images(sd, images.to(next(sd.vae.parameters()))).cpu())
        prompts.extend(texts)
    return StackDataset(torch.cat(latents), torch.zeros(n, 1), prompts)


def shuffled(n: int, seed: int, start: int) -> Iterator[int]:
    """0..n-1 in an order that the seed decides, another one every epoch, without end, beginning
    with the start-th."""
    for epoch in itertools.count(start // n):
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed + epoch)).tolist()
        yield from order[start % n :]
        start = 0


def load_batches(args: Settings, dataset: Dataset, start: int) -> Iterator[Batch]:
    """Batches without end, beginning with the first of step `start`."""
    order = shuffled(len(dataset), args.seed, start * args.accumulate * args.batch_size)

    def groups() -> Iterator[list[int]]:
        while True:
            yield list(itertools.islice(order, args.batch_size))

    workers = 4 if args.device.startswith("cuda") else 1
    # With a generator of its own it leaves alone the one that the noise comes from.
    own = torch.Generator()
    return iter(DataLoader(dataset, batch_sampler=groups(), num_workers=workers, generator=own))


# --------------------------------------------------------------------- looking and measuring


def measure(
    args: Settings, sd: StableDiffusion, control: ControlNet | None, held_out: Batch,
    detector: Detector | None,
) -> tuple[list[Tensor], dict]:  # fmt: skip
    """Rows of pictures, what the model makes last, and numbers that tell how good that is. With a
    detector the pairs are the first of the held-out scenes."""
    images, hints, prompts = held_out
    if args.stage in ("vae", "decoder"):
        rebuilt = rebuild(sd, images)
        return [images, rebuilt], {"vae_db": psnr(rebuilt, images)}
    made = make_pictures(sd, prompts, control, hints)
    loss = held_out_loss(sd, control, held_out)
    if args.stage == "base":
        return [images, made], {"held_out_loss": loss}
    gain = None  # of one pair alone there are no wrong hints
    if len(hints) > 1:
        gain = held_out_loss(sd, control, (images, hints.roll(1, dims=0), prompts)) - loss
    numbers = {"held_out_loss": loss, "control_gain": gain, "iou": mean_iou(made, images)}
    if detector:
        scenes = [Scenes(args.condition, HELD_OUT).scene(i) for i in range(len(made))]
        numbers["score"] = score(args.condition, made, scenes, detector)
    return [hints * 2 - 1, images, made], numbers


@torch.no_grad()
def held_out_loss(sd: StableDiffusion, control: ControlNet | None, held_out: Batch) -> float:
    """The loss on these pairs, with the same noise each time and t spread evenly over 0..999."""
    images, hints, prompts = held_out
    generator, losses = torch.Generator().manual_seed(0), []
    for i in range(len(images)):  # one by one, to need no more memory than training does
        mean, _ = sd.vae.encode(images[i : i + 1].to(next(sd.vae.parameters())))
        noise = torch.randn(mean.shape, generator=generator).to(mean.device)
        t = torch.tensor([int((i + 0.5) / len(images) * STEPS)], device=mean.device)
        hint, context = hints[i : i + 1].to(mean), sd.encode_prompts(prompts[i])
        x0 = sd.scale_factor * mean.float()
        losses.append(diffusion_loss(sd, control, x0, hint, context, noise, t).item())
    return sum(losses) / len(losses)


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
    add("--base", metavar="FILE", help="a Stable Diffusion 1 or 2 (default: the bundled nano); "
        "with one of your own, the defaults below are the second ones")  # fmt: skip
    add("--init-control", metavar="FILE", help="begin with this ControlNet, not with a copy")
    add("--condition", choices=CONDITIONS, help="what drawn scenes are hinted by (default: canny)")
    add("--data", metavar="DIR", help="pairs, with prompt.json or metadata.jsonl (default: scenes)")
    add("--stage", choices=["control", "base", "vae", "decoder"],
        help="what to train (default: control)")  # fmt: skip
    add("--out", metavar="RUN", help="the folder to write (default: runs/canny-1, -2, ...)")
    add("--resume", metavar="RUN", help="continue this one; of the flags, only --steps may grow")
    add("--steps", type=at_least(1), help="of the optimizer (default: 500; 20000)")
    add("--batch-size", type=at_least(1), help="pairs in one pass (default: 16; 4)")
    add("--accumulate", type=at_least(1), help="passes in one step (default: 1)")
    add("--lr", type=positive, help="learning rate (default: 1e-3; 1e-5)")
    add("--drop-prompt", type=fraction, help="share of prompts that are emptied (default: 0.5)")
    add("--unlock", choices=["decoder", "all"], help="train the base's decoder, or its U-Net, too")
    add("--only-mid-control", action="store_true", default=None, help="control the middle alone")
    add("--prediction", choices=["auto", "eps", "v"], help="what the base predicts (default: auto)")
    add("--seed", type=seed, help="of weights, order and noise (default: 0)")
    add("--device", type=device, help="cpu, cuda, ... (default: a GPU if there is one)")
    add("--dtype", choices=["fp32", "bf16"], help="precision (default: bf16 on a GPU, else fp32)")
    add("--save-every", type=at_least(1), help="steps between saves (default: 250; 1000)")
    add("--sample-every", type=at_least(1), help="steps between sheets (default: 25; 500)")
    add("--dry-run", action="store_true", help="check everything, print the settings, stop")
    return resolve(parser.parse_args(argv))


def resolve(flags: Settings) -> Settings:
    """Every setting: as given, or else as the run to be resumed has it, or else the default."""
    given = {name: value for name, value in vars(flags).items() if value is not None}
    for name in ("base", "init_control", "data", "out", "resume"):
        if name in given:
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
        "base": ["condition", "data", "init_control", "prediction", "unlock", "only_mid_control"],
    }
    unwanted["decoder"] = [*unwanted["base"], "drop_prompt"]
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
    general = {"stage": stage, "base": str(NANO), "init_control": None, "prediction": "auto"}
    general |= {"data": None, "condition": condition, "accumulate": 1}
    general |= {"unlock": None, "only_mid_control": False}
    half = on.startswith("cuda") and torch.cuda.is_bf16_supported()
    general |= {"seed": 0, "device": on, "dtype": "bf16" if half else "fp32"}
    return Settings(**general | DEFAULTS[kind] | {"resume": None} | given)


def resumed(given: dict) -> dict:
    """The settings of the run to be resumed, which no flag beside --resume may contradict."""
    run = Path(given["resume"])
    try:
        settings = json.loads((run / "settings.json").read_text())
        ran_on, schedule = settings["device"], settings["schedule"]
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
    try:
        train(parse(argv))
    except InputError as error:  # one from a loader's process comes at the end of its traceback
        message = str(error).strip().splitlines()[-1]
        sys.exit("train.py: " + message.removeprefix("nanocontrol.files.InputError: "))
    except torch.OutOfMemoryError:
        sys.exit("train.py: --batch-size: the GPU's memory is full; a smaller one is wanted")
    except KeyboardInterrupt:
        sys.exit("train.py: stopped; --resume continues from the last save")


if __name__ == "__main__":
    main()
