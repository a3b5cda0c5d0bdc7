"""A GPU that is not there, to rehearse what only a GPU does.

Tensors on 'cuda' have shapes, types and a device but no numbers; those on the CPU are real. So
mixed devices are found, and whatever makes the CPU wait for the GPU or cannot be recorded in a CUDA
graph; operations are counted. What they compute, and how fast, is not seen.
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

AT_ONCE = 2**16  # bytes that a copy takes from anywhere without waiting (CUDA's documentation)
COPIES = "copy_", "_to_copy", "_foreach_copy_"
NO_KERNEL = "_unsafe_view", "empty.memory_format", "empty_like", "new_empty", "empty_strided"
MISSING = None  # why it cannot be rehearsed here
if not hasattr(torch._C, "_ensureCUDADeviceGuardSet") or not torch.backends.cuda.is_built():
    MISSING = "this PyTorch was built without CUDA, or cannot do without a GPU"


class FakeGPU(TorchDispatchMode):
    """launches, waits: of the operations on the GPU, by name, and of those for which the CPU
    waited; recording: whether a CUDA graph is being recorded, in which there may be none of the
    latter; recorded: the launches of each graph."""

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.launches: Counter = Counter()
        self.waits: Counter = Counter()
        self.made_of: Counter = Counter()  # tensors, by type
        self.recording, self.recorded = False, []
        self.pinned: dict[int, Tensor] = {}  # by address; kept, so that none is used again

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        made_on = torch.device(kwargs.get("device") or "cpu").type
        if made_on != "cuda" and all(map(is_real, given)):
            return function(*args, **kwargs)
        name = function.name().removeprefix("aten::")
        if name.startswith("prim::"):  # it only asks
            return function(*args, **kwargs)
        if name == "_local_scalar_dense":  # .item()
            self.wait(name)
            return given[0].dtype is torch.bool
        real = [x for x in given if is_real(x)]
        if name in COPIES and real:
            told = kwargs.get("non_blocking") or any(x is True for x in args)
            self.copied(name, real, not told)
        elif any(x.dim() for x in real):  # (one number may come from anywhere)
            raise RuntimeError(f"{name}: tensors on two devices")
        with self.fake:
            made = function(*tree_map_only(Tensor, self.faked, args), **kwargs)
        if function.is_view:
            return made
        return self.made(name, args, made)

    def copied(self, name: str, real: list[Tensor], waits: bool) -> None:
        """From or to the CPU. (A large tensor that is not pinned makes the CPU wait anyway.)"""
        if self.recording:
            raise RuntimeError(f"{name}: a copy from or to the CPU in a recorded call")
        large = [x for x in real if x.nbytes > AT_ONCE]
        if waits or any(x.untyped_storage().data_ptr() not in self.pinned for x in large):
            self.wait(name)

    def made(self, name: str, args: tuple, made):
        """What an operation made: if it is on the CPU it is real, and its numbers are 0."""
        if name == "copy_" and is_real(args[0]):
            return args[0].zero_()
        if name == "_foreach_copy_" and is_real(args[0][0]):
            return None
        if not isinstance(made, FakeTensor) or made.device.type != "cpu":
            self.launches[name] += name not in NO_KERNEL
            self.made_of.update(str(x.dtype) for x in tree_leaves(made) if x is not None)
            return made
        if name in COPIES:
            self.wait(name)
        return torch.zeros(made.shape, dtype=made.dtype)

    def pin(self, x: Tensor) -> Tensor:
        """As Tensor.pin_memory."""
        copy = x.clone()
        self.pinned[copy.untyped_storage().data_ptr()] = copy
        return copy

    def faked(self, x: Tensor) -> FakeTensor:
        return self.fake.from_tensor(x) if is_real(x) else x

    def wait(self, name: str) -> None:
        if self.recording:
            raise RuntimeError(f"{name}: the CPU waits in a recorded call")
        self.waits[name] += 1

    @contextmanager
    def record(self, *_, **__) -> Iterator[None]:
        """As torch.cuda.graph."""
        before, self.recording = self.launches.copy(), True
        try:
            yield
        finally:
            self.recording = False
        self.recorded.append((self.launches - before).total())

    def graph(self) -> mock.Mock:
        """As torch.cuda.CUDAGraph: to replay it is one launch."""
        return mock.Mock(replay=lambda: self.launches.update(["replay"]))


@contextmanager
def rehearsed() -> Iterator[FakeGPU]:
    """In a process of its own: what is changed here of PyTorch stays changed."""
    torch._C._ensureCUDADeviceGuardSet()
    torch._C._set_only_lift_cpu_tensors(True)  # so that torch.tensor(..., device) is seen
    torch.cuda._lazy_init = lambda: None  # type: ignore[assignment]
    gpu = FakeGPU()
    there = {
        "is_available": lambda: True,
        "is_bf16_supported": lambda **_: True,
        "synchronize": lambda *_: gpu.wait("synchronize"),
        "device": lambda *_: nullcontext(),
        "Stream": mock.Mock,
        "CUDAGraph": gpu.graph,
        "graph": gpu.record,
    }
    with ExitStack() as changed:
        changed.enter_context(mock.patch.multiple(torch.cuda, **there))
        changed.enter_context(mock.patch.object(Tensor, "pin_memory", lambda x: gpu.pin(x)))
        changed.enter_context(mock.patch.object(Tensor, "backward", backward))
        changed.enter_context(mock.patch.object(nn.Module, "_apply", replace_tensors))
        changed.enter_context(
            mock.patch.object(FakeTensor, "data_ptr", lambda x: id(x), create=True)
        )
        for module in _foreach_utils, sys.modules["torch.optim.optimizer"]:
            types = [*module._foreach_supported_types, FakeTensor]
            changed.enter_context(mock.patch.object(module, "_foreach_supported_types", types))
        changed.enter_context(gpu)
        yield gpu


def replace_tensors(module: nn.Module, function, recurse: bool = True) -> nn.Module:
    """As nn.Module._apply, which would put another kind of tensor into the old one."""
    for child in module.children():
        replace_tensors(child, function)
    for own in module._parameters, module._buffers:
        for name, x in own.items():
            if x is not None:
                made = function(x.detach())
                own[name] = (
                    nn.Parameter(made, x.requires_grad) if own is not module._buffers else made
                )
    return module


def is_real(x: Tensor) -> bool:
    return not isinstance(x, FakeTensor)


@torch.no_grad()
def backward(loss: Tensor) -> None:
    """PyTorch's own engine asks for a GPU, so the graph's nodes are called by hand."""
    uses: Counter = Counter()
    seen, found = set(), [loss.grad_fn]
    while found:
        if (node := found.pop()) in seen:
            continue
        seen.add(node)
        following = [n for n, _ in node.next_functions if n is not None]
        uses.update(following)
        found += following
    gradients: dict = defaultdict(dict)  # by node and the number of its input
    gradients[loss.grad_fn][0] = torch.ones_like(loss)
    ready = [loss.grad_fn]
    while ready:
        node = ready.pop()
        given = gradients.pop(node, {})
        if hasattr(node, "variable"):  # a leaf
            leaf = node.variable
            leaf.grad = given[0] if leaf.grad is None else leaf.grad + given[0]
            continue
        made = node(*(given.get(i) for i in range(len(node._input_metadata))))
        made = made if isinstance(made, tuple) else (made,)
        for (following, i), gradient in zip(node.next_functions, made):
            if following is None:
                continue
            if gradient is not None:
                expected, of = following._input_metadata[i], gradients[following]
                gradient = gradient.sum_to_size(expected.shape).to(expected.dtype)
                of[i] = of[i] + gradient if i in of else gradient
            uses[following] -= 1
            if not uses[following]:
                ready.append(following)
