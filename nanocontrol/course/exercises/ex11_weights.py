"""Exercise 11: strength, guess mode, resolution weighting.

Before the residuals are added, each is multiplied by a weight. The residuals come with the
shallowest first and the middle block's last. Three modes:

- "plain": all weights are the strength.
- "guess": the original's guess mode, for hints without a prompt. The middle block's weight is the
  strength, and each residual before it has 0.825 times the weight of the next.
- "resolution": the paper's resolution weighting (section 3.4). The strength times 64 / h for a
  residual of height h, where 64 stands for the height of the latent. Where is the weight 8?

Guidance makes a batch of 2B rows, the first B with the negative prompt. In "plain" all rows are
controlled. In the other two modes only the rows with the prompt are: then guidance amplifies what
the hint changes.

    python -m nanocontrol.course check 11    # writes ex11.png: a hint without a prompt, three modes
"""


def residual_weights(strength: float, heights: list[int], mode: str) -> list[float]:
    """The weight of each residual. heights: of the residuals; the first one has the latent's."""
    raise NotImplementedError


def controlled_rows(pictures: int, mode: str) -> list[bool]:
    """Whether each row of the batch is controlled. The batch has two rows for each picture."""
    raise NotImplementedError
