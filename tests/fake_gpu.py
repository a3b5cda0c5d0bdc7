"""A simulated GPU, to test what only a GPU does.

Tensors on 'cuda' have a shape, a type and a device but no values; tensors on the CPU are real. This
finds mixed devices, operations that make the CPU wait for the GPU, and operations that a CUDA graph
cannot record. It also counts operations. It checks neither values nor speed.
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

ASYNC_BYTES = 2**16  # CUDA copies up to this size from unpinned memory without waiting
COPIES = "copy_", "_to_copy", "_foreach_copy_"
NO_KERNEL = "_unsafe_view", "empty.memory_format", "empty_like", "new_empty", "empty_strided"
MISSING = None  # the reason why a GPU cannot be simulated here
if not hasattr(torch._C, "_ensureCUDADeviceGuardSet") or not torch.backends.cuda.is_built():
    MISSING = "this PyTorch was built without CUDA, or needs a real GPU"


class FakeGPU(TorchDispatchMode):
    """Runs operations on 'cuda' with fake tensors, and counts them.

    launches: operations on the GPU, by name
    waits: operations for which the CPU waited, by name
    recording: whether a CUDA graph is being recorded; the CPU may not wait then
    recorded: number of launches in each recorded graph
    """

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.launches: Counter = Counter()
        self.waits: Counter = Counter()
        self.made_of: Counter = Counter()  # tensors, by type
        self.recording, self.recorded = False, []
        self.pinned: dict[int, Tensor] = {}  # by address; kept alive, so that no address is reused

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        made_on = torch.device(kwargs.get("device") or "cpu").type
        if made_on != "cuda" and all(map(is_real, given)):
            return function(*args, **kwargs)
        name = function.name().removeprefix("aten::")
        if name.startswith("prim::"):  # a query
            return function(*args, **kwargs)
        if name == "_local_scalar_dense":  # .item()
            self.wait(name)
            return given[0].dtype is torch.bool
        real = [x for x in given if is_real(x)]
        if name in COPIES and real:
            non_blocking = kwargs.get("non_blocking") or any(x is True for x in args)
            self.check_copy(name, real, not non_blocking)
        elif any(x.dim() for x in real):  # a 0-dimensional tensor may be on the CPU
            raise RuntimeError(f"{name}: tensors on two devices")
        if name == "_fused_adamw_.tensor_lr":  # FakeTensorMode does not know it; it returns nothing
            self.launches[name] += 1
            return None
        with self.fake:
            made = function(*tree_map_only(Tensor, self.to_fake, args), **kwargs)
        if function.is_view:
            return made
        return self.result(name, args, made)

    def check_copy(self, name: str, real: list[Tensor], waits: bool) -> None:
        """Check a copy from or to the CPU. The CPU always waits for a large unpinned tensor."""
        if self.recording:
            raise RuntimeError(f"{name}: a copy from or to the CPU in a recorded call")
        large = [x for x in real if x.nbytes > ASYNC_BYTES]
        if waits or any(x.untyped_storage().data_ptr() not in self.pinned for x in large):
            self.wait(name)

    def result(self, name: str, args: tuple, made):
        """The result of an operation. On the CPU it is a real tensor of zeros."""
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
        """Replaces Tensor.pin_memory."""
        copy = x.clone()
        self.pinned[copy.untyped_storage().data_ptr()] = copy
        return copy

    def to_fake(self, x: Tensor) -> FakeTensor:
        return self.fake.from_tensor(x) if is_real(x) else x

    def wait(self, name: str) -> None:
        if self.recording:
            raise RuntimeError(f"{name}: the CPU waits in a recorded call")
        self.waits[name] += 1

    @contextmanager
    def record(self, *_, **__) -> Iterator[None]:
        """Replaces torch.cuda.graph."""
        before, self.recording = self.launches.copy(), True
        try:
            yield
        finally:
            self.recording = False
        self.recorded.append((self.launches - before).total())

    def graph(self) -> mock.Mock:
        """Replaces torch.cuda.CUDAGraph. A replay counts as one launch."""
        return mock.Mock(replay=lambda: self.launches.update(["replay"]))


@contextmanager
def rehearsed() -> Iterator[FakeGPU]:
    """Simulate a GPU. Use a separate process: some of the changes to PyTorch are permanent."""
    torch._C._ensureCUDADeviceGuardSet()
    torch._C._set_only_lift_cpu_tensors(True)  # so that torch.tensor(..., device) is dispatched
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
    """Replaces nn.Module._apply, which cannot put a fake tensor into a real parameter."""
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
    """Replaces Tensor.backward: PyTorch's engine needs a GPU, so call the graph's nodes here."""
    uses: Counter = Counter()
    seen, found = set(), [loss.grad_fn]
    while found:
        if (node := found.pop()) in seen:
            continue
        seen.add(node)
        following = [n for n, _ in node.next_functions if n is not None]
        uses.update(following)
        found += following
    gradients: dict = defaultdict(dict)  # by node, then by index of the input
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
                expected, sums = following._input_metadata[i], gradients[following]
                gradient = gradient.sum_to_size(expected.shape).to(expected.dtype)
                sums[i] = sums[i] + gradient if i in sums else gradient
            uses[following] -= 1
            if not uses[following]:
                ready.append(following)
