"""Arms that several experiments have: they are trained once."""

from nanocontrol.experiments.arm import PLAIN, PLAIN_SETTINGS, Arm
from nanocontrol.experiments.beginnings import gaussian_convolutions

RATES, BATCHES = (3e-4, 1e-3, 3e-3), (4, 8, 16)
VARIANCE = Arm("variance", {"hint_init": "variance"})
GAUSSIAN = Arm("gaussian", start=gaussian_convolutions())


def rate_and_batch(lr: float, batch: int) -> Arm:
    if lr == PLAIN_SETTINGS["lr"] and batch == PLAIN_SETTINGS["batch_size"]:
        return PLAIN
    return Arm(f"lr {lr:g} batch {batch}", {"lr": lr, "batch_size": batch})


BY_RATE_AND_BATCH = {(lr, batch): rate_and_batch(lr, batch) for lr in RATES for batch in BATCHES}
