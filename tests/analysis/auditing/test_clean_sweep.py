"""A real sweep, three seeds of two penalties: nothing to warn of, and its notes come back as the same numbers."""

import pytest

from analysis.auditing.audit import audit, varied_by
from analysis.output.notes import notes
from analysis.reading.import_files import write_import
from analysis.reading.records import records
from analysis.reading.sources import read_sources
from tests.sweeps.commands import SMALL, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("outputs")
    run("-m", *SMALL, "penalty=none,strict_ortho", "seed=0,1,2", f"outputs={outputs}")
    return outputs


def test_a_clean_sweep_has_no_error_and_no_warning(outputs):
    full = records([outputs])
    assert len(full) == 6 and varied_by([outputs]) == {"penalty", "seed"}
    found = audit(full, varied_by([outputs]))
    assert [finding for finding in found if finding.level != "note"] == []
    run("audit", outputs, "--strict", module="analysis")


def test_what_was_really_logged_is_what_the_rules_read(outputs):
    """The same runs with a config that lies, a log that is silent and a number that is not there."""
    full = records([outputs])
    full["config", "lr_schedule.lr"] = 3e-4
    full["config", "architecture.k"] = 16
    assert {"lr-used", "k-used"} <= {finding.code for finding in audit(full)}


def test_notes_come_back(outputs, tmp_path):
    (tmp_path / "notes.txt").write_text(notes(records([outputs])))
    path, _ = write_import(read_sources([tmp_path / "notes.txt"])[0], tmp_path)
    before, after = records([outputs]), records([path])
    places = [recorded.own["run_id"] for recorded in after["run", "recorded"]]
    after = after.iloc[[places.index(run_id) for run_id in before["run", "run_id"]]]
    metrics = [column for column in before.columns if column[0] == "metrics"]
    assert len(metrics) > 50
    # notes begin with the baseline, so the rows are in another order
    assert sorted(before[metrics].to_numpy().tolist()) == sorted(after[metrics].to_numpy().tolist())
