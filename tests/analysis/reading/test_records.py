import pytest

from analysis.auditing.audit import audit
from analysis.reading.configs import flat_config
from analysis.reading.record import LOST
from analysis.reading.records import records
from sae_sweeps.errors import DamagedFile, DataError
from sae_sweeps.storage.files import read_json, write_json
from sae_sweeps.storage.run_folder import RunFolder
from tests.analysis.outputs import METRICS, add_run, add_sweep


def run_ids(frame):
    return list(frame["run", "run_id"])


def test_every_kind_of_path(outputs):
    for run_id in ("b", "a", "c"):
        add_run(outputs, run_id)
    sweep = add_sweep(outputs, "s1", ["c", "a"])
    (sweep / "0-readable").symlink_to("../../runs/c")
    assert run_ids(records([outputs])) == ["a", "b", "c"]
    assert run_ids(records([outputs / "runs"])) == ["a", "b", "c"]
    assert run_ids(records([sweep])) == run_ids(records([sweep / "manifest.json"])) == ["c", "a"]
    assert run_ids(records([outputs / "sweeps"])) == ["c", "a"]
    assert run_ids(records([outputs / "runs" / "b"])) == ["b"]
    assert run_ids(records([outputs / "runs" / "b" / "results.json"])) == ["b"]
    assert run_ids(records([sweep / "0-readable", sweep, outputs])) == ["c", "a", "b"]  # each run once


def test_what_a_row_holds(outputs):
    add_run(
        outputs, "a", title="first", warnings=("few tokens",), metrics={"core": {"extra": 2}, "note": "x", "nan": None}
    )
    frame = records([outputs])
    row = frame.iloc[0]
    assert (row["run", "title"], row["run", "state"], row["run", "warnings"]) == ("first", "completed", ["few tokens"])
    assert row["config", "penalty"] == "ortho" and row["config", "penalty.lambda2_max"] == 0.1
    assert row["config", "logger.tags"] == '["a"]' and row["config", "title"] is None
    assert {name: row["metrics", name] for name in METRICS} == METRICS and row["metrics", "core.extra"] == 2
    assert not {("metrics", "note"), ("metrics", "nan")} & set(frame.columns)


def test_runs_without_results_have_their_state_and_config(outputs):
    add_run(outputs, "run", {"penalty.lambda2_max": 0.7}, state="running", step=40)
    add_run(outputs, "bad", state="diverged", error="penalty is not finite")
    sweep = add_sweep(outputs, "s", ["run", "bad", "never"])
    frame = records([sweep])
    assert list(frame["run", "state"]) == ["running", "diverged", "queued"]
    assert list(frame["run", "title"]) == ["as run", "as bad", "as never"]
    assert frame["run", "step"][0] == 40 and frame["config", "penalty.lambda2_max"][0] == 0.7
    assert frame["run", "error"][1] == "penalty is not finite"
    assert not [column for column in frame.columns if column[0] == "metrics"]


def test_a_diverged_run_has_no_number_even_with_results_left_from_before(outputs):
    folder = add_run(outputs, "a")
    RunFolder(folder).set_status(state="diverged")
    frame = records([folder])
    assert frame["run", "state"][0] == "diverged" and ("metrics", "fvu") not in frame.columns


def test_results_alone_are_a_completed_run(outputs):
    folder = add_run(outputs, "a")
    (folder / "status.json").unlink()
    assert records([folder])["run", "state"][0] == "completed"


def test_names_stand_for_groups_at_every_depth():
    config = {"penalty": {"name": "a+b", "a": {"name": "a", "w": 1}, "none": {}}, "name": "top", "x": [1, 2]}
    assert flat_config(config) == {"penalty": "a+b", "penalty.a": "a", "penalty.a.w": 1, "name": "top", "x": "[1, 2]"}


def test_mistaken_paths_are_named(outputs, tmp_path):
    add_run(outputs, "a")
    (tmp_path / "empty").mkdir()
    for path, sentence in (
        (tmp_path / "nowhere", "does not exist"),
        (tmp_path / "empty", "holds no runs"),
        (outputs / "runs" / "a" / "status.json", "neither a results.json nor a manifest.json"),
    ):
        with pytest.raises(DataError, match=sentence) as caught:
            records([path])
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("results.json", "{"),
        ("results.json", "[]"),
        ("status.json", "{}"),
        ("config.yaml", "- a"),
        ("config.yaml", "a: ["),
    ],
)
def test_damaged_files_are_named(outputs, name, content):
    folder = add_run(outputs, "a", state="running" if name == "config.yaml" else "completed")
    (folder / name).write_text(content)
    with pytest.raises(DamagedFile, match=name):
        records([folder])
    add_run(outputs, "b")
    shown = records([outputs])["run"]
    assert list(shown["state"]) == ["damaged", "completed"] and name in shown["error"][0]
    assert [f.code for f in audit(records([outputs])) if "a" in f.runs] == ["damaged"]


@pytest.mark.parametrize("content", ["[]", '{"runs": 3}', '{"runs": [3]}', '{"runs": [{}]}', "{"])
def test_a_damaged_manifest_is_named(outputs, content):
    sweep = add_sweep(outputs, "s", [])
    (sweep / "manifest.json").write_text(content)
    with pytest.raises(DamagedFile, match="manifest.json"):
        records([sweep])


def test_a_run_whose_owner_died_is_not_shown_as_running(outputs):
    folder = add_run(outputs, "a", state="running", step=40)
    assert records([folder])["run", "state"][0] == "running"
    owner = read_json(folder / "lease.json")
    write_json(folder / "lease.json", owner | {"start_time": -1})  # another process had this pid
    assert records([folder])["run", "state"][0] == LOST
    (folder / "lease.json").unlink()
    assert records([folder])["run", "state"][0] == LOST


def test_a_run_that_ends_between_two_looks_is_not_lost(outputs, monkeypatch):
    folder = add_run(outputs, "a", state="running", step=40)

    def ends(run_folder):
        add_run(outputs, "a")

    monkeypatch.setattr("analysis.reading.run_folders.Lease.holder", ends)
    assert records([folder])["run", "state"][0] == "completed"


def test_where_a_record_comes_from(outputs):
    folder = add_run(outputs, "a")
    results = read_json(folder / "results.json")
    write_json(folder / "results.json", results | {"provenance": {"git_commit": "abc"}})
    row = records([folder]).iloc[0]
    assert row["run", "source"] == "run" and row["run", "provenance"] == {"git_commit": "abc"}
