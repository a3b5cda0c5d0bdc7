"""Checks of every pair before training. Errors stop the training; notes are only printed."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
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
from nanocontrol.training.folders import Entry, View, a_few, check_shapes, plural
from nanocontrol.training.known import NOTHING, Facts, Known, Seen, Size
from nanocontrol.training.pairs import Folder, held_out_first, held_out_of
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
    """A pair that can be used."""

    entry: Entry
    picture: Facts
    hint: Facts  # those of the picture, if it is made from that
    white: float  # share of the hint's pixels
    deviation: float  # the hint's standard deviation, in the channel where it is largest
    edges: list[Tensor]  # maps of the picture's and of the hint's, [h, w] each, if compared


class Findings(NamedTuple):
    wrong: dict[str, str]  # messages, by the pair's place (`Entry.where`) if there is one
    notes: list[str]


def look_through(folder: Folder, steps: int, batch: int, most: int | None = None) -> Findings:
    """Check pairs, and collect errors and notes. steps, batch: the training's; they determine how
    often each pair will be seen. most: above this number a sample, drawn by the seed, is checked;
    it includes the held-out pairs."""
    numbers = held_out_first(len(folder), folder.view.seed)[:most].sort().values.tolist()
    found = check_pairs(folder, numbers)
    good = [one for one in found if isinstance(one, Checked)]
    errors = {folder.entries[i].where: x for i, x in zip(numbers, found) if isinstance(x, str)}
    notes = notes_on(folder, good, len(found), steps * batch) if good else ()
    return Findings(dict(zip(folder.wrong, folder.wrong)) | errors, [*notes])


def check_pairs(folder: Folder, numbers: list[int]) -> list[Checked | str]:
    """Check these pairs -> each of them, or its error. If the process ends early, what was learnt
    before is kept."""
    compared = {numbers[i] for i in evenly_spaced(len(numbers), COMPARED)}
    seen: list[Checked | str] = []
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


def check_pair(folder: Folder, i: int, compare: bool, bar: tqdm) -> Checked | str:
    """Check pair i. Files are opened only if the index does not know them. compare: also look at
    the edges of picture and hint, or where hints are made from the pictures at the hint; this takes
    longer."""
    bar.update()
    entry, known, size = folder.entries[i], folder.known, folder.view.size
    try:
        picture = hint = known.look(entry.picture, "white", size)
        if entry.hint:
            hint = known.look(entry.hint, "black", size)
        check_shapes(entry, picture.facts.size, hint.facts.size)
    except InputError as error:
        return str(error) if entry.where == str(entry.picture) else f"{entry.where}: {error}"
    if not entry.hint:
        pixels = picture.pixels if compare else NOTHING
        if len(pixels):
            pixels = canny(in_unit(pixels), *folder.thresholds(entry))
        hint = Seen(picture.facts, (picture.facts.content, folder.edges(i), size), pixels)
    maps = [judgement(known, "maps", x) for x in (picture, hint)] if compare and entry.hint else []
    white, deviation = judgement(known, "looks", hint).tolist() or (0.0, 1.0)
    edges = maps if all(map(len, maps)) else []
    return Checked(entry, picture.facts, hint.facts, white, deviation, edges)


def judgement(known: Known, kind: str, picture: Seen) -> Tensor:
    """A judgement of a picture, from the index, or made and kept there; NOTHING if the picture was
    not decoded."""
    if row := known.store.get(kind, *picture.how):
        return row[0]
    if not len(picture.pixels):
        return NOTHING
    found = JUDGES[kind](in_unit(picture.pixels))
    known.store.add(kind, key_of(kind, *picture.how), found)
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


JUDGES: dict[str, Callable[[Tensor], Tensor]] = {"looks": white_and_deviation, "maps": edge_map}

# ----------------------------------------------------------------------------- lines of a report


def notes_on(folder: Folder, good: list[Checked], checked: int, seen: int) -> Iterator[str]:
    """The lines of a report. checked: the number of pairs that were checked, of which some are
    good; seen: the pairs in all steps."""
    n, first = len(folder) - checked + len(good), good[0].entry
    kept = held_out_of(n) if n > 1 else 0
    times = f"{seen / (n - kept):,.1f}"
    yield f"{plural(n, 'pair')}, {kept} held out; the others will be seen {times} times each"
    hint = first.hint.name if first.hint else "edges made from it"
    yield f"the first pair: {first.picture.name}; {hint}; {first.prompt[:80]!r}"
    if checked < len(folder):
        yield f"{checked:,} of them were checked"
    yield from folder.notes
    yield size_note(Counter(one.picture.size for one in good), folder.view)
    lengths = [count_tokens(one.entry.prompt) for one in good]
    yield f"prompts: {min(lengths)} to {max(lengths)} tokens, median {median(lengths):g}"
    yield from odd_notes(good, folder.view.size)
    groups: dict[bytes, list[Checked]] = {}
    for one in good:
        groups.setdefault(one.picture.content, []).append(one)
    if same := [group for group in groups.values() if len(group) > 1]:
        what = plural(sum(map(len, same)) - len(same), "duplicate picture")
        yield f"{what}, as seen by training: {named(same[0], False)}"
    yield from foreign_notes([one for one in good if one.edges])


def size_note(sizes: Counter[Size], view: View) -> str:
    width, height = view.size
    common = ", ".join(f"{x}x{y} ({n})" for (x, y), n in sizes.most_common(5))
    more = f" and {len(sizes) - 5} more sizes" if len(sizes) > 5 else ""
    lost = {(x, y): 1 - width * height * min(x / width, y / height) ** 2 / x / y for x, y in sizes}
    mean = sum(lost[size] * n for size, n in sizes.items()) / sizes.total()
    cut = f"each is cropped and resized to {width}x{height} ({view.crop})"
    loss = f"loses {mean:.0%} of a picture (at most {max(lost.values()):.0%})"
    return f"sizes: {common}{more}; {cut}, which {loss}"


def odd_notes(seen: list[Checked], size: Size) -> Iterator[str]:
    """A line for each oddity that pairs have, with their number and the names of a few."""
    least = [side / ENLARGED for side in size]
    oddities: dict[str, Callable[[Checked], bool]] = {
        "picture enlarged by a factor above 2": lambda x: any(map(lt, x.picture.size, least)),
        "hint with another size than the picture, resized": lambda x: x.hint.size != x.picture.size,
        f"prompt longer than {MAX_TOKENS} tokens, truncated": (
            lambda x: count_tokens(x.entry.prompt) > MAX_TOKENS
        ),
        "caption missing, so these prompts are empty": lambda x: not x.entry.prompt,
        "hint constant, so useless for training": lambda x: x.deviation < FLAT,
        "hint mostly white (inverted?)": lambda x: x.white > WHITE,
    }
    for oddity, is_so in oddities.items():
        if odd := [one for one in seen if is_so(one)]:
            what, _, fact = oddity.partition(" ")
            yield f"{plural(len(odd), what)} {fact}: {named(odd, what == 'hint')}"


def named(seen: list[Checked], hints: bool) -> str:
    """The names of a few pairs' pictures or, with `hints`, of their hints if these are files."""
    return a_few([(hints and one.entry.hint or one.entry.picture).name for one in seen])


def foreign_notes(compared: list[Checked]) -> list[str]:
    apart = not_met([one.edges for one in compared])
    foreign = [one for one, is_apart in zip(compared, apart) if is_apart]
    if len(foreign) <= len(apart) / 4:  # true of 20 % of correct poses, of few wrong hints
        return []
    what = f"{len(foreign)} of {plural(len(apart), 'hint')}"
    fits = "fit another picture at least as well as their own (shuffled, or shifted?)"
    return [f"{what} {fits}: {named(foreign, True)}"]


def not_met(edges: Sequence[Sequence[Tensor]]) -> list[bool]:
    """For each hint, whether its edges match another picture's at least as well as its own's."""
    n, foreign = len(edges), []
    for i, (picture, hint) in enumerate(edges):
        others = [edges[(i + k) % n][0] for k in range(1, min(OTHERS, n - 1) + 1)]
        own = agreement(hint, picture)
        foreign.append(any(agreement(hint, other) >= own for other in others))
    return foreign
