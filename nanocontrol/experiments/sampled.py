"""Rows of a table that take no training: pictures made with networks that are there, and what they
show. Each row is measured with several seeds of the starting noise; each of these measurements is
kept in a file, so that a command that was stopped goes on."""

import re
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from nanocontrol.experiments.experiment import Experiment, experiment_of
from nanocontrol.experiments.runs import this_machine
from nanocontrol.plumbing.errors import Stopped
from nanocontrol.plumbing.files import make_folder
from nanocontrol.plumbing.machine import default_device
from nanocontrol.training.run import write_json
from nanocontrol.training.start import Signals


class Measurement(NamedTuple):
    """Of a row with one seed, on so many scenes."""

    experiment: str
    row: str
    seed: int
    scenes: int
    file: Path


def measurements_of(
    experiment: Experiment, rows: tuple[str, ...], seeds: range, scenes: int, root: Path
) -> list[Measurement]:
    """Seed by seed, as runs are."""
    folder = root / experiment.name
    return [
        Measurement(experiment.name, row, seed, scenes, folder / f"{file_name(row)}-{seed}.json")
        for seed in seeds
        for row in rows
    ]


def file_name(row: str) -> str:
    return re.sub(r"[^\w.]+", "-", row)


def measure(one: Measurement) -> None:
    """With one thread."""
    torch.set_num_threads(1)
    began = time.monotonic()
    numbers = experiment_of(one.experiment).row(one.row).measure(one.scenes, one.seed)
    seconds = round(time.monotonic() - began, 1)
    here = this_machine(default_device())
    content = {"seed": one.seed, "seconds": seconds, "machine": here, "end": numbers}
    write_json(one.file, content)


def measure_all(some: list[Measurement], beside: int, after_each: Callable[[], None]) -> None:
    """Those that are not done, in `beside` processes."""
    waiting = [one for one in some if not one.file.exists()]
    for one in waiting:
        make_folder("experiments", one.file.parent)
    with tqdm(desc="sampling", total=len(some), initial=len(some) - len(waiting)) as bar, Signals():
        try:
            for _ in done_in_processes(waiting, beside):
                bar.update()
                after_each()
        except Stopped as stop:
            raise Stopped(stop.number, "stopped; the same command goes on") from None


def done_in_processes(waiting: list[Measurement], beside: int) -> Iterator[None]:
    """One None for each that is done. Stopped, it ends the processes: files are whole or absent."""
    if waiting:
        ignore = signal.signal, (signal.SIGINT, signal.SIG_IGN)  # the first process stops them
        with get_context("spawn").Pool(beside, *ignore) as pool:
            yield from pool.imap_unordered(measure, waiting)
            pool.close()
            pool.join()  # ended by themselves they leave no semaphores behind
