"""With every folder of the outer ring deleted, the scripts and the tests of the inner rings run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_house import OUTER

from conftest import ROOT

pytestmark = pytest.mark.slow
FILES = ["train.py", "sample.py", "setup.cfg", "pyproject.toml", "README.md"]
# An editable install finds a missing folder in the tree that was installed. This file is imported
# when Python starts, in the processes that tests start as well, and takes that finder away.
WITHOUT_EDITABLE = """
import sys
sys.meta_path[:] = [
    finder for finder in sys.meta_path
    if not getattr(finder, "__module__", type(finder).__module__).startswith("__editable__")
]
"""
NOT_FOUND = """
from importlib.util import find_spec
from pathlib import Path
import nanocontrol
assert Path(nanocontrol.__file__).is_relative_to(Path.cwd()), nanocontrol.__file__
found = [name for name in {outer} if find_spec(f"nanocontrol.{{name}}")]
assert not found, found
"""


@pytest.fixture(scope="module")
def inner(tmp_path_factory) -> Path:
    """A copy of the repository without the outer ring and its tests."""
    copy = tmp_path_factory.mktemp("copy")
    leave_out = shutil.ignore_patterns("__pycache__", *OUTER, "outer")
    for folder in "nanocontrol", "tests":
        shutil.copytree(ROOT / folder, copy / folder, ignore=leave_out)
    (copy / "weights").mkdir()
    for file in [*map(ROOT.joinpath, FILES), *(ROOT / "weights").glob("nano*.safetensors")]:
        shutil.copy(file, copy / file.relative_to(ROOT))
    (copy / "site").mkdir()
    (copy / "site" / "sitecustomize.py").write_text(WITHOUT_EDITABLE)
    call(copy, "-c", NOT_FOUND.format(outer=OUTER))
    return copy


def call(copy: Path, *command: str) -> str:
    """Run Python in the copy -> its output."""
    environment = os.environ | {"PYTHONPATH": str(copy / "site")}
    command = [sys.executable, *command]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_train_needs_nothing_of_the_outer_ring(inner):
    flags = ["--steps", "2", "--batch-size", "2", "--scenes", "4", "--device", "cpu"]
    call(inner, "train.py", *flags, "--out", "runs/short")
    assert (inner / "runs" / "short" / "control.safetensors").exists()


def test_sample_needs_nothing_of_the_outer_ring(inner):
    call(inner, "sample.py", "--n", "1", "--steps", "2", "--device", "cpu")
    assert (inner / "out" / "sheet.png").exists()


def test_the_tests_of_the_inner_rings_need_nothing_of_the_outer_one(inner):
    """All are collected, and the fast ones pass."""
    call(inner, "-m", "pytest", "-q", "--collect-only", "-m", "")
    call(inner, "-m", "pytest", "-q")
