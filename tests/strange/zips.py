"""Archives: packed in other ways, damaged, and forged."""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from strange.harness import loads, refused
from strange.making import (
    END,
    FILES,
    FOLDER,
    NUMBERS,
    PICKLE,
    START,
    W,
    archive,
    call,
    dictionary,
    integers,
    storage,
    tensor,
    text,
    touch,
    write_zip,
)

FIRST = f"{FOLDER}data/0"  # the record of conv.weight
CUT = "is cut off or not a checkpoint"
FORGED = "is described twice"


# ------------------------------------------------------------------------- packed in other ways


@loads
def stored(folder: Path) -> Path:
    return write_zip(folder, FILES)


@loads
def deflated(folder: Path) -> Path:
    return write_zip(folder, FILES, zipfile.ZIP_DEFLATED)


@loads
def numbers_deflated_and_the_pickle_stored(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "a.pth", "w") as file:
        for name, data in FILES.items():
            method = zipfile.ZIP_DEFLATED if "/data/" in name else zipfile.ZIP_STORED
            file.writestr(name, data, method)
    return folder / "a.pth"


@refused(says="is packed in an unknown way")
def packed_by_bzip2(folder: Path) -> Path:
    return write_zip(folder, FILES, zipfile.ZIP_BZIP2)


@refused(says="is packed in an unknown way")
def packed_by_lzma(folder: Path) -> Path:
    return write_zip(folder, FILES, zipfile.ZIP_LZMA)


@loads
def in_another_order(folder: Path) -> Path:
    return write_zip(folder, dict(reversed(FILES.items())))


@loads
def with_the_folders_as_records(folder: Path) -> Path:
    """zip -r writes such records."""
    return write_zip(folder, {FOLDER: b"", f"{FOLDER}data/": b""} | FILES)


@loads
def in_a_folder_with_another_name(folder: Path) -> Path:
    files = {name.replace(FOLDER, "Gewichte für uns/"): data for name, data in FILES.items()}
    return write_zip(folder, files)


@loads
def with_all_sizes_in_64_bits(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "a.pth", "w") as file:
        for name, data in FILES.items():
            with file.open(name, "w", force_zip64=True) as record:
                record.write(data)
    return folder / "a.pth"


class Pipe(io.RawIOBase):
    """A file without seek, for which zipfile writes sizes after the data."""

    def __init__(self, path: Path):
        self.file = open(path, "wb")

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        return self.file.write(data)

    def close(self) -> None:
        self.file.close()


@loads
def written_to_a_pipe(folder: Path) -> Path:
    with Pipe(folder / "a.pth") as pipe, zipfile.ZipFile(pipe, "w") as file:
        for name, data in FILES.items():
            file.writestr(name, data)
    return folder / "a.pth"


def commented(comment: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = write_zip(folder, FILES)
        with zipfile.ZipFile(path, "a") as file:
            file.comment = comment
        return path

    return write


@loads
def with_a_comment(folder: Path) -> Path:
    return commented(b"made by somebody")(folder)


@loads
def with_a_comment_of_65535_bytes(folder: Path) -> Path:
    return commented(b"x" * 65535)(folder)


@refused(says=CUT)
def with_an_archive_as_comment(folder: Path) -> Path:
    other = write_zip(folder, {"b/data.pkl": START + dictionary() + END}).read_bytes()
    return commented(other)(folder)


@loads
def with_comments_and_times_on_every_record(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "a.pth", "w") as file:
        for name, data in FILES.items():
            info = zipfile.ZipInfo(name, (2107, 12, 31, 23, 59, 58))
            info.comment, info.extra, info.external_attr = b"note", b"\xfe\xca\2\0ab", 0o777 << 16
            file.writestr(info, data)
    return folder / "a.pth"


@loads
def without_a_byte_order(folder: Path) -> Path:
    """Files from before torch 2.1 have none."""
    files = {name: data for name, data in FILES.items() if not name.endswith("byteorder")}
    return write_zip(folder, files)


@loads
def with_20000_more_records(folder: Path) -> Path:
    return write_zip(folder, FILES | {f"{FOLDER}notes/{i}": b"" for i in range(20_000)})


# ------------------------------------------------------------------------------- other records


def with_record(name: str, record: str, data: bytes = b"x", says: str = CUT, ends=refused) -> None:
    """A case: an additional or replaced record."""

    def write(folder: Path) -> Path:
        return write_zip(folder, FILES | {record: data})

    write.__name__ = name
    ends(write) if ends is loads else refused(write, says=says)


with_record("a_note_in_the_folder", f"{FOLDER}note.txt", ends=loads)
with_record("a_record_in_the_folder_above", "../a.txt", says="is outside of")
# Nothing is unpacked to disk, so what such a name would overwrite does not matter.
with_record("a_record_in_a_folder_above_its_own", f"{FOLDER}../../a.txt", ends=loads)
with_record("a_record_at_the_root", "/etc/passwd", says="is outside of")
with_record("a_record_on_another_disk", "C:\\a.txt", says="is outside of")
with_record("a_record_in_no_folder", "a.txt", says="is outside of")
with_record("a_record_that_macos_adds", "__MACOSX/archive/._data.pkl", says="is outside of")
with_record("a_record_that_clears_the_terminal", "\x1b[2J\n", says="is outside of")
with_record("a_record_with_a_name_of_60_kb", "n" * 60_000, says="is outside of")
with_record("numbers_that_no_tensor_uses", f"{FOLDER}data/99")
with_record("the_other_byte_order", f"{FOLDER}byteorder", b"big", "in another order")
with_record("an_unknown_byte_order", f"{FOLDER}byteorder", b"middle", "in another order")
with_record("an_empty_byte_order", f"{FOLDER}byteorder", b"", "in another order")
with_record("numbers_one_byte_short", FIRST, FILES[FIRST][:-1])
with_record("numbers_one_byte_long", FIRST, FILES[FIRST] + b"\0")
with_record("no_numbers", FIRST, b"")
with_record("a_constant_of_torchscript", f"{FOLDER}constants.pkl", says="is a TorchScript program")


@refused(says=CUT)
def without_a_pickle(folder: Path) -> Path:
    return write_zip(folder, {name: data for name, data in FILES.items() if name != PICKLE})


@refused(says=CUT)
def without_the_numbers_of_a_tensor(folder: Path) -> Path:
    return write_zip(folder, {name: data for name, data in FILES.items() if name != FIRST})


@refused(says=CUT)
def with_a_pickle_in_upper_case(folder: Path) -> Path:
    return write_zip(folder, {name.replace("data.", "DATA."): d for name, d in FILES.items()})


@refused(says=CUT)
def an_archive_in_an_archive(folder: Path) -> Path:
    inside = write_zip(folder, FILES).read_bytes()
    return write_zip(folder, {"a/a.pth": inside})


@refused(says=CUT)
def an_archive_of_safetensors(folder: Path) -> Path:
    return write_zip(folder, {"a/model.safetensors": b"\2\0\0\0\0\0\0\0{}"})


@refused(says=CUT)
def an_archive_of_nothing(folder: Path) -> Path:
    return write_zip(folder, {})


# -------------------------------------------------------------------------------------- bombs


def bomb(name: str, files: dict[str, bytes], says: str) -> None:
    def write(folder: Path) -> Path:
        return write_zip(folder, files, zipfile.ZIP_DEFLATED)

    write.__name__ = name
    refused(write, says=says)


ZEROS, TIGHT = bytes(100_000_000), "is packed more than tightly"
WIDE = (
    START
    + dictionary(
        w=tensor(storage(length=25_000_000), shape=integers(25_000_000), strides=integers(1))
    )
    + END
)
bomb("a_bomb_of_numbers", archive(WIDE, {"0": ZEROS}), TIGHT)
bomb("a_bomb_of_a_pickle", archive(START + b"N" * 100_000_000 + END, {}), TIGHT)
bomb("a_bomb_in_an_unused_record", FILES | {f"{FOLDER}bomb": ZEROS}, TIGHT)
bomb(
    "a_pickle_of_many_operations_packed", archive(START + b"N" * 2**23, {}), "is too long a pickle"
)


@refused(says=TIGHT)
def a_bomb_of_1000_small_records(folder: Path) -> Path:
    bombs = {f"{FOLDER}{i}": bytes(100_000) for i in range(1000)}
    return write_zip(folder, FILES | bombs, zipfile.ZIP_DEFLATED)


for name in ("a_name_in_upper_case", "a_name_with_more_after_a_zero_byte"):

    def write(folder: Path, upper: bool = "upper" in name) -> Path:
        """PyTorch takes this name for that of another record."""
        path = write_zip(folder, FILES | {FIRST.upper() if upper else f"{FIRST}_more": NUMBERS})
        path.write_bytes(path.read_bytes().replace(b"0_more", b"0\0more"))
        return path

    write.__name__ = name
    refused(write, says="twice")


# ---------------------------------------------------------------------- forged byte by byte

LOCAL, CENTRAL = struct.Struct("<4s5H3L2H"), struct.Struct("<4s6H3L5H2L")
# Offset of a field in the local and in the central header of a record.
FLAGS, METHOD, SUM, PACKED, SIZE, OFFSET = (6, 8), (8, 10), (14, 16), (18, 20), (22, 24), (None, 42)


class Archive:
    """FILES in an archive, to be forged."""

    def __init__(self, folder: Path, method: int = zipfile.ZIP_STORED):
        self.path = write_zip(folder, FILES, method)
        self.data = bytearray(self.path.read_bytes())
        with zipfile.ZipFile(self.path) as file:
            self.begin = file.start_dir  # type: ignore[attr-defined]
            self.local = {info.filename: info.header_offset for info in file.infolist()}
        self.central, at = {}, self.begin
        for name in self.local:
            self.central[name] = at
            at += CENTRAL.size + sum(CENTRAL.unpack_from(self.data, at)[10:13])
        self.end = at

    def put(self, at: int, data: bytes) -> None:
        self.data[at : at + len(data)] = data

    def set(self, name: str, field: tuple, value: int, where: str = "both", width: int = 4) -> None:
        data = value.to_bytes(width, "little")
        if where != "central":
            self.put(self.local[name] + field[0], data)
        if where != "local":
            self.put(self.central[name] + field[1], data)

    def numbers(self, name: str) -> int:
        return self.local[name] + LOCAL.size + len(name)

    def write(self) -> Path:
        self.path.write_bytes(self.data)
        return self.path


def forged(says: str, method: int = zipfile.ZIP_STORED, ends=refused):
    """A case: the archive after a function has changed it."""

    def add(forge: Callable[[Archive], None]):
        def write(folder: Path) -> Path:
            whole = Archive(folder, method)
            forge(whole)
            return whole.write()

        write.__name__ = forge.__name__
        return ends(write) if ends is loads else refused(write, says=says)

    return add


@forged("", ends=loads)
def an_unchanged_archive(a: Archive) -> None:
    pass


@forged("is damaged: its record archive/data/0 has a wrong checksum")
def a_flipped_bit_in_the_numbers(a: Archive) -> None:
    a.data[a.numbers(FIRST) + 5] ^= 1


@forged("has a wrong checksum")
def a_flipped_bit_in_the_pickle(a: Archive) -> None:
    a.data[a.numbers(PICKLE) + len(FILES[PICKLE]) - 3] ^= 1


@forged("has a wrong checksum")
def a_flipped_bit_in_the_byte_order(a: Archive) -> None:
    a.data[a.numbers(f"{FOLDER}byteorder")] ^= 1


@forged("has a wrong checksum")
def zeros_where_a_download_left_a_gap(a: Archive) -> None:
    a.put(a.numbers(FIRST), bytes(512))


@forged("is", zipfile.ZIP_DEFLATED)
def a_flipped_bit_in_deflated_numbers(a: Archive) -> None:
    a.data[a.numbers(FIRST) + 50] ^= 1


@forged("has a wrong checksum")
def a_wrong_checksum_in_both_headers(a: Archive) -> None:
    a.set(FIRST, SUM, 0)


@forged(FORGED)
def a_wrong_checksum_in_the_local_header(a: Archive) -> None:
    a.set(FIRST, SUM, 0, "local")


@forged("is encrypted")
def an_encryption_bit(a: Archive) -> None:
    a.set(FIRST, FLAGS, 1, width=2)


@forged("is encrypted")
def an_encryption_bit_on_the_pickle(a: Archive) -> None:
    a.set(PICKLE, FLAGS, 1, width=2)


@forged(FORGED)
def an_encryption_bit_in_the_local_header(a: Archive) -> None:
    a.set(FIRST, FLAGS, 1, "local", width=2)


for bit, what in ((5, "patches"), (6, "strong_encryption"), (13, "hidden_headers")):

    def flag(a: Archive, bit: int = bit) -> None:
        a.set(FIRST, FLAGS, 1 << bit, width=2)

    flag.__name__ = f"a_flag_for_{what}"
    forged("is packed in an unknown way")(flag)

for method in (1, 6, 9, 14, 93, 99):

    def packed(a: Archive, method: int = method) -> None:
        a.set(FIRST, METHOD, method, width=2)

    packed.__name__ = f"packed_by_method_{method}"
    forged("is packed in an unknown way")(packed)


@forged("is")
def stored_numbers_marked_deflated(a: Archive) -> None:
    a.set(FIRST, METHOD, 8, width=2)


@forged(CUT, zipfile.ZIP_DEFLATED)
def deflated_numbers_marked_stored(a: Archive) -> None:
    a.set(FIRST, METHOD, 0, width=2)


@forged("has a wrong checksum", zipfile.ZIP_DEFLATED)
def deflated_numbers_marked_stored_and_as_long(a: Archive) -> None:
    """torch.load with mmap=True takes the compressed bytes for values."""
    a.set(FIRST, METHOD, 0, width=2)
    a.set(FIRST, SIZE, CENTRAL.unpack_from(a.data, a.central[FIRST])[8])


@forged(FORGED)
def marked_deflated_in_the_local_header_only(a: Archive) -> None:
    a.set(FIRST, METHOD, 8, "local", width=2)


@forged("is not as long as it says", zipfile.ZIP_DEFLATED)
def deflated_numbers_that_are_longer_than_claimed(a: Archive) -> None:
    a.set(FIRST, SIZE, len(FILES[FIRST]) - 4)


@forged("is not as long as it says", zipfile.ZIP_DEFLATED)
def deflated_numbers_that_are_shorter_than_claimed(a: Archive) -> None:
    a.set(FIRST, SIZE, len(FILES[FIRST]) + 4)


@forged(TIGHT, zipfile.ZIP_DEFLATED)
def deflated_numbers_that_claim_4_gb(a: Archive) -> None:
    a.set(FIRST, SIZE, 2**32 - 2)


@forged(CUT)
def stored_numbers_that_claim_4_gb(a: Archive) -> None:
    a.set(FIRST, SIZE, 2**32 - 2)
    a.set(FIRST, PACKED, 2**32 - 2)


@forged(CUT)
def sizes_in_64_bits_that_are_not_there(a: Archive) -> None:
    a.set(FIRST, SIZE, 2**32 - 1)


@forged(FORGED)
def a_local_checksum_of_ones_only(a: Archive) -> None:
    """All ones mean a 64-bit value in a size, but not in a checksum."""
    a.set(FIRST, SUM, 0xFFFFFFFF, "local")


@forged(FORGED)
def another_size_in_the_local_header(a: Archive) -> None:
    a.set(FIRST, SIZE, 4, "local")


@forged(FORGED)
def another_name_in_the_local_header(a: Archive) -> None:
    a.data[a.local[FIRST] + LOCAL.size + len(FIRST) - 1] = ord("1")


@forged(FORGED)
def another_pickle_in_the_local_header(a: Archive) -> None:
    a.put(a.local[PICKLE] + LOCAL.size, PICKLE.upper().encode())


@forged(FORGED)
def names_swapped_in_the_directory(a: Archive) -> None:
    a.data[a.central[FIRST] + CENTRAL.size + len(FIRST) - 1] = ord("1")
    a.data[a.central[f"{FOLDER}data/1"] + CENTRAL.size + len(FIRST) - 1] = ord("0")


@forged(FORGED)
def offsets_swapped_in_the_directory(a: Archive) -> None:
    a.set(FIRST, OFFSET, a.local[f"{FOLDER}data/1"], "central")
    a.set(f"{FOLDER}data/1", OFFSET, a.local[FIRST], "central")


@forged(CUT)
def a_name_that_is_not_utf_8(a: Archive) -> None:
    for at in (a.local[FIRST] + LOCAL.size, a.central[FIRST] + CENTRAL.size):
        a.put(at, b"\xff\xfe")


@forged(FORGED)
def no_local_header(a: Archive) -> None:
    a.put(a.local[FIRST], b"PK\3\5")


@forged(CUT)
def a_record_offset_past_the_end(a: Archive) -> None:
    a.set(FIRST, OFFSET, 2**31, "central")


@forged(FORGED)
def a_record_offset_inside_the_numbers(a: Archive) -> None:
    a.set(FIRST, OFFSET, a.local[FIRST] + 40, "central")


@forged("holds the record archive/data/0 twice")
def a_record_twice_in_the_directory(a: Archive) -> None:
    at = a.central[f"{FOLDER}data/1"]
    a.put(at, a.data[a.central[FIRST] : a.central[FIRST] + CENTRAL.size + len(FIRST)])


def doubled(name: str, first: Callable[[Path], bytes], second: Callable[[Path], bytes]) -> None:
    """A case: two pickles of the same name."""

    def write(folder: Path) -> Path:
        path = write_zip(folder, FILES | {PICKLE: first(folder), PICKLE[:-1] + "?": second(folder)})
        path.write_bytes(path.read_bytes().replace(PICKLE[:-1].encode() + b"?", PICKLE.encode()))
        return path

    write.__name__ = name
    refused(write, says=f"holds the record {PICKLE} twice")


def good(_: Path) -> bytes:
    return FILES[PICKLE]


def bad(folder: Path) -> bytes:
    return START + call("posix.system", text(touch(folder))) + END


doubled("two_pickles_of_which_the_first_is_a_payload", bad, good)
doubled("two_pickles_of_which_the_second_is_a_payload", good, bad)
doubled("the_same_pickle_twice", good, good)


@refused(says="overlaps another one")
def a_record_inside_another(folder: Path) -> Path:
    """A complete record with its local header, inside the data of another record."""
    name, data = b"a/note", b"hidden"
    inner = LOCAL.pack(
        b"PK\3\4", 20, 0, 0, 0, 33, zlib.crc32(data), len(data), len(data), len(name), 0
    )
    path = write_zip(folder, archive(START + dictionary(w=tensor()) + END, {"0": NUMBERS}))
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("a/carrier", inner + name + data)
        file.writestr("a/note", data)
    raw = bytearray(path.read_bytes())
    entry = raw.rindex(b"PK\1\2")
    raw[entry + 42 : entry + 46] = raw.index(inner).to_bytes(4, "little")
    path.write_bytes(raw)
    return path


@refused(says="overlaps another one")
def a_thousand_nested_records(folder: Path) -> Path:
    """A bomb without compression: every record is valid and contains the next one."""
    name = "a/{:04}".format
    data, headers = bytes(1000), []
    for i in reversed(range(1000)):
        n = name(i).encode()
        header = LOCAL.pack(
            b"PK\3\4", 20, 0, 0, 0, 33, zlib.crc32(data), len(data), len(data), len(n), 0
        )
        data = header + n + data
        headers.append((n, len(data)))
    whole, directory = data, []
    for n, left in headers:
        at, size = len(whole) - left, left - LOCAL.size - len(n)
        total = zlib.crc32(whole[at + LOCAL.size + len(n) :])
        entry = (b"PK\1\2", 20, 20, 0, 0, 0, 33, total, size, size, len(n), 0, 0, 0, 0, 0, at)
        directory.append(CENTRAL.pack(*entry) + n)
    end = struct.pack(
        "<4s4H2LH", b"PK\5\6", 0, 0, 1000, 1000, len(b"".join(directory)), len(whole), 0
    )
    (folder / "a.pth").write_bytes(whole + b"".join(directory) + end)
    return folder / "a.pth"


# ------------------------------------------------------------------------------- the directory


@forged(CUT)
def bytes_before_the_archive(a: Archive) -> None:
    a.data[:0] = b"#!/bin/sh\necho hello\n"


@forged(CUT)
def an_archive_before_the_archive(a: Archive) -> None:
    a.data[:0] = a.data


@forged(CUT)
def bytes_after_the_archive(a: Archive) -> None:
    a.data += b"\0"


@forged(CUT)
def an_archive_cut_in_half(a: Archive) -> None:
    del a.data[len(a.data) // 2 :]


@forged(CUT)
def an_archive_without_its_last_byte(a: Archive) -> None:
    del a.data[-1]


@forged(CUT)
def an_archive_without_an_end(a: Archive) -> None:
    del a.data[a.end :]


@forged(CUT)
def an_archive_without_a_directory(a: Archive) -> None:
    del a.data[a.begin : a.end]


@forged(CUT)
def an_archive_without_its_first_megabyte(a: Archive) -> None:
    del a.data[:100]


@forged(CUT)
def an_archive_whose_middle_is_missing(a: Archive) -> None:
    del a.data[a.numbers(FIRST) : a.numbers(FIRST) + 100]


@forged(CUT)
def only_the_first_four_bytes(a: Archive) -> None:
    del a.data[4:]


for field, at, width, value in (
    ("a_number_of_records_too_small", 8, 4, 0x00010001),
    ("a_number_of_records_too_large", 8, 4, 0x00990099),
    ("two_numbers_of_records", 8, 2, 1),
    ("a_directory_too_short", 12, 4, 100),
    ("a_directory_of_4_gb", 12, 4, 2**32 - 1),
    ("a_directory_at_the_beginning", 16, 4, 0),
    ("a_directory_past_the_end", 16, 4, 2**32 - 2),
    ("a_comment_that_is_not_there", 20, 2, 7),
):

    def change(a: Archive, at: int = at, width: int = width, value: int = value) -> None:
        a.put(a.end + at, value.to_bytes(width, "little"))

    change.__name__ = field
    forged(CUT)(change)


def in_64_bits(
    a: Archive, count: int = 0, begin: int = 0, locator: int = 0, length: int = 44
) -> None:
    """Insert 64-bit end records before the 32-bit one, with these errors added to their fields."""
    number = len(a.local) + count
    sizes = number, number, a.end - a.begin, a.begin + begin
    long = struct.pack("<4sQ2H2L4Q", b"PK\6\6", length, 45, 45, 0, 0, *sizes)
    a.data[a.end : a.end] = long + struct.pack("<4sLQL", b"PK\6\7", 0, a.end + locator, 1)


@forged("", ends=loads)
def a_directory_in_64_bits(a: Archive) -> None:
    in_64_bits(a)


@forged(CUT)
def directories_in_32_and_64_bits_of_two_lengths(a: Archive) -> None:
    in_64_bits(a, count=-1)


@forged(CUT)
def directories_in_32_and_64_bits_at_two_offsets(a: Archive) -> None:
    in_64_bits(a, begin=1)


@forged(CUT)
def directories_in_32_and_64_bits_of_which_one_has_16_bits_of_ones(a: Archive) -> None:
    """16 ones mean a 64-bit value in a number of records, but not in a length."""
    in_64_bits(a)
    a.put(len(a.data) - 10, (0xFFFF).to_bytes(4, "little"))


@forged(CUT)
def a_directory_in_64_bits_that_is_not_there(a: Archive) -> None:
    in_64_bits(a, locator=2**62)


@forged(CUT)
def a_directory_in_64_bits_that_is_elsewhere(a: Archive) -> None:
    in_64_bits(a, locator=-56)


@forged(CUT)
def a_directory_in_64_bits_with_more_after_it(a: Archive) -> None:
    in_64_bits(a, length=43)


@refused(says=CUT)
def an_archive_of_100001_records(folder: Path) -> Path:
    entry = CENTRAL.pack(b"PK\1\2", *[0] * 16)
    begin, count = 4, 100_001
    long = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, count * 46, begin)
    at = begin + count * 46
    end = struct.pack("<4sLQL", b"PK\6\7", 0, at, 1)
    end += struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, count * 46, begin, 0)
    (folder / "a.pth").write_bytes(b"PK\3\4" + entry * count + long + end)
    return folder / "a.pth"


@loads(weights=W)
def a_file_for_an_older_torch(folder: Path) -> Path:
    files = archive(START + dictionary(w=tensor()) + END, {"0": NUMBERS})
    return write_zip(
        folder, {name: files[name] for name in ("a/data.pkl", "a/data/0", "a/version")}
    )
