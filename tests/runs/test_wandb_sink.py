import json
import os
import queue
import subprocess
import sys
from pathlib import Path

import pytest

from sae_sweeps.config.schema import LoggerConfig
from sae_sweeps.tracking import wandb_client
from sae_sweeps.tracking import wandb_sink as module
from sae_sweeps.tracking.wandb_sink import WandbSink
from tests.wandb_stub import API_KEY, WandbStub

ROOT = Path(__file__).parents[2]

# Each run in a process of its own, as a user's: what is left of it when it ends can then be seen.
SCRIPT = """
import sys
from sae_sweeps.config.schema import LoggerConfig
from sae_sweeps.tracking.wandb_sink import WandbSink
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


class FakeRun:
    """Stands where the client's run would."""

    def __init__(self):
        self.rows, self.summary, self.exit_code = [], {}, None

    def log(self, row, step, commit):
        self.rows.append((step, row))

    def finish(self, exit_code):
        self.exit_code = exit_code


def fake_package(tmp_path, monkeypatch, body):
    """A `wandb` whose source is `body`, for the processes started from here."""
    folder = tmp_path / "fake"
    folder.mkdir()
    (folder / "wandb.py").write_text(FAKE + body)
    monkeypatch.setenv("PYTHONPATH", str(folder))


FAKE = """
import atexit, threading, time
Settings = dict
def login(prompt): return True
def hang(*args, **kwargs): time.sleep(1000)
class Run:
    summary = {}
    def log(self, row, step, commit): pass
    def finish(self, exit_code): pass
def init(**kwargs): return Run()
"""


def made(tmp_path, mode="offline"):
    return WandbSink(LoggerConfig(mode=mode), "abc", None, [], {}, tmp_path / "run")


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


def test_rows_reach_the_client_as_they_are(monkeypatch):
    run = FakeRun()
    monkeypatch.setattr(wandb_client, "start", lambda init: run)
    messages = [{"dir": "x"}, {"step": 7, "loss": 1.0, "nonfinite": ["a"]}]
    wandb_client.serve(map(json.dumps, [*messages, {"finish": {"exit_code": 3, "summary": {"fvu": 0.5}}}]))
    assert run.rows == [(7, {"loss": 1.0})] and run.summary == {"fvu": 0.5} and run.exit_code == 3


def test_a_run_that_was_killed_is_marked_as_failed(monkeypatch):
    run = FakeRun()
    monkeypatch.setattr(wandb_client, "start", lambda init: run)
    wandb_client.serve(map(json.dumps, [{}, {"step": 0}]))
    assert run.rows == [(0, {})] and run.exit_code == 1


def test_the_caller_may_reuse_its_row_and_the_end_is_quiet(tmp_path, monkeypatch):
    fake_package(tmp_path, monkeypatch, "")
    sink = made(tmp_path)
    row = {"step": 7, "loss": float("nan")}
    sink.log(row)
    row["loss"] = 2.0
    assert sink.finish(3, {"fvu": 0.5}) is None


@pytest.mark.parametrize(
    "body",
    [
        "raise ImportError('no module named wandb')",
        "def init(**kwargs): raise ValueError('broken\\npipe.')",
        "def init(**kwargs): raise SystemExit(1)",
        "def fail(*args, **kwargs): raise SystemExit(1)\nRun.log = fail",
        "def fail(*args, **kwargs): raise ValueError('broken\\npipe.')\nRun.finish = fail",
    ],
)
def test_whatever_the_client_raises_is_one_sentence(tmp_path, monkeypatch, body):
    fake_package(tmp_path, monkeypatch, body)
    sink = made(tmp_path)
    for step in range(5):
        sink.log({"step": step})
    warning = sink.finish()
    assert warning.count(".") == 1 and warning.endswith(".") and "\n" not in warning


def test_a_slow_server_never_slows_log(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "QUEUE_ROWS", 4)
    fake_package(tmp_path, monkeypatch, "init = hang")
    sink = made(tmp_path)
    for step in range(20_000):  # more than the queue and the pipe hold
        sink.log({"step": step, "padding": "x" * 50})
    assert "did not answer within 0.1 s" in sink.finish(timeout=0.1)
    sink = made(tmp_path)
    fast = sink._queue.put_nowait
    monkeypatch.setattr(sink._queue, "put_nowait", lambda row: (_ for _ in ()).throw(queue.Full()))
    sink.log({"step": 0})
    monkeypatch.setattr(sink._queue, "put_nowait", fast)
    assert sink._dropped == 1 and sink.finish(timeout=0.1) is not None


@pytest.mark.parametrize(
    "body",
    [
        "init = hang",
        "login = hang",
        "Run.finish = hang",
        "atexit.register(hang)",
        "threading.Thread(target=hang).start()",
    ],
)
def test_a_client_that_hangs_keeps_nobody(tmp_path, monkeypatch, body):
    """The process that fed it ends by itself, and nothing that it started is left."""
    fake_package(tmp_path, monkeypatch, body)
    words = ["online", str(tmp_path / "run"), "0", "3", "0", "1"]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *words],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    hangs = body not in ("atexit.register(hang)", "threading.Thread(target=hang).start()")
    assert done.returncode == 0 and ("did not answer" in done.stdout) == hangs, done.stdout + done.stderr
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert str(tmp_path) not in running
    for process in Path("/proc").glob("[0-9]*/environ"):
        try:
            environment = process.read_bytes()
        except OSError:
            continue
        assert process.parent.name == str(os.getpid()) or str(tmp_path / "fake").encode() not in environment
