"""The course: every exercise fails as shipped, every solution passes, and every known wrong answer
gets its own sentence. Submissions of strangers are graded safely."""

import ast
import csv
import io
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from outer.course_solutions.wrong_answers import WRONG, WrongAnswer
from safetensors.torch import load_file

from conftest import ROOT, refusal
from nanocontrol import ControlNet, load_control, load_sd, save_control
from nanocontrol.course.__main__ import main
from nanocontrol.course.checks.gain import RUNS as RECORDED
from nanocontrol.course.checks.gain import names_of_runs
from nanocontrol.course.checks.hints import FAULTS, faults_of
from nanocontrol.course.checks.jump import STORED
from nanocontrol.course.checks.mutants import MUTANTS, SHOWS, check_mended, order_of
from nanocontrol.course.exercise import EXERCISES, Exercise, Seeds, Wrong, exercises
from nanocontrol.course.folder import start_course
from nanocontrol.course.grade import BONUS, grade_submission, grades_as_csv, judge_exercise
from nanocontrol.course.messages import pack
from nanocontrol.course.own_runs import OFTEN, RUNS, SELDOM, seed_of, settings_for
from nanocontrol.course.student import PRIVATE, Student
from nanocontrol.nano.conditions import CONDITIONS
from nanocontrol.nano.model import NARROW
from nanocontrol.nano.scores import SCORES

SOLUTIONS = Path(__file__).with_name("course_solutions")
NAME = "Ada Byron"
PATIENT = 1800  # seconds for a file: a busy machine may be slow
FAST = {1, 5}  # all others are checked in the slow tests
MARKED = [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in range(1, 13)]
FAULT_NAMES = "inverted exchanged range blurred shifted thick".split()


def solution_of(exercise: Exercise, name: str) -> str:
    """The solution's source, with the values that this student was given."""
    source, draws = (SOLUTIONS / exercise.file).read_text(), Seeds(name, "start")
    order, shift = faults_of(draws)
    letters = {run: letter for letter, run in names_of_runs(draws).items()}
    values = {"ORDER": [*order_of(draws).values()], "SHIFT": shift, "FOLLOWS": letters["follows"]}
    if exercise.number == 8:
        values["ORDER"] = [FAULT_NAMES[FAULTS.index(fault)] for fault in order]
    for constant, value in values.items():
        source = re.sub(rf"^{constant} = .*", f"{constant} = {value!r}", source, flags=re.MULTILINE)
    return source


def write_runs(folder: Path, name: str) -> None:
    """Two runs' folders for exercise 10, from the curves of stored runs."""
    curves = json.loads((EXERCISES.parent / "checks" / "jumps.json").read_text())["curves"]
    for run in RUNS:
        path = folder / "runs" / run
        path.mkdir(parents=True)
        (path / "settings.json").write_text(json.dumps(settings_for(run, seed_of(name))))
        lines = [json.dumps({"step": step, "score": score}) for step, score in curves[run]]
        (path / "log.jsonl").write_text("\n".join(lines) + "\n")


def solve(folder: Path, name: str = NAME) -> Path:
    """A student's folder with all solutions but the bonus's weights."""
    start_course(folder, name)
    for exercise in exercises().values():
        (folder / exercise.file).write_text(solution_of(exercise, name))
    write_runs(folder, name)
    return folder


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shipped") / "new"
    start_course(folder, NAME)
    return folder


@pytest.fixture(scope="module")
def solved(tmp_path_factory) -> Path:
    return solve(tmp_path_factory.mktemp("solved") / "new")


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Path:
    """A folder for one file after the other: the process of a student stays in its folder."""
    folder = tmp_path_factory.mktemp("bench")
    write_runs(folder, NAME)
    return folder


@pytest.fixture(scope="module")
def student():
    with Student(seconds=PATIENT) as student:
        yield student


def sentence_for(exercise: Exercise, folder: Path, student: Student, purpose: str = "check"):
    """Points and sentence of the exercise's file in a folder."""
    draws = Seeds(NAME, purpose)
    grade = judge_exercise(exercise, folder / exercise.file, student, draws)
    return grade.points, grade.sentence


# ------------------------------------------------------------------------------- the exercises


@pytest.mark.parametrize("number", [*MARKED, pytest.param(13, marks=pytest.mark.slow)])
def test_an_exercise_fails_as_shipped(number, shipped, student):
    points, sentence = sentence_for(exercises()[number], shipped, student)
    assert points == 0
    assert re.search("is not written yet|not answered yet|no name yet|no number for", sentence)


@pytest.mark.parametrize("purpose", ["check", "grade"])
@pytest.mark.parametrize("number", MARKED)
def test_a_solution_passes(number, purpose, solved, student):
    points, sentence = sentence_for(exercises()[number], solved, student, purpose)
    assert points == 1, sentence


def marked(wrong: WrongAnswer):
    slow = () if wrong.exercise in FAST else pytest.mark.slow
    return pytest.param(wrong, marks=slow, id=f"{wrong.exercise}: {wrong.sentence[:40]}")


@pytest.mark.parametrize("wrong", [*map(marked, WRONG)])
def test_a_known_wrong_answer_gets_its_own_sentence(wrong, bench, student):
    exercise = exercises()[wrong.exercise]
    source = solution_of(exercise, NAME)
    assert source.count(wrong.old) == 1, wrong.old
    (bench / exercise.file).write_text(source.replace(wrong.old, wrong.new))
    points, sentence = sentence_for(exercise, bench, student)
    assert points == 0
    assert wrong.sentence in sentence


def test_every_exercise_has_three_known_wrong_answers():
    counted = {n: len([w for w in WRONG if w.exercise == n]) for n in range(1, 13)}
    assert min(counted.values()) >= 3, counted


def test_an_exercise_is_a_file_of_30_to_60_lines():
    for exercise in exercises().values():
        assert 20 <= len((EXERCISES / exercise.file).read_text().splitlines()) <= 60


def without_code(source: str, how: str) -> str:
    """Exercise 12's file with `pass` in all classes or in all functions, or with functions that
    call their base's."""
    tree = ast.parse(source)
    for node in [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]:
        for function in [part for part in node.body if isinstance(part, ast.FunctionDef)]:
            given = ", ".join(arg.arg for arg in function.args.args[1:])
            called = f"return super().{function.name}({given})"
            function.body = ast.parse(called if how == "super" else "pass").body
        node.body = [ast.Pass()] if how == "class" else node.body
    return ast.unparse(tree)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["class", "function", "super"])
def test_none_of_the_thirteen_is_mended_by_deleting_its_code(how, shipped, bench, student):
    file = bench / exercises()[12].file
    file.write_text(without_code((shipped / file.name).read_text(), how))
    student.load(file)
    sentence = "is not mended" if how == "function" else "and no code of its own for"
    for broken, name in order_of(Seeds(NAME, "start")).items():
        with pytest.raises(Wrong, match=f"{broken} has the right name.*{sentence}"):
            check_mended(student, broken, name)


@pytest.mark.slow
def test_the_thirteen_are_broken_as_shipped(shipped, student):
    """Each class of the student's file still has its error, although the code is written out."""
    student.load(shipped / exercises()[12].file)
    for broken, name in order_of(Seeds(NAME, "start")).items():
        with pytest.raises(Wrong, match=re.escape(MUTANTS[name].sentence)):
            check_mended(student, broken, name)


PREDICTED_ONLY = 'PREDICTED = {"scaled": 150, "half": 250}\nFOUND = {}\nBROKEN_AFTER_300 = None\n'
TRAIN = "`python -m nanocontrol.course train {}`"


@pytest.mark.slow
def test_each_part_of_exercise_10_is_judged_as_soon_as_it_is_there(tmp_path):
    exercise, file = exercises()[10], tmp_path / "ex10_jump.py"
    both = " and ".join(map(TRAIN.format, RUNS))
    with Student(seconds=PATIENT) as student:
        file.write_text(PREDICTED_ONLY)
        _, said = sentence_for(exercise, tmp_path, student)
        assert said.startswith("Right so far: PREDICTED. BROKEN_AFTER_300 is not answered yet.")
        assert said.endswith(f"Still to be run: {both}.")
        write_runs(tmp_path, NAME)
        shutil.rmtree(tmp_path / "runs" / "half")
        solution = solution_of(exercise, NAME)
        found = "FOUND = {run: found(run) for run in PREDICTED}"
        assert found in solution
        file.write_text(solution.replace(found, 'FOUND = {"scaled": found("scaled")}'))
        _, said = sentence_for(exercise, tmp_path, student)
        assert said == (
            "Right so far: PREDICTED, BROKEN_AFTER_300, first_step_at, runs/scaled. "
            f"Still to be run: {TRAIN.format('half')}."
        )
        file.write_text(solution.replace(found, "FOUND = {}"))
        _, said = sentence_for(exercise, tmp_path, student)
        assert "FOUND has no number for scaled yet. Still to be run" in said


def test_every_name_of_an_error_gets_a_sentence_in_place_of_every_other():
    assert SHOWS.keys() == MUTANTS.keys()
    assert len({*SHOWS.values()}) == len(SHOWS)


@pytest.mark.parametrize("exercise", exercises().values(), ids=lambda exercise: exercise.file)
def test_a_check_says_each_of_its_sentences_and_has_all_that_it_says(exercise):
    source = (EXERCISES.parent / "checks" / f"{exercise.file[5:]}").read_text()
    sentences = {name for name in vars(exercise.said) if name.isupper()}
    assert {*re.findall(r"SAY\.(\w+)", source)} == sentences


def test_what_students_are_given_differs_between_them(tmp_path):
    names = ["Ada", "Bob", "Cleo", "Dan"]
    given = [(order_of(Seeds(n, "start")), faults_of(Seeds(n, "start"))[1]) for n in names]
    assert len({str(values) for values in given}) == len(names)


def test_the_inputs_of_a_grading_are_others_than_those_of_a_check():
    seeds = {Seeds(NAME, purpose).seed("noise") for purpose in ("start", "check", "grade")}
    assert len(seeds) == 3


@pytest.mark.slow
def test_results_do_not_depend_on_the_number_of_threads(solved):
    """Answers and right values are computed with one thread and with two, and agree with the
    tolerance of a check to spare."""
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with Student(seconds=PATIENT) as student:
                for number in (2, 9, 12):
                    assert sentence_for(exercises()[number], solved, student)[0] == 1
    finally:
        torch.set_num_threads(before)


# --------------------------------------------------------------------------------- a student


@pytest.mark.slow
def test_a_student_starts_checks_and_sees_what_is_done(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "mine"
    main(["start", str(folder), "--name", NAME])
    monkeypatch.chdir(folder)
    main(["next"])
    assert "Exercise 1:" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main(["check", "4"])
    assert "not yet: guided is not written yet" in str(end.value.code)
    exercise = exercises()[4]
    (folder / exercise.file).write_text("print('hello')\n" + solution_of(exercise, NAME))
    main(["check", "4"])
    said = capsys.readouterr().out
    assert "your file printed: hello" in said and "Exercise 4 is right" in said
    assert (folder / "ex04.png").exists()
    main(["status"])
    assert re.search(r"4 +passed", capsys.readouterr().out)
    (folder / exercise.file).write_text("changed")
    main(["status"])
    assert re.search(r"4 +changed since it passed", capsys.readouterr().out)


def test_hints_come_one_after_the_other_and_again(shipped, monkeypatch, capsys):
    monkeypatch.chdir(shipped)
    n = len(exercises()[1].said.hints)
    for _ in range(n + 1):
        main(["hint", "1"])
    said = capsys.readouterr().out.splitlines()
    assert [line[:11] for line in said[:2]] == [f"hint 1 of {n}", f"hint 2 of {n}"]
    assert said[-1] == said[0]


def test_bad_calls_get_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "student.json is missing" in refusal(main, capsys, "check", "1")
    assert "is not empty" in refusal(main, capsys, "start", str(ROOT))
    assert "is not a folder" in refusal(main, capsys, "grade", "nothing")
    assert "expected 1 to 80 characters" in refusal(main, capsys, "start", "a", "--name", "a" * 99)
    assert "invalid choice" in refusal(main, capsys, "check", "99")
    (tmp_path / "student.json").write_text("{}")
    assert "is damaged" in refusal(main, capsys, "status")


# --------------------------------------------------------------------- submissions of strangers

SOLVED_1 = (SOLUTIONS / "ex01_noise.py").read_text()
IMPORT = "import sys\nsys.path.insert(0, {root!r})\n"
PRINTED = "for _ in range(1024): print('a' * 2**20)\n"
# Ten hostile files for exercise 1, and a part of the sentence that each gets.
HOSTILE = {
    "loops": ("while True: pass\n", "computes for more than 4 seconds"),
    "exits": ("import sys\nsys.exit(0)\n", "ends the program"),
    "exits at once": ("import os\nos._exit(0)\n", "ended before it answered"),
    "prints a GB": (PRINTED, "prints more than 1 MB"),
    "takes all memory": ("x = bytearray(2**36)\n", "more than the 2 GB of memory"),
    "imports the solutions": (
        "import importlib.util as u\nspec = u.spec_from_file_location('s', {solution!r})\n"
        "m = u.module_from_spec(spec)\nspec.loader.exec_module(m)\nadd_noise = m.add_noise\n",
        "opens the checks, the solutions or another submission",
    ),
    "patches the checks": (
        "import importlib\nm = importlib.import_module('nanocontrol.course.checks.noise')\n"
        "m.check = lambda *_: 'right'\n",
        "opens the checks, the solutions or another submission",
    ),
    "imports what it should write": (
        "from nanocontrol.schedulers import DDPM\nadd_noise = DDPM().add_noise\n",
        "imports nanocontrol.schedulers.DDPM, which this exercise asks you to write",
    ),
    "starts a program": ("import subprocess\nsubprocess.run(['ls'])\n", "starts another program"),
    "forks": ("import os\nwhile True: os.fork()\n", "starts another program"),
    "reads a neighbour": ("open({neighbour!r}).read()\n", "opens the checks, the solutions or"),
    "writes elsewhere": ("open({victim!r}, 'w')\n", "writes a file outside its own folder"),
    "reads a neighbour by its path": (
        "import os, pathlib\nos.open(pathlib.Path({neighbour!r}), os.O_RDONLY)\n",
        "opens the checks, the solutions or",
    ),
    "renames": (
        "import os\nopen('mine', 'w').close()\nos.rename('mine', {victim!r})\n",
        "changes files outside its own folder",
    ),
    "deletes": ("import os\nos.remove({victim!r})\n", "changes files outside its own folder"),
    "kills the grader": (
        "import os\nos.kill(os.getppid(), 9)\n",
        "reaches for another process or the network",
    ),
    "crashes": ("import ctypes\nctypes.string_at(0)\n", "crashed"),
    "writes to the grader": (
        "import os\nfor fd in range(3, 20):\n"
        "    try: os.write(fd, b'x' * 100)\n    except OSError: pass\n",
        "damaged|longer|more than 64 MB",
    ),
    "pretends to be right": (
        "import os\nfor fd in range(3, 20):\n"
        "    try: os.write(fd, {message!r})\n    except OSError: pass\n",
        "returns|wrong|no number",
    ),
    "returns too much": (
        "import torch\ndef add_noise(*_): return torch.zeros(2**25)\n",
        "more than 64 MB",
    ),
    "returns an object": ("def add_noise(*_): return object\n", "an object of type type"),
    "is no text": ("\0\0\0", "raises"),
}


def hostile_source(source: str, victim: Path, neighbour: Path) -> str:
    values = {
        "{solution!r}": repr(str(SOLUTIONS / "ex01_noise.py")),
        "{victim!r}": repr(str(victim)),
        "{neighbour!r}": repr(str(neighbour)),
        "{message!r}": repr(pack({"value": 1.0})),
    }
    for name, value in values.items():
        source = source.replace(name, value)
    return source


@pytest.mark.slow
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_submission_gets_a_sentence_and_no_points(kind, tmp_path, only_one):
    source, sentence = HOSTILE[kind]
    victim, neighbour = tmp_path / "victim.txt", tmp_path / "all" / "bob" / "ex01_noise.py"
    victim.write_text("kept")
    own = tmp_path / "all" / "eve"
    own.mkdir(parents=True)
    neighbour.parent.mkdir()
    neighbour.write_text(SOLVED_1)
    (own / "ex01_noise.py").write_text(hostile_source(source, victim, neighbour))
    graded = grade_submission(own, tmp_path / "all", seconds=4)
    (grade,) = graded.exercises
    assert grade.points == 0
    assert re.search(sentence, grade.sentence), grade.sentence
    assert victim.read_text() == "kept"


@pytest.fixture
def only_one(monkeypatch):
    """Grade exercise 1 alone."""
    monkeypatch.setattr("nanocontrol.course.grade.exercises", lambda: {1: exercises()[1]})


@pytest.mark.slow
def test_after_hostile_submissions_the_others_are_graded(tmp_path, only_one, capsys):
    for name in ("loops", "exits at once", "prints a GB"):
        folder = tmp_path / "class" / name.replace(" ", "-")
        folder.mkdir(parents=True)
        source = HOSTILE[name][0].replace("while True", "for _ in range(10**6)")
        (folder / "ex01_noise.py").write_text(source)
    solve(tmp_path / "class" / "zoe", "Zoe")
    (tmp_path / "class" / "linked").mkdir()
    target = tmp_path / "class" / "zoe" / "ex01_noise.py"
    (tmp_path / "class" / "linked" / "ex01_noise.py").symlink_to(target)
    main(["grade", str(tmp_path / "class"), "--json"])
    graded = {one["folder"]: one for one in json.loads(capsys.readouterr().out)}
    assert len(graded) == 5
    assert {name: one["points"] for name, one in graded.items() if one["points"]} == {"zoe": 1}
    assert "is a link" in graded["linked"]["exercises"][0]["sentence"]


@pytest.mark.slow
def test_a_gradebook_holds_no_formula(tmp_path, only_one, capsys):
    folder = tmp_path / "=1+1"
    folder.mkdir()
    graded = [grade_submission(folder, tmp_path)]
    (titles, row) = csv.reader(io.StringIO(grades_as_csv(graded)))
    assert titles[0] == "folder" and titles[-2:] == ["points", "note"]
    assert row[:2] == ["'=1+1", "'=1+1"]
    assert "folder's name is used" in row[-1]
    main(["grade", str(folder.parent), "--json"])
    (one,) = json.loads(capsys.readouterr().out)
    assert one["exercises"][0]["sentence"] == "ex01_noise.py is missing; expected a file"


@pytest.mark.slow
def test_the_same_name_twice_is_noted(tmp_path, only_one, capsys):
    for folder in ("a", "b"):
        start_course(tmp_path / "class" / folder, NAME)
    main(["grade", str(tmp_path / "class")])
    assert capsys.readouterr().out.count("another submission has the same name") == 2


@pytest.mark.slow
def test_another_students_run_is_refused(solved, tmp_path):
    folder = solve(tmp_path / "copied", "Bob")
    for run in RUNS:
        settings = folder / "runs" / run / "settings.json"
        settings.write_text((solved / "runs" / run / "settings.json").read_text())
    with Student(seconds=PATIENT) as student:
        grade = judge_exercise(
            exercises()[10], folder / "ex10_jump.py", student, Seeds("Bob", "grade")
        )
    assert grade.points == 0 and "was trained with seed" in grade.sentence


def test_one_run_of_three_follows_and_both_others_have_a_lower_training_loss():
    step, loss, own, other = (dict(zip(RECORDED, values)) for values in zip(*last_rows()))
    gain = {run: (other[run] - own[run]) / own[run] for run in RECORDED}
    assert [run for run in RECORDED if gain[run] > 0.05] == ["follows"]
    assert all(abs(gain[run]) < 0.01 for run in RECORDED if run != "follows")
    assert min(loss, key=loss.get) == "memorises" and loss["waits"] < loss["follows"]


@pytest.mark.slow
@pytest.mark.parametrize("run, sentence", [("memorises", "lowest"), ("waits", "a lower")])
def test_a_run_that_is_chosen_by_its_loss_gets_its_own_sentence(run, sentence, bench, student):
    letters = {name: letter for letter, name in names_of_runs(Seeds(NAME, "start")).items()}
    source = solution_of(exercises()[9], NAME)
    right, wrong = (f"FOLLOWS = {letters[name]!r}" for name in ("follows", run))
    (bench / exercises()[9].file).write_text(source.replace(right, wrong))
    points, said = sentence_for(exercises()[9], bench, student)
    assert points == 0
    assert f"Run {letters[run]} has {'the ' * (sentence == 'lowest')}{sentence}" in said


def last_rows() -> list[list[float]]:
    return [rows[-1] for rows in RECORDED.values()]


@pytest.mark.slow
@pytest.mark.parametrize("jump", [20, 600])
def test_a_run_that_jumps_elsewhere_than_stored_runs_is_refused(jump, tmp_path):
    folder = solve(tmp_path / "other")
    curve = [[0, 0.2], [jump - 10, 0.3], [jump + 10, 0.5]]
    lines = [json.dumps({"step": step, "score": score}) for step, score in curve]
    (folder / "runs" / "half" / "log.jsonl").write_text("\n".join(lines))
    with Student(seconds=PATIENT) as student:
        points, sentence = sentence_for(exercises()[10], folder, student)
    assert points == 0 and f"jumps at step {jump}" in sentence
    assert f"{min(STORED['half']):.0f}" in sentence


@pytest.mark.slow
def test_a_whole_submission_is_graded(solved):
    """Twelve points; the bonus was not handed in. A file may read what the student was given."""
    file = solved / exercises()[8].file
    reading = "import numpy as np\n\nassert np.load('hints.npy').shape[0] == 6\n"
    file.write_text(reading + solution_of(exercises()[8], NAME))
    graded = grade_submission(solved, solved.parent, seconds=PATIENT)
    assert graded.points == 12, [grade for grade in graded.exercises if not grade.points]
    assert "control-half.safetensors is missing" in graded.exercises[-1].sentence
    assert graded.exercises[-1].exercise == BONUS


@pytest.mark.slow
def test_weights_that_are_a_pickle_are_refused(solved, tmp_path, monkeypatch):
    monkeypatch.setattr("nanocontrol.course.checks.own.SCENES", 2)
    folder = tmp_path / "own"
    (folder / "runs" / "own").mkdir(parents=True)
    torch.save({}, folder / "runs" / "own" / "control-half.safetensors")
    (folder / "ex13_own.py").write_text((SOLUTIONS / "ex13_own.py").read_text())
    with Student(seconds=PATIENT) as student:
        points, sentence = sentence_for(exercises()[BONUS], folder, student)
    assert points == 0 and "no safetensors file" in sentence


@pytest.mark.slow
def test_the_bonus_is_graded_by_what_its_pictures_show(tmp_path):
    """nano's depth ControlNet follows, an untrained one does not."""
    folder = tmp_path / "own"
    (folder / "runs" / "own").mkdir(parents=True)
    (folder / "ex13_own.py").write_text((SOLUTIONS / "ex13_own.py").read_text())
    unet = load_sd(ROOT / "weights" / "nano.safetensors").unet
    trained = load_control(ROOT / "weights" / "nano-control-depth.safetensors", unet)
    for control, right in ((trained, 1), (ControlNet.from_unet(unet, NARROW), 0)):
        save_control(control.half(), folder / "runs" / "own" / "control-half.safetensors")
        with Student(seconds=PATIENT) as student:
            points, sentence = sentence_for(exercises()[BONUS], folder, student)
        assert points == right, sentence
    assert "pictures without control have 0.15" in sentence


SHORT = {"steps": 2, "batch_size": 2, "scenes": 4, "device": "cpu"}


@pytest.mark.slow
@pytest.mark.parametrize("run", [*RUNS, "own"])
def test_the_course_trains_in_the_students_folder(run, tmp_path, monkeypatch, capsys, hasty):
    for flags in (OFTEN, SELDOM):
        for name, value in SHORT.items():
            monkeypatch.setitem(flags, name, value)
    for table in (CONDITIONS, SCORES):  # the course enters the bonus's condition
        monkeypatch.setitem(table, "own", None)
    folder = solve(tmp_path / "mine")
    shutil.rmtree(folder / "runs")
    monkeypatch.chdir(folder)
    main(["train", run])
    settings = json.loads((folder / "runs" / run / "settings.json").read_text())
    assert settings["seed"] == seed_of(NAME) and settings["steps"] == 2
    if run == "own":
        handed_in = folder / "runs" / "own" / "control-half.safetensors"
        assert handed_in.stat().st_size < 5e6
        load_control(handed_in, load_sd(ROOT / "weights" / "nano.safetensors").unet)
    else:
        assert re.search(r"step +0: score 0\.\d+", capsys.readouterr().out)
        tensors = load_file(folder / "runs" / run / "control.safetensors")
        layers = [name for name in tensors if "input_hint_block" in name and "weight" in name]
        assert len(layers) == (8 if run == "scaled" else 4)


def test_the_solutions_are_not_in_the_package():
    assert not [*(ROOT / "nanocontrol").rglob("*solutions*")]
    assert SOLUTIONS.is_relative_to(PRIVATE[0])
