"""Exercise 10: the jump.

"I trained for 300 steps and nothing happened. Is it broken?" The paper's ControlNet ignored hints
for 6,100 steps and followed it after 6,133. nano's waits too, for a reason: the condition encoder,
as the released code initialises it (PyTorch's default), lets almost nothing of the hint through,
and training has to amplify it first. Two changes help: initialise the encoder so that the
signal keeps its size ("scaled"), or make it half as deep ("half").

1. Predict at which step each of the two begins to follow, that is, reaches a score of 0.4. With the
   released initialisation four runs took 1,546 to 1,994 steps. Write PREDICTED first.
2. Train both, 240 and 400 steps of some minutes:  python -m nanocontrol.course train scaled
                                                   python -m nanocontrol.course train half
   The commands write runs/scaled and runs/half. Look at film.png and curves.png there.
3. Write first_step_at, and compute FOUND from the scores that the commands print.

The check judges each part as soon as it is there, and says which command is still to be run.

    python -m nanocontrol.course check 10
"""

PREDICTED = {"scaled": None, "half": None}  # steps, before you train
FOUND = {"scaled": None, "half": None}  # steps, from your runs
# A friend has trained for 300 steps with the released initialisation, and sees nothing. Does this
# show that something is broken? True or False.
BROKEN_AFTER_300 = None


def first_step_at(steps: list[int], scores: list[float], level: float) -> float | None:
    """Where the score first reaches the level, or None if it never does.

    Scores are measured at some steps only: take a straight line between two of them.
    """
    raise NotImplementedError
