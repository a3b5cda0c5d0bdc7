"""The cache: outputs of the locked VAE and text encoder, computed once and kept on disk.

A row is found by its key, a hash of everything it was computed from: the picture's bytes or the
prompt, the weights and the precision. If one of these changes, so does the key, so a stale row is
never read. There are three kinds of rows: latents, contexts, and edges made by --hints canny. A
file holds up to 256 of each kind with their keys, and is complete or absent. The files are
memory-mapped. Missing rows are computed.
"""

import hashlib
import itertools
import shutil
from collections.abc import Hashable, Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from nanocontrol.formats.tensors import Tensors, read_safetensors, write_tensors
from nanocontrol.plumbing.errors import InputError
from nanocontrol.plumbing.files import make_folder, remove_temporary_files
from nanocontrol.stable_diffusion import StableDiffusion
from nanocontrol.training.loader import encode, loader
from nanocontrol.training.pairs import Pairs, Taken, unpacked
from nanocontrol.training.processes import Processes

VERSION = 3  # raise it when a change of the code changes the numbers in the files
FOLDER = "encoded"
IN_FILE = 256  # rows of a kind, at most; a multiple of common batch sizes
# The columns of a kind. `size` is the whole picture's, width and height.
KINDS = {"latents": ("mean", "deviation", "size"), "contexts": ("context",), "edges": ("bits",)}
AN_HOUR = 3600  # seconds: no running process still writes to a temporary file of this age
KEY = "S32"  # NumPy's type of a SHA-256


class Rows:
    """The rows in the cache's files."""

    def __init__(self, folder: Path):
        self.files = sorted(folder.glob("*.safetensors"))
        self.parts: dict[int, Tensors] = {}  # by the number of the file
        found = [(np.empty(0, KEY), np.empty(0, int))]
        for number in range(len(self.files)):
            with suppress(InputError):  # cut off: its rows are computed again
                for kind in KINDS.keys() & self.part(number).keys():
                    keys = self.part(number)[kind].numpy().view(KEY).ravel()
                    found.append((keys, (number << 32) + np.arange(len(keys))))
        keys, places = map(np.concatenate, zip(*found))
        order = keys.argsort()
        self.keys, self.places = keys[order], places[order]

    def __getstate__(self) -> dict:
        """The state that a reader process gets: the files' names, not their mapped contents."""
        return {"files": self.files, "parts": {}}

    def part(self, number: int) -> Tensors:
        if number not in self.parts:
            self.parts[number] = read_safetensors(self.files[number])[0]
        return self.parts[number]

    def find(self, keys: np.ndarray) -> np.ndarray:
        """The places of rows with these keys; -1 for a missing one."""
        if not len(self.keys):
            return np.full(len(keys), -1)
        at = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        return np.where(self.keys[at] == keys, self.places[at], -1)

    def row(self, kind: str, place: int) -> list[Tensor]:
        part = self.part(place >> 32)
        return [part[name][place & 0xFFFFFFFF] for name in KINDS[kind]]


class Cached(Dataset):
    """The pairs of a data set, each as mean, deviation, context (see `encode`) and hint: edges as
    bytes [H, W, 1], other hints as in `Pairs.hint`."""

    def __init__(self, pairs: Pairs, folder: Path, keys: "Keys"):
        self.pairs, self.rows, self.first = pairs, Rows(folder / FOLDER), keys.first
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
        self.pairs, self.encoders = pairs, encoders_hash(sd)
        kinds = KINDS if pairs.edges(0) else ("latents", "contexts")
        self.every = {kind: np.zeros(len(pairs), KEY) for kind in kinds}
        self.texts: list[str] = []
        self.first = np.zeros(len(pairs), int)

        # A list may name a picture often. i is the loop's: any pair of this picture will do.
        @lru_cache(2**16)
        def keys_of(image: Hashable, edges: str) -> dict[str, bytes]:
            found = pairs.fingerprint(i)
            return self.of_image(i, found) if found else {}

        what = "comparing with the cache"
        for i in tqdm(range(len(pairs)), what, leave=False, disable=not show):
            self.first[i] = len(self.texts)
            self.texts += pairs.captions(i)
            self.put(i, keys_of(pairs.image_id(i), pairs.edges(i)))
        self.every["contexts"] = np.array([*map(lru_cache(2**16)(self.of_text), self.texts)], KEY)

    def of_text(self, text: str) -> bytes:
        return key_of("contexts", self.encoders, text)

    def of_image(self, i: int, fingerprint: bytes) -> dict[str, bytes]:
        """The keys of pair i's latents and edges."""
        edges = key_of("edges", self.pairs.edges(i), fingerprint)
        return {"latents": key_of("latents", self.encoders, fingerprint), "edges": edges}

    def put(self, i: int, keys: dict[str, bytes]) -> None:
        for kind, key in keys.items():
            if kind in self.every:
                self.every[kind][i] = key

    def update(self, found: dict[int, Taken]) -> None:
        """Put those that were read, by the number of one of their pairs."""
        by_image = {self.pairs.image_id(i): one.fingerprint for i, one in found.items()}
        for i in range(len(self.pairs)) if by_image else ():
            if fingerprint := by_image.get(self.pairs.image_id(i)):
                self.put(i, self.of_image(i, fingerprint))


def key_of(*what: object) -> bytes:
    return hashlib.sha256(repr((VERSION, *what)).encode()).digest()


class Pictures(Dataset):
    """A data set's pairs as they are read for the cache."""

    def __init__(self, pairs: Pairs):
        self.pairs = pairs

    def __getitem__(self, i: int) -> Taken:
        return self.pairs.take(i)


class Writer:
    """Adds rows to the cache."""

    def __init__(self, folder: Path, rows: Rows):
        self.folder, self.rows = folder, rows
        self.new: dict[bytes, tuple[str, tuple[Tensor, ...]]] = {}  # kind and columns, by key
        self.written: set[bytes] = set()

    def lacks(self, key: bytes) -> bool:
        known = key in self.written or key in self.new
        return not known and self.rows.find(np.array([key], KEY))[0] < 0

    def add(self, kind: str, key: bytes, *columns: Tensor) -> None:
        if self.lacks(key):
            self.new[key] = kind, columns

    def write(self, share_done: float) -> None:
        """Write the new rows into a file. share_done: of the work, to ask for space before the
        first one."""
        tensors: Tensors = {}
        for kind, names in KINDS.items():
            rows = {key: columns for key, (own, columns) in self.new.items() if own == kind}
            if rows:
                keys = np.array([*rows], KEY).view(np.uint8).reshape(len(rows), -1)
                columns = map(torch.stack, zip(*rows.values()))
                tensors |= {kind: torch.from_numpy(keys), **dict(zip(names, columns))}
        if tensors and not self.written:
            needed = sum(tensor.nbytes for tensor in tensors.values()) / share_done
            check_space(self.folder, int(needed))
        if tensors:
            name = hashlib.sha256(b"".join(self.new)).hexdigest()
            write_tensors(self.folder / f"{name}.safetensors", tensors, {})
        self.written |= self.new.keys()
        self.new.clear()


def encode_all(
    sd: StableDiffusion, pairs: Pairs, folder: Path, batch_size: int, part: tuple[int, int] = (0, 1)
) -> tuple[Keys, dict[int, Taken]]:
    """Write the rows that the cache in this folder lacks -> all keys, and what was learnt about the
    images that were read, by the number of a pair.

    part: the number of this process and how many there are. Each reads and writes its own share of
    the pairs, so other processes' rows may still be missing on return. An interruption loses one
    file at most. Raises InputError if the disk has too little space.
    """
    rank, processes = part
    inner = make_folder("--cache", folder / FOLDER)
    remove_temporary_files(inner, AN_HOUR)
    keys, rows = Keys(sd, pairs, rank == 0), Rows(inner)
    lacking = {
        kind: (np.arange(len(x)) // IN_FILE % processes == rank) & (rows.find(x) < 0)
        for kind, x in keys.every.items()
    }
    writer, done = Writer(inner, rows), 0
    found: dict[int, Taken] = {}
    batches = batches_of(unread(pairs, lacking), batch_size)
    n, device = sum(map(len, batches)), str(next(sd.vae.parameters()).device)
    ways: Any = {"collate_fn": list, "pin_memory": False}
    read = loader(Pictures(pairs), batches, device, **ways) if batches else ()
    with tqdm(desc="encoding pairs", total=n, disable=rank > 0) as bar:
        for numbers, taken in zip(batches, read):
            encode_batch(sd, keys, writer, numbers, taken)
            found |= {i: one._replace(image=None, edges=None) for i, one in zip(numbers, taken)}
            bar.update(len(numbers))
            done += len(numbers)
            if done % IN_FILE < len(numbers):
                writer.write(done / n / processes)
    others = {keys.texts[i]: i for i in np.flatnonzero(lacking["contexts"]).tolist()}
    left = [i for text, i in others.items() if writer.lacks(keys.of_text(text))]
    for numbers in batches_of(left, batch_size):
        encode_texts(sd, keys, writer, [keys.texts[i] for i in numbers])
    writer.write(1 / processes)
    pairs.learnt(found)
    return keys, found


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
    sd: StableDiffusion, keys: Keys, writer: Writer, numbers: list[int], taken: list[Taken]
) -> None:
    """Add the rows of some pairs. Images whose latents the cache has are not encoded again."""
    some = []
    for i, one in zip(numbers, taken):
        key = keys.of_image(i, one.fingerprint)
        if one.edges is not None:
            writer.add("edges", key["edges"], one.edges)
        if writer.lacks(key["latents"]):
            some.append((i, one, key["latents"]))
    if not some:
        return
    prompts = [keys.texts[keys.first[i]] for i, *_ in some]
    rows = zip(*encode(sd, torch.stack([one.image for _, one, _ in some]), prompts))
    for (_, one, latents), prompt, (mean, deviation, context) in zip(some, prompts, rows):
        size = torch.tensor(one.facts.size if one.facts else (0, 0))
        writer.add("latents", latents, mean, deviation, size)
        writer.add("contexts", keys.of_text(prompt), context)


@torch.no_grad()
def encode_texts(sd: StableDiffusion, keys: Keys, writer: Writer, texts: list[str]) -> None:
    """Add the contexts of captions that are not encoded with a picture."""
    contexts = sd.encode_prompts(texts).to(next(sd.vae.parameters()).dtype)
    for text, context in zip(texts, contexts):
        writer.add("contexts", keys.of_text(text), context)
    if len(writer.new) >= IN_FILE:
        writer.write(1)


def encoded_once(
    sd: StableDiffusion, pairs: Pairs, folder: str, batch_size: int, processes: Processes
) -> Cached:
    """The pairs with their encodings from the cache; missing ones are encoded now. Afterwards the
    VAE and the text encoder leave the GPU, because training no longer needs them."""
    part = processes.rank, processes.size
    keys, found = encode_all(sd, pairs, Path(folder), batch_size, part)
    for theirs in processes.gather(found):  # waits until the others have written their rows
        keys.update(theirs)
    sd.vae.cpu(), sd.text_encoder.cpu()
    return Cached(pairs, Path(folder), keys)


def encoders_hash(sd: StableDiffusion) -> str:
    """A hash of the weights of the VAE's encoder and of the text encoder."""
    digest = hashlib.sha256()
    for network in (sd.vae.encoder, sd.vae.quant_conv, sd.text_encoder):
        for name, tensor in network.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {[*tensor.shape]}".encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"--cache {folder.parent} needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are "
            "free: use a folder with more space, or --no-cache"
        )
