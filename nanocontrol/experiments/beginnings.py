"""Other first weights: of the condition encoder, and of the zero convolutions."""

import torch
from torch import nn

from nanocontrol import ControlNet, StableDiffusion
from nanocontrol.controlnet import zero_module
from nanocontrol.experiments.arm import Start


def convolutions(encoder: nn.Sequential) -> list[nn.Conv2d]:
    """Of a condition encoder, without the zero convolution that ends it."""
    return [module for module in encoder[:-1] if isinstance(module, nn.Conv2d)]


@torch.no_grad()
def keep_variance(module: nn.Conv2d, gain: float) -> None:
    """Kaiming's weights times the gain, no biases. 1.4 is train.py's `--hint-init variance`;
    PyTorch's own weights are 0.41 times Kaiming's, and have biases."""
    # (Drawn in this order, whatever the order in memory, the numbers are train.py's.)
    drawn = nn.init.kaiming_normal_(module.weight.contiguous())
    module.weight.copy_(drawn.mul_(gain))
    module.bias.zero_()


def variance_keeping(gain: float) -> Start:
    """The condition encoder starts so."""

    def start(sd: StableDiffusion, control: ControlNet) -> None:
        for module in convolutions(control.input_hint_block):
            keep_variance(module, gain)

    return start


def half_as_deep(sd: StableDiffusion, control: ControlNet) -> None:
    """The condition encoder has every second of its convolutions only: four, not eight."""
    of_all = convolutions(control.input_hint_block)
    layers: list[nn.Module] = []
    width = 3
    for old in of_all:
        if old.stride == (2, 2):
            layers += [nn.Conv2d(width, old.out_channels, 3, 2, padding=1), nn.SiLU()]
            width = old.out_channels
    control.input_hint_block = nn.Sequential(*layers, control.input_hint_block[-1])


def one_zero_convolution(sd: StableDiffusion, control: ControlNet) -> None:
    """The condition encoder is one zero convolution, of 8 x 8 pixels."""
    channels = control.config.model_channels
    control.input_hint_block = nn.Sequential(zero_module(nn.Conv2d(3, channels, 8, stride=8)))


def gaussian_convolutions(share: float = 1.0) -> Start:
    """All zero convolutions, the hint's too, start with Gaussian weights that would keep the
    variance; times the share."""

    @torch.no_grad()
    def start(sd: StableDiffusion, control: ControlNet) -> None:
        zeros = [*control.zero_convs.modules(), *control.middle_block_out.modules()]
        for module in [*zeros, control.input_hint_block[-1]]:
            if isinstance(module, nn.Conv2d):
                fan_in = module.weight[0].numel()
                nn.init.normal_(module.weight, std=share * fan_in**-0.5)

    return start
