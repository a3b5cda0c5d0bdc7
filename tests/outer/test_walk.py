"""`nanocontrol.tools.walk`: its numbers against the modules, and the front page's drawing."""

import json
import re
from copy import deepcopy
from functools import cache

import pytest
import torch
from torch import nn

from conftest import CONTROL, NANO, ROOT, refusal, small
from nanocontrol import ControlNet, save_control
from nanocontrol.controlnet import HINT_CHANNELS
from nanocontrol.nano.model import NARROW, UNET
from nanocontrol.tools.walk import (
    BASE,
    COPY,
    WalkedPart,
    collapsed,
    main,
    modules_of,
    on_meta,
    text_of,
    walk,
    walked,
)
from nanocontrol.unet import SD1, SD2, UNetConfig

CONFIGURATIONS = [(UNET, NARROW), (UNET, HINT_CHANNELS), (SD1, HINT_CHANNELS), (SD2, HINT_CHANNELS)]
IDS = ["nano, narrow", "nano, wide", "sd15", "sd21"]


@cache
def structure(config: UNetConfig, widths: tuple[int, ...]) -> list[WalkedPart]:
    return walk(*on_meta(config, widths, 512))


@pytest.mark.parametrize("config, widths", CONFIGURATIONS, ids=IDS)
def test_the_sums_are_those_of_the_parameters(config, widths):
    unet, control, _ = on_meta(config, widths, 128)
    parts = structure(config, widths)
    for network, module in ((BASE, unet), (COPY, control)):
        n = sum(part.parameters for part in parts if part.network == network)
        assert n == sum(p.numel() for p in module.parameters())


@pytest.mark.slow
def test_published_numbers():
    found = walked("sd15", None, False, False)["totals"]
    assert found["base"] == 859_520_964 and found["control"] == 361_279_120
    assert found["zero_convolutions"] == 11_479_680 and found["condition_encoder"] == 1_086_480
    assert "The copy has 361 M parameters, 42 % of the U-Net's." in found["said"]
    assert "A training step is 2.27 TFLOP for one pair." in found["said"]
    assert walked("sd21", None, False, False)["totals"]["control"] == 364_228_240


@torch.no_grad()
def test_shapes_are_those_of_a_real_pass(unet, trained_control, inputs):
    x, t, context, hint, _ = inputs
    seen = {}

    def note(module, given, output):
        seen[module] = tuple(given[0].shape[1:]), tuple(output.shape[1:])

    parts = walk(unet, trained_control, {"x": x, "hint": hint, "t": t, "context": context})
    modules = [*modules_of(unet, trained_control)]
    hooks = [module.register_forward_hook(note) for *_, module in modules]
    unet(x, t, context, trained_control(x, hint, t, context))
    for hook in hooks:
        hook.remove()
    assert len(parts) == len(modules)
    for part, (network, key, module) in zip(parts, modules):
        assert (part.network, part.key) == (network, key)
        assert (part.shape_in, part.shape_out) == seen[module], key


@torch.no_grad()
def test_a_residual_goes_where_the_walk_says(unet, trained_control, inputs):
    """Probed: the first decoder block whose input one residual changes."""
    x, t, context, hint, _ = inputs
    parts = walk(unet, trained_control, {"x": x, "hint": hint, "t": t, "context": context})
    said = [part.to for part in parts if part.to]
    residuals = trained_control(x, hint, t, context)

    def inputs_of_the_decoder(added):
        seen = []
        hooks = [
            block.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
            for block in unet.output_blocks
        ]
        unet(x, t, context, added)
        for hook in hooks:
            hook.remove()
        return seen

    none = [torch.zeros_like(r) for r in residuals]
    before = inputs_of_the_decoder(none)
    assert len(said) == len(residuals)
    for k, to in enumerate(said):
        after = inputs_of_the_decoder(
            [r if i == k else z for i, (r, z) in enumerate(zip(residuals, none))]
        )
        changed = [j for j, (a, b) in enumerate(zip(before, after)) if not torch.equal(a, b)]
        assert changed[0] == int(to.split()[0])
        where = (after[changed[0]] != before[changed[0]]).any(dim=(0, 2, 3)).nonzero().flatten()
        n = residuals[k].shape[1]  # channels from below come first, then those of the skip
        below = set(where.tolist()) <= set(range(n))
        assert below == to.endswith("below")


def test_zero_at_start_is_what_a_fresh_controlnet_has(unet):
    control = ControlNet.from_unet(unet)
    meta = {"x": torch.zeros(1, 4, 8, 8), "hint": torch.zeros(1, 3, 64, 64), "t": torch.zeros(1)}
    meta["context"] = torch.zeros(1, 77, unet.config.context_dim)
    states = {(p.network, p.key): p.state for p in walk(unet, control, meta)}
    for network, key, module in modules_of(unet, control):
        zero = all(not p.any() for p in module.parameters())
        locked = not any(p.requires_grad for p in module.parameters())
        expected = "LOCKED" if locked else "ZERO AT START" if zero else "TRAINED"
        assert states[network, key] == expected, key


def test_free_parameters_and_buffers_are_counted():
    unet, control, inputs = on_meta(UNET, NARROW, 128)
    plain = walk(unet, control, inputs)
    control.own = nn.Parameter(torch.empty(5, 7, device="meta"))
    unet.register_buffer("table", torch.empty(11, device="meta"))
    *parts, table, own = walk(unet, control, inputs)
    assert parts == plain
    assert (own.key, own.parameters, own.network) == ("own", 35, COPY)
    assert (table.key, table.parameters, table.shape_out) == ("table", 0, (11,))


@pytest.mark.parametrize("config, widths", CONFIGURATIONS, ids=IDS)
def test_collapsed_lines_are_short_and_lose_nothing(config, widths):
    parts = structure(config, widths)
    assert [part for group in collapsed(parts) for part in group] == parts
    lines = text_of(parts, {"said": []}, False)
    assert all(len(line) <= 100 for line in lines)
    assert len(collapsed(parts)) < len(parts)
    for line in lines:  # columns never touch
        assert not re.search(r"(Conv|Lin|Res|Up|Attn|Down)\d", line), line


def test_the_drawing_on_the_front_page_is_the_model():
    """Its blocks, their sizes, and which decoder block a row's residual goes to."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    row = re.compile(r"^ *(\d+) +(?:block +(\d+)|middle) .*\(\+\) <-- zero conv", re.MULTILINE)
    drawn = [(int(size), int(n or 13)) for size, n in row.findall(drawing(text))]
    parts = structure(SD1, HINT_CHANNELS)
    encoder = [p for p in parts if p.network == BASE and p.key.startswith(("input", "middle"))]
    sizes = [part.shape_out[1] for part in encoder]
    residuals = [part for part in parts if part.to]
    assert [number for _, number in drawn] == [*range(1, 14)]
    assert [size for size, _ in drawn] == sizes == [r.shape_out[1] for r in residuals]
    said = re.search(r"row k is `output_blocks\[(\d+) - k\]`", text)
    for k, residual in enumerate(residuals[:-1], 1):
        assert int(residual.to) == int(said[1]) - k


def drawing(text: str) -> str:
    """The drawing, with its first block's two lines as one."""
    start = text.index("LOCKED: the U-Net")
    found = text[start : text.index("```", start)]
    first = r"( *64 +block  1)[^\n]*\n *\|----- skip ---> (\(\+\) <-- zero conv -+ )"
    return re.sub(first, r"\1 \2", found)


@pytest.mark.slow
def test_run_and_gradients_of_nano(capsys):
    found = walked(None, None, True, True)
    parts = found["parts"]
    residuals = [part for part in parts if part.to]
    skips = [p for p in parts if p.network == BASE and p.key.startswith(("input", "middle"))]
    assert all(part.rms > 0 for part in parts)
    for residual, skip in zip(residuals, skips, strict=True):
        assert residual.ratio == pytest.approx(residual.rms / skip.rms)
    lines = text_of(parts, found["totals"], True)
    assert all(len(line) <= 100 for line in lines)
    zeros, copy, last, others = found["gradients"].values()
    assert zeros[0] > 0 and copy[0] == last[0] == others[0] == 0
    assert copy[1] > 0 and last[1] > 0 and others[1] == 0 and others[2] > 0


@pytest.mark.slow
def test_a_control_of_its_own_and_json(tmp_path, capsys):
    base = small("sd1").unet
    save_control(ControlNet.from_unet(deepcopy(base)), tmp_path / "other.safetensors")
    main(["--base", NANO, "--control", CONTROL, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["totals"]["control"] == 1_937_736
    assert sum(p["parameters"] for p in found["parts"]) == 1_937_736 + 4_208_580
    main(["--base", NANO])
    assert "1.09 M" not in capsys.readouterr().out
    told = refusal(main, capsys, "--base", NANO, "--control", str(tmp_path / "other.safetensors"))
    assert "--control" in told and "expected one for" in told
    assert "sd15 has no weights" in refusal(main, capsys, "--base", "sd15", "--run")
    assert "--base" in refusal(main, capsys, "--base", "missing.safetensors")
