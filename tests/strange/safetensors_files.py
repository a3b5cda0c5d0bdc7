"""safetensors files: eight bytes with the header's length, a JSON header, then the data."""

import json
import struct
from pathlib import Path
from typing import Any

from safetensors.torch import save

from strange.harness import WEIGHTS, loads, refused

WHOLE = save(WEIGHTS)
LENGTH = int.from_bytes(WHOLE[:8], "little")
DATA = WHOLE[8 + LENGTH :]
NOT_SAFETENSORS = "is cut off or not a safetensors file"


def header() -> dict[str, Any]:
    """The header of the right file, to be modified."""
    return json.loads(WHOLE[8 : 8 + LENGTH])


def write(folder: Path, header: Any, data: bytes = DATA, length: int | None = None) -> Path:
    """header: JSON as text or bytes, or an object to convert; length: the claimed length."""
    text = header if isinstance(header, (str, bytes)) else json.dumps(header)
    text = text.encode() if isinstance(text, str) else text
    length = len(text) if length is None else length
    path = folder / "a.safetensors"
    path.write_bytes(struct.pack("<Q", length) + text + data)
    return path


def write_with(folder: Path, data: bytes = DATA, name: str = "conv.bias", **entries: Any) -> Path:
    """Write the right file with other entries for one tensor. None removes an entry."""
    spoilt = header()
    spoilt[name] |= entries
    spoilt[name] = {key: value for key, value in spoilt[name].items() if value is not None}
    return write(folder, spoilt, data)


@loads
def safetensors_as_the_library_saves_it(folder: Path) -> Path:
    return write(folder, WHOLE[8 : 8 + LENGTH])


@loads
def safetensors_with_spaces_after_the_header(folder: Path) -> Path:
    return write(folder, json.dumps(header()) + " " * 999)


@loads
def safetensors_with_a_header_in_another_order(folder: Path) -> Path:
    return write(folder, dict(reversed(header().items())))


@loads
def safetensors_with_escaped_names(folder: Path) -> Path:
    escaped = "".join(f"\\u{ord(c):04x}" for c in "conv.bias")
    return write(folder, json.dumps(header()).replace("conv.bias", escaped))


# ------------------------------------------------------------------------------------- lengths


@refused(says=NOT_SAFETENSORS)
def a_header_length_one_too_large(folder: Path) -> Path:
    return write(folder, header(), length=len(json.dumps(header())) + 1)


@refused(says=NOT_SAFETENSORS)
def a_header_length_one_too_small(folder: Path) -> Path:
    return write(folder, header(), length=len(json.dumps(header())) - 1)


@refused(says=NOT_SAFETENSORS)
def a_header_length_of_zero(folder: Path) -> Path:
    return write(folder, header(), length=0)


@refused(says=NOT_SAFETENSORS)
def a_header_length_that_is_negative_when_signed(folder: Path) -> Path:
    return write(folder, header(), length=2**64 - 8)


@refused(says=NOT_SAFETENSORS)
def a_header_length_of_2_to_the_63(folder: Path) -> Path:
    return write(folder, header(), length=2**63)


@refused(says=NOT_SAFETENSORS)
def a_header_that_claims_100_megabytes(folder: Path) -> Path:
    return write(folder, header(), length=100_000_000)


@refused(says=NOT_SAFETENSORS)
def a_header_that_ends_past_the_file(folder: Path) -> Path:
    return write(folder, header(), length=len(WHOLE) + 1)


@refused(says=NOT_SAFETENSORS)
def a_header_of_20_megabytes_of_spaces(folder: Path) -> Path:
    return write(folder, json.dumps(header()) + " " * 20_000_000)


@refused(says=NOT_SAFETENSORS)
def a_header_length_alone(folder: Path) -> Path:
    return write(folder, b"", b"")


@refused(says=NOT_SAFETENSORS)
def seven_bytes_of_the_header_length(folder: Path) -> Path:
    (folder / "a.safetensors").write_bytes(WHOLE[:7])
    return folder / "a.safetensors"


@refused(says="is empty")
def an_empty_safetensors_file(folder: Path) -> Path:
    (folder / "a.safetensors").write_bytes(b"")
    return folder / "a.safetensors"


@refused(says=NOT_SAFETENSORS)
def half_of_a_safetensors_file(folder: Path) -> Path:
    (folder / "a.safetensors").write_bytes(WHOLE[: len(WHOLE) // 2])
    return folder / "a.safetensors"


@refused(says=NOT_SAFETENSORS)
def half_of_a_safetensors_header(folder: Path) -> Path:
    (folder / "a.safetensors").write_bytes(WHOLE[: LENGTH // 2])
    return folder / "a.safetensors"


@refused(says=NOT_SAFETENSORS)
def a_safetensors_file_without_its_last_byte(folder: Path) -> Path:
    return write(folder, header(), DATA[:-1])


@refused(says=NOT_SAFETENSORS)
def a_safetensors_file_with_an_extra_byte(folder: Path) -> Path:
    return write(folder, header(), DATA + b"\0")


@refused(says=NOT_SAFETENSORS)
def two_safetensors_files_one_after_the_other(folder: Path) -> Path:
    return write(folder, header(), DATA + WHOLE)


@refused(says=NOT_SAFETENSORS)
def a_safetensors_file_after_other_bytes(folder: Path) -> Path:
    (folder / "a.safetensors").write_bytes(b"\n" + WHOLE)
    return folder / "a.safetensors"


# ------------------------------------------------------------------------------------- offsets


def bytes_of(name: str) -> tuple[int, int]:
    begin, end = header()[name]["data_offsets"]
    return begin, end


@refused(says=NOT_SAFETENSORS)
def a_gap_between_two_tensors(folder: Path) -> Path:
    begin, end = bytes_of("conv.bias")
    moved = header()
    for name, entry in moved.items():
        if name != "__metadata__" and entry["data_offsets"][0] >= end:
            entry["data_offsets"] = [offset + 8 for offset in entry["data_offsets"]]
    return write(folder, moved, DATA[:end] + b"\0" * 8 + DATA[end:])


@refused(says=NOT_SAFETENSORS)
def a_gap_before_the_first_tensor(folder: Path) -> Path:
    moved = header()
    for name in WEIGHTS:
        moved[name]["data_offsets"] = [offset + 8 for offset in moved[name]["data_offsets"]]
    return write(folder, moved, b"\0" * 8 + DATA)


@refused(says=NOT_SAFETENSORS)
def two_tensors_at_one_offset(folder: Path) -> Path:
    return write(folder, header() | {"copy": header()["conv.bias"]})


@refused(says=NOT_SAFETENSORS)
def two_tensors_that_overlap_by_a_byte(folder: Path) -> Path:
    begin, end = bytes_of("conv.bias")
    return write_with(folder, data_offsets=[begin - 1, end - 1])


@refused(says=NOT_SAFETENSORS)
def reversed_offsets(folder: Path) -> Path:
    begin, end = bytes_of("conv.bias")
    return write_with(folder, data_offsets=[end, begin])


@refused(says=NOT_SAFETENSORS)
def negative_offsets(folder: Path) -> Path:
    return write_with(folder, data_offsets=[-32, 0])


@refused(says=NOT_SAFETENSORS)
def offsets_at_the_end_of_64_bits(folder: Path) -> Path:
    return write_with(folder, data_offsets=[2**64 - 32, 2**64])


@refused(says=NOT_SAFETENSORS)
def offsets_that_overflow_by_the_header(folder: Path) -> Path:
    return write_with(folder, data_offsets=[2**64 - 33, 2**64 - 1])


@refused(says=NOT_SAFETENSORS)
def offsets_that_are_fractions(folder: Path) -> Path:
    begin, end = bytes_of("conv.bias")
    return write_with(folder, data_offsets=[begin + 0.5, end + 0.5])


@refused(says=NOT_SAFETENSORS)
def three_offsets(folder: Path) -> Path:
    return write_with(folder, data_offsets=[*bytes_of("conv.bias"), 0])


@refused(says=NOT_SAFETENSORS)
def offsets_that_are_strings(folder: Path) -> Path:
    return write_with(folder, data_offsets=["0", "32"])


@refused(says=NOT_SAFETENSORS)
def a_tensor_without_offsets(folder: Path) -> Path:
    return write_with(folder, data_offsets=None)


# --------------------------------------------------------------------------- types and shapes


@refused(says=NOT_SAFETENSORS)
def a_shape_that_is_larger_than_its_data(folder: Path) -> Path:
    return write_with(folder, shape=[9])


@refused(says=NOT_SAFETENSORS)
def a_shape_that_is_smaller_than_its_data(folder: Path) -> Path:
    return write_with(folder, shape=[7])


@refused(says=NOT_SAFETENSORS)
def a_shape_whose_product_overflows_to_the_right_size(folder: Path) -> Path:
    return write_with(folder, shape=[2**32, 2**32, 8])


@refused(says=NOT_SAFETENSORS)
def a_negative_shape(folder: Path) -> Path:
    return write_with(folder, shape=[-2, -4])


@refused(says=NOT_SAFETENSORS)
def a_shape_that_is_a_number(folder: Path) -> Path:
    return write_with(folder, shape=8)


@refused(says=NOT_SAFETENSORS)
def a_tensor_without_a_shape(folder: Path) -> Path:
    return write_with(folder, shape=None)


@refused(says=NOT_SAFETENSORS)
def an_unknown_type(folder: Path) -> Path:
    return write_with(folder, dtype="F33")


@refused(says=NOT_SAFETENSORS)
def a_type_in_lower_case(folder: Path) -> Path:
    return write_with(folder, dtype="f32")


@refused(says=NOT_SAFETENSORS)
def a_type_that_is_null(folder: Path) -> Path:
    return write(folder, json.dumps(header()).replace('"F32"', "null"))


@refused(says=NOT_SAFETENSORS)
def a_type_of_six_bits(folder: Path) -> Path:
    entry = {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [len(DATA), len(DATA) + 3]}
    return write(folder, header() | {"six": entry}, DATA + b"\0" * 3)


# ---------------------------------------------------------------------------------------- JSON


@refused(says=NOT_SAFETENSORS)
def a_duplicate_name_in_the_header(folder: Path) -> Path:
    """Both entries are valid, so readers could differ in which one they take."""
    entry = json.dumps(header()["conv.bias"])
    other = entry.replace("[8]", "[2, 4]")
    return write(folder, json.dumps(header()).replace(entry, f'{entry}, "conv.bias": {other}'))


@refused(says=NOT_SAFETENSORS)
def a_duplicate_shape_in_an_entry(folder: Path) -> Path:
    text = json.dumps(header())
    return write(folder, text.replace('"shape": [8]', '"shape": [8], "shape": [8]'))


@refused(says=NOT_SAFETENSORS)
def duplicate_metadata(folder: Path) -> Path:
    text = json.dumps(header() | {"__metadata__": {}})
    return write(folder, text[:-1] + ', "__metadata__": {"nanocontrol": "{}"}}')


@refused(says=NOT_SAFETENSORS)
def a_header_that_is_not_utf_8(folder: Path) -> Path:
    return write(folder, json.dumps(header()).encode().replace(b"conv.bias", b"conv.bia\xff"))


@refused(says=NOT_SAFETENSORS)
def a_header_in_utf_16(folder: Path) -> Path:
    return write(folder, json.dumps(header()).encode("utf-16"))


@refused(says=NOT_SAFETENSORS)
def a_header_with_a_byte_order_mark(folder: Path) -> Path:
    return write(folder, json.dumps(header()).encode("utf-8-sig"))


@loads  # the library accepts it, although the specification forbids it
def a_header_that_begins_with_a_space(folder: Path) -> Path:
    return write(folder, " " + json.dumps(header()))


@refused(says=NOT_SAFETENSORS)
def a_header_that_is_a_list(folder: Path) -> Path:
    return write(folder, [header()])


@refused(says=NOT_SAFETENSORS)
def a_header_that_is_null(folder: Path) -> Path:
    return write(folder, None)


@refused(says=NOT_SAFETENSORS)
def a_header_with_a_zero_byte_in_a_name(folder: Path) -> Path:
    return write(folder, json.dumps(header()).replace("conv.bias", "conv.bias\0"))


@refused(says=NOT_SAFETENSORS)
def a_header_with_half_a_surrogate(folder: Path) -> Path:
    return write(folder, json.dumps(header()).replace("conv.bias", "conv.bias\\ud800"))


@refused(says=NOT_SAFETENSORS)
def a_header_with_nan(folder: Path) -> Path:
    return write(folder, json.dumps(header()).replace("[8]", "[NaN]"))


@refused(says=NOT_SAFETENSORS)
def a_header_of_100_000_levels(folder: Path) -> Path:
    return write(folder, '{"a":' * 100_000 + "1" + "}" * 100_000)


@refused(says=NOT_SAFETENSORS)
def a_header_with_a_comment(folder: Path) -> Path:
    return write(folder, json.dumps(header())[:-1] + " /* */}")


@refused(says=NOT_SAFETENSORS)
def metadata_of_safetensors_that_is_not_text(folder: Path) -> Path:
    return write(folder, header() | {"__metadata__": {"nanocontrol": {"num_heads": 4}}})


@refused(says=NOT_SAFETENSORS)
def metadata_of_safetensors_that_is_a_list(folder: Path) -> Path:
    return write(folder, header() | {"__metadata__": ["nanocontrol"]})


@refused(says=NOT_SAFETENSORS)
def a_tensor_called_metadata(folder: Path) -> Path:
    spoilt = header()
    spoilt["__metadata__"] = spoilt.pop("conv.bias")
    return write(folder, spoilt)


@loads(weights={})
def a_safetensors_file_without_tensors(folder: Path) -> Path:
    return write(folder, {}, b"")
