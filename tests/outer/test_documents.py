"""The READMEs: the files they list, their links, and the commands they name."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from conftest import ROOT

FOLDERS = [ROOT / name for name in ("nanocontrol", "tests", "weights", "assets")]
READMES = [ROOT / "README.md", *(file for f in FOLDERS for file in sorted(f.rglob("README.md")))]
READMES += [ROOT / folder / "RESULTS.md" for folder in ("nanocontrol/experiments", "tests/bench")]
ROW = re.compile(r"^\| \[[\w.]+\]\(([\w./]+\.py)\) \|", re.MULTILINE)


def text_of(readme: Path) -> str:
    return readme.read_text(encoding="utf-8")


def anchors_of(readme: Path) -> set[str]:
    """The anchors that GitHub derives from headings."""
    prose = re.sub(r"^```.*?^```", "", text_of(readme), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_reading_order_lists_every_core_file():
    core = {f"nanocontrol/{p.name}" for p in (ROOT / "nanocontrol").glob("*.py")}
    core = core - {"nanocontrol/__init__.py"} | {"train.py", "sample.py"}
    assert sorted(ROW.findall(text_of(ROOT / "README.md"))) == sorted(core)


@pytest.mark.parametrize("readme", READMES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_readme_has_more_than_150_lines(readme):
    assert len(text_of(readme).splitlines()) <= 150 or readme.name == "RESULTS.md"  # tables


def test_all_readmes_together_have_at_most_13150_words():
    """Words, without the generated table of claims."""
    texts = {file: text_of(file) for file in READMES if file.name == "README.md"}
    generated = re.compile(r"<!-- claims -->.*<!-- end of claims -->", re.DOTALL)
    words = {file: len(generated.sub("", text).split()) for file, text in texts.items()}
    assert words[ROOT / "README.md"] <= 1500
    assert sum(words.values()) <= 13_150, words


def test_every_folder_has_a_readme():
    folders = {p.parent for p in (ROOT / "nanocontrol").rglob("*.py")}
    folders |= {ROOT / "tests", ROOT / "weights"}
    assert not [str(f.relative_to(ROOT)) for f in folders if not (f / "README.md").exists()]


@pytest.mark.parametrize("readme", READMES, ids=lambda p: str(p.relative_to(ROOT)))
def test_targets_of_links_and_pictures_exist(readme):
    targets = re.findall(r"\]\(([^)\s]+)\)", text_of(readme))
    targets += re.findall(r'(?:src|href)="([^"]+)"', text_of(readme))
    missing = []
    for target in targets:
        if re.match(r"\w+:", target):  # https:
            continue
        path, _, anchor = target.partition("#")
        file = readme.parent / path if path else readme
        if not file.exists() or anchor and anchor not in anchors_of(file):
            missing.append(target)
    assert not missing


@pytest.mark.parametrize("readme", READMES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_name_modules_that_exist(readme):
    modules = set(re.findall(r"python3? -m (nanocontrol[\w.]*\w)", text_of(readme)))
    assert not [name for name in sorted(modules) if not module_exists(name)]


@pytest.mark.parametrize("readme", READMES, ids=lambda p: str(p.relative_to(ROOT)))
def test_tests_that_are_named_exist(readme):
    files = {file: text_of(file) for file in (ROOT / "tests").rglob("*.py")}
    tests = {name for text in files.values() for name in re.findall(r"^def (test_\w+)", text, re.M)}
    named = set(re.findall(r"\btest_\w+", text_of(readme)))
    assert not sorted(named - tests - {file.stem for file in files})


def module_exists(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is missing too
        return False
