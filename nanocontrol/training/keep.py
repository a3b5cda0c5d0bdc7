"""Weights of evaluations: those with the lowest held-out loss, and the last few."""

import shutil
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from nanocontrol.formats.tensors import read_tensors, write_tensors
from nanocontrol.plumbing.files import make_folder


def keep_weights(save: Callable[[Path], None], run: Path, step: int, best: bool, n: int) -> None:
    """Write this step's weights in half precision, as `control-best.safetensors` if they are the
    best and into the run's folder `weights`, where the last n evaluations' stay. Each file is
    complete or absent, and has its step in its metadata. save: writes the weights into a folder.
    """
    if not best and not n:
        return
    whole = run / "keeping"  # a killed process may have left it
    shutil.rmtree(whole, ignore_errors=True)
    save(make_folder("--out", whole))
    for file in sorted(whole.iterdir()):
        tensors, metadata = read_tensors(file)
        tensors = {name: in_half(tensor) for name, tensor in tensors.items()}
        if best:
            write_tensors(run / f"{file.stem}-best.safetensors", tensors, metadata | {"step": step})
        if n:
            folder = make_folder("--out", run / "weights")
            kept = folder / f"{file.stem}-{step:07d}.safetensors"
            write_tensors(kept, tensors, metadata | {"step": step})
            for old in sorted(folder.glob(f"{file.stem}-*.safetensors"))[:-n]:
                old.unlink()
    shutil.rmtree(whole)


def in_half(tensor: Tensor) -> Tensor:
    half = tensor.half()
    return half if half.isfinite().all() else tensor  # what float16 cannot hold
