"""commands/clone.py: commands that call train.py find the clone's, from every folder."""

import os
import subprocess
import sys

import pytest

from conftest import ROOT

# As in an editable install: sys.path has no clone.
PACKAGE_ALONE = """
import importlib.util, runpy, sys

spec = importlib.util.spec_from_file_location("nanocontrol", {init!r})
sys.modules["nanocontrol"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["nanocontrol"])
sys.path.insert(0, "")  # as python -m does
sys.argv = ["-m", "--help"]
runpy.run_module({module!r}, run_name="__main__")
"""
COMMANDS = "tools.walk", "tools.healthy", "experiments", "course", "conformance"


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_takes_the_train_py_of_the_clone(command, tmp_path):
    (tmp_path / "train.py").write_text("raise SystemExit('this is the user's own')")
    init = str(ROOT / "nanocontrol" / "__init__.py")
    code = PACKAGE_ALONE.format(init=init, module=f"nanocontrol.{command}")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    called = [sys.executable, "-c", code]
    done = subprocess.run(called, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout
