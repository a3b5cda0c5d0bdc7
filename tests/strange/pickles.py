"""Pickles: what torch.save writes, and what somebody else may."""

from pathlib import Path

import torch

from strange.harness import WEIGHTS, loads, refused


@loads
def a_zip_as_torch_saves_it(folder: Path) -> Path:
    torch.save(WEIGHTS, folder / "a.pth")
    return folder / "a.pth"


@loads
def a_file_from_before_torch_1_6(folder: Path) -> Path:
    torch.save(WEIGHTS, folder / "a.ckpt", _use_new_zipfile_serialization=False)
    return folder / "a.ckpt"


@refused(says="is cut off")
def an_empty_file(folder: Path) -> Path:
    (folder / "a.pth").write_bytes(b"")
    return folder / "a.pth"
