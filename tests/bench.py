"""How fast and how large: on this machine, beside diffusers, in turns.

    pip install -e ".[bench]"  # brings diffusers; without it the rows beside it are left out
    python tests/bench.py [--size 256] [--rounds 2] [--only training sampling ...]
    python tests/bench.py --only training sampling --minutes 10  # a short visit to a GPU
    python tests/bench.py --only training sampling --eager --batches 4 --rounds 1  # a shorter one

Everything is of Stable Diffusion 1's size, with random weights unless --base and --control name
files. Each contender runs in a process of its own, so that its peak memory is known; the contenders
of a section take turns, `rounds` times. Printed are medians; they are in --out after every process.
On a GPU training is in bf16, with batches doubled until memory is full (128 at most), and sampling
in bf16; on a CPU all is float32 and of one picture. With --minutes there is one round, training on
a GPU has two batches (the paper's 4, and the largest that fits), and what is not reached in time is
left out. It takes 20 GB of free disk and, on a CPU, 16 GB of memory (fine-tuning the base alone).
A CPU without instructions for bf16 takes minutes for a step in it: leave out settings and memory.

The C library keeps freed memory for our side, as our scripts have it; rows "memory kept" are
diffusers' with the same setting, which is not its own.

| section  | what                                                                                |
|----------|-------------------------------------------------------------------------------------|
| load     | base and ControlNet from files in the page cache, and a sampling step at 64 pixels   |
| sampling | a guided pair with control, and the whole picture: 20 steps and the decoder          |
| training | a ControlNet step; the same that encodes pictures and prompts; fine-tuning the base  |
| settings | a training step by setting                                                           |
| memory   | what a step of 512 pixels keeps on the device, by setting: tensors are counted       |
| nano     | the two commands of the README                                                       |
"""

import argparse
import gc
import itertools
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))  # where train.py is

import train
from nanocontrol import (
    DDIM,
    DDPM,
    VAE,
    ControlNet,
    StableDiffusion,
    UNet,
    load_control,
    load_sd,
    sample,
    save_control,
    save_sd,
)
from nanocontrol.clip import CLIPTextEncoder
from nanocontrol.plumbing import machine
from nanocontrol.plumbing.flags import at_least, device, multiple_of_64
from nanocontrol.training.loader import Batch, encoded
from nanocontrol.training.optimizer import PRECISIONS, Optimizer
from nanocontrol.training.processes import Processes

SECTIONS = ["load", "sampling", "training", "settings", "memory", "nano"]
SETTINGS = [
    "--dtype fp32",
    "--dtype fp32 --low-memory",
    "--dtype bf16 --no-cache",
    "--dtype bf16",
    "--dtype bf16 --low-memory",
]
PROMPT = "a pale golden circle"
TIMED = 3  # training steps in a process, after two that are not timed


# ------------------------------------------------------------------------------ contenders
# Each is given the arguments and returns what one step is, to be called again and again.


def settings_of(args: argparse.Namespace, *flags: str) -> train.Settings:
    common = ["--base", args.base, "--device", args.device, "--batch-size", str(args.batch)]
    common += ["--no-compile"] if args.eager else []
    settings, *_ = train.parse([*common, "--out", str(args.folder / "run"), *flags])
    return settings


def dtype_of(args: argparse.Namespace) -> torch.dtype:
    """What sampling, and whatever is locked in training, works in."""
    return PRECISIONS[machine.default_dtype(args.device)]


def channels_last(args: argparse.Namespace, *networks: nn.Module) -> None:
    """On a GPU convolutions are fastest so."""
    for network in networks if machine.is_gpu(args.device) else ():
        network.to(memory_format=torch.channels_last)


def inputs(args: argparse.Namespace) -> dict[str, Tensor]:
    n, size = args.batch, args.size
    latent = (n, 4, size // 8, size // 8)
    return {
        "x": torch.randn(latent),
        "noise": torch.randn(latent),
        "t": torch.randint(1000, (n,)),
        "context": torch.randn(n, 77, 768),
        "hint": torch.rand(n, 3, size, size),
        "image": torch.rand(n, 3, size, size) * 2 - 1,
    }


class Training:
    """What train.py sets up for a run with these flags, in one process, and its step."""

    def __init__(self, args: argparse.Namespace, *flags: str):
        self.settings = settings = settings_of(args, *flags)
        self.processes = Processes(settings.device)
        self.sd, self.control, trained = train.models(settings)
        self.optimizer = train.optimizer_for(settings, trained)
        self.diffusion = DDPM(self.sd.prediction)
        with torch.no_grad():
            self.empty = self.sd.encode_prompts("")
        networks = self.sd.unet, self.control
        self.networks = [train.compiled(settings, network) for network in networks]
        if settings.cache:
            self.sd.vae.cpu(), self.sd.text_encoder.cpu()

    def batches(self, args: argparse.Namespace) -> Iterator[Batch]:
        """One batch again and again, of args.size; it is read or encoded anew every time."""
        given, dtype = inputs(args), next(self.sd.vae.parameters()).dtype
        if self.settings.cache:
            mean, context = (given[k].to(dtype) for k in ("x", "context"))
            column = mean, torch.full_like(mean, 0.1), context, given["hint"]
        else:
            column = given["image"], given["hint"], [PROMPT] * args.batch
        if machine.is_gpu(args.device):  # as train.py's loader does
            column = tuple(x.pin_memory() if isinstance(x, Tensor) else x for x in column)
        return encoded(self.sd, itertools.repeat(column), args.device)

    def loss(self, batches: Iterator[Batch], draws: train.Draws) -> Tensor:
        """Of one pass."""
        given = self.sd.scale_factor, next(batches), draws, self.empty
        return train.training_loss(*self.networks, self.diffusion, *given)

    def draws(self, size: int) -> train.Draws:
        n = self.settings.batch_size * self.settings.accumulate
        return train.random_draws(self.settings.seed, 0, n, (size, size), self.settings.drop_prompt)

    def step(self, batches: Iterator[Batch], size: int) -> Tensor:
        """As in the loop of train.py, of which it is always the first."""
        settings, passes = self.settings, self.settings.accumulate
        lr = train.learning_rate(settings.lr, settings.schedule, 0, settings.steps)
        self.optimizer.set_lr(lr)
        draws, total = self.draws(size), torch.zeros((), device=settings.device)
        for i in range(passes):
            loss = self.loss(batches, draws.of(self.processes.share(i, settings.batch_size)))
            self.optimizer.backward(loss / passes)
            total += loss.detach() / passes
        return self.optimizer.step(self.processes.mean(total))


def ours(args: argparse.Namespace, *flags: str) -> Callable[[], object]:
    """train.py's own step."""
    training = Training(args, *flags)
    return partial(training.step, training.batches(args), args.size)


def fine_tuning(args: argparse.Namespace) -> Callable[[], object]:
    """Stable Diffusion itself, all weights of the U-Net, without a ControlNet, by our means."""
    settings, given = settings_of(args), inputs(args)
    sd = load_sd(args.base)
    sd.unet.requires_grad_(True)
    channels_last(args, sd.unet)
    optimizer = Optimizer({"unet": sd.unet}, settings.lr, args.device, settings.dtype)
    diffusion, dtype = DDPM(sd.prediction), next(sd.unet.parameters()).dtype
    x, noise, context = (given[k].to(args.device) for k in ("x", "noise", "context"))
    unet, t = train.compiled(settings, sd.unet), given["t"]

    def step() -> None:
        x_t, target = diffusion.add_noise(x, noise, t), diffusion.target(x, noise, t)
        output = unet(x_t.to(dtype), machine.to_device(t, args.device), context.to(dtype))
        loss = F.mse_loss(output.float(), target)
        optimizer.backward(loss)
        optimizer.step(loss.detach())

    return step


def our_picture(args: argparse.Namespace) -> Callable[[], object]:
    machine.for_sampling()  # as sample.py does, with the rest
    sd = load_sd(args.base, args.device, dtype_of(args))
    control = load_control(args.control, sd.unet)
    channels_last(args, sd.unet, sd.vae, control)
    if dtype_of(args) is torch.float16:
        sd.vae.float()
    given = inputs(args)
    with torch.no_grad():
        context, uncond = sd.encode_prompts(PROMPT), sd.encode_prompts("")

    @torch.no_grad()
    def picture(steps: int = 1) -> None:
        controls = [(control, given["hint"], 1.0)]
        sd.decode(sample(sd, given["noise"], context, uncond, controls, steps))

    picture.forget = machine.forget_recorded  # type: ignore[attr-defined]
    return picture


def load_and_step(args: argparse.Namespace) -> None:
    sd = load_sd(args.base, args.device)
    control = load_control(args.control, sd.unet)
    with torch.no_grad():
        context, uncond = sd.encode_prompts(PROMPT), sd.encode_prompts("")
    controls = [(control, torch.rand(1, 3, 64, 64), 1.0)]
    sample(sd, torch.randn(1, 4, 8, 8), context, uncond, controls, steps=1)


# ------------------------------------------------------------------------------- diffusers'


def random_weights(network: nn.Module) -> nn.Module:
    """Of a network without memory: small and quickly made."""
    network.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.uniform_(-0.02, 0.02)
    return network


def diffusers_networks(args: argparse.Namespace) -> tuple[nn.Module, nn.Module]:
    """diffusers' U-Net and ControlNet; on a GPU channels last, and compiled by who calls it."""
    from diffusers import ControlNetModel, UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
        control = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    unet, control = random_weights(unet).requires_grad_(False), random_weights(control)
    unet.to(args.device, dtype_of(args))
    control.to(args.device)
    channels_last(args, unet, control)
    return unet, control


def diffusers_encoders(args: argparse.Namespace) -> tuple[nn.Module, nn.Module]:
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        vae = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=[128, 256, 512, 512],
            layers_per_block=2,
        )
    text = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12
        )
    )
    vae = random_weights(vae).to(args.device, dtype_of(args))
    channels_last(args, vae)
    return vae, text.to(args.device, dtype_of(args))


def diffusers_output(
    unet: nn.Module, control: nn.Module, x: Tensor, t: Tensor, context: Tensor, hint: Tensor
) -> Tensor:
    """What the U-Net makes of x under control, in float32."""
    common = {"encoder_hidden_states": context, "return_dict": False}
    down, middle = control(x, t, controlnet_cond=hint, **common)
    residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
    return unet(x, t, **residuals, **common)[0].float()


def diffusers_step(args: argparse.Namespace, encoding: bool = False) -> Callable[[], object]:
    unet, control = diffusers_networks(args)
    gpu = machine.is_gpu(args.device)
    optimizer = torch.optim.AdamW(control.parameters(), 1e-5, fused=True)
    given = {name: value.to(args.device) for name, value in inputs(args).items()}
    if encoding:
        vae, text = diffusers_encoders(args)
        tokens = torch.randint(49406, (args.batch, 77), device=args.device)
    if gpu and not args.eager:
        unet, control = torch.compile(unet), torch.compile(control)

    def step() -> None:
        x, context = given["x"], given["context"]
        with torch.autocast("cuda" if gpu else "cpu", torch.bfloat16, gpu):
            if encoding:
                with torch.no_grad():
                    x = 0.18215 * vae.encode(given["image"].to(vae.dtype)).latent_dist.sample()
                    context = text(tokens)[0]
            x = 0.7 * x + 0.7 * given["noise"]
            output = diffusers_output(unet, control, x, given["t"], context, given["hint"])
            loss = F.mse_loss(output, given["noise"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def diffusers_picture(args: argparse.Namespace) -> Callable[[], object]:
    unet, control = diffusers_networks(args)
    vae, _ = diffusers_encoders(args)
    dtype = dtype_of(args)
    control.to(dtype)
    given = {name: value.to(args.device) for name, value in inputs(args).items()}
    if machine.is_gpu(args.device) and not args.eager:
        unet = torch.compile(unet, mode="reduce-overhead")
        control = torch.compile(control, mode="reduce-overhead")
    context, hint = (torch.cat([given[k]] * 2).to(dtype) for k in ("context", "hint"))
    scheduler = DDIM()

    @torch.no_grad()
    def picture(steps: int = 1) -> None:
        x, timesteps = given["noise"], scheduler.timesteps(steps)
        pairs_of_t = torch.tensor(timesteps, device=x.device)[:, None].expand(-1, 2)
        for i, (t, previous) in enumerate(zip(timesteps, [*timesteps[1:], None])):
            x_in = torch.cat([x] * 2).to(dtype)
            torch.compiler.cudagraph_mark_step_begin()
            output = diffusers_output(unet, control, x_in, pairs_of_t[i], context, hint)
            without, with_prompt = output.chunk(2)
            x = scheduler.step(x, without + 9 * (with_prompt - without), t, previous, 0.0)
        vae.decode((x / 0.18215).to(dtype))

    return picture


CONTENDERS = {
    "training": {
        "ours": ours,
        "diffusers' networks": diffusers_step,
        "diffusers' networks, memory kept": diffusers_step,
        "ours, encoding": lambda args: ours(args, "--no-cache"),
        "diffusers, encoding": partial(diffusers_step, encoding=True),
        "diffusers, encoding, memory kept": partial(diffusers_step, encoding=True),
        "fine-tuning": fine_tuning,
    },
    "sampling": {
        "ours": our_picture,
        "diffusers": diffusers_picture,
        "diffusers, memory kept": diffusers_picture,
    },
}


# --------------------------------------------------------------------------- in one process


def seconds(args: argparse.Namespace, call: Callable[[], object]) -> float:
    finish_queue(args)
    began = time.perf_counter()
    call()
    finish_queue(args)
    return time.perf_counter() - began


def finish_queue(args: argparse.Namespace) -> None:
    if machine.is_gpu(args.device):
        torch.cuda.synchronize()


def matrix_rate(args: argparse.Namespace) -> float:
    """FLOP a second of a large matrix product, in the precision of the work."""
    n = 8192 if machine.is_gpu(args.device) else 2048
    a = torch.randn(n, n, device=args.device, dtype=dtype_of(args))
    times = [seconds(args, lambda: a @ a) for _ in range(8)][2:]
    return 2 * n**3 / median(times)


def measure(args: argparse.Namespace, section: str, name: str) -> dict:
    """What a process of its own says of one contender."""
    if section == "load":
        return {"step": [seconds(args, lambda: load_and_step(args))]}
    if "diffusers" not in name or "memory kept" in name:
        machine.keep_freed_memory()  # as train.py and sample.py do
    if section == "memory":
        return counted_memory(args, name.split())
    if section == "sampling":
        return measure_sampling(args, CONTENDERS[section][name](args))
    machine.allow_tf32(args.device)  # as train.py does; for diffusers, too
    if section == "settings":
        call = ours(args, "--accumulate", "1", *name.split())
        call()
        return {"step": [seconds(args, call), seconds(args, call)], "peak": peak_memory(args)}
    return measure_training(args, CONTENDERS[section][name](args))


def measure_training(args: argparse.Namespace, step: Callable[[], object]) -> dict:
    rate = matrix_rate(args)
    step(), step()
    times = [seconds(args, step) for _ in range(TIMED)]
    numbers = {"rate": rate, "step": times, "peak": peak_memory(args)}
    with suppress(torch.cuda.OutOfMemoryError):  # to be counted, compiled code runs uncompiled
        numbers["flop"] = flop(step)
    return numbers


def measure_sampling(args: argparse.Namespace, picture: Callable[..., object]) -> dict:
    rate = matrix_rate(args)
    picture(3)
    few, many = (seconds(args, partial(picture, steps)) for steps in (3, 20))
    numbers = {"rate": rate, "step": [(many - few) / 17], "picture": many}
    numbers["peak"] = peak_memory(args)
    counted = []
    for steps in 1, 2:
        getattr(picture, "forget", int)()  # what is replayed could not be counted
        counted.append(flop(partial(picture, steps)))
    return numbers | {"flop": counted[1] - counted[0]}


def peak_memory(args: argparse.Namespace) -> int:
    if machine.is_gpu(args.device):
        return torch.cuda.max_memory_reserved()
    kilo = 1 if sys.platform == "darwin" else 1024
    return kilo * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def flop(call: Callable[[], object]) -> int:
    """Of matrix products, convolutions and attention."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def counted_memory(args: argparse.Namespace, flags: list[str]) -> dict:
    """Bytes of tensors that a device holds in a training step, in passes of one pair. held: always,
    which is the networks' weights and, unless they are in the CPU's memory, AdamW's moments.
    tensors: at the peak of the step's last pass, which is what is held, the gradients that earlier
    passes have left, and what this pass allocates. Counted on the CPU."""
    args.batch, args.size, args.device = 1, 64, "cpu"
    training = Training(args, "--no-compile", *flags)
    optimizer, small = training.optimizer, training.batches(args)
    training.step(small, args.size)  # a small one: afterwards AdamW's moments are there
    if training.settings.accumulate > 1:
        optimizer.backward(training.loss(small, training.draws(args.size).of(slice(1))))

    networks = [training.sd.unet, training.control]
    if not training.settings.cache:
        networks += [training.sd.vae, training.sd.text_encoder]
    weights = [parameter for network in networks for parameter in network.parameters()]
    moments = [x for state in optimizer.adamw.state.values() for x in state.values()]
    held = bytes_of(weights)
    if not training.settings.low_memory or training.settings.dtype == "fp32":
        held += bytes_of(moments)
        if training.settings.dtype != "fp32":
            held += bytes_of(optimizer.weights)
    gradients = bytes_of(p.grad for p in weights if p.grad is not None)

    args.size = 512
    batches, draws = training.batches(args), training.draws(args.size).of(slice(1))
    gc.collect()
    with profile(profile_memory=True) as profiler:
        # Not optimizer.backward: gradients that it moves to the CPU's memory leave the device.
        training.loss(batches, draws).backward()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    allocated = max(itertools.accumulate(n for _, n in changes))
    return {"held": held, "tensors": held + gradients + allocated}


def bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


# --------------------------------------------------------------------------- all processes


def in_a_process(args: argparse.Namespace, section: str, name: str) -> dict | None:
    """Its numbers, or None if it ran out of memory or time."""
    given = vars(args) | {"section": section, "name": name}
    command = [sys.executable, __file__, "--worker", json.dumps(given, default=str)]
    left = args.deadline - time.monotonic() if args.deadline else None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=left)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        if "OutOfMemory" in done.stderr or done.returncode == -9:  # killed for memory
            return None
        sys.exit(f"bench: {section}, {name}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def in_turns(args: argparse.Namespace, section: str, names: list[str]) -> Iterator[dict]:
    """After each process, medians over the rounds of what every contender has said."""
    said: dict[str, list[dict]] = {name: [] for name in names}
    # (Memory is counted, not timed: it is the same in every round.)
    turns = [name for _ in range(1 if section == "memory" else args.rounds) for name in names]
    for name in tqdm(turns, f"{section}, batch {args.batch}"):
        if args.deadline and time.monotonic() > args.deadline:
            break
        if (numbers := in_a_process(args, section, name)) is not None:
            said[name].append(numbers)
        yield {name: medians(numbers) for name, numbers in said.items() if numbers}


def medians(rounds: list[dict]) -> dict:
    keys = dict.fromkeys(key for numbers in rounds for key in numbers)
    lists = {key: [numbers[key] for numbers in rounds if key in numbers] for key in keys}
    lists["step"] = list(itertools.chain(*lists.get("step", [])))
    return {key: median(values) for key, values in lists.items() if values}


def diffusers_is_here() -> bool:
    return bool(find_spec("diffusers") and find_spec("transformers"))


def numbers_of(args: argparse.Namespace, section: str) -> Iterator[dict]:
    """A section's numbers, more and more of them."""
    if section == "nano":
        numbers: dict = {}
        for script in "sample", "train":
            numbers[script] = seconds(args, partial(run_nano, args, script))
            yield numbers
        return
    kept = " memory kept" if machine.is_gpu(args.device) else "none"  # a CPU's affair
    names = {"load": ["ours"], "settings": SETTINGS, "memory": SETTINGS} | {
        section: [
            name
            for name in contenders
            if (diffusers_is_here() or "diffusers" not in name) and kept not in name
        ]
        for section, contenders in CONTENDERS.items()
    }
    if section != "training":
        yield from in_turns(args, section, names[section])
        return
    batches: dict = {}
    for n in batches_to_measure(args):
        args.batch, numbers = n, {}
        for numbers in in_turns(args, section, names[section]):
            yield batches | {n: numbers}
        if not numbers:
            break
        batches[n] = numbers
    args.batch = 1


def batches_to_measure(args: argparse.Namespace) -> list[int]:
    """--batches, or all powers of 2 on a GPU, or with --minutes 4 and the largest that will fit."""
    if args.batches or not machine.is_gpu(args.device):
        return args.batches or [1]
    powers = [2**i for i in range(8)]
    if not args.deadline:
        return powers
    peaks = []
    for n in 4, 8:
        args.batch = n
        peaks.append((in_a_process(args, "settings", "--no-compile") or {}).get("peak"))
    if None in peaks:
        return [4]
    each = max(1, (peaks[1] - peaks[0]) / 4)  # bytes of one more pair
    room = 0.9 * torch.cuda.get_device_properties(0).total_memory - (peaks[0] - 4 * each)
    return [4, max(n for n in powers if n == 4 or n * each < room)]


def run_nano(args: argparse.Namespace, script: str) -> None:
    program = Path(__file__).resolve().parents[1] / f"{script}.py"
    command = [sys.executable, program, "--device", args.device]
    subprocess.run(command, cwd=args.folder, check=True, capture_output=True)


def report(args: argparse.Namespace, found: dict) -> None:
    if found.get("load"):
        print(f"\nload and one step of 64 pixels: {found['load']['ours']['step']:.2f} s")
    if "sampling" in found:
        table(f"sampling at {args.size} pixels, seconds", found["sampling"], "diffusers")
    for batch, contenders in found.get("training", {}).items():
        table(f"training at {args.size} pixels, batch {batch}, seconds", contenders, "ours")
        if "ours" in contenders:
            print(f"{int(batch) / contenders['ours']['step']:.3g} pictures a second")
    if "settings" in found:
        print(f"\n| {args.size} pixels, passes of one pair | seconds | GB at the peak |")
        print("|---|---|---|")
        for flags, numbers in found["settings"].items():
            print(f"| `{flags}` | {numbers['step']:.2f} | {numbers['peak'] / 1e9:.1f} |")
    if "memory" in found:
        print("\n| 512 pixels, one pair | GB of tensors at the peak | of these always there |")
        print("|---|---|---|")
        for flags, numbers in found["memory"].items():
            print(f"| `{flags}` | {numbers['tensors'] / 1e9:.1f} | {numbers['held'] / 1e9:.1f} |")
    for script, took in found.get("nano", {}).items():
        print(f"\n`python {script}.py`, all included: {took:.1f} s")


def table(title: str, contenders: dict[str, dict], reference: str) -> None:
    print(f"\n{title}\n")
    print(f"| contender | step | by {reference} | picture | GB at peak | TFLOP | matrix rate |")
    print("|---|---|---|---|---|---|---|")
    base = contenders.get(reference, {}).get("step")
    for name, n in contenders.items():
        ratio = f"{n['step'] / base:.2f}" if base else ""
        picture = f"{n['picture']:.2f}" if "picture" in n else ""
        flop, rate = n.get("flop", 0), n["rate"]
        share = f"{flop / n['step'] / rate:.0%} of {rate / 1e12:.3g} TFLOP/s" if flop else ""
        print(
            f"| {name} | {n['step']:.3g} | {ratio} | {picture} | {n['peak'] / 1e9:.2f} "
            f"| {flop / 1e12:.3f} | {share} |"
        )


def random_files(args: argparse.Namespace) -> None:
    """A base model and a ControlNet of Stable Diffusion 1's size, where none are given."""
    with torch.device("meta"):
        networks = UNet(), VAE(), CLIPTextEncoder(), ControlNet()
    if args.base is None:
        unet, vae, text = map(random_weights, networks[:3])
        args.base = str(args.folder / "base.safetensors")
        save_sd(StableDiffusion(unet, vae, text, "eps"), args.base)
    if args.control is None:
        args.control = str(args.folder / "control.safetensors")
        save_control(random_weights(networks[3]), args.control)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--base", help="a Stable Diffusion 1 file (default: random weights)")
    parser.add_argument("--control", help="a ControlNet for it (default: random weights)")
    parser.add_argument("--device", type=device, default=machine.default_device())
    parser.add_argument("--size", type=multiple_of_64, help="default: 512 on a GPU, else 256")
    parser.add_argument("--rounds", type=at_least(1), default=2, help="default: 2")
    count = at_least(1)
    parser.add_argument("--batches", type=count, nargs="+", help="pairs in a training step")
    parser.add_argument("--minutes", type=count, help="stop then (default: when all is measured)")
    parser.add_argument("--eager", action="store_true", help="on a GPU: compile nothing")
    parser.add_argument("--out", default="bench.json", help="default: bench.json")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.worker:
        given = argparse.Namespace(**json.loads(args.worker))
        given.folder, given.deadline = Path(given.folder), None
        print(json.dumps(measure(given, given.section, given.name)))
        return
    gpu = machine.is_gpu(args.device)
    args.size, args.batch = args.size or (512 if gpu else 256), 1
    args.deadline = time.monotonic() + 60 * args.minutes if args.minutes else None
    args.rounds = 1 if args.minutes else args.rounds
    found: dict = {"machine": this_machine(gpu)}
    if not diffusers_is_here():
        print('diffusers is not here: pip install -e ".[bench]" brings it', file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        args.folder = Path(folder)
        random_files(args)
        gc.collect()
        for section in [name for name in SECTIONS if name in args.only]:
            for numbers in numbers_of(args, section):
                found[section] = numbers
                Path(args.out).write_text(json.dumps(found, indent=2) + "\n")
    report(args, found)
    print(f"\n{found['machine']}")


def this_machine(gpu: bool) -> str:
    name = torch.cuda.get_device_name() if gpu else f"{os.cpu_count()} CPUs, {platform.machine()}"
    return f"{name}; {platform.system()}; PyTorch {torch.__version__}"


if __name__ == "__main__":
    main()
