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
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from nanocontrol.formats.tensors import Tensors, read_safetensors, write_tensors
from nanocontrol.plumbing.errors import InputError
from nanocontrol.plumbing.files import make_folder, remove_temporary_files
from nanocontrol.stable_diffusion import StableDiffusion
from nanocontrol.training.loader import encode, ignore_ctrl_c, readers
from nanocontrol.training.pairs import Pairs, Taken
from nanocontrol.training.processes import Processes

VERSION = 3  # raise it when a change of the code changes the numbers in the files
FOLDER = "encoded"
IN_FILE = 256  # rows of a kind, at most; a multiple of common batch sizes
# The columns of a kind. `size` is the whole picture's, width and height.
KINDS = {"latents": ("mean", "deviation", "size"), "contexts": ("context",), "edges": ("edges",)}
AN_HOUR = 3600  # seconds: no running process still writes to a temporary file of this age
KEY_BYTES = 32
KEY = f"S{KEY_BYTES}"  # NumPy's type of a SHA-256


class Rows:
    """The rows in the cache's files."""

    def __init__(self, folder: Path):
        self.files = sorted(folder.glob("*.safetensors"))
        self.parts: dict[int, Tensors] = {}  # by the number of the file
        found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {kind: [] for kind in KINDS}
        for number in range(len(self.files)):
            try:
                part = self.part(number)
            except InputError:  # cut off: its rows are computed again
                continue
            for kind in KINDS:
                if f"{kind} keys" in part:
                    own = part[f"{kind} keys"].numpy().view(KEY).ravel()
                    found[kind].append((own, (number << 32) + np.arange(len(own))))
        self.keys: dict[str, np.ndarray] = {}  # sorted
        self.places: dict[str, np.ndarray] = {}
        for kind, parts in found.items():
            keys, places = [np.concatenate([p[i] for p in parts] or [np.empty(0)]) for i in (0, 1)]
            order = keys.argsort(kind="stable")
            self.keys[kind], self.places[kind] = keys[order], places[order]

    def __getstate__(self) -> dict:
        """The state that a reader process gets: the files' names, not their mapped contents."""
        return {"files": self.files, "parts": {}}

    def part(self, number: int) -> Tensors:
        if number not in self.parts:
            self.parts[number] = read_safetensors(self.files[number])[0]
        return self.parts[number]

    def find(self, kind: str, keys: np.ndarray) -> np.ndarray:
        """The places of rows with these keys; -1 for a missing one."""
        at = positions(keys, self.keys[kind])
        return np.where(at < 0, -1, self.places[kind][at]) if len(self.places[kind]) else at

    def row(self, kind: str, place: int) -> list[Tensor]:
        part = self.part(place >> 32)
        return [part[name][place & 0xFFFFFFFF] for name in KINDS[kind]]


class Cached(Dataset):
    """The pairs of a data set, each as mean, deviation, context (see `encode`) and hint: edges as
    bytes [H, W, 1], other hints as in `Pairs.hint`."""

    def __init__(self, pairs: Pairs, folder: Path, keys: "Keys"):
        self.pairs, self.rows = pairs, Rows(folder / FOLDER)
        self.places = {kind: self.rows.find(kind, every) for kind, every in keys.every.items()}
        if any((places < 0).any() for places in self.places.values()):
            raise InputError(f"--cache {folder}: files disappeared; expected to use it alone")

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, deviation, size = self.row("latents", i)
        (context,) = self.row("contexts", i)
        if "edges" in self.places:
            return mean, deviation, context, unpacked(*self.row("edges", i))
        width, height = size.tolist()
        return mean, deviation, context, self.pairs.hint(i, (width, height))

    def row(self, kind: str, i: int) -> list[Tensor]:
        return self.rows.row(kind, int(self.places[kind][i]))


def packed(edges: Tensor) -> Tensor:
    """Edges [3, H, W] of zeros and ones, in equal channels -> a bit per pixel, [H, W / 8] bytes."""
    return torch.from_numpy(np.packbits(edges[0].bool().numpy(), axis=-1))


def unpacked(bits: Tensor) -> Tensor:
    """Packed edges -> [H, W, 1], bytes of 0 and 255."""
    return torch.from_numpy(np.unpackbits(bits.numpy(), axis=-1) * 255)[..., None]


class Keys:
    """The keys of a data set's rows, an array for each kind. Those of pictures that have to be read
    first are empty."""

    def __init__(self, sd: StableDiffusion, pairs: Pairs, show: bool):
        self.pairs, self.encoders = pairs, f"{VERSION} {encoders_hash(sd)}".encode()
        kinds = KINDS if pairs.edges(0) else ("latents", "contexts")
        self.every = {kind: np.zeros(len(pairs), KEY) for kind in kinds}
        bar = tqdm(range(len(pairs)), "comparing with the cache", leave=False, disable=not show)
        for i in bar:
            self.put(i, pairs.fingerprint(i))
            self.every["contexts"][i] = self.of_prompt(i)

    def hash(self, kind: str, what: bytes) -> bytes:
        return hashlib.sha256(b" ".join([self.encoders, kind.encode(), what])).digest()

    def of_prompt(self, i: int) -> bytes:
        return self.hash("contexts", self.pairs.prompt(i).encode())

    def of_image(self, i: int, fingerprint: bytes) -> dict[str, bytes]:
        """The keys of pair i's latents and edges."""
        edges = f"{VERSION} edges {self.pairs.edges(i)} ".encode() + fingerprint
        keys = {"latents": self.hash("latents", fingerprint)}
        if "edges" in self.every:
            keys["edges"] = hashlib.sha256(edges).digest()
        return keys

    def put(self, i: int, fingerprint: bytes) -> None:
        for kind, key in self.of_image(i, fingerprint).items() if fingerprint else ():
            self.every[kind][i] = key

    def update(self, fingerprints: dict[int, bytes]) -> None:
        """Put what was read: fingerprints of images, by one of their pairs."""
        by_image = {self.pairs.image_id(i): found for i, found in fingerprints.items()}
        for i in range(len(self.pairs)) if by_image else ():
            if found := by_image.get(self.pairs.image_id(i)):
                self.put(i, found)


class Pictures(Dataset):
    """A data set's pairs as they are read for the cache, whose keys are sorted."""

    def __init__(self, keys: Keys, rows: Rows):
        self.keys, self.known = keys, rows.keys

    def __getitem__(self, i: int) -> Taken:
        taken = self.keys.pairs.take(i, partial(self.has, i))
        return taken._replace(edges=None if taken.edges is None else packed(taken.edges))

    def has(self, i: int, fingerprint: bytes) -> bool:
        found = self.keys.of_image(i, fingerprint).items()
        return all(positions(np.array([key], KEY), self.known[kind])[0] >= 0 for kind, key in found)


def positions(keys: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Where keys are in a sorted array; -1 for one that is not."""
    if not len(among):
        return np.full(len(keys), -1)
    at = np.searchsorted(among, keys).clip(max=len(among) - 1)
    return np.where(among[at] == keys, at, -1)


class Writer:
    """Adds rows to the cache: a file whenever enough have come together. Before the first one it
    asks for space. missing: the number of rows of each kind that will be added."""

    def __init__(self, folder: Path, rows: Rows, missing: dict[str, int]):
        self.folder, self.rows, self.missing = folder, rows, missing
        self.new: dict[str, dict[bytes, list[Tensor]]] = {kind: {} for kind in KINDS}
        self.written: set[bytes] = set()

    def lacks(self, kind: str, key: bytes) -> bool:
        if key in self.written or key in self.new[kind]:
            return False
        return self.rows.find(kind, np.array([key], KEY))[0] < 0

    def add(self, kind: str, key: bytes, *columns: Tensor) -> None:
        if self.lacks(kind, key):
            self.new[kind][key] = [*columns]

    def write(self, at_least: int = 1) -> None:
        """Write the new rows, if there are so many of a kind."""
        if max(map(len, self.new.values())) < at_least:
            return
        if not self.written:
            check_space(self.folder, self.missing, self.new)
        tensors: Tensors = {}
        for kind, rows in self.new.items():
            if rows:
                keys = np.array([*rows], KEY).view(np.uint8).reshape(len(rows), -1)
                columns = map(torch.stack, zip(*rows.values()))
                tensors |= {f"{kind} keys": torch.from_numpy(keys)} | dict(
                    zip(KINDS[kind], columns)
                )
        names = [key for rows in self.new.values() for key in rows]
        file = hashlib.sha256(b"".join(names)).hexdigest()
        write_tensors(self.folder / f"{file}.safetensors", tensors, {})
        self.written.update(names)
        self.new = {kind: {} for kind in KINDS}


def encode_all(
    sd: StableDiffusion,
    pairs: Pairs,
    folder: Path,
    batch_size: int,
    rank: int = 0,
    processes: int = 1,
) -> tuple[Keys, dict[int, bytes]]:
    """Write the rows that the cache in this folder lacks -> all keys, and the fingerprints of the
    images that were read, by a number of their pairs.

    Each process reads and writes its own share of the pairs, so other processes' rows may still be
    missing on return. An interruption loses one file at most. Raises InputError if the disk has too
    little space.
    """
    inner = make_folder("--cache", folder / FOLDER)
    remove_temporary_files(inner, AN_HOUR)
    keys, rows = Keys(sd, pairs, rank == 0), Rows(inner)
    share = np.arange(len(pairs)) // IN_FILE % processes == rank
    lacking = {kind: share & (rows.find(kind, x) < 0) for kind, x in keys.every.items()}
    unread, missing = pictures_without(keys, lacking)
    writer = Writer(inner, rows, {kind: n * processes for kind, n in missing.items()})
    found: dict[int, bytes] = {}
    batches = batches_of(unread, batch_size)
    with tqdm(desc="encoding pairs", total=len(unread), disable=rank > 0) as bar:
        for numbers, taken in zip(batches, pictures_of(sd, keys, rows, batches)):
            found |= {i: one.fingerprint for i, one in zip(numbers, taken)}
            encode_batch(sd, keys, writer, numbers, taken)
            writer.write(IN_FILE)
            bar.update(len(numbers))
    others = [i for i in np.flatnonzero(lacking["contexts"]).tolist()]
    others = [i for i in others if writer.lacks("contexts", keys.of_prompt(i))]
    for numbers in batches_of(others, batch_size):
        encode_prompts(sd, keys, writer, numbers)
        writer.write(IN_FILE)
    writer.write()
    pairs.learnt()
    return keys, found


def pictures_without(
    keys: Keys, lacking: dict[str, np.ndarray]
) -> tuple[list[int], dict[str, int]]:
    """The pairs whose pictures have to be read, each picture once, and how many rows of each kind
    are missing. lacking: whether each pair's rows are, by their kind."""
    pairs, unread = keys.pairs, []
    seen: set[tuple] = set()
    wanted = {kind: lacks for kind, lacks in lacking.items() if kind != "contexts"}
    for i in np.flatnonzero(np.logical_or.reduce([*wanted.values()])).tolist():
        ways = {"latents": "", "edges": pairs.edges(i)}
        new = {(kind, pairs.image_id(i), ways[kind]) for kind in wanted if wanted[kind][i]} - seen
        seen |= new
        if new:
            unread.append(i)
    missing = dict(Counter(kind for kind, *_ in seen))
    missing["contexts"] = len(np.unique(keys.every["contexts"][lacking["contexts"]]))
    return unread, missing


def batches_of(numbers: list[int], batch_size: int) -> list[list[int]]:
    """Batches of pairs. None crosses the end of a part of 256 pairs, so that batches, and the
    rounding in them, do not depend on the number of processes."""
    parts = [[*part] for _, part in itertools.groupby(numbers, lambda i: i // IN_FILE)]
    return [part[i : i + batch_size] for part in parts for i in range(0, len(part), batch_size)]


def pictures_of(
    sd: StableDiffusion, keys: Keys, rows: Rows, batches: list[list[int]]
) -> DataLoader:
    workers = readers(str(next(sd.vae.parameters()).device)) if batches else 0
    ways: Any = {"num_workers": workers, "worker_init_fn": ignore_ctrl_c, "collate_fn": list}
    return DataLoader(Pictures(keys, rows), batch_sampler=batches, **ways)


def encode_batch(
    sd: StableDiffusion, keys: Keys, writer: Writer, numbers: list[int], taken: list[Taken]
) -> None:
    """Add the rows of some pairs. Images that the cache already has were not decoded."""
    for i, one in zip(numbers, taken):
        keys.pairs.learn(i, one.facts)
        if one.edges is not None:
            writer.add("edges", keys.of_image(i, one.fingerprint)["edges"], one.edges)
    some = [(i, one) for i, one in zip(numbers, taken) if one.image is not None]
    images = [one.image for one in taken if one.image is not None]
    of_latents = [keys.of_image(i, one.fingerprint)["latents"] for i, one in some]
    if not any(writer.lacks("latents", key) for key in of_latents):
        return
    prompts = [keys.pairs.prompt(i) for i, _ in some]
    rows = zip(*encode(sd, torch.stack(images), prompts))
    for (i, one), key, (mean, deviation, context) in zip(some, of_latents, rows):
        size = torch.tensor(one.facts.size if one.facts else (0, 0))
        writer.add("latents", key, mean, deviation, size)
        writer.add("contexts", keys.of_prompt(i), context)


@torch.no_grad()
def encode_prompts(sd: StableDiffusion, keys: Keys, writer: Writer, numbers: list[int]) -> None:
    """Add the contexts of pairs whose pictures were encoded earlier."""
    contexts = sd.encode_prompts([keys.pairs.prompt(i) for i in numbers])
    for i, context in zip(numbers, contexts.to(next(sd.vae.parameters()).dtype)):
        writer.add("contexts", keys.of_prompt(i), context)


def encoded_once(
    sd: StableDiffusion, pairs: Pairs, folder: str, batch_size: int, processes: Processes
) -> Cached:
    """The pairs with their encodings from the cache; missing ones are encoded now. Afterwards the
    VAE and the text encoder leave the GPU, because training no longer needs them."""
    rank, size = processes.rank, processes.size
    keys, found = encode_all(sd, pairs, Path(folder), batch_size, rank, size)
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


def check_space(
    folder: Path, missing: dict[str, int], rows: dict[str, dict[bytes, list[Tensor]]]
) -> None:
    """Raises InputError if the missing rows take more space than the disk has free. rows: the first
    ones of each kind."""
    needed = 0
    for kind, n in missing.items():
        for row in [*rows[kind].values()][:1]:
            needed += n * (KEY_BYTES + sum(column.nbytes for column in row))
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"--cache {folder.parent} needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are "
            "free: use a folder with more space, or --no-cache"
        )
