"""Exercise 12: thirteen broken ControlNets.

Below are thirteen ControlNets. Each is nanocontrol's own, `Ours`, with one planted error that real
people made. `Ours` has these functions: `make` builds base and ControlNet; `residuals`, and
`run_control` on tensors, compute the copy's outputs after the zero convolutions; `predict` is the
base with residuals; `losses` the training loss; `sample` uses `scheduler`. Read ours.py and
in_torch.py of nanocontrol/conformance next to this file.

Name each error: write a word of ERRORS into NAMES. Then mend the class, so that it does what `Ours`
does; to delete what is wrong is mending. The suite of nanocontrol.conformance decides.

    python -m nanocontrol.course check 12
"""

ERRORS = """no_zero_initialisation unused_zero_convolutions exchanged_residuals no_middle_residual
hint_in_bgr hint_from_minus_one shared_encoder unlocked_base hint_after_second_block
residuals_added_twice inverted_hint last_alpha_one dropped_for_control_alone""".split()

NAMES = {
    "Broken1": "",
    "Broken2": "",
    "Broken3": "",
    "Broken4": "",
    "Broken5": "",
    "Broken6": "",
    "Broken7": "",
    "Broken8": "",
    "Broken9": "",
    "Broken10": "",
    "Broken11": "",
    "Broken12": "",
    "Broken13": "",
}
