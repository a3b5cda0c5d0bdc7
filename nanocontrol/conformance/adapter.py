"""An adapter gives the suite six functions of an implementation, and optional ones.

Write a class with the functions of `Adapter`. All arrays are numpy's. Tensors are named as in the
original's checkpoints: `model.diffusion_model.` begins the base's names, and `control_model.` the
ControlNet's. `shapes` and `diffusers_names` in `cases.py` list them.

Shapes: B pictures, h x w the latent's size, H = 8h and W = 8w the picture's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numpy import ndarray as Array

from nanocontrol.conformance.cases import Config, ModelInputs

Arrays = Mapping[str, Array]


@dataclass
class TrainingBatch:
    """Encoded pairs, and the random numbers of one training step."""

    x0: Array  # [B, 4, h, w], scaled latents
    noise: Array  # [B, 4, h, w]
    t: Array  # [B], 0..999, int64
    hint: Array  # [B, 3, H, W], RGB in [0, 1]
    context: Array  # [B, 77, D], encoded prompts
    empty: Array  # [1, 77, D], the encoded empty prompt
    dropped: Array  # [B], bool: whether a pair's prompt is dropped


@dataclass
class SamplingRun:
    noise: Array  # [B, 4, h, w]
    context: Array  # [B, 77, D], encoded prompts
    uncond: Array  # [B, 77, D], encoded negative prompts
    hint: Array  # [B, 3, H, W], RGB in [0, 1]
    steps: int
    scale: float  # of guidance; 1: no guidance
    guess: bool = False  # guess mode


class Adapter(Protocol):
    """Any class with these functions is an adapter. Do not inherit from this one: without an
    optional function or attribute its checks do not run.

    Set `given` to inputs of the right shapes if the networks are not Stable Diffusion's in the
    small. Then no stored weights are loaded: checks train the fresh networks for three steps
    instead, and those that need the original's tensors do not run.
    """

    # ------------------------------------------------------------------------- required

    def make(self, config: Config) -> None:
        """Make a base with random weights, and a fresh ControlNet for it."""

    def load(self, tensors: Arrays) -> None:
        """Replace these tensors' values. The others keep theirs."""

    def base(self, x: Array, t: Array, context: Array) -> Array:
        """The base's output without control. x [B, 4, h, w], t [B], context [B, 77, D] -> x's
        shape."""

    def residuals(self, x: Array, hint: Array, t: Array, context: Array) -> list[Array]:
        """The ControlNet's residuals, the shallowest first, the middle block's last.
        hint [B, 3, H, W], RGB in [0, 1]."""

    def predict(self, x: Array, t: Array, context: Array, residuals: list[Array]) -> Array:
        """The base's output with these residuals added."""

    def parameters(self) -> tuple[Arrays, Arrays]:
        """All tensors of the base, and all of the ControlNet. Views of the memory, if they can be,
        so that shared memory shows."""

    # ------------------------------------------------------------------------- optional

    def gradients(self, batch: TrainingBatch) -> Arrays:
        """The loss's gradients, by the tensors' names. Those without a gradient may be missing."""

    def train_step(self, batch: TrainingBatch) -> None:
        """One step of the optimizer, at a rate of about 1e-3. `make` makes a new optimizer."""

    def loss(self, batch: TrainingBatch) -> float:
        """The training loss, the mean over the batch."""

    def sample(self, run: SamplingRun) -> Array:
        """Latents [B, 4, h, w], made from noise with DDIM and eta 0."""

    def saved(self) -> Any:
        """Everything that a resumed training needs. It must not change with later steps."""

    def resume(self, saved: Any) -> None:
        """Continue from what `saved` returned, after a `make`."""

    def initial_noise(self, seed: int, device: str) -> Array:
        """The noise [1, 4, 8, 8] that a seed gives on a device of `devices`."""

    # ----------------------------------------------- optional attributes, with their defaults

    given: ModelInputs  # if the networks have another structure: the stored inputs
    dtype: str  # of the networks, on which the tolerances depend: "float32"
    compiles: bool  # if it does, "equal to the bit" becomes "equal up to rounding": False
    devices: Sequence[str]  # where `initial_noise` can make its noise
    hints_encoded: int  # how often the last `sample` ran the condition encoder
    expected_failures: Mapping[str, str]  # names of checks, with reasons: none
