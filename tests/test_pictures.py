"""Reading strangers' pictures: metadata that must not matter, formats, damaged files."""

import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from nanocontrol import InputError
from nanocontrol.plumbing.pictures import (
    FORMATS,
    PICTURES,
    picture_size,
    pictures_in,
    read_caption,
    read_image,
)

WIDE = (24, 16)
ENDINGS = {"JPEG": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2"}


def picture(size: tuple[int, int] = WIDE) -> Image.Image:
    """Dark on the left, with a bright top row."""
    levels = np.tile(np.linspace(0, 150, size[0]).astype(np.uint8), (size[1], 1))
    levels[0] = 255
    return Image.fromarray(np.stack([levels, levels // 2, levels], axis=-1))


def written(folder: Path, kind: str, **options) -> Path:
    file = folder / f"a{ENDINGS.get(kind, '.' + kind.lower())}"
    image = picture().convert("P") if kind == "GIF" else picture()
    image.save(file, kind, **options)
    return file


def exif_with(kind: int, value: bytes, more: bytes = b"") -> bytes:
    """EXIF data with one entry, the orientation, of this type and value, then `more`."""
    entry = struct.pack("<HHI", ExifTags.Base.Orientation, kind, 1) + value.ljust(4, b"\0")
    entries = 1 + len(more) // 12
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", entries) + entry + more + bytes(4)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


# ------------------------------------------------------------------------------------ metadata


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_undone(kind, orientation, tmp_path):
    """As Pillow does it, if it can."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file = written(tmp_path, kind, exif=exif)
    true = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
    found = read_image(file)
    assert picture_size(file) == found.size == true.size
    assert np.array_equal(np.asarray(found), np.asarray(true))


@pytest.mark.parametrize("value", [0, 9, 49, 256, 65535])
def test_an_orientation_outside_1_to_8_counts_as_1(value, tmp_path):
    file = written(tmp_path, "JPEG", exif=exif_with(3, struct.pack("<H", value)))
    assert picture_size(file) == read_image(file).size == WIDE


@pytest.mark.parametrize("kind", [1, 2, 5, 7, 9, 10, 12, 13, 99])
def test_an_orientation_of_another_type_does_not_matter(kind, tmp_path):
    for value in (b"\6", b"6", b"\6\0\0\0", b"\xff\xff\xff\xff"):
        file = written(tmp_path, "JPEG", exif=exif_with(kind, value))
        assert picture_size(file) == read_image(file).size
        assert sorted(read_image(file).size) == sorted(WIDE)


def test_an_orientation_next_to_an_entry_that_cannot_be_written_is_undone(tmp_path):
    strange = struct.pack("<HHI4s", ExifTags.Base.XResolution, 2, 2**31, b"\xff" * 4)
    file = written(tmp_path, "JPEG", exif=exif_with(3, b"\6\0", strange))
    assert picture_size(file) == read_image(file).size == WIDE[::-1]


def test_a_pngs_orientation_may_follow_its_pixels(tmp_path):
    exif = exif_with(3, b"\6\0")
    data = written(tmp_path, "PNG").read_bytes()
    at = data.index(b"IEND") - 4
    for content in (exif, exif.removeprefix(b"Exif\0\0"), b"Exif\0\0" + exif):
        (file := tmp_path / "b.png").write_bytes(data[:at] + chunk(b"eXIf", content) + data[at:])
        assert picture_size(file) == read_image(file).size == WIDE[::-1]


def test_a_jpegs_other_segments_do_not_matter(tmp_path):
    data = written(tmp_path, "JPEG").read_bytes()
    exif = exif_with(3, b"\6\0")

    def segment(marker: int, content: bytes) -> bytes:
        return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content

    for marker, content, size in (
        (0xE1, exif, WIDE[::-1]),
        (0xE2, exif, WIDE),
        (0xFE, exif, WIDE),
        (0xE0, b"JFIF\0", WIDE),
        (0xEE, b"Adobe", WIDE),
        (0xED, b"Photoshop 3.0\0" + b"8BIM\4\4" * 9, WIDE),
    ):
        (file := tmp_path / "b.jpg").write_bytes(data[:2] + segment(marker, content) + data[2:])
        assert picture_size(file) == read_image(file).size == size, marker
        longer = data[:2] + segment(0xE3, bytes(60_000)) * 5 + segment(marker, content) + data[2:]
        file.write_bytes(longer)  # its header is longer than what picture_size reads at first
        assert picture_size(file) == size


def test_an_orientation_in_xmp_alone_turns_nothing(tmp_path):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    for kind, options in (("JPEG", {"xmp": xmp}), ("TIFF", {"tiffinfo": {700: xmp}})):
        file = written(tmp_path, kind, **options)
        assert picture_size(file) == read_image(file).size == WIDE


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_tiff_file_is_turned_upright(orientation, tmp_path):
    file = written(tmp_path, "TIFF", tiffinfo={ExifTags.Base.Orientation: orientation})
    assert picture_size(file) == read_image(file).size
    assert (read_image(file).size == WIDE) == (orientation < 5)


@pytest.mark.parametrize("tag", [269, 270, 305, 306, ExifTags.Base.Orientation])
@pytest.mark.parametrize("kind", [2, 5, 12, 16])
def test_damaged_texts_and_orientations_of_a_tiff_do_not_matter(tag, kind, tmp_path):
    texts = {269: "a document", 270: "a picture", 305: "a program", 306: "a date", 0x0112: 1}
    data = bytearray(written(tmp_path, "TIFF", tiffinfo=texts).read_bytes())
    start = int.from_bytes(data[4:8], "little")
    at = next(
        i for i in range(start + 2, len(data), 12) if data[i : i + 2] == tag.to_bytes(2, "little")
    )
    if tag == ExifTags.Base.Orientation:
        data[at + 2 : at + 4] = kind.to_bytes(2, "little")
    data[at + 4 : at + 12] = struct.pack("<II", 9, 2**32 - 1)  # its place is behind the end
    (file := tmp_path / "b.tif").write_bytes(data)
    assert picture_size(file) == WIDE
    assert np.array_equal(np.asarray(read_image(file)), np.asarray(picture()))


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(2**26))),
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(2**24))),
        chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(2**24))),
        chunk(b"tEXt", b"exif\0no exif at all"),
        chunk(b"eXIf", b"no exif at all"),
        chunk(b"zTXt", b"not compressed"),
        chunk(b"pHYs", b"short"),
        chunk(b"acTL", b""),
        chunk(b"bKGD", b"x" * 9)[:-4] + b"wrong"[:4],  # its checksum
    ],
)
def test_a_pngs_other_chunks_do_not_matter(extra, before, tmp_path):
    data = written(tmp_path, "PNG").read_bytes()
    at = data.index(b"IDAT" if before else b"IEND") - 4
    (file := tmp_path / "b.png").write_bytes(data[:at] + extra + data[at:])
    assert picture_size(file) == WIDE
    assert np.array_equal(np.asarray(read_image(file)), np.asarray(picture()))


@pytest.mark.parametrize("n", [500, pytest.param(20_000, marks=pytest.mark.long)])
def test_damaged_metadata_never_hides_the_pixels(n, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Make] = 6, "a camera"
    exif[ExifTags.Base.XResolution] = 72.0
    for kind in ("JPEG", "PNG", "WEBP"):
        file = written(tmp_path, kind, exif=exif)
        whole, draw = file.read_bytes(), random.Random(0)
        start = whole.index(b"MM\0*")  # the EXIF data's own header
        for _ in range(n // 3):
            data = bytearray(whole)
            for _ in range(draw.choice((1, 1, 3))):
                data[start + draw.randrange(60)] = draw.choice((0, 1, 255, draw.randrange(256)))
            if kind == "PNG":
                at = whole.index(b"eXIf")
                length = int.from_bytes(whole[at - 4 : at], "big")
                end = at + 4 + length
                data[end : end + 4] = struct.pack(">I", zlib.crc32(bytes(data[at:end])))
            file.write_bytes(data)
            assert picture_size(file) == read_image(file).size in (WIDE, WIDE[::-1])


# ------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read(kind, tmp_path):
    file = written(tmp_path, kind)
    assert file.suffix in PICTURES and picture_size(file) == WIDE
    difference = np.asarray(read_image(file)).astype(int) - np.asarray(picture())
    assert np.abs(difference).mean() < 20  # lossy formats


@pytest.mark.parametrize("kind", ["EPS", "DDS", "TGA", "ICO", "PCX", "PDF"])
def test_other_formats_are_refused_by_name(kind, tmp_path):
    picture().save(file := tmp_path / "a.png", kind)
    for read in (picture_size, read_image):
        with pytest.raises(InputError, match=r"a\.png .+; expected PNG, JPEG") as error:
            read(file)
        named = f"is a file of type {kind}" in str(error.value)
        assert named or kind in ("TGA", "PCX", "PDF")  # these have no mark of their own


def test_floats_from_0_to_1_are_grey_levels(tmp_path):
    ramp = np.tile(np.linspace(0, 1, 24, dtype=np.float32), (16, 1))
    for name in ("a.tif", "a.pfm"):
        Image.fromarray(ramp).save(tmp_path / name)
        grey = np.asarray(read_image(tmp_path / name))[..., 0]
        assert np.array_equal(grey, (ramp * 255).round().astype(np.uint8))
    for wrong in (ramp * 255, ramp - 0.5, np.full_like(ramp, np.nan)):
        Image.fromarray(wrong).save(tmp_path / "a.tif")
        with pytest.raises(InputError, match=r"a.tif has floats .+ expected 0 to 1"):
            read_image(tmp_path / "a.tif")


def test_16_bits_are_read_and_32_refused(tmp_path):
    ramp = np.tile(np.linspace(0, 65535, 24).astype(np.uint16), (16, 1))
    for name in ("a.tif", "a.png", "a.pgm"):
        Image.fromarray(ramp).save(tmp_path / name)
        grey = np.asarray(read_image(tmp_path / name))[..., 0]
        assert np.array_equal(grey, (ramp // 256).astype(np.uint8)), name
    for most in (255, 65535, 2**31 - 1):
        Image.fromarray(np.full((16, 24), most, np.int32)).save(tmp_path / "a.tif")
        with pytest.raises(InputError, match="has pixels of 32 bits or with a sign; expected 8"):
            read_image(tmp_path / "a.tif")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_no_picture(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    file = written(tmp_path, "PNG")
    assert pictures_in(tmp_path) == [file]
    with pytest.raises(InputError, match="pipe.png is not a regular file"):
        read_image(tmp_path / "pipe.png")


# ----------------------------------------------------------------------------- damaged pictures


@pytest.mark.parametrize("n", [200, pytest.param(20_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_picture_is_read_or_refused_in_one_line(kind, n, tmp_path):
    """n: of mutations of all formats together."""
    file, draw = written(tmp_path, kind), random.Random(kind)
    whole = file.read_bytes()
    read = refused = 0
    for _ in range(n // len(FORMATS)):
        data = bytearray(whole)
        within = min(len(data), draw.choice((60, 400, 10**6)))
        for _ in range(draw.choice((1, 1, 1, 3))):
            data[draw.randrange(within)] = draw.choice((0, 1, 255, draw.randrange(256)))
        file.write_bytes(data[: draw.choice((len(data), len(data), draw.randrange(len(data))))])
        try:
            size = picture_size(file)
            assert read_image(file).size == size
            read += 1
        except InputError as error:
            assert str(file) in str(error) and "\n" not in str(error)
            refused += 1
    assert refused and read + refused == n // len(FORMATS)


# ------------------------------------------------------------------------------------- captions


def test_captions_are_utf_8_or_utf_16_with_a_mark(tmp_path):
    file, text = tmp_path / "a.txt", "a café,\n 猫"
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"):
        mark = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}.get(encoding, b"")
        file.write_bytes(mark + text.encode(encoding))
        assert read_caption(file) == "a café, 猫", encoding
    wrong = [text.encode("gbk"), "café".encode("latin-1"), b"\xff\xfe\x00"]
    wrong += ["a ring".encode(name) for name in ("utf-16-le", "utf-16-be", "utf-32", "utf-32-le")]
    for data in wrong:
        file.write_bytes(data)
        with pytest.raises(InputError, match="a.txt is not UTF-8"):
            read_caption(file)
