"""Checks of every pair before training. Errors stop the training; notes are only printed."""

import hashlib
import heapq
import os
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from nanocontrol.clip import MAX_TOKENS
from nanocontrol.formats.tokenizer import count_tokens
from nanocontrol.plumbing.canny import canny
from nanocontrol.plumbing.compare import correlation
from nanocontrol.plumbing.errors import LONGEST, InputError, say
from nanocontrol.plumbing.pictures import grid
from nanocontrol.training.folders import Entry, check_shapes
from nanocontrol.training.known import AT_ONCE
from nanocontrol.training.loader import in_unit
from nanocontrol.training.pairs import Folder, held_out_numbers
from nanocontrol.training.processes import Processes, is_first
from nanocontrol.training.run import read_json, write_json

GRID = 64  # cells along the short side of an edge map
SAMPLE = (
    2000  # most pairs that are checked before a training; others are checked when they are used
)
COMPARED = 256  # most pairs whose edges are compared
OTHERS = 4  # other pictures that each hint is compared with
FLAT, WHITE = 0.01, 0.5  # standard deviation of a constant hint; white share of a mostly white one
READERS = 8  # threads
ENLARGED = 2  # pictures that are enlarged more than this, along each side, are reported
SHOWN, IN_ROW, WIDEST = 16, 8, 1600  # pairs on a sheet, pictures in a row, width in pixels


class Checked(NamedTuple):
    """The result of reading one pair."""

    wrong: str  # the error, or "" if the pair can be used
    picture: bytes = b""  # a hash of its file
    size: tuple[int, int] = (0, 0)  # width and height of the picture
    hint_size: tuple[int, int] = (0, 0)
    white: float = 0.0  # share of the hint's pixels
    deviation: float = 1.0  # the hint's standard deviation, in the channel where it is largest
    edges: tuple[Tensor, ...] = ()  # edge maps of the picture and of the hint, [h, w] each


class Findings(NamedTuple):
    wrong: list[str]
    notes: list[str]
    places: dict[str, str]  # what is wrong with a pair, by its place (`Entry.where`)


def look_through(
    folder: Folder, steps: int, batch: int, show: bool, most: int | None = None
) -> Findings:
    """Check pairs, and collect errors and notes. steps, batch: the training's; they determine how
    often each pair will be seen. show: a progress bar; most: check no more than a sample of so many
    pairs, held-out ones among them."""
    numbers = sample_of(folder, most)
    entries = [folder.entries[i] for i in numbers]
    seen = check_pairs(folder, numbers, show)
    wrong = folder.wrong + [one.wrong for one in seen if one.wrong]
    places = {entry.where: one.wrong for entry, one in zip(entries, seen) if one.wrong}
    good = [(entry, one) for entry, one in zip(entries, seen) if not one.wrong]
    if not good:
        return Findings(wrong, [], places)
    entries, seen = [entry for entry, _ in good], [one for _, one in good]
    n = len(folder) - len(places)
    notes = [
        f"{plural(n, 'pair')}; {steps:,} steps of {batch} will see each "
        f"{steps * batch / n:,.1f} times",
        *([f"checked: a sample of {len(numbers):,}"] if len(numbers) < len(folder) else []),
        *ignored_notes(folder.ignored),
        *size_notes(entries, seen, folder.view.size, folder.view.crop),
        *prompt_notes(entries),
        *repeat_notes(entries, seen),
        *hint_notes(entries, seen),
    ]
    return Findings(wrong, notes, places)


def sample_of(folder: Folder, most: int | None) -> list[int]:
    """The numbers of at most so many pairs: all held-out ones, others by a hash of their picture's
    name and the seed. A new pair changes only its own place in the sample."""
    n, seed = len(folder), folder.view.seed
    if most is None or n <= most:
        return [*range(n)]
    first: dict[str, int] = {}
    for i, entry in enumerate(folder.entries):
        first.setdefault(str(entry.picture), i)
    held_out = held_out_numbers(n, seed)
    others = heapq.nsmallest(most, first, key=lambda name: shuffled_place(name, seed))
    chosen = dict.fromkeys([*held_out, *map(first.__getitem__, others)])
    return sorted([*chosen][:most])


def shuffled_place(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {name}".encode(errors="surrogateescape")).digest()


def check_pairs(folder: Folder, numbers: list[int], show: bool) -> list[Checked]:
    """Check these pairs. What was learnt is saved now and then, so that little is lost if the
    process ends."""
    names = {Path(str(folder.entries[i].picture)).name: i for i in reversed(numbers)}
    compared = {
        names[name] for name in heapq.nsmallest(COMPARED, names, partial(shuffled_place, seed=0))
    }
    threads, seen = torch.get_num_threads(), []
    torch.set_num_threads(1)  # in each reader
    pool = ThreadPoolExecutor(min(READERS, os.cpu_count() or 1))
    try:
        with tqdm(desc="checking pairs", total=len(numbers), leave=False, disable=not show) as bar:
            for start in range(0, len(numbers), AT_ONCE):
                part = numbers[start : start + AT_ONCE]
                for one in pool.map(lambda i: check_pair(folder, i, i in compared), part):
                    seen.append(one)
                    bar.update()
                folder.known.save()
    finally:  # after Ctrl-C the remaining pairs are not read
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
    return seen


def evenly_spaced(n: int, most: int) -> list[int]:
    """At most `most` of the numbers 0..n-1, evenly spaced."""
    k = min(n, most)
    return [i * n // k for i in range(k)]


def usable(
    folder: Folder,
    steps: int,
    batch: int,
    skip: bool,
    run: Path | None,
    processes: Processes | None,
) -> Folder:
    """The folder's pairs, if all can be used; with `skip` those that can. Notes are printed.

    run: its folder, which lists what was skipped; a resumed run skips the same. Of several
    processes only the first one checks. Raises InputError if a pair is wrong.
    """
    skipped = checked_pairs(folder, steps, batch, skip, run) if is_first() else {}
    if processes:
        skipped = processes.gather(skipped)[0]
    return folder.without(skipped) if skipped else folder


def checked_pairs(
    folder: Folder, steps: int, batch: int, skip: bool, run: Path | None
) -> dict[str, str]:
    """What is wrong with each skipped pair, by its place."""
    file = run and run / "skipped.json"
    resumed = bool(run and (run / "settings.json").exists())
    before: dict = {"lists": [], "pairs": {}}
    if skip and file and resumed:
        before = read_json(file)
        folder = folder.without(before["pairs"])
    n = batch * int(os.environ.get("WORLD_SIZE", 1))
    found = look_through(folder, steps, n, True, None if skip else SAMPLE)
    wrong = [line for line in found.wrong if line not in before["lists"]]
    if wrong and (resumed or not skip or folder.refused or len(found.places) == len(folder)):
        more = f" ({len(wrong) - 1} more errors)" if len(wrong) > 1 else ""
        how = (
            "python -m nanocontrol.tools.check_data lists all errors; --skip-wrong skips such pairs"
        )
        raise InputError(f"{wrong[0]}{more}; {how}", longest=2 * LONGEST)
    if skip and file and not resumed:
        write_json(file, {"lists": folder.wrong, "pairs": found.places})
    skipped = before["pairs"] | found.places
    for note in found.notes + [f"skipped: {plural(len(skipped), 'pair')} ({file})"] * bool(skipped):
        say(note, sys.stderr)
    return skipped


def check_pair(folder: Folder, i: int, compare: bool) -> Checked:
    """Check pair i. Files are opened only if the index does not know them. compare: also compute
    the edge maps and, where hints are made from the pictures, the hint; this takes longer."""
    entry = folder.entries[i]
    try:
        picture, image = folder.look(entry.picture, "white")
        hint, pixels = folder.look(entry.hint, "black") if entry.hint else (None, None)
        sizes = picture.size, hint.size if hint else picture.size
        check_shapes(entry, *sizes)
        if hint is None and not compare:
            return Checked("", picture.content, *sizes)
        of_hint = hint.content if hint else folder.thresholds(entry)
        key = folder.key_of(of_hint, compare and picture.content)
        marks = folder.known.result(key)
        if marks is None:
            if image is None and compare:
                _, image = folder.look(entry.picture, "white", decode=True)
            if pixels is None and entry.hint:
                _, pixels = folder.look(entry.hint, "black", decode=True)
            marks = marks_of(folder, entry, image if compare else None, pixels)
            folder.known.keep(key, marks)
    except InputError as error:
        named = entry.where == str(entry.picture)
        return Checked(str(error) if named else f"{entry.where}: {error}")
    white, deviation, height, *maps = np.frombuffer(marks, np.float32).tolist()
    edges = tuple(torch.tensor(maps).view(2, int(height), -1)) if compare else ()
    return Checked("", picture.content, *sizes, white, deviation, edges)


def marks_of(folder: Folder, entry: Entry, image: Tensor | None, hint: Tensor | None) -> bytes:
    """A hint's white share and deviation, then the height of its edge map, the picture's map and
    its own: float32. image, hint: crops [H, W, 3]; without an image there are no maps."""
    image = None if image is None else in_unit(image)
    if hint is not None:
        hint = in_unit(hint)
    elif image is not None:
        hint = canny(image, *folder.thresholds(entry))
    assert hint is not None
    maps = [] if image is None else [edge_map(image), edge_map(hint)]
    white = (hint.amin(dim=0) > 0.9).float().mean().item()
    marks = white, hint.std(dim=(1, 2)).max().item(), len(maps and maps[0])
    return torch.cat([torch.tensor(marks), *(one.flatten() for one in maps)]).numpy().tobytes()


def edge_map(picture: Tensor) -> Tensor:
    """The edge map [h, w] of a picture [3, H, W]: how much it changes from pixel to pixel, averaged
    over the cells of a grid. It is blurred, because the lines of a scribble or a pose are near the
    picture's edges, not on them."""
    right, down = picture.diff(dim=2)[:, 1:], picture.diff(dim=1)[:, :, 1:]
    change = (right.abs() + down.abs()).amax(dim=0, keepdim=True)
    height, width = (GRID * side // min(change.shape[1:]) for side in change.shape[1:])
    cells = F.adaptive_avg_pool2d(change, (height, width))
    for _ in range(2):
        cells = F.avg_pool2d(cells, 5, stride=1, padding=2, count_include_pad=False)
    return cells[0]


def agreement(a: Tensor, b: Tensor) -> float:
    """Correlation of two maps; 0 if one is constant."""
    return correlation(a.numpy(), b.numpy())


def sheet_of_pairs(folder: Folder) -> Image.Image:
    """A sheet of some pairs as training will see them: hint, picture, hint, picture, ..."""
    n, random = len(folder), folder.view.crop == "random"
    some = [folder[(i, i) if random else i] for i in evenly_spaced(n, SHOWN)]
    cells = [cell for image, hint, _ in some for cell in (hint * 2 - 1, image)]
    cells += [torch.ones_like(cells[0])] * (-len(cells) % IN_ROW if n > IN_ROW // 2 else 0)
    image = grid([cells[i : i + IN_ROW] for i in range(0, len(cells), IN_ROW)])
    image.thumbnail((WIDEST, image.height))
    return image


# ----------------------------------------------------------------------------- lines of a report


def plural(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def a_few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def named(entries: Sequence[Entry], hints: bool = False) -> str:
    """The names of a few entries' pictures or, with `hints`, of their hints if these are files."""
    return a_few([(hints and entry.hint or entry.picture).name for entry in entries])


def ignored_notes(names: list[str]) -> list[str]:
    what = plural(len(names), "other item")
    return [f"{what} in the folder, not used: {a_few(names)}"] if names else []


def size_notes(
    entries: list[Entry], seen: list[Checked], size: tuple[int, int], crop: str
) -> list[str]:
    width, height = size
    sizes = Counter(f"{one.size[0]}x{one.size[1]}" for one in seen)
    common = ", ".join(f"{name} ({n})" for name, n in sizes.most_common(5))
    more = f" and {len(sizes) - 5} more sizes" if len(sizes) > 5 else ""
    scales = [max(width / one.size[0], height / one.size[1]) for one in seen]
    lost = [
        1 - width * height / (scale**2 * one.size[0] * one.size[1])
        for scale, one in zip(scales, seen)
    ]
    lines = [
        f"sizes: {common}{more}; each is cropped and resized to {width}x{height} ({crop}), "
        f"which loses {sum(lost) / len(lost):.0%} of a picture (at most {max(lost):.0%})"
    ]
    small = [entry for scale, entry in zip(scales, entries) if scale > ENLARGED]
    if small:
        lines.append(
            f"{plural(len(small), 'picture')} enlarged by a factor above 2: {named(small)}"
        )
    other = [entry for entry, one in zip(entries, seen) if one.hint_size != one.size]
    if other:
        lines.append(
            f"{plural(len(other), 'hint')} with another size than the picture, resized: "
            f"{named(other, hints=True)}"
        )
    return lines


def prompt_notes(entries: list[Entry]) -> list[str]:
    lengths = [count_tokens(entry.prompt) for entry in entries]
    lines = [f"prompts: {min(lengths)} to {max(lengths)} tokens, median {median(lengths):g}"]
    long = [entry for entry, n in zip(entries, lengths) if n > MAX_TOKENS]
    if long:
        what = plural(len(long), "prompt")
        lines.append(f"{what} longer than {MAX_TOKENS} tokens, truncated: {named(long)}")
    missing = [entry for entry in entries if not entry.prompt]
    if missing:
        lines.append(f"{plural(len(missing), 'caption')} missing: {named(missing)}")
    return lines


def repeat_notes(entries: list[Entry], seen: list[Checked]) -> list[str]:
    groups: dict[bytes, list[Entry]] = {}
    for entry, one in zip(entries, seen):
        groups.setdefault(one.picture, []).append(entry)
    same = [group for group in groups.values() if len(group) > 1]
    if not same:
        return []
    what = plural(sum(map(len, same)) - len(same), "duplicate picture")
    return [f"{what}, as seen by training: {named(same[0])}"]


def hint_notes(entries: list[Entry], seen: list[Checked]) -> list[str]:
    pairs, lines = [*zip(entries, seen)], []
    for what, some in (
        ("constant, so useless for training", [e for e, s in pairs if s.deviation < FLAT]),
        ("mostly white (inverted?)", [e for e, s in pairs if s.white > WHITE]),
    ):
        if some:
            lines.append(f"{plural(len(some), 'hint')} {what}: {named(some, hints=True)}")
    compared = [(entry, one) for entry, one in pairs if one.edges]
    apart = not_met([one.edges for _, one in compared])
    if sum(apart) > len(apart) / 4:  # true of 20 % of correct poses, of most wrong hints
        foreign = [entry for (entry, _), is_apart in zip(compared, apart) if is_apart]
        lines.append(
            f"{len(foreign)} of {plural(len(apart), 'hint')} fit another picture at least as well "
            f"as their own (shuffled, or shifted?): {named(foreign, hints=True)}"
        )
    return lines


def not_met(edges: list[tuple[Tensor, ...]]) -> list[bool]:
    """For each hint, whether its edges match another picture's at least as well as its own's."""
    n, foreign = len(edges), []
    for i, (picture, hint) in enumerate(edges):
        others = [edges[(i + k) % n][0] for k in range(1, min(OTHERS, n - 1) + 1)]
        own = agreement(hint, picture)
        foreign.append(any(agreement(hint, other) >= own for other in others))
    return foreign
