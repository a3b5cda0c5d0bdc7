"""What the locked VAE and text encoder make of every pair: computed once, and kept on disk.

A file holds it for 256 pairs and is named by a hash of all that it was computed from: the pictures,
the prompts, the weights, the precision. Where one of these is another, so is the name. So nothing
stale or foreign is ever read; what is missing is computed. The files are mapped into memory.
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

VERSION = 1  # to be raised when the same pairs and weights come to give other numbers
IN_FILE = 256  # pairs
AN_HOUR = 3600  # seconds: what was not written to for so long is not being written by another run


class Cached(Dataset):
    """The pairs of a data set, each as mean, deviation, context (see `encode`) and hint."""

    def __init__(self, pairs: Pairs, files: list[Path]):
        self.pairs, self.files = pairs, files
        self.parts = [read_safetensors(file)[0] for file in files]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getstate__(self) -> dict:
        """What goes to a process that reads: the files' names, not what is mapped of them."""
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
    """The cache's files for a data set, in order. Those that are missing are written first; of
    several processes each writes its share, and those of others may still be missing at the end.

    Interrupted, it loses one file at most. Raises InputError if there is no space for it.
    """
    make_folder("--cache", folder)
    remove_temporary_files(folder, AN_HOUR)
    files = [folder / f"{name}.safetensors" for name in names(sd, pairs, rank == 0)]
    # (Each looks only for its own: meanwhile the others may be writing theirs.)
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
    """Batches of images and prompts, none of which goes beyond the end of a part."""
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
    """The pairs as the cache has them; what it lacks is encoded now. VAE and text encoder, which
    are not needed any more, leave the GPU."""
    rank, size = processes.rank, processes.size
    files = encode_all(sd, pairs, Path(folder), batch_size, rank, size)
    processes.wait()  # until the others have written theirs
    sd.vae.cpu(), sd.text_encoder.cpu()
    return Cached(pairs, files)


def names(sd: StableDiffusion, pairs: Pairs, show: bool) -> Iterator[str]:
    """For each file a hash of all that its content follows from."""
    common = f"{VERSION} {encoders_hash(sd)}".encode()
    digest = hashlib.sha256(common)
    bar = tqdm(range(len(pairs)), "comparing with the cache", leave=False, disable=not show)
    for i in bar:
        digest.update(pairs.fingerprint(i))
        if (i + 1) % IN_FILE == 0 or i + 1 == len(pairs):
            yield digest.hexdigest()
            digest = hashlib.sha256(common)


def encoders_hash(sd: StableDiffusion) -> str:
    """A hash of the weights of VAE encoder and text encoder."""
    digest = hashlib.sha256()
    for network in (sd.vae.encoder, sd.vae.quant_conv, sd.text_encoder):
        for name, tensor in network.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {[*tensor.shape]}".encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def is_whole(file: Path) -> bool:
    """Whether it is there and can be read. (A safetensors file that is cut off cannot. Its header
    tells: all the numbers of a large data set would take minutes to read.)"""
    try:
        tensors, _ = read_safetensors(file)
    except InputError:
        return False
    return tensors.keys() == {"mean", "deviation", "context"}


def check_space(folder: Path, sd: StableDiffusion, pairs: Pairs, n: int) -> None:
    """Refuse to write what n pairs take to a disk that has less free."""
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
