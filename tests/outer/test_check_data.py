"""`nanocontrol.tools.check_data`: its report on a folder of pairs."""

import json
import os
import struct
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from PIL import Image

from conftest import opened, write_pairs
from nanocontrol.tools.check_data import main as check_data
from nanocontrol.training.pairs import Folder, View


def png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", crc32(header))


def report(capsys, *flags: object) -> tuple[str, int]:
    """Run check_data -> its output and exit status."""
    status = 0
    try:
        check_data([*map(str, flags), "--size", "64"])
    except SystemExit as end:
        status = end.code
    return capsys.readouterr().out, status


def test_check_data_reports_pairs_and_draws_a_sheet(tmp_path, capsys):
    text, status = report(capsys, write_pairs(tmp_path / "pairs", n=20), "--out", "sheet.png")
    assert status == 0 and text.endswith("sheet.png\n") and "20 pairs" in text
    sheet = np.asarray(opened("sheet.png"))
    assert sheet.shape == (4 * 64, 8 * 64, 3)
    image, hint, _ = Folder([tmp_path / "pairs"], View((64, 64)))[0]
    assert np.abs(sheet[:64, :64] / 255 - hint.permute(1, 2, 0).numpy()).max() < 0.01
    assert np.abs(sheet[:64, 64:128] / 127.5 - 1 - image.permute(1, 2, 0).numpy()).max() < 0.02


def test_all_errors_are_reported_at_once(tmp_path, capsys):
    write_pairs(tmp_path, n=8)
    lines = (tmp_path / "prompt.json").read_text().splitlines()
    lines[1] = "{not json"
    (tmp_path / "prompt.json").write_text("\n".join(lines))
    (tmp_path / "image2.png").unlink()
    (tmp_path / "hint3.png").write_text("not a picture")
    data = (tmp_path / "image4.png").read_bytes()
    (tmp_path / "image4.png").write_bytes(data[: len(data) // 2])
    Image.new("RGB", (64, 32)).save(tmp_path / "hint5.png")
    (tmp_path / "hint6.png").write_bytes(png_header(20_000, 20_000))  # a decompression bomb
    text, status = report(capsys, tmp_path)
    wrong = [line for line in text.splitlines() if line.startswith("wrong: ")]
    assert status == 1 and len(wrong) == 6 and not Path("out").exists()
    for number, words in [
        (2, "expected a JSON object on each line, with target, source, prompt"),
        (3, "image2.png does not exist"),
        (4, "hint3.png cannot be read as a picture"),
        (5, "image4.png is cut off or damaged"),
        (6, "hint5.png is 64x32 and its picture 64x64; expected the same aspect ratio"),
        (7, "hint6.png"),
    ]:
        mine = [line for line in wrong if f"prompt.json, line {number}: " in line]
        assert len(mine) == 1 and words in mine[0], number
    assert "2 pairs" in text  # the remaining pairs


def test_folders_without_pairs_are_refused(tmp_path, capsys):
    for folder, flags, words in [
        ("nowhere", [], "nowhere cannot be read, or is no folder"),
        ("nowhere", ["--hints", "canny"], "nowhere cannot be read"),
        (".", ["--hints", "canny"], "holds no pictures: expected .png"),
        (".", [], "or a list of pairs"),
        ("nowhere", ["elsewhere", "--hints", "canny"], "elsewhere cannot be read"),
    ]:
        text, status = report(capsys, folder, *flags)
        assert status == 1 and words in text and text.count("\n") == text.count("wrong: ")
    for text, words in (("\n\n", "lists no pairs"), (b"\xff\xfe\x00", "is not UTF-8")):
        Path("prompt.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        assert words in report(capsys, ".")[0]
    Path("prompt.json").write_text("[" * 20_000)
    assert "line 1: expected a JSON object on each line" in report(capsys, ".")[0]
    Path("prompt.json").unlink()
    Image.linear_gradient("L").resize((64, 64)).save("a.png")
    (Path("._a.png")).write_bytes(b"a file of macOS")
    text, status = report(capsys, ".", "--hints", "canny")
    assert status == 0 and "1 pair," in text
    assert ". is given twice" in report(capsys, ".", ".", "--hints", "canny")[0]
    Path("a.txt").write_bytes(b"\xff\xfe\x00")
    assert "a.txt is not UTF-8" in report(capsys, ".", "--hints", "canny")[0]


def test_a_key_that_lines_lack_is_named_once(tmp_path, capsys):
    write_pairs(tmp_path, n=6)
    entries = [json.loads(line) for line in (tmp_path / "prompt.json").read_text().splitlines()]
    for i in (1, 2, 4):
        entries[i]["prompt"] = None
    del entries[3]["source"]
    (tmp_path / "prompt.json").write_text("\n".join(map(json.dumps, entries)))
    text, status = report(capsys, tmp_path)
    wrong = [line for line in text.splitlines() if line.startswith("wrong: ")]
    assert status == 1 and len(wrong) == 2 and "2 pairs" in text
    assert "line 5: 3 pairs lack `prompt` or `text`; they have: prompt, source, target" in wrong[0]
    assert "line 4: 1 pair lack `source` or `conditioning_image`; they have:" in wrong[1]


def test_names_are_escaped_and_pipes_are_left_out(tmp_path, capsys):
    names = ["a\x1b[31m\n.jpg", os.fsdecode(b"caf\xe9.jpg"), "c.jpg"]
    for name in names:
        Image.linear_gradient("L").resize((64, 64)).save(tmp_path / name)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
    text, status = report(capsys, tmp_path, "--hints", "canny")
    assert status == 0 and "3 pairs" in text and text.isascii() and "\x1b" not in text
    assert r"a\x1b[31m\n.jpg" in text and r"caf\udce9.jpg" in text
    assert all(line.isprintable() for line in text.splitlines())


def test_paths_that_cannot_be_looked_at_are_refused(tmp_path, capsys):
    Path("loop").symlink_to("loop")
    for folder in ("x" * 300, "loop", "loop/inner"):
        text, status = report(capsys, folder, "--hints", "canny")
        assert status == 1 and "cannot be read, or is no folder" in text


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_no_caption(tmp_path, capsys):
    Image.linear_gradient("L").save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "a.txt")
    assert (
        "1 caption missing, so these prompts are empty: a.png"
        in report(capsys, tmp_path, "--hints", "canny")[0]
    )


def test_damaged_pictures_are_named_and_the_report_is_finished(tmp_path, capsys):
    """One byte of each, at which Pillow 12 raised other errors than OSError."""
    damage = [("GIF", 42, 0), ("BMP", 30, 1), ("TIFF", 102, 0), ("TIFF", 72, 5), ("AVIF", 81, 0)]
    for i, (kind, at, value) in enumerate(damage):
        image = Image.new("RGB", (16, 16), (9, 200, 30))
        file = tmp_path / f"{i}.{kind.lower()}"
        (image.convert("P") if kind == "GIF" else image).save(file, kind)
        data = bytearray(file.read_bytes())
        data[at] = value
        file.write_bytes(data)
    Image.linear_gradient("L").save(tmp_path / "good.webp")
    text, status = report(capsys, tmp_path, "--hints", "canny")
    wrong = [line for line in text.splitlines() if line.startswith("wrong: ")]
    assert status == 1 and "pair" in text and len(wrong) >= 3
    assert all(str(tmp_path) in line and "expected a picture" in line for line in wrong)


@pytest.mark.slow
def test_a_folder_of_photographs_is_accepted(photos, capsys):
    check_data([str(photos), "--hints", "canny", "--size", "128"])
    text = capsys.readouterr().out
    assert "8 pairs" in text and "640x427" in text and "512x512" in text
    assert (
        "1 caption missing, so these prompts are empty: china.jpg" in text and "wrong" not in text
    )
    assert opened("out/pairs.png").size == (8 * 128, 2 * 128)
