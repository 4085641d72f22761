"""Outputs that another user wrote, and a terminal that lacks letters."""

import io
import re
import sys
from types import SimpleNamespace

import pytest

from sae_sweeps.cli.mistakes import guarded
from sae_sweeps.runs import inline
from sae_sweeps.storage.lease import Lease


def not_ours(folder):
    raise PermissionError(13, "Permission denied", str(folder.path / "lease.lock"))


@pytest.mark.parametrize("status, state, line", [
    ({"state": "completed", "error": None}, "completed", "complete, skipped"),
    (None, "failed", "failed: .*permission denied.*give a folder of yours"),
])  # fmt: skip
def test_a_complete_run_of_another_user_is_complete(tmp_path, monkeypatch, status, state, line):
    monkeypatch.setattr(Lease, "acquire", staticmethod(not_ours))
    monkeypatch.setattr(inline, "final_status", lambda run, folder: status)
    lines = []
    launch = SimpleNamespace(
        outputs=tmp_path, labels={"x": "[1/1] x"}, ended={}, console=SimpleNamespace(print=lines.append)
    )
    assert inline.run_group([SimpleNamespace(run_id="x", run=None)], "", launch) == []
    assert launch.ended == {"x": state}
    assert re.search(line, "\n".join(lines))


def test_a_file_that_may_not_be_written_ends_a_command_with_a_sentence(capsys):
    def refused():
        raise PermissionError(13, "Permission denied", "somewhere/x")

    assert guarded(refused, debug=False) == 2
    assert capsys.readouterr().err.startswith("error: somewhere/x: permission denied")
    with pytest.raises(PermissionError):
        guarded(refused, debug=True)


def test_letters_that_the_terminal_lacks_end_no_command(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert guarded(lambda: print("a ── b", flush=True) or 0, debug=False) == 0
    assert terminal.buffer.getvalue() == b"a ?? b\n"
