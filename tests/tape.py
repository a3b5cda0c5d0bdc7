"""A stand-in for CUDA graphs on a CPU: a tape of operations, replayed with real numbers.

It finds what a CUDA graph would get wrong without an error: inputs that are replaced instead of
copied into, numbers that are read once and never again, memory that moves between calls.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tape(TorchDispatchMode):
    """Replaces torch.cuda.CUDAGraph. As there, recording changes no tensor that existed before."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple] = []
        self.made: dict[int, Tensor] = {}  # by the address of their memory
        self.before: dict[int, tuple[Tensor, Tensor]] = {}  # changed tensors, and their old values

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function.name() == "aten::_local_scalar_dense":
            raise RuntimeError("the CPU reads a number of a recorded call")
        for argument, value in zip(function._schema.arguments, args):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in tensors_in(value):
                    self.keep(tensor)
        output = function(*args, **kwargs)
        known = {address(x) for x in tensors_in((args, kwargs))}
        new = [x for x in tensors_in(output) if address(x) not in known]
        self.made |= {address(x): x for x in new}
        self.operations.append((function, args, kwargs, output))
        return output

    def keep(self, tensor: Tensor) -> None:
        place = address(tensor)
        if place not in self.made and place not in self.before:
            self.before[place] = tensor, tensor.detach().clone()

    @torch.no_grad()
    def undo(self) -> None:
        for tensor, value in self.before.values():
            tensor.copy_(value)

    @torch.no_grad()
    def replay(self) -> None:
        for function, args, kwargs, output in self.operations:
            again = function(*args, **kwargs)
            for old, new in zip(tensors_in(output), tensors_in(again), strict=True):
                if address(old) != address(new):
                    old.copy_(new)


def tensors_in(tree) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def address(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


@contextmanager
def recording(tape: Tape, **_) -> Iterator[None]:
    """Replaces torch.cuda.graph."""
    with tape:
        yield
    tape.undo()


@contextmanager
def tapes() -> Iterator[list[Tape]]:
    """Replace CUDA graphs by tapes -> the list of those that are recorded."""
    made: list[Tape] = []

    def new() -> Tape:
        made.append(Tape())
        return made[-1]

    replaced = {"CUDAGraph": new, "graph": recording, "device": nullcontext, "Stream": mock.Mock}
    with ExitStack() as stack:
        for name, replacement in replaced.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, replacement))
        yield made
