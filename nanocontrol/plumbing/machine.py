"""This machine's devices, their precision, and ways to compute faster on them."""

import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from nanocontrol.plumbing.errors import InputError


def keep_freed_memory() -> None:
    """On a CPU, let the C library (glibc) keep freed memory for the next tensors. By default it
    returns large blocks to the system and requests them again at every step. With Stable Diffusion
    this takes 20 % of a training step's time."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block gets a mapping of its own
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: no memory is returned


def available(name: str) -> bool:
    """Whether PyTorch can use this device here."""
    try:
        if name == "cuda" and "LOCAL_RANK" in os.environ:
            own_gpu()
        torch.zeros(1, device=name).item()
    except Exception:  # every kind of device raises its own error
        return False
    return True


def own_gpu() -> torch.device:
    """Select this process's GPU, where torchrun started several processes. From then on "cuda"
    means this GPU. Call it before anything is put on a GPU; otherwise every process occupies half a
    GB of the first one."""
    number, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if number >= there:
        raise InputError(f"torchrun --nproc-per-node: expected at most {there}, one for each GPU")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def default_dtype(device: str) -> str:
    """fp32 on a CPU; bf16 on a GPU, or fp16 if its hardware has no bf16."""
    if not is_gpu(device):
        return "fp32"
    with torch.cuda.device(device):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def allow_tf32(device: str) -> None:
    """On a GPU, let float32 products use TF32, which has 10 bits of mantissa."""
    if is_gpu(device):
        torch.set_float32_matmul_precision("high")


def exact_float32() -> None:
    """On a GPU, compute float32 products in full precision. PyTorch's default is TF32 in
    convolutions, which has 10 bits of mantissa."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


def for_sampling() -> None:
    """On a GPU, make float32 exact and disable cuDNN's attention. It builds a plan for every new
    shape, which takes seconds; twenty sampling steps do not make up for that."""
    exact_float32()
    torch.backends.cuda.enable_cudnn_sdp(False)


def is_gpu(device: str) -> bool:
    return device.startswith("cuda")


def to_device(x: Tensor, device: str | torch.device) -> Tensor:
    """The tensor on the device. To a GPU it is copied from pinned memory, so the CPU does not
    wait."""
    if torch.device(device).type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


@contextmanager
def moved(networks: Sequence[nn.Module], device: str) -> Iterator[None]:
    """Move networks to the device inside the `with` block, and back afterwards."""
    homes = [next(network.parameters()).device for network in networks]
    for network in networks:
        network.to(device)
    try:
        yield
    finally:
        for network, home in zip(networks, homes):
            network.to(home)


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution with zero padding of one pixel."""

    bias: Tensor  # always there

    def __init__(self, channels: int, out_channels: int, stride: int = 1):
        super().__init__(channels, out_channels, 3, stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and 10 * x[:, 0].numel() <= self.in_channels:
            return self.as_matrix_product(x)
        return super().forward(x)

    def as_matrix_product(self, x: Tensor) -> Tensor:
        """Compute the convolution as one matrix product, for few positions and many channels. A
        CPU's convolution takes two to four times as long there, because it rearranges the weights
        at every call, and they are larger than the feature map."""
        (n, _, h, _), stride = x.shape, self.stride[0]
        neighbours = F.unfold(x, 3, padding=1, stride=stride)  # [n, 9 channels, positions]
        neighbours = rearrange(neighbours, "n c p -> c (n p)")
        out = torch.addmm(self.bias[:, None], self.weight.flatten(1), neighbours)
        return rearrange(out, "c (n h w) -> n c h w", n=n, h=-(-h // stride))


class Recorded:
    """A function call on a GPU, recorded as a CUDA graph. Calling it with inputs of the same shapes
    replays the graph and overwrites its last output."""

    def __init__(self, function: Callable[..., Tensor], inputs: Sequence[Tensor]):
        self.inputs = [x.clone() for x in inputs]
        self.graph = torch.cuda.CUDAGraph()
        # Record only this thread's work. In training, another thread pins memory.
        with torch.cuda.device(inputs[0].device):
            stream = torch.cuda.Stream()
            with torch.cuda.graph(self.graph, stream=stream, capture_error_mode="thread_local"):
                self.output = function(*self.inputs)

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        for own, new in zip(self.inputs, inputs):
            own.copy_(new)
        self.graph.replay()
        return self.output


class Replayed:
    """A function on a GPU. Its second call with inputs of the same shapes is recorded, and later
    calls are replayed. A step has many small kernels, and launching them one by one can take longer
    than computing them. The first call cannot be recorded, because libraries choose their kernels
    in it.
    """

    MOST = 2  # recorded calls to keep: sampling has a step with control, and one without

    def __init__(self, function: Callable[..., Tensor]):
        self.function = function
        self.recorded: dict[tuple, Recorded | None] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        shapes = tuple((x.shape, x.dtype) for x in inputs)
        if shapes not in self.recorded:
            if len(self.recorded) == self.MOST:
                del self.recorded[next(iter(self.recorded))]
            self.recorded[shapes] = None
            return self.function(*inputs)
        call = self.recorded[shapes] = self.recorded[shapes] or Recorded(self.function, inputs)
        return call(inputs)


last_replayed: dict = {}  # the function that was replayed last, and its key; see `repeated`


def repeated(function: partial, networks: Sequence[nn.Module]) -> Callable[..., Tensor]:
    """Prepare a function that will be called many times. On a GPU, its calls are recorded and
    replayed; elsewhere, it is returned unchanged.

    networks: all networks whose weights it uses. The recording keeps them in memory until another
    function is recorded or `forget_recorded` is called. It is used again if the function's own
    arguments are equal and the weights have not moved.
    """
    weights = [weight for network in networks for weight in network.parameters()]
    if weights[0].device.type != "cuda":
        return function
    key = function.args, [(weight.data_ptr(), weight.dtype) for weight in weights]
    if last_replayed.get("key") != key:
        last_replayed.update(key=key, replayed=Replayed(function))
    return last_replayed["replayed"]


def forget_recorded() -> None:
    """Free the GPU memory that the last recording holds."""
    last_replayed.clear()
