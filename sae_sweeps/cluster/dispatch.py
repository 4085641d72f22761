"""Submit a plan to a scheduler, watch its runs, start lost ones again; the counterpart of `run_all` in this process."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_sweeps.cluster.jobs import Job, Scheduler, add_groups, add_jobs
from sae_sweeps.cluster.local import processes_of
from sae_sweeps.cluster.schedulers import scheduler_for
from sae_sweeps.cluster.slurm import sbatch_lines
from sae_sweeps.cluster.watch import RunView, SweepWatcher
from sae_sweeps.config.schema import ClusterConfig, LocalConfig, SlurmConfig
from sae_sweeps.errors import ConfigError, DamagedFile, DataError
from sae_sweeps.runs.console import Console
from sae_sweeps.runs.inline import States, enqueue
from sae_sweeps.runs.results import final_status, in_brief
from sae_sweeps.runs.session import check_device
from sae_sweeps.runs.signals import Stop, caught_signals
from sae_sweeps.storage.printing import print_line
from sae_sweeps.storage.run_folder import RunFolder
from sae_sweeps.storage.sweep_folder import read_manifest, run_path
from sae_sweeps.sweeps.groups import describe_groups, plan_groups
from sae_sweeps.sweeps.plan import Plan, PlannedRun

SILENCE_S = 600.0
"""How long the launcher waits for a scheduler that does not answer. Its jobs go on meanwhile."""


@dataclass
class Detached:
    """The launcher ends before its jobs, which go on."""

    status: int
    """The command's exit status."""


def dispatch(
    plan: Plan, outputs: Path, sweep: Path, cluster: Any, submitted: Collection[str] = ()
) -> States | Detached:
    """Submit what is not complete and wait for it, unless detached; the runs `submitted` have live jobs already.

    Raises ConfigError when the scheduler refuses; a sweep without jobs is removed then.
    """
    scheduler = scheduler_for(cluster)
    if isinstance(cluster, LocalConfig):
        check_device(plan.runs[0].run.device)
    todo, states = [], States()
    for planned in plan.runs:
        try:
            if final_status(planned.run, RunFolder(run_path(outputs, planned.run_id))) is None:
                todo.append(planned)
        except (DamagedFile, DataError) as problem:
            print_line(f"{planned.run_id}  {planned.title}\n  failed: {problem}")
            states.ended[planned.run_id] = "failed"
    ended = len(plan.runs) - len(todo) - len(states.ended)
    if ended:
        print_line(f"{ended} of {len(plan.runs)} runs are at their end already, and not started again")
    if submitted:
        print_line(f"{len(submitted)} of {len(plan.runs)} runs are in the queue or running already")
        todo = [planned for planned in todo if planned.run_id not in submitted]
    if todo:
        try:
            jobs = submit(Plan(todo, [], []), outputs, sweep, cluster, scheduler)
        except ConfigError:
            if not read_manifest(sweep)["jobs"]:
                shutil.rmtree(sweep)
            raise
        print_line(
            f"{describe_jobs(jobs)}: {len(todo)} run{'s' * (len(todo) != 1)}, logs in {sweep / jobs[0].logs[0]}"[:400]
        )
    if cluster.detach:
        print_line(detach_message(sweep))
        return Detached(0)
    return watch(plan, outputs, sweep, cluster, scheduler, states)


def group_limits(cluster: Any, n_runs: int) -> ClusterConfig:
    """How large a group may be. On this machine the processes share the runs evenly, unless a size is given."""
    limits = ClusterConfig(group_size=cluster.group_size, memory_gb=cluster.memory_gb)
    if isinstance(cluster, LocalConfig) and limits.group_size is None:
        limits.group_size = max(1, math.ceil(n_runs / processes_of(cluster)))
    if isinstance(cluster, SlurmConfig) and limits.memory_gb is None:
        limits.memory_gb = math.inf  # not this machine's memory counts but the node's, which the job finds
    return limits


def submit(plan: Plan, outputs: Path, sweep: Path, cluster: Any, scheduler: Scheduler) -> list[Job]:
    """Submit the plan's runs in groups, all at once, and mark them queued."""
    groups = [[p.run_id for p in g.runs] for g in plan_groups(plan, group_limits(cluster, len(plan.runs)))]
    before = [RunFolder(run_path(outputs, planned.run_id)).status() for planned in plan.runs]
    jobs = scheduler.submit(sweep, add_groups(sweep, groups))
    for planned, status in zip(plan.runs, before, strict=True):
        enqueue(planned, outputs, status)
    add_jobs(sweep, jobs)
    return jobs


def watch(
    plan: Plan, outputs: Path, sweep: Path, cluster: Any, scheduler: Scheduler, states: States
) -> States | Detached:
    """Wait until every run of the plan has ended, printing each end; or until Ctrl-C. Adds to `states`, which has the
    runs that were not submitted because a file of theirs is damaged."""
    stop, console = Stop(), Console()
    watcher = SweepWatcher(sweep)
    planned = {run.run_id: run for run in plan.runs}
    tries = dict.fromkeys(planned, 0)
    total = sum(run.run.total_steps for run in plan.runs)
    with caught_signals(stop):
        while True:
            views = [view for view in watcher.poll() if view.run_id in planned]
            again = [v for v in views if v.ended and v.worth_retrying and tries[v.run_id] < cluster.retries]
            if again:
                retry(again, planned, outputs, sweep, cluster, scheduler, console)
                for view in again:
                    tries[view.run_id] += 1
            for view in views:
                if view.ended and view not in again and view.run_id not in states.ended:
                    states.ended[view.run_id] = view.reported_state
                    print_end(view, plan, console, outputs)
            if len(states.ended) == len(planned):
                break
            show_progress(views, console, total)
            if watcher.silent_since is not None and time.monotonic() - watcher.silent_since > SILENCE_S:
                console.print(f"the scheduler has not answered for {SILENCE_S / 60:.0f} minutes; its jobs go on")
                break
            if wait(cluster.poll_s, stop):
                break
    console.close()
    if len(states.ended) < len(planned):
        print_line(detach_message(sweep))
        return Detached(130 if stop() else 1)
    return states


def retry(
    views: list[RunView], planned: dict[str, PlannedRun], outputs: Path, sweep: Path, cluster: Any,
    scheduler: Scheduler, console: Console,
) -> None:  # fmt: skip
    """Submit runs once more whose end had a cause outside them; alone where that was memory."""
    for view in views:
        console.print(f"{view.run_id}  {view.title}: {view.state}: {view.status['error']}; started again")
    for out_of_memory, limits in ((True, {"group_size": 1}), (False, {})):
        if runs := [planned[view.run_id] for view in views if (view.state == "failed") == out_of_memory]:
            changed = type(cluster)(**vars(cluster) | limits)
            submit(Plan(runs, [], []), outputs, sweep, changed, scheduler_for(changed))


def print_end(view: RunView, plan: Plan, console: Console, outputs: Path) -> None:
    """The lines that a launch prints at a run's end."""
    number = next(n for n, run in enumerate(plan.runs, 1) if run.run_id == view.run_id)
    console.print(f"[{number}/{len(plan.runs)}] {view.run_id}  {view.title}")
    if view.state == "completed":
        console.print(f"  completed: {in_brief(RunFolder(run_path(outputs, view.run_id)))}")
        if view.status["error"]:
            console.print(f"  {view.status['error']}")
    else:
        console.print(f"  {view.state}: {view.status['error']}")


def show_progress(views: list[RunView], console: Console, total: int) -> None:
    """On a terminal, a bar over the steps of all runs with the number of runs in each state."""
    counts = {state: sum(view.state == state for view in views) for state in ("running", "queued", "completed")}
    done = sum(view.status["total_steps" if view.state == "completed" else "step"] or 0 for view in views)
    if console.bar is None:
        console.stage("", total, "step", done)
    console.bar.set_description_str("  " + ", ".join(f"{n} {state}" for state, n in counts.items() if n), refresh=False)
    console.tick(done)


def wait(seconds: float, stop: Stop) -> bool:
    """Sleep until then or a signal; whether one came."""
    until = time.monotonic() + seconds
    while not stop() and time.monotonic() < until:
        time.sleep(min(0.1, seconds))
    return stop()


def describe_jobs(jobs: list[Job]) -> str:
    """What was submitted: "12 jobs submitted to Slurm (345)"."""
    n = f"{len(jobs)} job{'s' * (len(jobs) != 1)}"
    if jobs[0].cluster == "local":
        return f"{n} for processes on this machine"
    arrays = sorted({job.id.partition("_")[0] for job in jobs}, key=int)
    return f"{n} submitted to Slurm ({', '.join(arrays)})"


def detach_message(sweep: Path) -> str:
    command = f"python -m sae_sweeps status {sweep}"
    return f"the jobs go on without this command:\n  {command}    shows their states; also resume, cancel"


def describe_submission(plan: Plan, cluster: Any) -> list[str]:
    """The lines of `--dry-run` about groups and jobs."""
    groups = plan_groups(plan, group_limits(cluster, len(plan.runs)))
    lines = describe_groups(groups, plan)
    if isinstance(cluster, LocalConfig):
        lines.append(f"cluster={cluster.name}: {len(groups)} groups, {processes_of(cluster)} processes side by side")
    elif isinstance(cluster, SlurmConfig):
        n_jobs = math.ceil(len(groups) / cluster.tasks)
        each = f" of {cluster.tasks} groups each" if cluster.tasks > 1 else ""
        lines.append(f"cluster={cluster.name}: {n_jobs} job{'s' * (n_jobs != 1)}{each}, submitted by sbatch with")
        lines += [f"  {line}" for line in sbatch_lines(cluster, Path("SWEEP"), n_jobs)]
    return lines
