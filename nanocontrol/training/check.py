"""Checks of every pair before training. Errors stop the training; notes are only printed."""

import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from operator import lt
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from nanocontrol.clip import MAX_TOKENS
from nanocontrol.formats.tokenizer import count_tokens
from nanocontrol.plumbing.canny import canny
from nanocontrol.plumbing.compare import correlation
from nanocontrol.plumbing.errors import LONGEST, InputError, say
from nanocontrol.training.batches import in_unit
from nanocontrol.training.folders import Entry, a_few, check_shapes, plural
from nanocontrol.training.pairs import Folder, View, held_out_first, held_out_of
from nanocontrol.training.processes import Processes, is_first
from nanocontrol.training.run import read_json, write_json
from nanocontrol.training.store import key_of

GRID = 64  # cells along the short side of an edge map
AT_ONCE = 1000  # pairs, after which the index is saved
SAMPLE = 2000  # most pairs that are checked before a training
COMPARED = 256  # most pairs whose edges are compared
OTHERS = 4  # other pictures that each hint is compared with
FLAT, WHITE = 0.01, 0.5  # standard deviation of a constant hint; white share of a mostly white one
READERS = 8  # threads
FEW = 3  # errors that are printed
ENLARGED = 2  # pictures that are enlarged more than this, along each side, are reported


class Checked(NamedTuple):
    """The result of checking one pair."""

    entry: Entry
    wrong: str  # the error, or "" if the pair can be used
    picture: bytes = b""  # a hash of its file
    size: tuple[int, int] = (0, 0)  # width and height of the picture
    hint_size: tuple[int, int] = (0, 0)
    white: float = 0.0  # share of the hint's pixels
    deviation: float = 1.0  # the hint's standard deviation, in the channel where it is largest
    edges: tuple[Tensor, ...] = ()  # edge maps of the picture and of the hint, [h, w] each


class Findings(NamedTuple):
    wrong: dict[str, str]  # messages, by the pair's place (`Entry.where`) if there is one
    notes: list[str]


def look_through(folder: Folder, steps: int, batch: int, most: int | None = None) -> Findings:
    """Check pairs, and collect errors and notes. steps, batch: the training's; they determine how
    often each pair will be seen. most: above this number a sample, drawn by the seed, is checked;
    it includes the held-out pairs."""
    numbers = held_out_first(len(folder), folder.view.seed)[:most].sort().values.tolist()
    seen = check_pairs(folder, numbers)
    wrong = dict(zip(folder.wrong, folder.wrong))
    wrong |= {one.entry.where: one.wrong for one in seen if one.wrong}
    good = [one for one in seen if not one.wrong]
    if not good:
        return Findings(wrong, [])
    notes = [
        counts_note(len(folder) - len(seen) + len(good), steps * batch),
        example_note(good[0].entry),
        *([f"{len(seen):,} of them were checked"] if len(seen) < len(folder) else []),
        *ignored_notes(folder.ignored),
        *size_and_prompt_notes(good, folder.view),
        *odd_notes(good, folder.view.size),
        *repeat_notes(good),
        *foreign_notes([one for one in good if one.edges]),
    ]
    return Findings(wrong, notes)


def check_pairs(folder: Folder, numbers: list[int]) -> list[Checked]:
    """Check these pairs. If the process ends early, what was learnt before is kept."""
    compared = {numbers[i] for i in evenly_spaced(len(numbers), COMPARED)}
    seen: list[Checked] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # in each reader
    pool = ThreadPoolExecutor(min(READERS, os.cpu_count() or 1))
    bar = tqdm(numbers, "checking pairs", leave=False)
    try:
        for start in range(0, len(numbers), AT_ONCE):
            part = numbers[start : start + AT_ONCE]
            seen += pool.map(lambda i: check_pair(folder, i, i in compared, bar), part)
            folder.known.save()
    finally:  # after Ctrl-C the remaining pairs are not read
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
        bar.close()
    return seen


def evenly_spaced(n: int, most: int) -> list[int]:
    """At most `most` of the numbers 0..n-1, evenly spaced."""
    k = min(n, most)
    return [i * n // k for i in range(k)]


def usable(
    folder: Folder, steps: int, batch: int, skip: bool, run: Path | None, team: Processes | None
) -> Folder:
    """The folder's pairs, if all can be used; with `skip` those that can. Notes are printed.

    run: its folder, where skipped.json has what was skipped; a resumed run skips the same. Of
    a team of processes only the first one checks. Raises InputError if a pair is wrong.
    """
    skipped: dict[str, str] = {}
    resumed = bool(run and (run / "settings.json").exists())
    if skip and run and resumed:
        skipped = read_json(run / "skipped.json")
        folder = folder.without(skipped)
    if is_first():
        batch *= int(os.environ.get("WORLD_SIZE", 1))
        found = look_through(folder, steps, batch, None if skip else SAMPLE)
        new = {place: why for place, why in found.wrong.items() if place not in skipped}
        if new and (resumed or not skip or folder.refused or not found.notes):
            (first, *others) = new.values()
            more = f" ({len(others)} more errors)" if others else ""
            how = "python -m nanocontrol.tools.check_data lists all errors"
            how += "" if folder.refused else ", --skip-wrong trains without such pairs"
            raise InputError(f"{first}{more}; {how}", longest=2 * LONGEST)
        if skip and run and not resumed:
            write_json(run / "skipped.json", new)
        for note in [*found.notes, *(f"skipped: {why}" for why in [*new.values()][:FEW])]:
            say(note, sys.stderr)
        if new and run:
            say(f"{plural(len(new), 'error')}: {run / 'skipped.json'}", sys.stderr)
        skipped = new
    if team:
        skipped = team.gather(skipped)[0]
    return folder.without(skipped) if skipped else folder


def check_pair(folder: Folder, i: int, compare: bool, bar: tqdm) -> Checked:
    """Check pair i. Files are opened only if the index does not know them. compare: also look at
    the edges of picture and hint, or where hints are made from the pictures at the hint; this takes
    longer."""
    bar.update()
    entry = folder.entries[i]
    try:
        facts, pixels = folder.look(entry.picture, "white")
        of_hint, hint = folder.look(entry.hint, "black") if entry.hint else (facts, None)
        check_shapes(entry, facts.size, of_hint.size)
    except InputError as error:
        named = entry.where == str(entry.picture)
        return Checked(entry, str(error) if named else f"{entry.where}: {error}")
    image, hint = (None if x is None else in_unit(x) for x in (pixels, hint))
    if image is not None and compare and not entry.hint:
        hint = canny(image, *folder.thresholds(entry))
    of_image = facts.content, "white", folder.view.size
    how = of_hint.content, folder.edges(i) or "black", folder.view.size
    look = in_index(folder, "looks", how, white_and_deviation, hint)
    found = Checked(entry, "", facts.content, facts.size, of_hint.size, *look.tolist())
    if compare and entry.hint:
        maps = (("maps", of_image, edge_map, image), ("maps", how, edge_map, hint))
        edges = [in_index(folder, *one) for one in maps]
        found = found._replace(edges=tuple(edges) if all(map(len, edges)) else ())
    return found


def in_index(
    folder: Folder, kind: str, how: tuple, judge: Callable, picture: Tensor | None
) -> Tensor:
    """The judgement of a picture, from the index, or computed and kept there; empty if the
    picture was not read now. how: what determines the picture."""
    store = folder.known.store
    if row := store.get(kind, *how):
        return row[0]
    if picture is None:
        return torch.empty(0)
    found = judge(picture)
    store.add(kind, key_of(kind, *how), found)
    return found


def white_and_deviation(hint: Tensor) -> Tensor:
    """A hint's white share and deviation."""
    white = (hint.amin(dim=0) > 0.9).float().mean()
    return torch.stack([white, hint.std(dim=(1, 2)).max()])


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


# ----------------------------------------------------------------------------- lines of a report


def counts_note(n: int, seen: int) -> str:
    """seen: the pairs in all steps."""
    kept = held_out_of(n) if n > 1 else 0
    times = f"{seen / (n - kept):,.1f}"
    return f"{plural(n, 'pair')}, {kept} held out; the others will be seen {times} times each"


def example_note(entry: Entry) -> str:
    hint = entry.hint.name if entry.hint else "edges made from it"
    return f"the first pair: {entry.picture.name}; {hint}; {entry.prompt[:80]!r}"


def ignored_notes(names: list[str]) -> list[str]:
    what = plural(len(names), "other item")
    return [f"{what} in the folder, not used: {a_few(names)}"] if names else []


def size_and_prompt_notes(seen: list[Checked], view: View) -> list[str]:
    width, height = view.size
    sizes = Counter(f"{one.size[0]}x{one.size[1]}" for one in seen)
    common = ", ".join(f"{name} ({n})" for name, n in sizes.most_common(5))
    more = f" and {len(sizes) - 5} more sizes" if len(sizes) > 5 else ""
    scales = [max(width / one.size[0], height / one.size[1]) for one in seen]
    lost = [1 - width * height / (x**2 * math.prod(one.size)) for x, one in zip(scales, seen)]
    lengths = [count_tokens(one.entry.prompt) for one in seen]
    return [
        f"sizes: {common}{more}; each is cropped and resized to {width}x{height} ({view.crop}), "
        f"which loses {sum(lost) / len(lost):.0%} of a picture (at most {max(lost):.0%})",
        f"prompts: {min(lengths)} to {max(lengths)} tokens, median {median(lengths):g}",
    ]


def odd_notes(seen: list[Checked], size: tuple[int, int]) -> Iterator[str]:
    """A line for each oddity that pairs have, with their number and the names of a few."""
    least = [side / ENLARGED for side in size]
    oddities: dict[tuple[str, str], Callable[[Checked], bool]] = {
        ("picture", "enlarged by a factor above 2"): lambda x: any(map(lt, x.size, least)),
        ("hint", "with another size than the picture, resized"): lambda x: x.hint_size != x.size,
        ("prompt", f"longer than {MAX_TOKENS} tokens, truncated"): (
            lambda x: count_tokens(x.entry.prompt) > MAX_TOKENS
        ),
        ("caption", "missing, so these prompts are empty"): lambda x: not x.entry.prompt,
        ("hint", "constant, so useless for training"): lambda x: x.deviation < FLAT,
        ("hint", "mostly white (inverted?)"): lambda x: x.white > WHITE,
    }
    for (what, fact), is_so in oddities.items():
        if odd := [one for one in seen if is_so(one)]:
            yield f"{plural(len(odd), what)} {fact}: {named(odd, what == 'hint')}"


def named(seen: list[Checked], hints: bool) -> str:
    """The names of a few pairs' pictures or, with `hints`, of their hints if these are files."""
    return a_few([(hints and one.entry.hint or one.entry.picture).name for one in seen])


def repeat_notes(seen: list[Checked]) -> list[str]:
    groups: dict[bytes, list[Checked]] = {}
    for one in seen:
        groups.setdefault(one.picture, []).append(one)
    same = [group for group in groups.values() if len(group) > 1]
    what = plural(sum(map(len, same)) - len(same), "duplicate picture")
    return [f"{what}, as seen by training: {named(same[0], False)}"] if same else []


def foreign_notes(compared: list[Checked]) -> list[str]:
    apart = not_met([one.edges for one in compared])
    foreign = [one for one, is_apart in zip(compared, apart) if is_apart]
    if len(foreign) <= len(apart) / 4:  # true of 20 % of correct poses, of few wrong hints
        return []
    what = f"{len(foreign)} of {plural(len(apart), 'hint')}"
    fits = "fit another picture at least as well as their own (shuffled, or shifted?)"
    return [f"{what} {fits}: {named(foreign, True)}"]


def not_met(edges: list[tuple[Tensor, ...]]) -> list[bool]:
    """For each hint, whether its edges match another picture's at least as well as its own's."""
    n, foreign = len(edges), []
    for i, (picture, hint) in enumerate(edges):
        others = [edges[(i + k) % n][0] for k in range(1, min(OTHERS, n - 1) + 1)]
        own = agreement(hint, picture)
        foreign.append(any(agreement(hint, other) >= own for other in others))
    return foreign
