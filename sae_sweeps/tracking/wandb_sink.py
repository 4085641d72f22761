"""A copy of a run for Weights & Biases. The run's own files are the truth: nothing here can fail or slow a run."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from sae_sweeps.storage.files import one_line
from sae_sweeps.tracking.wandb_client import FINISH_TIMEOUT_S

QUEUE_ROWS = 10_000
"""Rows that wait for a slow server; beyond that, rows are dropped and counted."""
ROOT = Path(__file__).parents[2]
FIELDS = {
    "layer": "layer.index", "dict_size": "architecture.d_sae", "learning_rate": "lr_schedule.lr",
    "sparsity_penalty": "architecture.l1_penalty",
}  # fmt: skip
"""Fields of the summary that run notes have under these names -> their config keys."""
WATCHED = ("overlap", "abs_cosine", "correlation", "c")
CLASSES = ("highest", "median", "lowest")
"""Numbers of the watched pairs, and the thirds of the pairs, by their overlap when they were chosen."""


class Logger(Protocol):
    """The part of the config's `logger` group that is needed here."""

    mode: str
    project: str
    entity: str | None


class WandbSink:
    """Passes rows to the W&B client, which runs in a process of its own (wandb_client.py).

    The run's id at W&B is `run_id` and it is resumed when it exists, so a run that is interrupted or published again
    stays one run; W&B itself drops steps that it has. Offline files are under `folder`/wandb.

    Args:
        logger: mode (offline or online), project and entity.
        run_id: also the name that tables use.
        group: the sweep's name, or None.
        tags: cut to W&B's 64 characters.
        config: the resolved config.
        folder: the run's folder.
        title: the name shown at W&B; by default `run_id`.
    """

    def __init__(
        self,
        logger: Logger,
        run_id: str,
        group: str | None,
        tags: list[str],
        config: dict[str, Any],
        folder: str | os.PathLike,
        title: str | None = None,
        job_type: str = "train",
    ):
        self._init: dict[str, Any] = {
            "project": logger.project,
            "entity": logger.entity,
            "id": run_id,
            "name": title or run_id,
            "group": group,
            "job_type": job_type,
            "tags": [tag[:64] for tag in tags if tag] or None,
            "config": config,
            "dir": os.fspath(folder),
            "mode": logger.mode,
            "resume": "allow",
        }
        self._fields = {name: value for name, key in FIELDS.items() if (value := value_of(config, key)) is not None}
        self._watched: dict[int, dict[str, float]] = {}
        self._steps: int | None = None
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(QUEUE_ROWS)
        self._dropped = 0
        self._problem: str | None = None
        self._exit_code = 0
        self._summary: dict[str, Any] = {}
        self._notes: str | None = None
        self._client = start_client()
        self._thread = threading.Thread(target=self._work, name=f"wandb-{run_id}", daemon=True)
        self._thread.start()

    def table(self, name: str, columns: list[str], data: list[list[Any]]) -> None:
        """Send a table of text and numbers, for the run's summary under `name`."""
        self.log({"table": {"name": name, "columns": columns, "data": data}})

    def monitor(self, record: dict[str, Any]) -> None:
        """Take a record of monitors.jsonl, before the row of its step: of pairs that were watched first the means."""
        if record.get("monitor") == "pairs":
            self._watched.setdefault(record["step"], pair_means(record))

    def log(self, row: dict[str, Any]) -> None:
        """Send one row of metrics.jsonl; its `step` becomes W&B's step. Returns at once, whatever happens."""
        row = self._with_pairs(row)
        if self._problem is not None:
            return
        try:
            self._queue.put_nowait(row)
        except queue.Full:
            self._dropped += 1

    def _with_pairs(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with the means of its step's pairs; a copy."""
        if "step" not in row:
            return dict(row)
        self._steps = row["step"] + 1
        return row | self._watched.pop(row["step"], {})

    def replay(self, rows: Iterable[dict[str, Any]]) -> None:
        """Send the rows of a run that has ended; waits for a slow client, and drops none while it runs."""
        for row in map(self._with_pairs, rows):
            while self._problem is None and self._thread.is_alive():
                try:
                    self._queue.put(row, timeout=0.1)
                    break
                except queue.Full:
                    continue

    def finish(
        self,
        exit_code: int = 0,
        summary: dict[str, Any] | None = None,
        timeout: float = FINISH_TIMEOUT_S,
        notes: str | None = None,
    ) -> str | None:
        """Wait for the client, `timeout` seconds at most, and return what went wrong as one sentence, or None.

        Args:
            exit_code: 0 marks the run finished at W&B, anything else failed.
            summary: the run's final metrics; the fields of its notes are added.
            notes: what W&B shows as the run's notes.
        """
        deadline = time.monotonic() + timeout
        steps = (summary or {}).get("steps", self._steps)
        fields = self._fields | ({} if steps is None else {"training_steps": steps})
        self._exit_code, self._summary, self._notes = exit_code, fields | (summary or {}), notes
        while self._thread.is_alive() and time.monotonic() < deadline:
            try:
                self._queue.put(None, timeout=0.05)
                break
            except queue.Full:
                continue  # a slow server; rows are still taken
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._problem = f"it did not answer within {timeout:g} s"
        elif self._dropped and self._problem is None:
            self._problem = f"it was too slow for {self._dropped} rows"
        stop_client(self._client)
        if self._problem is None:
            return None
        return f"the copy for W&B is incomplete ({self._problem}); the run's own files are not."

    def _work(self) -> None:
        """The thread: write rows to the client, read its answer. After a failure `log` drops rows."""
        client = self._client
        assert client.stdin is not None and client.stdout is not None
        try:
            print(json.dumps(self._init), file=client.stdin, flush=True)
            while (row := self._queue.get()) is not None:
                print(json.dumps(row), file=client.stdin, flush=True)
            end = {"exit_code": self._exit_code, "summary": self._summary, "notes": self._notes}
            print(json.dumps({"finish": end}), file=client.stdin, flush=True)
            self._problem = json.loads(client.stdout.readline())["problem"]
        except BrokenPipeError:  # the client has given up, and its answer has the reason
            self._problem = one_line(json.loads(client.stdout.readline() or '{"problem": "it ended"}')["problem"])
        except Exception as error:
            self._problem = self._problem or one_line(error)


def value_of(config: dict[str, Any], key: str) -> Any:
    """The value of a dotted key of a nested config; None where it has none."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def pair_means(record: dict[str, Any]) -> dict[str, float]:
    """Means over each class of a record of watched pairs, as `pairs/highest/abs_cosine`."""
    third = -(-len(record["pairs"]) // len(CLASSES))
    return {
        f"pairs/{label}/{name}": sum(part) / len(part)
        for name in WATCHED
        for place, label in enumerate(CLASSES)
        if (part := record.get(name, [])[place * third : (place + 1) * third])
    }


def start_client() -> subprocess.Popen[str]:
    """The client's process, in a session of its own: Ctrl-C is for the run alone."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-m", "sae_sweeps.tracking.wandb_client"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": path},
    )


def stop_client(client: subprocess.Popen[str]) -> None:
    """End the client's process and those that it started; it has answered, or has had its time."""
    try:
        os.killpg(client.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    client.wait()
