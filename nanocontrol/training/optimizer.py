"""AdamW on float32 weights, whatever precision the networks compute in."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from nanocontrol.plumbing import machine

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Optimizer:
    """The original's: AdamW with PyTorch's defaults, for all weights that ask for gradients.

    In bf16 and fp16 the networks compute with rounded weights, and AdamW changes exact ones, in
    float32: rounding would swallow most steps (Micikevicius et al. 2018, section 3.1). The
    networks' `state_dict()` gives the exact ones. fp16 cannot hold small gradients: there the loss
    is multiplied by a large number before the backward pass, and the gradients are divided by it
    (section 3.2).

    A step whose loss or gradients are not finite changes nothing, in any precision.

    on_cpu: the exact weights, and AdamW's two moments of each, are in the CPU's memory;
    largest_norm: longer gradients are shortened to it.
    """

    def __init__(
        self,
        networks: dict[str, nn.Module],
        lr: float,
        device: str,
        dtype: str = "fp32",
        on_cpu: bool = False,
        largest_norm: float | None = None,
        **adamw: Any,
    ):
        self.networks, self.device, self.largest_norm = networks, device, largest_norm
        every = [p for network in networks.values() for p in network.parameters()]
        self.computing: list[Tensor] = [p for p in every if p.requires_grad]
        self.weights = self.computing
        home = "cpu" if on_cpu else device
        if dtype != "fp32":
            copies = [keep_exact(network, home) for network in networks.values()]
            self.weights = [weight for copy in copies for weight in copy]
        for network in networks.values():
            network.to(device)
            if dtype != "fp32":
                network.to(PRECISIONS[dtype])
        # What passes between exact weights on a CPU and a GPU waits in memory that both can reach.
        pinned = on_cpu and machine.is_gpu(device)
        shared = self.computing if pinned else []
        self.between = [torch.empty_like(p, device="cpu", pin_memory=True) for p in shared]
        self.adamw = torch.optim.AdamW(self.weights, lr, fused=True, **adamw)
        self.scaled = dtype == "fp16"
        scale = 2.0**16 if self.scaled else 1.0
        self.scaler = torch.amp.GradScaler(torch.device(home).type, init_scale=scale)

    def set_lr(self, lr: float) -> None:
        for group in self.adamw.param_groups:
            group["lr"] = lr

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients to those of the step."""
        # A loss that is not finite is divided by 0, so that its gradients are not finite either.
        self.scaler.scale(loss / loss.isfinite()).backward()

    @torch.no_grad()
    def step(self) -> None:
        self.collect_gradients()
        if self.largest_norm:
            self.scaler.unscale_(self.adamw)
            nn.utils.clip_grad_norm_(self.weights, self.largest_norm)
        self.scaler.step(self.adamw)  # not if a gradient is not finite; a GPU decides that itself
        self.scaler.update(None if self.scaled else 1.0)
        for parameter in (*self.weights, *self.computing):
            parameter.grad = None
        self.round_weights()

    def collect_gradients(self) -> None:
        """Those of the networks become those of the exact weights."""
        if self.weights is self.computing:
            return
        found = [cast(Tensor, p.grad) for p in self.computing]
        if self.between:
            torch._foreach_copy_(self.between, found, non_blocking=True)
            torch.cuda.synchronize(self.device)
            found = self.between
        exact = [torch.empty_like(weight) for weight in self.weights]
        torch._foreach_copy_(exact, found)
        for weight, gradient in zip(self.weights, exact):
            weight.grad = gradient

    @torch.no_grad()
    def round_weights(self) -> None:
        """The networks' weights become the exact ones, rounded."""
        if self.weights is self.computing:
            return
        if self.between:
            torch._foreach_copy_(self.between, self.weights)
            torch._foreach_copy_(self.computing, self.between, non_blocking=True)
        else:
            torch._foreach_copy_(self.computing, self.weights)

    def steps_taken(self) -> Tensor:
        """How many steps changed the weights: a number [] on their device."""
        states = list(self.adamw.state.values())
        return states[0]["step"].clone() if states else torch.zeros(())

    def state(self) -> dict:
        weights = {name: network.state_dict() for name, network in self.networks.items()}
        own = {"optimizer": self.adamw.state_dict(), "scaler": self.scaler.state_dict()}
        return {"weights": weights} | own

    @torch.no_grad()
    def restore(self, state: dict) -> None:
        for name, network in self.networks.items():
            for key, weight in network.state_dict().items():
                weight.copy_(state["weights"][name][key])
        self.adamw.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.round_weights()


def keep_exact(network: nn.Module, device: str) -> list[Tensor]:
    """Float32 copies of the weights that ask for gradients, on the device, which take their places
    in the network's `state_dict()`."""
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    exact = {name: p.detach().to(device, torch.float32, copy=True) for name, p in trained.items()}

    def show(_: nn.Module, state: dict, prefix: str, *rest: Any) -> None:
        state.update({prefix + name: weight for name, weight in exact.items()})

    network.register_state_dict_post_hook(show)
    return list(exact.values())
