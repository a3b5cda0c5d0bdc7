"""Pairs per second that reader processes deliver from the cache, their CPU time per pair, and the
cache's size per pair.

    python tests/bench/readers.py [--size 512] [--batch-size 16] [--workers 2] [--rounds 5]

Pictures are drawn scenes with noise, hint files are their edges. Encodings are random numbers of
Stable Diffusion 1's shapes in bf16: how long they take to read does not depend on their values. No
hint is kept in memory, as in a data set that is too large for it. "Before" is the same cache with
hints of float32, made or read at every step, as the code did until edges were cached. The two take
turns, because other work slows a shared machine down for minutes. Printed are the fastest rounds.
CPU time is in milliseconds per pair, and includes what the system needs to hand pairs over.
"""

import argparse
import json
import os
import platform
import resource
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nanocontrol import load_sd
from nanocontrol.nano.model import NANO
from nanocontrol.nano.scenes import Scenes
from nanocontrol.plumbing import machine
from nanocontrol.plumbing.canny import canny
from nanocontrol.plumbing.flags import at_least, multiple_of_64
from nanocontrol.plumbing.pictures import as_tensor, cut_out, read_image, to_bytes
from nanocontrol.training import batches, cache
from nanocontrol.training.batches import columns_of, groups, shuffled
from nanocontrol.training.pairs import MIDDLE, Folder, Pairs, View

DRAWN = 256  # pixels of a scene, before it is enlarged


class Before(cache.Cached):
    """Cached pairs whose hints are made or read as float32."""

    pairs: Folder

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, deviation, _ = self.rows.row("latents", int(self.places["latents"][i]))
        (context,) = self.rows.row("contexts", int(self.places["contexts"][i]))
        entry, size = self.pairs.entries[i], self.pairs.view.size
        picture = read_image(entry.hint or entry.picture, "black" if entry.hint else "white")
        hint = as_tensor(cut_out(picture, size, MIDDLE))
        if entry.hint is None:
            hint = canny(hint, *self.pairs.thresholds(entry))
        return mean, deviation, context, hint


def write_folder(folder: Path, n: int, size: int) -> None:
    """n pairs with prompts of their own, as in Fill50K."""
    folder.mkdir()
    noise, lines = np.random.default_rng(0), []
    for i in range(n):
        image = Scenes(None, size=DRAWN).take(i).image / 2 + 0.5
        picture = Image.fromarray(to_bytes(image)).resize((size, size))
        pixels = np.asarray(picture) + noise.normal(0, 4, (size, size, 1))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.jpg")
        lines.append({"target": f"{i}.jpg", "source": f"{i}.png", "prompt": f"scene {i}"})
    (folder / "prompt.json").write_text("\n".join(map(json.dumps, lines)))
    edges = Folder([folder], View((size, size), hints="canny"))
    for i in range(n):
        Image.fromarray(to_bytes(edges.read_hint(i))).save(folder / f"{i}.png")


def random_encodings(_: object, images: Tensor, prompts: list[str]) -> tuple[Tensor, ...]:
    n, _, height, width = images.shape
    latents = (torch.randn(n, 4, height // 8, width // 8).bfloat16() for _ in range(2))
    return *latents, torch.randn(n, 77, 768).bfloat16()


def cached(
    folder: Path, size: int, hints: str | None, prompt: bool, of: type = cache.Cached
) -> cache.Cached:
    """The pairs in a new cache. prompt: whether each keeps its own."""
    pairs = Folder([folder], View((size, size), hints=hints))
    if not prompt:
        pairs.entries = [entry._replace(prompt="") for entry in pairs.entries]
    with mock.patch.object(cache, "encode", random_encodings):
        where = folder / f"{hints} {prompt}"
        keys, found = cache.encode_all(load_sd(NANO), pairs, where, 16)
        keys.update(found)
        return of(pairs, where, keys)


def bytes_per_pair(dataset: cache.Cached) -> float:
    return sum(file.stat().st_size for file in dataset.rows.files) / len(dataset)


def read(dataset: cache.Cached, batch_size: int, workers: int, n: int | None = None) -> Iterator:
    """n batches, or batches without end."""
    order = groups(shuffled(len(dataset), 0, 0), batch_size, slice(None))
    with mock.patch.object(batches, "readers", lambda _: workers):
        return batches.loader(dataset, islice(order, n), "cpu", collate_fn=columns_of)


def cpu_time(dataset: cache.Cached, batch_size: int, workers: int, seconds: float) -> float:
    """Milliseconds per pair that the readers compute."""
    n = max(1, round(seconds * 500 / batch_size))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in read(dataset, batch_size, workers, n):
        pass  # after the last one, the readers end
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return 1000 * used / n / batch_size


def pairs_per_second(dataset: cache.Cached, batch_size: int, workers: int, seconds: float) -> float:
    """The rate at which the main process gets pairs, after each worker has started."""
    batches = read(dataset, batch_size, workers)
    for _ in range(4 * workers):
        next(batches)
    start, n = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        n += len(next(batches)[0])
    return n / (time.perf_counter() - start)


def measured(rounds: int, how: tuple, **ways: cache.Cached) -> dict[str, float]:
    """The highest rates of all rounds, and the lowest CPU times, measured in turns."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    times: dict[str, list[float]] = {f"{name}_cpu": [] for name in ways}
    for _ in range(rounds):
        for name, dataset in ways.items():
            rates[name].append(pairs_per_second(dataset, *how))
            times[f"{name}_cpu"].append(cpu_time(dataset, *how))
    return {name: max(x) for name, x in rates.items()} | {k: min(x) for k, x in times.items()}


def rows_of(folder: Path, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    rows = {}
    how = args.batch_size, args.workers, args.seconds
    for hints, row in ("canny", "--hints canny"), (None, "hint files"):
        now = cached(folder, args.size, hints, prompt=True)
        before = cached(folder, args.size, hints, prompt=True, of=Before)
        alike = bytes_per_pair(cached(folder, args.size, hints, prompt=False))
        rates = measured(args.rounds, how, before=before, now=now)
        sizes = {"bytes": bytes_per_pair(now), "bytes_with_equal_prompts": alike}
        rows[row] = rates | sizes
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=multiple_of_64, default=512, help="default: 512")
    parser.add_argument("--batch-size", type=at_least(1), default=16, help="default: 16")
    parser.add_argument("--workers", type=at_least(1), default=2, help="default: 2")
    parser.add_argument("--pairs", type=at_least(1), default=512, help="default: 512")
    parser.add_argument("--seconds", type=float, default=2, help="of a measurement (default: 2)")
    parser.add_argument("--rounds", type=at_least(1), default=5, help="default: 5")
    parser.add_argument("--out", type=Path, default="readers.json", help="default: readers.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    machine.keep_freed_memory()  # as train.py does
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(Pairs, "keep", lambda self, i, hint: hint),
    ):
        write_folder(Path(folder) / "pairs", args.pairs, args.size)
        rows = rows_of(Path(folder) / "pairs", args)
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    here = f"{os.cpu_count()} CPUs, {platform.machine()}; PyTorch {torch.__version__}; {load}"
    args.out.write_text(json.dumps(rows | {"machine": here}, indent=2) + "\n")
    print("| pairs/s | before | now | times | CPU ms | now | KB a pair | with equal prompts |")
    print("|---|---|---|---|---|---|---|---|")
    for name, n in rows.items():
        rates = f"{n['before']:.0f} | {n['now']:.0f} | {n['now'] / n['before']:.1f}"
        kilobytes = f"{n['bytes'] / 1e3:.0f} | {n['bytes_with_equal_prompts'] / 1e3:.1f}"
        times = f"{n['before_cpu']:.2f} | {n['now_cpu']:.2f}"
        print(f"| {name} | {rates} | {times} | {kilobytes} |")
    print(f"\n{here}")


if __name__ == "__main__":
    main()
