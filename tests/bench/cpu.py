"""A training step and a picture on a CPU, next to diffusers and in turns with it.

    pip install -e ".[bench]"  # diffusers; without it its rows are left out
    python tests/bench/cpu.py [--size 256] [--rounds 2] [--only training sampling ...]

The networks have Stable Diffusion 1's size and random weights, in float32; a step has one pair.
Each contender runs in a process of its own, so that its peak memory is known. The contenders of a
section take turns, because other work slows a shared machine down for minutes. Printed are medians
over the rounds; --out has them after every process. It takes 6 GB of free disk and 16 GB of memory.

Our scripts have the C library keep freed memory. Rows with "memory kept" are diffusers' with the
same setting, which diffusers does not make itself.

| section  | what                                                                                |
|----------|-------------------------------------------------------------------------------------|
| training | a ControlNet step, also one that encodes its pair; fine-tuning the base              |
| sampling | a guided step with control, and the whole picture: 20 steps and the decoder          |
| load     | both files from the page cache, and a sampling step at 64 pixels                     |
| memory   | tensors that a training step of one pair at 512 pixels keeps on the device, by flags |
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
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.profiler import profile
from tqdm import tqdm

from contenders import (
    Contender,
    Job,
    Training,
    arithmetic,
    diffusers_is_here,
    diffusers_picture,
    diffusers_training,
    fine_tuning,
    load_and_step,
    matrix_rate,
    our_picture,
    random_files,
    seconds,
)
from nanocontrol.plumbing import machine
from nanocontrol.plumbing.flags import at_least, multiple_of_64

CONTENDERS: dict[str, dict[str, Callable[[Job], Contender]]] = {
    "training": {
        "ours": Training,
        "ours, encoding": lambda job: Training(job, "--no-cache"),
        "ours, --low-memory": lambda job: Training(job, "--accumulate", "1", "--low-memory"),
        "diffusers' networks": diffusers_training,
        "diffusers' networks, memory kept": diffusers_training,
        "diffusers, encoding": partial(diffusers_training, encoding=True),
        "diffusers, encoding, memory kept": partial(diffusers_training, encoding=True),
        "fine-tuning the base": fine_tuning,
    },
    "sampling": {
        "ours": our_picture,
        "diffusers": diffusers_picture,
        "diffusers, memory kept": diffusers_picture,
    },
    "load": {"ours": load_and_step},
}
MEMORY = [
    "--dtype fp32",
    "--dtype fp32 --low-memory",
    "--dtype bf16 --no-cache",
    "--dtype bf16",
    "--dtype bf16 --low-memory",
]
TIMED = 3  # training steps in a process, after two that are not timed


# ------------------------------------------------------------------------- in one process


def measure(job: Job, section: str, name: str) -> dict:
    """The numbers of one contender, measured in a process of its own."""
    if "diffusers" not in name or "memory kept" in name:
        machine.keep_freed_memory()  # as train.py and sample.py do
    if section == "memory":
        return counted_memory(job, name.split())
    call = CONTENDERS[section][name](job)(1)
    if section == "load":
        return {"step": seconds(job, call)}
    numbers = {"rate": matrix_rate(job)}
    if section == "sampling":
        call(steps=3)
        few, many = (seconds(job, partial(call, steps=steps)) for steps in (3, 20))
        numbers |= {"step": (many - few) / 17, "picture": many}
    else:
        call(), call()
        numbers["step"] = median(seconds(job, call) for _ in range(TIMED))
    return numbers | {"peak": peak_memory()}


def peak_memory() -> int:
    """Bytes."""
    kilo = 1 if sys.platform == "darwin" else 1024
    return kilo * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def counted_memory(job: Job, flags: list[str]) -> dict:
    """Bytes of tensors that a device holds in a training step of one pair. held: always, which is
    the networks' weights and, unless they are in the CPU's memory, AdamW's moments and the exact
    weights. tensors: at the peak of the step, which is what is held and what it allocates."""
    job.size = 64
    training = Training(job, *flags)
    optimizer, settings = training.optimizer, training.settings
    training(1)()  # a small step: afterwards AdamW's moments are there

    networks = [training.sd.unet, training.control]
    if not settings.cache:
        networks += [training.sd.vae, training.sd.text_encoder]
    held = bytes_of(parameter for network in networks for parameter in network.parameters())
    if not settings.low_memory or settings.dtype == "fp32":
        states = optimizer.adamw.state.values()
        held += bytes_of(x for state in states for x in state.values())
        if settings.dtype != "fp32":
            held += bytes_of(optimizer.weights)

    job.size = 512
    batches, draws = training.batches(1), training.draws(1)
    gc.collect()
    with profile(profile_memory=True) as profiler:
        # Not optimizer.backward: gradients that it moves to the CPU's memory leave the device.
        training.loss(next(batches), draws).backward()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return {"held": held, "tensors": held + max(itertools.accumulate(n for _, n in changes))}


def bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


# --------------------------------------------------------------------------- all processes


def in_a_process(job: Job, section: str, name: str) -> dict | None:
    """Its numbers, or None if the system killed it for memory."""
    given = {"base": job.base, "control": job.control, "size": job.size, "folder": str(job.folder)}
    command = [sys.executable, __file__, "--worker", json.dumps([given, section, name])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == -9:
        return None
    if done.returncode:
        sys.exit(f"{section}, {name}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def in_turns(job: Job, section: str, names: list[str], rounds: int) -> Iterator[dict]:
    """After each process, the medians over the rounds of every contender."""
    found: dict[str, list[dict]] = {}
    turns = names * (1 if section == "memory" else rounds)  # memory is counted, not timed
    for name in tqdm(turns, section):
        if (numbers := in_a_process(job, section, name)) is not None:
            found.setdefault(name, []).append(numbers)
        yield {name: medians(numbers) for name, numbers in found.items()}


def medians(rounds: list[dict]) -> dict:
    return {key: median(numbers[key] for numbers in rounds) for key in rounds[0]}


def names_of(section: str) -> list[str]:
    names = MEMORY if section == "memory" else [*CONTENDERS[section]]
    return [name for name in names if diffusers_is_here() or "diffusers" not in name]


def report(found: dict, flop: dict) -> None:
    """Tables, as in README.md. flop: see arithmetic."""
    if "load" in found:
        print(f"\nload and one step of 64 pixels: {found['load']['ours']['step']:.2f} s")
    for section in "training", "sampling":
        if section in found:
            print(f"\n| {section} | seconds | picture | of the matrix rate | GB at the peak |")
            print("|---|---|---|---|---|")
        for name, n in found.get(section, {}).items():
            kind = "guided" if section == "sampling" else "training"
            work = flop["fine-tuning" if name.startswith("fine") else kind]
            share = f"{work / n['step'] / n['rate']:.0%} of {n['rate'] / 1e12:.3f} TFLOP/s"
            picture = f"{n['picture']:.1f}" if "picture" in n else ""
            print(f"| {name} | {n['step']:.3g} | {picture} | {share} | {n['peak'] / 1e9:.2f} |")
    if "memory" in found:
        print("\n| 512 pixels, one pair | GB of tensors at the peak | of these always there |")
        print("|---|---|---|")
        for flags, n in found["memory"].items():
            print(f"| `{flags}` | {n['tensors'] / 1e9:.1f} | {n['held'] / 1e9:.1f} |")


def job_of(given: dict) -> Job:
    return Job(**given | {"folder": Path(given["folder"]), "device": "cpu"})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sections = [*CONTENDERS, "memory"]
    parser.add_argument("--only", nargs="+", choices=sections, default=sections)
    parser.add_argument("--size", type=multiple_of_64, default=256, help="default: 256")
    parser.add_argument("--rounds", type=at_least(1), default=2, help="default: 2")
    parser.add_argument("--out", type=Path, default="bench.json", help="default: bench.json")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        given, section, name = json.loads(args.worker)
        print(json.dumps(measure(job_of(given), section, name)))
        return
    machine_ = f"{os.cpu_count()} CPUs, {platform.machine()}; PyTorch {torch.__version__}"
    found: dict = {"machine": machine_}
    with tempfile.TemporaryDirectory() as folder:
        base, control = random_files(Path(folder), torch.float32)
        job = job_of({"base": base, "control": control, "size": args.size, "folder": folder})
        gc.collect()
        for section in args.only:
            for numbers in in_turns(job, section, names_of(section), args.rounds):
                found[section] = numbers
                args.out.write_text(json.dumps(found, indent=2) + "\n")
        report(found, arithmetic(job))
    print(f"\n{machine_}")


if __name__ == "__main__":
    main()
