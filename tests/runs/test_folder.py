import errno
import json
from io import FileIO

import pytest

from sae_sweeps.errors import DamagedFile, DataError
from sae_sweeps.storage.files import DiskFull
from sae_sweeps.storage.run_folder import EMPTY_STATUS, FORMAT, RunFolder


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    yield folder
    folder.close()


def test_status_follows_a_run(folder, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert folder.status() is None
    folder.set_status(total_steps=100)
    assert folder.status()["state"] == "queued" and folder.status()["started"] is None
    started = folder.set_status(state="running", step=5)
    assert started["slurm_job_id"] == "12_3" and started["pid"] and started["host"] and started["started"]
    failed = folder.set_status(state="failed", error="out of memory")
    assert (failed["step"], failed["total_steps"], failed["error"]) == (5, 100, "out of memory") and failed["ended"]
    again = folder.set_status(state="running")
    assert again["ended"] is None and again["error"] is None and again["created"] == failed["created"]
    assert folder.status() == again and again.keys() == EMPTY_STATUS.keys()


def test_status_refuses_unknown_fields_and_states(folder):
    with pytest.raises(TypeError, match="stat"):
        folder.set_status(stat="running")
    with pytest.raises(ValueError, match="done"):
        folder.set_status(state="done")
    assert folder.status() is None


@pytest.mark.parametrize("content", ["", "[]", '{"state": "done"}', '{"state": "running"'])
def test_a_damaged_status_is_named_and_kept(folder, content):
    folder.path.mkdir()
    folder.status_path.write_text(content)
    for act in (folder.status, lambda: folder.set_status(state="running")):
        with pytest.raises(DamagedFile, match="status.json"):
            act()
    assert folder.status_path.read_text() == content


def test_rows_come_back_with_nonfinite_numbers_named(folder):
    folder.metrics.append({"step": 0, "loss": 1.5, "penalty/a": float("nan"), "lr": float("inf")})
    folder.metrics.append({"step": 10, "loss": 1})
    assert folder.metrics.rows() == [
        {"step": 0, "loss": 1.5, "penalty/a": None, "lr": None, "nonfinite": ["penalty/a", "lr"]},
        {"step": 10, "loss": 1},
    ]


def test_a_torn_last_line_is_ignored_and_never_swallows_the_next(folder):
    folder.metrics.append({"step": 0})
    with open(folder.metrics.path, "ab") as file:
        file.write(b'{"step": 1, "lo')
    assert folder.metrics.rows() == [{"step": 0}]
    resumed = RunFolder(folder.path)
    resumed.metrics.append({"step": 2})
    assert resumed.metrics.rows() == [{"step": 0}, {"step": 2}]
    resumed.close()


def test_any_other_bad_line_is_named(folder):
    folder.metrics.append({"step": 0})
    with open(folder.metrics.path, "ab") as file:
        file.write(b'{"st\n{"step": 2}\n')
    with pytest.raises(DamagedFile, match="line 2"):
        folder.metrics.rows()


def test_truncate_keeps_what_the_checkpoint_knows(folder):
    folder.truncate(5)  # nothing there yet
    for step in range(0, 50, 10):
        folder.metrics.append({"step": step})
    with open(folder.metrics.path, "ab") as file:
        file.write(b'{"ste')
    folder.truncate(20)
    folder.metrics.append({"step": 21})
    assert [row["step"] for row in folder.metrics.rows()] == [0, 10, 20, 21]
    folder.truncate(-1)
    assert folder.metrics.rows() == [] and [p.name for p in folder.path.iterdir()] == ["metrics.jsonl"]


def test_a_full_disk_leaves_whole_lines(folder):
    folder.metrics.append({"step": 0})

    class Full(FileIO):
        def write(self, data):
            if not data.startswith(b"{"):
                raise OSError(errno.ENOSPC, "no space left")
            return super().write(data[:4])

    folder.close()
    folder.metrics._file = Full(folder.metrics.path, "a+")
    with pytest.raises(DiskFull, match="metrics.jsonl"):
        folder.metrics.append({"step": 1, "loss": 2.0})
    assert folder.metrics.path.read_text() == json.dumps({"step": 0}, separators=(",", ":")) + "\n"


@pytest.mark.parametrize("version", [True, 0, -1, 1.0, "1", None, FORMAT + 1])
def test_a_format_of_no_version_is_refused(folder, version):
    folder.set_status(state="queued")
    folder.status_path.write_text(json.dumps(EMPTY_STATUS | {"format_version": version}))
    with pytest.raises(DataError, match=f"has the format_version {version}, and this version .* reads up to {FORMAT}"):
        folder.status()


def test_a_log_without_rows_has_one_digest(folder):
    before = folder.log_digests()
    folder.metrics.append({"step": 0})
    folder.truncate(-1)
    assert folder.metrics.path.exists() and folder.log_digests() == before
