"""An experiment's jobs, trainings and rows of pictures, done in one pool of processes of one thread
each. Each leaves files, so that a command that was stopped continues; with what other machines left
they become the experiment's JSON file."""

import json
import os
import platform
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import partial
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import ClassVar

import torch
from tqdm import tqdm

import train
from nanocontrol import ControlNet, StableDiffusion
from nanocontrol.checkpoint import CONTROL_KEYS, UNET_KEYS
from nanocontrol.experiments import frame
from nanocontrol.experiments.measure import Evaluation
from nanocontrol.experiments.results import rounded, run_as_json
from nanocontrol.formats.tensors import below, read_tensors
from nanocontrol.plumbing import machine
from nanocontrol.plumbing.errors import InputError, Stopped
from nanocontrol.plumbing.files import make_folder
from nanocontrol.plumbing.locked_folder import folder_held
from nanocontrol.training.run import write_json
from nanocontrol.training.settings import what_is_learnt
from nanocontrol.training.start import Signals

RUNS = Path("runs/experiments")
SEEDS = range(10)  # that are looked for
OWN = "out", "seed", "cache", "device"  # settings that differ between seeds and machines
# For each network that is trained: where it is saved, and how its keys begin there.
SAVED = {"control": ("control.safetensors", CONTROL_KEYS), "unet": ("base.safetensors", UNET_KEYS)}

# -------------------------------------------------------------------------------------- jobs


@dataclass(frozen=True)
class Training:
    """A variant with one seed. Its folder is one that train.train leaves."""

    experiment: str
    subject: frame.Variant
    seed: int
    folder: Path
    afterwards: Callable[[StableDiffusion, ControlNet], frame.Numbers] | None = None

    @property
    def settings(self) -> train.Settings:
        return frame.settings_of(self.subject, self.seed, self.folder)

    @property
    def has_begun(self) -> bool:
        """Raises InputError if the folder holds another training."""
        if not (self.folder / "settings.json").exists():
            return False
        settings = json.loads((self.folder / "settings.json").read_text())
        version = version_of(self.folder / "origin.json")
        if learnt(settings) != learnt(asdict(self.settings)) or version != self.subject.version:
            message = "holds a run of other settings or another version: delete that folder"
            raise InputError(f"{self.folder} {message}")
        return True

    @property
    def is_trained(self) -> bool:
        return (self.folder / "metrics.json").exists() and self.has_begun

    @property
    def file_afterwards(self) -> Path:
        """An experiment's own file, as others may share the run."""
        return self.folder / f"{self.experiment}.json"

    @property
    def is_done(self) -> bool:
        return self.is_trained and (not self.afterwards or self.file_afterwards.exists())

    @property
    def can_begin(self) -> bool:
        """Whether the ControlNet that it begins with is trained."""
        before, root = self.subject.continues, self.folder.parent
        return not before or (frame.folder_of(before, self.seed, root) / "metrics.json").exists()

    def do(self) -> None:
        """Train it, or continue. What its experiment alone asks is measured with the weights that
        it saved, so it can be asked of a run that is trained already."""
        make_folder("experiments", self.folder)
        with open(self.folder / "output.txt", "a") as output:
            with redirect_stdout(output), redirect_stderr(output):
                if not self.is_trained:
                    self.train()
                if self.afterwards:
                    write_json(self.file_afterwards, self.afterwards(*self.networks()))

    def train(self) -> None:
        resume, variant = self.has_begun, self.subject
        own = partial(frame.models_of, variant), partial(frame.loss_of, variant), Evaluation()
        with folder_held(str(self.folder), "", resume) as out, Signals() as signals:
            settings = replace(self.settings, out=out)
            write_json(self.folder / "origin.json", origin(settings.device, variant.version))
            train.train(settings, signals, resume, *own)
        with suppress(OSError):
            (self.folder / "state.pt").unlink()  # three times the size of all the rest

    def as_json(self) -> dict:
        return run_as_json(self.folder, self.file_afterwards if self.afterwards else None)

    @property
    def description(self) -> dict:
        """The variant in the JSON file: its settings without those that differ between seeds and
        machines."""
        settings = {k: x for k, x in asdict(self.settings).items() if k not in OWN}
        before, base = self.subject.continues, Path(self.settings.base).name
        return {"settings": settings | {"base": base, "init_control": before and before.name}}

    def networks(self) -> tuple[StableDiffusion, ControlNet]:
        """The networks as it saved them."""
        sd, control, trained = frame.models_of(self.subject, self.settings)
        for name, network in trained.items():
            file, keys = SAVED[name]
            tensors, _ = read_tensors(self.folder / file)
            network.to(self.settings.device).load_state_dict(below(keys, tensors))
        return sd, control


@dataclass(frozen=True)
class Measurement:
    """A row of pictures with one seed of noise, on so many scenes."""

    subject: frame.Row
    seed: int
    scenes: int
    file: Path
    can_begin: ClassVar[bool] = True
    description: ClassVar[dict] = {}

    @property
    def is_done(self) -> bool:
        return self.file.exists() and version_of(self.file) == self.subject.version

    def do(self) -> None:
        began = time.monotonic()
        numbers = self.subject.measure(self.scenes, self.seed)
        seconds = round(time.monotonic() - began, 1)
        where = origin(machine.default_device(), self.subject.version)
        make_folder("experiments", self.file.parent)
        write_json(self.file, {"seed": self.seed, "seconds": seconds, **where, "end": numbers})

    def as_json(self) -> dict:
        return json.loads(self.file.read_text())


Job = Training | Measurement


def jobs_of(experiment: frame.Experiment, seeds: range, scenes: int, root: Path) -> list[Job]:
    """Seed by seed: after the first one there is something of everything to look at."""
    found: list[Job] = []
    for seed in seeds:
        for variant in experiment.variants:
            folder = frame.folder_of(variant, seed, root)
            given = experiment.name, variant, seed, folder, experiment.afterwards
            found.append(Training(*given))
        for row in experiment.rows:
            name = re.sub(r"[^\w.]+", "-", row.name)
            file = root / experiment.name / f"{name}-{seed}.json"
            found.append(Measurement(row, seed, scenes, file))
    return found


def learnt(settings: dict) -> dict:
    """The settings that runs of one variant share."""
    found = what_is_learnt(settings, train.Settings) | {"sample_every": settings["sample_every"]}
    return rounded({name: value for name, value in found.items() if name != "seed"})


def version_of(file: Path) -> int:
    """1 where a file has none."""
    return json.loads(file.read_text()).get("version", 1) if file.exists() else 1


def origin(device: str, version: int) -> dict:
    """Where, when and from which commit numbers are computed; no commit where there is no git."""
    commit = ""
    with suppress(OSError):
        git = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
        folder = Path(__file__).parent
        commit = subprocess.run(git, cwd=folder, capture_output=True, text=True).stdout.strip()
    made = {"commit": commit or None, "date": date.today().isoformat(), "version": version}
    return {"machine": this_machine(device), **made}


def this_machine(device: str) -> dict:
    if machine.is_gpu(device):
        return {"processor": torch.cuda.get_device_name(device), "pytorch": torch.__version__}
    processor = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(x for x in lines if x.startswith("model name")).split(":")[1].strip()
    return {"processor": processor, "cores": os.cpu_count(), "pytorch": torch.__version__}


# -------------------------------------------------------------------------------------- the pool


def processes(n: int) -> ProcessPoolExecutor:
    os.environ["OMP_NUM_THREADS"] = "1"
    return ProcessPoolExecutor(n, get_context("spawn"), one_thread)


def one_thread() -> None:
    """At the beginning of a process of the pool. Ctrl-C goes to every process: this one is ended by
    the first one, which lets a training finish its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    machine.keep_freed_memory()
    torch.set_num_threads(1)


def do_all(jobs: Sequence[Job], after_each: Callable[[], None], pool: Executor, n: int) -> None:
    """The jobs that are not done, n of them at a time, each after the one that it continues. If one
    fails, or if it is stopped, all end."""
    waiting = [job for job in jobs if not job.is_done]
    working: dict[Future, Job] = {}
    done = len(jobs) - len(waiting)
    with tqdm(desc="runs", total=len(jobs), initial=done) as bar, Signals():
        try:
            while waiting or working:
                for job in [job for job in waiting if job.can_begin][: n - len(working)]:
                    waiting.remove(job)
                    working[pool.submit(job.do)] = job
                for future in wait(working, timeout=2, return_when=FIRST_COMPLETED).done:
                    del working[future]
                    future.result()
                    after_each()
                    bar.update()
                bar.refresh()  # the time
        except BaseException as error:
            for process in active_children():
                process.terminate()  # a training finishes its step, and saves
            if isinstance(error, Stopped):
                why = "stopped; the same command continues"
                raise Stopped(error.number, why) from None
            raise


# ------------------------------------------------------------------------------ the JSON file


def content_of(experiment: frame.Experiment, once: dict, root: Path, before: dict | None) -> dict:
    """Everything that is known of an experiment on one base, also runs that nobody asked for now.
    before: the results on this base so far. Their runs stay, except those whose seed was run here,
    and those with other settings or another version than their variant or row has now."""
    content: dict = {"expected": experiment.parts[2], "once": once, "arms": {}, "sampled": {}}
    before = before or content
    older = before["arms"] | before["sampled"]
    for job in jobs_of(experiment, SEEDS, 0, root):
        entries = content["arms" if isinstance(job, Training) else "sampled"]
        name, new = job.subject.name, dict(job.description)
        entry = entries.setdefault(name, new | {"runs": still_valid(older.get(name), new, job)})
        if job.is_done:
            runs = {run["seed"]: run for run in entry["runs"]} | {job.seed: job.as_json()}
            entry["runs"] = [runs[seed] for seed in sorted(runs)]
    return content


def still_valid(older: dict | None, new: dict, job: Job) -> list[dict]:
    """The older runs of a variant or row that count; new: its description now."""
    if not older or new and learnt(older["settings"]) != learnt(new["settings"]):
        return []
    return [run for run in older["runs"] if run.get("version", 1) == job.subject.version]
