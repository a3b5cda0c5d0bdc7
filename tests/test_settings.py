"""Comparing the settings of two versions of train.py, one of which has a setting more or less."""

import json
from dataclasses import asdict, field, fields, make_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import train
from nanocontrol import InputError
from nanocontrol.nano.healthy import bands_for
from nanocontrol.training.settings import knob, settings_of_run, what_is_learnt


def settings_class(names: list[str], former: dict[str, Any], **new: Any) -> type:
    """train.py's Settings with only these names, plus new settings with their defaults."""
    kept = [
        (one.name, one.type, field(default=one.default, metadata=one.metadata))
        for one in fields(train.Settings)
        if one.name in names
    ]
    added = [
        (name, type(default), knob(default, "", type(default))) for name, default in new.items()
    ]
    settings = make_dataclass("Settings", [*kept, *added], frozen=True)
    settings.former = train.Settings.former | former
    return settings


TODAY = [one.name for one in fields(train.Settings)]
VERSIONS = {
    "one setting more": settings_class(TODAY, {}, sharpness=3),
    "one setting less": settings_class(
        [name for name in TODAY if name != "mirror"], {"mirror": False}
    ),
}


@pytest.fixture(params=VERSIONS)
def version(request) -> type:
    return VERSIONS[request.param]


def resolved_by(version: type, **given: Any) -> Any:
    """The settings that train.py resolves, in another version's class."""
    settings = asdict(train.resolve(given))
    known = {one.name for one in fields(version)}
    return version(**{name: value for name, value in settings.items() if name in known})


def test_bands_of_healthy_runs_survive_a_new_or_removed_setting(version):
    bands = bands_for(train.resolve({}))
    assert bands.keys() >= {"follows", "control_gain"}
    assert bands_for(resolved_by(version)) == bands
    assert bands_for(resolved_by(version, lr=2e-3)) == {}
    more = resolved_by(version, seed=5, sample_every=7, out="elsewhere", dtype="bf16")
    assert bands_for(more) == bands


def test_a_run_can_be_resumed_by_a_version_with_other_settings(version):
    run = Path("run")
    run.mkdir()
    (run / "settings.json").write_text(json.dumps(asdict(train.resolve({"lr": 2e-3}))))
    settings = settings_of_run(version, run, {})
    assert settings == replace(resolved_by(version, lr=2e-3), out="run")


def test_what_is_not_learnt_may_change_when_a_run_is_resumed():
    run = Path("run")
    run.mkdir()
    (run / "settings.json").write_text(json.dumps(asdict(train.resolve({}))))
    moved = {"base": "/moved/nano.safetensors", "cache": "", "save_every": 7, "sample_every": 9}
    settings = settings_of_run(train.Settings, run, moved)
    assert asdict(settings).items() >= moved.items() and settings.out == "run"
    for changed in ({"lr": 5e-4}, {"out": "elsewhere"}, {"base": "/moved/other.safetensors"}):
        with pytest.raises(InputError, match="contradicts"):
            settings_of_run(train.Settings, run, changed)


def test_data_may_be_in_another_folder_when_a_run_is_resumed():
    """Their content is compared later. But they stay data, and hints stay files."""
    resumed_with(**OWN | {"hints": "/hints"})
    moved = {"data": ["/elsewhere/others"], "hints": "/elsewhere/lines"}
    assert asdict(settings_of_run(train.Settings, Path("run"), moved)).items() >= moved.items()
    with pytest.raises(InputError, match="--hints canny contradicts"):
        settings_of_run(train.Settings, Path("run"), {"hints": "canny"})
    resumed_with(**DRAWN)
    with pytest.raises(InputError, match=r"--data \['/photos'\] contradicts"):
        settings_of_run(train.Settings, Path("run"), {"data": ["/photos"]})


def resumed_with(**changed: Any) -> Any:
    """The settings of a run whose settings.json was changed."""
    run = Path("run")
    run.mkdir(exist_ok=True)
    (run / "settings.json").write_text(json.dumps(asdict(train.resolve({})) | changed))
    return settings_of_run(train.Settings, run, {})


DRAWN = {"data": None}
OWN = {"data": ["/photos"], "condition": None, "hints": None}


def test_a_setting_that_its_flag_cannot_give_is_refused():
    for name, wrong in [
        *(("size", size) for size in ("abc", "64x64x64", "0x0", "100x100", "64", 64, ["64x64"])),
        *(("data", data) for data in ([1], [], [["/photos"]], [None], "/photos")),
        *(("scenes", scenes) for scenes in (2**70, 0, "7", 7.5, True, None)),
        *(("base", base) for base in (1, ["/base"], {}, None)),
        *(("lr", lr) for lr in (float("inf"), float("nan"), 0, [1e-3], "1e-3")),
        *(("mirror", mirror) for mirror in (None, 0, "")),
        *(("seed", seed) for seed in (2**63, -1, {})),
        *(("hints", hints) for hints in (["canny"], 1)),
    ]:
        with pytest.raises(InputError, match=f"{name} = .* in settings.json; expected a value of"):
            resumed_with(**OWN | {name: wrong})
    size = {"size": "128x64", "crop": "random", "mirror": True, "lr": 1, "cache": ""}
    assert asdict(resumed_with(**OWN | size)).items() >= (OWN | size).items()
    with pytest.raises(InputError, match="it ran on abacus, which is not available here"):
        resumed_with(device="abacus")


def test_settings_that_exclude_each_other_are_refused_on_resuming():
    for wrong in [
        DRAWN | {"condition": None},
        DRAWN | {"hints": "canny"},
        DRAWN | {"size": "64x64"},
        DRAWN | {"crop": "random"},
        DRAWN | {"mirror": True},
        OWN | {"condition": "pose"},
        OWN | {"condition": "pose", "hints": "canny"},
    ]:
        with pytest.raises(InputError, match=r"^--resume run: .*drawn scenes"):
            resumed_with(**wrong)
    for part in ("all", "decoder"):
        with pytest.raises(InputError, match=r"^--resume run: --low-memory is for a locked base"):
            resumed_with(low_memory=True, unlock=part)
    resumed_with(unlock="all")
    with pytest.raises(InputError, match="--low-memory is for a locked base"):
        settings_of_run(train.Settings, Path("run"), {"low_memory": True})
    with pytest.raises(InputError, match="--hints DIR is for one --data"):
        resumed_with(data=["/a", "/b"], hints="/hints", condition=None)
    resumed_with(data=["/a"], hints="/hints", condition=None)
    for right in (OWN, OWN | {"hints": "canny", "condition": "canny"}, OWN | {"hints": "canny"}):
        resumed_with(**right)


def test_a_run_with_an_unknown_setting_that_matters_is_refused():
    run, less = Path("run"), VERSIONS["one setting less"]
    run.mkdir()
    kept = asdict(train.resolve({}))
    for changed in ({"mirror": True}, {"noisy": 0.3}, {"unheard_of": 0}):
        (run / "settings.json").write_text(json.dumps(kept | changed))
        with pytest.raises(InputError, match=f"{next(iter(changed))} = .* is unknown"):
            settings_of_run(less, run, {})
        assert what_is_learnt(kept | changed, less) != what_is_learnt(kept, less)


def test_paths_and_speed_settings_are_not_compared():
    kept = asdict(train.resolve({}))
    for name, value in {
        "out": "x",
        "device": "cuda",
        "dtype": "bf16",
        "compile": True,
        "low_memory": True,
        "cache": "",
        "save_every": 1,
        "sample_every": 1,
        "base": "/elsewhere/nano.safetensors",
    }.items():
        assert what_is_learnt(kept | {name: value}, train.Settings) == what_is_learnt(
            kept, train.Settings
        )
    moved = [{"data": [f"/{place}/photos"]} for place in ("here", "there")]
    assert len({str(what_is_learnt(kept | one, train.Settings)) for one in moved}) == 1
    for name in ("base", "lr", "steps", "seed", "condition", "hint_init"):
        assert what_is_learnt(kept | {name: "other"}, train.Settings) != what_is_learnt(
            kept, train.Settings
        )
