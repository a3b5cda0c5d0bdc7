"""The index: what earlier starts learnt about picture files, which are then not opened again.

It is a store next to the cache. Its rows are a file's content and size, found by its path and the
state in which it was read; contents that were read, so that a copied or touched file is not decoded
again; how hints look, and maps of edges, for the check (check.py); and crops of held-out pictures.
Without it, or where it is damaged, everything is learnt again.
"""

import hashlib
import os
import stat
import time
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageChops
from torch import Tensor

from nanocontrol.plumbing.errors import InputError
from nanocontrol.plumbing.pictures import PictureFile, cut_out, picture_size, read_image
from nanocontrol.training.forms import File, Member
from nanocontrol.training.store import Store, key_of

FOLDER = "known"
SETTLED = 2  # seconds: a younger file could change once more without getting another time
NOTHING = torch.empty(0)

Size = tuple[int, int]  # width and height
Place = tuple[float, float]  # of a crop, right and down, as fractions of the free room
MIDDLE = 0.5, 0.5


class Facts(NamedTuple):
    """About a picture file."""

    file: File
    state: tuple[object, ...]  # when it was read; () if a later change might not show in it
    content: bytes  # SHA-256
    size: tuple[int, int] = (0, 0)  # width and height of the upright picture


def state_of_file(file: File) -> tuple[object, ...]:
    """The path of a file, its size, times and inode; () if it is missing or not regular."""
    path = file.archive if isinstance(file, Member) else file
    inner = (file.name, file.start) if isinstance(file, Member) else ()
    with suppress(OSError, ValueError):
        found = os.stat(path)
        if stat.S_ISREG(found.st_mode):
            stamp = f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"
            return os.fsencode(os.path.abspath(path)), *inner, stamp
    return ()


class OpenedOnce:
    """A picture file whose bytes are read once, with facts about them."""

    def __init__(self, file: File):
        self.file, self.data = file, b""

    def __str__(self) -> str:
        return str(self.file)

    def read_bytes(self) -> bytes:
        if not self.data:
            before = state_of_file(self.file)
            last = max(map(int, str(before[-1]).split()[1:3])) if before else 0
            self.data = self.file.read_bytes()
            digest = hashlib.sha256(self.data).digest()
            sure = time.time() - last / 1e9 > SETTLED and before == state_of_file(self.file)
            self.facts = Facts(self.file, before if sure else (), digest)
        return self.data


class Seen(NamedTuple):
    """A picture as training sees it: its crop from the middle."""

    facts: Facts
    how: tuple[object, ...]  # determines the crop: content, the colour behind it, size
    pixels: Tensor  # bytes as from `pixels_of`; NOTHING if they were not needed


class Known:
    """The index in a folder; without a folder, in memory. Threads may share it, if one alone saves.
    Reader processes get an empty one. room: bytes of crops that may stay in memory."""

    def __init__(self, folder: Path | None = None, room: int = 0):
        self.store, self.room = Store(folder / FOLDER if folder else None), room
        self.turns = [Lock() for _ in range(64)]  # one thread at a time learns about a file
        self.recent: dict[File, Facts] = {}  # used by this process
        self.crops: dict[tuple, Tensor] = {}  # decoded by this process, for the cache

    def __reduce__(self) -> tuple:
        return Known, ()

    def about(self, file: File) -> Facts | None:
        """Facts about a file in the state in which this process first used it; None if it has to be
        read."""
        if file not in self.recent and (state := state_of_file(file)):
            if row := self.store.get("files", *state):
                content, (width, height) = row[0].numpy().tobytes(), row[1].tolist()
                self.recent[file] = Facts(file, state, content, (width, height))
        return self.recent.get(file)

    def learn(self, facts: Facts) -> None:
        self.recent[facts.file] = facts
        if facts.state:
            content = torch.frombuffer(bytearray(facts.content), dtype=torch.uint8)
            row = key_of("files", *facts.state), content, torch.tensor(facts.size)
            self.store.add("files", *row)
            self.store.add("contents", key_of("contents", facts.content))

    def look(self, file: File, behind: str, size: Size, again: bool = False) -> Seen:
        """A picture's crop. The file is opened if its state is new, and decoded if its content is,
        or with `again`, unless this process or an earlier start kept the crop. behind: the colour
        that replaces transparent pixels; "" if facts will do."""
        with self.turns[hash(file) % len(self.turns)]:
            facts, opened = self.about(file), OpenedOnce(file)
            if facts is None:
                whole = picture_size(opened)  # which reads the file
                facts = opened.facts._replace(size=whole)
            how = facts.content, behind, size
            pixels = self.crops.get(how, NOTHING)
            if again and not len(pixels):
                (pixels,) = self.store.get("crops", *how) or (NOTHING,)
            unseen = opened.data and behind and self.store.get("contents", facts.content) is None
            if not len(pixels) and (again or unseen):
                pixels, whole = cropped(opened, behind, size, MIDDLE)
                facts = opened.facts._replace(size=whole)  # the file may have changed since
                how = facts.content, behind, size
                if pixels.nbytes <= self.room:
                    self.room -= pixels.nbytes
                    self.crops[how] = pixels
            if opened.data:
                self.learn(facts)
            return Seen(facts, how, pixels)

    def save(self) -> None:
        """Write what was learnt. A disk that cannot take it only makes later starts slower."""
        with suppress(InputError):
            self.store.write()

    def settle(self) -> None:
        """Write what was learnt, and forget what was kept for the cache only."""
        self.save()
        self.crops.clear()


def cropped(file: PictureFile, behind: str, size: Size, place: Place) -> tuple[Tensor, Size]:
    """The crop of a picture at a place, as from `pixels_of`, and the whole picture's size."""
    picture = read_image(file, behind)
    return pixels_of(cut_out(picture, size, place)), picture.size


def pixels_of(image: Image.Image) -> Tensor:
    """An RGB picture's bytes: [H, W, 3] or, if the channels are equal, [H, W, 1]. Most hints are
    grey, so reader processes pass on a third of the bytes."""
    few = image.resize((8, 8), Image.Resampling.NEAREST)  # enough for most coloured pictures
    for part in (few, image):
        red, *others = part.split()
        if any(ImageChops.difference(red, other).getbbox() for other in others):
            return torch.from_numpy(np.array(image))
    return torch.from_numpy(np.array(red))[..., None]
