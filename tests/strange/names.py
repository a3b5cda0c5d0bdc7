"""Names of tensors and files, and metadata: untrusted text that could be printed."""

import os
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from nanocontrol.nano.model import condition_of
from strange.harness import WEIGHTS, loads, refused
from strange.networks import (
    BASE_FILE,
    CONTROL,
    CONTROL_FILE,
    UNET,
    read_base_file,
    read_control_file,
)

refused_in_control = partial(refused, read=read_control_file)
NUMBER = torch.ones(1)


def saved(tensors: dict, folder: Path, metadata: dict | None = None) -> Path:
    save_file(tensors, folder / "a.safetensors", metadata)
    return folder / "a.safetensors"


# --------------------------------------------------------------------------- names of tensors

STRANGE_NAMES = {
    "that_clears_the_terminal": "\x1b[2J\x1b[H",
    "that_changes_the_window_title": "\x1b]0;gone\x07",
    "with_a_line_break": "weight\nsample.py: all is well",
    "with_a_carriage_return": "weight\rsample.py: all is well",
    "with_a_zero_byte": "weight\0",
    "that_is_displayed_right_to_left": "weight\u202egnorw",
    "with_a_paragraph_separator": "weight\u2029",
    "with_an_8_bit_control_character": "weight\x9b2J",
    "of_5_megabytes": "w" * 5_000_000,
    "of_5_megabytes_of_words": "w " * 2_500_000,
    "of_5_megabytes_of_line_breaks": "\n" * 5_000_000,
    "that_is_empty": "",
    "in_other_scripts": "вес.重み.🙂",
}
for kind, name in STRANGE_NAMES.items():

    def in_a_plain_file(folder: Path, name: str = name) -> Path:
        return saved(WEIGHTS | {name: NUMBER}, folder)

    def in_a_control(folder: Path, name: str = name) -> Path:
        return saved(CONTROL_FILE | {"control_model." + name: NUMBER}, folder)

    def next_to_a_control(folder: Path, name: str = name) -> Path:
        return saved(CONTROL_FILE | {name: NUMBER}, folder)

    in_a_plain_file.__name__ = f"a_name_{kind}"
    loads(in_a_plain_file, weights=WEIGHTS | {name: NUMBER})
    in_a_control.__name__ = f"a_name_{kind}_in_a_controlnet"
    refused_in_control(in_a_control, says="holds 1 tensors without a place")
    next_to_a_control.__name__ = f"a_name_{kind}_next_to_a_controlnet"
    refused_in_control(next_to_a_control, says="holds 1 tensors without a place")


@refused_in_control(says="has the shape [1]")
def a_wrong_shape_under_a_name_of_a_controlnet(folder: Path) -> Path:
    return saved(CONTROL_FILE | {"control_model.time_embed.0.bias": NUMBER}, folder)


@refused_in_control(says="holds only")
def only_a_name_of_5_megabytes(folder: Path) -> Path:
    return saved({"w" * 5_000_000: NUMBER}, folder)


@refused(read=read_base_file, says="holds only")
def only_a_name_that_clears_the_terminal(folder: Path) -> Path:
    return saved({"\x1b[2J": NUMBER}, folder)


# ----------------------------------------------------------------------------- names of files


def named(name: str, folder: Path) -> Path:
    return saved(CONTROL_FILE, folder).rename(folder / name)


FILE_NAMES = {
    "with_spaces": "my  model (1).safetensors",
    "in_other_scripts": "модель 重み 🙂.safetensors",
    "of_250_letters": "m" * 238 + ".safetensors",
    "with_a_line_break": "a\nb.safetensors",
    "that_clears_the_terminal": "\x1b[2J.safetensors",
    "that_is_an_option": "--help.safetensors",
}
for kind, name in FILE_NAMES.items():

    def good(folder: Path, name: str = name) -> Path:
        return named(name, folder)

    def bad(folder: Path, name: str = name) -> Path:
        (folder / name).write_bytes(b"not a model")
        return folder / name

    good.__name__ = f"a_model_in_a_file_name_{kind}"
    loads(good, read=read_control_file, weights=CONTROL)
    bad.__name__ = f"no_model_in_a_file_name_{kind}"
    refused(bad, says="is cut off or not a safetensors file")


@refused(says="not valid UTF-8")  # the library cannot open it
def a_model_in_a_file_name_that_is_not_utf_8(folder: Path) -> Path:
    return named(os.fsdecode(b"a\xff.safetensors"), folder)


@refused(says="does not exist")
def a_file_name_that_is_too_long_for_any_disk(folder: Path) -> Path:
    return folder / ("m" * 5_000 + ".safetensors")


@refused(says="does not exist")
def a_file_name_with_a_zero_byte(folder: Path) -> Path:
    return folder / "a\0.safetensors"


@loads(read=read_control_file, weights=CONTROL)
def a_model_without_an_ending(folder: Path) -> Path:
    return named("model", folder)


@loads(read=read_control_file, weights=CONTROL)
def a_model_with_an_ending_that_clears_the_terminal(folder: Path) -> Path:
    return named("model.\x1b[2J", folder)


# ------------------------------------------------------------------------------- our metadata


def with_metadata(text: str, folder: Path) -> Path:
    return saved(CONTROL_FILE, folder, {"nanocontrol": text})


DEEP = 100_000
STRANGE_METADATA = {
    "that_is_not_json": "num_heads: 8",
    "that_is_empty": "",
    "that_is_half_of_json": '{"num_heads": 8',
    "that_is_a_list": "[1]",
    "that_is_an_empty_list": "[]",
    "that_is_a_list_of_pairs": '[["num_heads", 8]]',
    "that_is_a_number": "8",
    "that_is_a_word": '"num_heads"',
    "that_is_null": "null",
    "of_100_000_levels": "[" * DEEP + "]" * DEEP,
    "of_100_000_levels_in_an_entry": '{"note": ' + "[" * DEEP + "]" * DEEP + "}",
    "with_a_number_of_100_000_digits": '{"guidance": ' + "9" * 100_000 + "}",
    "with_a_number_of_1_000_digits": '{"guidance": ' + "9" * 1_000 + "}",
    "with_a_word_of_5_megabytes": '{"prediction": "' + "v" * 5_000_000 + '"}',
    "with_a_word_that_clears_the_terminal": '{"prediction": "\\u001b[2J"}',
}
NO_ARCHITECTURE = ["3", "64", "1" * 400]  # heads and groups that do not divide the channels
WRONG_VALUES = {
    "num_heads": ["0", "3", "-8", "8.0", "true", "null", '"x"', "[8]", "{}", "NaN", "1" * 400],
    "norm_groups": ["0", "3", "-32", "32.0", "true", "null", '"x"', "[32]", "64", "1e999"],
    "scale_factor": ["0", "-0.18", "1e999", "1e-300", "NaN", "null", "true", '"x"', "[1]"],
    "guidance": ["null", '"x"', "true", "1e999", "-Infinity", "NaN", "[9]", "1" * 400],
    "size": ["-64", "0", "32", "100", "64.0", "null", "true", '"x"', "[64]", "64" + "0" * 400],
    "prediction": ['"x0"', '"auto"', '""', "null", "1", "true", '["eps"]', '{"eps": 1}'],
    "condition": ["null", "1", '["canny"]', "{}"],
}


def refused_metadata(kind: str, text: str, says: str) -> None:
    def write(folder: Path) -> Path:
        return with_metadata(text, folder)

    write.__name__ = f"metadata_{kind}"
    refused_in_control(write, says=says)


for kind, text in STRANGE_METADATA.items():
    refused_metadata(kind, text, "")
for name, values in WRONG_VALUES.items():
    for i, value in enumerate(values):
        heads = name in ("num_heads", "norm_groups") and value in NO_ARCHITECTURE
        says = "is of an unknown architecture" if heads else f"{name} is "
        refused_metadata(f"whose_{name}_is_wrong_{i}", f'{{"{name}": {value}}}', says)


@loads(read=read_control_file, weights=CONTROL)
def metadata_of_another_program(folder: Path) -> Path:
    return saved(CONTROL_FILE, folder, {"modelspec.title": "\x1b[2J", "nanocontrol ": "x"})


@loads(read=read_control_file, weights=CONTROL)
def metadata_with_unknown_entries(folder: Path) -> Path:
    return with_metadata('{"num_heads": 8, "author": ["\\u001b"], "licence": null}', folder)


@loads(read=read_base_file, weights=UNET)
def metadata_with_extreme_valid_values(folder: Path) -> Path:
    text = '{"scale_factor": 1, "guidance": -1, "size": 8192, "prediction": "v"}'
    return saved(BASE_FILE, folder, {"nanocontrol": text})


def read_condition(path: Path) -> dict[str, Tensor]:
    assert condition_of(path) is None
    return {}


@refused(read=read_condition, says="names no condition")
def a_condition_that_clears_the_terminal(folder: Path) -> Path:
    return with_metadata('{"condition": "\\u001b[2J"}', folder)
