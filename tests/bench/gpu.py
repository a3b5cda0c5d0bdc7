"""Ten minutes on a GPU: what a training step and a picture take, next to diffusers.

    python tests/bench/gpu.py --minutes 10 --out DIR

writes DIR/rows.jsonl: one line per row as soon as it is measured, in the order of importance. A row
that does not fit into the time that is left, or that cannot run here, has a line that says so. The
rows run in a process of their own. If it crashes or hangs, that row is reported and a new process
continues with the next one.

The networks have Stable Diffusion 1's size and random weights, at 512 pixels in bf16. On a CPU, or
with --model nano, they are nano's at 128 pixels with small batches: that tests this script.
"""

import argparse
import gc
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from contenders import (
    ROOT,
    Contender,
    Job,
    Training,
    arithmetic,
    diffusers_is_here,
    diffusers_picture,
    diffusers_training,
    fine_tuning,
    matrix_rate,
    our_picture,
    random_files,
    seconds,
)
from nanocontrol.nano.model import AUTOENCODER, NANO, NANO_CONTROL, UNET
from nanocontrol.plumbing import machine
from nanocontrol.plumbing.flags import device, positive

CONTENDERS: dict[str, Callable[[Job], Contender]] = {
    "ours": Training,
    "diffusers' networks": diffusers_training,
    "ours, as a graph": lambda job: Training(job, "--graph"),
    "ours, as a graph, compiled by block": lambda job: Training(
        replace(job, blocks=True), "--graph"
    ),
    "ours, compiled by block": lambda job: Training(replace(job, blocks=True)),
    "diffusers' networks, compiled by block": lambda job: diffusers_training(
        replace(job, blocks=True)
    ),
    "ours, encoding": lambda job: Training(job, "--no-cache"),
    "diffusers, encoding": lambda job: diffusers_training(job, encoding=True),
    "fine-tuning the base": fine_tuning,
    "our picture": our_picture,
    "diffusers' picture": diffusers_picture,
    "diffusers' picture, compiled by block": lambda job: diffusers_picture(
        replace(job, blocks=True)
    ),
}


class Row(NamedTuple):
    kind: str  # a method of Bench
    what: str  # a contender, or the flags of train.py
    n: int  # pairs in a pass, or pictures at once
    plan: float  # seconds that it takes on an H100, at most
    only_gpu: bool = False

    @property
    def name(self) -> str:
        return f"{self.kind}: {self.what or 'default flags'}, {self.n}"


# In the order of importance. Rows with the same contender share its networks.
ROWS = [
    Row("training", "ours", 4, 15),
    Row("training", "ours", 16, 6),
    Row("training", "ours, as a graph", 4, 15, True),
    Row("training", "ours, as a graph", 16, 6, True),
    Row("training", "diffusers' networks", 4, 15),
    Row("training", "diffusers' networks", 16, 7),
    Row("picture", "our picture", 1, 15),
    Row("picture", "our picture", 4, 7),
    Row("picture", "diffusers' picture", 1, 18),
    Row("picture", "diffusers' picture", 4, 15),
    Row("training", "fine-tuning the base", 4, 15),
    Row("training", "fine-tuning the base", 16, 6),
    Row("eight_gigabytes", "--low-memory --dtype bf16", 4, 25, True),
    Row("eight_gigabytes", "--low-memory --dtype fp16", 4, 25, True),
    Row("cold_start", "", 16, 30),
    Row("training", "ours, compiled by block", 4, 70, True),
    Row("training", "ours, compiled by block", 16, 40, True),
    Row("training", "ours, as a graph, compiled by block", 4, 70, True),
    Row("training", "ours, as a graph, compiled by block", 16, 40, True),
    Row("training", "diffusers' networks, compiled by block", 4, 70, True),
    Row("training", "diffusers' networks, compiled by block", 16, 40, True),
    Row("training", "ours", 32, 16),
    Row("training", "ours", 64, 9),
    Row("training", "diffusers' networks", 32, 16),
    Row("training", "diffusers' networks", 64, 9),
    Row("training", "ours, encoding", 4, 15),
    Row("training", "ours, encoding", 16, 7),
    Row("training", "diffusers, encoding", 4, 16),
    Row("training", "diffusers, encoding", 16, 8),
    Row("training", "--dtype fp32", 4, 15),
    Row("training", "--dtype bf16 --unlock decoder", 4, 16),
    Row("training", "--dtype bf16 --unlock all", 4, 16),
    Row("training", "--low-memory --dtype fp32", 4, 15),
    Row("training", "--low-memory --dtype bf16", 4, 20),
    Row("picture", "our picture", 16, 18),
    Row("picture", "diffusers' picture", 16, 25),
    Row("picture", "diffusers' picture, compiled by block", 1, 60, True),
    Row("cold_start", "--compile", 16, 110, True),
    Row("steady", "ours, as a graph", 4, 200, True),
    Row("steady", "ours", 4, 200),
]
NANO_ROWS = [row._replace(n=max(1, row.n // 4), plan=row.plan / 2) for row in ROWS if row.n <= 16]
MOST = 20  # timed calls in a row
TIMED = 2.0  # seconds after which no more are made than the least
CONTEXT = 0.6e9  # bytes that CUDA itself takes of a card
GRACE = 5.0  # seconds that a process has to end by itself


class Bench:
    """Measures rows, one after the other. The networks stay until a row needs others."""

    def __init__(self, job: Job):
        self.job, self.gpu = job, machine.is_gpu(job.device)
        self.least = 3 if self.gpu else 1  # timed calls in a row
        self.built: tuple[str, Contender] | None = None

    def contender(self, what: str) -> Contender:
        if self.built is None or self.built[0] != what:
            self.forget()
            flags = what.startswith("--")
            build = CONTENDERS[what] if not flags else lambda job: Training(job, *what.split())
            self.built = what, build(self.job)
        return self.built[1]

    def forget(self) -> None:
        self.built = None
        machine.forget_recorded()
        torch._dynamo.reset()
        gc.collect()
        if self.gpu:
            torch.cuda.empty_cache()

    def timed(self, call: Callable[[], object]) -> dict:
        """first: seconds of the first call; seconds: the median of those after the second; GB at
        the peak, allocated and reserved."""
        if self.gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        first, _ = seconds(self.job, call), call()
        times: list[float] = []
        while len(times) < self.least or (sum(times) < TIMED and len(times) < MOST):
            times.append(seconds(self.job, call))
        found = {"first": first, "seconds": median(times)}
        if self.gpu:
            found["allocated_gb"] = torch.cuda.max_memory_allocated() / 1e9
            found["reserved_gb"] = torch.cuda.max_memory_reserved() / 1e9
        return found

    def training(self, row: Row) -> dict:
        found = self.timed(self.contender(row.what)(row.n))
        return found | {"pairs_per_second": row.n / found["seconds"]}

    def picture(self, row: Row) -> dict:
        """seconds: of row.n pictures of 20 steps at once, decoded."""
        draw = self.contender(row.what)(row.n)
        few, found = self.timed(lambda: draw(steps=4)), self.timed(draw)
        step = (found["seconds"] - few["seconds"]) / 16
        return found | {"first": few["first"], "seconds_per_step": step}

    def eight_gigabytes(self, row: Row) -> dict:
        """A training on a card of 8 GB, of which CUDA itself takes a part."""
        self.forget()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((8e9 - CONTEXT) / total)
        try:
            return self.training(row)
        finally:
            self.forget()
            torch.cuda.set_per_process_memory_fraction(1.0)

    def cold_start(self, row: Row) -> dict:
        """Seconds from the command until the tenth step of nano's training is logged."""
        run = Path(tempfile.mkdtemp(dir=self.job.folder))
        command = [sys.executable, str(ROOT / "train.py"), *row.what.split(), "--out", str(run)]
        command += ["--device", self.job.device, "--batch-size", str(row.n)]
        command += ["--steps", "20", "--scenes", "160", "--cache", str(run / "cache")]
        began, log = time.monotonic(), run / "log.jsonl"
        with open(run / "stderr", "wb") as said:
            process = subprocess.Popen(command, cwd=run, stdout=said, stderr=said)
            while process.poll() is None and not (
                log.exists() and '"step": 10,' in log.read_text()
            ):
                time.sleep(0.05)
        took, ended = time.monotonic() - began, process.poll()
        process.kill(), process.wait()
        if ended:
            raise RuntimeError((run / "stderr").read_text().splitlines()[-1])
        return {"seconds": took}

    def steady(self, row: Row) -> dict:
        """2,000 steps, or as many as fit: whether they slow down, or memory grows."""
        step = self.contender(row.what)(row.n)
        until, marks = time.monotonic() + row.plan - 20, []
        while len(marks) < 20 and (len(marks) < 2 or time.monotonic() < until):
            took = seconds(self.job, lambda: [step() for _ in range(100)])
            marks.append((took / 100, torch.cuda.memory_reserved() if self.gpu else 0))
        (_, before), (early, _), (late, after) = marks[0], marks[1], marks[-1]
        found = {"steps": 100 * len(marks), "seconds_early": early, "seconds_late": late}
        return found | {"grown_gb": (after - before) / 1e9}


# ------------------------------------------------------------- the process that measures


class Visit(NamedTuple):
    """The arguments of the process that measures."""

    first: int  # the number of its first row
    until: float  # when to end, in seconds as time.time() has them
    out: str  # the file of the rows
    job: dict
    flop: dict  # see arithmetic

    @property
    def rows(self) -> list[Row]:
        return NANO_ROWS if self.job["base"] == str(NANO) else ROWS


def job_of(given: dict) -> Job:
    small = {"unet": UNET, "vae": AUTOENCODER} if given["base"] == str(NANO) else {}
    return Job(**given | {"folder": Path(given["folder"])} | small)


def measure(visit: Visit) -> None:
    """Every row from the first one on leaves a line. After a row that failed, unless for memory,
    the process ends: the GPU may be in no state to continue."""
    bench = Bench(job_of(visit.job))
    machine.allow_tf32(bench.job.device)  # as train.py does; for diffusers too
    rate = matrix_rate(bench.job)
    for row in visit.rows[visit.first :]:
        if why := reason_to_skip(row, visit, bench.gpu):
            write(visit.out, {"row": row.name, "skipped": why})
            continue
        try:
            found = getattr(bench, row.kind)(row)
        except Exception as error:
            full = isinstance(error, torch.OutOfMemoryError)
            said = "out of memory" if full else f"{type(error).__name__}: {error}".splitlines()[0]
            write(visit.out, {"row": row.name, "failed": said[:300]})
            if not full:
                raise SystemExit(REPORTED) from error
            error.__traceback__ = None  # it holds the tensors
            bench.forget()
            continue
        if flop := useful_flop(row, visit.flop):
            found |= {"tflop_per_second": flop / found["seconds"] / 1e12, "card": rate / 1e12}
        write(visit.out, {"row": row.name} | found)


REPORTED = 3  # status of a process whose failed row has a line already


def reason_to_skip(row: Row, visit: Visit, gpu: bool) -> str:
    left = visit.until - time.time()
    if "diffusers" in row.what and not diffusers_is_here():
        return "diffusers or transformers is not installed"
    if row.only_gpu and not gpu:
        return "it takes a GPU"
    if left < row.plan:
        return f"it takes up to {row.plan:.0f} s, and {max(0, left):.0f} s are left"
    return ""


def useful_flop(row: Row, flop: dict) -> float | None:
    """Operations of a row that its result needs, by the arithmetic of our networks."""
    if row.kind == "picture":
        return row.n * (20 * flop["guided"] + flop["decode"])
    kind = row.what.removesuffix(", compiled by block").removesuffix(", as a graph")
    each = {"fine-tuning the base": "fine-tuning"} | dict.fromkeys(CACHED, "training")
    return row.n * flop[each[kind]] if row.kind == "training" and kind in each else None


CACHED = "ours", "diffusers' networks"


def write(out: str, line: dict) -> None:
    """A line of JSON, whole or not at all, and the same to be read."""
    short = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in line.items()}
    with open(out, "a") as file:
        file.write(json.dumps(short) + "\n")
    print(", ".join(f"{k} {v}" if k != "row" else str(v) for k, v in short.items()), flush=True)


# ------------------------------------------------------------------ the process that keeps it


def keep_measuring(visit: Visit) -> None:
    """Start the process that measures, and again after a row at which it crashed or hung."""
    before, rows = len(lines_of(visit.out)), visit.rows
    done = 0
    while done < len(rows) and time.time() < visit.until:
        command = [sys.executable, __file__, "--worker", json.dumps(visit._replace(first=done))]
        process = subprocess.Popen(command, start_new_session=True)
        why = watch(process, visit, before)
        done = len(lines_of(visit.out)) - before
        if why and done < len(rows):
            write(visit.out, {"row": rows[done].name, "failed": why})
            done += 1
    for row in rows[done:]:
        write(visit.out, {"row": row.name, "skipped": "no time is left"})


def watch(process: subprocess.Popen, visit: Visit, before: int) -> str:
    """Wait for the end of the process -> what went wrong with its last row, "" if nothing.
    before: how many lines were there before the first row."""
    began, done = time.time(), -1
    while process.poll() is None:
        time.sleep(0.2)
        if (now := len(lines_of(visit.out)) - before) != done:
            began, done = time.time(), now
        plan = visit.rows[min(done, len(visit.rows) - 1)].plan
        if time.time() > min(began + 60 + 3 * plan, visit.until + GRACE):
            os.killpg(process.pid, signal.SIGKILL)  # with a training that it may have started
            process.wait()
            return "it did not end in time"
    return "" if process.returncode in (0, REPORTED) else f"it ended with {process.returncode}"


def lines_of(file: str) -> list[str]:
    return Path(file).read_text().splitlines() if Path(file).exists() else []


def this_machine(device: str) -> dict:
    card = torch.cuda.get_device_name() if machine.is_gpu(device) else platform.machine()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda}
    if diffusers_is_here():
        versions["diffusers"] = version("diffusers")
    return {"row": "machine", "card": card, "commit": commit.stdout.strip()} | versions


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=positive, default=10.0, help="default: 10")
    parser.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="default: out")
    parser.add_argument("--device", type=device, default=machine.default_device())
    parser.add_argument("--model", choices=["sd1", "nano"], help="default: sd1 on a GPU")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return measure(Visit(*json.loads(args.worker)))
    until, out = time.time() + 60 * args.minutes, args.out / "rows.jsonl"
    args.out.mkdir(parents=True, exist_ok=True)
    write(str(out), this_machine(args.device))
    nano = (args.model or ("sd1" if machine.is_gpu(args.device) else "nano")) == "nano"
    with tempfile.TemporaryDirectory() as folder:
        files = (str(NANO), str(NANO_CONTROL)) if nano else random_files(Path(folder), torch.half)
        job = dict(zip(("base", "control"), files), device=args.device, folder=folder)
        job["size"] = 128 if nano else 512
        keep_measuring(Visit(0, until, str(out), job, arithmetic(job_of(job))))


if __name__ == "__main__":
    main()
