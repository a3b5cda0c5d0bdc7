"""Reading and writing files of tensors. Nothing in them is run (pickles.py: what that rests on)."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from nanocontrol.formats.checks import (
    FLOATS,
    UNUSED,
    beginning_of,
    check_metadata,
    check_none,
    check_weights,
    first_three,
    plain_tensors,
    printable,
)
from nanocontrol.plumbing.errors import InputError
from nanocontrol.plumbing.files import write_atomically

Tensors = dict[str, Tensor]
SMALL = 10**9  # bytes of a file that is read into memory, and all of it checked
LONGEST_HEADER = 2**24  # bytes of a safetensors header; published ones have a hundredth of that
M = TypeVar("M", bound=nn.Module)
PREDICTIONS = {"epsilon": "eps", "v": "v"}  # in modelspec's metadata


class TensorFile(NamedTuple):
    """A file that is open: its tensors are mapped from disk, and read when they are used."""

    path: Path
    tensors: Tensors
    metadata: dict  # our own; {} if it has none


def open_tensors(file: str | Path | TensorFile, check: bool = False) -> TensorFile:
    """Open a file; one that is open already is not opened again. Raises InputError, naming it.

    The tensors of files up to 1 GB are copied into memory, so later changes of the file do not
    matter. Larger files are mapped from disk. Replacing such a file is safe, but reading one that
    was cut off or overwritten meanwhile ends the process or gives other numbers.
    check: every byte, as in `read_tensors`.
    """
    if isinstance(file, TensorFile):
        return file
    path = weights_in(Path(file))
    before = state_of(path)
    tensors, metadata = read_tensors(path, check)
    if bytes_in(path) <= SMALL:
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    if state_of(path) != before:
        raise InputError(f"{path} was changed while it was read: try again")
    return TensorFile(path, tensors, metadata)


def weights_in(path: Path) -> Path:
    """A file itself; of a folder as diffusers writes it, the only file of weights."""
    if not os.path.isdir(path):
        return path
    files = sorted(path.glob("diffusion_pytorch_model*.safetensors"))
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        expected = "expected a file, or a folder with one diffusion_pytorch_model.safetensors"
        raise InputError(f"{path}: {expected}, found {found}")
    return files[0]


def state_of(path: str | Path) -> tuple[int, ...]:
    """Numbers that change when the file is written or replaced; () if there is no file."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # ValueError: no file can have such a name
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


def bytes_in(path: Path) -> int:
    """The file's size in bytes. Raises InputError if it is gone."""
    try:
        return os.path.getsize(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def read_tensors(path: Path, check: bool = False) -> tuple[Tensors, dict]:
    """A checkpoint's tensors by name, mapped from disk, and our metadata ({} if it has none).

    check: every byte, that is the checksums of archives (other files have none) and whether all
    weights are finite. Files of up to 1 GB always are; larger ones are not, so that they are
    open in a moment.
    """
    if not os.path.isfile(path):  # (Path's own method raises where a name is too long)
        raise InputError(f"{path} does not exist or is not a file; expected a checkpoint")
    check = check or bytes_in(path) <= SMALL
    # The header of a safetensors file: its length (below 4 GB), then "{".
    first = beginning_of(path)
    torchs = first.startswith(b"PK\3\4") or first[0] == 0x80 and 2 <= first[1] <= 5  # of pickles
    named_so = path.suffix.lower() in (".safetensors", ".sft") and not torchs
    if first[4:9] == b"\0\0\0\0{" or named_so:
        tensors, metadata = read_safetensors(path)
    else:
        # Imported where a file's first bytes ask for it: safetensors files never need this reader.
        from nanocontrol.formats.pickles import read_pickle

        tensors, metadata = read_pickle(path, check), {}
    tensors = plain_tensors(path, tensors)
    if check:
        check_finite(path, tensors)
    mark = {"prediction": "v"} if "v_pred" in tensors else {}  # ComfyUI's, of v-models
    return tensors, mark | check_metadata(path, metadata)


def check_finite(path: Path, tensors: Tensors) -> None:
    """Refuse NaN and infinity in any tensor that is used."""
    quick = bytes_in(path) <= SMALL
    for name, tensor in tqdm(tensors.items(), "checking", leave=False, disable=quick):
        if tensor.dtype in FLOATS and tensor.numel() and not UNUSED.fullmatch(name):
            smallest, largest = tensor.aminmax()  # NaN if there is one
            if not math.isfinite(smallest) or not math.isfinite(largest):
                raise InputError(
                    f"{path}: {printable(name)} holds NaN or infinity; expected weights"
                )


def read_safetensors(path: Path) -> tuple[Tensors, Any]:
    """Tensors, mapped from disk, and our metadata; only the header is read, so the numbers may be
    anything. Raises InputError, naming the file."""
    try:
        header = header_of(path)
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        texts = header.get("__metadata__", {})
        metadata = json.loads(texts.get("nanocontrol", "{}"))
        prediction = PREDICTIONS.get(texts.get("modelspec.prediction_type"))
        if prediction and isinstance(metadata, dict):
            metadata = {"prediction": prediction} | metadata
        return tensors, metadata
    except Exception as error:  # a damaged file can raise nearly anything
        why = printable(str(error) or type(error).__name__)
        raise InputError(f"{path} is cut off or not a safetensors file ({why})") from None


def header_of(path: Path) -> dict[str, Any]:
    """The JSON that a safetensors file begins with: of each tensor type, shape and place, of
    "__metadata__" texts by name. Raises ValueError if it is none, or has a name twice (of which
    every reader takes another one)."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LONGEST_HEADER:
            raise ValueError(f"the header claims {length} bytes")
        return json.loads(file.read(length), object_pairs_hook=without_doubles)


def without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a name stands twice in the header")
    return found


@contextmanager
def reading_shapes_of(path: Path) -> Iterator[None]:
    """While an architecture is read off a file's tensors: name it if they make no sense."""
    try:
        yield
    except KeyError as key:
        raise InputError(f"{path} lacks {key}, expected a whole checkpoint") from None
    except (ValueError, IndexError, ZeroDivisionError, RuntimeError) as error:
        raise InputError(f"{path} is of an unknown architecture ({error})") from None


def write_tensors(path: Path, tensors: Tensors, metadata: dict) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"format": "pt", "nanocontrol": json.dumps(metadata)}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, header))


def count(tensors: Tensors, prefix: str) -> int:
    """How many of prefix.format(0), prefix.format(1), ... some name begins with."""
    before, after = prefix.split("{}")
    found = {name.split(after)[0] for name in below(before, tensors)}
    i = 0
    while str(i) in found:
        i += 1
    return i


def below(prefix: str, tensors: Tensors) -> Tensors:
    """The tensors whose names begin with the prefix, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


class Undrawn(TorchFunctionMode):
    """First weights of convolutions and linear layers are not drawn."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (nn.init.kaiming_uniform_, nn.init.uniform_):
            return kwargs["tensor"]
        return function(*args, **(kwargs or {}))


@contextmanager
def without_weights() -> Iterator[None]:
    """Modules that are built in here have shapes, but neither memory nor numbers. (On "meta" alone
    PyTorch would still draw first weights, which takes longer than to read the file's.)"""
    with torch.device("meta"), Undrawn():
        yield


def load_weights(module: M, tensors: Tensors, path: Path) -> M:
    """Put tensors into a module built `without_weights`; all must be there, and none left over."""
    expected = {name: tensor.shape for name, tensor in module.state_dict().items()}
    if missing := expected.keys() - tensors.keys():
        raise InputError(f"{path} lacks {len(missing)} tensors: {first_three(missing)}")
    check_none(path, "without a place", tensors.keys() - expected.keys())
    check_weights(path, tensors)
    fitted = {}
    for name, tensor in tensors.items():
        # A 1x1 convolution [out, in, 1, 1] and a linear layer [out, in] are the same numbers.
        if without_1x1(tensor.shape) != without_1x1(expected[name]):
            shape = printable(str([*tensor.shape]))
            shapes = f"{shape}, expected {[*expected[name]]}"
            raise InputError(f"{path}: {printable(name)} has the shape {shapes}")
        fitted[name] = tensor.reshape(expected[name])
    module.load_state_dict(fitted, assign=True)
    return module


def without_1x1(shape: torch.Size) -> torch.Size:
    """[..., 1, 1] -> [...]"""
    return shape[:-2] if shape[-2:] == (1, 1) else shape
