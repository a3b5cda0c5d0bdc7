"""The hint appended to the U-Net's input, as Stable Diffusion 2's depth model has it: the first
convolution takes more channels, whose weights begin as zeros, and the whole U-Net is trained."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from nanocontrol import ControlNet, StableDiffusion
from nanocontrol.controlnet import zero_module
from nanocontrol.experiments.arm import Start


class HandedOver(ControlNet):
    """In a ControlNet's place. It computes the new channels' part of the U-Net's first convolution:
    a convolution of two maps that are joined is the sum of a convolution of each. It is given the
    hint as 8 x 8 x 3 channels at the latent's size, so that no line is lost, as would be in a
    smaller picture of them. (Without a bias: a black hint is as none.)"""

    def __init__(self, control: ControlNet):
        super().__init__(control.config)
        first = nn.Conv2d(3 * 8 * 8, control.config.model_channels, 3, padding=1, bias=False)
        self.input_hint_block = nn.Sequential(nn.PixelUnshuffle(8), zero_module(first))
        self.time_embed = nn.Sequential()
        self.input_blocks, self.zero_convs = nn.ModuleList(), nn.ModuleList()
        self.middle_block: Any = nn.Sequential()
        self.middle_block_out = nn.Sequential()

    def residuals(self, x: Tensor, encoded: Tensor, t: Tensor, context: Tensor) -> list[Tensor]:
        return [encoded]


def as_it_is(control: ControlNet) -> ControlNet:
    return control


def concatenated(in_its_place: Callable[[ControlNet], ControlNet] = HandedOver) -> Start:
    """A U-Net that is given one residual, not one for each skip, adds it to the output of its first
    convolution, and takes none to its skips."""

    def start(sd: StableDiffusion, control: ControlNet) -> ControlNet:
        handed_over: list[Tensor] = []

        def before(unet: Any, inputs: tuple) -> tuple:
            x, t, context, *residuals = inputs
            handed_over.clear()
            if not residuals or residuals[0] is None or len(residuals[0]) > 1:
                return inputs
            handed_over.extend(residuals[0])
            return x, t, context

        def after_first(block: Any, inputs: tuple, output: Tensor) -> Tensor:
            return output + handed_over[0] if handed_over else output

        sd.unet.register_forward_pre_hook(before)
        sd.unet.input_blocks[0].register_forward_hook(after_first)
        return in_its_place(control)

    return start
