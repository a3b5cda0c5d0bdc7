"""The batches and random draws of a training. Both depend on the seed and the step alone."""

import itertools
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from nanocontrol.plumbing.errors import InputError
from nanocontrol.plumbing.machine import to_device
from nanocontrol.schedulers import STEPS
from nanocontrol.stable_diffusion import StableDiffusion
from nanocontrol.training.cache import encoded_once
from nanocontrol.training.loader import Batch, encoded, generator_of, groups, loader, shuffled
from nanocontrol.training.pairs import Pairs
from nanocontrol.training.processes import Processes

PAUSES = 1, 5  # seconds before a picture that cannot be read is tried again


class Patient(Dataset):
    """A data set whose items are tried again if they cannot be read, as on a network's disk."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, i: Any) -> tuple:
        for pause in PAUSES:
            try:
                return self.dataset[i]
            except InputError:
                time.sleep(pause)
        return self.dataset[i]


def columns_of(items: list[tuple]) -> list:
    """A batch's columns from its pairs. If some hints are coloured, grey ones get three channels,
    too."""
    columns = default_collate([item[:-1] for item in items])
    last = [item[-1] for item in items]
    if isinstance(last[0], Tensor) and len({hint.shape for hint in last}) > 1:
        last = [hint.expand(-1, -1, 3) for hint in last]
    return [*columns, default_collate(last)]


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


def batches_from(
    start: int,
    sd: StableDiffusion,
    pairs: Pairs,
    processes: Processes,
    device: str,
    seed: int,
    steps: int,
    batch_size: int,
    accumulate: int,
    cache: str,
) -> Iterator[Batch]:
    """This process's batches from step `start` on, one per pass, without end.

    Pairs that are seen more than once are encoded once and kept in the folder `cache`. Then the VAE
    and the text encoder move to the CPU. With cache "" every batch is encoded when it is used.
    """
    n = batch_size * processes.size  # pairs in a pass
    seen = start * accumulate * n
    dataset: Any = pairs
    if cache and not pairs.moves and steps * accumulate * n > len(pairs):
        dataset = encoded_once(sd, pairs, cache, batch_size, processes)
    pairs.learnt({})
    order: Iterator = shuffled(len(pairs), seed, seen)
    if pairs.changes:  # the count of pairs seen before is part of the index: crop, caption
        order = zip(order, itertools.count(seen))
    indices = groups(order, n, processes.share(0, batch_size))
    columns = loader(Patient(dataset), indices, device, collate_fn=columns_of)
    return encoded(sd, columns, device)
