"""Other networks in the place of the copy: ControlNet-lite, a light one with as many weights as the
copy, and the copy's own architecture with random weights."""

from collections.abc import Callable

from torch import nn

from nanocontrol import ControlNet, StableDiffusion
from nanocontrol.experiments.arm import Start
from nanocontrol.experiments.beginnings import keep_variance
from nanocontrol.unet import Block, Downsample

# Of a block, the channels that it takes and gives, and its stride: what comes in its place.
NewBlock = Callable[[Block, int, int, int], Block]


def one_convolution(old: Block, channels: int, out_channels: int, stride: int) -> Block:
    """ControlNet-lite (section 4.2, figure 8): each block is a single convolution. It knows
    neither t nor the prompt."""
    return Block(nn.SiLU(), nn.Conv2d(channels, out_channels, 3, stride, padding=1))


def as_many_weights(old: Block, channels: int, out_channels: int, stride: int) -> Block:
    """Two convolutions, so wide between them that they have the block's number of weights."""
    weights = sum(p.numel() for p in old.parameters())
    width = round(weights / (9 * (channels + out_channels)))
    return Block(
        nn.SiLU(),
        nn.Conv2d(channels, width, 3, stride, padding=1),
        nn.SiLU(),
        nn.Conv2d(width, out_channels, 3, padding=1),
    )


def passing_on(make: NewBlock) -> NewBlock:
    """Its convolutions start as `--hint-init variance` has the condition encoder's. Nothing leads
    around them, so with PyTorch's weights pictures would hardly differ any more behind them."""

    def made(old: Block, channels: int, out_channels: int, stride: int) -> Block:
        block = make(old, channels, out_channels, stride)
        for module in block:
            if isinstance(module, nn.Conv2d):
                keep_variance(module, 1.4)
        return block

    return made


def as_it_is(old: Block, channels: int, out_channels: int, stride: int) -> Block:
    return old


def blocks_by(make: NewBlock) -> Start:
    """The copy's blocks but the first, which is a single convolution already, are made anew."""

    def start(sd: StableDiffusion, control: ControlNet) -> None:
        channels = control.skip_channels
        for i in range(1, len(control.input_blocks)):
            old = control.input_blocks[i]
            assert isinstance(old, Block)
            stride = 2 if isinstance(old[0], Downsample) else 1
            control.input_blocks[i] = make(old, channels[i - 1], channels[i], stride)
        last = channels[-1]
        control.middle_block = make(control.middle_block, last, last, 1)

    return start


def random_weights(
    parts: tuple[str, ...] = ("time_embed", "input_blocks", "middle_block"),
) -> Start:
    """These parts start with PyTorch's random weights, not with the base's."""

    def start(sd: StableDiffusion, control: ControlNet) -> None:
        fresh = ControlNet(control.config)
        for name in parts:
            getattr(control, name).load_state_dict(getattr(fresh, name).state_dict())

    return start
