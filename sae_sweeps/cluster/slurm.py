"""Slurm: submission through submitit, and one query of squeue (and sacct, where there is accounting) for all jobs."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from sae_sweeps.cluster.jobs import Job, JobState, runs_in
from sae_sweeps.cluster.worker import Worker
from sae_sweeps.config.cluster import minutes_of
from sae_sweeps.config.schema import SlurmConfig
from sae_sweeps.errors import ConfigError
from sae_sweeps.storage.sweep_folder import read_manifest

PROJECT = Path(__file__).parents[2]
FOLDER = "slurm"
"""Below the sweep's folder: submitit's files and the jobs' logs."""
LARGEST_ARRAY = 1000
"""Slurm's default MaxArraySize is 1001."""
TIMEOUT_S = 60
"""A command of Slurm that takes longer counts as no answer."""

JOB_ENDS = {
    "COMPLETED": "lost", "FAILED": "lost", "NODE_FAIL": "lost", "BOOT_FAIL": "lost", "OUT_OF_MEMORY": "lost",
    "DEADLINE": "lost", "REVOKED": "lost", "TIMEOUT": "preempted", "PREEMPTED": "preempted", "CANCELLED": "cancelled",
}  # fmt: skip
"""How a job ended, and the state of a run that had not ended then."""
NEVER_STARTS = (
    "launch failed requeued held", "launch_failed_requeued_held", "JobHoldMaxRequeue", "BadConstraints",
    "DependencyNeverSatisfied", "PartitionNodeLimit", "PartitionTimeLimit", "InvalidAccount", "InvalidQOS",
)  # fmt: skip


class Slurm:
    def __init__(self, cfg: SlurmConfig):
        self.cfg = cfg
        self._accounting = True

    def submit(self, sweep: Path, groups: list[int]) -> list[Job]:
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            raise ConfigError(
                f"cluster={self.cfg.name}: there is no sbatch on this machine; launch where Slurm is, or give "
                "cluster=local."
            )
        tasks, sweep = self.cfg.tasks, sweep.resolve()
        packs = [groups[i : i + tasks] for i in range(0, len(groups), tasks)]
        ids: list[str] = []
        for i in range(0, len(packs), LARGEST_ARRAY):
            ids += self._submit_array([Worker(str(sweep), p[0], len(p)) for p in packs[i : i + LARGEST_ARRAY]], sweep)
        known = read_manifest(sweep)["groups"]
        return [
            Job("slurm", id, pack, runs_in(known, pack), [f"{FOLDER}/{id}_{r}_log.out" for r in range(len(pack))])
            for id, pack in zip(ids, packs, strict=True)
        ]

    def _submit_array(self, workers: list[Worker], sweep: Path) -> list[str]:
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        executor = SlurmExecutor(sweep / FOLDER, max_num_timeout=self.cfg.max_restarts, python=self.cfg.python)
        executor.update_parameters(**sbatch_parameters(self.cfg, sweep))
        try:
            with redirect_stderr(StringIO()), executor.batch():  # submitit prints sbatch's error, and raises it too
                jobs = [executor.submit(worker) for worker in workers]
        except (FailedJobError, FailedSubmissionError) as error:
            lines = [line for line in str(error).splitlines() if "error:" in line] or str(error).splitlines()
            why = "; ".join(line.partition("error:")[2].strip() or line.strip() for line in lines[-2:])
            raise ConfigError(f"cluster={self.cfg.name}: sbatch refuses the job ({why}).") from None
        return [job.job_id for job in jobs]

    def states(self, sweep: Path, jobs: list[Job]) -> dict[str, JobState] | None:
        if not jobs:
            return {}
        bases = sorted({job.id.partition("_")[0] for job in jobs})
        printed = _output(["squeue", "-h", "-r", "-t", "all", "-o", "%i|%T|%r", "-j", ",".join(bases)])
        if printed is None:
            return None
        seen = {id: (name, reason) for id, name, reason in (line.split("|", 2) for line in printed.splitlines())}
        unknown = [job.id for job in jobs if job.id not in seen]
        if unknown and self._accounting:
            seen |= self._accounted(unknown)
        return {job.id: _state(job.id, *seen.get(job.id, ("GONE", ""))) for job in jobs}

    def _accounted(self, ids: list[str]) -> dict[str, tuple[str, str]]:
        bases = ",".join(sorted({id.partition("_")[0] for id in ids}))
        printed = _output(["sacct", "-n", "-P", "-X", "-o", "JobID,State", "-j", bases])
        if printed is None:  # no accounting here, or none that answers: not queried again
            self._accounting = False
            return {}
        rows = (line.split("|", 1) for line in printed.splitlines() if "|" in line)
        return {id: (state.split()[0], state) for id, state in rows if id in ids}

    def cancel(self, sweep: Path, jobs: list[Job]) -> None:
        ids = [job.id for job in jobs]
        for i in range(0, len(ids), 100):
            _output(["scancel", *ids[i : i + 100]])


def sbatch_parameters(cfg: SlurmConfig, sweep: Path) -> dict[str, Any]:
    """The config as submitit's parameters."""
    path = f"export PYTHONPATH={shlex.quote(str(PROJECT))}${{PYTHONPATH:+:$PYTHONPATH}}"
    threads = f"export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-{cfg.cpus}}} OMP_WAIT_POLICY=${{OMP_WAIT_POLICY:-PASSIVE}}"
    gpus = {"gres": f"gpu:{cfg.gpu_type}:{cfg.gpus}"} if cfg.gpu_type else {"gpus_per_node": cfg.gpus}
    extra: dict[str, str | bool] = {"requeue": True}
    for option in cfg.extra:
        key, _, value = option.lstrip("-").partition("=")
        extra[key] = value or True
    given = {
        "job_name": f"sae-{sweep.name}",
        "time": minutes_of(cfg.time),
        "nodes": 1,
        "ntasks_per_node": cfg.tasks,
        "cpus_per_task": cfg.cpus,
        **(gpus if cfg.gpus else {}),
        "exclusive": cfg.exclusive or None,
        "signal_delay_s": cfg.signal_s,
        "stderr_to_stdout": True,
        "setup": [path, threads, *cfg.setup],
        "additional_parameters": extra,
    }
    same = ("partition", "account", "qos", "constraint", "mem", "exclude", "mail_user", "mail_type")
    given |= {key: getattr(cfg, key) for key in (*same, "array_parallelism")}
    return {key: value for key, value in given.items() if value is not None}


def sbatch_lines(cfg: SlurmConfig, sweep: Path, n_jobs: int) -> list[str]:
    """The `#SBATCH` lines and setup of a submission of so many jobs, as submitit would write them."""
    from submitit.slurm.slurm import _make_sbatch_string

    count = min(n_jobs, LARGEST_ARRAY) if n_jobs > 1 else None
    text = _make_sbatch_string("", sweep / FOLDER, map_count=count, **sbatch_parameters(cfg, sweep))
    wanted = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    return [line for line in wanted if not line.startswith(("#SBATCH --output", "#SBATCH --error"))] + cfg.setup


def _state(id: str, name: str, reason: str) -> JobState:
    if name == "GONE":
        return JobState(name, False, f"Slurm no longer knows job {id}, and it recorded no end")
    if name in JOB_ENDS:
        how = "was cancelled" if name == "CANCELLED" else f"ended as {name}"
        why = f" ({reason})" if reason not in ("", "None", name) else ""
        return JobState(name, False, f"Slurm job {id} {how}{why} before the run's end", JOB_ENDS[name])
    return JobState(name, True, "" if reason == "None" else reason, never_starts=reason in NEVER_STARTS)


def _output(command: list[str]) -> str | None:
    """What a command of Slurm prints; None when it does not answer. A job that Slurm forgot is an answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode and "Invalid job id" not in done.stderr:
        return None
    return done.stdout
