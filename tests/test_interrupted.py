"""Kills, signals, a full disk or a second process lose nothing: a resumed run ends bitwise equal.

Every run is a process of its own. It is forked from one that has imported train.py, so that it
starts at once. A seeded generator draws the moment of a kill: after a share of the time that the
whole run took, or while the n-th file is being written.
"""

import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import socket
import time
from contextlib import ExitStack, suppress
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors import safe_open

import train
from conftest import NANO, ROOT, write_pairs
from in_float64 import hasty_pictures
from nanocontrol.nano import train as nano_train
from nanocontrol.plumbing.errors import InputError
from nanocontrol.training import batches, processes
from nanocontrol.training.processes import Processes

STEPS = 12
SHORT = ["--steps", str(STEPS), "--batch-size", "2", "--save-every", "1", "--sample-every", "5"]
SHORT += ["--device", "cpu", "--dtype", "fp32"]
PARTS = {
    "vae": ["--scenes", "9"],
    "base": ["--scenes", "40", "--base", NANO],
    "decoder": ["--scenes", "9", "--base", NANO],
    "detector": ["--scenes", "9"],
}
PATIENCE = 300  # seconds; a longer wait is a defect

# ------------------------------------------------------------------------------ separate processes


def child(folder: str, argv: list[str], readers: int, limit: int, environment: dict) -> None:
    """Run a command in `folder`. Its output goes to the file `output` there.

    argv: train.py's flags, or a part of nano and its flags
    readers: number of processes that read pairs
    limit: largest size of a file in bytes, 0 for no limit
    """
    os.setpgid(0, 0)
    os.chdir(folder)
    output = os.open("output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1), os.dup2(output, 2)
    os.environ.update(environment)
    torch.set_num_threads(1)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    part = argv[0] in PARTS
    with ExitStack() as changed:
        changed.enter_context(hasty_pictures())
        changed.enter_context(mock.patch.multiple(nano_train, SHEET=2, HELD_OUT_SCENES=4))
        if readers:
            changed.enter_context(mock.patch.object(batches, "readers", lambda _: readers))
        (nano_train if part else train).main(argv)


@pytest.fixture(scope="module")
def forks() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_interrupted"])
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    context.Process(target=int).start()  # starts the server with this path
    os.environ.pop("PYTHONPATH") if path is None else os.environ.update(PYTHONPATH=path)
    return context


@pytest.fixture
def begin(forks, tmp_path):
    """begin(*argv) -> a running process. Processes still alive after the test are killed."""
    running: list[BaseProcess] = []

    def begin(*argv, readers: int = 0, limit: int = 0, folder: Path = tmp_path, **environment):
        folder.mkdir(exist_ok=True)
        given = str(folder), [*map(str, argv)], readers, limit, environment
        running.append(forks.Process(target=child, args=given))
        running[-1].start()
        return running[-1]

    yield begin
    for process in running:
        process.kill()
        process.join()


def ended(process: BaseProcess) -> int:
    process.join(PATIENCE)
    assert process.exitcode is not None, "the process does not end"
    return process.exitcode


def said(folder: Path) -> str:
    """The last line of output. There may be no traceback."""
    text = (folder / "output").read_text()
    assert "Traceback" not in text, text
    return re.split(r"[\r\n]+", text.strip())[-1]


def wait_until(holds, process: BaseProcess) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert process.is_alive(), "the process ended too early"
        assert time.monotonic() < end, "timeout"
        time.sleep(0.001)


# ------------------------------------------------------------------------------------ saved files


def content(file: Path):
    """The part of a file that must be equal in both runs: not the run time, not the folder."""
    if file.name == "state.pt":
        state = torch.load(file, weights_only=True)
        return {name: value.numpy().tobytes() for name, value in flat(state) if name != "/seconds"}
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as opened:
            tensors = {name: opened.get_tensor(name).numpy().tobytes() for name in opened.keys()}
            return tensors, opened.metadata()
    if file.suffix == ".json":
        return {
            k: v for k, v in json.loads(file.read_text()).items() if k not in ("seconds", "out")
        }
    return file.read_bytes()


def flat(value, name: str = ""):
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flat(item, f"{name}/{key}")
    elif isinstance(value, str):
        yield name, torch.tensor([*value.encode()])
    else:
        yield name, torch.as_tensor(value if value is not None else -1)


def assert_same(run: Path, whole: Path) -> None:
    names = [sorted(p.relative_to(r) for p in r.rglob("*") if p.is_file()) for r in (run, whole)]
    assert names[0] == names[1]
    for name in names[0]:
        assert content(run / name) == content(whole / name), name
    assert torch.load(run / "state.pt", weights_only=True)["step"] == STEPS


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"), n=20)  # two are held out


@pytest.fixture
def flags(pairs) -> list[str]:
    return ["--data", str(pairs), "--size", "64", *SHORT]


def finished(begin, *argv) -> tuple[Path, float]:
    """The folder of an uninterrupted run, and its run time in seconds."""
    began = time.monotonic()
    assert ended(begin(*argv, "--out", "whole")) == 0
    return Path("whole"), time.monotonic() - began


# ------------------------------------------------------------------------------------------ kills


def continued(begin, argv, run: str, **more) -> BaseProcess:
    """Continue a run as a user would: with --resume if there is something to resume."""
    if not (Path(run) / "settings.json").exists():
        return begin(*argv, "--out", run, **more)
    part = argv[:1] if argv[0] in PARTS else []
    return begin(*part, "--resume", run, **more)


def being_written(folders: list[Path]) -> set[Path]:
    """The files in folders that are not whole yet. A folder may disappear meanwhile."""
    files: set[Path] = set()
    for folder in folders:
        with suppress(FileNotFoundError):
            files |= {*folder.glob("*.tmp")}
    return files


def await_files(process: BaseProcess, folders: list[Path], n: int) -> None:
    """Wait until the n-th file from now is being written, or the process ends."""
    before = being_written(folders)
    seen: set[Path] = set()
    while len(seen) < n and process.is_alive():
        seen |= being_written(folders) - before
        time.sleep(0.0005)


def kill_and_compare(begin, argv, kills: int, runs: int, seed: int = 0) -> None:
    """Kill each run `kills` times, resume it to its end, and compare it with an uninterrupted run.

    Half of the kills come at any time, half while a file is being written.
    """
    whole, seconds = finished(begin, *argv)
    generator, inside = random.Random(seed), 0
    for i in range(runs):
        run, done = Path(f"run{i}"), 0
        while done < kills:
            process = continued(begin, argv, str(run))
            if generator.random() < 0.5:
                await_files(
                    process, [run, run / "samples", Path("cache")], generator.randint(1, 20)
                )
            else:
                process.join(generator.uniform(0, seconds))
            process.kill()
            killed = ended(process) == -signal.SIGKILL
            assert killed or process.exitcode == 0
            done += killed
            inside += any(run.rglob("*.tmp"))
        assert ended(continued(begin, argv, str(run))) == 0, said(Path())
        assert_same(run, whole)
    assert inside > 0 or kills * runs < 10, "no kill came while a file was being written"


@pytest.mark.slow
def test_a_killed_run_ends_bitwise_equal(begin, flags):
    kill_and_compare(begin, flags, kills=2, runs=1)


@pytest.mark.long
def test_thirty_kills_at_random_moments(begin, flags):
    kill_and_compare(begin, flags, kills=3, runs=10, seed=1)


@pytest.mark.long
def test_ten_kills_with_accumulation(begin, flags):
    kill_and_compare(begin, [*flags, "--accumulate", "2"], kills=2, runs=5, seed=2)


def kept_steps(run: Path) -> list[int]:
    """The steps whose weights are kept as the last evaluations'. All files, the
    best's too, can be read, and each step has those of its whole model."""
    steps: dict[str, list[int]] = {}
    for file in [*run.glob("*-best.safetensors"), *run.glob("weights/*.safetensors")]:
        tensors, metadata = content(file)
        step = json.loads(metadata["nanocontrol"])["step"]
        assert tensors and (file.stem.endswith("-best") or int(file.stem[-7:]) == step)
        steps.setdefault(file.name.partition("-")[0], []).append(step)
    of_control, of_base = (steps.get(name, []) for name in ("control", "base"))
    assert of_control[:1] == of_base[:1]  # of the best
    return sorted({*of_control[1:]} & {*of_base[1:]})


@pytest.mark.slow
def test_kept_weights_are_whole_after_any_kill(begin, flags):
    flags = [*flags, "--keep", "2", "--sample-every", "2", "--save-every", "5", "--unlock", "all"]
    whole, _ = finished(begin, *flags)
    assert kept_steps(whole) == [10, 12]
    generator, before = random.Random(5), 0
    for _ in range(5):
        process = continued(begin, flags, "run")
        places = [Path("run"), Path("run/weights"), Path("run/keeping"), Path("run/samples")]
        await_files(process, places, generator.randint(10, 40))
        process.kill()
        ended(process)
        steps = kept_steps(Path("run"))
        assert 2 <= len(steps) <= 3 or before < 2 and len(steps) >= before
        before = len(steps)
    assert before >= 2
    assert ended(continued(begin, flags, "run")) == 0, said(Path())
    assert_same(Path("run"), whole)


@pytest.mark.long
@pytest.mark.parametrize("part", PARTS)
def test_ten_kills_of_each_of_nanos_trainings(begin, part):
    kill_and_compare(begin, [part, *PARTS[part], *SHORT], kills=2, runs=5, seed=3)


# ------------------------------------------------------------------------------- two processes


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def begin_two(begin, *argv, second: list | None = None, machines: int = 1) -> list[BaseProcess]:
    """Start two processes as torchrun does, in the folders p0 and p1. second: the second one's
    flags, if others; machines: two for a process on each."""
    both = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": str(2 // machines), "MASTER_ADDR": "127.0.0.1"}
    both |= {"GROUP_WORLD_SIZE": str(machines), "MASTER_PORT": free_port()}
    return [
        begin(*own, **both, RANK=str(i), LOCAL_RANK=str(i // machines), folder=Path(f"p{i}"))
        for i, own in enumerate((argv, second or argv))
    ]


@pytest.mark.long
def test_ten_kills_of_two_processes(begin, flags):
    flags = [*flags, "--cache", Path("cache").resolve()]
    began = time.monotonic()
    assert [ended(p) for p in begin_two(begin, *flags, "--out", Path("whole").resolve())] == [0, 0]
    seconds, generator = time.monotonic() - began, random.Random(4)
    for i in range(5):
        run, kills = Path(f"run{i}").resolve(), 0
        while True:
            held = (run / "settings.json").exists()
            argv = ["--resume", run] if held else [*flags, "--out", run]
            pair = begin_two(begin, *argv)
            if kills < 2:
                pair[0].join(generator.uniform(0, seconds))
                for process in pair:
                    process.kill()
            codes = [ended(process) for process in pair]
            if codes == [0, 0]:
                break
            assert set(codes) <= {0, -signal.SIGKILL}, said(Path("p0"))
            kills += 1
        assert_same(run, Path("whole"))


# -------------------------------------------------------------------------------------- signals

STOPS = {signal.SIGINT: 130, signal.SIGTERM: 143}


def saved(run: str, n: int = 1):
    """A function that tells whether the log holds n steps."""

    def holds() -> bool:
        file = Path(run, "log.jsonl")
        return file.exists() and file.read_text().count('"loss"') >= n

    return holds


@pytest.mark.slow
@pytest.mark.parametrize("number", STOPS)
def test_a_signal_finishes_the_step_and_prints_how_to_resume(begin, flags, number):
    whole, _ = finished(begin, *flags)
    process = begin(*flags, "--out", "run")
    wait_until(saved("run", 2), process)
    os.kill(process.pid, number)
    assert ended(process) == STOPS[number]
    assert said(Path()).endswith("train.py --resume run") and "stopped" in said(Path())
    kept = torch.load("run/state.pt", weights_only=True)["step"]
    logged = [json.loads(line)["step"] for line in Path("run/log.jsonl").read_text().splitlines()]
    assert 2 <= kept < STEPS and max(logged) == kept and not list(Path("run").glob("*.tmp"))
    assert ended(begin("--resume", "run")) == 0
    assert_same(Path("run"), whole)


@pytest.mark.slow
def test_a_signal_during_encoding_stops_at_once(begin, flags):
    process = begin(*flags, "--out", "run")
    output = Path("output")
    wait_until(lambda: output.exists() and "encoding" in output.read_text(), process)
    os.kill(process.pid, signal.SIGINT)
    assert ended(process) in (130, 0)  # 0: it finished before the signal
    assert "Traceback" not in Path("output").read_text()


@pytest.mark.slow
def test_a_second_ctrl_c_stops_at_once(begin, flags):
    process = begin(*flags, "--steps", "2000", "--sample-every", "1", "--out", "run")
    wait_until(saved("run"), process)
    # After its message, another signal would only disturb Python's exit.
    while process.is_alive() and "stopped" not in Path("output").read_text():
        os.kill(process.pid, signal.SIGINT)
        time.sleep(0.01)
    # After one signal only, the step would have been saved.
    assert ended(process) == 130 and "before anything was saved" in said(Path())


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_nanos_trainings_stop_at_a_signal(begin, part):
    process = begin(part, *PARTS[part], *SHORT, "--steps", "500", "--out", "run")
    wait_until(saved("run"), process)
    os.kill(process.pid, signal.SIGTERM)
    assert ended(process) == 143
    assert re.search(rf"nanocontrol.nano.train {part} --resume run$", said(Path()))


def losses_of(run: str) -> dict[int, float]:
    entries = map(json.loads, Path(run, "log.jsonl").read_text().splitlines())
    return {entry["step"]: entry["loss"] for entry in entries if "loss" in entry}


@pytest.mark.slow
def test_two_processes_can_be_resumed_as_one_elsewhere(begin, flags, pairs):
    """On a machine where data, cache and run have other places."""
    flags = [*flags, "--cache", Path("cache").resolve(), "--schedule", "constant"]
    for name, steps in (("whole", "12"), ("run", "6")):
        out = Path(name).resolve()
        pair = begin_two(begin, *flags, "--steps", steps, "--out", out)
        assert [ended(process) for process in pair] == [0, 0], said(Path("p0"))
    shutil.copytree(pairs, "same-pairs")
    shutil.move("cache", "same-cache"), shutil.move("run", "same-run")
    more = ["--steps", "12", "--accumulate", "2", "--data", "same-pairs", "--cache", "same-cache"]
    assert ended(begin("--resume", "same-run", *more)) == 0, said(Path())
    assert not Path("cache").exists() and len([*Path("same-cache/encoded").iterdir()]) == 1
    whole, run = losses_of("whole"), losses_of("same-run")
    assert whole.keys() == run.keys() and len(whole) == 12
    assert all(whole[step] == pytest.approx(run[step], rel=1e-4) for step in whole)


@pytest.mark.slow
def test_processes_with_other_data_or_flags_end_in_one_sentence(begin):
    """As on two machines with lists of their own."""
    write_pairs(Path("a"), n=8), write_pairs(Path("b"), n=9)
    same = ["--base", NANO, "--steps", "2", "--size", "64", "--no-cache"]
    same += ["--out", Path("run").resolve()]
    a, b = (["--data", Path(name).resolve()] for name in "ab")
    for second, words in ((b, "their data"), ([*a, "--lr", "2e-3"], "their flags")):
        pair = begin_two(begin, *same, *a, second=[*same, *second])
        assert [ended(process) for process in pair] == [2, 2]
        for folder in (Path("p0"), Path("p1")):
            assert f"the processes differ in {words}: expected the same" in said(folder)


# The same path on two machines leads to each one's own disk, as this one to a process's own folder.
OWN_DISK = "/proc/self/cwd"


@pytest.mark.slow
def test_two_machines_with_disks_of_their_own_end_in_one_sentence(begin):
    flags = ["--base", NANO, "--steps", "2", "--batch-size", "3", "--size", "64", "--no-cache"]
    flags += ["--data", f"{OWN_DISK}/pairs", "--out", f"{OWN_DISK}/run"]
    for name in ("p0", "p1"):
        Path(name).mkdir()
        write_pairs(Path(name, "pairs"), n=8)
    pair = begin_two(begin, *flags, machines=2)
    assert [ended(process) for process in pair] == [2, 2]
    for folder in (Path("p0"), Path("p1")):
        assert f"{OWN_DISK}/run is not the same folder on all machines" in said(folder)
    assert (
        "8 pairs, 2 held out; the others will be seen 2.0 times each"
        in Path("p0/output").read_text()
    )
    shutil.rmtree("p1/pairs")
    pair = begin_two(begin, *flags, machines=2)
    assert [ended(process) for process in pair] == [2, 2]
    assert f"--data: {OWN_DISK}/pairs cannot be read" in said(Path("p1"))
    assert "another process ended" in said(Path("p0"))


@pytest.mark.slow
def test_when_a_machine_is_lost_the_other_prints_the_whole_command(begin, flags):
    flags = [*flags, "--steps", "500", "--cache", Path("cache").resolve()]
    pair = begin_two(begin, *flags, "--out", Path("run").resolve(), machines=2)
    wait_until(saved("run"), pair[0])
    pair[1].kill()
    assert ended(pair[0]) == 2
    command = "torchrun --nproc-per-node 1 --nnodes 2 --rdzv-backend c10d --rdzv-endpoint HOST:PORT"
    assert "another process ended" in said(Path("p0")) and command in said(Path("p0"))
    whole = torch.load("run/state.pt", weights_only=True)
    assert 0 < whole["step"] < 500


def of_another_version(rank: int, port: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    both = Processes("cpu")
    both.compare(Path("shared"), {})
    with mock.patch.object(torch, "__version__", f"2.{rank}"):
        with pytest.raises(InputError, match="differ in their versions of nanocontrol or PyTorch"):
            both.compare(Path("shared"), {})
    both.leave()


def compared(rank: int, port: str) -> None:
    """In a process of its own: its folder is not the other one's."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    both = Processes("cpu")
    both.compare(Path("shared"), {"their data": "the same"})
    if rank == 0:  # the one that removes the file
        assert not [*Path("shared").iterdir()]
    with pytest.raises(InputError, match=r"own\d is not the same folder on all machines"):
        both.compare(Path(f"own{rank}"), {"their data": "the same"})
    both.leave()


def left_alone(rank: int, port: str) -> None:
    """The second process is alive and does not answer."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with mock.patch.object(processes, "LONGEST_STEP", timedelta(seconds=3)):
        both = Processes("cpu")
    both.hurry()  # as when training has begun
    try:
        for waits in (lambda: both.largest(0), lambda: both.mean(torch.ones(1)), both.wait):
            while rank == 1 and not Path("ended").exists():
                time.sleep(0.1)
            with pytest.raises(RuntimeError) as error:
                waits()
            assert processes.is_of_others(error.value)
    finally:
        Path("ended").touch()


@pytest.mark.slow
@pytest.mark.parametrize("function", [compared, of_another_version, left_alone])
def test_processes_that_differ_or_do_not_answer_end_in_one_sentence(function):
    port = free_port()
    pair = [
        multiprocessing.get_context("spawn").Process(target=function, args=(i, port))
        for i in (0, 1)
    ]
    try:
        for process in pair:
            process.start()
        assert [ended(process) for process in pair] == [0, 0]
    finally:
        for process in pair:
            process.kill()


@pytest.mark.slow
def test_two_processes_stop_after_the_same_step(begin, flags):
    flags = [*flags, "--steps", "500", "--cache", Path("cache").resolve()]
    pair = begin_two(begin, *flags, "--out", Path("run").resolve())
    wait_until(saved("run"), pair[0])
    os.kill(pair[1].pid, signal.SIGTERM)  # one process is enough
    assert [ended(process) for process in pair] == [143, 143]
    assert "torchrun --nproc-per-node 2" in said(Path("p0"))
    kept = torch.load("run/state.pt", weights_only=True)["step"]
    logged = [json.loads(line)["step"] for line in Path("run/log.jsonl").read_text().splitlines()]
    assert max(logged) == kept


# ------------------------------------------------------------------------------------ a full disk


# The limit of a file in bytes, and the file that exceeds it: the ControlNet has 8 MB, the state 23.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "name"), [(15_000_000, "state.pt"), (5_000_000, "control.safetensors")]
)
def test_a_full_disk_is_reported_and_the_previous_state_is_kept(begin, flags, limit, name):
    process = begin(*flags, "--out", "run")
    wait_until(saved("run", 3), process)
    os.kill(process.pid, signal.SIGINT)
    assert ended(process) == 130
    before = {file: content(Path("run", file)) for file in ("state.pt", "control.safetensors")}
    assert ended(begin("--resume", "run", limit=limit)) == 2
    assert f"{name} could not be written" in said(Path())
    assert not list(Path("run").rglob("*.tmp"))
    assert content(Path("run/state.pt")) == before["state.pt"]
    if name != "state.pt":
        assert content(Path("run/control.safetensors")) == before["control.safetensors"]


@pytest.mark.slow
def test_a_cache_that_does_not_fit_is_reported(begin, flags):
    assert ended(begin(*flags, "--out", "run", limit=20_000)) == 2
    assert "could not be written" in said(Path()) and not list(Path("cache").glob("*.tmp"))


# -------------------------------------------------------------------------------- two runs at once


@pytest.mark.slow
def test_a_folder_belongs_to_one_run_at_a_time(begin, flags, tmp_path):
    first = begin(*flags, "--out", "run", "--steps", "500")
    wait_until(saved("run"), first)
    for argv in (["--resume", tmp_path / "run"], [*flags, "--out", tmp_path / "run"]):
        assert ended(begin(*argv, folder=tmp_path / "second")) == 2
        words = "another run is using it" if "--resume" in argv else "already holds a run"
        assert words in said(tmp_path / "second")
    os.kill(first.pid, signal.SIGKILL)
    assert ended(first) == -signal.SIGKILL  # the kill releases its lock
    process = begin("--resume", "run")
    wait_until(saved("run", 3), process)


@pytest.mark.slow
def test_two_runs_that_start_at_once_get_a_folder_each(begin, flags):
    pair = [begin(*flags, "--steps", "1") for _ in range(2)]
    assert [ended(process) for process in pair] == [0, 0]
    runs = sorted(path.name for path in Path("runs").iterdir())
    assert runs == ["control-1", "control-2"]
    assert all(Path("runs", run, "metrics.json").exists() for run in runs)


@pytest.mark.slow
def test_the_second_of_two_runs_with_one_new_folder_is_refused(begin, flags):
    pair = [begin(*flags, "--out", "run") for _ in range(2)]
    assert sorted(ended(process) for process in pair) == [0, 2]
