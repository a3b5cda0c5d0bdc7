"""Several processes that train together, one for each GPU."""

import os
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nanocontrol.plumbing import machine
from nanocontrol.plumbing.errors import InputError

N = TypeVar("N", bound=nn.Module)


def is_first() -> bool:
    """Of those that torchrun started, or alone: the one that prints and writes."""
    return int(os.environ.get("RANK", 0)) == 0


class Processes:
    """Those that torchrun started, or this one alone. All make the same draws and keep the same
    weights; each takes its share of every pass, and DistributedDataParallel averages the gradients.
    So N of them take the steps of one with N times the batch size."""

    def __init__(self, device: str):
        self.rank, self.size = 0, 1
        if "LOCAL_RANK" not in os.environ:
            return
        if device not in ("cpu", "cuda"):
            raise InputError(f"--device {device}: with torchrun, expected cpu or cuda")
        a_day = timedelta(days=1)  # the others wait while one encodes, saves or measures
        if device == "cuda":
            own = machine.own_gpu()
            dist.init_process_group("nccl", timeout=a_day, device_id=own)
        else:
            dist.init_process_group("gloo", timeout=a_day)
        # For numbers that are on the CPU: no GPU has to be waited for.
        self.cpus: Any = dist.new_group(backend="gloo", timeout=a_day)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def share(self, number: int, batch_size: int) -> slice:
        """Of a step's pairs, those of this process in its pass of that number."""
        start = batch_size * (number * self.size + self.rank)
        return slice(start, start + batch_size)

    def join(self, network: N) -> N:
        """The network, with its gradients averaged over the processes if it is trained."""
        trained = any(parameter.requires_grad for parameter in network.parameters())
        if self.size == 1 or not trained:
            return network
        return cast(N, DistributedDataParallel(network))

    def average_next(self, now: bool, *networks: nn.Module) -> None:
        """Whether the next backward pass averages, or only adds up for a later one."""
        for network in networks:
            if isinstance(network, DistributedDataParallel):
                network.require_backward_grad_sync = now

    def mean(self, values: Tensor) -> Tensor:
        if self.size > 1:
            dist.all_reduce(values)
        return values / self.size

    def largest(self, number: int) -> int:
        """Of all processes' numbers, which are on the CPU."""
        if self.size == 1:
            return number
        numbers = torch.tensor(number)
        dist.all_reduce(numbers, dist.ReduceOp.MAX, self.cpus)
        return int(numbers)

    def wait(self) -> None:
        """Until all have come here."""
        if self.size > 1:
            dist.barrier()

    def leave(self) -> None:
        if dist.is_initialized():  # also by torchrun with a single one
            dist.destroy_process_group()
