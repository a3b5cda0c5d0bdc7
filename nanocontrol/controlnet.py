"""ControlNet: a trainable copy of the U-Net's encoder, joined to the locked U-Net by zero
convolutions (Zhang & Agrawala, "Adding Conditional Control to Text-to-Image Diffusion Models",
2023, section 3).

The U-Net is locked where training begins, in `models` in train.py.

Shapes as in unet.py; H = 8h and W = 8w are the picture's height and width in pixels.
Attribute names are the keys of the original checkpoint below `control_model.`.
"""

import copy
from typing import Self, TypeVar

import torch
from torch import Tensor, nn

from nanocontrol.unet import SD1, UNet, UNetConfig, UNetEncoder

M = TypeVar("M", bound=nn.Module)
HINT_CHANNELS = (16, 32, 96, 256)  # the condition encoder's widths at 1, 1/2, 1/4, 1/8 of the size
# Its convolutions before the last one: which of the widths each has, and its stride.
HINT_LAYERS = ((0, 1), (0, 1), (1, 2), (1, 1), (2, 2), (2, 1), (3, 2))


def zero_module(module: M) -> M:
    """Zero the weights. Output and gradient of the input are then zero, but the gradient of the
    weights, which is the output's gradient times the input, is not. One optimizer step, and they
    are zero no more."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def zero_convolution(channels: int) -> nn.Conv2d:
    """Z in the paper: a 1x1 convolution whose weight and bias begin as zeros."""
    return zero_module(nn.Conv2d(channels, channels, 1))


class ControlBlock(nn.Module):
    """The paper's idea for any network block F(x; weights). Equation 2:

        y_c = F(x; locked) + Z(F(x + Z(c; z1); copy); z2)

    block: F, from x [B, channels, H, W] to [B, out_channels, H', W']; c has x's shape.
    The block itself is locked. At first both Z give zeros, so y_c = F(x) to the bit.

    (This is for understanding. ControlNet, below, copies the whole encoder at once, adds the
    condition once, at its beginning, and has a Z for each of its outputs.)
    """

    def __init__(self, block: nn.Module, channels: int, out_channels: int):
        super().__init__()
        self.copy = copy.deepcopy(block).requires_grad_(True)
        self.locked = block.requires_grad_(False)
        self.zero_in = zero_convolution(channels)
        self.zero_out = zero_convolution(out_channels)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.locked(x) + self.zero_out(self.copy(x + self.zero_in(c)))


def condition_encoder(channels: int, widths: tuple[int, ...] = HINT_CHANNELS) -> nn.Sequential:
    """A network from the hint [B, 3, H, W] to [B, channels, h, w], the latent's size. Its output is
    zero at first.

    widths: its channels at each resolution. With Stable Diffusion's, for a picture of 512 pixels
    (kernels are 3x3, with a SiLU between any two convolutions):

    | convolution         | stride | channels | size |
    |---------------------|--------|----------|------|
    | input_hint_block.0  | 1      | 16       | 512  |
    | input_hint_block.2  | 1      | 16       | 512  |
    | input_hint_block.4  | 2      | 32       | 256  |
    | input_hint_block.6  | 1      | 32       | 256  |
    | input_hint_block.8  | 2      | 96       | 128  |
    | input_hint_block.10 | 1      | 96       | 128  |
    | input_hint_block.12 | 2      | 256      | 64   |
    | input_hint_block.14 | 1      | 320      | 64   |

    All released weights have this encoder. The paper's text describes another one, of four
    convolutions (4x4, stride 2, ReLU, 16 to 128 channels, Gaussian weights).
    """
    layers: list[nn.Module] = []
    width = 3
    for i, stride in HINT_LAYERS:
        layers += [nn.Conv2d(width, widths[i], 3, stride, padding=1), nn.SiLU()]
        width = widths[i]
    return nn.Sequential(*layers, zero_module(nn.Conv2d(width, channels, 3, padding=1)))


def read_hint_channels(tensors: dict[str, Tensor]) -> tuple[int, ...]:
    """The widths of the condition encoder in a ControlNet's state dict, read off its shapes."""
    layers = [i for i, _ in HINT_LAYERS]
    first = [layers.index(i) for i in range(max(layers) + 1)]  # the first convolution of each width
    return tuple(tensors[f"input_hint_block.{2 * k}.weight"].shape[0] for k in first)


@torch.no_grad()
def initialise_condition_encoder(control: "ControlNet", gain: float = 1.4) -> None:
    """Kaiming initialisation times a gain: every convolution amplifies the hint a little. With
    PyTorch's, which the original has, each of them passes only a fraction on, and training has to
    amplify the hint first: most of the wait for the sudden convergence."""
    for module in list(control.input_hint_block)[:-1]:  # the last one has to stay zero
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight).mul_(gain)
            module.bias.zero_()


class ControlNet(UNetEncoder):
    """The trainable copy, the condition encoder, and a zero convolution for each of the copy's
    outputs: in Stable Diffusion 13, of the 12 encoder blocks and the middle block."""

    def __init__(self, config: UNetConfig = SD1, hint_channels: tuple[int, ...] = HINT_CHANNELS):
        super().__init__(config)
        self.input_hint_block = condition_encoder(config.model_channels, hint_channels)
        # Each in a sequence of one: the checkpoint's keys are zero_convs.0.0, zero_convs.1.0, ...
        zeros = [nn.Sequential(zero_convolution(channels)) for channels in self.skip_channels]
        self.zero_convs = nn.ModuleList(zeros)
        self.middle_block_out = nn.Sequential(zero_convolution(self.skip_channels[-1]))

    @classmethod
    def from_unet(cls, unet: UNet, hint_channels: tuple[int, ...] = HINT_CHANNELS) -> Self:
        """A ControlNet before training, every residual zero: the encoder's weights are copied, the
        condition encoder is random. On the U-Net's device, in its precision."""
        control = cls(unet.config, hint_channels)
        weights = unet.state_dict()
        copied = {name: weights[name] for name in control.state_dict() if name in weights}
        control.load_state_dict(control.state_dict() | copied)
        return control.to(next(unet.parameters()))

    def forward(self, x: Tensor, hint: Tensor, t: Tensor, context: Tensor) -> list[Tensor]:
        """The residuals for the U-Net's skips, shallowest first, then the middle block's.

        x [B, 4, h, w] noisy latent, hint [B, 3, H, W] RGB in [0, 1], t [B] step 0..999,
        context [B, T, D] encoded prompt -> a tensor of the shape of each output of the copy.
        (The order of the arguments is the original's.)
        Raises ValueError if hint and latent do not go together.
        """
        return self.residuals(x, self.encode_hint(hint, x), t, context)

    def encode_hint(self, hint: Tensor, x: Tensor) -> Tensor:
        """hint [B, 3, H, W] -> [B, c, h, w], the same for all steps; x: as above, for its size."""
        size = (8 * x.shape[-2], 8 * x.shape[-1])
        if hint.shape[-2:] != size:
            raise ValueError(f"the hint is {[*hint.shape[-2:]]} pixels, expected {[*size]}")
        return self.input_hint_block(hint)

    def residuals(self, x: Tensor, encoded: Tensor, t: Tensor, context: Tensor) -> list[Tensor]:
        """`forward` with an encoded hint [B, c, h, w]."""
        outputs = self.encode(x, self.embed_time(t), context, encoded_hint=encoded)
        zeros = [*self.zero_convs, self.middle_block_out]
        return [zero(output) for zero, output in zip(zeros, outputs, strict=True)]
