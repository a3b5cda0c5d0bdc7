"""Weights of evaluations: those with the lowest held-out loss, and the last few."""

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import Tensor

from nanocontrol.formats.tensors import read_tensors, write_tensors
from nanocontrol.plumbing.files import make_folder, write_atomically


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
    files = sorted(whole.iterdir())  # a ControlNet, and the base if it is trained
    for file in files:  # all of them, before the first one takes its place
        tensors, metadata = read_tensors(file)
        half = {name: in_half(tensor) for name, tensor in tensors.items()}
        write_tensors(file, half, metadata | {"step": step})
    if n:
        keep_last(files, make_folder("--out", run / "weights"), step, n)
    for file in files if best else []:
        os.replace(file, run / f"{file.stem}-best.safetensors")
    shutil.rmtree(whole)


def keep_last(files: list[Path], folder: Path, step: int, n: int) -> None:
    """Copy these files into the folder, then delete all but n of each kind: first those of later
    steps, which a killed run left, then the oldest."""
    names = [f"{file.stem}-{step:07d}.safetensors" for file in files]
    for file, new in zip(files, names):
        write_atomically(folder / new, partial(shutil.copy, file))
    for file, new in zip(files, names):
        kept = [(other.name <= new, other) for other in folder.glob(f"{file.stem}-*.safetensors")]
        for _, old in sorted(kept)[:-n]:
            old.unlink()


def in_half(tensor: Tensor) -> Tensor:
    half = tensor.half()
    return half if half.isfinite().all() else tensor  # what float16 cannot hold
