"""selection.json: how a run's features are found stays as it was at the run's first start."""

import json

import pytest

from sae_sweeps.cli.compose import compose_points
from sae_sweeps.config.run import run_config
from sae_sweeps.errors import DamagedFile
from sae_sweeps.kernels.selection import Selection
from sae_sweeps.runs.task import SELECTION, recorded_selection, unrecorded_selection
from sae_sweeps.storage.run_folder import RunFolder


def test_what_was_recorded_is_taken(tmp_path):
    folder = RunFolder(tmp_path)
    assert recorded_selection(folder) is None
    (tmp_path / SELECTION).write_text('{"way": "bounded", "block": 192}')
    assert recorded_selection(folder) == Selection("bounded", 192)


@pytest.mark.parametrize(
    "content", [{}, [], None, {"way": "fast", "block": 0}, {"way": "bounded", "block": -1}, {"way": "plain"}]
)
def test_another_content_is_one_sentence(tmp_path, content):
    (tmp_path / SELECTION).write_text(json.dumps(content))
    with pytest.raises(DamagedFile, match=r"selection.json: .*; delete .* to train it from the start\."):
        recorded_selection(RunFolder(tmp_path))


@pytest.mark.parametrize(("requested", "way"), [("auto", "plain"), ("exact", "plain"), ("bfloat16", "bfloat16")])
def test_a_run_that_recorded_none_is_of_an_earlier_version(requested, way):
    assert unrecorded_selection(run_config(compose_points([f"train.selection={requested}"])[0].cfg)).way == way
