"""Messages between the grader and a submission's process: JSON, and tensors as safetensors. Neither
can execute anything when it is read, so the grader can read what a stranger's process sends.

A message on a pipe: 8 bytes of its length, 8 bytes of the JSON text's length, the JSON text, the
tensors. {"tensor": "0"} in the JSON text stands for the tensor of that name, {"array": "0"} for
numpy's array.
"""

import json
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

MOST_BYTES = 2**26  # of a message


class TooLong(ValueError):
    """A message that is longer than MOST_BYTES."""


def pack(message: Any) -> bytes:
    """Raises TypeError for a value that is no number, text, list, dictionary, tensor or array."""
    tensors: dict[str, Tensor] = {}

    def set_aside(value: Any) -> Any:
        if isinstance(value, np.generic):
            return value.item()
        kind = "array" if isinstance(value, np.ndarray) else "tensor"
        if kind == "array":
            value = torch.from_numpy(np.array(value))
        if not isinstance(value, Tensor):
            raise TypeError(f"an object of type {type(value).__name__}")
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {kind: name}

    text = json.dumps(message, default=set_aside).encode()
    body = save(tensors) if tensors else b""
    total = 8 + len(text) + len(body)
    if total > MOST_BYTES:
        raise TooLong(f"more than {MOST_BYTES // 2**20} MB")
    return total.to_bytes(8, "big") + len(text).to_bytes(8, "big") + text + body


def read_message(pipe: BinaryIO) -> Any:
    """The next message. Raises EOFError at the end, ValueError or RecursionError if it is damaged,
    TooLong if it is too long."""
    total = int.from_bytes(exactly(pipe, 8), "big")
    if total > MOST_BYTES:
        raise TooLong(f"more than {MOST_BYTES // 2**20} MB")
    body = exactly(pipe, total)
    length = int.from_bytes(body[:8], "big")
    text, rest = body[8 : 8 + length], body[8 + length :]

    def put_back(value: dict) -> Any:
        if value.keys() == {"tensor"}:
            return tensors[value["tensor"]]
        return tensors[value["array"]].numpy() if value.keys() == {"array"} else value

    try:
        tensors = load(rest) if rest else {}
        return json.loads(text, object_hook=put_back)
    except RecursionError:
        raise
    except Exception as error:  # whatever a damaged header brings about
        raise ValueError(f"a damaged message: {error}") from None


def exactly(pipe: BinaryIO, n: int) -> bytes:
    data = pipe.read(n)
    if data is None or len(data) < n:
        raise EOFError
    return data
