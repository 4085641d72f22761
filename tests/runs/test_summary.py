import json

import pytest

from sae_sweeps.errors import DamagedFile
from sae_sweeps.runs.evaluate import collected


def test_a_summary_of_another_shape_is_named(tmp_path):
    path = tmp_path / "evals" / "core.summary.json"
    path.parent.mkdir()
    whole = {"settings": {}, "metrics": {"fvu": 0.5}, "warnings": ["few tokens"]}
    path.write_text(json.dumps(whole))
    assert collected(tmp_path) == ({"fvu": 0.5}, ["few tokens"])
    for damaged in ("[]", "null", "{}", '{"metrics": {}}', "", '{"settings": '):
        path.write_text(damaged)
        with pytest.raises(DamagedFile, match="core.summary.json is damaged"):
            collected(tmp_path)
