"""The stored cases: weights and inputs from a formula, outputs of the original's code.

The configuration is the smallest that the original's code allows: its norms have 32 groups. Every
array comes from `numpy.random.RandomState`, whose stream is frozen, seeded with the CRC-32 of the
array's name. So no weights are stored, and a program in any language can make them again.

Shapes: B = 2, h x w = 8 x 16 (the latent's), 77 tokens, D = 64.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from numpy import ndarray as Array

from nanocontrol.controlnet import HINT_LAYERS, ControlNet
from nanocontrol.formats.diffusers_names import RES_BLOCK, name_table
from nanocontrol.schedulers import STEPS
from nanocontrol.unet import UNet, UNetConfig

VERSION = 1  # of the formula and of the stored outputs
STORED = Path(__file__).parent / "original.npz"
BASE, CONTROL = "model.diffusion_model.", "control_model."  # how the tensors' names begin


@dataclass(frozen=True)
class Config(UNetConfig):
    """The networks that `make` builds, in the words of the original's configuration files. The
    fields that are not here have Stable Diffusion 1's values, and so has the condition encoder: 16,
    32, 96 and 256 channels."""

    model_channels: int = 32
    context_dim: int = 64
    prediction: str = "eps"  # what the base predicts: "eps" or "v"


CONFIG = Config()
RESIDUALS = 13


# ------------------------------------------------------------------------------ the formula


def normal(name: str, *shape: int) -> Array:
    """Standard normal numbers, in float64, the same for a name on every machine."""
    return np.random.RandomState(crc32(name.encode())).standard_normal(shape)


def weight(name: str, shape: tuple[int, ...]) -> Array:
    """A tensor of a trained network, in float64.

    Matrices and convolutions: normal / sqrt(number of inputs); scales of norms: 1 + 0.1 normal;
    biases: 0.01 normal. The first convolution and the ends of all residual branches are 0.01 times
    that. So maps have a variance of about 1e-4, at which the norms' eps of 1e-5 and 1e-6 show.
    """
    values = normal(name, *shape)
    if len(shape) == 1:
        return 1 + 0.1 * values if name.endswith("weight") else 0.01 * values
    faint = ("blocks.0.0.weight", "out_layers.3.weight", "proj_out.weight", "block.14.weight")
    return (0.01 if name.endswith(faint) else 1) * values / np.sqrt(np.prod(shape[1:]))


@cache
def shapes() -> dict[str, tuple[int, ...]]:
    """The names and shapes of all tensors, under the original's names."""
    with torch.device("meta"):
        networks = {BASE: UNet(CONFIG), CONTROL: ControlNet(CONFIG)}
    return {
        prefix + name: tuple(tensor.shape)
        for prefix, network in networks.items()
        for name, tensor in network.state_dict().items()
    }


def diffusers_names() -> dict[str, str]:
    """The beginnings of all tensors' names: the original's -> diffusers'. For adapters of code with
    those names."""
    levels, res_blocks = len(CONFIG.channel_mult), CONFIG.num_res_blocks
    names = name_table(levels, res_blocks, len(HINT_LAYERS))
    names |= {"out.0.": "conv_norm_out.", "out.2.": "conv_out."}
    for level in range(levels):  # of the decoder, which a ControlNet does not have
        up = f"up_blocks.{level}."
        for number in range(res_blocks + 1):
            block = f"output_blocks.{level * (res_blocks + 1) + number}."
            for ours, theirs in RES_BLOCK.items():
                names[f"{block}0.{ours}."] = f"{up}resnets.{number}.{theirs}."
            names[f"{block}1."] = f"{up}attentions.{number}."
        # The upsampler follows the transformer, which the deepest level does not have.
        names[f"{block}{2 if level else 1}.conv."] = f"{up}upsamplers.0.conv."
    return {prefix + ours: theirs for prefix in (BASE, CONTROL) for ours, theirs in names.items()}


@cache
def weights() -> dict[str, Array]:
    """All tensors of a trained base and ControlNet, read-only."""
    # broadcast_to returns a view that cannot be written.
    return {name: np.broadcast_to(weight(name, shape), shape) for name, shape in shapes().items()}


@dataclass
class ModelInputs:
    """x [B, 4, h, w], hint [B, 3, 8h, 8w] RGB in [0, 1], t [B] in 0..999, context [B, 77, D]."""

    x: Array
    hint: Array
    t: Array
    context: Array


def inputs() -> ModelInputs:
    hint = np.random.RandomState(crc32(b"hint")).uniform(size=(2, 3, 64, 128))
    context = normal("context", 2, 77, CONFIG.context_dim)
    return ModelInputs(normal("x", 2, 4, 8, 16), hint, np.array([7, 981]), context)


@cache
def stored() -> dict[str, Array]:
    """Outputs of the original's code in float64: base, residual.0 to 12, controlled, and latents
    after five steps of DDIM: ddim (scale 3) and guess (in guess mode)."""
    with np.load(STORED) as file:
        return dict(file)


def original_residuals() -> list[Array]:
    return [stored()[f"residual.{k}"] for k in range(RESIDUALS)]


# -------------------------------------------------------------------------------- tolerances

# The longest chain from input to output, counted in products of matrices: the copy or the encoder
# (24 convolutions in 12 blocks, 7 transformers of 10 products), then the decoder (35 in 12 blocks,
# 9 transformers).
PRODUCTS = 24 + 7 * 10 + 35 + 9 * 10
LONGEST_SUM = 9 * 256  # terms in one number of a product: a 3x3 convolution of 256 channels


def unit_of(dtype: str) -> float:
    """The unit roundoff of float32 (6e-8) or another type."""
    return float(np.finfo(dtype).eps) / 2


def rounding(dtype: str) -> float:
    """The relative error that rounding explains.

    A sum of n terms has a relative error of about sqrt(n) units, since the errors of single
    operations are independent, and m products in a chain sqrt(m) times that (Higham & Mary 2019).
    Their bound holds with probability 1 - 2 exp(-c^2 / 2) for a factor of c: we take 4.
    """
    return 4 * (PRODUCTS * LONGEST_SUM) ** 0.5 * unit_of(dtype)


def tolerance(dtype: str) -> float:
    """The relative error allowed against an exact value.

    Rounding, and the time embedding: every implementation computes its angles, up to 999, in
    float32, and an angle that is wrong by 999 * 6e-8 changes a cosine by as much.
    """
    return rounding(dtype) + STEPS * unit_of("float32")


def error(made: Array, exact: Array) -> float:
    """The relative error in the Euclidean norm; infinite if the shapes differ."""
    if np.shape(made) != np.shape(exact):
        return float("inf")
    norm, difference = np.linalg.norm, np.asarray(made, np.float64) - exact
    return float(norm(difference)) / max(float(norm(exact)), 1e-300)
