"""Training with several processes, one per GPU."""

import hashlib
import os
import secrets
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import nanocontrol
from nanocontrol.plumbing import machine
from nanocontrol.plumbing.errors import InputError
from nanocontrol.plumbing.files import make_folder, write_atomically

# What a process may wait for the others: while one evaluates or saves, and before the first step.
LONGEST_STEP, LONGEST_START = timedelta(minutes=30), timedelta(days=1)

N = TypeVar("N", bound=nn.Module)


def is_first() -> bool:
    """Whether this process prints and writes: the first that torchrun started, or the only one."""
    return int(os.environ.get("RANK", 0)) == 0


def code_here() -> str:
    """A hash of the project's code and of PyTorch's version."""
    files = sorted(Path(nanocontrol.__file__).parent.rglob("*.py"))
    code = b"".join([torch.__version__.encode(), *(file.read_bytes() for file in files)])
    return hashlib.sha256(code).hexdigest()


def is_of_others(error: Exception) -> bool:
    """Whether an error means that another process ended, or did not answer in time."""
    said = str(error)  # the second one follows a time-out of the same group
    return isinstance(error, dist.DistError) or "gloo" in said or "Application timeout" in said


def appears(file: Path) -> bool:
    """Whether a file is there, at once or, on a network's disk, after some seconds."""
    for _ in range(20):
        if file.exists():
            return True
        time.sleep(0.5)
    return False


class Processes:
    """The processes that torchrun started, or this one alone.

    All make the same draws and have the same weights. Each takes its share of every pass, and
    DistributedDataParallel averages the gradients. So N processes take the same steps as one
    process with N times the batch size.
    """

    def __init__(self, device: str):
        self.rank, self.size = 0, 1
        if "LOCAL_RANK" not in os.environ:
            return
        if device not in ("cpu", "cuda"):
            raise InputError(f"--device {device}: with torchrun, expected cpu or cuda")
        if device == "cuda":
            own = machine.own_gpu()
            dist.init_process_group("nccl", timeout=LONGEST_STEP, device_id=own)
        else:
            dist.init_process_group("gloo", timeout=LONGEST_STEP)
        # A group for numbers on the CPU, so that no GPU has to be waited for, and one that waits
        # while the pairs are checked and encoded.
        self.cpus: Any = dist.new_group(backend="gloo", timeout=LONGEST_STEP)
        self.patient: Any = dist.new_group(backend="gloo", timeout=LONGEST_START)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def share(self, number: int, batch_size: int) -> slice:
        """The pairs that this process handles in pass `number` of a step."""
        start = batch_size * (number * self.size + self.rank)
        return slice(start, start + batch_size)

    def join(self, network: N) -> N:
        """The network. If it is trained, its gradients will be averaged over the processes."""
        trained = any(parameter.requires_grad for parameter in network.parameters())
        if self.size == 1 or not trained:
            return network
        self.wait()  # until the first one has checked the pairs
        return cast(N, DistributedDataParallel(network))

    def average_next(self, now: bool, *networks: nn.Module) -> None:
        """Choose whether the next backward pass averages gradients over the processes, or only
        accumulates them."""
        for network in networks:
            if isinstance(network, DistributedDataParallel):
                network.require_backward_grad_sync = now

    def mean(self, values: Tensor) -> Tensor:
        if self.size > 1:
            dist.all_reduce(values)
        return values / self.size

    def largest(self, number: int) -> int:
        """The largest of all processes' numbers, compared on the CPU."""
        if self.size == 1:
            return number
        numbers = torch.tensor(number)
        dist.all_reduce(numbers, dist.ReduceOp.MAX, self.cpus)
        return int(numbers)

    def wait(self) -> None:
        """Wait until every process has called this."""
        if self.size > 1:
            dist.barrier(self.patient)

    def hurry(self) -> None:
        """From now on, wait for the others no longer than a step may take."""
        if self.size > 1:
            self.patient = self.cpus

    def gather(self, own: Any) -> list[Any]:
        """The objects of all processes, in their order. Waits until every process has called it."""
        found = [own] * self.size
        if self.size > 1:
            dist.all_gather_object(found, own, self.patient)
        return found

    def compare(self, folder: Path, facts: dict[str, str]) -> None:
        """Raises InputError in every process if they differ in their code or in a fact, by its
        name, or if they do not share the folder."""
        if self.size == 1:
            return
        facts = {"their versions of nanocontrol or PyTorch": code_here()} | facts
        found = self.gather(facts)
        for name in facts:
            if len({one[name] for one in found}) > 1:
                raise InputError(
                    f"the processes differ in {name}: expected the same on all machines"
                )
        token = self.gather(secrets.token_hex(8))[0]
        file = folder / f".{token}.shared"
        if self.rank == 0:
            make_folder("--out", folder)
            write_atomically(file, Path.touch)
        self.wait()
        shared = all(self.gather(appears(file)))
        if self.rank == 0:
            file.unlink()
        if not shared:
            raise InputError(
                f"{folder} is not the same folder on all machines: expected a shared one"
            )

    def leave(self) -> None:
        if dist.is_initialized():  # torchrun also initialises a single process
            dist.destroy_process_group()
