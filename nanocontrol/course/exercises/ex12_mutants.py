"""Exercise 12: thirteen broken ControlNets.

Each class below is nanocontrol's own ControlNet, `Ours`, with one error that real people made. The
functions in which the errors are stand here with all their code:

- `make` builds base, ControlNet and optimizer;
- `residuals`, and `run_control` on tensors, compute the copy's outputs after the zero convolutions;
- `predict` is the base with residuals, and `losses` the training loss of each pair;
- `scheduler.step` is DDIM's, with which `sample` samples.

The right ones are in ours.py and in_torch.py of nanocontrol/conformance; these call controlnet.py
and schedulers.py.

Name each error: write a word of ERRORS into NAMES. Then mend the function. It has to keep its code:
a class without it, or with a call of `Ours` or super() in its place, is not mended. The suite of
nanocontrol.conformance decides whether the error is gone, and whether the class still is a
ControlNet: it has to learn, with a base that does not, or to have the original's outputs.

    python -m nanocontrol.course check 12
"""

from nanocontrol.conformance.ours import *  # noqa: F403  `Ours`, and all names that it uses

ERRORS = """no_zero_initialisation unused_zero_convolutions exchanged_residuals no_middle_residual
hint_in_bgr hint_from_minus_one shared_encoder unlocked_base hint_after_second_block
residuals_added_twice inverted_hint last_alpha_one dropped_for_control_alone""".split()
