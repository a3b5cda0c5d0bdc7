"""ControlNets with one planted error each, and the check that finds it.

`MUTANTS["shared_encoder"].adapter()` is an adapter, `.check` the name of its check, `.sentence` a
part of the message, and `.seen` a public issue of somebody who made or met this error.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import torch
from numpy import ndarray as Array
from torch import Tensor, nn

from nanocontrol.conformance.adapter import TrainingBatch
from nanocontrol.conformance.cases import Config
from nanocontrol.conformance.ours import Ours
from nanocontrol.schedulers import DDIM, DDPM
from nanocontrol.training.optimizer import Optimizer


class Mutant(NamedTuple):
    """A ControlNet with a planted error."""

    adapter: type[Ours]
    check: str  # that finds it
    sentence: str  # in the check's message
    seen: str  # a public issue: somebody made this error, or met it


MUTANTS: dict[str, Mutant] = {}  # by the class's name in small letters


def planted(check: str, sentence: str, seen: str = "planted") -> Callable[[type[Ours]], type[Ours]]:
    """Enter a class in the table of mutants."""

    def enter(adapter: type[Ours]) -> type[Ours]:
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", adapter.__name__).lower()
        MUTANTS[name] = Mutant(adapter, check, sentence, seen)
        return adapter

    return enter


@planted("zero_at_start", "residuals are not zero", "TheDenk/cogvideox-controlnet#18")
class NoZeroInitialisation(Ours):
    """The zero convolutions begin with random weights."""

    def make(self, config: Config) -> None:
        super().make(config)
        zeros = nn.ModuleList([*self.control.zero_convs, self.control.middle_block_out])
        for parameter in zeros.parameters():
            nn.init.normal_(parameter.data, std=0.02)


@planted("residuals_pass_zero_convolutions", "do not pass the zero", "ir-lab/Diff-Control#1")
class UnusedZeroConvolutions(Ours):
    """The zero convolutions exist, and no output of the copy passes them."""

    def run_control(self, x: Tensor, hint: Tensor, t: Tensor, context: Tensor) -> list[Tensor]:
        encoded = self.control.encode_hint(hint, x)
        return self.control.encode(x, self.control.embed_time(t), context, encoded)


@planted("residuals_on_own_connections", "the residuals for blocks 2 and 3 are exchanged")
class ExchangedResiduals(Ours):
    """Two residuals of equal shape, for blocks 2 and 3, are exchanged."""

    def predict(self, x: Array, t: Array, context: Array, residuals: list[Array]) -> Array:
        first, second, third, *others = residuals
        return super().predict(x, t, context, [first, third, second, *others])


@planted("every_residual_acts", "never added to the base: those for the middle block")
class NoMiddleResidual(Ours):
    """The middle block's residual is not added."""

    def predict(self, x: Array, t: Array, context: Array, residuals: list[Array]) -> Array:
        return super().predict(x, t, context, [*residuals[:-1], 0 * residuals[-1]])


@planted("hint_is_rgb_in_0_1", "red and blue", "huggingface/diffusers#2407")
class HintInBGR(Ours):
    def residuals(self, x: Array, hint: Array, t: Array, context: Array) -> list[Array]:
        return super().residuals(x, hint[:, ::-1], t, context)


@planted("hint_is_rgb_in_0_1", "read as RGB in [-1, 1]", "huggingface/diffusers#10821")
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
        self.unet.requires_grad_(True)
        self.trained = Optimizer({"control": self.control, "unet": self.unet}, 1e-3, "cpu")


@planted("hint_enters_after_the_first_block", "added after block 2")
class HintAfterSecondBlock(Ours):
    def run_control(self, x: Tensor, hint: Tensor, t: Tensor, context: Tensor) -> list[Tensor]:
        net, emb = self.control, self.control.embed_time(t)
        first = net.input_blocks[0](x, emb, context)
        outputs = [first, net.input_blocks[1](first, emb, context) + net.encode_hint(hint, x)]
        for block in [*net.input_blocks[2:], net.middle_block]:
            outputs.append(block(outputs[-1], emb, context))
        return [zero(h) for zero, h in zip([*net.zero_convs, net.middle_block_out], outputs)]


@planted("residuals_on_own_connections", "added twice")
class ResidualsAddedTwice(Ours):
    def predict(self, x: Array, t: Array, context: Array, residuals: list[Array]) -> Array:
        return super().predict(x, t, context, [2 * r for r in residuals])


@planted("hint_is_rgb_in_0_1", "read as RGB, inverted", "Mikubill/sd-webui-controlnet#309")
class InvertedHint(Ours):
    """Black lines on white where the network learnt white lines on black."""

    def residuals(self, x: Array, hint: Array, t: Array, context: Array) -> list[Array]:
        return super().residuals(x, 1 - hint, t, context)


class ToOne(DDIM):
    def step(self, x, output, t, previous, noise):  # type: ignore[no-untyped-def]
        x0, _ = self.split(x, output, t)
        return x0 if previous is None else super().step(x, output, t, previous, noise)


@planted("ddim", "last alpha is 1", "lllyasviel/ControlNet#587")
class LastAlphaOne(Ours):
    """DDIM ends without noise, at an alpha of 1."""

    scheduler = ToOne


@planted("dropped_prompt_is_the_empty_one", "for the ControlNet alone", "lllyasviel/ControlNet#582")
class DroppedForControlAlone(Ours):
    """A dropped prompt is empty for the ControlNet, and the base still reads it."""

    def losses(self, batch: TrainingBatch) -> Tensor:
        x0, noise, t, hint, context, empty, dropped = self.inputs(*vars(batch).values())
        x = DDPM().add_noise(x0, noise, t)
        prompts = torch.where(dropped[:, None, None], empty, context)
        residuals = self.control(x, hint, t, prompts)
        return (self.unet(x, t, context, residuals) - noise).square().mean((1, 2, 3))
