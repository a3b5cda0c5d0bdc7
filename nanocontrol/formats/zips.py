"""A strict reader of zip archives. Python's zipfile, miniz (in PyTorch) and unzip each read damaged
or forged archives in their own way. Here one is refused unless all of them would read the same."""

import struct
import zlib
from pathlib import Path
from typing import NamedTuple

from nanocontrol.plumbing.errors import InputError

Bytes = memoryview | bytes

MOST_RECORDS = 100_000  # published files have two thousand
STORED, DEFLATED = 0, 8
ENCRYPTED, KNOWN_FLAGS = 1, 0b1000_0000_1111  # encryption, deflate's level, sizes behind, UTF-8
SIZES_BEHIND = 8  # the local header has no checksum and sizes: they stand behind the data
# Instead of a number of 32 or 16 bits: it stands elsewhere, in 64 bits.
IN_64_BITS, COUNT_IN_64_BITS = 0xFFFFFFFF, 0xFFFF


class Record(NamedTuple):
    """A file in an archive."""

    name: str
    method: int
    crc: int
    packed: int  # bytes in the archive
    size: int  # bytes when unpacked
    header: int  # where its local header begins
    begin: int  # where its data begins


def records_of(path: Path, data: Bytes) -> dict[str, Record]:
    """The records of an archive by name, none of which overlap. Raises InputError, or struct.error
    or ValueError where it is cut off."""
    count, begin, end = directory_of(data)
    records: dict[str, Record] = {}
    names, at = set(), begin
    for _ in range(count):
        record, at = record_at(path, data, at)
        name = record.name.split("\0")[0].lower()  # as PyTorch compares them
        if name in names:
            raise InputError(f"{path} holds the record {record.name} twice")
        names.add(name)
        records[record.name] = record
    if at != end:
        raise ValueError("the directory is longer than its records")
    free = 0
    for record in sorted(records.values(), key=lambda record: record.header):
        if record.header < free:
            raise InputError(f"{path}: its record {record.name} overlaps another one")
        free = record.begin + record.packed
    if free > begin:
        raise ValueError("data in the directory's place")
    return records


def directory_of(data: Bytes) -> tuple[int, int, int]:
    """The number of records, and where the directory begins and ends."""
    tail = max(0, len(data) - 22 - 0xFFFF)  # a comment of at most 64 kB comes last
    end = tail + bytes(data[tail:]).rindex(b"PK\5\6")
    here, count, size, begin, comment = struct.unpack_from("<8xHHLLH", data, end)
    said = here, count, size, begin
    if end + 22 + comment != len(data):
        raise ValueError("bytes behind the archive")
    if end >= 20 and data[end - 20 : end - 16] == b"PK\6\7":  # the same again, in 64 bits
        (at,) = struct.unpack_from("<8xQ", data, end - 20)
        magic, length, here, count, size, begin = struct.unpack_from("<4sQ12xQQQQ", data, at)
        elsewhere = COUNT_IN_64_BITS, COUNT_IN_64_BITS, IN_64_BITS, IN_64_BITS
        for short, long, marker in zip(said, (here, count, size, begin), elsewhere):
            if short not in (long, marker):
                raise ValueError("two directories")
        if magic != b"PK\6\6" or at + 12 + length != end - 20:
            raise ValueError("two directories")
        end = at
    if here != count or count > MOST_RECORDS or begin + size != end:
        raise ValueError("the directory is not where it should be")
    return count, begin, end


def record_at(path: Path, data: Bytes, at: int) -> tuple[Record, int]:
    """The record that is described at a place in the directory, and the next one's place."""
    layout = struct.Struct("<4s4xHH4xLLLHHH8xL")
    magic, flags, method, crc, packed, size, n, extra, note, header = layout.unpack_from(data, at)
    raw = bytes(data[at + 46 : at + 46 + n])
    name = raw.decode()
    if magic != b"PK\1\2" or len(raw) < n:
        raise ValueError("not a record")
    if flags & ENCRYPTED:
        raise InputError(f"{path}: its record {name} is encrypted; expected a checkpoint")
    if method not in (STORED, DEFLATED) or flags & ~KNOWN_FLAGS:
        what = "is packed in an unknown way; expected a checkpoint"
        raise InputError(f"{path}: its record {name} {what}")
    long = in_64_bits(data[at + 46 + n : at + 46 + n + extra])
    size, packed, header = (next(long) if v == IN_64_BITS else v for v in (size, packed, header))
    begin = begin_of(path, data, header, (raw, flags, method, crc, packed, size))
    if method == STORED and packed != size or begin + packed > len(data):
        raise ValueError("sizes")
    record = Record(name, method, crc, packed, size, header, begin)
    return record, at + 46 + n + extra + note


def in_64_bits(extra: Bytes):
    """The numbers of a record that do not fit 32 bits, in their order."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        if kind == 1:
            yield from struct.unpack_from(f"<{length // 8}Q", extra, 4)
        extra = extra[4 + length :]
    raise ValueError("a number is missing")


def begin_of(path: Path, data: Bytes, header: int, expected: tuple) -> int:
    """Where a record's data begins: behind a header of its own, which has to say the same."""
    layout = struct.Struct("<4s2xHH4xLLLHH")
    magic, flags, method, crc, *sizes, n, extra = layout.unpack_from(data, header)
    raw = bytes(data[header + 30 : header + 30 + n])
    if flags & SIZES_BEHIND:
        crc, *sizes = expected[3:]
    sizes = [right if said == IN_64_BITS else said for said, right in zip(sizes, expected[4:])]
    if magic != b"PK\3\4" or (raw, flags, method, crc, *sizes) != expected:
        name = expected[0].decode()
        raise InputError(f"{path} is forged or damaged: its record {name} is described twice")
    return header + 30 + n + extra


def bytes_of(path: Path, data: Bytes, record: Record, check: bool) -> Bytes:
    """A record's bytes: where they lie if they are stored as they are, else unpacked. check: that
    they have the right checksum."""
    found: Bytes = data[record.begin : record.begin + record.packed]
    if record.method == DEFLATED:
        unpack = zlib.decompressobj(-zlib.MAX_WBITS)
        found = unpack.decompress(found, record.size + 1)
        if len(found) != record.size or not unpack.eof or unpack.unused_data:
            raise InputError(f"{path}: its record {record.name} is not as long as it says")
    if check and zlib.crc32(found) != record.crc:
        raise InputError(f"{path} is damaged: its record {record.name} has a wrong checksum")
    return found
