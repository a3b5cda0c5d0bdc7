"""Randomly damaged files: the small model in three formats, with flipped bytes, cuts, and inserted,
deleted or duplicated blocks. Every number is another file."""

import io
import random
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from nanocontrol.formats.tensors import load_weights
from strange.harness import Case, read_file

KINDS = ["pth", "ckpt", "safetensors"]


class Network(nn.Module):
    """The network that files are read into. All weights have different shapes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3)
        self.linear = nn.Linear(6, 16)
        self.half = nn.Linear(7, 5).half()


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        for name, tensor in Network().state_dict().items()
    }


WEIGHTS = weights()


def read_network(path: Path) -> dict[str, torch.Tensor]:
    """Read a file as a ControlNet is read: names and shapes must match the network."""
    with torch.device("meta"):
        network = Network()
    return dict(load_weights(network, read_file(path), path).state_dict())


def written(kind: str) -> bytes:
    if kind == "safetensors":
        return save(WEIGHTS)
    file = io.BytesIO()
    torch.save(WEIGHTS, file, _use_new_zipfile_serialization=kind == "pth")
    return file.getvalue()


FILES = {kind: written(kind) for kind in KINDS}


def numbers_of(data: bytes) -> list[range]:
    """The byte ranges of the tensors' values in a file."""
    found = []
    for tensor in WEIGHTS.values():
        raw = tensor.numpy().tobytes()
        assert data.count(raw) == 1
        found.append(range(data.index(raw), data.index(raw) + len(raw)))
    return found


NUMBERS = {kind: numbers_of(data) for kind, data in FILES.items()}


def damaged(data: bytes, draw: random.Random) -> tuple[bytes, range]:
    """The file with one random damage, and the range of original bytes that it changed."""
    at, n = draw.randrange(len(data)), draw.choice([1, 2, 4, 8, 64, 512])
    block, other = data[at : at + n], draw.randrange(len(data))
    match draw.choice(["bit", "byte", "random", "cut", "in", "out", "over", "twice"]):
        case "bit":
            flipped = bytes([data[at] ^ (1 << draw.randrange(8))])
            return data[:at] + flipped + data[at + 1 :], range(at, at + 1)
        case "byte":
            return data[:at] + draw.randbytes(1) + data[at + 1 :], range(at, at + 1)
        case "random":
            return data[:at] + draw.randbytes(len(block)) + data[at + n :], range(at, at + n)
        case "cut":
            return data[:at], range(at, len(data))
        case "in":
            return data[:at] + draw.randbytes(n) + data[at:], range(at, len(data))
        case "out":
            return data[:at] + data[at + n :], range(at, len(data))
        case "over":  # copy one block over another
            new = data[:other] + block + data[other + len(block) :]
            return new[: len(data)], range(other, other + len(block))
    return data[:at] + block + data[at:], range(at, len(data))


def mutation(number: int) -> Case:
    """A damaged file. The kinds alternate.

    If values were hit in a file without checksums, they may differ. Names and shapes may not.
    """
    kind, draw = KINDS[number % 3], random.Random(number)
    data, changed = damaged(FILES[kind], draw)
    hit = any(set(changed) & set(numbers) for numbers in NUMBERS[kind])
    write = write_as(data, f"a.{kind}")
    name = f"mutation {number}"
    return Case(name, write, "either", read_network, WEIGHTS, "", hit and kind != "pth")


def write_as(data: bytes, name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return write
