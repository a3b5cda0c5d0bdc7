"""Exercise 4: classifier-free guidance.

In every sampling step the U-Net predicts the noise twice: with the negative prompt (usually empty),
and with the prompt. Both are one batch, the negative prompt's rows first. Guidance starts at the
prediction without the prompt and goes along the line to the one with it, `scale` times the way, so
that a scale above 1 goes past it.

Write the function, and answer the two questions before you try them out.

    python -m nanocontrol.course check 4    # writes ex04.png: one noise at four scales
"""

from torch import Tensor

# Which scale gives pictures in which the prompt has no effect? A number.
PROMPT_HAS_NO_EFFECT = None
# Which scale gives pictures in which the negative prompt has no effect, as if the U-Net had been
# asked only once? A number.
NEGATIVE_PROMPT_HAS_NO_EFFECT = None


def guided(output: Tensor, scale: float) -> Tensor:
    """The guided noise [B, 4, h, w].

    output [2B, 4, h, w]: the U-Net's predictions, first the B rows with the negative prompt, then
    the B rows with the prompt.
    """
    raise NotImplementedError
