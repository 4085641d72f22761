import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sae_sweeps.config.schema import LoggerConfig
from sae_sweeps.runs import wandb_sink as module
from sae_sweeps.runs.wandb_sink import WandbSink
from tests.wandb_stub import API_KEY, WandbStub

ROOT = Path(__file__).parents[2]

# The real client keeps a service for the life of its process, so each run gets a process of its own.
SCRIPT = """
import sys
from sae_sweeps.config.schema import LoggerConfig
from sae_sweeps.runs.wandb_sink import WandbSink
mode, folder, first, last, exit_code, timeout = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
sink = WandbSink(LoggerConfig(mode=mode, entity="me"), "abc123", "sweep-1", ["ortho", "x" * 80],
                 {"penalty": {"name": "ortho", "lambda2_max": 0.5}, "seed": 0}, folder, title="half penalty")
for step in range(first, last):
    sink.log({"step": 10 * step, "loss": 1 / (step + 1), "penalty/overlap": float("nan") if step == 1 else None})
print(sink.finish(exit_code, {"fvu": 0.25}, timeout))
"""


def run_sink(environment, mode, folder, first=0, last=3, exit_code=0, timeout=60):
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    words = [str(word) for word in (mode, folder, first, last, exit_code, timeout)]
    command = [sys.executable, "-c", SCRIPT, *words]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout.strip()


@pytest.fixture
def real_client():
    pytest.importorskip("wandb")


class FakeClient:
    """Stands where the `wandb` package would, and does as it is told."""

    def __init__(self, log=lambda row, step: None, finish=lambda exit_code: None):
        self.rows, self.summary, self.exit_code, self._log, self._finish = [], {}, None, log, finish

    def log(self, row, step):
        self._log(row, step)
        self.rows.append((step, row))

    def finish(self, exit_code):
        self._finish(exit_code)
        self.exit_code = exit_code


def sink_with(monkeypatch, tmp_path, client):
    monkeypatch.setattr(WandbSink, "_start", lambda self: client)
    return WandbSink(LoggerConfig(), "abc", None, [], {}, tmp_path)


@pytest.mark.slow
def test_what_the_real_client_sends(tmp_path, real_client):
    with WandbStub() as stub:
        environment = stub.environment(str(tmp_path))
        assert run_sink(environment, "online", tmp_path / "run", 0, 3, exit_code=1) == "None"
        run = stub.runs["abc123"]
        assert run.exit_code == 1
        assert run_sink(environment, "online", tmp_path / "run", 3, 5) == "None"  # taken up again after a crash
    assert list(stub.runs) == ["abc123"]
    assert [row["_step"] for row in run.history] == [0, 10, 20, 30, 40]
    assert [row["loss"] for row in run.history] == [1 / (step + 1) for step in range(5)]
    assert (run.group, run.job_type, run.display_name) == ("sweep-1", "train", "half penalty")
    assert sorted(run.tags) == ["ortho", "x" * 64]
    assert run.config["penalty"]["value"] == {"name": "ortho", "lambda2_max": 0.5} and run.config["seed"]["value"] == 0
    assert run.summary["fvu"] == 0.25 and run.exit_code == 0


@pytest.mark.slow
def test_offline_writes_under_the_run_folder_and_asks_nobody(tmp_path, real_client):
    with WandbStub() as stub:
        assert run_sink(stub.environment(str(tmp_path)), "offline", tmp_path / "run") == "None"
        assert stub.requests == []
    (record,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-abc123.wandb")
    assert record.stat().st_size > 0


@pytest.mark.slow
def test_an_unreachable_server_costs_the_timeout_and_a_warning(tmp_path, real_client):
    environment = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": API_KEY, "HOME": str(tmp_path)}
    warning = run_sink(environment, "online", tmp_path / "run", timeout=1)
    assert warning == "the copy for W&B is incomplete (it did not answer within 1 s); the run's own files are not."


@pytest.mark.slow
def test_a_missing_key_is_a_warning_and_never_a_question(tmp_path, real_client):
    warning = run_sink({"HOME": str(tmp_path)}, "online", tmp_path / "run")
    assert "no API key" in warning and "logger.mode=offline" in warning


def test_a_missing_package_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    sink = WandbSink(LoggerConfig(), "abc", None, [], {}, tmp_path)
    sink.log({"step": 0})
    assert "wandb" in sink.finish()


def test_rows_reach_the_client_as_they_are(monkeypatch, tmp_path):
    client = FakeClient()
    sink = sink_with(monkeypatch, tmp_path, client)
    row = {"step": 7, "loss": 1.0, "nonfinite": ["a"]}
    sink.log(row)
    row["loss"] = 2.0  # the caller may reuse its row
    assert sink.finish(3, {"fvu": 0.5}) is None
    assert client.rows == [(7, {"loss": 1.0})] and client.summary == {"fvu": 0.5} and client.exit_code == 3


@pytest.mark.parametrize("place", ["log", "finish"])
@pytest.mark.parametrize("error", [ValueError("broken\npipe."), SystemExit(1)])
def test_whatever_the_client_raises_is_one_sentence(monkeypatch, tmp_path, place, error):
    def fail(*args):
        raise error

    sink = sink_with(monkeypatch, tmp_path, FakeClient(**{place: fail}))
    for step in range(5):
        sink.log({"step": step})
    warning = sink.finish()
    assert warning.count(".") == 1 and warning.endswith(".") and "\n" not in warning


def test_a_slow_server_never_slows_log(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "QUEUE_ROWS", 4)
    gate = threading.Event()
    sink = sink_with(monkeypatch, tmp_path, FakeClient(log=lambda row, step: gate.wait(10)))
    for step in range(50):
        sink.log({"step": step})
    warning = sink.finish(timeout=0.1)
    assert "did not answer within 0.1 s" in warning
    gate.set()
    sink = sink_with(monkeypatch, tmp_path, FakeClient(log=lambda row, step: time.sleep(0.001)))
    for step in range(50):
        sink.log({"step": step})
    assert "too slow for" in sink.finish()
