"""Taking texts, profiles and EXIF data out of picture files before Pillow reads these.

Pillow refuses a file whose metadata is damaged or large, though its pixels may be right.
"""

from typing import Literal

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
TIFF = b"II*\0", b"MM\0*"
PIXELS = b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"  # a PNG file's chunks
COLOURS = 0xE0, 0xEE  # a JPEG file's segments, JFIF's and Adobe's; they say what the colours are
EXIF = b"Exif\0\0"
WHOLE_NUMBERS = {3: 2, 4: 4, 6: 1, 8: 2, 9: 4, 13: 4}  # bytes of EXIF's types


def without_metadata(data: bytes) -> tuple[bytes, bytes]:
    """A picture file without its metadata, and its EXIF data if they were taken out. Files of other
    formats than PNG, JPEG and TIFF are returned as they are."""
    if data.startswith(PNG):
        return png_without_metadata(data)
    if data.startswith(TIFF):
        return tiff_without_texts(data), b""
    return jpeg_without_metadata(data) if data.startswith(JPEG) else (data, b"")


def png_without_metadata(data: bytes) -> tuple[bytes, bytes]:
    kept, exif, at = [PNG], b"", len(PNG)
    while at < len(data):  # a chunk: its length, its type, its content, a checksum
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        if kind in PIXELS or kind[:1].isupper():  # an upper case letter: it is not optional
            kept.append(data[at:end])
        elif kind == b"eXIf":
            exif = exif or data[at + 8 : end - 4]
        at = end
    return b"".join(kept), exif


def jpeg_without_metadata(data: bytes) -> tuple[bytes, bytes]:
    kept, exif, at = [JPEG], b"", len(JPEG)
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] not in (b"", b"\xda"):
        # A segment before the pixels' (0xda): its marker, its length without the marker's.
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        marker, content = data[at + 1], data[at + 4 : end]
        if marker == 0xE1 and content.startswith(EXIF):
            exif = exif or content
        if not 0xE0 <= marker <= 0xEF or marker in COLOURS and len(content) >= 12:
            kept.append(data[at:end])
        at = end
    return b"".join(kept) + data[at:], exif


def tiff_without_texts(data: bytes) -> bytes:
    """With the number 1 in the place of every text, and of an orientation that is no number."""
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
    changed, start = bytearray(data), int.from_bytes(data[4:8], order)
    entries = int.from_bytes(data[start : start + 2], order)
    for at in range(start + 2, min(start + 2 + 12 * entries, len(data) - 11), 12):
        tag, kind = (int.from_bytes(data[i : i + 2], order) for i in (at, at + 2))
        count = int.from_bytes(data[at + 4 : at + 8], order)
        if kind == 2 or tag == 0x0112 and (kind not in WHOLE_NUMBERS or count != 1):
            numbers = (3, 2), (1, 4), (1, 2), (0, 2)  # a SHORT, one of them, its value, nothing
            changed[at + 2 : at + 12] = b"".join(x.to_bytes(n, order) for x, n in numbers)
    return bytes(changed)


def orientation_in(exif: bytes) -> int:
    """The orientation in EXIF data, 1 to 8. Everything else counts as 1: none, other numbers, other
    types than whole numbers, damaged data. From 5 on, the picture is stored with a quarter turn."""
    tiff = exif
    while tiff.startswith(EXIF):
        tiff = tiff.removeprefix(EXIF)

    def number(at: int, size: int) -> int:
        return int.from_bytes(tiff[at : at + size], "little" if tiff[:2] == b"II" else "big")

    start = number(4, 4)
    for at in range(start + 2, start + 2 + 12 * number(start, 2), 12):
        tag, kind, count = number(at, 2), number(at + 2, 2), number(at + 4, 4)
        if tag == 0x0112 and kind in WHOLE_NUMBERS and count == 1:
            value = number(at + 8, WHOLE_NUMBERS[kind])
            return value if 1 <= value <= 8 else 1
    return 1
