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
from nanocontrol.training.batches import (
    Batch,
    Patient,
    columns_of,
    encode,
    encoded,
    groups,
    loader,
    shuffled,
)
from nanocontrol.training.known import Facts
from nanocontrol.training.pairs import Pairs, Taken, unpacked
from nanocontrol.training.processes import Processes
from nanocontrol.training.store import KEY, Store, key_of

FOLDER = "encoded"
IN_FILE = 256  # rows of a kind, at most; a multiple of common batch sizes


class Cached(Dataset):
    """The pairs of a data set, each as mean, deviation, context (see `encode`) and hint: edges as
    bytes [H, W, 1], other hints as in `Pairs.hint`."""

    def __init__(self, pairs: Pairs, folder: Path, keys: "Keys"):
        self.pairs, self.rows, self.first = pairs, Store(folder / FOLDER), keys.first
        self.places = {kind: self.rows.find(every) for kind, every in keys.every.items()}
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


class Keys:
    """The keys of a data set's rows, an array for each kind. A picture that has to be read first
    has none yet. Contexts have a key for each caption of each pair: pair i's begin at first[i]."""

    def __init__(self, sd: StableDiffusion, pairs: Pairs, show: bool):
        self.pairs, self.encoders, self.show = pairs, encoders_hash(sd), show
        captions = [pairs.captions(i) for i in range(len(pairs))]
        self.texts = [text for some in captions for text in some]
        self.first = np.cumsum([0, *map(len, captions)])
        contexts = np.array([*map(lru_cache(2**16)(self.of_text), self.texts)], KEY)
        kinds = ("latents", "edges") if pairs.edges(0) else ("latents",)
        self.every = {kind: np.zeros(len(pairs), KEY) for kind in kinds} | {"contexts": contexts}
        self.put_images()

    def of_text(self, text: str) -> bytes:
        return key_of("contexts", self.encoders, text)

    def of_image(self, i: int) -> dict[str, bytes]:
        """The keys of pair i's latents and edges; none if its picture has to be read first."""
        if not (fingerprint := self.pairs.fingerprint(i)):
            return {}
        latents = key_of("latents", self.encoders, fingerprint)
        return {"latents": latents, "edges": key_of("edges", self.pairs.edges(i), fingerprint)}

    def put_images(self) -> None:
        # A list may name a picture often. i is the loop's: any pair of this picture will do.
        @lru_cache(2**16)
        def keys_of(image: Hashable, edges: str) -> dict[str, bytes]:
            return self.of_image(i)

        what = "comparing with the cache"
        for i in tqdm(range(len(self.pairs)), what, leave=False, disable=not self.show):
            keys = keys_of(self.pairs.image_id(i), self.pairs.edges(i))
            for kind in self.every.keys() & keys.keys():
                self.every[kind][i] = keys[kind]

    def update(self, found: list[Facts]) -> None:
        """Put the keys of images that were read."""
        for facts in found:
            self.pairs.known.learn(facts)
        if found:
            self.put_images()


def encode_all(
    sd: StableDiffusion, pairs: Pairs, folder: Path, batch_size: int, part: tuple[int, int] = (0, 1)
) -> tuple[Keys, list[Facts]]:
    """Write the rows that the cache in this folder lacks -> all keys, and facts about the pictures
    that were read.

    part: the number of this process and how many there are. Each reads and writes its own share of
    the pairs, so other processes' rows may still be missing on return. An interruption loses one
    file at most. Raises InputError if the disk has too little space.
    """
    rank, processes = part
    keys, store = Keys(sd, pairs, rank == 0), Store(folder / FOLDER)
    lacking = {
        kind: (np.arange(len(x)) // IN_FILE % processes == rank) & (store.find(x) < 0)
        for kind, x in keys.every.items()
    }
    done = 0
    batches = batches_of(unread(pairs, lacking), batch_size)
    n, device = sum(map(len, batches)), str(next(sd.vae.parameters()).device)
    ways: Any = {"collate_fn": list, "pin_memory": False}
    read = loader(Patient(pairs.take), batches, device, **ways) if batches else ()
    with tqdm(desc="encoding pairs", total=n, disable=rank > 0) as bar:
        for numbers, taken in zip(batches, read):
            for facts in (one.facts for one in taken if one.facts):
                pairs.known.learn(facts)
            encode_batch(sd, keys, store, numbers, taken)
            bar.update(len(numbers))
            done += len(numbers)
            if done % IN_FILE < len(numbers):
                store.write(done / n / processes)
    others = {keys.texts[i]: i for i in np.flatnonzero(lacking["contexts"]).tolist()}
    left = [i for text, i in others.items() if store.lacks(keys.of_text(text))]
    for numbers in batches_of(left, batch_size):
        encode_texts(sd, keys, store, [keys.texts[i] for i in numbers])
    store.write(1 / processes)
    pairs.known.settle()
    # The index may lack some: young files, a full disk. Other processes need not save them, too.
    return keys, [facts._replace(stamp="") for facts in pairs.known.recent.values()]


def unread(pairs: Pairs, lacking: dict[str, np.ndarray]) -> Iterator[int]:
    """The pairs that have to be read, each picture and its edges once. lacking: whether each pair's
    row is missing, by its kind."""
    seen = set()
    wanted = np.logical_or.reduce([x for kind, x in lacking.items() if kind != "contexts"])
    for i in np.flatnonzero(wanted).tolist():
        if (what := (pairs.image_id(i), pairs.edges(i))) not in seen:
            seen.add(what)
            yield i


def batches_of(numbers: Iterable[int], batch_size: int) -> list[list[int]]:
    """Batches of pairs. None crosses the end of a part of 256 pairs, so that batches, and the
    rounding in them, do not depend on the number of processes."""
    parts = [[*part] for _, part in itertools.groupby(numbers, lambda i: i // IN_FILE)]
    return [part[i : i + batch_size] for part in parts for i in range(0, len(part), batch_size)]


def encode_batch(
    sd: StableDiffusion, keys: Keys, store: Store, numbers: list[int], taken: list[Taken]
) -> None:
    """Add the rows of some pairs. Images whose latents the cache has are not encoded again."""
    some = []
    for i, one in zip(numbers, taken):
        key = keys.of_image(i)
        if one.edges is not None:
            store.add("edges", key["edges"], one.edges)
        if store.lacks(key["latents"]):
            some.append((i, one, key["latents"]))
    if not some:
        return
    prompts = [keys.texts[keys.first[i]] for i, *_ in some]
    rows = zip(*encode(sd, torch.stack([one.image for _, one, _ in some]), prompts))
    for (_, one, latents), prompt, (mean, deviation, context) in zip(some, prompts, rows):
        size = torch.tensor(one.facts.size if one.facts else (0, 0))
        store.add("latents", latents, mean, deviation, size)
        store.add("contexts", keys.of_text(prompt), context)


@torch.no_grad()
def encode_texts(sd: StableDiffusion, keys: Keys, store: Store, texts: list[str]) -> None:
    """Add the contexts of captions that are not encoded with a picture."""
    contexts = sd.encode_prompts(texts).to(next(sd.vae.parameters()).dtype)
    for text, context in zip(texts, contexts):
        store.add("contexts", keys.of_text(text), context)
    if len(store.new) >= IN_FILE:
        store.write()


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
        part = processes.rank, processes.size
        keys, found = encode_all(sd, pairs, Path(cache), batch_size, part)
        every = processes.gather(found)  # waits until the others have written their rows
        keys.update([facts for theirs in every for facts in theirs])
        sd.vae.cpu(), sd.text_encoder.cpu()
        dataset = Cached(pairs, Path(cache), keys)
    pairs.known.settle()
    order = zip(shuffled(len(pairs), seed, seen), itertools.count(seen))
    indices = groups(order, n, processes.share(0, batch_size))
    columns = loader(Patient(dataset.__getitem__), indices, device, collate_fn=columns_of)
    return encoded(sd, columns, device)
