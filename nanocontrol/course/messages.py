"""Messages between the grader and a submission's process. Nothing is executed when one is read, so
the grader can read what a stranger's process sends.

A message on a pipe: 8 bytes of its length, a line of JSON, and the bytes of its tensors one after
the other. {"tensor": [dtype, shape]} in the JSON stands for the next of them, {"array": ...} for
numpy's array.
"""

import json
import math
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

MOST_BYTES = 2**26  # of a message


def pack(message: Any) -> bytes:
    """Raises TypeError for a value that is no number, text, list, dictionary, tensor or array,
    and ValueError for a message that is too long."""
    tensors: list[bytes] = []

    def set_aside(value: Any) -> Any:
        if isinstance(value, np.generic):
            return value.item()
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biufc":
            raise TypeError(f"an object of type {type(value).__name__}")
        tensors.append(array.tobytes())
        return {"array" if array is value else "tensor": [array.dtype.name, array.shape]}

    line = json.dumps(message, default=set_aside).encode() + b"\n"
    body = b"".join([line, *tensors])
    if len(body) > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES // 2**20} MB")
    return len(body).to_bytes(8, "big") + body


def read_message(pipe: BinaryIO) -> Any:
    """The next message. Raises EOFError at the end, ValueError if it is damaged or too long."""
    length = pipe.read(8)
    total = int.from_bytes(length, "big")
    if total > MOST_BYTES:
        raise ValueError(f"a message of {total} bytes")
    body = pipe.read(total)
    if len(length) < 8 or len(body) < total:
        raise EOFError
    rest = BytesIO(body)

    def put_back(value: dict) -> Any:
        if value.keys() not in ({"tensor"}, {"array"}):
            return value
        ((kind, (dtype, shape)),) = value.items()
        data = bytearray(rest.read(np.dtype(dtype).itemsize * math.prod(shape)))
        array = np.frombuffer(data, dtype).reshape(shape)
        return array if kind == "array" else torch.from_numpy(array)

    try:
        return json.loads(rest.readline(), object_hook=put_back)
    except Exception as error:  # whatever damaged bytes bring about
        raise ValueError(f"a damaged message: {error}") from None
