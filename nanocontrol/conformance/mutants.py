"""ControlNets with one planted error each, and the check that finds it.

`MUTANTS["shared_encoder"].adapter()` is an adapter, `.check` the name of its check, `.sentence` a
part of the message, and `.seen` a public issue of somebody who made or met this error.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType

import torch
from numpy import ndarray as Array
from torch import Tensor, nn

from nanocontrol.conformance.adapter import TrainingBatch
from nanocontrol.conformance.bench import ZERO_CONVOLUTIONS
from nanocontrol.conformance.cases import Config
from nanocontrol.conformance.in_torch import to_torch
from nanocontrol.conformance.ours import Ours
from nanocontrol.controlnet import ControlNet
from nanocontrol.schedulers import DDIM, DDPM
from nanocontrol.training.optimizer import Optimizer


@dataclass(frozen=True)
class Mutant:
    """A ControlNet with a planted error."""

    adapter: type[Ours]
    check: str  # that finds it
    sentence: str  # in the check's message
    seen: str  # a public issue: somebody made this error, or met it

    @property
    def name(self) -> str:
        """The class's name in small letters: shared_encoder for SharedEncoder."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", self.adapter.__name__).lower()


MUTANTS: dict[str, Mutant] = {}


def planted(check: str, sentence: str, seen: str) -> Callable[[type[Ours]], type[Ours]]:
    """Enter a class in the table of mutants."""

    def enter(adapter: type[Ours]) -> type[Ours]:
        mutant = Mutant(adapter, check, sentence, seen)
        MUTANTS[mutant.name] = mutant
        return adapter

    return enter


@planted("zero_at_start", "residuals are not zero", "TheDenk/cogvideox-controlnet#18")
class NoZeroInitialisation(Ours):
    """The zero convolutions begin with random weights."""

    def make(self, config: Config) -> None:
        super().make(config)
        for name, parameter in self.tensors()[1].items():
            if name.startswith(tuple(ZERO_CONVOLUTIONS)):
                nn.init.normal_(parameter.data, std=0.02)


@planted(
    "residuals_pass_zero_convolutions", "do not pass the zero convolutions", "ir-lab/Diff-Control#1"
)
class UnusedZeroConvolutions(Ours):
    """The zero convolutions exist, and no output of the copy passes them."""

    @torch.no_grad()
    def residuals(self, x: Array, hint: Array, t: Array, context: Array) -> list[Array]:
        latent, picture, prompts = self.inputs(x, hint, context)
        emb = self.control.embed_time(to_torch(t))
        encoded = self.control.encode_hint(picture, latent)
        return [h.numpy() for h in self.control.encode(latent, emb, prompts, encoded)]


@planted(
    "residuals_on_own_connections", "the residuals for blocks 2 and 3 are exchanged", "planted"
)
class ExchangedResiduals(Ours):
    """Two residuals of equal shape, for blocks 2 and 3, are exchanged."""

    def predict(self, x: Array, t: Array, context: Array, residuals: list[Array]) -> Array:
        first, second, third, *others = residuals
        return super().predict(x, t, context, [first, third, second, *others])


@planted("every_residual_acts", "never added to the base: those for the middle block", "planted")
class NoMiddleResidual(Ours):
    """The middle block's residual is not added."""

    def predict(self, x: Array, t: Array, context: Array, residuals: list[Array]) -> Array:
        return super().predict(x, t, context, [*residuals[:-1], 0 * residuals[-1]])


@planted("hint_is_rgb", "red and blue", "huggingface/diffusers#2407")
class HintInBGR(Ours):
    def residuals(self, x: Array, hint: Array, t: Array, context: Array) -> list[Array]:
        return super().residuals(x, hint[:, ::-1], t, context)


@planted("hint_in_0_1", "read as [-1, 1]", "huggingface/diffusers#10821")
class HintFromMinusOne(Ours):
    """The hint is in [-1, 1], like the pictures."""

    def residuals(self, x: Array, hint: Array, t: Array, context: Array) -> list[Array]:
        return super().residuals(x, 2 * hint - 1, t, context)


@planted("copy_shares_no_storage", "shared, not copied", "lllyasviel/ControlNet#520")
class SharedEncoder(Ours):
    """The ControlNet uses the base's encoder itself, not a copy."""

    def make(self, config: Config) -> None:
        super().make(config)
        base = dict(self.unet.named_parameters())
        for name, parameter in self.control.named_parameters():
            if name in base:
                parameter.data = base[name].data


@planted("locked_keeps_its_bits", "not locked", "lllyasviel/ControlNet#625")
class UnlockedBase(Ours):
    """The optimizer also has the base's weights."""

    def make(self, config: Config) -> None:
        super().make(config)
        trained: dict[str, nn.Module] = {
            "control": self.control,
            "unet": self.unet.requires_grad_(True),
        }
        self.trained = Optimizer(trained, 1e-3, "cpu")


def encode_late(
    self: ControlNet, x: Tensor, emb: Tensor, context: Tensor, encoded_hint: Tensor
) -> list[Tensor]:
    """`UNetEncoder.encode` with the hint added after the second block."""
    outputs = [self.input_blocks[0](x, emb, context)]
    for block in [*self.input_blocks[1:], self.middle_block]:
        outputs.append(block(outputs[-1], emb, context))
        if len(outputs) == 2:
            outputs[-1] = outputs[-1] + encoded_hint
    return outputs


@planted("hint_enters_after_the_first_block", "added after block 2", "planted")
class HintAfterSecondBlock(Ours):
    def make(self, config: Config) -> None:
        super().make(config)
        self.control.encode = MethodType(encode_late, self.control)  # type: ignore[method-assign]


@planted("residuals_added_once", "added twice", "planted")
class ResidualsAddedTwice(Ours):
    def predict(self, x: Array, t: Array, context: Array, residuals: list[Array]) -> Array:
        return super().predict(x, t, context, [2 * r for r in residuals])


@planted("hint_in_0_1", "read as inverted", "Mikubill/sd-webui-controlnet#309")
class InvertedHint(Ours):
    """Black lines on white where the network learnt white lines on black."""

    def residuals(self, x: Array, hint: Array, t: Array, context: Array) -> list[Array]:
        return super().residuals(x, 1 - hint, t, context)


class ToOne(DDIM):
    def step(self, x, output, t, previous, noise):  # type: ignore[no-untyped-def]
        x0, _ = self.split(x, output, t)
        return x0 if previous is None else super().step(x, output, t, previous, noise)


@planted("ddim_last_alpha", "last alpha is 1", "lllyasviel/ControlNet#587")
class LastAlphaOne(Ours):
    """DDIM ends without noise, at an alpha of 1."""

    scheduler = ToOne


@planted("dropped_prompt_is_the_empty_one", "for the ControlNet alone", "lllyasviel/ControlNet#582")
class DroppedForControlAlone(Ours):
    """A dropped prompt is empty for the ControlNet, and the base still reads it."""

    def losses(self, batch: TrainingBatch) -> Tensor:
        arrays = batch.x0, batch.noise, batch.hint, batch.context, batch.empty
        x0, noise, hint, context, empty = self.inputs(*arrays)
        t, dropped = to_torch(batch.t), to_torch(batch.dropped)[:, None, None]
        x = DDPM().add_noise(x0, noise, t)
        residuals = self.control(x, hint, t, torch.where(dropped, empty, context))
        return (self.unet(x, t, context, residuals) - noise).square().mean((1, 2, 3))
