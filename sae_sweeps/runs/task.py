"""One run in progress: the files that its training writes, and its end, which `RunTask.end` alone decides."""

from __future__ import annotations

import io
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sae_sweeps.activations.outliers import NormStats
from sae_sweeps.config.data import MOST_LEFT_OUT, TOP_VARIANCE
from sae_sweeps.config.plugins import blamed
from sae_sweeps.config.run import RunConfig
from sae_sweeps.errors import OUT_OF_MEMORY, DamagedFile, Diverged, Interrupted, UserError, as_exception, out_of_memory
from sae_sweeps.evaluation.geometry import similarity_snapshot
from sae_sweeps.evaluation.held_out import HeldOut
from sae_sweeps.kernels.choose import recorded_name as kernels_name
from sae_sweeps.kernels.selection import PLAIN, WAYS, Selection
from sae_sweeps.runs.batches import Batches, stream_of
from sae_sweeps.runs.console import Console
from sae_sweeps.runs.export import check_format, export, live_sae
from sae_sweeps.runs.provenance import provenance
from sae_sweeps.runs.results import in_brief, write_config
from sae_sweeps.runs.session import RunSession
from sae_sweeps.runs.signals import Stop
from sae_sweeps.runs.unchanged import record_identity
from sae_sweeps.storage.files import (
    digest_of,
    one_line,
    read_json,
    remove_temporaries,
    write_bytes,
    write_json,
    write_text,
)
from sae_sweeps.storage.lease import Lease
from sae_sweeps.storage.run_folder import SAE_FILES, TRAINED, RunFolder
from sae_sweeps.storage.secrets import without_secrets
from sae_sweeps.sweeps.plan import PlannedRun
from sae_sweeps.training.checkpoint import check_logs, has_checkpoint, load_checkpoint
from sae_sweeps.training.loop import Member, TrainingCallbacks
from sae_sweeps.training.step import Training

SELECTION = "selection.json"
"""In a run's folder: how its features are found (`train.selection`), from its first start on."""

STATUS_EVERY_S = 1.0
"""Seconds between updates of status.json while training."""

TAKEN_OVER = "taken over"
"""State of a task whose run another process works on now; never written to a file."""


class EvaluationsFailed(Exception):
    """The run is trained and its results are written, but some evaluations failed."""


class LeaseLost(Exception):
    """Another process took the run over; this one must not write to it any more."""

    def __init__(self, folder: RunFolder):
        super().__init__(f"another process took over {folder.path}")


@dataclass
class Launch:
    """What the runs of a launch share, and how they ended."""

    session: RunSession
    console: Console
    outputs: Path
    sweep: str
    stop: Stop
    labels: dict[str, str] = field(default_factory=dict)
    """`[2/3] RUN_ID  TITLE` by run id."""
    ended: dict[str, str] = field(default_factory=dict)
    """State by run id; `completed in part` where an evaluation failed."""


class RunTask(TrainingCallbacks):
    """One planned run that this process has the lease of.

    Attributes:
        state: how the run ended here, None while it is in progress.
        group_size: runs that are trained side by side with it, itself included.
        retry_warning: set when the run found no memory in a group; it is trained again alone, with this warning.
    """

    def __init__(self, planned: PlannedRun, folder: RunFolder, lease: Lease, launch: Launch):
        self.planned, self.run, self.run_id = planned, planned.run, planned.run_id
        self.folder, self.lease, self.launch = folder, lease, launch
        self.label = launch.labels.get(self.run_id, self.run_id)
        self.label_printed = False
        self.sink = wandb_sink(planned, folder, launch.sweep) if planned.run.logger.name != "none" else None
        self.state: str | None = None
        self.group_size = 1
        self.retry_warning: str | None = None
        self._held_out: HeldOut | None = None
        self._norms: NormStats | None = None
        self._n_tokens = 0
        self._status_step, self._status_written = 0, 0.0

    @property
    def ended(self) -> bool:
        return self.state is not None

    @property
    def trained(self) -> bool:
        return (self.folder.path / TRAINED).exists()

    @contextmanager
    def isolate_failure(self) -> Iterator[None]:
        """An exception in the block is this run's failure and does not reach the others."""
        try:
            yield
        except (Exception, SystemExit) as error:
            self.on_failure(as_exception(error))

    def begin(self) -> None:
        """Write config.yaml and identity.json and mark the run running."""
        with self.isolate_failure():
            remove_temporaries(self.folder.path)
            record_identity(self.planned, self.folder)
            write_config(self.run, self.folder)
            self.folder.set_status(state="running", total_steps=self.run.total_steps)

    def start_training(self, batches: Batches, session: RunSession) -> Member:
        """The run at its checkpoint, or at step 0."""
        run, folder, store = self.run, self.folder, batches.store(self.run)
        selection = recorded_selection(folder)
        if has_checkpoint(folder.checkpoint):
            origin = torch.zeros(store.d_in, device=session.device)
            training = Training(run, 1.0, origin, session.device, selection or unrecorded_selection(run))
            start = load_checkpoint(training, folder.checkpoint)
        else:
            training = Training(run, *batches.start(run), session.device, selection)
            start = 0
        if selection is None:
            write_json(folder.path / SELECTION, asdict(training.sae.selection))
        check_format(run, training)
        folder.truncate(start - 1)
        if has_checkpoint(folder.checkpoint):
            check_logs(folder.checkpoint, folder.log_digests())
        self._status_step = start  # below that of an attempt that ran out of memory
        self.on_checkpoint(start)
        self._held_out, self._norms, self._n_tokens = batches.held_out(run), batches.norms(run), store.n_tokens
        return Member(training, start, folder.checkpoint, self, stream_of(run))

    # While it trains -------------------------------------------------------------------------------------------------

    def before_step(self) -> None:
        if self.lease.lost:  # not even a checkpoint may be written: the files are the other process's now
            raise LeaseLost(self.folder)

    def on_row(self, row: dict[str, Any]) -> None:
        self.folder.metrics.append(row)
        if time.monotonic() - self._status_written > STATUS_EVERY_S:
            self.on_checkpoint(row["step"] + 1)
        if self.sink is not None:
            self.sink.log(row)

    def on_monitor(self, record: dict[str, Any]) -> None:
        self.folder.monitors.append(record)
        if self.sink is not None:
            self.sink.monitor(record)

    def measure(self, training: Training) -> dict[str, float]:
        if self._held_out is None:
            return {}
        measured = self._held_out.measure(live_sae(self.run, training))
        return {f"held_out_{name}": value for name, value in measured.items()}

    def on_quarter(self, training: Training, percent: int) -> None:
        """monitors/similarity_25.npz and so on: how similar the decoder's rows are."""
        content = io.BytesIO()
        np.savez_compressed(content, **similarity_snapshot(training.sae.W_dec.detach().cpu(), seed=0))
        write_bytes(self.folder.path / "monitors" / f"similarity_{percent}.npz", content.getvalue())

    def log_digests(self) -> dict[str, str]:
        return self.folder.log_digests()

    def on_checkpoint(self, step: int) -> None:
        # a checkpoint is on the disk some steps later: by then the status is ahead, or the run is another process's
        if step >= self._status_step and not self.lease.lost:
            self.folder.set_status(step=step)
            self._status_step, self._status_written = step, time.monotonic()

    def on_complete(self, member: Member) -> None:
        """Export `sae/`; write trained.json last."""
        if not self.lease.check():  # its folder may have been removed
            raise LeaseLost(self.folder)
        run, training, norms, began = self.run, member.training, self._norms, time.monotonic()
        assert training is not None and norms is not None
        refused = run.why_not_saelens()
        if refused is None:
            export(run, training, self.folder, norms.limit)
        warnings = [refused] if refused else []
        warnings += run.penalty.result_warnings(self.folder.metrics.rows())
        wanted = run.total_steps * run.batch_size
        if self._n_tokens < wanted:
            repeats = wanted / self._n_tokens
            warnings.append(
                f"the text holds {self._n_tokens:,} tokens: the {wanted:,} trained on repeat it {repeats:.2f} times"
            )
        if norms.top_variance is not None and norms.top_variance > TOP_VARIANCE:
            warnings.append(
                f"a thousandth of the training tokens holds {norms.top_variance:.0%} of the variance of the "
                "activations and rules loss and fvu; read fvu_per_token, or leave such tokens out with data.max_norm=10"
            )
        if norms.left_out > MOST_LEFT_OUT:
            warnings.append(
                f"data.max_norm={run.data.max_norm:g} leaves out {norms.left_out:.0%} of the training tokens, "
                "which are no outliers then; a larger one, as 10, leaves out only those"
            )
        if self.retry_warning:
            warnings.append(self.retry_warning)
        made = provenance(str(training.device), torch.get_num_threads()) | {
            "kernels": kernels_name(training.sae.kernels, training.device),
            "selection": training.sae.selection.way,
            "activation_scale": training.scale,
            "norms": asdict(norms),
            "start_step": member.start,
            "group_size": self.group_size,
            "wall_time_s": round(member.seconds + time.monotonic() - began, 2),
            "shared_time_s": round(member.shared_seconds, 2),
            "tokens_per_s": member.speed(member.total - member.start - 1, member.seconds_of_steps()),
            "step_tokens_per_s": member.speed(member.total - member.start - 1, member.stopwatch.seconds()),
        }
        digests = self.folder.log_digests() | {name: digest_of(self.folder.path / name) for name in SAE_FILES}
        write_json(self.folder.path / TRAINED, {"warnings": warnings, "provenance": made, "digests": digests})

    # Its end ---------------------------------------------------------------------------------------------------------

    def on_failure(self, error: Exception) -> None:
        """End the run, unless memory ran out beside others: then it is tried again alone."""
        if self.group_size > 1 and out_of_memory(error):
            self.retry_warning = f"ran out of memory in a group of {self.group_size} runs and was trained alone"
            self.launch.console.note(
                f"{self.run_id}  {self.planned.title}: ran out of memory; it will be tried again alone"
            )
        else:
            self.end(error)

    def end(self, error: Exception | None = None) -> None:
        """Record the run's end and print it at once: other runs of its group may take much longer."""
        self.folder.close()
        lines = [] if self.label_printed else [self.label]
        if isinstance(error, LeaseLost):
            self.state = TAKEN_OVER
            self.launch.console.note(f"{self.label}\n  {error}")
            return
        state, reason = self._outcome(error)
        reason = reason and without_secrets(reason)
        if not self.lease.lost:  # else the status is the other process's
            with suppress(UserError, OSError):
                self.folder.set_status(state=state, error=reason)
        if state == "completed":
            lines.append(f"  {state}: {in_brief(self.folder)}")
        if reason:
            lines.append(f"  {reason}" if state == "completed" else f"  {state}: {reason}")
        self.state = "completed in part" if state == "completed" and reason else state
        self.launch.ended[self.run_id] = self.state
        self.launch.console.note("\n".join(lines))

    def _outcome(self, error: Exception | None) -> tuple[str, str | None]:
        """State of status.json and the line of `error` there."""
        if error is None:
            return "completed", None
        if isinstance(error, EvaluationsFailed):
            return "completed", str(error)
        if isinstance(error, Diverged):
            return "diverged", str(error)
        if isinstance(error, Interrupted):
            return self.launch.stop.state, str(error)
        if isinstance(error, UserError):
            return "failed", str(error)
        log = self.folder.path / "error.log"
        with suppress(UserError, OSError):
            write_text(log, without_secrets("".join(traceback.format_exception(error))))
        if out_of_memory(error):
            what = f"{OUT_OF_MEMORY}: {one_line(error)}; a smaller d_sae, batch_size or cluster.group_size takes less"
        else:
            what = blamed(error) or f"{type(error).__name__}: {one_line(error)}"
        return "failed", f"{what} (traceback in {log})"

    def close(self) -> None:
        """Finish the copy for W&B."""
        if self.sink is None:
            return
        completed = self.state in ("completed", "completed in part")
        summary = read_json(self.folder.results_path).get("metrics", {}) if completed else {}
        if warning := self.sink.finish(int(not completed), summary, notes=notes_of(self.folder)):
            self.launch.console.note(f"{self.label}\n  warning: {warning}")


def recorded_selection(folder: RunFolder) -> Selection | None:
    """How the run's features were found at its first start; None where none is recorded."""
    path = folder.path / SELECTION
    if not path.exists():
        return None
    found = read_json(path)
    way, block = (found.get(key) if isinstance(found, dict) else None for key in ("way", "block"))
    if way not in WAYS or not isinstance(block, int) or isinstance(block, bool) or block < 0:
        raise DamagedFile(f"{path}: is not what a run's start writes; delete {folder.path} to train it from the start.")
    return Selection(way, block)


def unrecorded_selection(run: RunConfig) -> Selection:
    """How earlier versions, which recorded nothing, found a run's features."""
    return Selection("bfloat16") if run.train.selection == "bfloat16" else PLAIN


def notes_of(folder: RunFolder) -> str | None:
    """What W&B shows as the run's notes; None where the run's files do not read back."""
    from analysis.reading.run_folders import read_run
    from analysis.wandb import publish

    try:
        return publish.notes_of(read_run(folder.path))
    except UserError:
        return None


def wandb_sink(planned: PlannedRun, folder: RunFolder, sweep: str) -> Any:
    from sae_sweeps.tracking.wandb_sink import WandbSink

    run = planned.run
    return WandbSink(
        run.logger,
        run_id=planned.run_id,
        group=sweep,
        tags=run.logger.tags,
        config=run.to_dict(),
        folder=folder.path,
        title=planned.title,
    )
