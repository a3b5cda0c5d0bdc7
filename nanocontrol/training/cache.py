"""The cache: outputs of the locked VAE and text encoder, computed once and kept on disk.

Its rows are latents, contexts, and edges made by --hints canny (store.py). A key is a hash of the
picture's bytes or the prompt, the weights and the precision. Missing rows are computed.
"""

import hashlib
import itertools
from collections.abc import Hashable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from nanocontrol.plumbing.errors import InputError
from nanocontrol.stable_diffusion import StableDiffusion
from nanocontrol.training.batches import Batch, encode, encoded, groups, loader, shuffled
from nanocontrol.training.known import Facts
from nanocontrol.training.pairs import Pairs, Taken, unpacked
from nanocontrol.training.processes import Processes
from nanocontrol.training.store import KEY, Store, key_of

FOLDER = "encoded"
IN_FILE = 256  # rows of a kind, at most; a multiple of common batch sizes


class Encodings:
    """The rows of a data set in the cache in this folder, and their keys, an array for each kind. A
    picture that has to be read first has none yet. Contexts have a key for each caption of each
    pair: pair i's begin at first[i].

    part: the number of this process and how many there are. Each fills its own share of the pairs.
    """

    def __init__(
        self, sd: StableDiffusion, pairs: Pairs, folder: Path, part: tuple[int, int] = (0, 1)
    ):
        self.sd, self.pairs, self.store, self.part = sd, pairs, Store(folder / FOLDER), part
        self.encoders = encoders_hash(sd)
        captions = [pairs.captions(i) for i in range(len(pairs))]
        self.texts = [text for some in captions for text in some]
        self.first = np.cumsum([0, *map(len, captions)])
        contexts = np.array([*map(lru_cache(2**16)(self.of_text), self.texts)], KEY)
        kinds = ("latents", "edges") if pairs.edges(0) else ("latents",)
        self.keys = {kind: np.zeros(len(pairs), KEY) for kind in kinds} | {"contexts": contexts}
        self.learn([])

    def of_text(self, text: str) -> bytes:
        return key_of("contexts", self.encoders, text)

    def of_image(self, i: int) -> dict[str, bytes]:
        """The keys of pair i's latents and edges; none if its picture has to be read first."""
        if not (fingerprint := self.pairs.fingerprint(i)):
            return {}
        keys = {"latents": key_of("latents", self.encoders, fingerprint)}
        edges = self.pairs.edges(i)
        return keys | {"edges": key_of("edges", edges, fingerprint)} if edges else keys

    def learn(self, found: list[Facts]) -> None:
        """Put the keys of images. found: facts about those that were read since."""
        for facts in found:
            self.pairs.known.learn(facts)
        what = "comparing with the cache"
        for i in tqdm(range(len(self.pairs)), what, leave=False, disable=self.part[0] > 0):
            for kind, key in self.of_image(i).items():
                self.keys[kind][i] = key

    def fill(self, batch_size: int) -> list[Facts]:
        """Write the rows of this process's share that the cache lacks -> facts about the pictures
        that were read. An interruption loses one file at most. Raises InputError if the disk has
        too little space."""
        (rank, processes), pairs, store = self.part, self.pairs, self.store
        lacking = {
            kind: (np.arange(len(x)) // IN_FILE % processes == rank) & (store.find(x) < 0)
            for kind, x in self.keys.items()
        }
        unread: dict[Hashable, int] = {}  # each picture and its edges are read once
        for i in np.flatnonzero(lacking["latents"] | lacking.get("edges", False)).tolist():
            unread.setdefault((pairs.image_id(i), pairs.edges(i)), i)
        batches = batches_of(unread.values(), batch_size)
        done, n, found = 0, len(unread), []
        device = str(next(self.sd.vae.parameters()).device)
        ways: Any = {"collate_fn": list, "pin_memory": False}
        read = loader(pairs.take, batches, device, **ways) if batches else ()
        with tqdm(desc="encoding pairs", total=n, disable=rank > 0) as bar:
            for numbers, taken in zip(batches, read):
                for facts in (one.facts for one in taken if one.facts):
                    pairs.known.learn(facts)
                    found.append(facts._replace(state=()))  # other processes need not save it, too
                self.encode_pairs(numbers, taken)
                bar.update(len(numbers))
                done += len(numbers)
                if done % IN_FILE < len(numbers):
                    store.write(done / n / processes)
        others = {self.texts[i]: i for i in np.flatnonzero(lacking["contexts"]).tolist()}
        left = [i for text, i in others.items() if store.lacks(self.of_text(text))]
        for numbers in batches_of(left, batch_size):
            self.encode_texts([self.texts[i] for i in numbers])
        store.write(1 / processes)
        pairs.known.settle()
        return found

    def encode_pairs(self, numbers: list[int], taken: list[Taken]) -> None:
        """Add the rows of some pairs. Images whose latents the cache has are not encoded again."""
        new = []
        for i, one in zip(numbers, taken):
            keys = self.of_image(i)
            if one.edges is not None:
                self.store.add("edges", keys["edges"], one.edges)
            if self.store.lacks(keys["latents"]):
                new.append((keys["latents"], one, self.texts[self.first[i]]))
        if not new:
            return
        _, some, prompts = zip(*new)
        rows = zip(*encode(self.sd, torch.stack([one.image for one in some]), prompts))
        for (key, one, prompt), (mean, deviation, context) in zip(new, rows):
            size = torch.tensor(one.facts.size if one.facts else (0, 0))
            self.store.add("latents", key, mean, deviation, size)
            self.store.add("contexts", self.of_text(prompt), context)

    @torch.no_grad()
    def encode_texts(self, texts: list[str]) -> None:
        """Add the contexts of captions that are not encoded with a picture."""
        contexts = self.sd.encode_prompts(texts).to(next(self.sd.vae.parameters()).dtype)
        for text, context in zip(texts, contexts):
            self.store.add("contexts", self.of_text(text), context)
        if len(self.store.new) >= IN_FILE:
            self.store.write()


def batches_of(numbers: Iterable[int], batch_size: int) -> list[list[int]]:
    """Batches of pairs. None crosses the end of a part of 256 pairs, so that batches, and the
    rounding in them, do not depend on the number of processes."""
    parts = [[*part] for _, part in itertools.groupby(numbers, lambda i: i // IN_FILE)]
    return [part[i : i + batch_size] for part in parts for i in range(0, len(part), batch_size)]


class Cached(Dataset):
    """The pairs of a data set, each as mean, deviation, context (see `encode`) and hint: edges as
    bytes [H, W, 1], other hints as in `Pairs.hint`."""

    def __init__(self, encodings: Encodings):
        self.pairs, self.first = encodings.pairs, encodings.first
        self.rows = Store(folder := encodings.store.folder)
        self.places = {kind: self.rows.find(keys) for kind, keys in encodings.keys.items()}
        if any((places < 0).any() for places in self.places.values()):
            raise InputError(f"--cache {folder}: files disappeared; expected to use it alone")

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int | tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        i, seen = i if isinstance(i, tuple) else (i, None)
        caption = self.first[i] + (0 if seen is None else self.pairs.drawn(i, seen))
        at = dict.fromkeys(self.places, i) | {"contexts": caption}
        row = {kind: self.rows.row(kind, int(x[at[kind]])) for kind, x in self.places.items()}
        (mean, deviation, size), (context,) = row["latents"], row["contexts"]
        hint = unpacked(*row["edges"]) if "edges" in row else self.pairs.hint(i, size.tolist())
        return mean, deviation, context, hint


def encoders_hash(sd: StableDiffusion) -> str:
    """A hash of the weights of the VAE's encoder and of the text encoder."""
    digest = hashlib.sha256()
    for network in (sd.vae.encoder, sd.vae.quant_conv, sd.text_encoder):
        for name, tensor in network.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {[*tensor.shape]}".encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


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
    and the text encoder move to the CPU, because training no longer needs them. With cache "" every
    batch is encoded when it is used.
    """
    n = batch_size * processes.size  # pairs in a pass
    seen = start * accumulate * n
    dataset: Pairs | Cached = pairs
    if cache and not pairs.moves and steps * accumulate * n > len(pairs):
        encodings = Encodings(sd, pairs, Path(cache), (processes.rank, processes.size))
        every = processes.gather(encodings.fill(batch_size))  # and the others' rows are written
        if found := [facts for theirs in every for facts in theirs]:
            encodings.learn(found)
        sd.vae.cpu(), sd.text_encoder.cpu()
        dataset = Cached(encodings)
    pairs.known.settle()
    order = zip(shuffled(len(pairs), seed, seen), itertools.count(seen))
    indices = groups(order, n, processes.share(0, batch_size))
    return encoded(sd, loader(dataset.__getitem__, indices, device), device)
