"""One group of a sweep, trained in this process: what a Slurm job calls, and `python -m sae_sweeps.cluster.worker`.

It needs the sweep's folder and the group's number: configs are in that folder, checkpoints in the runs', so a job that
is started again is the same job.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_sweeps.cluster.ends import mark_ended
from sae_sweeps.config.schema import ClusterConfig
from sae_sweeps.errors import UserError
from sae_sweeps.runs.signals import Stop
from sae_sweeps.storage.gpus import visible_gpus
from sae_sweeps.storage.printing import print_line
from sae_sweeps.storage.run_folder import RunFolder, slurm_job_id
from sae_sweeps.storage.sweep_folder import outputs_of, read_manifest, run_path

if TYPE_CHECKING:
    from sae_sweeps.sweeps.plan import Plan


@dataclass
class Worker:
    """What submitit pickles: `tasks` groups from number `first` on, one for each task of the job."""

    sweep: str
    first: int
    tasks: int

    def __call__(self) -> None:
        """Train this task's group; exits with status 1 where not all of it completed."""
        rank = int(os.environ.get("SLURM_PROCID", "0"))
        if rank >= self.tasks:
            return
        take_gpus(int(os.environ.get("SLURM_LOCALID", "0")), int(os.environ.get("SLURM_NTASKS", "1")))
        status = train_group(Path(self.sweep), self.first + rank, JobSignals())
        if status:
            sys.exit(status)

    def checkpoint(self) -> Any:
        """What submitit queues again after the time limit's warning: the same, which resumes from the checkpoints."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def take_gpus(rank: int, tasks: int) -> None:
    """Restrict this task to its share of the job's GPUs; where there are more tasks, to one of them.

    Without CUDA_VISIBLE_DEVICES they are those that the driver lists.
    """
    if tasks > 1 and (visible := visible_gpus()):
        each = max(1, len(visible) // tasks)
        first = rank * each % len(visible)
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(visible[first : first + each])


def train_group(sweep: Path, group: int, signals: JobSignals | None = None) -> int:
    """Bring every run of a group to its end; 0 when all completed, 1 when one did not, 130 when stopped.

    Without `signals`, on this machine, SIGTERM stops the runs, each after a checkpoint.
    """
    from sae_sweeps.runs.inline import run_all  # loads torch, which `status` must not
    from sae_sweeps.runs.session import device_for
    from sae_sweeps.sweeps.sweep import stored_plan

    sweep, outputs = sweep.resolve(), outputs_of(sweep)
    manifest = read_manifest(sweep)
    if manifest["cwd"] and Path(manifest["cwd"]).is_dir():
        os.chdir(manifest["cwd"])  # relative paths of models and text
    members = manifest["groups"][group]
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    try:
        plan = stored_plan(sweep, members)
        if restarts > manifest["cluster"].get("max_restarts", restarts):
            raise UserError(
                f"the job was started again {restarts} times, more than cluster.max_restarts allows; resume tries again"
            )
        gpus = manifest["cluster"].get("gpus")
        device = device_for(plan.runs[0].run.device, f"cluster.gpus={gpus}" if gpus else None)
        limits = ClusterConfig(**{key: manifest["cluster"][key] for key in ("group_size", "memory_gb")})
        by_job: dict[str, Any] = (
            {} if signals is None else {"stop": signals.stop, "flush": lambda: signals.flush(plan, outputs)}
        )
        states = run_all(plan, outputs, sweep, device, cluster=limits, **by_job)
    except UserError as mistake:
        print_line(str(mistake))
        for run_id in members:
            with suppress(UserError, OSError):
                mark_ended(outputs, run_id, "failed", str(mistake))
        return 1
    if states.interrupted:
        if signals is not None:
            signals.requeue()
        return 130
    return int(any(state != "completed" for state in states.ended.values()))


class JobSignals:
    """A Slurm job.

    SIGTERM may mean preemption, requeue or scancel: write checkpoints and go on until killed (a job that exits within
    the grace time is not requeued; one that requeues itself undoes scancel). The time limit's warning, USR2: stop with
    checkpoints, then let submitit queue the job again.
    """

    def __init__(self) -> None:
        self.stop = Stop(state="preempted")
        self._flush = threading.Event()
        self._submitit = signal.getsignal(signal.SIGUSR2)
        signal.signal(signal.SIGTERM, self._note_term)
        signal.signal(signal.SIGUSR2, self._note_warning)

    def _note_term(self, number: int, frame: Any) -> None:
        self._flush.set()

    def _note_warning(self, number: int, frame: Any) -> None:
        if int(os.environ.get("SLURM_PROCID", "0")) == 0:
            self.stop.signal = number
        else:  # the first task queues the job again; the others are killed with it
            self._flush.set()

    def flush(self, plan: Plan, outputs: Path) -> bool:
        """Whether the runs must write checkpoints now; marks them preempted then."""
        if not self._flush.is_set():
            return False
        self._flush.clear()
        print_line("Slurm requests the end: checkpoints are written, and the work goes on until it is killed")
        mark_preempted(plan, outputs)
        return True

    def requeue(self) -> None:
        """Queue the job again, by submitit's own handler of the warning; it ends this process."""
        if callable(self._submitit):
            self._submitit(signal.SIGUSR2, None)


def mark_preempted(plan: Plan, outputs: Path) -> None:
    """Mark running runs preempted, which they are once killed; a run that survives overwrites it at its end."""
    for planned in plan.runs:
        folder = RunFolder(run_path(outputs, planned.run_id))
        with suppress(UserError, OSError):
            status = folder.status()
            if status and status["state"] == "running" and status["pid"] == os.getpid():
                why = f"Slurm job {slurm_job_id()} received SIGTERM (requeue, preemption or scancel)"
                folder.set_status(state="preempted", error=why)


if __name__ == "__main__":
    sys.exit(train_group(Path(sys.argv[1]), int(sys.argv[2])))
