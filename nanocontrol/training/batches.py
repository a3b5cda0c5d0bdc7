"""The batches and random draws of a training. Both depend on the seed and the step alone."""

import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from nanocontrol.plumbing.errors import InputError
from nanocontrol.plumbing.machine import is_gpu, to_device
from nanocontrol.schedulers import STEPS
from nanocontrol.stable_diffusion import StableDiffusion

ORDER = 1  # makes (seed, epoch, ORDER) differ from every (seed, step); a zero would not
PAUSES = 1, 5  # seconds before a picture that cannot be read is tried again


class Batch(NamedTuple):
    """Encoded pairs. The form does not depend on whether they come from the cache."""

    mean: Tensor  # [n, 4, h, w], mean of the VAE's posterior, unscaled
    deviation: Tensor  # [n, 4, h, w], standard deviation of the posterior
    context: Tensor  # [n, 77, D], encoded prompts
    hint: Tensor  # [n, 3, H, W], RGB in [0, 1]


def generator_of(*numbers: int) -> torch.Generator:
    """A CPU generator that is seeded with these numbers, such as (seed, step). A step's draws are
    therefore equal on every device and in a resumed run, and no random state has to be saved."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


class Draws(NamedTuple):
    """The random numbers for n pairs of a step."""

    posterior: Tensor  # [n, 4, h, w], normal: samples a latent from the VAE's posterior
    noise: Tensor  # [n, 4, h, w], normal
    t: Tensor  # [n], 0..999
    no_prompt: Tensor  # [n], bool: whether the prompt is dropped

    def of(self, pairs: slice, device: str) -> "Draws":
        """The draws for some of the pairs, on the device."""
        return Draws(*(to_device(drawn[pairs], device) for drawn in self))


def random_draws(seed: int, step: int, n: int, size: tuple[int, int], drop_prompt: float) -> Draws:
    """The draws for all n pairs of a step at once. They do not depend on how the pairs are divided
    into passes and processes. size: height and width of the pictures in pixels."""
    generator, shape = generator_of(seed, step), (n, 4, size[0] // 8, size[1] // 8)
    posterior, noise = (torch.randn(shape, generator=generator) for _ in range(2))
    t = torch.randint(STEPS, (n,), generator=generator)
    return Draws(posterior, noise, t, torch.rand(n, generator=generator) < drop_prompt)


@torch.no_grad()
def encode(
    sd: StableDiffusion, images: Tensor, prompts: list[str]
) -> tuple[Tensor, Tensor, Tensor]:
    """Encode images [n, 3, H, W] in [-1, 1] and n prompts -> mean, deviation, context as in Batch.
    No latent is sampled here, because every training step samples a new one."""
    mean, deviation = sd.encode(images)
    return mean, deviation, sd.encode_prompts(list(prompts)).to(mean.dtype)


def shuffled(n: int, seed: int, start: int) -> Iterator[int]:
    """The numbers 0..n-1 in a new order every epoch, without end, from position `start` on."""
    for epoch in itertools.count(start // n):
        order = torch.randperm(n, generator=generator_of(seed, epoch, ORDER)).tolist()
        yield from order[start % n :]
        start = 0


def groups(order: Iterator, size: int, share: slice) -> Iterator[list]:
    """Successive groups of `size` indices, each reduced to this process's share."""
    while True:
        yield list(itertools.islice(order, size))[share]


def readers(device: str) -> int:
    """The number of worker processes that read pairs: one per core, at most 8. Processes that
    torchrun started share the cores. On a CPU, readers would slow training down."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # on Linux: the cores that this process may use
        cores = len(os.sched_getaffinity(0))
    cores //= int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min(max(cores, 1), 8) if is_gpu(device) else 0


class Patient(Dataset):
    """The items that a function reads. One that cannot be read, as on a network's disk, is tried
    again."""

    def __init__(self, read: Callable[[Any], Any]):
        self.read = read

    def __getitem__(self, i: Any) -> Any:
        for pause in PAUSES:
            try:
                return self.read(i)
            except InputError:
                time.sleep(pause)
        return self.read(i)


def ignore_ctrl_c(_: int) -> None:
    """Shield a worker process, when it starts, from Ctrl-C, which goes to the whole process group.
    The training ends its workers after the current step."""
    if hasattr(os, "setsid"):  # not on Windows
        os.setsid()


def loader(dataset: Dataset, indices: Iterable[list[int]], device: str, **more: Any) -> Iterator:
    """Batches of the data set's items with these indices. more: arguments of DataLoader."""
    ways: Any = {"num_workers": readers(device), "pin_memory": is_gpu(device)} | more
    return iter(DataLoader(dataset, batch_sampler=indices, worker_init_fn=ignore_ctrl_c, **ways))


def columns_of(items: list[tuple]) -> list:
    """A batch's columns from its pairs. If some hints are coloured, grey ones get three channels,
    too."""
    columns = default_collate([item[:-1] for item in items])
    last = [item[-1] for item in items]
    if isinstance(last[0], Tensor) and len({hint.shape for hint in last}) > 1:
        last = [hint.expand(-1, -1, 3) for hint in last]
    return [*columns, default_collate(last)]


def in_unit(x: Tensor) -> Tensor:
    """Bytes of pictures [..., H, W, 1 or 3] -> [..., 3, H, W] in [0, 1]; floats are left
    unchanged."""
    if x.dtype != torch.uint8:
        return x
    # Divided by a tensor: a GPU multiplies by the inverse of a number, which rounds differently.
    x = x.movedim(-1, -3).float() / torch.full((), 255.0, device=x.device)
    return x.expand(*x.shape[:-3], 3, -1, -1)


def encoded(sd: StableDiffusion, columns: Iterator[Any], device: str) -> Iterator[Batch]:
    """A loader's output as batches on the device. Pairs not from the cache are encoded here. Hints
    may be bytes [n, H, W, 1 or 3]: stacking them in another order takes ten times as long."""
    for column in columns:
        if len(column) == 3:  # not from the cache
            images, hint, prompts = column
            column = (*encode(sd, images, prompts), hint)
        batch = Batch(*(to_device(x, device) for x in column))
        yield batch._replace(hint=in_unit(batch.hint).contiguous())
