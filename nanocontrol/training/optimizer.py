"""AdamW on float32 weights, in whatever precision the networks compute. It skips bad steps."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from nanocontrol.plumbing import machine

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Optimizer:
    """The original's optimizer, AdamW with PyTorch's defaults, for all weights that require
    gradients. It moves the networks to the device and rounds them to dtype.

    In bf16 and fp16 the networks compute with rounded weights, and AdamW updates exact weights in
    float32. Rounded weights would lose most updates (Micikevicius et al. 2018, section 3.1). The
    networks' `state_dict()` returns the exact weights.

    fp16 cannot represent small gradients. The loss is therefore multiplied by a large scale before
    the backward pass, and the gradients are divided by it (section 3.2).

    on_cpu: keep the exact weights and AdamW's moments in the CPU's memory.
    clip: the largest norm of the gradients; a larger one is scaled down to it.
    """

    def __init__(
        self,
        networks: dict[str, nn.Module],
        lr: float,
        device: str,
        dtype: str = "fp32",
        on_cpu: bool = False,
        clip: float = math.inf,
        **adamw: Any,
    ):
        self.networks, self.device, self.clip = networks, device, clip
        self.lr, self.dtype = lr, dtype
        home, exact = "cpu" if on_cpu else device, []
        for network in networks.values():
            if dtype != "fp32":
                exact += keep_exact(network, home)
                network.to(PRECISIONS[dtype])
            network.to(device)
        every = [p for network in networks.values() for p in network.parameters()]
        self.computing: list[Tensor] = [p for p in every if p.requires_grad]
        self.weights = exact or self.computing
        # Pinned buffers for copies between exact weights on the CPU and a network on a GPU.
        self.between: list[Tensor] = []
        if on_cpu and machine.is_gpu(device):
            shared = (torch.empty_like(p, device="cpu", pin_memory=True) for p in self.computing)
            self.between = list(shared)
        self.adamw = torch.optim.AdamW(self.weights, lr, fused=True, **adamw)
        self.rate: Tensor | None = None  # the learning rate on the device; see keep_places
        self.scaler = torch.amp.GradScaler(torch.device(home).type, enabled=dtype == "fp16")
        # The first call creates the scale on the device where the gradients will be.
        self.scaler.scale(torch.ones((), device=home))

    def set_lr(self, lr: float) -> None:
        if self.rate is not None:
            self.rate.fill_(lr)
        for group in self.adamw.param_groups:
            group["lr"] = lr if self.rate is None else self.rate

    def keep_places(self) -> None:
        """From now on keep gradients and learning rate in the same memory, because a CUDA graph
        reads and writes fixed addresses."""
        self.rate = torch.empty((), device=self.weights[0].device)
        for group in self.adamw.param_groups:
            group["capturable"] = True
        self.set_lr(self.lr)

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients to the step's."""
        self.scaler.scale(loss).backward()

    @torch.no_grad()
    def step(self, loss: Tensor) -> Tensor:
        """Take the step, or skip it if its loss (a scalar) or the norm of its gradients is not
        finite -> the loss, or NaN for a skipped step.

        A skipped step leaves weights, moments and AdamW's counters unchanged, to the bit. All
        gradients are known only after the backward pass, so no weight may change before. A norm
        that overflows also counts, because AdamW's second moment would overflow as well.
        """
        gradients = self.collect_gradients()
        self.scaler.unscale_(self.adamw)
        norm = nn.utils.get_total_norm(gradients)
        bad = ~(norm + loss.to(norm.device)).isfinite()
        if self.clip < math.inf:
            nn.utils.clip_grads_with_norm_(self.weights, self.clip, norm)
        # The fused AdamW reads found_inf on the device, so the CPU does not wait for a GPU. If it
        # is 1, AdamW changes nothing and takes its step count back.
        self.adamw.found_inf = bad.float()  # type: ignore[attr-defined]
        self.adamw.step()
        self.scaler.update()
        self.clear_gradients()
        self.round_weights()
        return torch.where(bad.to(loss.device), math.nan, loss)

    def clear_gradients(self) -> None:
        if self.weights is not self.computing:
            self.adamw.zero_grad()
        if self.rate is None:
            for parameter in self.computing:
                parameter.grad = None
        else:
            torch._foreach_zero_([p.grad for p in self.computing if p.grad is not None])

    def collect_gradients(self) -> list[Tensor]:
        """Copy the networks' gradients to the exact weights -> the copies."""
        found = [p.grad for p in self.computing if p.grad is not None]
        if self.weights is self.computing:
            return found
        if self.between:
            torch._foreach_copy_(self.between, found, non_blocking=True)
            torch.cuda.synchronize(self.device)
            found = self.between
        gradients = [torch.empty_like(weight) for weight in self.weights]
        torch._foreach_copy_(gradients, found)
        for weight, gradient in zip(self.weights, gradients):
            weight.grad = gradient
        return gradients

    @torch.no_grad()
    def round_weights(self) -> None:
        """Copy the exact weights to the networks, rounded."""
        if self.weights is self.computing:
            return
        if self.between:
            torch._foreach_copy_(self.between, self.weights)
            torch._foreach_copy_(self.computing, self.between, non_blocking=True)
        else:
            torch._foreach_copy_(self.computing, self.weights)

    def state(self) -> dict:
        weights = {name: network.state_dict() for name, network in self.networks.items()}
        adamw = self.adamw.state_dict()
        for group in adamw["param_groups"]:  # the same whether steps are replayed or not
            group.update(lr=float(group["lr"]), capturable=False)
        return {"weights": weights, "optimizer": adamw, "scaler": self.scaler.state_dict()}

    @torch.no_grad()
    def restore(self, state: dict) -> None:
        """Restore what `state` returned. Raises an exception of any type if that is damaged. It
        must not reach the fused AdamW, which takes every shape on trust."""
        for name, network in self.networks.items():
            for key, weight in network.state_dict().items():
                filled(weight, state["weights"][name][key])
        groups = self.adamw.state_dict()["param_groups"]
        self.adamw.load_state_dict(state["optimizer"])
        self.set_lr(self.lr)  # the saved rate is the last step's; every step sets its own
        same = groups == self.adamw.state_dict()["param_groups"]
        # A weight that never had a gradient has no moments.
        moved = [(w, self.adamw.state[w]) for w in self.weights if self.adamw.state.get(w)]
        if not same or not moved or not all(of["step"].item() >= 0 for _, of in moved):
            raise ValueError("AdamW has other settings, or no moments")
        for weight, moments in moved:
            for name in ("exp_avg", "exp_avg_sq"):
                moments[name] = filled(torch.empty_like(weight), moments[name])
        self.scaler.load_state_dict(entries_like(self.scaler.state_dict(), state["scaler"]))
        self.round_weights()


def filled(into: Tensor, value: Tensor) -> Tensor:
    """Copy a value of the same shape into a tensor -> that tensor. (`copy_` broadcasts.)"""
    if value.shape != into.shape:
        raise ValueError(f"expected the shape {tuple(into.shape)}, not {tuple(value.shape)}")
    return into.copy_(value)


def entries_like(example: dict, found: dict) -> dict:
    """The entries of `found` that `example` has. Raises KeyError or ValueError unless each has the
    example's type and, if it is a number, is finite and not negative."""
    for name, value in example.items():
        number = not isinstance(value, str)
        if type(found[name]) is not type(value) or number and not 0 <= found[name] < math.inf:
            raise ValueError(f"{name} = {found[name]!r}")
    return {name: found[name] for name in example}


def keep_exact(network: nn.Module, device: str) -> list[Tensor]:
    """Make float32 copies of all weights, which the network's `state_dict()` returns from then on.
    Copies of weights that require gradients are on the device and are returned; the others are on
    the CPU."""
    exact, trained = {}, []
    for name, p in network.named_parameters():
        place = device if p.requires_grad else "cpu"
        exact[name] = p.detach().to(place, torch.float32, copy=True)
        if p.requires_grad:
            trained.append(exact[name])

    def show(_: nn.Module, state: dict, prefix: str, *rest: Any) -> None:
        state.update({prefix + name: weight for name, weight in exact.items()})

    network.register_state_dict_post_hook(show)
    return trained
