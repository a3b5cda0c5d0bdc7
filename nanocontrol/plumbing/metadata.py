"""Taking texts, profiles and EXIF data out of picture files before Pillow reads these.

Pillow refuses a file whose metadata is damaged or large, though its pixels may be right.
"""

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # a PNG file's chunks


def without_metadata(data: bytes) -> tuple[bytes, bytes]:
    """A picture file without its metadata, and its EXIF data if they were taken out. Files of other
    formats than PNG and JPEG are returned as they are."""
    if data.startswith(PNG):
        return png_without_texts(data), b""
    return jpeg_without_metadata(data) if data.startswith(JPEG) else (data, b"")


def png_without_texts(data: bytes) -> bytes:
    kept, at = [PNG], len(PNG)
    while at < len(data):  # a chunk: its length, its type, its content, a checksum
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] not in TEXTS:
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def jpeg_without_metadata(data: bytes) -> tuple[bytes, bytes]:
    """Without the application's segments 1 to 13. JFIF's (0) and Adobe's (14) say what the colours
    are."""
    kept, exif, at = [JPEG], b"", len(JPEG)
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] not in (b"", b"\xda"):
        # A segment before the pixels' (0xda): its marker, its length without the marker's.
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 4 : at + 10] == b"Exif\0\0":
            exif = exif or data[at + 4 : end]
        if not 0xE1 <= data[at + 1] <= 0xED:
            kept.append(data[at:end])
        at = end
    return b"".join(kept) + data[at:], exif


def orientation_in(exif: bytes) -> int:
    """The orientation in EXIF data, 1 to 8. Everything else counts as 1: none, other numbers, other
    types than whole numbers, damaged data. From 5 on, the picture is stored with a quarter turn."""
    tiff = exif.removeprefix(b"Exif\0\0")

    def number(at: int, size: int) -> int:
        return int.from_bytes(tiff[at : at + size], "little" if tiff[:2] == b"II" else "big")

    start = number(4, 4)
    for at in range(start + 2, start + 2 + 12 * number(start, 2), 12):
        tag, kind = number(at, 2), number(at + 2, 2)
        if tag == 0x0112 and kind in (3, 4):  # of 2 or 4 bytes
            value = number(at + 8, 2 * (kind - 2))
            return value if 1 <= value <= 8 else 1
    return 1
