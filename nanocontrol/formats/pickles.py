"""Reading what torch.save wrote, without torch.load.

A pickle is a program: it names Python's functions and has them called. This reader knows the few
operations that torch.save uses, and calls nothing: of a call it makes a note, `Call`, and a note
that says how a tensor lies in the file becomes that part of the file. So that nothing in a file is
run rests on this page, on zips.py, and on what these take bytes apart with: Python's pickletools
(which only lists a pickle's operations), struct and zlib, and torch.frombuffer.
"""

import io
import math
import mmap
import sys
from pathlib import Path
from pickletools import genops
from typing import Any, NoReturn

import torch
from torch import Tensor

from nanocontrol.formats.zips import Bytes, bytes_of, records_of
from nanocontrol.plumbing.errors import InputError

# Limits of a pickle without its tensors' numbers. Published ones: 0.3 MB, 70,000 operations.
MOST_BYTES, MOST_OPERATIONS = 2**24, 1_000_000
MOST_DIMENSIONS = 64  # of a tensor, as in PyTorch
# The content of a packed file may be this many times larger than the file, or 16 MB.
EXPANSION, SMALL_CONTENT = 4, 2**24

MAGIC_NUMBER, PROTOCOL_VERSION = 0x1950A86A20F9469CFC6C, 1001  # files from before torch 1.6

DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
    "torch.QInt8Storage": torch.int8,
    "torch.QUInt8Storage": torch.uint8,
    "torch.QInt32Storage": torch.int32,
    "torch.storage.UntypedStorage": torch.uint8,
}
TENSOR = "torch._utils._rebuild_tensor"  # and _v2, _v3
PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
WITH_ATTRIBUTES = "torch._tensor._rebuild_from_type_v2"
# Tensors of other kinds.
STRANGE = {
    "torch._utils._rebuild_sparse_tensor": "sparse",
    "torch._utils._rebuild_qtensor": "quantized",
    "torch._utils._rebuild_nested_tensor": "nested",
    "torch._utils._rebuild_meta_tensor_no_storage": "without numbers",
    "torch._utils._rebuild_wrapper_subclass": "of a class of its own",
}
# Other objects in files, published ones too. Nothing is made of them.
BESIDE = {
    "collections.OrderedDict",
    "collections.Counter",
    "torch.Size",
    "torch.device",
    "torch.Tensor",
    "torch.nn.parameter.Parameter",
    "torch.serialization._get_layout",
    "torch.per_tensor_affine",
    "torch.per_channel_affine",
    "builtins.set",
    "__builtin__.set",  # its name in older protocols
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "numpy.core.multiarray.scalar",  # numpy 1
    "numpy._core.multiarray.scalar",  # numpy 2
    "numpy.dtype",
    "_codecs.encode",
}
KNOWN = {TENSOR, f"{TENSOR}_v2", f"{TENSOR}_v3", *PARAMETERS, WITH_ATTRIBUTES}
KNOWN |= {*STORAGES, *DTYPES, *STRANGE, *BESIDE}


class Call:
    """A pickle's note of an object: the name of a function, and the arguments that it should be
    called with. A function alone has none yet."""

    def __init__(self, name: str, arguments: Any = None):
        self.name, self.arguments = name, arguments


class Storage(Call):
    """A note of a tensor's numbers, which stand elsewhere in the file."""


# ------------------------------------------------------------------------ the operations


PASSED_OVER = {"PROTO", "FRAME"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG"}  # in the pickle itself
VALUES |= {"BINFLOAT", "FLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"}
VALUES |= {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
SEVERAL = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
PUT, GET = {"BINPUT", "LONG_BINPUT", "PUT"}, {"BINGET", "LONG_BINGET", "GET"}


class Pickle:
    """A machine with a stack, as Python's, that makes only dicts, lists, tuples, numbers, texts and
    `Call`s. A value that is used twice is one value: nothing that it makes is larger than it."""

    def __init__(self, path: Path):
        self.path = path
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def read(self, file: io.BytesIO) -> Any:
        """The object of the pickle that begins here in a file."""
        for number, (operation, value, _) in enumerate(genops(file)):
            if number >= MOST_OPERATIONS:
                raise InputError(f"{self.path} is too long a pickle; expected a file of tensors")
            if operation.name != "STOP":
                self.do(operation.name, value)
        return self.stack.pop()

    def do(self, name: str, value: Any) -> None:
        stack = self.stack
        if name in PASSED_OVER:
            pass
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in VALUES:
            stack.append(value)
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name in SEVERAL:
            stack.append(tuple([stack.pop() for _ in range(SEVERAL[name])][::-1]))
        elif name in PUT:
            self.memo[value] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in GET:
            stack.append(self.memo[value])
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in ("TUPLE", "LIST", "DICT", "APPENDS", "SETITEMS"):
            self.do_many(name)
        elif name == "APPEND":
            fill_list(stack[-2], [stack.pop()])
        elif name == "SETITEM":
            values = [stack.pop(), stack.pop()][::-1]
            fill_dict(stack[-1], values)
        else:
            self.do_object(name, value)

    def do_many(self, name: str) -> None:
        """Do an operation that takes all values above the last mark."""
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        if name == "TUPLE":
            self.stack.append(tuple(values))
        elif name in ("LIST", "DICT"):
            self.stack.append([] if name == "LIST" else {})
        if name in ("LIST", "APPENDS"):
            fill_list(self.stack[-1], values)
        if name in ("DICT", "SETITEMS"):
            fill_dict(self.stack[-1], values)

    def do_object(self, name: str, value: Any) -> None:
        """Note an operation that would import, call or build."""
        stack = self.stack
        if name == "GLOBAL":
            stack.append(self.known(value.replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            function, module = stack.pop(), stack.pop()
            if type(module) is not str or type(function) is not str:
                self.refuse("calls what is no function")
            stack.append(self.known(f"{module}.{function}"))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            if type(function) is not Call or function.arguments is not None:
                self.refuse("calls what is no function")
            plain = function.name == "collections.OrderedDict" and arguments == ()
            stack.append({} if plain else Call(function.name, arguments))
        elif name == "BUILD":  # gives an object its attributes
            stack.pop()
            if type(stack[-1]) is not dict and getattr(stack[-1], "name", "") not in BESIDE:
                self.refuse("gives attributes to what is no object")
        elif name == "BINPERSID":
            stack.append(self.storage(*stack.pop()))
        else:
            self.refuse(f"uses the operation {name}")

    def storage(self, _, kind: Any, key: Any, device: Any, length: Any, view: None = None) -> Call:
        """The numbers of a tensor: how many of which type stand under which key in the file."""
        if type(key) is not str or type(length) is not int or view is not None:
            raise ValueError("not a storage")
        found = self.storages.setdefault(key, Storage(kind.name, (key, length)))
        if (found.name, found.arguments[1]) != (kind.name, length):
            self.refuse("describes the numbers of a tensor in two ways")
        return found

    def known(self, name: str) -> Call:
        if name not in KNOWN:
            self.refuse(f"asks for {name}")
        return Call(name)

    def refuse(self, why: str) -> NoReturn:
        raise InputError(f"{self.path} {why} and is refused; expected a file of tensors")


def fill_list(values: Any, new: list) -> None:
    if type(values) is not list:
        raise ValueError("not a list")
    values += new


def fill_dict(values: Any, new: list) -> None:
    """Names and values, in turns. Of a name that is there twice everybody would take another one;
    a tuple as a name can take forever to be looked up."""
    names = new[::2]
    known = all(type(name) in (str, int, float, bool, type(None), Call) for name in names)
    if type(values) is not dict or len(new) % 2 or not known:
        raise ValueError("not a dict")
    size = len(values) + len(names)
    values.update(zip(names, new[1::2]))
    if len(values) != size:
        raise ValueError("a name twice")


# ---------------------------------------------------------------------------------- tensors


def read_pickle(path: Path, check: bool) -> dict[str, Tensor]:
    """The tensors of a torch.save file, mapped from disk. Nothing in it is run.

    check: the checksums of all numbers (files from before torch 1.6 have none).
    Raises InputError, naming the file.
    """
    try:
        with open(path, "rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        is_zip = data[:4] == b"PK\3\4"
        found, numbers = read_zip(path, data, check) if is_zip else read_old(path, data)
        for _ in range(8):  # more than anybody nests them (one may hold itself)
            if isinstance(found, dict) and "state_dict" in found:
                found = found["state_dict"]
        parts = found.values() if isinstance(found, dict) else ()
        if parts and all(isinstance(part, dict) for part in parts):  # an IP-Adapter
            found = {f"{name}.{key}": x for name, part in found.items() for key, x in part.items()}
        if not isinstance(found, dict) or not all(type(name) is str for name in found):
            raise InputError(f"{path} holds other things than named tensors; expected a checkpoint")
        return {name: tensor_of(path, name, call, numbers) for name, call in found.items()}
    except InputError:
        raise
    except Exception:  # a damaged file can raise nearly anything
        expected = "expected a .safetensors, .ckpt or .pth file"
        raise InputError(f"{path} is cut off or not a checkpoint; {expected}") from None


def read_zip(path: Path, data: memoryview, check: bool) -> tuple[Any, dict[str, Tensor]]:
    """The content of the pickle in an archive, and the numbers of its other records by key."""
    records = records_of(path, data)
    folder = next(iter(records)).split("/")[0] + "/"
    if f"{folder}constants.pkl" in records:
        raise InputError(f"{path} is a TorchScript program; expected a file of tensors")
    if outside := [name for name in records if not name.startswith(folder)]:
        raise InputError(f"{path}: its record {outside[0]} is outside of {folder}")
    unpacked = sum(record.size for record in records.values())
    if unpacked > max(EXPANSION * len(data), SMALL_CONTENT):
        raise InputError(f"{path} is packed more than tightly: it says it holds {unpacked:,} bytes")

    def content(name: str, check: bool = True) -> Bytes:
        return bytes_of(path, data, records[folder + name], check)

    if f"{folder}byteorder" in records and content("byteorder") != sys.byteorder.encode():
        raise InputError(f"{path} has its bytes in another order than this machine")
    if records[f"{folder}data.pkl"].size > MOST_BYTES:
        raise InputError(f"{path} is too long a pickle; expected a file of tensors")
    pickle = Pickle(path)
    file = io.BytesIO(content("data.pkl"))
    found = pickle.read(file)
    kept = {name for name in records if name.startswith(f"{folder}data/") and name[-1] != "/"}
    if file.read(1) or kept != {f"{folder}data/{key}" for key in pickle.storages}:
        raise ValueError("more than the tensors")
    contents = {key: content(f"data/{key}", check) for key in pickle.storages}
    return found, {key: numbers_of(pickle.storages[key], contents[key]) for key in contents}


def read_old(path: Path, data: memoryview) -> tuple[Any, dict[str, Tensor]]:
    """`read_zip` for a file from before torch 1.6: five pickles, then each storage's numbers."""
    file = io.BytesIO(data[:MOST_BYTES])
    if [Pickle(path).read(file) for _ in range(2)] != [MAGIC_NUMBER, PROTOCOL_VERSION]:
        raise ValueError("not a torch.save file")
    if Pickle(path).read(file)["little_endian"] is not (sys.byteorder == "little"):
        raise InputError(f"{path} has its bytes in another order than this machine")
    pickle = Pickle(path)
    found, keys = pickle.read(file), Pickle(path).read(file)
    if len(keys) != len(pickle.storages):
        raise ValueError("more than the tensors")
    at, contents = file.tell(), {}
    for key in keys:
        if type(key) is not str:  # (hashing tuples of tuples may take forever)
            raise ValueError("a key that is no text")
        storage = pickle.storages.pop(key)
        length = int.from_bytes(data[at : at + 8], sys.byteorder)
        size = length * STORAGES[storage.name].itemsize
        if length != storage.arguments[1]:
            raise ValueError("another length")
        contents[key] = numbers_of(storage, data[at + 8 : at + 8 + size])
        at += 8 + size
    if at != len(data):
        raise ValueError("more than the tensors")
    return found, contents


def numbers_of(storage: Storage, content: Bytes) -> Tensor:
    """The bytes of a storage as numbers of its type [length]; copied only where they do not lie at
    a multiple of a number's size."""
    dtype, length = STORAGES[storage.name], storage.arguments[1]
    if len(content) != length * dtype.itemsize:
        raise ValueError("another length")
    if not length:
        return torch.zeros(0, dtype=dtype)
    if type(content) is bytes:
        content = memoryview(bytearray(content))  # PyTorch warns of what cannot be written to
    raw = torch.frombuffer(content, dtype=torch.uint8)
    return (raw.clone() if raw.data_ptr() % dtype.itemsize else raw).view(dtype)


def tensor_of(path: Path, name: str, call: Any, numbers: dict[str, Tensor]) -> Tensor:
    """The tensor that a note describes, as a part of its numbers."""
    if type(call) is not Call or call.arguments is None:
        raise InputError(f"{path} holds other things than named tensors; expected a checkpoint")
    if call.name == WITH_ATTRIBUTES:
        function, kind, arguments, _ = call.arguments
        if kind.name not in ("torch.Tensor", "torch.nn.parameter.Parameter"):
            raise InputError(f"{path}: {name} is of a class of its own; expected plain tensors")
        return tensor_of(path, name, Call(function.name, arguments), numbers)
    if call.name in PARAMETERS:
        return tensor_of(path, name, call.arguments[0], numbers)
    if call.name in STRANGE:
        raise InputError(f"{path}: {name} is {STRANGE[call.name]}; expected plain tensors")
    if not call.name.startswith(TENSOR):
        raise InputError(f"{path} holds other things than named tensors; expected a checkpoint")
    storage, offset, shape, strides, *rest = call.arguments
    if type(storage) is not Storage:  # (a note of a call could have any arguments)
        raise InputError(f"{path}: {name} has no numbers; expected plain tensors")
    flat = numbers[storage.arguments[0]]
    if call.name == f"{TENSOR}_v3":
        flat = flat.view(DTYPES[rest.pop(2).name])
    if len(rest) > 2 and rest[2]:
        raise InputError(f"{path}: {name} notes signs apart from its numbers; expected plain ones")
    if why := misfit(offset, shape, strides, len(flat)):
        raise InputError(f"{path}: {name} {why}; expected plain tensors")
    return flat.as_strided(shape, strides, offset)


def misfit(offset: Any, shape: Any, strides: Any, length: int) -> str:
    """Why a tensor is no part of so many numbers, each taken once; "" if it is."""
    whole = (type(shape), type(strides)) == (tuple, tuple) and len(shape) == len(strides)
    if not whole or len(shape) > MOST_DIMENSIONS:
        return f"has no shape of at most {MOST_DIMENSIONS} dimensions"
    if not all(type(n) is int and 0 <= n < 2**63 for n in (offset, *shape, *strides)):
        return "has a shape that is none"
    if math.prod(shape) == 0:
        return "" if offset <= length else "lies outside of the file"
    last = 0  # the place of the last number in the dimensions so far
    for stride, size in sorted((stride, size) for stride, size in zip(strides, shape) if size > 1):
        if stride <= last:
            return "is repeated numbers"
        last += stride * (size - 1)
    return "" if offset + last < length else "lies outside of the file"
