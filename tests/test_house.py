"""Rules that keep the code a place where one finds the way."""

import ast
import io
import re
import tokenize
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

from conftest import ROOT

PACKAGE = ROOT / "nanocontrol"
PAPER = {"unet", "controlnet", "schedulers", "sampling", "vae", "clip", "stable_diffusion"}
PAPER |= {"checkpoint"}
# Rooms in their order: a file imports from its own room and from those before it. Ring 1 is the
# paper and the scripts, ring 2 the other inner rooms, ring 3 what can be deleted.
INNER = ["plumbing", "formats", "paper", "training", "nano", "commands", "scripts"]
OUTER = ["tools", "doctor", "experiments", "conformance", "course", "page"]
ROOMS = INNER + OUTER
# Lines of code, at most. The paper has 900 and a margin for bug fixes.
BUDGETS = {
    "train.py": 240,
    "sample.py": 120,
    "paper": 950,
    "plumbing": 640,
    "formats": 810,
    "training": 2335,
    "nano": 1405,
    "commands": 330,
    "tools": 806,
    "doctor": 640,
    "experiments": 2149,
    "conformance": 978,
    "course": 1555,
    "page": 873,
}
BROWSER, BROWSER_BUDGET = (".js", ".html", ".css"), 2100
PAGE = 40  # lines of code in a function
LOOP = 45  # in one that holds the loop of a training or of sampling
LOOPS = {"train", "sampling_steps"}
# May be defined in several files. The course asks its checks for the last three.
COMMON_NAMES = {"main", "train", "Settings", "check", "give", "show"}
FILES = [*sorted(PACKAGE.rglob("*.py")), ROOT / "train.py", ROOT / "sample.py"]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
INNER_TESTS = [file for file in TESTS if "outer" not in file.relative_to(ROOT).parts]


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


def room_of(module: list[str]) -> str:
    """The room of a dotted name, split: nanocontrol.nano.world is in nano, nanocontrol.unet in
    paper."""
    if module[0] != "nanocontrol":
        return "scripts"
    return module[1] if len(module) > 1 and module[1] in ROOMS else "paper"


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def imports_of(file: Path) -> list[list[str]]:
    """The project's modules that it imports, each as a split name."""
    found = []
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            found += [alias.name.split(".") for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            found += [[*node.module.split("."), alias.name] for alias in node.names]
    return [name for name in found if name[0] in ("nanocontrol", "train", "sample")]


@cache
def code_lines(file: Path) -> set[int]:
    """The numbers of its lines that hold code: no blanks, comments or docstrings."""
    lines: set[int] = set()
    passed_over = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
    for token in tokenize.generate_tokens(io.StringIO(file.read_text()).readline):
        if token.type not in passed_over:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree_of(file)):
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if text and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, node.end_lineno + 1))
    return lines


def lines_of(files: list[Path]) -> int:
    return sum(len(code_lines(file)) for file in files)


# --------------------------------------------------------------------------------------- rooms


def test_every_folder_is_a_room():
    folders = {file.parent.name for file in FILES if file.parent.parent == PACKAGE}
    assert folders <= {*ROOMS}
    assert {file.stem for file in PACKAGE.glob("*.py")} == PAPER | {"__init__"}


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_go_one_way(file):
    own = room_of(list(file.relative_to(ROOT).with_suffix("").parts))
    for name in imports_of(file):
        way = f"{name_of(file)} imports {'.'.join(name)}"
        assert ROOMS.index(room_of(name)) <= ROOMS.index(own), way


def test_plumbing_knows_nothing_of_the_project():
    for file in (PACKAGE / "plumbing").glob("*.py"):
        assert all(name[:2] == ["nanocontrol", "plumbing"] for name in imports_of(file)), file


@pytest.mark.parametrize("file", INNER_TESTS, ids=name_of)
def test_tests_of_the_inner_rings_do_not_need_the_outer_one(file):
    """So they can be collected where its folders are deleted. Its own tests are in tests/outer."""
    assert not [".".join(name) for name in imports_of(file) if room_of(name) in OUTER]


# ------------------------------------------------------------------------------------- lengths


@pytest.mark.parametrize("room", BUDGETS)
def test_every_room_keeps_its_budget(room):
    files = {"train.py": [ROOT / room], "sample.py": [ROOT / room], "paper": PACKAGE.glob("*.py")}
    lines = lines_of([*files.get(room, (PACKAGE / room).rglob("*.py"))])
    assert lines <= BUDGETS[room], f"{room} has {lines} lines of code"


def test_the_page_in_the_browser_keeps_its_budget():
    """Lines of JavaScript, HTML and CSS, without blank ones and comments, and none too wide to
    read."""
    files = [f for f in (PACKAGE / "page" / "static").rglob("*") if f.suffix in BROWSER]
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    code = [line for line in lines if not re.match(r"\s*(//.*|/\*.*)?$", line)]
    assert len(code) <= BROWSER_BUDGET, f"{len(code)} lines"
    assert not [line for line in lines if len(line) > 120]


def test_the_front_page_says_how_much_there_is_to_read():
    """Lines of code in the paper and the scripts. The page may be off by 5 %."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (said,) = re.findall(r"([\d,]+)\s+lines\s+of\s+code", text)
    lines = lines_of([*PACKAGE.glob("*.py"), ROOT / "train.py", ROOT / "sample.py"])
    assert int(said.replace(",", "")) == pytest.approx(lines, rel=0.05), f"README.md: {lines} lines"


@pytest.mark.parametrize("file", [*FILES, *TESTS], ids=name_of)
def test_docstrings_begin_with_their_subject(file):
    """A docstring that begins with one of these words has to be read twice."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            first = (ast.get_docstring(node) or "").partition(" ")[0]
            assert first not in ("Of", "What", "Those"), getattr(node, "name", "the module")


def test_no_function_is_longer_than_a_page():
    long = []
    for file in FILES:
        lines = code_lines(file)
        for node in ast.walk(tree_of(file)):
            if isinstance(node, ast.FunctionDef):
                length = len(lines & set(range(node.lineno, node.end_lineno + 1)))
                if length > (LOOP if node.name in LOOPS else PAGE):
                    long.append(f"{name_of(file)}: {node.name} has {length} lines of code")
    assert not long, "\n".join(long)


# --------------------------------------------------------------------------------------- names


def test_no_name_is_defined_in_two_files():
    """Functions and classes. Whoever searches for a name finds one place."""
    files = defaultdict(set)
    for file in FILES:
        for node in tree_of(file).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                files[node.name].add(name_of(file))
    twice = [
        f"{name}: {', '.join(sorted(found))}"
        for name, found in sorted(files.items())
        if len(found) > 1 and name not in COMMON_NAMES
    ]
    assert not twice, "\n".join(twice)
