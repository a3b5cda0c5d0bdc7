"""`nanocontrol.tools.healthy`: bands from several healthy runs."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import train
from conftest import refusal
from nanocontrol.nano import healthy
from nanocontrol.tools import healthy as command
from nanocontrol.tools.healthy import main

SETTINGS = train.Settings(base="nano.safetensors", steps=40, lr=1e-3, out="x")


def history(gain: float) -> list[dict]:
    losses = [{"step": step, "loss": 0.1} for step in range(40)]
    evaluations = [{"step": s, "held_out_loss": 0.1, "control_gain": gain * s} for s in (0, 20, 40)]
    return losses + evaluations


def run(name: str, gain: float, **settings) -> Path:
    folder = Path(name)
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps(asdict(SETTINGS) | settings, indent=1))
    (folder / "log.jsonl").write_text("".join(json.dumps(e) + "\n" for e in history(gain)))
    return folder


def test_bands_are_the_minimum_and_maximum_over_seeds(monkeypatch, capsys):
    for module in (healthy, command):
        monkeypatch.setattr(module, "HEALTHY", Path("healthy.json"))
    assert healthy.bands_for(SETTINGS) == {}
    for folder in (Path(), Path("elsewhere"), Path("another")):
        folder.mkdir(exist_ok=True)
        (folder / "nano.safetensors").write_bytes(b"one" if folder.name != "another" else b"two")
    runs = [run("a", 0.1), run("b", 0.3, seed=1, out="y"), run("c", 0.2, seed=2)]
    main([*map(str, runs)])
    numbers = healthy.bands_for(replace(SETTINGS, seed=9, base="elsewhere/nano.safetensors"))
    assert numbers["control_gain"] == {
        "runs": 3,
        "steps": [0, 20, 40],
        "lowest": [0.0, 2.0, 4.0],
        "highest": [0.0, 6.0, 12.0],
    }
    assert healthy.bands_for(replace(SETTINGS, lr=1e-4)) == {}
    assert healthy.bands_for(replace(SETTINGS, base="another/nano.safetensors")) == {}
    other = str(run("d", 0.2, lr=1e-4))
    assert "d: its settings are not those of a" in refusal(main, capsys, "a", other)
    assert "nowhere/settings.json is missing" in refusal(main, capsys, "nowhere")
    short = run("e", 0.2)
    (short / "log.jsonl").write_text(json.dumps(history(0.1)[-1]) + "\n")
    assert "e: its steps are not those of a" in refusal(main, capsys, "a", "e")
    other = run("f", 0.2)
    (other / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    assert "f was never measured" in refusal(main, capsys, "f")
