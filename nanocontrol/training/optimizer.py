"""AdamW that skips bad steps, and a way to make it take less memory."""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn


class Optimizer:
    """The original's: AdamW with PyTorch's defaults, for all weights that ask for gradients.

    clip: what the gradients' norm is cut off at.
    exact_on_cpu: the networks work in bf16, and their float32 weights (with gradients and AdamW's
    two moments) are in the CPU's memory.
    """

    def __init__(
        self,
        networks: dict[str, nn.Module],
        lr: float,
        clip: float = math.inf,
        exact_on_cpu: bool = False,
        **adamw: Any,
    ):
        self.clip = clip
        self.networks, self.working = networks, {}  # what is saved; with exact_on_cpu, what works
        if exact_on_cpu:
            self.working, self.networks = networks, {}
            for name, network in networks.items():
                device = next(network.parameters()).device
                self.networks[name] = copy.deepcopy(network.cpu())
                network.to(device, torch.bfloat16)
        every = (p for network in self.networks.values() for p in network.parameters())
        self.parameters = [p for p in every if p.requires_grad]
        self.adamw = torch.optim.AdamW(self.parameters, lr, fused=True, **adamw)
        self.every_pass = exact_on_cpu  # gradients are moved, so they must be averaged by then

    def set_lr(self, lr: float) -> None:
        for group in self.adamw.param_groups:
            group["lr"] = lr

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients to those of the step."""
        loss.backward()
        for name, network in self.working.items():
            move_gradients(network, self.networks[name])

    def step(self, loss: Tensor) -> Tensor:
        """Take the step, unless its loss [] or the norm of its gradients is not finite: then
        weights, moments and AdamW's counters stay as they are, to the bit -> the loss, or NaN where
        the step was skipped.

        Only after the backward pass are all gradients known, so no weight may move before. (A
        norm that overflows counts, too: AdamW's second moment, of squares, would.)
        """
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        bad = ~(norm + loss.to(norm.device)).isfinite()
        if self.clip < math.inf:
            nn.utils.clip_grads_with_norm_(self.parameters, self.clip, norm)
        # The fused AdamW reads it on the device, as GradScaler would have it: no CPU waits for a
        # GPU to decide. It does nothing where it is 1, and takes its count of steps back.
        self.adamw.found_inf = bad.float()  # type: ignore[attr-defined]
        self.adamw.step()
        self.adamw.zero_grad()
        for name, network in self.working.items():
            copy_weights(self.networks[name], network)
        return torch.where(bad.to(loss.device), math.nan, loss)

    def state(self) -> dict:
        weights = {name: network.state_dict() for name, network in self.networks.items()}
        return {"weights": weights, "optimizer": self.adamw.state_dict()}

    def restore(self, state: dict) -> None:
        for name, network in self.networks.items():
            network.load_state_dict(state["weights"][name])
        self.adamw.load_state_dict(state["optimizer"])
        for name, network in self.working.items():
            copy_weights(self.networks[name], network)


def move_gradients(working: nn.Module, exact: nn.Module) -> None:
    """Add the working network's gradients to the exact one's, and drop them."""
    for own, kept in zip(working.parameters(), exact.parameters(), strict=True):
        if own.grad is not None:
            if kept.grad is None:
                kept.grad = torch.zeros_like(kept)
            kept.grad += own.grad.to(kept)
            own.grad = None


@torch.no_grad()
def copy_weights(exact: nn.Module, working: nn.Module) -> None:
    for kept, own in zip(exact.parameters(), working.parameters(), strict=True):
        own.copy_(kept)
