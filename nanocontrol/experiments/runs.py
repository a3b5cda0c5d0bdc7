"""The runs of arms: each is a folder that train.train leaves, trained by a process of its own,

    python -m nanocontrol.experiments.runs EXPERIMENT ARM SEED FOLDER SETTINGS

which goes on where an earlier one stopped.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

import train
from nanocontrol.experiments.afterwards import Afterwards, measure_afterwards
from nanocontrol.experiments.arm import Arm, folder_of, settings_of, variant_of
from nanocontrol.experiments.experiment import Experiment, experiment_of
from nanocontrol.plumbing import machine
from nanocontrol.plumbing.errors import InputError, Stopped, one_sentence
from nanocontrol.plumbing.files import make_folder
from nanocontrol.training.run import write_json
from nanocontrol.training.start import Signals, folder_held

RUNS = Path("runs/experiments")


@dataclass(frozen=True)
class Run:
    """Of an arm with one seed."""

    experiment: str
    arm: Arm
    seed: int
    folder: Path
    afterwards: Afterwards | None = None

    @property
    def settings(self) -> train.Settings:
        return settings_of(self.arm, self.seed, self.folder)

    @property
    def is_trained(self) -> bool:
        return (self.folder / "metrics.json").exists() and self.has_begun

    @property
    def file_afterwards(self) -> Path:
        """Of its experiment alone, as other experiments may have the same run."""
        return self.folder / f"{self.experiment}.json"

    @property
    def is_done(self) -> bool:
        return self.is_trained and (not self.afterwards or self.file_afterwards.exists())

    @property
    def can_begin(self) -> bool:
        """The ControlNet that it goes on from is there."""
        before = self.arm.goes_on_from
        if before is None:
            return True
        folder = folder_of(before, self.seed, self.folder.parent)
        return (folder / "metrics.json").exists()

    @property
    def has_begun(self) -> bool:
        """Raises InputError if the folder holds a run of other settings."""
        file = self.folder / "settings.json"
        if not file.exists():
            return False
        if as_anywhere(json.loads(file.read_text())) != as_anywhere(asdict(self.settings)):
            message = "holds a run of other settings than the arm has now: delete that folder"
            raise InputError(f"{self.folder} {message}")
        return True

    @property
    def steps_done(self) -> int:
        with suppress(OSError, ValueError, IndexError):
            last = (self.folder / "log.jsonl").read_text().splitlines()[-1]
            return json.loads(last)["step"]
        return 0


def as_anywhere(settings: dict) -> dict:
    """Without the folders, which in another checkout are other ones, and the device."""
    files = {name: Path(settings[name] or "").name for name in ("base", "init_control")}
    return settings | files | {"out": "", "cache": "", "device": ""}


def runs_of(
    experiment: Experiment, arms: tuple[Arm, ...], seeds: range, root: Path = RUNS
) -> list[Run]:
    """Seed by seed: after the first there is something of every arm to look at."""
    return [
        Run(experiment.name, arm, seed, folder_of(arm, seed, root), experiment.afterwards)
        for seed in seeds
        for arm in arms
    ]


def train_run(run: Run) -> None:
    """Here, with one thread; what is trained already is only measured afterwards."""
    torch.set_num_threads(1)
    if not run.is_trained:
        train_alone(run)
    if run.afterwards:
        numbers = measure_afterwards(run.afterwards, run.arm, run.settings)
        write_json(run.file_afterwards, numbers)


def train_alone(run: Run) -> None:
    resume = run.has_begun
    with folder_held(str(run.folder), "", resume) as out, Signals() as signals:
        settings = replace(run.settings, out=out)
        write_json(run.folder / "machine.json", this_machine(settings.device))
        train.train(settings, signals, resume, variant_of(run.arm))
    with suppress(OSError):
        (run.folder / "state.pt").unlink()  # three times the size of all the rest


def this_machine(device: str) -> dict:
    if machine.is_gpu(device):
        return {"processor": torch.cuda.get_device_name(device), "pytorch": torch.__version__}
    processor = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        processor = names[0] if names else processor
    return {"processor": processor, "cores": os.cpu_count(), "pytorch": torch.__version__}


# --------------------------------------------------------------------------- beside each other


def begin(run: Run) -> subprocess.Popen:
    """In a process of one thread. What it prints is in the run's folder. (Its settings are those of
    the arm, but fewer steps if it is to be quick.)"""
    make_folder("experiments", run.folder)
    settings = json.dumps(dict(run.arm.settings))
    which = [run.experiment, run.arm.name, run.seed, run.folder, settings]
    command = [sys.executable, "-m", "nanocontrol.experiments.runs", *map(str, which)]
    paths = [str(Path(train.__file__).parent), os.environ.get("PYTHONPATH", "")]
    variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with open(run.folder / "output.txt", "ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | variables)


def train_all(runs: list[Run], beside: int, after_each: Callable[[], None]) -> None:
    """Those that are not done, `beside` of them at a time, each after the one that it goes on from.
    Stopped, it stops them all."""
    waiting = [run for run in runs if not run.is_done]
    working: list[tuple[Run, subprocess.Popen]] = []
    total = sum(run.settings.steps for run in runs)
    before = total - sum(run.settings.steps for run in waiting)
    with tqdm(desc="training", total=total, unit="step") as bar, Signals():
        try:
            while waiting or working:
                for run in [run for run in waiting if run.can_begin][: beside - len(working)]:
                    waiting.remove(run)
                    working.append((run, begin(run)))
                time.sleep(2)
                for run, process in [*working]:
                    if process.poll() is not None:
                        working.remove((run, process))
                        check_ended(run, process.returncode)
                        before += run.settings.steps
                        after_each()
                bar.n = before + sum(run.steps_done for run, _ in working)
                bar.refresh()
        except Stopped as stop:
            raise Stopped(stop.number, "stopped; the same command goes on") from None
        finally:
            for _, process in working:
                process.terminate()  # it finishes its step, and saves
            for _, process in working:
                process.wait()


def check_ended(run: Run, status: int) -> None:
    if status or not run.is_done:
        lines = (run.folder / "output.txt").read_text(errors="replace").splitlines()
        raise InputError(f"{run.folder} ended with status {status}: {lines[-1] if lines else ''}")


def main(argv: list[str]) -> None:
    machine.keep_freed_memory()
    name, arm_name, seed, folder, settings = argv
    with one_sentence("experiments"):
        experiment = experiment_of(name)
        arm = replace(experiment.arm(arm_name), settings=json.loads(settings))
        train_run(Run(name, arm, int(seed), Path(folder), experiment.afterwards))


if __name__ == "__main__":
    main(sys.argv[1:])
