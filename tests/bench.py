"""How fast and how large: on this machine, beside diffusers, in turns.

    pip install -e ".[bench]"  # brings diffusers; without it the rows beside it are left out
    python tests/bench.py [--size 256] [--rounds 2] [--only training sampling ...]

Everything is of Stable Diffusion 1's size, with random weights unless --base and --control name
files. Each contender runs in a process of its own, so that its peak memory is known; the contenders
of a section take turns, `rounds` times. Printed are medians. On a GPU training is in bf16, with
batches doubled until memory is full, and sampling in bf16; on a CPU all is float32 and of one
picture. It takes 20 GB of free disk and, on a CPU, 16 GB of memory (fine-tuning the base alone).

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
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
import train  # noqa: E402
from nanocontrol import (
    DDIM,
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
from nanocontrol.plumbing.flags import at_least, device, multiple_of_64
from nanocontrol.plumbing.machine import default_device, keep_freed_memory

TIMED = 3  # training steps in a process, after two that are not timed


# ------------------------------------------------------------------------------ contenders
# Each is given the arguments and returns what one step is, to be called again and again.


def settings(args: argparse.Namespace, *more: str) -> argparse.Namespace:
    flags = ["--base", args.base, "--device", args.device, "--batch-size", str(args.batch)]
    return train.parse([*flags, "--out", str(args.folder / "run"), *more])


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


def ours(args: argparse.Namespace, *more: str, cached: bool = True) -> Callable[[], object]:
    """train.py's own step."""
    given = inputs(args)
    training = train.Training(settings(args, *more), train.Team())
    if cached:
        for network in (training.sd.vae, training.sd.text_encoder):
            network.cpu()
        x = given["x"]
        batch = x, torch.full_like(x, 0.1), given["context"], given["hint"]
    else:
        batch = given["image"], given["hint"], ["a pale golden circle"] * args.batch
    if args.device.startswith("cuda"):  # as the loader of train.py does
        batch = [x.pin_memory() if isinstance(x, Tensor) else x for x in batch]
    batches = itertools.repeat(batch)
    return lambda: training.step(0, batches, args.size, args.size)


def ours_encoding(args: argparse.Namespace) -> Callable[[], object]:
    return ours(args, cached=False)


def fine_tuning(args: argparse.Namespace) -> Callable[[], object]:
    """Stable Diffusion itself, all weights of the U-Net, by the same means."""
    own, given = settings(args), inputs(args)
    sd = load_sd(args.base, args.device)
    sd.unet.requires_grad_(True)
    if train.on_gpu(own):
        sd.unet.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(sd.unet.parameters(), 1e-5, fused=True)
    x, noise, context = (given[k].to(args.device) for k in ("x", "noise", "context"))
    unet = torch.compile(sd.unet) if own.compile else sd.unet
    sd = StableDiffusion(unet, sd.vae.cpu(), sd.text_encoder.cpu(), sd.prediction)

    def step() -> None:
        with train.precision(own):
            loss = train.diffusion_loss(sd, None, x, given["hint"], context, noise, given["t"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def random_weights(network: nn.Module) -> nn.Module:
    """Of a network without memory: small and quickly made."""
    network.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.uniform_(-0.02, 0.02)
    return network


def diffusers_networks(args: argparse.Namespace) -> tuple[nn.Module, nn.Module]:
    """diffusers' U-Net and ControlNet, at their best settings."""
    from diffusers import ControlNetModel, UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
        control = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    unet, control = random_weights(unet).requires_grad_(False), random_weights(control)
    gpu = args.device.startswith("cuda")
    unet.to(args.device, torch.bfloat16 if gpu else torch.float32)
    control.to(args.device)
    if gpu:
        unet.to(memory_format=torch.channels_last)
        control.to(memory_format=torch.channels_last)
    return unet, control


def diffusers_step(args: argparse.Namespace, encoding: bool = False) -> Callable[[], object]:
    unet, control = diffusers_networks(args)
    gpu = args.device.startswith("cuda")
    optimizer = torch.optim.AdamW(control.parameters(), 1e-5, fused=True)
    given = {name: value.to(args.device) for name, value in inputs(args).items()}
    if encoding:
        vae, text = diffusers_encoders(args)
        tokens = torch.randint(49406, (args.batch, 77), device=args.device)
    if gpu:
        unet, control = torch.compile(unet), torch.compile(control)

    def step() -> None:
        x, context = given["x"], given["context"]
        with torch.autocast("cuda" if gpu else "cpu", torch.bfloat16, gpu):
            if encoding:
                with torch.no_grad():
                    x = 0.18215 * vae.encode(given["image"].to(vae.dtype)).latent_dist.sample()
                    context = text(tokens)[0]
            x = 0.7 * x + 0.7 * given["noise"]
            down, middle = control(
                x,
                given["t"],
                encoder_hidden_states=context,
                controlnet_cond=given["hint"],
                return_dict=False,
            )
            output = unet(
                x,
                given["t"],
                encoder_hidden_states=context,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
                return_dict=False,
            )[0]
            loss = F.mse_loss(output.float(), given["noise"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def diffusers_encoding(args: argparse.Namespace) -> Callable[[], object]:
    return diffusers_step(args, encoding=True)


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
    half = torch.bfloat16 if args.device.startswith("cuda") else torch.float32
    vae = random_weights(vae).to(args.device, half)
    if args.device.startswith("cuda"):
        vae.to(memory_format=torch.channels_last)
    return vae, text.to(args.device, half)


def our_picture(args: argparse.Namespace) -> Callable[[], object]:
    half = torch.bfloat16 if args.device.startswith("cuda") else torch.float32
    sd = load_sd(args.base, args.device, half)
    control = load_control(args.control, sd.unet)
    if args.device.startswith("cuda"):  # as sample.py does
        for network in (sd.unet, sd.vae, control):
            network.to(memory_format=torch.channels_last)
    given = inputs(args)
    with torch.no_grad():
        context, uncond = sd.encode_prompts("a pale golden circle"), sd.encode_prompts("")

    @torch.no_grad()
    def picture(steps: int = 1) -> None:
        controls = [(control, given["hint"], 1.0)]
        x = sample(sd, given["noise"], context, uncond, controls, steps)
        sd.vae.decode((x / sd.scale_factor).to(half))

    return picture


def diffusers_picture(args: argparse.Namespace) -> Callable[[], object]:
    unet, control = diffusers_networks(args)
    vae, _ = diffusers_encoders(args)
    gpu = args.device.startswith("cuda")
    half = torch.bfloat16 if gpu else torch.float32
    control.to(half)
    given = {name: value.to(args.device) for name, value in inputs(args).items()}
    if gpu:
        unet = torch.compile(unet, mode="reduce-overhead")
        control = torch.compile(control, mode="reduce-overhead")
    twice = {k: torch.cat([given[k]] * 2).to(half) for k in ("context", "hint")}
    scheduler = DDIM()

    @torch.no_grad()
    def picture(steps: int = 1) -> None:
        x, timesteps = given["noise"], scheduler.timesteps(steps)
        pairs_of_t = torch.tensor(timesteps, device=x.device)[:, None].expand(-1, 2)
        for i, (t, previous) in enumerate(zip(timesteps, [*timesteps[1:], None])):
            x_in, t_in = torch.cat([x] * 2).to(half), pairs_of_t[i]
            torch.compiler.cudagraph_mark_step_begin()
            down, middle = control(
                x_in,
                t_in,
                encoder_hidden_states=twice["context"],
                controlnet_cond=twice["hint"],
                return_dict=False,
            )
            output = unet(
                x_in,
                t_in,
                encoder_hidden_states=twice["context"],
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
                return_dict=False,
            )[0].float()
            without, with_prompt = output.chunk(2)
            x = scheduler.step(x, without + 9 * (with_prompt - without), t, previous, 0.0)
        vae.decode((x / 0.18215).to(half))

    return picture


CONTENDERS = {
    "training": {
        "ours": ours,
        "diffusers' networks": diffusers_step,
        "ours, encoding": ours_encoding,
        "diffusers, encoding": diffusers_encoding,
        "fine-tuning": fine_tuning,
    },
    "sampling": {"ours": our_picture, "diffusers": diffusers_picture},
}


# --------------------------------------------------------------------------- in one process


def finish_queue(args: argparse.Namespace) -> None:
    if args.device.startswith("cuda"):
        torch.cuda.synchronize()


def seconds(args: argparse.Namespace, call: Callable[[], object]) -> float:
    finish_queue(args)
    began = time.perf_counter()
    call()
    finish_queue(args)
    return time.perf_counter() - began


def matrix_rate(args: argparse.Namespace) -> float:
    """FLOP a second of a large matrix product, in the precision of the work."""
    gpu = args.device.startswith("cuda")
    n, dtype = (8192, torch.bfloat16) if gpu else (2048, torch.float32)
    a = torch.randn(n, n, device=args.device, dtype=dtype)
    times = [seconds(args, lambda: a @ a) for _ in range(8)][2:]
    return 2 * n**3 / median(times)


def measure(args: argparse.Namespace, section: str, name: str) -> dict:
    """What a process of its own says of one contender."""
    if section == "load":
        return loading(args)
    if "diffusers" not in name:
        keep_freed_memory()  # as train.py and sample.py do
    if section == "memory":
        return counted_memory(args, name.split())
    if section == "settings":
        call = ours(args, "--accumulate", "1", *name.split(), cached="--no-cache" not in name)
        call()
        return {"step": [seconds(args, call), seconds(args, call)], "peak": peak_memory(args)}
    call = CONTENDERS[section][name](args)
    numbers = {"rate": matrix_rate(args)}
    if section == "training":
        call(), call()
        numbers["step"] = [seconds(args, call) for _ in range(TIMED)]
        numbers["peak"] = peak_memory(args)
        numbers["flop"] = flop(call)
    else:
        call(3)
        few, many = seconds(args, lambda: call(3)), seconds(args, lambda: call(20))
        numbers["step"], numbers["picture"] = [(many - few) / 17], many
        numbers["peak"] = peak_memory(args)
        numbers["flop"] = flop(lambda: call(2)) - flop(call)
    return numbers


def peak_memory(args: argparse.Namespace) -> int:
    if args.device.startswith("cuda"):
        return torch.cuda.max_memory_reserved()
    kilo = 1 if sys.platform == "darwin" else 1024
    return kilo * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def flop(call: Callable[[], object]) -> int:
    """Of matrix products, convolutions and attention."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def loading(args: argparse.Namespace) -> dict:
    def load_and_step() -> None:
        sd = load_sd(args.base, args.device)
        control = load_control(args.control, sd.unet)
        with torch.no_grad():
            context, uncond = sd.encode_prompts("a pale golden circle"), sd.encode_prompts("")
        controls = [(control, torch.rand(1, 3, 64, 64), 1.0)]
        sample(sd, torch.randn(1, 4, 8, 8), context, uncond, controls, steps=1)

    return {"step": [seconds(args, load_and_step)]}


def counted_memory(args: argparse.Namespace, flags: list[str]) -> dict:
    """Bytes of tensors that a device holds at the peak of a step of one pair: the networks, AdamW's
    moments if they are there, and what a forward and backward pass allocate. Counted on the CPU."""
    args.batch, args.size, args.device = 1, 512, "cpu"
    own = settings(args, "--no-compile", *flags)
    training, given = train.Training(own, train.Team()), inputs(args)
    x = given["x"]
    batch = x, torch.full_like(x, 0.1), given["context"], given["hint"]
    generator = train.generator_of(0, 0)
    chance = train.draw(generator, 1, 512, 512, 0.5)
    networks = [training.sd.unet, training.control]
    if "--no-cache" in flags:
        networks += [training.sd.vae, training.sd.text_encoder]
        batch = given["image"], given["hint"], ["a pale golden circle"]
    held = sum(p.numel() * p.element_size() for n in networks for p in n.parameters())
    if training.master is None:
        held += sum(8 * p.numel() for p in training.parameters)

    def both_passes() -> None:
        with train.precision(own):
            nets = training.sd, training.control
            loss = train.training_loss(own, *nets, batch, chance, training.empty, 0, generator)
        loss.backward()

    gc.collect()
    with profile(profile_memory=True) as profiler:
        both_passes()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return {"held": held, "tensors": held + max(itertools.accumulate(n for _, n in changes))}


# --------------------------------------------------------------------------- all processes


def in_a_process(args: argparse.Namespace, section: str, name: str) -> dict | None:
    """Its numbers, or None if it ran out of memory."""
    given = vars(args) | {"section": section, "name": name}
    command = [sys.executable, __file__, "--worker", json.dumps(given, default=str)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        if "OutOfMemory" in done.stderr or done.returncode == -9:  # killed for memory
            return None
        sys.exit(f"bench: {section}, {name}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def in_turns(args: argparse.Namespace, section: str, names: list[str]) -> dict[str, dict]:
    """Medians over rounds of what every contender says."""
    said: dict[str, list[dict]] = {name: [] for name in names}
    turns = [(r, name) for r in range(args.rounds) for name in names]
    for _, name in tqdm(turns, f"{section}, batch {args.batch}"):
        if (numbers := in_a_process(args, section, name)) is not None:
            said[name].append(numbers)
    return {name: medians(numbers) for name, numbers in said.items() if numbers}


def medians(rounds: list[dict]) -> dict:
    lists = {key: [numbers[key] for numbers in rounds] for key in rounds[0]}
    lists["step"] = list(itertools.chain(*lists.get("step", [])))
    return {key: median(values) for key, values in lists.items() if values}


def sections(args: argparse.Namespace) -> Iterator[tuple[str, dict]]:
    beside = find_spec("diffusers") and find_spec("transformers")
    if not beside:
        print('diffusers is not here: pip install -e ".[bench]" brings it', file=sys.stderr)
    names = {
        section: [name for name in contenders if beside or "diffusers" not in name]
        for section, contenders in CONTENDERS.items()
    }
    if "load" in args.only:
        yield "load", in_turns(args, "load", ["ours"])
    if "sampling" in args.only:
        yield "sampling", in_turns(args, "sampling", names["sampling"])
    if "training" in args.only:
        gpu = args.device.startswith("cuda")
        batches = {}
        for args.batch in (1, 2, 4, 8, 16, 32, 64, 128) if gpu else (1,):
            if not (batch := in_turns(args, "training", names["training"])):
                break
            batches[args.batch] = batch
        args.batch = 1
        yield "training", batches
    if "settings" in args.only:
        yield "settings", in_turns(args, "settings", SETTINGS)
    if "memory" in args.only:
        yield (
            "memory",
            {flags: in_a_process(args, "memory", flags) for flags in tqdm(SETTINGS, "memory")},
        )
    if "nano" in args.only:
        yield (
            "nano",
            {
                script: seconds(
                    args,
                    lambda: subprocess.run(
                        [sys.executable, ROOT / f"{script}.py", "--device", args.device],
                        cwd=args.folder,
                        check=True,
                        capture_output=True,
                    ),
                )
                for script in ("sample", "train")
            },
        )


SETTINGS = [
    "--dtype fp32",
    "--dtype fp32 --low-memory",
    "--dtype bf16 --no-cache",
    "--dtype bf16",
    "--dtype bf16 --low-memory",
]


def report(args: argparse.Namespace, found: dict) -> None:
    if "load" in found:
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
        share = n["flop"] / n["step"] / n["rate"]
        print(
            f"| {name} | {n['step']:.3g} | {ratio} | {picture} | {n['peak'] / 1e9:.2f} "
            f"| {n['flop'] / 1e12:.3f} | {share:.0%} of {n['rate'] / 1e12:.3g} TFLOP/s |"
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = ["load", "sampling", "training", "settings", "memory", "nano"]
    parser.add_argument("--only", nargs="+", choices=every, default=every)
    parser.add_argument("--base", help="a Stable Diffusion 1 file (default: random weights)")
    parser.add_argument("--control", help="a ControlNet for it (default: random weights)")
    parser.add_argument("--device", type=device, default=default_device())
    parser.add_argument("--size", type=multiple_of_64, help="default: 512 on a GPU, else 256")
    parser.add_argument("--rounds", type=at_least(1), default=2, help="default: 2")
    parser.add_argument("--out", default="bench.json", help="default: bench.json")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        given = argparse.Namespace(**json.loads(args.worker))
        given.folder = Path(given.folder)
        print(json.dumps(measure(given, given.section, given.name)))
        return
    args.size = args.size or (512 if args.device.startswith("cuda") else 256)
    args.batch = 1
    with tempfile.TemporaryDirectory() as folder:
        args.folder = Path(folder)
        random_files(args)
        gc.collect()
        gpu = args.device.startswith("cuda")
        found = {"machine": machine(gpu)}
        for section, numbers in sections(args):
            found[section] = numbers
            Path(args.out).write_text(json.dumps(found, indent=2) + "\n")
    report(args, found)
    print(f"\n{found['machine']}")


def machine(gpu: bool) -> str:
    name = torch.cuda.get_device_name() if gpu else f"{os.cpu_count()} CPUs, {platform.machine()}"
    return f"{name}; {platform.system()}; PyTorch {torch.__version__}"


if __name__ == "__main__":
    main()
