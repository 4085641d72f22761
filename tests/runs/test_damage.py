"""Files that training wrote and that are other files later; and what killed processes left."""

import pytest

from sae_sweeps.errors import DamagedFile, DataError
from sae_sweeps.storage.files import remove_temporaries, write_json
from sae_sweeps.storage.run_folder import LOGS, RunFolder
from scripts.fault_injection import Fault, Moment, plain_name


def test_a_log_that_is_another_file_after_the_training_is_named(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.metrics.append({"step": 0, "tokens": 12})
    trained = {"warnings": [], "provenance": {}}
    write_json(run.path / "trained.json", trained)  # of an earlier version
    assert run.read_trained(LOGS) == trained
    write_json(run.path / "trained.json", trained | {"digests": run.log_digests()})
    assert run.unchanged(run.metrics).rows() == run.metrics.rows() == [{"step": 0, "tokens": 12}]
    assert run.read_trained(LOGS)["digests"]
    run.metrics.path.write_bytes(run.metrics.path.read_bytes().replace(b"12", b"13"))  # a row all the same
    with pytest.raises(DamagedFile, match=f"metrics.jsonl is not what training wrote; .* delete the folder {run.path}"):
        run.unchanged(run.metrics)
    run.unchanged(run.monitors)
    write_json(run.path / "trained.json", [])
    with pytest.raises(DamagedFile, match="trained.json is damaged"):
        run.read_trained(LOGS)


def test_what_killed_processes_left_in_a_run_is_removed_and_nothing_else(tmp_path):
    (tmp_path / ".sae.12.0123abcd.tmp").mkdir()
    kept = [tmp_path / ".status.json.12.0123abcd.tmp", tmp_path / "results.json"]
    for path in (tmp_path / ".results.json.12.0123abcd.tmp", *kept):
        path.touch()
    remove_temporaries(tmp_path)
    assert sorted(tmp_path.iterdir()) == kept


def test_a_fault_of_the_campaign_travels_to_another_process():
    fault = Fault(Moment("fsync", "runs/a/results.json", 2), "torn", 0.25)
    assert Fault.from_json(fault.to_json()) == fault
    assert plain_name("sweeps/20261130-174714-1ad6/.table.md.12.0123abcd.tmp") == "sweeps/SWEEP/table.md"


def test_a_log_that_was_removed_while_it_was_written_is_no_empty_one(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.metrics.append({"step": 0})
    run.metrics.path.unlink()
    with pytest.raises(DataError, match="metrics.jsonl was removed while it was written"):
        run.log_digests()
