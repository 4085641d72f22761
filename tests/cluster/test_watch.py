"""The state of runs whose jobs end, wait, vanish or cannot be queried."""

import json
from dataclasses import asdict

import pytest
from composing import plan

from sae_sweeps.cluster import slurm, watch
from sae_sweeps.cluster.ends import mark_ended
from sae_sweeps.cluster.jobs import Job, add_groups, add_jobs
from sae_sweeps.cluster.watch import SweepWatcher
from sae_sweeps.errors import DamagedFile, DataError
from sae_sweeps.runs.inline import enqueue
from sae_sweeps.storage.lease import Lease
from sae_sweeps.storage.run_folder import RunFolder
from sae_sweeps.storage.sweep_folder import read_manifest, run_path
from sae_sweeps.sweeps.sweep import create_sweep, stored_plan


@pytest.fixture
def sweep_and_runs(tmp_path, monkeypatch):
    """Three runs in one array of three jobs; no grace period."""
    monkeypatch.setattr(watch, "GRACE_S", 0.0)
    planned = plan("-m", "model=synthetic", "k=2,4,8", f"outputs={tmp_path}")
    folder = create_sweep(tmp_path, planned)
    ids = [run.run_id for run in planned.runs]
    add_groups(folder, [[run_id] for run_id in ids])
    add_jobs(folder, [Job("slurm", f"7_{n}", [n], [ids[n]], [f"slurm/7_{n}_0_log.out"]) for n in range(3)])
    return folder, [RunFolder(run_path(tmp_path, run_id)) for run_id in ids]


class Commands:
    """Stands for squeue, sacct and scancel: what each prints, None for one that does not answer."""

    def __init__(self, monkeypatch, squeue="", sacct=None):
        self.squeue, self.sacct, self.commands = squeue, sacct, []
        monkeypatch.setattr(slurm, "_output", self.output)

    def output(self, command):
        self.commands.append(command)
        return {"squeue": self.squeue, "sacct": self.sacct, "scancel": ""}[command[0]]


def test_a_poll_queries_squeue_once_for_all_jobs(sweep_and_runs, monkeypatch):
    sweep, _ = sweep_and_runs
    commands = Commands(monkeypatch, "7_0|RUNNING|None\n7_1|PENDING|Resources\n7_2|PENDING|Priority\n")
    views = SweepWatcher(sweep).poll()
    assert [command[0] for command in commands.commands] == ["squeue"]
    assert [view.job_state.name for view in views] == ["RUNNING", "PENDING", "PENDING"]
    assert not any(view.ended for view in views)


def test_without_accounting_a_job_that_slurm_forgot_is_lost(sweep_and_runs, monkeypatch):
    sweep, runs = sweep_and_runs
    commands = Commands(monkeypatch, "7_0|RUNNING|None\n", sacct=None)
    (sweep / "slurm").mkdir()
    (sweep / "slurm/7_1_0_log.out").write_text("ModuleNotFoundError: no such thing\n\n")
    watcher = SweepWatcher(sweep)
    views = watcher.poll()
    assert [view.ended for view in views] == [False, True, True]
    status = runs[1].status()
    assert status["state"] == "lost" and "no longer knows job 7_1" in status["error"]
    assert "ModuleNotFoundError: no such thing" in status["error"]
    watcher.poll()
    assert [command[0] for command in commands.commands].count("sacct") == 1, "queried again where there is none"


def test_with_accounting_the_reason_comes_from_there(sweep_and_runs, monkeypatch):
    sweep, runs = sweep_and_runs
    Commands(monkeypatch, "", sacct="7_0|CANCELLED by 0\n7_1|OUT_OF_MEMORY\n7_2|NODE_FAIL\n")
    SweepWatcher(sweep).poll()
    states = [run.status()["state"] for run in runs]
    assert states == ["cancelled", "lost", "lost"]
    assert "OUT_OF_MEMORY" in runs[1].status()["error"] and "NODE_FAIL" in runs[2].status()["error"]


def test_a_slurm_that_does_not_answer_ends_no_run(sweep_and_runs, monkeypatch):
    sweep, runs = sweep_and_runs
    commands = Commands(monkeypatch, squeue=None)
    watcher = SweepWatcher(sweep)
    assert not any(view.ended for view in watcher.poll()) and watcher.silent_since is not None
    assert all(run.status() is None for run in runs)
    commands.squeue = "7_0|RUNNING|None\n7_1|RUNNING|None\n7_2|RUNNING|None\n"
    watcher.poll()
    assert watcher.silent_since is None


def test_a_job_that_can_never_start_is_cancelled_with_its_reason(sweep_and_runs, monkeypatch):
    sweep, runs = sweep_and_runs
    rest = "7_1|RUNNING|None\n7_2|RUNNING|None\n"
    commands = Commands(monkeypatch, f"7_0|PENDING|launch failed requeued held\n{rest}")
    assert [view.ended for view in SweepWatcher(sweep).poll()] == [True, False, False]
    assert ["scancel", "7_0"] in commands.commands
    assert "can never start (launch failed requeued held)" in runs[0].status()["error"]


def test_a_run_that_another_launch_works_on_is_waited_for(sweep_and_runs, monkeypatch):
    sweep, runs = sweep_and_runs
    Commands(monkeypatch, "7_1|RUNNING|None\n7_2|RUNNING|None\n")
    runs[0].set_status(state="running", slurm_job_id="99")
    with Lease.acquire(runs[0]):
        watcher = SweepWatcher(sweep)
        assert not watcher.poll()[0].ended
        runs[0].set_status(state="completed")
        assert watcher.poll()[0].ended


def test_an_end_that_a_run_recorded_stays_whatever_its_jobs_state(sweep_and_runs, monkeypatch):
    sweep, runs = sweep_and_runs
    for run, state in zip(runs, ("completed", "diverged", "failed"), strict=True):
        run.set_status(state=state, error=None if state == "completed" else "its own")
    commands = Commands(monkeypatch, "")
    views = SweepWatcher(sweep).poll()
    assert all(view.ended for view in views) and not commands.commands
    assert [view.worth_retrying for view in views] == [False, False, False]
    assert not mark_ended(runs[0].path.parents[1], runs[0].path.name, "lost", "not at all")


def test_a_preempted_run_whose_job_was_cancelled_is_cancelled(sweep_and_runs, monkeypatch):
    sweep, runs = sweep_and_runs
    runs[0].set_status(state="preempted", error="SIGTERM")
    commands = Commands(monkeypatch, "7_0|RUNNING|None\n7_1|RUNNING|None\n7_2|RUNNING|None\n")
    watcher = SweepWatcher(sweep)
    assert not watcher.poll()[0].ended, "its job lives, and may go on or start again"
    commands.squeue = commands.squeue.replace("7_0|RUNNING", "7_0|CANCELLED")
    assert watcher.poll()[0].ended and runs[0].status()["state"] == "cancelled"


def test_a_process_that_vanished_is_found_in_a_sweep_without_jobs(tmp_path):
    planned = plan("model=synthetic", f"outputs={tmp_path}")
    sweep = create_sweep(tmp_path, planned)
    run = RunFolder(run_path(tmp_path, planned.runs[0].run_id))
    assert not SweepWatcher(sweep).poll()[0].ended
    run.set_status(state="running")
    with Lease.acquire(run):
        assert not SweepWatcher(sweep).poll()[0].ended
    assert SweepWatcher(sweep).poll()[0].ended and run.status()["state"] == "lost"


def test_only_a_failure_for_memory_is_worth_retrying(sweep_and_runs, monkeypatch):
    sweep, runs = sweep_and_runs
    Commands(monkeypatch, "")
    errors = ("OutOfMemoryError: CUDA out of memory", "data=x: no such file", "ValueError: a bug")
    for run, error in zip(runs, errors, strict=True):
        run.set_status(state="failed", error=error)
    assert [view.worth_retrying for view in SweepWatcher(sweep).poll()] == [True, False, False]


def test_a_run_is_marked_queued_only_while_it_has_not_begun(tmp_path):
    """A job may start, and even end, between its submission and the launcher's next line."""
    planned = plan("model=synthetic", f"outputs={tmp_path}").runs[0]
    run = RunFolder(run_path(tmp_path, planned.run_id))
    enqueue(planned, tmp_path)
    assert run.status()["state"] == "queued"
    failed = run.set_status(state="failed", error="no memory")
    run.set_status(state="completed", error=None)
    enqueue(planned, tmp_path, failed)
    assert run.status()["state"] == "completed"
    with Lease.acquire(run):
        enqueue(planned, tmp_path, run.status())
    assert run.status()["state"] == "completed", "a process works on it"
    failed = run.set_status(state="failed", error="no memory")
    enqueue(planned, tmp_path, failed)
    assert (run.status()["state"], run.status()["error"]) == ("queued", None)


@pytest.mark.parametrize("name", ["status.json", "lease.json"])
def test_a_damaged_run_keeps_no_other_from_being_watched(sweep_and_runs, monkeypatch, name):
    sweep, runs = sweep_and_runs
    Commands(monkeypatch, "")
    runs[0].set_status(state="running")
    runs[2].set_status(state="completed")
    (runs[0].path / name).write_text("{")
    views = SweepWatcher(sweep).poll()
    assert [view.reported_state for view in views] == ["damaged", "lost", "completed"]
    assert all(view.ended for view in views) and str(runs[0].path / name) in views[0].status["error"]


def test_a_sweep_is_read_back_as_it_was_planned(tmp_path):
    words = ["penalty=ortho+contrastive", "model=synthetic", "architecture=jumprelu", f"outputs={tmp_path}"]
    planned = plan(*words)
    sweep = create_sweep(tmp_path, planned)
    (again,) = stored_plan(sweep).runs
    assert again.run.to_dict() == planned.runs[0].run.to_dict() and again.run_id == planned.runs[0].run_id
    configs = json.loads((sweep / "configs.json").read_text())
    configs[again.run_id]["seed"] = 5
    (sweep / "configs.json").write_text(json.dumps(configs))
    with pytest.raises(DataError, match="has changed since the sweep was launched"):
        stored_plan(sweep)
    for damaged in ([], {}, {again.run_id: None}):
        (sweep / "configs.json").write_text(json.dumps(damaged))
        with pytest.raises(DamagedFile, match=f"configs.json is damaged .it has no {again.run_id}."):
            stored_plan(sweep)


def test_a_folder_that_is_no_sweep_is_named(tmp_path):
    with pytest.raises(DataError, match="is no sweep"):
        SweepWatcher(tmp_path / "nowhere")


def test_the_manifest_holds_groups_and_jobs(sweep_and_runs):
    sweep, runs = sweep_and_runs
    manifest = read_manifest(sweep)
    assert manifest["groups"] == [[run.path.name] for run in runs]
    assert Job(**manifest["jobs"][1]) == Job(**asdict(Job(**manifest["jobs"][1])))
    assert manifest["jobs"][1]["id"] == "7_1" and manifest["jobs"][1]["runs"] == [runs[1].path.name]
