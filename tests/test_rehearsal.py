"""Sampling and training on a simulated GPU: see fake_gpu.py."""

import json
import subprocess
import sys

import pytest

from conftest import ROOT
from fake_gpu import MISSING

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


def counted(what: str) -> dict:
    command = [sys.executable, str(ROOT / "tests" / "rehearsal.py"), what]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_sampling_records_one_graph_and_planted_mistakes_fail():
    found = counted("sampling")
    # Weights are rounded on the CPU, so the GPU never holds float32.
    assert found["made_while_loading"].keys() == {"torch.bfloat16"}
    first, second, *others = found["pictures"]
    assert first["graphs"] == second["graphs"] == 1  # the next picture reuses it
    assert second["launches"] < first["launches"] / 2
    # Another strength needs a new recording, and so does a dropped graph.
    assert others == [first | {"graphs": 2}, first | {"graphs": 3}]
    for name, words in {
        "mixed devices": "two devices|from or to the CPU",
        "an item()": "the CPU waits in a recorded call",
        "a copy from the CPU": "from or to the CPU in a recorded call",
        "a hint left on the CPU": "two devices",
    }.items():
        assert any(word in found["mistakes"][name] for word in words.split("|")), found["mistakes"]


@pytest.mark.slow
def test_a_training_step_never_waits_for_the_gpu():
    found = counted("training")
    assert found["bf16"]["waits"] == found["fp16"]["waits"] == {}
    assert found["mistake"]["waits"] == {"_local_scalar_dense": 1}
    # A pass and AdamW's step are recorded. The rest of a step has few launches.
    of_pass, of_optimizer = found["graphs"]
    assert of_pass > 500 and of_optimizer > 3, found
    # The loss scale has to be on the gradients' device; elsewhere it would be read too early.
    assert found["scale_on"] == "cpu"
