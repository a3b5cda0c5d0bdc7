"""The conformance suite: the reference passes it, and each mutant fails on its own check."""

import json
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import ROOT, refusal
from nanocontrol.conformance import Result, check_controlnet
from nanocontrol.conformance.__main__ import as_json, main, table
from nanocontrol.conformance.bench import Bench
from nanocontrol.conformance.cases import (
    BASE,
    STORED,
    VERSION,
    error,
    inputs,
    normal,
    shapes,
    stored,
    tolerance,
    unit_of,
    weights,
)
from nanocontrol.conformance.ddim import ORIGINAL
from nanocontrol.conformance.mutants import MUTANTS, InvertedHint
from nanocontrol.conformance.ours import Ours
from nanocontrol.conformance.suite import CHECKS, counts, run_check
from nanocontrol.schedulers import DDIM

LATENTS = 5e-5  # the original computes its time embedding and its schedule with rounding of its own


class InDouble(Ours):
    dtype = "float64"


@pytest.mark.slow
def test_the_reference_passes_every_check():
    results = check_controlnet(Ours())
    assert [r.name for r in results] == [*CHECKS]
    not_run = {r.name for r in results if r.passed is None}
    assert not_run == (set() if torch.cuda.is_available() else {"same_noise_on_every_device"})
    assert not [r for r in results if r.passed is False]


def test_the_reference_passes_quick_checks():
    names = ["zero_at_start", "copy_equals_base", "stored_residuals", "stored_controlled"]
    assert all(r.passed for r in check_controlnet(Ours(), only=names))


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_each_mutant_fails_on_its_own_check_with_its_sentence(name):
    mutant = MUTANTS[name]
    (result,) = check_controlnet(mutant.adapter(), only=[mutant.check])
    assert result.passed is False and mutant.sentence in result.message
    assert result.measured > result.allowed  # it did not fail with an exception


def test_ten_mutants_were_asked_for_and_three_more():
    assert len(MUTANTS) == 13
    assert all(mutant.check in CHECKS for mutant in MUTANTS.values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_diffusers_passes_but_for_the_listed_differences():
    pytest.importorskip("diffusers", reason='the extra `bench`: pip install -e ".[bench]"')
    from nanocontrol.conformance.of_diffusers import OfDiffusers

    results = check_controlnet(OfDiffusers(), OfDiffusers.expected_failures)
    found = {r.name: r.status for r in results}
    expected = {name: "passed" for name in CHECKS}
    expected |= {name: "failed as expected" for name in OfDiffusers.expected_failures}
    expected |= {"exact_resume": "did not run", "same_noise_on_every_device": "did not run"}
    assert found == expected


# ------------------------------------------------------------------------------ the stored cases


def test_the_formula_is_frozen():
    """Other programs make the same weights: a change needs new stored outputs and a version."""
    assert normal("x", 2, 4, 8, 16).ravel()[:2].tolist() == FIRST_OF_X
    assert sum(array.size for array in weights().values()) == 12_634_516
    assert VERSION == stored()["version"] == 1
    assert STORED.stat().st_size < 2e6
    assert all(a.dtype == np.float64 for name, a in stored().items() if name != "version")


FIRST_OF_X = [-2.313544071276628, 0.7954852175063206]


def test_names_and_shapes_are_those_of_the_released_files():
    names = set(shapes())
    assert len(names) == 686 + 340  # as in Stable Diffusion 1 and its ControlNets
    assert "control_model.zero_convs.11.0.weight" in names
    assert "model.diffusion_model.output_blocks.11.1.proj_out.bias" in names


@torch.no_grad()
def test_in_float64_the_stored_outputs_differ_by_the_time_embedding_alone():
    bench = Bench(InDouble()).loaded()
    worst = max(error(r, stored()[f"residual.{k}"]) for k, r in enumerate(bench.residuals()))
    assert worst < 1000 * unit_of("float32") < tolerance("float64")


@pytest.mark.parametrize("wrong", ["eps of norms", "eps of transformers", "GELU", "heads"])
def test_the_stored_outputs_show_small_differences(wrong, monkeypatch):
    """They are far above the tolerance."""
    # The approximate GELU is below the tolerance of float32.
    bench = Bench(InDouble() if wrong == "GELU" else Ours()).loaded()
    adapter = bench.adapter
    for name, module in adapter.unet.named_modules():
        if wrong == "eps of norms" and isinstance(module, torch.nn.GroupNorm):
            module.eps = 1e-6
        if wrong == "eps of transformers" and isinstance(module, torch.nn.GroupNorm):
            module.eps = 1e-5
        if wrong == "heads" and name.endswith("attn2"):
            module.heads = 4
    if wrong == "GELU":
        exact = torch.nn.functional.gelu
        monkeypatch.setattr("torch.nn.functional.gelu", lambda x: exact(x, approximate="tanh"))
    assert error(bench.base(), stored()["base"]) > 2 * bench.tolerance


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddim", "guess"])
def test_the_suites_own_sampling_is_the_originals(name):
    """The checks of sampling compare with this loop. It has to give the original's latents."""
    bench = Bench(InDouble()).loaded()
    powers = 0.825 ** np.arange(12, -1, -1.0)
    scales, without = (powers, 0.0) if name == "guess" else (1.0, 1.0)

    def output(x, t):
        prompt = bench.controlled(x, t, bench.given.context, scales)
        return 3 * prompt - 2 * bench.controlled(x, t, bench.uncond, without)

    assert error(ORIGINAL.latents(output, bench.given.x, 5), stored()[name]) < LATENTS


# --------------------------------------------------------------------------- running and counting


def fails(bench):
    return 1.0, 0.5, "an idea"


def passes(bench):
    return 0.5, 0.5, "an idea"


def is_nan(bench):
    return float("nan"), 1.0, "an idea"


def crashes(bench):
    raise ZeroDivisionError("a division")


def is_missing(bench):
    raise NotImplementedError("loss")


def has_one_device(bench):
    raise NotImplementedError("second device: it has cpu")


def outcome(function, level="must", expected="") -> Result:
    return Result("a name", level, *run_check(function, Bench(object())), expected)


def test_what_makes_the_suite_fail():
    assert outcome(fails).wrong and outcome(is_nan).wrong and outcome(crashes).wrong
    assert not outcome(passes).wrong and not outcome(fails, "should").wrong
    assert not outcome(fails, expected="a reason").wrong
    assert outcome(passes, "may", expected="a reason").wrong
    assert "ZeroDivisionError: a division" in outcome(crashes).message


def test_a_check_that_does_not_run_is_never_green_and_always_counted():
    for function in (is_missing, has_one_device):
        result = outcome(function, expected="a reason")
        assert result.passed is None and result.status == "did not run" and not result.wrong
    results = [outcome(passes), outcome(fails), outcome(is_missing)]
    assert counts(results) == "3 checks: 2 ran, 1 did not. 1 passed, 1 FAILED, 1 did not run."


def test_without_the_required_functions_all_musts_fail():
    results = check_controlnet(object())
    required = {r.name for r in results if r.passed is False}
    assert {"zero_at_start", "stored_residuals"} <= required
    assert not [r for r in results if r.passed]


def test_a_class_without_the_optional_functions_is_an_adapter_too():
    class Six:
        dtype = "float32"

        def __init__(self):
            inner = Ours()
            for name in ("make", "load", "base", "residuals", "predict", "parameters"):
                setattr(self, name, getattr(inner, name))

    names = ["zero_at_start", "loss_for_eps", "guess_mode", "exact_resume", "rows_do_not_mix"]
    found = {r.name: r.passed for r in check_controlnet(Six(), only=names)}
    expected = {"loss_for_eps": None, "guess_mode": None, "exact_resume": None}
    assert found == expected | {"zero_at_start": True, "rows_do_not_mix": True}


def test_a_name_that_no_check_has_is_an_error():
    with pytest.raises(ValueError, match="no check 'zero_at_strat'; expected one of tensors_match"):
        check_controlnet(Ours(), {"zero_at_strat": "a reason"})


def test_equal_bits_become_rounding_for_an_adapter_that_compiles():
    class Compiled(Ours):
        compiles = True

        def predict(self, *given):
            return super().predict(*given) * (1 + 1e-6)

    (result,) = check_controlnet(Compiled(), only=["base_unchanged_at_start"])
    assert result.passed and 0 < result.measured <= result.allowed
    Compiled.compiles = False
    (result,) = check_controlnet(Compiled(), only=["base_unchanged_at_start"])
    assert result.passed is False


class FromZero(DDIM):
    """It visits 0, 200, ... instead of 1, 201, ..."""

    def timesteps(self, steps):
        return [t - 1 for t in super().timesteps(steps)]


class OtherAlphas(FromZero):
    """It visits 0, 200, ..., and its steps' alphas are of 1, 201, ..."""

    def step(self, x, output, t, previous, noise):
        previous = None if previous is None else previous + 1
        return super().step(x, output, t + 1, previous, noise)


class EquallyLong(DDIM):
    """It visits 999, 749, ..., 0, and each of its steps is 1000 / steps long."""

    def timesteps(self, steps):
        self.stride = 1000 // steps
        return [round(t) for t in np.linspace(999, 0, steps)]

    def step(self, x, output, t, previous, noise):
        return super().step(x, output, t, t - self.stride if t >= self.stride else None, noise)


class Broken(Ours):
    """An adapter in which the named function's result is changed."""

    def __init__(self, function: str, change):
        own = getattr(self, function)
        setattr(self, function, lambda *given: change(self, own, *given))


def spoil(adapter, make, config):
    make(config)
    adapter.control.input_blocks[1][0].in_layers[2].weight.data += 1e-3
    torch.nn.init.normal_(adapter.control.input_hint_block[14].weight)


def count_five(adapter, sample, run):
    made, adapter.hints_encoded = sample(run), 5
    return made


BROKEN = {  # the check, the function, its change, and words of the message
    "copy_equals_base": ("make", spoil, "1 tensors are not copies"),
    "gradient_order": ("make", spoil, "gradients at step 2: already in the condition encoder"),
    "number_and_shapes": ("residuals", lambda a, f, *x: f(*x)[:12], "there are 12 residuals"),
    "residuals_pass_zero_convolutions": (
        "residuals",
        lambda a, f, *x: (lambda r: [r[0], r[2], r[1], *r[3:]])(f(*x)),
        "blocks 2 and 3 are exchanged",
    ),
    "loss_for_v": ("make", lambda a, f, c: f(replace(c, prediction="eps")), "the target is eps"),
    "loss_for_eps": ("loss", lambda a, f, b: 1024 * f(b), "a sum, not a mean"),
    "guidance": ("sample", lambda a, f, r: f(replace(r, scale=r.scale + 1)), "one too large"),
    "guess_mode": ("sample", lambda a, f, r: f(replace(r, guess=False)), "guess mode's weights"),
    "hint_encoded_once": ("sample", count_five, "5 times"),
    "rows_do_not_mix": (
        "predict",
        lambda a, f, x, *o: f(x - x.mean(0) / 100, *o),
        "depends on the",
    ),
    "stored_base": ("base", lambda a, f, *x: 1.001 * f(*x), "not the original's network"),
    "stored_residuals": (
        "residuals",
        lambda a, f, *x: [1.001 * r for r in f(*x)],
        "for blocks 1, 2",
    ),
    "stored_controlled": ("predict", lambda a, f, *x: 1.001 * f(*x), "is not the original's"),
    "exact_resume": ("resume", lambda a, f, saved: None, "tensors differ"),
}


@pytest.mark.slow
@pytest.mark.parametrize("check", BROKEN)
def test_the_other_checks_can_fail(check):
    function, change, words = BROKEN[check]
    (result,) = check_controlnet(Broken(function, change), only=[check])
    assert result.passed is False and result.measured > result.allowed
    assert words in result.message


@pytest.mark.slow
@pytest.mark.parametrize(
    "scheduler, words",
    {
        FromZero: "DDIM: its steps begin at 0, not at 1",
        OtherAlphas: "visits and steps disagree: the network is given t that begin at 0",
        EquallyLong: "visits and steps disagree: the network is given t that are spread evenly",
    }.items(),
)
def test_wrong_rules_of_ddim_are_named(scheduler, words):
    adapter = Ours()
    adapter.scheduler = scheduler
    steps, guidance = check_controlnet(adapter, only=["ddim", "guidance"])
    assert steps.passed is False and words in steps.message
    assert "last alpha" not in steps.message and guidance.passed


def test_noise_that_depends_on_the_device_is_found():
    adapter = Ours()
    adapter.devices = "cpu", "another"
    adapter.initial_noise = lambda seed, device: np.full(3, len(device))
    (noise,) = check_controlnet(adapter, only=["same_noise_on_every_device"])
    assert noise.passed is False


class Renamed(Ours):
    """An adapter without `names`, of a network with other names and a Linear for a convolution."""

    def tensors(self):
        found = super().tensors()
        other = BASE + "input_blocks.1.1.proj_in.weight"
        found[other] = found[other][:, :, 0, 0]
        return {name.replace("zero_convs", "zeros"): x for name, x in found.items()}


def test_tensors_without_a_match_are_listed_once():
    chosen = ["tensors_match", "zero_at_start", "gradient_order", "stored_base"]
    names, start, order, outputs = check_controlnet(Renamed(), only=chosen)
    assert names.passed is False and names.measured == 25
    assert "lacks 25 tensors: control_model.zero_convs.0.0.bias [32], " in names.message
    assert "25 others: control_model.zeros.0.0.bias [32], " in names.message
    assert names.message.count("...") == 2
    assert outputs.passed is None and "see tensors_match" in outputs.message
    assert order.passed is None and order.message == outputs.message
    assert start.passed


def test_networks_of_another_structure_bring_their_inputs():
    class Own(Ours):
        given = replace(inputs(), x=normal("x", 2, 4, 8, 8), hint=inputs().hint[..., :64])

    chosen = ["zero_at_start", "every_residual_acts", "stored_base"]
    start, acts, outputs = check_controlnet(Own(), only=chosen)
    assert start.passed and acts.passed
    assert outputs.passed is None and "Stable Diffusion's structure" in outputs.message


@pytest.mark.slow
@pytest.mark.parametrize("k", [0, 6, 12])
def test_every_residual_is_probed(k):
    """The check of their connections sees that one residual of thirteen is 1 % too small."""

    def change(adapter, predict, x, t, context, residuals):
        return predict(x, t, context, [r * (1 - 0.01 * (i == k)) for i, r in enumerate(residuals)])

    (result,) = check_controlnet(Broken("predict", change), only=["residuals_on_own_connections"])
    assert result.passed is False and "no known mistake" in result.message


def test_a_residual_that_goes_on_into_the_encoder_is_found():
    """It is added to the skip, and to the map that the next encoder block sees."""

    class Leaks(Ours):
        def run_unet(self, x, t, context, residuals):
            if residuals is None:
                return super().run_unet(x, t, context, None)
            leak = self.unet.input_blocks[1].register_forward_hook(lambda *x: x[2] + residuals[1])
            rest = [r * (k != 1) for k, r in enumerate(residuals)]
            made = super().run_unet(x, t, context, rest)
            leak.remove()
            return made

    (result,) = check_controlnet(Leaks(), only=["residuals_on_own_connections"])
    assert result.passed is False and "where it belongs" in result.message


def test_a_writing_sampler_is_found():
    class Writes(Ours):
        def sample(self, run):
            run.noise *= 2
            return super().sample(run)

    (result,) = check_controlnet(Writes(), only=["sampling_leaves_its_inputs"])
    assert result.passed is False and "1 arrays of the caller" in result.message


# ----------------------------------------------------------------------------------- the command


@pytest.mark.slow
def test_the_command_prints_counts_and_writes_json(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["mutants:inverted_hint", "--json", str(tmp_path / "a.json")])
    assert end.value.code == 1  # the stored residuals are a must
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "a.json").read_text())
    assert said.splitlines()[-1] == found["summary"] and "3 did not" in found["summary"]
    failed = {r["name"]: r["message"] for r in found["checks"] if r["status"] == "FAILED"}
    assert "RGB, inverted" in failed["hint_is_rgb_in_0_1"]
    assert all(len(line) <= 100 for line in said.splitlines() if not line.startswith(" "))


@pytest.mark.slow
def test_the_code_in_the_readme_runs(capsys):
    readme = ROOT / "nanocontrol" / "conformance" / "README.md"
    blocks = re.findall(r"^```python\n(.*?)^```", readme.read_text(encoding="utf-8"), re.M | re.S)
    for block in (block for block in blocks if "my_code" not in block):
        exec(block, {})
    assert "('zero_at_start', 'must', True, 0.0, 0.0, '')" in capsys.readouterr().out


def test_the_table_and_the_json_say_what_failed():
    results = [outcome(fails, expected="a reason"), outcome(has_one_device)]
    lines = table(results)
    assert "failed as expected" in lines[1] and lines[2].strip() == "an idea"
    assert lines[3].strip() == "expected: a reason" and "no second device" in lines[5]
    assert as_json(results)["checks"][1]["passed"] is None


def test_unknown_adapters_are_refused(tmp_path, capsys, monkeypatch):
    (tmp_path / "mine.py").write_text("import no_such_module_at_all\n")
    for name, expected in {
        "theirs": "expected ours, diffusers, mutants:NAME",
        "mutants:none": "no none in mutants; expected one of no_zero_initialisation",
        "missing.py:Mine": "missing.py: there is no such file",
        "nanocontrol.nothing:Mine": "no module nanocontrol.nothing",
        "nanocontrol.conformance.ours:Theirs": "no Theirs in nanocontrol.conformance.ours",
        f"{tmp_path}/mine.py:Mine": "there is no module no_such_module_at_all",
    }.items():
        assert expected in refusal(main, capsys, name)


def test_an_adapter_is_found_in_a_file(tmp_path):
    from nanocontrol.conformance.__main__ import adapter_named

    text = "from nanocontrol.conformance.mutants import InvertedHint\n\n"
    (tmp_path / "mine.py").write_text(text + "class Mine(InvertedHint):\n    dtype = 'float64'\n")
    adapter = adapter_named(f"{tmp_path}/mine.py:Mine")
    assert isinstance(adapter, InvertedHint)


@pytest.mark.slow
def test_diffusers_names_are_diffusers_own():
    pytest.importorskip("diffusers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nanocontrol.conformance.of_diffusers import OfDiffusers
    adapter = OfDiffusers()
    Bench(adapter).fresh()
    own = [*adapter.unet.parameters(), *adapter.control.parameters()]
    found = adapter.tensors()
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == shapes()
    assert {*map(id, found.values())} == {*map(id, own)}
