"""A training step replayed as CUDA graphs: no time is lost to launching its kernels one by one."""

from collections.abc import Callable

from torch import Tensor

from nanocontrol.plumbing.errors import say
from nanocontrol.plumbing.machine import Replayed, is_gpu
from nanocontrol.training.batches import Batch, Draws
from nanocontrol.training.optimizer import Optimizer
from nanocontrol.training.processes import Processes

Pass = Callable[[Batch, Draws], Tensor]


def replayed(
    wanted: bool, one_pass: Pass, optimizer: Optimizer, processes: Processes, own_loss: bool
) -> tuple[Pass, Callable[[Tensor], Tensor]]:
    """The two parts of a step, recorded and replayed if that is wanted and possible: one adds the
    gradients of a pass, and one takes AdamW's step. Their outputs are overwritten by the next call.

    The first call of each part is not recorded, because libraries choose their kernels in it. The
    graph keeps its activations in memory while the networks are evaluated.
    own_loss: whether the loss is a variant's, which may read numbers on the CPU.
    """
    why = obstacle(optimizer, processes, own_loss)
    if wanted and why:
        say(f"--graph: steps are not recorded, because {why}")
    if not wanted or why:
        return one_pass, optimizer.step
    optimizer.keep_places()
    columns = len(Batch._fields)
    recorded = Replayed(lambda *x: one_pass(Batch(*x[:columns]), Draws(*x[columns:])))
    return lambda batch, draws: recorded(*batch, *draws), Replayed(optimizer.step)


def obstacle(optimizer: Optimizer, processes: Processes, own_loss: bool) -> str:
    """The reason why a step cannot be recorded, or ""."""
    reasons = {
        "there is no GPU": not is_gpu(optimizer.device),
        "several processes average their gradients": processes.size > 1,
        "--low-memory keeps AdamW on the CPU": bool(optimizer.between),
        "the loss is a variant's own": own_loss,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")
