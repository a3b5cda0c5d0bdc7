"""Untrusted files: reading one gives the right weights, or a one-line error that names the file.

The cases are in strange/. strange/README.md describes how they are run.
"""

import pickle
from contextlib import suppress
from importlib import import_module

import pytest

from strange.harness import CASES, KINDS, MARKER, Server, can_try
from strange.making import END, START, touch
from strange.pickles import PAYLOADS

for kind in KINDS:
    import_module(f"strange.{kind}")

pytestmark = pytest.mark.skipif(not can_try(), reason="needs Linux, which reports peak memory")


@pytest.fixture(scope="session")
def server():
    with Server() as server:
        yield server


LONGEST = [  # 0.5 to 3 seconds each
    "a_bomb_of_1000_small_records",
    "a_bomb_of_a_pickle",
    "a_bomb_of_numbers",
    "a_bomb_in_an_unused_record",
    "a_controlnet_of_10_000_blocks",
    "fifty_thousand_tensors_of_one_storage",
    "a_million_operations_and_one",
    "a_pickle_of_many_operations_packed",
    "a_pickle_without_an_end",
    "a_tensor_that_is_jagged",
    "a_torchscript_program",
    "a_zip_as_torch_saves_it",
    "with_20000_more_records",
]
assert CASES.keys() >= {*LONGEST}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name in LONGEST else name for name in CASES],
)
def test_a_strange_file_gives_the_right_weights_or_one_line(server, name, tmp_path):
    assert server.complaint(name, tmp_path) == ""


@pytest.mark.parametrize("name", PAYLOADS)
@pytest.mark.filterwarnings("ignore")
def test_payloads_run_where_pickles_are_executed(name, tmp_path):
    with suppress(Exception):
        pickle.loads(START + PAYLOADS[name](touch(tmp_path)) + END)
    assert (tmp_path / MARKER).exists()


def complaints(server, numbers, folder) -> dict[int, str]:
    """Read randomly damaged files -> complaint by number of the file, for those that went wrong."""
    found = {}
    for number in numbers:
        (place := folder / str(number)).mkdir()
        if said := server.complaint(str(number), place):
            found[number] = said
    return found


def test_randomly_damaged_files_are_safe_to_read(server, tmp_path):
    assert complaints(server, range(100), tmp_path) == {}


@pytest.mark.long
def test_5000_randomly_damaged_files_are_safe_to_read(server, tmp_path):
    assert complaints(server, range(5000), tmp_path) == {}
