"""Reading and encoding pairs, in an order that the seed decides."""

import itertools
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nanocontrol.plumbing.machine import is_gpu, to_device
from nanocontrol.stable_diffusion import StableDiffusion

ORDER = 1  # with (seed, epoch), a sequence other than any (seed, step); 0 would give the same


class Batch(NamedTuple):
    """Encoded pairs; in one form, whether the encoding was cached or is done at every step."""

    mean: Tensor  # [n, 4, h, w], of the VAE's posterior, unscaled
    deviation: Tensor  # [n, 4, h, w], its standard deviation
    context: Tensor  # [n, 77, D], encoded prompts
    hint: Tensor  # [n, 3, H, W], RGB in [0, 1]


def generator_of(*numbers: int) -> torch.Generator:
    """A generator of its own for (seed, step), on the CPU. So a step's draws are the same on every
    device and in a resumed run, and no random state has to be saved."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


@torch.no_grad()
def encode(
    sd: StableDiffusion, images: Tensor, prompts: list[str]
) -> tuple[Tensor, Tensor, Tensor]:
    """images [n, 3, H, W] in [-1, 1] and n prompts -> mean, deviation, context as in Batch. (No
    latent is drawn yet: every training step draws another one of the same picture.)"""
    mean, deviation = sd.encode(images)
    return mean, deviation, sd.encode_prompts(list(prompts)).to(mean.dtype)


def shuffled(n: int, seed: int, start: int) -> Iterator[int]:
    """0..n-1 in another order every epoch, without end, beginning with the start-th."""
    for epoch in itertools.count(start // n):
        order = torch.randperm(n, generator=generator_of(seed, epoch, ORDER)).tolist()
        yield from order[start % n :]
        start = 0


def groups(order: Iterator, size: int, share: slice) -> Iterator[list]:
    """The next `size` indices, and again; of each group the share."""
    while True:
        yield list(itertools.islice(order, size))[share]


def readers(device: str) -> int:
    """How many processes read pairs. On a CPU they would take time away from training."""
    return 4 if is_gpu(device) else 0


def ignore_ctrl_c(_: int) -> None:
    """At the beginning of a process that reads: Ctrl-C, which goes to the whole group of processes,
    is not for it. The training ends it, when its step is finished."""
    if hasattr(os, "setsid"):  # not on Windows
        os.setsid()


def loader(dataset: Dataset, indices: Iterator[list[int]], device: str) -> Iterator:
    """Batches of the items with these indices."""
    ways: Any = {"num_workers": readers(device), "pin_memory": is_gpu(device)}
    return iter(DataLoader(dataset, batch_sampler=indices, worker_init_fn=ignore_ctrl_c, **ways))


def encoded(sd: StableDiffusion, columns: Iterator[tuple], device: str) -> Iterator[Batch]:
    """What a loader gives, of cached pairs or of pairs of pictures, as batches on the device."""
    for column in columns:
        if len(column) == 3:  # not from the cache
            images, hint, prompts = column
            column = (*encode(sd, images, prompts), hint)
        yield Batch(*(to_device(x, device) for x in column))
