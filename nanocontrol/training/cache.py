"""The cache: outputs of the locked VAE and text encoder, computed once per pair and kept on disk.

A file holds 256 pairs. Its name is a hash of everything it was computed from: the pictures, the
prompts, the weights and the precision. If one of these changes, so does the name, so a stale file
is never read. Missing files are computed. The files are memory-mapped. Edges made by --hints canny
have files of their own, because they depend on the seed and encodings do not.
"""

import hashlib
import itertools
import math
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

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
from nanocontrol.training.pairs import Pairs
from nanocontrol.training.processes import Processes

VERSION = 2  # raise it when a change of the code changes the numbers in the files
IN_FILE = 256  # pairs
COLUMNS = {"mean", "deviation", "context", "prompt"}, {"edges"}  # in the two kinds of files
AN_HOUR = 3600  # seconds: no running process still writes to a temporary file of this age
Files = tuple[Path, ...]  # of 256 pairs: encodings and, where hints are edges, edges


class Cached(Dataset):
    """The pairs of a data set, each as mean, deviation, context (see `encode`) and hint: edges as
    bytes [H, W, 1], other hints as in `Pairs.hint`."""

    def __init__(self, pairs: Pairs, files: list[Files]):
        self.pairs, self.files = pairs, files
        self.parts = [read_part(some) for some in files]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getstate__(self) -> dict:
        """The state that a worker process gets: the files' names, not their mapped contents."""
        return self.__dict__ | {"parts": []}

    def __getitem__(self, i: int | tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        i, seen = i if isinstance(i, tuple) else (i, None)
        self.parts = self.parts or [read_part(some) for some in self.files]
        part, row = self.parts[i // IN_FILE], i % IN_FILE
        numbers = part["prompt"][row].view(-1)
        context = part["context"][int(numbers[0 if seen is None else self.pairs.drawn(i, seen)])]
        hint = unpacked(part["edges"][row]) if "edges" in part else self.pairs.hint(i)
        return part["mean"][row], part["deviation"][row], context, hint


class Pictures(Dataset):
    """A data set's images and prompts, and those hints that are edges, packed."""

    def __init__(self, pairs: Pairs):
        self.pairs = pairs

    def __getitem__(self, i: int) -> tuple[Tensor, str, Tensor]:
        if not self.pairs.edges(i):
            return *self.pairs.picture(i), torch.empty(0)
        image, hint, prompt = self.pairs[i]
        return image, prompt, packed(hint)


def read_part(files: Files) -> Tensors:
    """The columns of 256 pairs. `context` has a row for each different caption, `prompt` the
    numbers of every pair's rows: [n], or [n, m] where a pair has up to m captions."""
    return {name: rows for file in files for name, rows in read_safetensors(file)[0].items()}


def packed(edges: Tensor) -> Tensor:
    """Edges [3, H, W] of zeros and ones, in equal channels -> a bit per pixel, [H, W / 8] bytes."""
    return torch.from_numpy(np.packbits(edges[0].bool().numpy(), axis=-1))


def unpacked(bits: Tensor) -> Tensor:
    """Packed edges -> [H, W, 1], bytes of 0 and 255."""
    return torch.from_numpy(np.unpackbits(bits.numpy(), axis=-1) * 255)[..., None]


def encode_all(
    sd: StableDiffusion,
    pairs: Pairs,
    folder: Path,
    batch_size: int,
    rank: int = 0,
    processes: int = 1,
) -> list[Files]:
    """The cache's files for a data set, in order. Missing ones are written first.

    Each process writes its own share, so other processes' files may still be missing on return. An
    interruption loses one file at most. Raises InputError if the disk has too little space.
    """
    make_folder("--cache", folder)
    remove_temporary_files(folder, AN_HOUR)
    every = [range(len(pairs))[i : i + IN_FILE] for i in range(0, len(pairs), IN_FILE)]
    hashes = names(sd, pairs, rank == 0)
    files = [files_of(folder, name, pairs, part) for name, part in zip(hashes, every)]
    # Each process checks only its own share, because the others may be writing theirs.
    missing = [i for i in range(rank, len(files), processes) if not all(map(is_whole, files[i]))]
    parts = [every[i] for i in missing]
    check_space(folder, sd, pairs, [(every[i], files[i]) for i in missing], processes)
    batches = iter(pictures_of(sd, pairs, parts, batch_size))
    with tqdm(desc="encoding pairs", total=len(pairs), disable=rank > 0) as bar:
        bar.update(max(0, len(pairs) - IN_FILE * len(missing) * processes))
        for i, part in zip(missing, parts):
            some = itertools.islice(batches, math.ceil(len(part) / batch_size))
            write_part(files[i], sd, some, [pairs.captions(i) for i in part])
            bar.update(min(len(part) * processes, len(pairs) - bar.n))
    return files


@torch.no_grad()
def write_part(
    files: Files, sd: StableDiffusion, batches: Iterable[tuple], captions: list[list[str]]
) -> None:
    """Write a part's files, its encodings only if they are missing. batches: of its `Pictures`;
    captions: each pair's."""
    encodes = not is_whole(files[0])
    contexts: Tensors = {}
    edges, latents = [], []
    for images, texts, bits in batches:
        edges.append(bits)
        if encodes:
            *latent, context = encode(sd, images, texts)
            latents.append(latent)
            for prompt, row in zip(texts, context):
                contexts.setdefault(prompt, row)
    if encodes:
        mean, deviation = map(torch.cat, zip(*latents))
        for text in (text for some in captions for text in some if text not in contexts):
            contexts[text] = sd.encode_prompts(text)[0].to(mean.dtype)
        rows, most = {text: i for i, text in enumerate(contexts)}, max(map(len, captions))
        numbers = torch.tensor([[rows[x] for x in (some * most)[:most]] for some in captions])
        numbers = numbers[:, 0] if most == 1 else numbers
        context = torch.stack([*contexts.values()])
        columns = {"mean": mean, "deviation": deviation, "context": context, "prompt": numbers}
        write_tensors(files[0], columns, {})
    for file in files[1:]:
        write_tensors(file, {"edges": torch.cat(edges)}, {})


def pictures_of(
    sd: StableDiffusion, pairs: Pairs, parts: list[range], batch_size: int
) -> DataLoader:
    """Batches of images and prompts. No batch crosses the end of a part."""
    batches = [
        [*part[i : i + batch_size]] for part in parts for i in range(0, len(part), batch_size)
    ]
    workers = readers(str(next(sd.vae.parameters()).device))
    return DataLoader(
        Pictures(pairs), batch_sampler=batches, num_workers=workers, worker_init_fn=ignore_ctrl_c
    )


def encoded_once(
    sd: StableDiffusion, pairs: Pairs, folder: str, batch_size: int, processes: Processes
) -> Cached:
    """The pairs with their encodings from the cache; missing ones are encoded now. Afterwards the
    VAE and the text encoder leave the GPU, because training no longer needs them."""
    rank, size = processes.rank, processes.size
    files = encode_all(sd, pairs, Path(folder), batch_size, rank, size)
    processes.wait()  # until the others have written theirs
    sd.vae.cpu(), sd.text_encoder.cpu()
    return Cached(pairs, files)


def names(sd: StableDiffusion, pairs: Pairs, show: bool) -> Iterator[str]:
    """A hash for each file of everything that its content depends on. show: a progress bar."""
    common = f"{VERSION} {encoders_hash(sd)}".encode()
    digest = hashlib.sha256(common)
    bar = tqdm(range(len(pairs)), "comparing with the cache", leave=False, disable=not show)
    for i in bar:
        digest.update(pairs.fingerprint(i))
        if (i + 1) % IN_FILE == 0 or i + 1 == len(pairs):
            yield digest.hexdigest()
            digest = hashlib.sha256(common)


def files_of(folder: Path, name: str, pairs: Pairs, part: range) -> Files:
    """The files of a part. name: the hash of its encodings."""
    edges = [pairs.edges(i) for i in part]
    of_edges = hashlib.sha256(f"{name} {edges}".encode()).hexdigest()
    hashes = [name, of_edges] if all(edges) else [name]
    return tuple(folder / f"{one}.safetensors" for one in hashes)


def encoders_hash(sd: StableDiffusion) -> str:
    """A hash of the weights of the VAE's encoder and of the text encoder."""
    digest = hashlib.sha256()
    for network in (sd.vae.encoder, sd.vae.quant_conv, sd.text_encoder):
        for name, tensor in network.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {[*tensor.shape]}".encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def is_whole(file: Path) -> bool:
    """Whether the file exists and is complete. Reading its header is enough, because it reveals a
    truncated file. Reading all numbers of a large data set would take minutes."""
    try:
        tensors, _ = read_safetensors(file)
    except InputError:
        return False
    return tensors.keys() in COLUMNS


def check_space(
    folder: Path,
    sd: StableDiffusion,
    pairs: Pairs,
    missing: list[tuple[range, Files]],
    processes: int,
) -> None:
    """Raises InputError if the missing parts take more space than the disk has free. Each process
    misses about as many."""
    if not missing:
        return
    image, prompt = pairs.picture(0)
    mean, deviation, context = (x.nbytes for x in encode(sd, image[None], [prompt]))
    needed = 0
    for part, (encodings, *edges) in missing:
        needed += len(edges) * len(part) * image[0].numel() // 8
        if not is_whole(encodings):
            needed += len(part) * (mean + deviation)
            needed += len({text for i in part for text in pairs.captions(i)}) * context
    needed *= processes
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"--cache {folder} needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free: "
            "use a folder with more space, or --no-cache"
        )
