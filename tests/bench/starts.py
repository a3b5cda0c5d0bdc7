"""How long a second start takes with a million listed pairs, and its memory.

    python tests/bench/starts.py [--pairs 1000000] [--files 10000] [--out starts.json]

Pictures are small and their hints are files. The index and the cache are filled with made-up rows,
because how long they take to be found does not depend on what they hold. Each start is a process of
its own, from the command to the first step's batch: one whose pairs are cached, one that sees no
pair twice, and a run that is resumed.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))
import train
from nanocontrol.nano.model import NANO
from nanocontrol.plumbing.flags import at_least
from nanocontrol.training import cache, known
from nanocontrol.training.watch import Watch

SIDE = 64  # pixels


class Reached(Exception):
    """The first batch is there."""


def write_folder(folder: Path, n: int, files: int) -> None:
    """n lines over so many pictures, each with its hint."""
    folder.mkdir()
    noise = np.random.default_rng(0)
    for i in range(files):
        picture = Image.fromarray(noise.integers(0, 256, (SIDE, SIDE, 3), np.uint8))
        for ending in "jpg", "png":
            picture.save(folder / f"{i}.{ending}")
    with open(folder / "prompt.json", "w") as file:
        for i in range(n):
            names = {"target": f"{i % files}.jpg", "source": f"{i % files}.png"}
            file.write(json.dumps(names | {"prompt": f"picture {i % files}"}) + "\n")


def made_up(_: object, images: Tensor, prompts: list[str]) -> tuple[Tensor, ...]:
    n, side = len(images), SIDE // 8
    return torch.randn(n, 4, side, side), torch.rand(n, 4, side, side), torch.randn(n, 77, 8)


def start(*flags: str) -> dict[str, float]:
    """Train until the first batch -> seconds, pictures opened before it, and memory in GB."""
    began, opened, take_next = time.perf_counter(), [], Watch.next

    def note(event: str, args: tuple) -> None:
        if event == "open" and str(args[0]).endswith((".jpg", ".png")):
            opened.append(args[0])

    def stop(watch: Watch, batches: object) -> None:
        found["opened_before_the_batch"] = len(opened)
        take_next(watch, batches)
        raise Reached

    found: dict[str, float] = {}
    sys.addaudithook(note)
    with mock.patch.object(Watch, "next", stop), mock.patch.object(known, "SETTLED", -1):
        with mock.patch.object(cache, "encode", made_up):
            try:
                train.main([*flags, "--base", str(NANO), "--size", str(SIDE), "--device", "cpu"])
            except Reached:
                found["seconds"] = time.perf_counter() - began
                found["cpu_seconds"] = time.process_time()
    unit = 1 if sys.platform == "darwin" else 1024
    found["gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
    return found


def started(folder: Path, *flags: str) -> dict[str, float]:
    """`start` in a process of its own."""
    command = [sys.executable, __file__, "--start", *flags]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    if sys.argv[1:2] == ["--start"]:
        # Pictures of the first evaluation would take most of the time.
        with mock.patch.object(Watch, "observe", lambda watch, step: None):
            print(json.dumps(start(*sys.argv[2:])))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=at_least(1), default=10**6, help="default: 1000000")
    parser.add_argument("--files", type=at_least(1), default=10**4, help="default: 10000")
    parser.add_argument("--out", type=Path, default="starts.json", help="default: starts.json")
    args = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder) / "pairs", args.pairs, args.files)
        flags = ["--data", "pairs", "--batch-size", "4", "--seed", "0"]
        many = [*flags, "--steps", str(args.pairs)]
        few = [*flags, "--steps", str(max(1, args.pairs // 8))]
        rows["first, cached"] = started(folder, *many, "--out", "a")
        rows["second, cached"] = started(folder, *many, "--out", "b")
        rows["second, each pair seen once"] = started(folder, *few, "--out", "c")
        rows["resume, cached"] = started(folder, "--resume", "b")
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    here = f"{os.cpu_count()} CPUs, {platform.machine()}; {args.pairs:,} pairs; {load}"
    args.out.write_text(json.dumps(rows | {"machine": here}, indent=2) + "\n")
    print("| start | seconds | of the CPU | pictures opened before the batch | GB |")
    print("|---|---|---|---|---|")
    for name, n in rows.items():
        opened = n["opened_before_the_batch"]
        seconds = f"{n['seconds']:.1f} | {n['cpu_seconds']:.1f}"
        print(f"| {name} | {seconds} | {opened:,} | {n['gb']:.2f} |")
    print(f"\n{here}")


if __name__ == "__main__":
    main()
