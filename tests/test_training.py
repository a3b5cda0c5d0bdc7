"""Options that save time or memory do not change what a training learns."""

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import in_float64
import train
from conftest import CONTROL, NANO, randomise, refusal, write_pairs
from in_float64 import ROUNDING
from nanocontrol import DDPM, ControlNet, UNet, load_control, load_sd
from nanocontrol.nano.scenes import Scenes
from nanocontrol.plumbing.canny import canny
from nanocontrol.plumbing.errors import InputError, one_sentence
from nanocontrol.plumbing.machine import Conv3x3
from nanocontrol.plumbing.pictures import as_tensor, read_image
from nanocontrol.training import batches, cache, optimizer, store
from nanocontrol.training.batches import Batch, encode, in_unit
from nanocontrol.training.cache import batches_from
from nanocontrol.training.pairs import Folder, View
from nanocontrol.training.processes import Processes
from nanocontrol.training.run import RunFolder
from nanocontrol.unet import UNetConfig, res_block

pytestmark = pytest.mark.usefixtures("blind")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"), n=10)  # two are held out


@pytest.fixture
def flags(pairs) -> list[str]:
    """Flags that continue from a trained ControlNet, where all gradients are non-zero."""
    return [
        "--base",
        NANO,
        "--data",
        str(pairs),
        "--size",
        "64",
        "--init-control",
        CONTROL,
        "--lr",
        "1e-4",
    ] + ["--steps", "1", "--sample-every", "9", "--device", "cpu", "--dtype", "fp32"]


def losses(run: str) -> list[float]:
    entries = map(json.loads, (Path(run) / "log.jsonl").read_text().splitlines())
    return [entry["loss"] for entry in entries if "loss" in entry]


def gradients(run: str) -> dict[str, torch.Tensor]:
    """Gradients of a run of one step, times 0.1: AdamW's first moments."""
    state = torch.load(Path(run) / "state.pt", weights_only=True)["optimizer"]["state"]
    return {str(i): moments["exp_avg"] for i, moments in state.items()}


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Norm of the difference, relative to the norm of a."""
    assert a.keys() == b.keys() and len(a) > 10
    away = sum((a[name] - b[name]).double().square().sum() for name in a)
    return (away / sum(a[name].double().square().sum() for name in a)).sqrt().item()


# ------------------------------------------------------------------------------------ the cache


@pytest.mark.slow
def test_training_with_the_cache_equals_training_without(flags, tmp_path):
    """A wrong picture or prompt would change the losses by 10 % or more."""
    flags += ["--steps", "2", "--batch-size", "5"]
    in_float64.main([*flags, "--no-cache", "--out", "without"])
    assert not (tmp_path / "cache").exists()
    in_float64.main([*flags, "--out", "with"])
    assert len(list((tmp_path / "cache" / "encoded").iterdir())) == 1
    assert losses("with") == pytest.approx(losses("without"), rel=10 * ROUNDING)
    times = [file.stat().st_mtime_ns for file in (tmp_path / "cache/encoded").iterdir()]
    in_float64.main([*flags, "--out", "again"])  # the cache is reused
    assert times == [file.stat().st_mtime_ns for file in (tmp_path / "cache/encoded").iterdir()]
    assert losses("again") == losses("with")


@pytest.mark.slow
def test_pairs_that_are_seen_once_are_not_cached(flags, tmp_path):
    train.main([*flags, "--steps", "2", "--batch-size", "4", "--out", "run"])
    assert not (tmp_path / "cache/encoded").exists()


@pytest.fixture(scope="module")
def nano():
    return load_sd(NANO)


@pytest.fixture
def sd(nano):
    """Nano with its own copy of the encoders, so that a test can change them."""
    return replace(nano, vae=copy.deepcopy(nano.vae), text_encoder=copy.deepcopy(nano.text_encoder))


def fill(sd, dataset, folder: Path) -> cache.Cached:
    with torch.no_grad():
        keys, found = cache.encode_all(sd, dataset, folder, 4)
    keys.update(found)
    return cache.Cached(dataset, folder, keys)


def files_in(folder: Path) -> dict[Path, int]:
    """The cache's files with their times."""
    return {file: file.stat().st_mtime_ns for file in (folder / cache.FOLDER).iterdir()}


def rows_in(folder: Path) -> dict[str, int]:
    """The number of rows of each kind in the cache's files."""
    parts = [load_file(file) for file in files_in(folder)]
    kinds = "latents", "contexts", "edges"
    return {kind: sum(len(part[kind]) for part in parts if kind in part) for kind in kinds}


def test_processes_share_the_encoding(sd, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "IN_FILE", 2)
    scenes = Scenes("canny", n=9)
    with torch.no_grad():
        keys, _ = cache.encode_all(sd, scenes, tmp_path, 4, (1, 2))
    found = store.Store(tmp_path / cache.FOLDER).find(keys.every["latents"]) >= 0
    assert found.tolist() == [False, False, True, True, False, False, True, True, False]
    with pytest.raises(InputError, match="files disappeared"):
        cache.Cached(scenes, tmp_path, keys)
    own = files_in(tmp_path)
    with torch.no_grad():
        keys, _ = cache.encode_all(sd, scenes, tmp_path, 4, (0, 2))
    assert rows_in(tmp_path)["latents"] == 9 and own.items() <= files_in(tmp_path).items()
    alone = fill(sd, scenes, tmp_path / "alone")
    for ours, theirs in zip(cache.Cached(scenes, tmp_path, keys), alone):
        assert all(map(torch.equal, ours, theirs))


def test_the_cache_holds_the_encoders_outputs(sd, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "IN_FILE", 4)
    scenes = Scenes("depth", n=10)
    # In float64 a batch differs from its single pictures by 1e-13 only.
    sd.vae.double(), sd.text_encoder.double()
    cached = fill(sd, scenes, tmp_path)
    assert len(cached) == 10 and len(files_in(tmp_path)) == 3
    # Reader processes receive the file names and open the files themselves.
    elsewhere = pickle.loads(pickle.dumps(cached))
    assert not elsewhere.rows.parts and torch.equal(elsewhere[5][0], cached[5][0])
    for i in (0, 5, 9):
        mean, deviation, context, hint = cached[i]
        image, true_hint, prompt = scenes[i]
        with torch.no_grad():
            true_mean, logvar = sd.vae.encode(image[None].double())
            for ours, true in [
                (mean, true_mean[0]),
                (deviation, (0.5 * logvar[0]).exp()),
                (context, sd.encode_prompts(prompt)[0]),
            ]:
                torch.testing.assert_close(ours, true, rtol=1e-9, atol=1e-9)
        assert torch.equal(hint, true_hint)


@pytest.mark.slow
def test_a_changed_input_gets_other_rows(sd, tmp_path, monkeypatch):
    """Latents and contexts depend on what they are computed from, and on nothing else."""
    view = View((64, 64))
    pairs = write_pairs(tmp_path / "first", n=4)
    fill(sd, Folder([pairs], view), tmp_path / "cache")
    changed = tmp_path / "pairs"
    write_pairs(changed, n=4)
    before = rows_in(tmp_path / "cache")
    assert before == {"latents": 4, "contexts": 4, "edges": 0}
    fill(sd, Folder([changed], view), tmp_path / "cache")  # equal pairs in another folder
    assert rows_in(tmp_path / "cache") == before
    list_of_pairs = (changed / "prompt.json").read_text()
    for change, latents, contexts in [
        ("prompt", 0, 1),
        ("picture", 1, 0),
        ("vae", 4, 4),
        ("text", 4, 4),
        ("size", 4, 0),
        ("version", 4, 4),
        ("precision", 4, 4),
    ]:
        if change == "prompt":
            (changed / "prompt.json").write_text(list_of_pairs.replace("ball", "cube", 1))
        if change == "picture":
            entry = json.loads(list_of_pairs.splitlines()[3])
            (changed / entry["target"]).write_bytes((changed / entry["source"]).read_bytes())
        if change == "vae":
            sd.vae.quant_conv.bias.data[0] += 1e-6
        if change == "text":
            sd.text_encoder.text_model.final_layer_norm.bias.data[0] += 1e-6
        if change == "size":
            view = view._replace(size=(128, 64))
        if change == "version":
            monkeypatch.setattr(store, "VERSION", store.VERSION + 1)
        if change == "precision":
            sd.vae.bfloat16(), sd.text_encoder.bfloat16()
        folder = Folder([changed], view)
        cached = fill(sd, folder, tmp_path / "cache")
        after = rows_in(tmp_path / "cache")
        made = after["latents"] - before["latents"], after["contexts"] - before["contexts"]
        assert made == (latents, contexts), change
        with torch.no_grad():
            for i in range(4):
                mean, *_ = encode(sd, folder[i][0][None], [folder[i][2]])
                torch.testing.assert_close(cached[i][0], mean[0], rtol=1e-2, atol=1e-2)
        before = after


def test_other_hints_use_the_same_cache(sd, tmp_path):
    fill(sd, Scenes("depth", n=3), tmp_path)
    before = files_in(tmp_path)
    fill(sd, Scenes("canny", n=3), tmp_path)
    assert files_in(tmp_path) == before
    fill(sd, Scenes("canny", first=1, n=3), tmp_path)
    assert rows_in(tmp_path)["latents"] == 4  # two are the same scenes


def test_an_interrupted_or_damaged_cache_is_completed(sd, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "IN_FILE", 2)
    scenes, encode, calls = Scenes("canny", n=8), cache.encode, []

    def power_fails(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(*args)

    with monkeypatch.context() as patch:
        patch.setattr(cache, "encode", power_fails)
        with pytest.raises(KeyboardInterrupt):
            fill(sd, scenes, tmp_path)
    kept = files_in(tmp_path)
    assert len(kept) == 2
    first = next(iter(kept))
    first.write_bytes(first.read_bytes()[:-8])
    cached = fill(sd, scenes, tmp_path)
    now = files_in(tmp_path)
    assert len(now) == 4 and len(cached) == 8
    assert [file for file in kept if now[file] != kept[file]] == [first]


def test_too_little_disk_space_is_reported_before_anything_is_written(
    flags, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    message = refusal(
        train.main, capsys, *flags, "--steps", "6", "--batch-size", "4", "--out", "run"
    )
    assert "--cache" in message and "needs 0.0 GB" in message and "--no-cache" in message
    assert not list((tmp_path / "cache/encoded").iterdir())


@pytest.mark.parametrize("hints", ["canny", None])
def test_a_cached_step_opens_hint_files_only(sd, pairs, tmp_path, opened_files, hints):
    folder = Folder([pairs], View((64, 64), hints=hints))
    fill(sd, folder, tmp_path)
    how = Processes("cpu"), "cpu", 0, 9, 2, 1, str(tmp_path)
    batches = batches_from(0, sd, folder, *how)
    opened_files.start()
    for _ in range(5):  # an epoch
        next(batches)
    expected = set() if hints else {f"hint{i}.png" for i in range(10)}
    assert {*opened_files.names()} == expected


def test_edges_depend_on_the_seed_and_encodings_do_not(sd, pairs, tmp_path):
    for seed, rows in (0, 10), (0, 10), (1, 20):
        folder = Folder([pairs], View((64, 64), hints="canny", seed=seed))
        cached = fill(sd, folder, tmp_path)
        assert rows_in(tmp_path) == {"latents": 10, "contexts": 10, "edges": rows}
        for i in range(10):
            assert torch.equal(in_unit(cached[i][3]), folder.read_hint(i))
    for file in files_in(tmp_path):
        assert load_file(file)["bits"].shape == (10, 64, 8)  # a bit per pixel


@pytest.mark.parametrize(("prompts", "kept"), [([""] * 6, 1), (["a", "", "a", "b", "", "b"], 3)])
def test_the_cache_holds_each_context_once(sd, tmp_path, monkeypatch, prompts, kept):
    write_pairs(tmp_path / "pairs", n=6)
    lines = (tmp_path / "pairs/prompt.json").read_text().splitlines()
    lines = [json.dumps(json.loads(x) | {"prompt": p}) for x, p in zip(lines, prompts)]
    (tmp_path / "pairs/prompt.json").write_text("\n".join(lines))
    folder = Folder([tmp_path / "pairs"], View((64, 64)))
    cached = fill(sd, folder, tmp_path / "cache")
    assert rows_in(tmp_path / "cache")["contexts"] == kept
    for prompt, (_, _, context, _) in zip(prompts, cached):
        torch.testing.assert_close(context, sd.encode_prompts(prompt)[0], rtol=1e-5, atol=1e-5)
    # The space that is asked for is that of the files, without their headers.
    needed = sum(
        x.nbytes for file in files_in(tmp_path / "cache") for x in load_file(file).values()
    )
    monkeypatch.setattr(store, "VERSION", store.VERSION + 1)
    for free in (needed - 1, needed):
        usage = type("Usage", (), {"free": free})
        monkeypatch.setattr(store.shutil, "disk_usage", lambda _, usage=usage: usage)
        with pytest.raises(InputError) if free < needed else nullcontext():
            fill(sd, folder, tmp_path / "cache")


def with_captions(pairs: Path, folder: Path, captions: Callable[[int], object]) -> Path:
    """A copy of the pairs with other captions: a text or a list for each number."""
    shutil.copytree(pairs, folder)
    lines = [json.loads(x) for x in (pairs / "prompt.json").read_text().splitlines()]
    lines = [json.dumps(x | {"prompt": captions(i)}) for i, x in enumerate(lines)]
    (folder / "prompt.json").write_text("\n".join(lines))
    return folder


def test_one_of_several_captions_is_drawn_from_the_cache(sd, pairs, tmp_path):
    texts = ["a cat", ["a cat", "a dog"], ["", "a dog", "a cup"]]
    data = with_captions(pairs, tmp_path / "pairs", lambda i: texts[i % 3])
    folder = Folder([data], View((64, 64)))
    cached = fill(sd, folder, tmp_path / "cache")
    assert len({*cached.places["contexts"].tolist()}) == 4
    drawn = set()
    for seen in range(40):
        i = seen % len(folder)
        prompt = folder[i, seen][2]
        drawn.add((i % 3, prompt))
        context = sd.encode_prompts(prompt)[0]
        torch.testing.assert_close(cached[i, seen][2], context, rtol=1e-5, atol=1e-5)
    assert len(drawn) == 6
    torch.testing.assert_close(cached[2][2], sd.encode_prompts("")[0], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_cache_changes_no_draw_of_captions(flags, pairs, tmp_path):
    """Nor do captions change another draw: several equal ones are as good as one."""
    several = with_captions(pairs, tmp_path / "several", lambda i: [f"cat {i}", "a dog", "a cup"])
    one = with_captions(pairs, tmp_path / "one", lambda i: f"cat {i}")
    equal = with_captions(pairs, tmp_path / "equal", lambda i: [f"cat {i}"] * 3)
    flags += ["--steps", "3", "--batch-size", "5", "--drop-prompt", "0.2", "--mirror"]
    for run, data, more in [
        ("without", several, ["--no-cache"]),
        ("with", several, []),
        ("one", one, []),
        ("equal", equal, []),
    ]:
        flags[flags.index("--data") + 1] = str(data)
        in_float64.main([*flags, *more, "--out", run])
    assert losses("with") == pytest.approx(losses("without"), rel=10 * ROUNDING)
    assert losses("equal") == losses("one") != losses("with")


@pytest.mark.slow
@pytest.mark.parametrize("hints", [["--hints", "canny"], []])
def test_hints_keep_their_bits_on_every_way(flags, pairs, monkeypatch, hints):
    """Bytes and cached bits give the weights that float32 hints give. Half of the hint files are
    coloured pictures here, because 0 and 255 survive any way of scaling. The others are grey."""

    def one_by_one(sd, images, prompts):  # so that rounding does not depend on the batch
        ones = (encode(sd, image[None], [p]) for image, p in zip(images, prompts))
        return tuple(map(torch.cat, zip(*ones)))

    for module in (batches, cache):
        monkeypatch.setattr(module, "encode", one_by_one)
    shutil.copytree(pairs, "coloured")
    lines = Path("coloured/prompt.json").read_text().splitlines()
    lines = [line.replace('"hint', '"image') if i % 2 else line for i, line in enumerate(lines)]
    Path("coloured/prompt.json").write_text("\n".join(lines))
    flags[flags.index(str(pairs))] = "coloured"
    flags += [*hints, "--steps", "3", "--batch-size", "4"]
    train.main([*flags, "--out", "cached"])
    train.main([*flags, "--no-cache", "--out", "not-cached"])

    def from_picture(cached: cache.Cached, i: tuple[int, int]) -> tuple[torch.Tensor, ...]:
        entry = cached.pairs.entries[i[0]]
        picture = as_tensor(read_image(entry.hint or entry.picture))
        hint = canny(picture, *cached.pairs.thresholds(entry)) if hints else picture
        return *item(cached, i)[:3], hint

    item = cache.Cached.__getitem__
    monkeypatch.setattr(cache.Cached, "__getitem__", from_picture)
    monkeypatch.setattr(cache, "encoded", lambda sd, columns, device: (Batch(*x) for x in columns))
    train.main([*flags, "--out", "floats"])
    weights = [
        load_file(f"{run}/control.safetensors") for run in ("cached", "not-cached", "floats")
    ]
    assert losses("cached") == losses("not-cached") == losses("floats")
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name]) and torch.equal(weight, weights[2][name])


def test_readers_share_the_cores_of_the_machine(monkeypatch):
    for cores, processes, number in (1, 1, 1), (2, 1, 2), (6, 2, 3), (96, 8, 8), (4, 8, 1):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=cores: range(n), raising=False)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert batches.readers("cuda") == number and batches.readers("cpu") == 0


@pytest.mark.parametrize(
    "error",
    [
        "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)",
        "DataLoader worker (pid 1) is killed by signal: Bus error. It is possible that "
        "dataloader's workers are out of shared memory. Please try to raise your limit.",
    ],
)
def test_too_little_shared_memory_is_reported(capsys, error):
    with pytest.raises(SystemExit) as end, one_sentence("train.py", "use a smaller --batch-size"):
        raise RuntimeError(error)
    assert "shared memory" in str(end.value) and "--shm-size" in str(end.value)
    assert "--batch-size" not in str(end.value)


def test_a_steps_draws_depend_on_seed_and_step_only():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    draws = train.random_draws(0, 5, 4, (64, 64), 0.5)
    assert torch.equal(state, torch.get_rng_state())  # the global generator is unchanged
    again = train.random_draws(0, 5, 4, (64, 64), 0.5)
    assert all(torch.equal(a, b) for a, b in zip(draws, again))
    for seed, step in (0, 6), (1, 5), (5, 0):
        other = train.random_draws(seed, step, 4, (64, 64), 0.5)
        assert not torch.isclose(draws.noise, other.noise).any()
        assert not torch.isclose(draws.posterior, other.posterior).any()
    assert not torch.isclose(draws.noise, draws.posterior).any()
    many = train.random_draws(3, 0, 20_000, (8, 8), 0.25)
    assert 0.23 < many.no_prompt.float().mean() < 0.27
    assert many.t.min() == 0 and many.t.max() == 999


def test_latents_are_drawn_and_some_prompts_are_dropped(monkeypatch):
    """The cache holds the posterior. Each step draws a latent from it."""
    seen = []
    monkeypatch.setattr(train, "diffusion_loss", lambda *given: seen.append(given))
    mean, deviation, hint = (
        torch.randn(2, 4, 8, 8),
        torch.rand(2, 4, 8, 8),
        torch.rand(2, 3, 64, 64),
    )
    context, empty = torch.randn(2, 77, 64), torch.randn(1, 77, 64)
    draws = train.random_draws(0, 0, 2, (64, 64), 0.5)._replace(
        no_prompt=torch.tensor([True, False])
    )
    batch = Batch(mean, deviation, context, hint)
    train.training_loss(None, None, None, 0.5, batch, draws, empty)
    _, _, _, x0, its_hint, its_context, noise, t = seen[0]
    assert torch.allclose(x0 / 0.5, mean + deviation * draws.posterior, atol=1e-6)
    assert torch.equal(its_context, torch.stack([empty[0], context[1]]))
    assert its_hint is hint and torch.equal(noise, draws.noise) and torch.equal(t, draws.t)


# ----------------------------------------------------------- equivalent ways to compute a step


def test_a_loss_per_pair_equals_one_mean_bitwise(monkeypatch):
    """With 128 pixels and two pairs all divisors are powers of two, so division is exact."""
    flags = ["--steps", "4", "--batch-size", "2", "--scenes", "8", "--device", "cpu"]
    train.main([*flags, "--out", "per-pair"])

    def one_mean(unet, control, diffusion, x0, hint, context, noise, t):
        x_t, target = diffusion.add_noise(x0, noise, t), diffusion.target(x0, noise, t)
        output = unet(x_t, t, context, control(x_t, hint, t, context))
        return torch.nn.functional.mse_loss(output.float(), target)

    monkeypatch.setattr(train, "diffusion_loss", one_mean)
    train.main([*flags, "--out", "one-mean"])
    ours, theirs = (load_file(f"{run}/control.safetensors") for run in ("per-pair", "one-mean"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert losses("per-pair") == pytest.approx(losses("one-mean"), abs=1e-6)


def assert_same_step(a: str, b: str) -> None:
    """Losses are float32 means of 1024 squares: 1e-5 is ten times their rounding. Gradients are in
    float64. A wrong pair, draw or divisor changes both by 1e-2 or more."""
    assert losses(b) == pytest.approx(losses(a), rel=1e-5)
    assert distance(gradients(a), gradients(b)) < ROUNDING


@pytest.mark.slow
def test_four_passes_equal_a_batch_of_four(flags):
    in_float64.main([*flags, "--batch-size", "4", "--out", "batch"])
    in_float64.main([*flags, "--batch-size", "1", "--accumulate", "4", "--out", "passes"])
    assert_same_step("batch", "passes")


@pytest.mark.slow
@pytest.mark.parametrize("only_mid", [False, True])
def test_two_processes_equal_one_with_twice_the_passes(flags, only_mid, tmp_path):
    flags += ["--batch-size", "1"] + ["--only-mid-control"] * only_mid
    in_float64.main([*flags, "--accumulate", "4", "--out", "one"])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    torchrun += ["--standalone", in_float64.__file__]
    command = [*torchrun, *flags, "--accumulate", "2", "--out", "two"]
    logs_here = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=logs_here)
    assert done.returncode == 0, done.stderr
    assert_same_step("one", "two")


@pytest.mark.slow
def test_low_memory_computes_the_same_gradients(flags):
    """Gradient checkpointing recomputes blocks, with equal gradients."""
    flags += ["--batch-size", "2", "--accumulate", "2"]
    in_float64.main([*flags, "--out", "plain"])
    in_float64.main([*flags, "--low-memory", "--out", "small"])
    assert_same_step("plain", "small")


def test_checkpointed_blocks_save_fewer_tensors(flags):
    def kept(*more: str) -> int:
        """Bytes that autograd saves for the backward pass, without weights."""
        settings = train.parse([*flags, *more, "--batch-size", "2", "--accumulate", "1"])[0]
        sd, control, _ = train.models(settings)
        weights = {p.data_ptr() for m in (sd.unet, control) for p in m.parameters()}
        saved: dict[int, int] = {}

        def pack(x: torch.Tensor) -> torch.Tensor:
            if x.data_ptr() not in weights:
                saved[x.data_ptr()] = x.numel() * x.element_size()
            return x

        x, t, context = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.randn(2, 77, 64)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            hint = torch.rand(2, 3, 64, 64)
            train.diffusion_loss(sd.unet, control, DDPM(), x, hint, context, x, t)
        return sum(saved.values())

    assert kept("--low-memory") < 0.6 * kept()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("more", [[], ["--low-memory"]])
def test_half_precision_training_updates_float32_weights(flags, dtype, more):
    """The optimizer holds float32 weights, the network computes with rounded ones."""
    flags += ["--dtype", dtype, *more, "--lr", "1e-6", "--steps", "2"]
    flags += ["--batch-size", "1", "--accumulate", "2"]
    train.main([*flags, "--out", "a"])
    unet = load_sd(NANO).unet
    before, after = (load_control(file, unet) for file in (CONTROL, "a/control.safetensors"))
    moved = [(a - b).abs().max().item() for a, b in zip(after.parameters(), before.parameters())]
    # AdamW's first steps have the size of the learning rate, far below bf16's resolution.
    assert 1e-6 < max(moved) < 3e-6
    train.main([*flags, "--steps", "1", "--out", "half"])
    train.main([*flags, "--steps", "1", "--dtype", "fp32", "--out", "exact"])
    assert 1e-5 < distance(gradients("exact"), gradients("half")) < 0.1
    train.main(["--resume", "half", "--steps", "2"])
    assert losses("half") == losses("a")


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_networks_compute_with_rounded_weights_and_save_float32(flags, dtype):
    settings = train.parse([*flags, "--dtype", dtype, "--out", "run"])[0]
    sd, control, trained = train.models(settings)
    before = {name: weight.clone() for name, weight in control.state_dict().items()}
    train.optimizer_for(settings, trained)
    rounded = optimizer.PRECISIONS[dtype]
    assert {p.dtype for net in (sd.unet, control) for p in net.parameters()} == {rounded}
    after = control.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_gradients_of_passes_are_summed_before_a_step():
    network = nn.Linear(3, 2)
    exact = optimizer.Optimizer({"": network}, 1e-3, "cpu", "bf16")
    for _ in range(2):
        exact.backward(network(torch.ones(1, 3).bfloat16()).sum())
    exact.collect_gradients()
    assert torch.equal(exact.weights[0].grad, torch.full((2, 3), 2.0))


# ------------------------------------------------------------------------- the state of a run

FRESH = {"step": 0, "seconds": 0.5, "processes": 1, "skipped_in_a_row": 0, "pairs": "abc"}
NEW = {"step": 2, "seconds": 7.5, "processes": 2, "skipped_in_a_row": 1, "pairs": "def"}


class Halves(nn.Module):
    """Two layers. The second one is not used, so it has no gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


def one_step(dtype: str = "fp32", lr: float = 1e-3) -> optimizer.Optimizer:
    network = Halves() if dtype == "fp32" else nn.Linear(3, 2)
    made = optimizer.Optimizer({"net": network}, 1e-3, "cpu", dtype)
    made.set_lr(lr)
    loss = network(torch.ones(1, 3).to(optimizer.PRECISIONS[dtype])).sum()
    made.backward(loss)
    made.step(loss.detach())
    return made


def saved(dtype: str, lr: float = 1e-3) -> tuple[RunFolder, dict]:
    """A run's folder after a step, and the content of its state.pt."""
    run = RunFolder(Path.cwd())
    (run.path / "log.jsonl").touch()
    run.save(NEW, one_step(dtype, lr))
    return run, torch.load(run.path / "state.pt", weights_only=True)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_saved_state_is_restored(dtype):
    run, before = saved(dtype, lr=3e-4)  # as after the last step of --schedule cooldown
    other = one_step(dtype)
    assert run.restore(other, FRESH, steps=2) == NEW
    other.set_lr(3e-4)
    run.save(NEW, other)
    after = torch.load(run.path / "state.pt", weights_only=True)
    assert repr(after) == repr(before) and "exp_avg" in repr(after)


def first(state: dict) -> dict:
    """The moments of the first weight [2, 3]."""
    return state["optimizer"]["state"][0]


def group(state: dict) -> dict:
    return state["optimizer"]["param_groups"][0]


DAMAGE = {
    **{
        f"{name}={value!r}": lambda state, name=name, value=value: state.update({name: value})
        for name, values in {
            "step": ["x", None, 2.5, torch.tensor(2), -1, 0, 3, True],
            "seconds": [None, "x", 7, float("nan"), float("inf"), -1.0],
            "processes": [None, "x", 1.0, -1],
            "skipped_in_a_row": [None, "x"],
            "pairs": [None, 1],
            "optimizer": [None, {}, [], {"state": {}}],
            "weights": [None, {}, {"net": {}}],
        }.items()
        for value in values
    },
    "no moments": lambda state: state["optimizer"].update(state={}),
    "moments of no weight": lambda state: state["optimizer"].update(state={99: first(state)}),
    "smaller moment": lambda state: first(state).update(exp_avg=torch.zeros(1)),
    "scalar moment": lambda state: first(state).update(exp_avg_sq=torch.zeros(())),
    "turned moment": lambda state: first(state).update(exp_avg=torch.zeros(3, 2)),
    "longer moment": lambda state: first(state).update(exp_avg_sq=torch.zeros(9, 3)),
    "moment in words": lambda state: first(state).update(exp_avg="x"),
    "moment in a list": lambda state: first(state).update(exp_avg=[1.0, 2.0]),
    "missing moment": lambda state: first(state).pop("exp_avg_sq"),
    "missing step": lambda state: first(state).pop("step"),
    "steps in words": lambda state: first(state).update(step="x"),
    "many steps": lambda state: first(state).update(step=torch.ones(3)),
    "no step": lambda state: first(state).update(step=torch.tensor(float("nan"))),
    "betas": lambda state: group(state).update(betas="x"),
    "other betas": lambda state: group(state).update(betas=(0.9, 0.99)),
    "weight decay": lambda state: group(state).update(weight_decay=None),
    "not fused": lambda state: group(state).update(fused=False),
    "weights": lambda state: group(state).update(params=[0]),
    "smaller weight": lambda state: state["weights"]["net"].update(
        {name: torch.zeros(1) for name in state["weights"]["net"]}
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_state_is_refused(damage):
    """The fused AdamW trusts the moments' shapes: a wrong one would end the process."""
    run, state = saved("fp32")
    damage(state)
    torch.save(state, run.path / "state.pt")
    with pytest.raises(InputError, match=r"state\.pt is damaged or of another version"):
        run.restore(one_step(), FRESH, steps=2)


def test_a_damaged_loss_scale_is_refused():
    run, state = saved("fp16")
    for name in state["scaler"]:
        for value in (None, "x", float("nan")):
            torch.save(state | {"scaler": state["scaler"] | {name: value}}, run.path / "state.pt")
            with pytest.raises(InputError, match="damaged or of another version"):
                run.restore(one_step("fp16"), FRESH, steps=2)


def test_moments_are_restored_in_the_weights_memory_format():
    """A GPU's weights are in another format than a CPU's. The fused AdamW does not compare them."""
    steps = []
    for format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        network = nn.Conv2d(4, 6, 3).to(memory_format=format)
        made, x = optimizer.Optimizer({"": network}, 1e-2, "cpu"), torch.randn(2, 4, 5, 5)
        if steps:
            made.restore(steps[0])
        for _ in range(2 if not steps else 1):
            loss = network(x).square().mean()
            made.backward(loss)
            made.step(loss.detach())
            steps.append(copy.deepcopy(made.state()))
    ours, theirs = (state["weights"][""]["weight"] for state in steps[1:])
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_convolutions_of_small_maps_equal_matrix_products():
    torch.manual_seed(0)
    for stride, (n, h, w) in [(1, (2, 4, 6)), (2, (1, 8, 6)), (2, (1, 5, 7))]:
        conv, x = Conv3x3(640, 24, stride).double(), torch.randn(n, 640, h, w).double()
        results = []
        for compute in (conv, conv._conv_forward, conv.as_matrix_product):
            own = x.clone().requires_grad_()
            out = (
                compute(own, conv.weight, conv.bias)
                if compute == conv._conv_forward
                else (compute(own))
            )
            conv.zero_grad()
            out.square().sum().backward()
            results.append([out, own.grad, conv.weight.grad, conv.bias.grad])
        for a, b, c in zip(*results):
            torch.testing.assert_close(b, c, rtol=1e-9, atol=1e-9)
            assert torch.equal(a, c)
    wide, x = Conv3x3(8, 24), x[:, :8].float()
    assert torch.equal(wide(x), wide._conv_forward(x, wide.weight, wide.bias))


@pytest.mark.slow
def test_compiling_is_optional(flags, monkeypatch):
    """--compile compiles U-Net and ControlNet. Tests marked long run the compiled networks."""
    seen = []
    monkeypatch.setattr(torch, "compile", lambda network: seen.append(type(network)) or network)
    for out, choice, compiled in ("plain", [], []), ("compiled", ["--compile"], [UNet, ControlNet]):
        train.main([*flags, "--batch-size", "1", *choice, "--out", out])
        assert seen == compiled


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Needs a C++ compiler. torch.compile keeps its output in temporary folders."""
    if not any(map(shutil.which, ("g++", "clang++", "c++"))):
        pytest.skip("no C++ compiler")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))


@pytest.mark.slow
def test_without_a_compiler_networks_are_not_compiled(flags):
    from torch._inductor import config

    network, x = nn.Linear(3, 5), torch.randn(2, 3)
    with config.patch({"cpp.cxx": ("no-such-compiler",)}):  # monkeypatch would delete it afterwards
        compiled = train.compiled(network, True)
        assert compiled is not network and torch.equal(compiled(x), network(x))


@pytest.mark.long
def test_a_compiled_block_is_as_accurate(compiler):
    """Compiled bf16 is at most 1.5 times as far from float32 as eager bf16.

    Rounding every value once more would give 1.4 times the distance. Summing in bf16 or dropping a
    term would give far more.
    """
    config = UNetConfig(model_channels=32, context_dim=64)
    block = randomise(res_block(32, 64, level=0, config=config))
    inputs = torch.randn(2, 32, 8, 8), torch.randn(2, 128), torch.randn(2, 77, 64)
    weights = {name: weight.clone() for name, weight in block.state_dict().items()}

    def gradient(network: nn.Module, half: bool) -> dict[str, torch.Tensor]:
        dtype = torch.bfloat16 if half else torch.float32
        block.load_state_dict(weights)
        block.zero_grad()
        block.to(dtype)
        network(*(x.to(dtype) for x in inputs)).float().square().mean().backward()
        return {name: p.grad.float() for name, p in block.named_parameters()}

    exact, eager = gradient(block, False), distance(gradient(block, False), gradient(block, True))
    assert 1e-3 < eager < 0.1
    assert 1e-3 < distance(exact, gradient(torch.compile(block), True)) < 1.5 * eager


@pytest.mark.long
def test_compiled_training_is_as_accurate(flags, compiler):
    found = {}
    for name, more in {
        "fp32": [],
        "bf16": ["--dtype", "bf16"],
        "compiled": ["--compile", "--dtype", "bf16"],
    }.items():
        train.main([*flags, "--batch-size", "2", "--out", name, *more])
        found[name] = gradients(name)
    eager = distance(found["fp32"], found["bf16"])
    assert 1e-4 < eager < 0.1
    assert 1e-4 < distance(found["fp32"], found["compiled"]) < 1.5 * eager
