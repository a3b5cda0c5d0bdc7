"""Training with several processes, one per GPU."""

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
    """Whether this process prints and writes: the first that torchrun started, or the only one."""
    return int(os.environ.get("RANK", 0)) == 0


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
        a_day = timedelta(days=1)  # the others wait while one encodes, saves or evaluates
        if device == "cuda":
            own = machine.own_gpu()
            dist.init_process_group("nccl", timeout=a_day, device_id=own)
        else:
            dist.init_process_group("gloo", timeout=a_day)
        # A group for numbers on the CPU, so that no GPU has to be waited for.
        self.cpus: Any = dist.new_group(backend="gloo", timeout=a_day)
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
            dist.barrier()

    def leave(self) -> None:
        if dist.is_initialized():  # torchrun also initialises a single process
            dist.destroy_process_group()
