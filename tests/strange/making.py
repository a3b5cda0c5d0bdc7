"""Building blocks of the cases: pickle operations as bytes, and files around a pickle."""

import io
import struct
import zipfile
from pathlib import Path

import torch

from strange.harness import MARKER, WEIGHTS

START, END = b"\x80\x02", b"."


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def integer(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    short = len(data) < 256
    return (
        b"\x8a" + bytes([len(data)]) if short else b"\x8b" + struct.pack("<I", len(data))
    ) + data


def tuple_of(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def integers(*values: int) -> bytes:
    return tuple_of(*map(integer, values))


def named(function: str) -> bytes:
    module, _, name = function.rpartition(".")
    return f"c{module}\n{name}\n".encode()


def call(function: str, *arguments: bytes) -> bytes:
    return named(function) + tuple_of(*arguments) + b"R"


def dictionary(**values: bytes) -> bytes:
    return b"}(" + b"".join(text(name) + value for name, value in values.items()) + b"u"


def storage(key: str = "0", length: int = 8, kind: str = "torch.FloatStorage") -> bytes:
    return tuple_of(text("storage"), named(kind), text(key), text("cpu"), integer(length)) + b"Q"


def tensor(
    numbers: bytes | None = None,
    offset: bytes = integer(0),
    shape: bytes = integers(2, 4),
    strides: bytes = integers(4, 1),
) -> bytes:
    hooks = call("collections.OrderedDict")
    numbers = storage() if numbers is None else numbers
    return call("torch._utils._rebuild_tensor_v2", numbers, offset, shape, strides, b"\x89", hooks)


# The content {"w": tensor} of a small file, and the tensor's bytes.
W = {"w": torch.arange(8.0).reshape(2, 4)}
NUMBERS = W["w"].numpy().tobytes()


def touch(folder: Path) -> str:
    """A command that shows that a payload ran: it creates the marker file."""
    return f"touch {folder / MARKER}"


def archive(pickle: bytes, records: dict[str, bytes]) -> dict[str, bytes]:
    numbers = {f"a/data/{key}": data for key, data in records.items()}
    return {"a/data.pkl": pickle, "a/byteorder": b"little"} | numbers | {"a/version": b"3\n"}


def write_zip(folder: Path, files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(folder / "a.pth", "w", method) as file:
        for name, data in files.items():
            file.writestr(name, data)
    return folder / "a.pth"


def write_w(folder: Path, value: bytes, numbers: bytes = NUMBERS) -> Path:
    """Write an archive that holds {"w": value}."""
    return write_zip(folder, archive(START + dictionary(w=value) + END, {"0": numbers}))


def files_of_weights() -> dict[str, bytes]:
    """The records of the archive that torch.save writes for WEIGHTS."""
    file = io.BytesIO()
    torch.save(WEIGHTS, file)
    with zipfile.ZipFile(file) as inside:
        return {name: inside.read(name) for name in inside.namelist()}


FILES = files_of_weights()
PICKLE = next(name for name in FILES if name.endswith("data.pkl"))
FOLDER = PICKLE.removesuffix("data.pkl")


def write_with_extra(folder: Path, value: bytes, tail: bytes = b"u" + END) -> Path:
    """Write WEIGHTS as a state_dict, and an extra value that executing the pickle would run."""
    body = FILES[PICKLE].removeprefix(START).removesuffix(END)
    pickle = START + b"}(" + text("state_dict") + body + text("extra") + value + tail
    return write_zip(folder, FILES | {PICKLE: pickle})


def write_old(folder: Path, *pickles: bytes, numbers: bytes | None = None) -> Path:
    """Write a file as before torch 1.6, with these pickles instead of its first ones."""
    own = [integer(0x1950A86A20F9469CFC6C), integer(1001), dictionary(little_endian=b"\x88")]
    own += [dictionary(w=tensor()), b"]" + text("0") + b"a"]
    own[: len(pickles)] = pickles
    numbers = struct.pack("<q", 8) + NUMBERS if numbers is None else numbers
    data = b"".join(START + pickle + END for pickle in own) + numbers
    (folder / "a.ckpt").write_bytes(data)
    return folder / "a.ckpt"
