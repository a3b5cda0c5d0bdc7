"""Train nano's base, its text encoder and U-Net, in the minutes for which a GPU is lent.

    python tests/bench/train_base.py --base runs/vae/base.safetensors --minutes 9 --out DIR
    python tests/bench/train_base.py --join DIR/weights --out base.safetensors

The loss and the optimizer are those of `python -m nanocontrol.nano.train base`. Batches are larger,
and the learning rate falls over the time instead of a number of steps. Training begins with the
weights in --base, so that a trained base is trained further. All processors draw scenes, which the
GPU encodes first. --latents FILE takes them from an earlier run of nano.train instead: it is the
run's latents.safetensors, and must be of the same VAE.

Every minute DIR/weights gets the weights in half precision, in parts below 16 MB. --join puts them
together. DIR/log.jsonl has losses, and DIR/sheet.png pictures of the last weights.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parents[2]))  # where the package is

from nanocontrol.formats.tensors import read_tensors, write_tensors
from nanocontrol.nano import train as nano_train
from nanocontrol.nano.train import Part, Settings, cosine_rate, resolve_part
from nanocontrol.plumbing import machine
from nanocontrol.plumbing.errors import InputError, one_sentence
from nanocontrol.plumbing.files import make_folder
from nanocontrol.plumbing.flags import absolute, at_least, device, positive
from nanocontrol.plumbing.pictures import grid, save_picture
from nanocontrol.stable_diffusion import StableDiffusion
from nanocontrol.training.batches import generator_of, groups, shuffled
from nanocontrol.training.optimizer import Optimizer

PART = 15_000_000  # bytes of a part, at most
SAVE_EVERY = 60.0  # seconds
LOG_EVERY = 50  # steps: reading losses makes the CPU wait for the GPU
FOR_THE_END = 0.06  # share of the time for the last save and the pictures
SHEET = 8  # scenes

tokenize = StableDiffusion.tokenize
known_tokens: dict[str, Tensor] = {}


def train_until(settings: Settings, part: Part, end: float, out: Path) -> int:
    """Train until a time, as time.monotonic() has it, and save -> the number of steps."""
    adamw = {"betas": (0.9, 0.99), "weight_decay": 0.0}  # as nano.train has it
    on = settings.device, settings.dtype
    optimizer = Optimizer(part.trained, settings.lr, *on, clip=1.0, **adamw)
    began = saved = time.monotonic()
    losses: list[Tensor] = []
    for step, batch in enumerate(batches_of(part, settings)):
        share = (time.monotonic() - began) / (end - began)
        if share >= 1:
            break
        optimizer.set_lr(cosine_rate(settings.lr, step, max(1, step / share)))
        loss = part.loss(step, batch, generator_of(settings.seed, step))
        optimizer.backward(loss)
        losses.append(optimizer.step(loss.detach()))
        if len(losses) == LOG_EVERY:
            log(out, step=step + 1, loss=torch.stack(losses).nanmean().item(), share=share)
            losses.clear()
        if time.monotonic() - saved > SAVE_EVERY:
            save_in_parts(part, out / "weights", step + 1)
            saved = time.monotonic()
    save_in_parts(part, out / "weights", step)
    return step


def batches_of(part: Part, settings: Settings) -> Iterator[tuple[Tensor, list[str]]]:
    """Latents on the device and their prompts, without end."""
    latents = torch.stack([x0 for x0, _ in part.data]).to(settings.device)
    prompts = [prompt for _, prompt in part.data]
    order = shuffled(len(prompts), settings.seed, 0)
    for chosen in groups(order, settings.batch_size, slice(None)):
        yield latents[chosen], [prompts[i] for i in chosen]


def tokenize_once(sd: StableDiffusion, prompts: list[str] | str) -> Tensor:
    """As sd.tokenize. Every prompt is used in many steps, and on a GPU a step takes no longer than
    to tokenize its prompts."""
    prompts = [prompts] if isinstance(prompts, str) else prompts
    new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known_tokens]
    known_tokens.update(zip(new, tokenize(sd, new)) if new else ())
    return torch.stack([known_tokens[prompt] for prompt in prompts])


def log(out: Path, **numbers: float) -> None:
    with open(out / "log.jsonl", "a") as file:
        file.write(json.dumps(numbers) + "\n")
    print(json.dumps(numbers), flush=True)


# ------------------------------------------------------------------------------------- latents


def all_processors(dataset: object, **how: object) -> DataLoader:
    """A loader in whose processes all scenes are drawn, in place of nano.train's."""
    return DataLoader(dataset, **how | {"num_workers": os.cpu_count()})  # type: ignore[arg-type]


def with_latents(settings: Settings, latents: Path) -> Settings:
    """The settings with which nano.train takes the latents of a file: those it was made with."""
    tensors, made_from = read_tensors(latents)
    if not made_from.keys() >= {"scenes", "size", "seed"} or "latents" not in tensors:
        raise InputError(f"--latents: {latents} was not written by nano.train")
    same = {name: made_from[name] for name in ("scenes", "size", "seed")}
    own = Path(settings.out) / "latents.safetensors"
    write_tensors(own, tensors, made_from | {"base": settings.base})
    return replace(settings, **same)


# --------------------------------------------------------------------------- weights in parts


def save_in_parts(part: Part, folder: Path, step: int) -> None:
    """Replace the folder by one with the base's weights in half precision. A kill leaves the old
    folder or the new one, whole, and for a moment both under other names."""
    new, old = folder.with_name("weights.new"), folder.with_name("weights.old")
    shutil.rmtree(new, ignore_errors=True)
    make_folder("--out", new)
    with tempfile.TemporaryDirectory() as temporary:
        part.save(Path(temporary))
        tensors, metadata = read_tensors(Path(temporary) / "base.safetensors")
        parts = divided({name: tensor.half() for name, tensor in tensors.items()})
    for i, some in enumerate(parts):
        about = metadata | {"part": i, "parts": len(parts), "step": step}
        write_tensors(new / f"part-{i:02d}.safetensors", some, about)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def divided(tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """In their order, as many as fit into each part."""
    parts: list[dict[str, Tensor]] = [{}]
    room = PART
    for name, tensor in tensors.items():
        if tensor.nbytes > room and parts[-1]:
            parts.append({})
            room = PART
        parts[-1][name] = tensor
        room -= tensor.nbytes
    return parts


def join(folder: Path, out: Path) -> None:
    """Write the base whose parts are in the folder.

    Raises InputError unless they are all there, and of the same step.
    """
    files = sorted(folder.glob("part-*.safetensors"))
    tensors: dict[str, Tensor] = {}
    about: list[dict] = []
    for file in files:
        some, metadata = read_tensors(file)
        tensors |= some
        about.append({name: metadata.pop(name, None) for name in ("part", "parts", "step")})
    steps = {of["step"] for of in about}
    numbers = [of["part"] for of in about]
    if not files or len(steps) > 1 or numbers != [*range(about[0]["parts"])]:
        raise InputError(f"--join: {folder} does not have all parts of one save")
    make_folder("--out", out.parent)
    write_tensors(out, tensors, metadata)
    print(f"{out}: step {steps.pop()}")


# ------------------------------------------------------------------------------------ the flags


def run(args: argparse.Namespace, end: float, work: str) -> None:
    given = {"part": "base", "out": work, "steps": 10**9}  # steps beyond any end: time decides
    for name in "base", "batch_size", "lr", "scenes", "size", "seed", "device", "dtype":
        if getattr(args, name) is not None:
            given[name] = getattr(args, name)
    settings = resolve_part(given)
    machine.allow_tf32(settings.device)
    if args.latents:
        settings = with_latents(settings, args.latents)
    with (
        mock.patch.object(nano_train, "DataLoader", all_processors),
        mock.patch.object(StableDiffusion, "tokenize", tokenize_once),
    ):
        part = nano_train.base_part(settings)
        make_folder("--out", args.out)
        steps = train_until(settings, part, end - FOR_THE_END * 60 * args.minutes, args.out)
        rows, numbers = part.look(SHEET)
        save_picture(grid(rows), args.out / "sheet.png")
    log(args.out, step=steps, **numbers)


def main() -> None:
    began = time.monotonic()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=absolute, help="a base with a trained VAE")
    parser.add_argument("--minutes", type=positive, default=9.0, help="default: 9")
    parser.add_argument("--out", type=Path, required=True, help="a folder; with --join a file")
    parser.add_argument("--latents", type=Path, help="of an earlier run (default: drawn now)")
    parser.add_argument("--batch-size", type=at_least(1), default=256, help="default: 256")
    parser.add_argument("--lr", type=positive, help="at its highest (default: nano.train's)")
    parser.add_argument("--scenes", type=at_least(1), help="to draw (default: nano.train's)")
    parser.add_argument("--size", type=int, help="of a picture (default: the base's)")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--device", type=device)
    parser.add_argument("--dtype", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--join", type=Path, metavar="DIR", help="put the parts together")
    args = parser.parse_args()
    with one_sentence("train_base.py", "use a smaller --batch-size"):
        if args.join:
            join(args.join, args.out)
        else:
            with tempfile.TemporaryDirectory() as work:
                run(args, began + 60 * args.minutes, work)


if __name__ == "__main__":
    main()
