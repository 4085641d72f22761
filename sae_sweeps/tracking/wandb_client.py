"""The W&B client in a process of its own, which can be killed; a thread cannot.

Inside the run's process, with a server that does not answer, the client's exit hook kept the process 22 s longer than
the run (wandb 0.31). A killed client costs its run nothing, for metrics.jsonl has every row.

`python -m sae_sweeps.tracking.wandb_client` reads one JSON object per line from stdin: the arguments of `wandb.init`,
then rows and `{"table": {"name": ..., "columns": [...], "data": [[...]]}}`, then `{"finish": {"exit_code": ...,
"summary": ..., "notes": ...}}`. It answers `{"problem": null or a sentence}` in one line and exits at once. Where stdin
ends without a finish, the run was killed: it is marked as failed.
"""

import json
import os
import sys
import threading
from collections.abc import Iterable
from typing import Any

from sae_sweeps.storage.files import one_line

INIT_TIMEOUT_S = 30.0
"""How long the client may try to reach its server."""
FINISH_TIMEOUT_S = 60.0
"""How long the end of a run may wait for the client."""


def serve(lines: Iterable[str]) -> None:
    """Start the client, pass rows on, finish. Raises whatever the client does."""
    lines = iter(lines)
    run = start(json.loads(next(lines)))
    for line in lines:
        row: dict[str, Any] = json.loads(line)
        if "finish" in row:
            end = row["finish"]
            run.summary.update(end["summary"])
            if end.get("notes"):
                run.notes = end["notes"]
            run.finish(exit_code=end["exit_code"])
            return
        if "table" in row:
            show(run, **row["table"])
            continue
        step = row.pop("step", None)
        row.pop("nonfinite", None)
        run.log(row, step=step, commit=True)  # an uncommitted row would overwrite the summary at the end
    run.finish(exit_code=1)


def start(init: dict[str, Any]) -> Any:
    """The client's run. A key that is missing is an error here, never a question on the terminal."""
    os.makedirs(init["dir"], exist_ok=True)
    import wandb

    if init["mode"] == "online" and not wandb.login(prompt=False):
        raise RuntimeError("no API key: run `wandb login`, or use logger.mode=offline")
    settings = wandb.Settings(
        init_timeout=INIT_TIMEOUT_S,
        finish_timeout=FINISH_TIMEOUT_S,
        finish_timeout_raises=True,
        console="off",
        silent=True,
        disable_code=True,
        disable_job_creation=True,
    )
    return wandb.init(**init, settings=settings)


def show(run: Any, name: str, columns: list[str | int], data: list[list[Any]]) -> None:
    """Put a table into the run's summary, where a later one of the same name takes its place."""
    import wandb

    run.summary[name] = wandb.Table(columns=columns, data=data, allow_mixed_types=True)


def main() -> None:
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what the client prints is not an answer
    problem = None
    try:
        serve(ending_soon(sys.stdin))
    except BaseException as error:  # the client may raise anything, SystemExit too
        problem = one_line(error)
    try:
        print(json.dumps({"problem": problem}), file=answer, flush=True)
    except OSError:  # the run's process is gone
        pass
    os._exit(0)  # the client's threads and exit hooks may hang


def ending_soon(lines: Iterable[str]) -> Iterable[str]:
    """The lines; after the last one the process has FINISH_TIMEOUT_S to live."""
    yield from lines
    last = threading.Timer(FINISH_TIMEOUT_S, os._exit, (1,))
    last.daemon = True
    last.start()


if __name__ == "__main__":
    main()
