"""Taking texts, profiles and EXIF data out of picture files before Pillow reads these.

Pillow refuses a file whose metadata is damaged or large, though its pixels may be right.
"""

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
PIXELS = b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"  # a PNG file's chunks
COLOURS = 0xE0, 0xEE  # a JPEG file's segments, JFIF's and Adobe's; they say what the colours are
EXIF = b"Exif\0\0"
WHOLE_NUMBERS = {3: 2, 4: 4, 6: 1, 8: 2, 9: 4, 13: 4}  # bytes of EXIF's types


def without_metadata(data: bytes) -> tuple[bytes, bytes]:
    """A picture file without its metadata, and its EXIF data if they were taken out. Files of other
    formats than PNG and JPEG are returned as they are."""
    if data.startswith(PNG):
        return png_without_metadata(data)
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
