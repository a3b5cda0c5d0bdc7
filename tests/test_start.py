"""A start costs what is new: a file is opened again only if it has changed, and then always."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import train
from conftest import NANO, refusal, write_pairs
from nanocontrol import load_sd
from nanocontrol.nano.scenes import Scenes
from nanocontrol.plumbing.errors import InputError
from nanocontrol.plumbing.pictures import to_pixels
from nanocontrol.training import batches, cache, check, known
from nanocontrol.training.known import Facts, Known, OpenedOnce, stamp_of
from nanocontrol.training.pairs import Folder, View
from nanocontrol.training.watch import Watch

pytestmark = pytest.mark.usefixtures("blind")
FLAGS = ["--base", NANO, "--size", "64", "--device", "cpu", "--dtype", "fp32", "--lr", "1e-3"]


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    """Files that a test has just written count as old."""
    monkeypatch.setattr(known, "SETTLED", -1)


class Reached(Exception):
    """The first step's batch is there."""


@pytest.fixture
def reach(monkeypatch, opened_files):
    """reach(*flags) starts a training, ends it when it has its first batch or, with `batch=False`,
    before that -> the pictures it opened, with how often, and the number of images it encoded."""
    encode, encoded = cache.encode, []

    def counting(sd, images, prompts):
        encoded.extend(prompts)
        return encode(sd, images, prompts)

    monkeypatch.setattr(cache, "encode", counting)
    take_next = Watch.next

    def reach(*flags: str, batch: bool = True) -> tuple[Counter, int]:
        def stop(watch, batches):
            if batch:
                take_next(watch, batches)
            raise Reached

        monkeypatch.setattr(Watch, "next", stop)
        encoded.clear()
        opened_files.start()
        with pytest.raises(Reached):
            train.main([*flags])
        names = opened_files.names()
        monkeypatch.setattr(Watch, "next", take_next)
        return Counter(x for x in names if x.endswith((".png", ".jpg"))), len(encoded)

    return reach


def write_photos(folder: Path, n: int) -> Path:
    folder.mkdir()
    for i in range(n):
        Image.fromarray(to_pixels(Scenes(None).take(i).image)).save(folder / f"{i}.png")
    return folder


def photo_flags(folder: Path, out: str, **more: object) -> list[str]:
    given = {"steps": 20, "batch_size": 2, "out": out} | more
    flags = [
        x for name, value in given.items() for x in (f"--{name.replace('_', '-')}", str(value))
    ]
    return [*FLAGS, "--data", str(folder), "--hints", "canny", *flags]


def change(file: Path) -> None:
    """Other pixels in a file of the same size and modification time."""
    before = file.stat()
    with Image.open(file) as image:
        pixels = image.convert("RGB").transpose(Image.Transpose.ROTATE_180)
    pixels.save(file)
    data = file.read_bytes()
    file.write_bytes(data + b"\0" * (before.st_size - len(data)))
    os.truncate(file, before.st_size)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


# --------------------------------------------------------------------------- what is opened


def test_a_first_start_opens_every_picture_once(tmp_path, reach):
    opened, encoded = reach(*photo_flags(write_photos(tmp_path / "photos", 30), "run"))
    assert opened == {f"{i}.png": 1 for i in range(30)} and encoded == 27  # three are held out


def test_a_second_start_and_a_resume_open_no_picture(tmp_path, reach):
    flags = photo_flags(write_photos(tmp_path / "photos", 30), "run")
    reach(*flags)
    assert reach(*photo_flags(tmp_path / "photos", "again")) == ({}, 0)
    train.main([*photo_flags(tmp_path / "photos", "third", steps=14, save_every=1)])
    assert reach("--resume", "third", "--steps", "15") == ({}, 0)


def test_a_touched_picture_is_opened_and_nothing_is_encoded(tmp_path, reach):
    reach(*photo_flags(write_photos(tmp_path / "photos", 30), "run"))
    os.utime(tmp_path / "photos" / "7.png")
    assert reach(*photo_flags(tmp_path / "photos", "again")) == ({"7.png": 1}, 0)
    assert reach(*photo_flags(tmp_path / "photos", "third")) == ({}, 0)


def test_a_changed_picture_is_opened_and_alone_encoded(tmp_path, reach):
    """Even where size and modification time are those of before."""
    folder = write_photos(tmp_path / "photos", 30)
    reach(*photo_flags(folder, "run"))
    trained = Path("cache/encoded")
    (before,) = trained.iterdir()
    numbers = range(30)
    for i in numbers:  # until it is one that is trained on
        stamp = (folder / f"{i}.png").stat()
        change(folder / f"{i}.png")
        after = (folder / f"{i}.png").stat()
        assert (stamp.st_size, stamp.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
        opened, encoded = reach(*photo_flags(folder, f"again-{i}"))
        assert opened == {f"{i}.png": 1}
        if encoded:
            break
    assert encoded == 1 and len([*trained.iterdir()]) == 2


def test_an_inserted_picture_is_alone_encoded(tmp_path, monkeypatch):
    folder = write_photos(tmp_path / "photos", 9)
    (folder / "4.png").rename(tmp_path / "4.png")
    encoded = []

    def fill() -> cache.Cached:
        pairs = Folder([folder], View((64, 64), hints="canny"), Known(tmp_path / "cache"))
        with torch.no_grad():
            keys, found = cache.encode_all(load_sd(NANO), pairs, tmp_path / "cache", 4)
        keys.update(found)
        return cache.Cached(pairs, tmp_path / "cache", keys)

    fill()
    encode = cache.encode
    monkeypatch.setattr(cache, "encode", lambda *x: (encoded.extend(x[2]), encode(*x))[1])
    (tmp_path / "4.png").rename(folder / "4.png")
    cached = fill()
    assert len(encoded) == 1 and len(cached) == 9
    with torch.no_grad():
        mean, _ = load_sd(NANO).encode(cached.pairs[4][0][None])
    torch.testing.assert_close(cached[4][0], mean[0], rtol=1e-4, atol=1e-4)


def test_other_processes_hear_of_pictures_that_the_index_cannot_keep(tmp_path, monkeypatch):
    """Such as young ones: only the process that checks the pairs has read them."""
    folder = write_photos(tmp_path / "photos", 4)
    monkeypatch.setattr(known, "SETTLED", 100)
    for _ in range(2):
        pairs = Folder([folder], View((64, 64), hints="canny"), Known(tmp_path / "cache"))
        for entry in pairs.entries:
            pairs.look(entry.picture, "white")
        with torch.no_grad():
            _, found = cache.encode_all(load_sd(NANO), pairs, tmp_path / "cache", 4, (0, 2))
        assert {facts.file for facts in found} == {*folder.iterdir()}


def test_a_second_check_says_the_same_and_knows_hints_that_were_exchanged(tmp_path):
    """Neither opens a file again; what the first one saw is in the index."""
    write_pairs(tmp_path, "metadata.jsonl", n=8)
    Image.new("RGB", (64, 64), "white").save(tmp_path / "hint3.png")

    def notes() -> list[str]:
        index = Known(tmp_path / "cache")
        folder = Folder([tmp_path], View((64, 64)), index)
        found = check.look_through(folder, 4, 2).notes
        read.append(len(index.recent))
        return found

    read: list[int] = []
    first, second = notes(), notes()
    assert first == second and any("constant" in line for line in first)
    assert not any("fit another picture" in line for line in first)
    listed = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    hints = [line["conditioning_image"] for line in listed]
    rotated = (line | {"conditioning_image": hint} for line, hint in zip(listed, hints[1:] + hints))
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rotated)))
    assert any("fit another picture" in line for line in notes())
    assert read == [16, 0, 0]


@pytest.mark.slow
def test_twenty_thousand_lines_open_no_picture_at_their_second_start(tmp_path, reach):
    """Nor are their hints opened before the first batch, which needs its own."""
    pairs = write_pairs(tmp_path / "pairs", n=20)
    lines = (pairs / "prompt.json").read_text().splitlines()
    (pairs / "prompt.json").write_text("\n".join(lines * 1000))
    flags = [*FLAGS, "--data", str(pairs), "--steps", "9000", "--batch-size", "4"]
    opened, encoded = reach(*flags, "--out", "first", batch=False)
    assert opened == {f"{x}{i}.png": 1 for i in range(20) for x in ("image", "hint")}
    assert encoded == 20
    assert reach(*flags, "--out", "second", batch=False) == ({}, 0)
    opened, encoded = reach(*flags, "--out", "third")
    assert {*opened} <= {f"hint{i}.png" for i in range(20)} and opened.total() <= 4 and not encoded
    assert reach("--resume", "third", batch=False) == ({}, 0)


@pytest.mark.slow
def test_a_first_start_with_many_pairs_opens_a_sample(tmp_path, reach):
    folder = write_photos(tmp_path / "photos", 8)
    pictures = [*folder.iterdir()]
    for i in range(8, check.SAMPLE + 100):
        os.link(pictures[i % 8], folder / f"{i}.png")
    flags = photo_flags(folder, "run", steps=1)
    opened, _ = reach(*flags, batch=False)
    assert opened.total() == len(opened) == check.SAMPLE
    again, _ = reach(*photo_flags(folder, "again", steps=1), batch=False)
    other, _ = reach(*photo_flags(folder, "other", steps=1, seed=1), batch=False)
    assert not again and 0 < other.total() < 120  # those of another sample


def test_pairs_outside_the_sample_are_checked_when_they_are_used(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(check, "SAMPLE", 4)
    monkeypatch.setattr(batches, "PAUSES", ())
    pairs = write_pairs(tmp_path / "pairs", n=12)
    for i in range(12):  # all of another shape than their pictures
        Image.new("RGB", (64, 32)).save(pairs / f"hint{i}.png")
    good = Folder([pairs], View((64, 64)))
    numbers = check.held_out_first(12, 0)[:4].tolist()
    for i in numbers:
        Image.new("RGB", (64, 64)).save(good.entries[i].hint)
    flags = [*FLAGS, "--data", str(pairs), "--batch-size", "4", "--out", "run"]
    for steps, cached in ("2", False), ("9", True):
        message = refusal(train.main, capsys, *flags, "--steps", steps)
        assert "is 64x32 and its picture 64x64; expected the same aspect ratio" in message
        assert Path("cache/encoded").exists() == cached
        shutil.rmtree("run")


def test_the_models_are_loaded_after_the_check(tmp_path, capsys):
    folder = write_photos(tmp_path / "photos", 4)
    (folder / "2.png").write_bytes(b"no picture")

    def models(settings):
        raise AssertionError("a GPU would wait")

    with pytest.raises(SystemExit):
        train.main(photo_flags(folder, "run"), models=models)
    assert "2.png" in capsys.readouterr().err


# --------------------------------------------------------------------------------- the index


def facts_of(file: Path) -> Facts:
    opened = OpenedOnce(file)
    opened.read_bytes()
    return opened.facts._replace(size=(3, 4))


def test_the_index_forgets_a_file_in_another_state(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(b"one")
    first = Known(tmp_path)
    first.learn(facts_of(file))
    first.save()
    assert Known(tmp_path).about(file) == facts_of(file)
    stamp = stamp_of(file)
    for change in (
        lambda: file.write_bytes(b"three"),
        lambda: os.utime(file),
        lambda: file.chmod(0o600),
        lambda: (shutil.copy2(file, tmp_path / "b"), os.replace(tmp_path / "b", file)),
    ):
        change()
        assert stamp_of(file) != stamp and Known(tmp_path).about(file) is None
        first.learn(facts_of(file))
        first.save()
        assert Known(tmp_path).about(file) is not None
        stamp = stamp_of(file)
    file.unlink()
    assert Known(tmp_path).about(file) is None and stamp_of(file) == ""


def test_a_young_file_is_not_trusted_by_the_next_start(tmp_path, monkeypatch):
    """It could change once more without getting another time."""
    monkeypatch.setattr(known, "SETTLED", 2)
    file = tmp_path / "a.png"
    file.write_bytes(b"one")
    first = Known(tmp_path)
    first.learn(facts_of(file))
    first.save()
    assert first.about(file) and Known(tmp_path).about(file) is None


def test_a_file_that_changes_while_it_is_read_is_not_known(tmp_path, monkeypatch):
    file = tmp_path / "a.png"
    file.write_bytes(b"one")
    read = Path.read_bytes

    def late(path: Path) -> bytes:
        data = read(path)
        path.write_bytes(b"other")
        return data

    monkeypatch.setattr(Path, "read_bytes", late)
    index = Known(tmp_path)
    index.learn(facts_of(file))
    index.save()
    assert Known(tmp_path).about(file) is None


def test_a_damaged_or_unusable_index_is_replaced(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(b"one")
    (tmp_path / known.FOLDER).mkdir()
    (tmp_path / known.FOLDER / "0.safetensors").write_bytes(b"no tensors" * 1000)
    index = Known(tmp_path)
    assert index.about(file) is None
    index.learn(facts_of(file))
    index.save()
    assert index.about(file) == Known(tmp_path).about(file) == facts_of(file)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / known.FOLDER).write_bytes(b"")  # where the folder should be
    index = Known(tmp_path / "x")
    index.learn(facts_of(file))
    index.save()
    assert index.about(file)


def test_an_index_whose_writer_was_killed_is_as_it_was(tmp_path, monkeypatch):
    file = tmp_path / "a.png"
    file.write_bytes(b"one")
    index = Known(tmp_path)
    index.learn(facts_of(file))
    index.save()
    before, facts = {*(tmp_path / known.FOLDER).iterdir()}, facts_of(file)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    other = tmp_path / "b.png"
    other.write_bytes(b"two")
    index.learn(facts_of(other))
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            index.save()
    assert {*(tmp_path / known.FOLDER).iterdir()} == before
    assert Known(tmp_path).about(file) == facts and Known(tmp_path).about(other) is None


# ------------------------------------------------------------------------------- wrong pairs


def losses(run: str) -> list[float]:
    entries = map(json.loads, Path(run, "log.jsonl").read_text().splitlines())
    return [entry["loss"] for entry in entries if "loss" in entry]


def test_wrong_pairs_are_skipped_and_listed_and_a_resume_skips_the_same(tmp_path, capsys):
    pairs = write_pairs(tmp_path / "pairs", n=12)
    good = (pairs / "image5.png").read_bytes()
    (pairs / "image5.png").write_bytes(b"no picture")
    (pairs / "hint9.png").unlink()
    lines = (pairs / "prompt.json").read_text().splitlines()
    (pairs / "prompt.json").write_text("\n".join([*lines[:3], "{}", *lines[4:]]))
    flags = [*FLAGS, "--data", str(pairs), "--hints", str(pairs)][:-2]
    flags += ["--batch-size", "3", "--save-every", "1"]
    message = refusal(train.main, capsys, *flags, "--steps", "1", "--out", "refused")
    assert "2 more errors" in message
    flags += ["--skip-wrong"]
    train.main([*flags, "--steps", "8", "--out", "whole"])
    listed = json.loads(Path("whole/skipped.json").read_text())
    assert len(listed) == 3 and any("image5.png" in why for why in listed.values())
    assert {place.split(", ")[1][:7] for place in listed} == {"line 4:", "line 6", "line 10"}
    # Four steps, so that pairs are seen more than once: both runs use the cache.
    train.main([*flags, "--steps", "4", "--out", "part"])
    (pairs / "image5.png").write_bytes(good)  # repaired, but this run began without it
    train.main(["--resume", "part", "--steps", "8"])
    assert losses("part") == losses("whole") and len(losses("whole")) == 8
    (pairs / "image7.png").write_bytes(b"no picture")  # wrong since then
    assert "image7.png" in refusal(train.main, capsys, "--resume", "part", "--steps", "9")


def test_a_folder_without_a_good_pair_is_refused_although_wrong_ones_are_skipped(tmp_path, capsys):
    (folder := tmp_path / "photos").mkdir()
    (folder / "a.png").write_bytes(b"no picture")
    assert "a.png" in refusal(train.main, capsys, *photo_flags(folder, "run"), "--skip-wrong")
    assert "nowhere" in refusal(train.main, capsys, *photo_flags(tmp_path / "nowhere", "run"))


@pytest.mark.parametrize("readers", [0, 1])
def test_a_picture_that_fails_for_a_moment_is_read_again(tmp_path, monkeypatch, readers):
    pairs = Folder([write_photos(tmp_path / "photos", 4)], View((64, 64), hints="canny"))
    monkeypatch.setattr(batches, "PAUSES", (0.01, 0.3))
    patient = batches.Patient(pairs.__getitem__)
    (tmp_path / "photos/2.png").rename(tmp_path / "2.png")
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            (tmp_path / "2.png").rename(tmp_path / "photos/2.png")

    monkeypatch.setattr(batches.time, "sleep", sleep)
    assert torch.equal(patient[2][0], pairs[2][0]) and slept == [0.01, 0.3]
    (tmp_path / "photos/2.png").unlink()
    with pytest.raises(InputError, match="does not exist"):
        patient[2]


@pytest.mark.slow
def test_a_run_whose_picture_is_gone_is_saved_and_continues_when_it_is_back(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(batches, "PAUSES", ())
    folder = write_photos(tmp_path / "photos", 12)
    flags = photo_flags(folder, "whole", steps=4, batch_size=2, accumulate=2)[:-2]
    flags += ["--no-cache"]
    train.main([*flags, "--out", "whole"])
    done = Watch.done

    def lose(watch, step, loss):
        done(watch, step, loss)
        if step == 1:
            folder.rename(tmp_path / "gone")

    monkeypatch.setattr(Watch, "done", lose)
    message = refusal(train.main, capsys, *flags, "--out", "part")
    assert "png does not exist" in message and "saved after step 2" in message
    monkeypatch.setattr(Watch, "done", done)
    (tmp_path / "gone").rename(folder)
    train.main(["--resume", "part"])
    assert losses("part") == losses("whole") and len(losses("whole")) == 4
    one, other = (load_file(f"{run}/control.safetensors") for run in ("whole", "part"))
    assert all(torch.equal(one[name], other[name]) for name in one)
