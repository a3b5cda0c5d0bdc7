"""The forms of data: each gives the pairs of the prompt.json that it was made from."""

import csv
import io
import json
import shutil
import sys
import tarfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
import torch
from PIL import Image

import train
from conftest import NANO, refusal, write_pairs
from nanocontrol.training.pairs import Folder, View

N = 6
VIEW = View((64, 64))


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    folder = write_pairs(tmp_path_factory.mktemp("original"), n=N, size=(64, 64))
    for entry in entries_of(folder):
        for name in (entry["source"], entry["target"]):
            assert (folder / name).suffix == ".png"
    return folder


def entries_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "prompt.json").read_text().splitlines()]


def copied(original: Path, folder: Path) -> Path:
    shutil.copytree(original, folder)
    (folder / "prompt.json").unlink()
    return folder


def renamed(original: Path, picture: str, hint: str, text: str) -> list[dict]:
    entries = entries_of(original)
    return [{picture: e["target"], hint: e["source"], text: e["prompt"]} for e in entries]


# ----------------------------------------------------------------- writers: original -> folder


def as_jsonl(original: Path, folder: Path) -> None:
    rows = renamed(original, "image", "conditioning_image", "caption")
    (copied(original, folder) / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))


def as_metadata(original: Path, folder: Path) -> None:
    rows = renamed(original, "file_name", "conditioning_image", "text")
    (copied(original, folder) / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


def as_csv(original: Path, folder: Path) -> None:
    rows = renamed(original, "file_name", "conditioning_image", "text")
    with open(copied(original, folder) / "metadata.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def as_array(original: Path, folder: Path) -> None:
    rows = renamed(original, "target", "source", "prompt")
    (copied(original, folder) / "prompt.json").write_text(json.dumps(rows, indent=2))


def as_array_on_one_line(original: Path, folder: Path) -> None:
    rows = renamed(original, "target", "source", "prompt")
    (copied(original, folder) / "prompt.json").write_text(json.dumps(rows))


def as_split(original: Path, folder: Path) -> None:
    as_metadata(original, folder / "train")


def as_windows(original: Path, folder: Path) -> None:
    folder.mkdir()
    shutil.copytree(original, folder / "files")
    rows = renamed(original, "image", "conditioning_image", "text")
    rows = [{k: v if k == "text" else f"files\\{v}" for k, v in row.items()} for row in rows]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))


def as_two_folders(original: Path, folder: Path, inner: str = "", ending: str = ".txt") -> None:
    """kohya: pictures with caption files, and hints of the same names elsewhere."""
    pictures, hints = folder / "pictures" / inner, folder / "hints" / inner
    pictures.mkdir(parents=True), hints.mkdir(parents=True)
    for i, entry in enumerate(entries_of(original)):
        shutil.copy(original / entry["target"], pictures / f"{i:03d}.png")
        (pictures / f"{i:03d}{ending}").write_text(entry["prompt"])
        Image.open(original / entry["source"]).save(hints / f"{i:03d}.webp", lossless=True)


def as_inner_folders(original: Path, folder: Path) -> None:
    as_two_folders(original, folder, "10_shapes", ".caption")


def as_tar(original: Path, folder: Path) -> None:
    """NeMo's: 00000.jpg (here lossless, whatever its name), 00000.png (the hint), 00000.txt."""
    folder.mkdir()
    for k in range(2):
        with tarfile.open(folder / f"{k:05d}.tar", "w") as tar:
            for i, entry in [*enumerate(entries_of(original))][3 * k : 3 * k + 3]:
                add(tar, f"{i:05d}.jpg", (original / entry["target"]).read_bytes())
                add(tar, f"{i:05d}.png", (original / entry["source"]).read_bytes())
                if i % 2:
                    add(tar, f"{i:05d}.txt", entry["prompt"].encode())
                else:
                    text = json.dumps({"caption": entry["prompt"], "url": "somewhere"})
                    add(tar, f"{i:05d}.json", text.encode())


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def as_parquet(original: Path, folder: Path, paths: bool = False) -> None:
    """Hugging Face's: data/train-*.parquet, with pictures as bytes or as paths."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (folder / "data").mkdir(parents=True)

    def picture(name: str) -> dict:
        if paths:
            shutil.copy(original / name, folder / "data" / name)
            return {"bytes": None, "path": name}
        return {"bytes": (original / name).read_bytes(), "path": None}

    rows = renamed(original, "image", "conditioning_image", "text")
    rows = [{k: v if k == "text" else picture(v) for k, v in row.items()} for row in rows]
    for k in range(2):
        table = pyarrow.Table.from_pylist(rows[3 * k : 3 * k + 3])
        name = f"train-{k:05d}-of-00002.parquet"
        parquet.write_table(table, folder / "data" / name, row_group_size=2)
    parquet.write_table(table, folder / "data" / "test-00000-of-00001.parquet")


def as_parquet_with_paths(original: Path, folder: Path) -> None:
    as_parquet(original, folder, paths=True)


WITH_HINTS_ELSEWHERE = as_two_folders, as_inner_folders
WRITERS = (
    *(as_jsonl, as_metadata, as_csv, as_array, as_array_on_one_line, as_split, as_windows),
    *(as_tar, as_parquet, as_parquet_with_paths, *WITH_HINTS_ELSEWHERE),
)


def flags_for(write: Callable, original: Path, folder: Path) -> list[str]:
    """Write the form -> the flags that name it."""
    write(original, folder)
    if write in WITH_HINTS_ELSEWHERE:
        return ["--data", str(folder / "pictures"), "--hints", str(folder / "hints")]
    return ["--data", str(folder)]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_every_form_gives_the_same_pairs(write, original, tmp_path):
    data, *hints = flags_for(write, original, tmp_path / "form")[1::2]
    view = VIEW._replace(hints=hints[0] if hints else None, cache=tmp_path / "cache")
    pairs, true = Folder([Path(data)], view), Folder([original], VIEW)
    assert not pairs.wrong and len(pairs) == N
    for i in range(N):
        for own, expected in zip(pairs[i][:2], true[i][:2]):
            assert torch.equal(own, expected)
        assert pairs[i][2] == true[i][2]


@pytest.mark.slow
@pytest.mark.parametrize("write", [as_csv, as_tar, as_parquet, as_two_folders])
def test_every_form_gives_the_same_losses(write, original, tmp_path):
    few = ["--base", NANO, "--size", "64", "--steps", "2", "--batch-size", "2", "--lr", "1e-3"]
    for name, flags in (
        ("true", ["--data", str(original)]),
        ("form", flags_for(write, original, tmp_path / "data")),
    ):
        train.main([*few, *flags, "--out", name, "--cache", f"{name}-cache"])
    logs = [Path(name, "log.jsonl").read_text() for name in ("true", "form")]
    losses = [[json.loads(line).get("loss") for line in log.splitlines()] for log in logs]
    assert losses[0] == losses[1] and any(losses[0])


def test_an_archive_of_pictures_and_captions_takes_hints_from_elsewhere(original, tmp_path):
    """img2dataset's: 000000001.jpg, .txt and .json, without hints."""
    folder, hints = tmp_path / "tar", tmp_path / "hints"
    folder.mkdir(), (hints / "part").mkdir(parents=True)
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for i, entry in enumerate(entries_of(original)):
            key = f"part/{i:09d}"
            add(tar, f"{key}.jpg", (original / entry["target"]).read_bytes())
            add(tar, f"{key}.txt", entry["prompt"].encode())
            add(tar, f"{key}.json", json.dumps({"key": key, "status": "success"}).encode())
            shutil.copy(original / entry["source"], hints / f"{key}.png")
    for given, true in (str(hints), VIEW), ("canny", VIEW._replace(hints="canny")):
        pairs, expected = Folder([folder], VIEW._replace(hints=given)), Folder([original], true)
        assert not pairs.wrong and len(pairs) == N
        for i in range(N):
            assert all(map(torch.equal, pairs[i][:2], expected[i][:2]))
            assert pairs[i][2] == expected[i][2]
    assert "lack `source` or `conditioning_image`" in wrong_with(folder)[0]


def test_without_its_reader_parquet_names_the_extra_to_install(tmp_path, monkeypatch):
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert 'pip install -e ".[parquet]" brings its reader' in wrong_with(tmp_path)[0]


def test_a_row_group_is_unpacked_once(original, tmp_path, monkeypatch):
    as_parquet(original, tmp_path / "data")
    view = VIEW._replace(cache=tmp_path / "cache")
    first = Folder([tmp_path / "data"], view)
    monkeypatch.setattr("nanocontrol.training.forms.unpack", None)
    again = Folder([tmp_path / "data"], view)
    assert [e.picture for e in first.entries] == [e.picture for e in again.entries]
    moving = Folder([tmp_path / "data"], view._replace(crop="random"))
    assert "--crop random is not for parquet" in moving.wrong[0]


def test_columns_of_another_type_are_lacking(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"image": {"path": "a.png"}, "source": datetime(2026, 1, 1), "text": b"bytes"}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for hints in (None, "canny"):
        wrong = Folder([tmp_path], VIEW._replace(hints=hints, cache=tmp_path / "cache")).wrong
        assert "1 pair lack `" in wrong[0] and "they have: " in wrong[0]


def test_an_archive_without_its_end_is_refused(original, tmp_path):
    as_tar(original, tmp_path / "data")
    file = tmp_path / "data" / "00001.tar"
    file.write_bytes(file.read_bytes()[:-5000])
    assert "00001.tar cannot be read (its end is missing)" in wrong_with(tmp_path / "data")[0]


def test_one_of_several_captions_is_drawn(original, tmp_path):
    rows = renamed(original, "image", "conditioning_image", "text")
    for row in rows:
        row["text"] = [row["text"], "another", "a third"]
    folder = copied(original, tmp_path / "data")
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pairs = Folder([folder], VIEW)
    drawn = [pairs[0, seen][2] for seen in range(60)]
    assert {*drawn} == {rows[0]["text"][0], "another", "a third"}
    assert drawn == [Folder([folder], VIEW)[0, seen][2] for seen in range(60)]
    assert drawn != [Folder([folder], VIEW._replace(seed=1))[0, seen][2] for seen in range(60)]
    assert pairs[0][2] == rows[0]["text"][0]  # the first one, for evaluation
    assert torch.equal(pairs[0, 5][0], pairs[0][0])  # the crop stays in the middle


# ------------------------------------------------------------------------------- refusals


def wrong_with(folder: Path, hints: str | None = None) -> list[str]:
    return Folder([folder], VIEW._replace(hints=hints)).wrong


def test_what_would_be_misread_is_refused(original, tmp_path):
    folder = copied(original, tmp_path / "labels")
    for file in [*folder.glob("hint*.png")]:
        file.rename(folder / f"{file.stem.replace('hint', 'image')}-condlabel.png")
    assert "-condlabel" in wrong_with(folder, "canny")[0]
    for file in [*folder.glob("*-condlabel.png")]:
        file.rename(folder / file.name.replace("cond", "mask"))
    assert "-masklabel.png: " in wrong_with(folder, "canny")[0]
    folder = copied(original, tmp_path / "csv")
    (folder / "statistics.csv").write_text("a,b\n1,2\n")
    assert "lack `target` or `file_name`; they have: a, b" in wrong_with(folder, "canny")[0]
    (folder / "others.jsonl").write_text("{}")
    assert "has 2 lists: others.jsonl, statistics.csv" in wrong_with(folder, "canny")[0]
    assert "pictures without hints" in wrong_with(copied(original, tmp_path / "bare"))[0]


def test_a_missing_hint_is_named(original, tmp_path):
    as_two_folders(original, tmp_path / "two")
    (tmp_path / "two" / "hints" / "002.webp").unlink()
    (wrong,) = wrong_with(tmp_path / "two" / "pictures", str(tmp_path / "two" / "hints"))
    assert "002.png" in wrong and "lack a hint of their names in --hints" in wrong
    assert "does not exist" in wrong_with(tmp_path / "two" / "pictures", "nowhere")[0]


def test_errors_of_one_kind_are_one_line(original, tmp_path):
    rows = [{"image": f"{i}.png", "caption": ""} for i in range(1000)]
    (folder := copied(original, tmp_path / "data")).joinpath("a.jsonl").write_text(
        "\n".join(map(json.dumps, rows))
    )
    (wrong,) = wrong_with(folder)
    assert "line 1," in wrong and "and 997 more: 1,000 pairs lack `source` or" in wrong
    assert wrong.endswith("`conditioning_image`; they have: caption, image")


def test_damaged_archives_are_refused(original, tmp_path):
    as_tar(original, tmp_path / "tar")
    file = tmp_path / "tar" / "00000.tar"
    file.write_bytes(file.read_bytes()[:700])
    (tmp_path / "tar" / "00001.tar").write_bytes(b"no archive")
    assert all("tar" in line for line in wrong_with(tmp_path / "tar"))
    (tmp_path / "parquet").mkdir()
    (tmp_path / "parquet" / "a.parquet").write_bytes(b"no parquet")
    assert "a.parquet" in wrong_with(tmp_path / "parquet")[0]


def test_hints_for_two_folders_are_refused(original, capsys):
    two = ["--base", NANO, "--data", str(original), "--data", "elsewhere"]
    message = refusal(train.main, capsys, *two, "--hints", str(original))
    assert "--hints DIR is for one --data" in message
