"""The cache: outputs of the locked VAE and text encoder, computed once per pair and kept on disk.

A file holds 256 pairs. Its name is a hash of everything it was computed from: the pictures, the
prompts, the weights and the precision. If one of these changes, so does the name, so a stale file
is never read. Missing files are computed. The files are memory-mapped.
"""

import hashlib
import itertools
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from nanocontrol.formats.tensors import read_safetensors, write_tensors
from nanocontrol.plumbing.errors import InputError
from nanocontrol.plumbing.files import make_folder, remove_temporary_files
from nanocontrol.stable_diffusion import StableDiffusion
from nanocontrol.training.loader import encode, ignore_ctrl_c, readers
from nanocontrol.training.pairs import Pairs
from nanocontrol.training.processes import Processes

VERSION = 1  # raise it when a change of the code changes the numbers in the files
IN_FILE = 256  # pairs
AN_HOUR = 3600  # seconds: no running process still writes to a temporary file of this age


class Cached(Dataset):
    """The pairs of a data set, each as mean, deviation, context (see `encode`) and hint."""

    def __init__(self, pairs: Pairs, files: list[Path]):
        self.pairs, self.files = pairs, files
        self.parts = [read_safetensors(file)[0] for file in files]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getstate__(self) -> dict:
        """The state that a worker process gets: the files' names, not their mapped contents."""
        return self.__dict__ | {"parts": []}

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        self.parts = self.parts or [read_safetensors(file)[0] for file in self.files]
        part, row = self.parts[i // IN_FILE], i % IN_FILE
        return part["mean"][row], part["deviation"][row], part["context"][row], self.pairs.hint(i)


class Pictures(Dataset):
    """A data set's images and prompts, without hints."""

    def __init__(self, pairs: Pairs):
        self.pairs = pairs

    def __getitem__(self, i: int) -> tuple[Tensor, str]:
        return self.pairs.picture(i)


def encode_all(
    sd: StableDiffusion,
    pairs: Pairs,
    folder: Path,
    batch_size: int,
    rank: int = 0,
    processes: int = 1,
) -> list[Path]:
    """The cache's files for a data set, in order. Missing ones are written first.

    Each process writes its own share, so other processes' files may still be missing on return. An
    interruption loses one file at most. Raises InputError if the disk has too little space.
    """
    make_folder("--cache", folder)
    remove_temporary_files(folder, AN_HOUR)
    files = [folder / f"{name}.safetensors" for name in names(sd, pairs, rank == 0)]
    # Each process checks only its own share, because the others may be writing theirs.
    missing = [i for i in range(rank, len(files), processes) if not is_whole(files[i])]
    parts = [range(len(pairs))[IN_FILE * i : IN_FILE * (i + 1)] for i in missing]
    check_space(folder, sd, pairs, processes * sum(map(len, parts)))
    batches = iter(pictures_of(sd, pairs, parts, batch_size))
    with tqdm(desc="encoding pairs", total=len(pairs), disable=rank > 0) as bar:
        bar.update(max(0, len(pairs) - IN_FILE * len(missing) * processes))
        for i, part in zip(missing, parts):
            some = itertools.islice(batches, math.ceil(len(part) / batch_size))
            mean, deviation, context = zip(*(encode(sd, *batch) for batch in some))
            columns = {"mean": mean, "deviation": deviation, "context": context}
            write_tensors(files[i], {name: torch.cat(rows) for name, rows in columns.items()}, {})
            bar.update(min(len(part) * processes, len(pairs) - bar.n))
    return files


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
    return tensors.keys() == {"mean", "deviation", "context"}


def check_space(folder: Path, sd: StableDiffusion, pairs: Pairs, n: int) -> None:
    """Raises InputError if n encoded pairs take more space than the disk has free."""
    if n == 0:
        return
    image, prompt = pairs.picture(0)
    encoded = encode(sd, image[None], [prompt])
    needed = n * sum(tensor.nbytes for tensor in encoded)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"--cache {folder} needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free: "
            "use a folder with more space, or --no-cache"
        )
