"""What tests of analysis share."""

import pytest

from tests.analysis.outputs import add_run, add_sweep


@pytest.fixture
def outputs(tmp_path):
    return tmp_path / "outputs"


@pytest.fixture
def sweep(outputs):
    add_run(outputs, "aaaa", {"penalty.lambda2_max": 0.5}, {"fvu": 0.04, "kl_div_score": None}, title="ortho 0.5")
    add_run(outputs, "bbbb", {"penalty": {"name": "none"}}, title="no penalty")
    add_run(outputs, "cccc", {"seed": 1}, state="diverged", step=40, error="penalty_loss is not finite at step 40")
    return add_sweep(outputs, "s", ["aaaa", "bbbb", "cccc"])
