import errno
import json
import os
from pathlib import Path

import pytest

from sae_sweeps.errors import DamagedFile, UserError
from sae_sweeps.storage.files import DiskFull, MissingFile, denied, read_json, write_bytes, write_json, write_text


def test_json_round_trip_with_null_for_what_json_lacks(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json(path, {"a": [1.5, float("nan")], "b": {"c": float("-inf")}, "d": "é"})
    assert read_json(path) == {"a": [1.5, None], "b": {"c": None}, "d": "é"}
    assert os.listdir(path.parent) == ["a.json"]


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe\x00"])
def test_damaged_json_is_named(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match=str(path)):
        read_json(path)


def test_missing_json_is_named(tmp_path):
    with pytest.raises(MissingFile, match="a.json is missing"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_leaves_the_old_file_and_no_temporary(tmp_path, monkeypatch, code):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def full(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull, match=f"{path} cannot be written") as caught:
        write_bytes(path, b"new")
    assert isinstance(caught.value, UserError)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_other_failures_clean_up_too(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert not any(tmp_path.iterdir())


def test_what_cannot_be_json_never_replaces_what_is(tmp_path):
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {1, 2})
    assert json.loads((tmp_path / "a.json").read_text()) == 1


@pytest.mark.parametrize("uid, name", [(None, ""), (1, "daemon"), (54321, "user 54321")])
def test_a_file_of_another_user_is_named_with_its_owner(tmp_path, monkeypatch, uid, name):
    owner = tmp_path.stat().st_uid if uid is None else uid
    monkeypatch.setattr("sae_sweeps.storage.files.os.getuid", lambda: tmp_path.stat().st_uid if uid is None else -1)
    monkeypatch.setattr(Path, "stat", lambda path, **_: os.stat_result((0o40755, 0, 0, 0, owner, 0, 0, 0, 0, 0)))
    monkeypatch.setattr(Path, "exists", lambda path: path == tmp_path)
    error = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "runs" / "x"))
    belongs = f", {tmp_path} belongs to {name}" if name else ""
    assert denied(error) == f"{tmp_path}/runs/x: permission denied{belongs}; give a folder of yours, as outputs=FOLDER."
