"""Rules that keep the code a place where one finds the way."""

import ast
import io
import tokenize
from pathlib import Path

import pytest

from conftest import ROOT

PAPER = {"unet", "controlnet", "schedulers", "sampling", "vae", "clip", "stable_diffusion"}
PAPER |= {"checkpoint", "__init__"}
# A file imports from its own room and from those before it.
ROOMS = [
    "plumbing",
    "formats",
    "paper",
    "training",
    "nano",
    "commands",
    "scripts",
    "tools",
    "doctor",
    "experiments",
]
FILES = [*sorted((ROOT / "nanocontrol").rglob("*.py")), ROOT / "train.py", ROOT / "sample.py"]
CORE_LINES = 915  # of code, in the paper's eight files


def room_of(module: list[str]) -> str:
    """Of a dotted name, split: nanocontrol.nano.world lives in nano, nanocontrol.unet in paper."""
    if module[0] != "nanocontrol":
        return "scripts"
    if len(module) == 1 or module[1] in PAPER or module[1][0].isupper():
        return "paper"
    return module[1] if module[1] in ROOMS else "paper"


def imports_of(file: Path) -> list[list[str]]:
    """The project's modules that it imports, each as a split name."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name.split(".") for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            found += [[*node.module.split("."), alias.name] for alias in node.names]
    return [name for name in found if name[0] in ("nanocontrol", "train", "sample")]


def code_lines(file: Path) -> set[int]:
    """The numbers of its lines that hold code: no blanks, comments or docstrings."""
    source = file.read_text()
    lines: set[int] = set()
    passed_over = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in passed_over:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if text and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, node.end_lineno + 1))
    return lines


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_one_way(file):
    own = room_of(list(file.relative_to(ROOT).with_suffix("").parts))
    for name in imports_of(file):
        other = room_of(name)
        calls_scripts = other == "scripts" and (own == "experiments" or file.stem == "demo")
        way = f"{file.relative_to(ROOT)} imports {'.'.join(name)}"
        assert ROOMS.index(other) <= ROOMS.index(own) or calls_scripts, way


def test_plumbing_knows_nothing_of_the_project():
    for file in (ROOT / "nanocontrol" / "plumbing").glob("*.py"):
        assert all(name[:2] == ["nanocontrol", "plumbing"] for name in imports_of(file)), file


def test_the_core_can_be_read_in_one_sitting():
    files = [file for file in (ROOT / "nanocontrol").glob("*.py") if file.stem != "__init__"]
    assert {file.stem for file in files} == PAPER - {"__init__"}
    lines = {file.name: len(code_lines(file)) for file in files}
    assert sum(lines.values()) <= CORE_LINES, lines


def test_no_function_is_longer_than_a_page():
    for file in FILES:
        lines = code_lines(file)
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                length = len(lines & set(range(node.lineno, node.end_lineno + 1)))
                assert length <= 40, f"{file.name}: {node.name} has {length} lines of code"
