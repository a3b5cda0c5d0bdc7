"""Reading and writing files of tensors. Nothing in a file is executed."""

import json
import os
import pickle
import re
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nanocontrol.plumbing.errors import InputError
from nanocontrol.plumbing.files import write_atomically

Tensors = dict[str, Tensor]


class TensorFile(NamedTuple):
    """A file that is open: its tensors are mapped from disk, and read when they are used."""

    path: Path
    tensors: Tensors
    metadata: dict  # our own; {} if it has none


class Inert:
    """Stands in for the objects that original .ckpt files carry beside their tensors. It keeps and
    does nothing, so reading them takes neither pytorch_lightning nor any of numpy's own code."""

    def __init__(self, *args):
        pass

    def __setstate__(self, state):
        pass


STAND_INS: list[Any] = [
    (Inert, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
    (Inert, "numpy.core.multiarray.scalar"),  # numpy 1, in the published files
    (Inert, "numpy._core.multiarray.scalar"),  # numpy 2
    (Inert, "numpy.dtype"),
    (Inert, "_codecs.encode"),
]


def open_tensors(file: str | Path | TensorFile) -> TensorFile:
    """Open a file; one that is open already is not opened again. Raises InputError, naming it."""
    if isinstance(file, TensorFile):
        return file
    return TensorFile(Path(file), *read_tensors(Path(file)))


def read_tensors(path: Path) -> tuple[Tensors, dict]:
    """A checkpoint's tensors by name, mapped from disk, and our metadata ({} if it has none)."""
    if not os.path.isfile(path):  # (Path's own method raises where a name is too long)
        raise InputError(f"{path} does not exist or is not a file; expected a checkpoint")
    if path.suffix in (".ckpt", ".pth", ".pt", ".bin"):
        return read_pickle(path), {}
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: expected a .safetensors, .ckpt or .pth file")
    try:
        with safe_open(path, "pt") as file:
            metadata = dict(json.loads((file.metadata() or {}).get("nanocontrol", "{}")))
            return {name: file.get_tensor(name) for name in file.keys()}, metadata
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} is cut off or not a safetensors file ({error})") from None


def read_pickle(path: Path) -> Tensors:
    """The tensors of a torch.save file. Nothing in it is executed."""
    try:
        with torch.serialization.safe_globals(STAND_INS):
            # Files from before torch 1.6 are no zip archives and cannot be mapped.
            mapped = zipfile.is_zipfile(path)
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged file can raise nearly anything
        asked = isinstance(error, pickle.UnpicklingError) and re.search(r"GLOBAL (\S+)", str(error))
        why = f"asks for {asked[1]} and is refused" if asked else "is cut off or not a checkpoint"
        raise InputError(f"{path} {why}; expected a file of tensors") from None
    while isinstance(tensors, dict) and "state_dict" in tensors:
        tensors = tensors["state_dict"]
    named = isinstance(tensors, dict) and all(isinstance(name, str) for name in tensors)
    if not named or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise InputError(f"{path} holds other things than named tensors; expected a checkpoint")
    return tensors


@contextmanager
def reading_shapes_of(path: Path) -> Iterator[None]:
    """While an architecture is read off a file's tensors: name it if they make no sense."""
    try:
        yield
    except KeyError as key:
        raise InputError(f"{path} lacks {key}, expected a whole checkpoint") from None
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise InputError(f"{path} is of an unknown architecture ({error})") from None


def write_tensors(path: Path, tensors: Tensors, metadata: dict) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"format": "pt", "nanocontrol": json.dumps(metadata)}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, header))


def count(tensors: Tensors, prefix: str) -> int:
    """How many of prefix.format(0), prefix.format(1), ... some name begins with."""
    i = 0
    while any(name.startswith(prefix.format(i)) for name in tensors):
        i += 1
    return i


def below(prefix: str, tensors: Tensors) -> Tensors:
    """The tensors whose names begin with the prefix, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def first_three(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)[:3])
