"""What becomes of runs whose jobs end, wait, vanish or cannot be asked about."""

import json
from dataclasses import asdict

import pytest
from composing import plan

from sae_sweeps.cluster import observe, slurm
from sae_sweeps.cluster.ends import declare
from sae_sweeps.cluster.jobs import Job, add_groups, add_jobs
from sae_sweeps.cluster.observe import Observer
from sae_sweeps.errors import DamagedFile, DataError
from sae_sweeps.storage.lease import Lease
from sae_sweeps.storage.run_folder import RunFolder
from sae_sweeps.storage.sweep_folder import read_manifest, run_path
from sae_sweeps.sweeps.stored import stored_plan
from sae_sweeps.sweeps.sweep import create_sweep


@pytest.fixture
def sweep_and_runs(tmp_path, monkeypatch):
    """Three runs in one array of three jobs; no grace period."""
    monkeypatch.setattr(observe, "GRACE_S", 0.0)
    planned = plan("-m", "model=synthetic", "k=2,4,8", f"outputs={tmp_path}")
    folder = create_sweep(tmp_path, planned)
    ids = [run.run_id for run in planned.runs]
    add_groups(folder, [[run_id] for run_id in ids])
    add_jobs(folder, [Job("slurm", f"7_{n}", [n], [ids[n]], [f"slurm/7_{n}_0_log.out"]) for n in range(3)])
    return folder, [RunFolder(run_path(tmp_path, run_id)) for run_id in ids]


class Commands:
    """Stands for squeue, sacct and scancel: what each prints, None for one that does not answer."""

    def __init__(self, monkeypatch, squeue="", sacct=None):
        self.squeue, self.sacct, self.asked = squeue, sacct, []
        monkeypatch.setattr(slurm, "_ask", self.ask)

    def ask(self, command):
        self.asked.append(command)
        return {"squeue": self.squeue, "sacct": self.sacct, "scancel": ""}[command[0]]


def test_one_look_asks_squeue_once_for_all_jobs(sweep_and_runs, monkeypatch):
    sweep, _ = sweep_and_runs
    commands = Commands(monkeypatch, "7_0|RUNNING|None\n7_1|PENDING|Resources\n7_2|PENDING|Priority\n")
    views = Observer(sweep).look()
    assert [command[0] for command in commands.asked] == ["squeue"]
    assert [view.job_state.word for view in views] == ["RUNNING", "PENDING", "PENDING"]
    assert not any(view.ended for view in views)


def test_without_accounting_a_job_that_slurm_forgot_is_lost(sweep_and_runs, monkeypatch):
    sweep, runs = sweep_and_runs
    commands = Commands(monkeypatch, "7_0|RUNNING|None\n", sacct=None)
    (sweep / "slurm").mkdir()
    (sweep / "slurm/7_1_0_log.out").write_text("ModuleNotFoundError: no such thing\n\n")
    observer = Observer(sweep)
    views = observer.look()
    assert [view.ended for view in views] == [False, True, True]
    status = runs[1].status()
    assert status["state"] == "lost" and "no longer knows job 7_1" in status["error"]
    assert "ModuleNotFoundError: no such thing" in status["error"]
    observer.look()
    assert [command[0] for command in commands.asked].count("sacct") == 1, "asked again where there is none"


def test_with_accounting_the_reason_comes_from_there(sweep_and_runs, monkeypatch):
    sweep, runs = sweep_and_runs
    Commands(monkeypatch, "", sacct="7_0|CANCELLED by 0\n7_1|OUT_OF_MEMORY\n7_2|NODE_FAIL\n")
    Observer(sweep).look()
    states = [run.status()["state"] for run in runs]
    assert states == ["cancelled", "lost", "lost"]
    assert "OUT_OF_MEMORY" in runs[1].status()["error"] and "NODE_FAIL" in runs[2].status()["error"]


def test_a_slurm_that_does_not_answer_condemns_nobody(sweep_and_runs, monkeypatch):
    sweep, runs = sweep_and_runs
    commands = Commands(monkeypatch, squeue=None)
    observer = Observer(sweep)
    assert not any(view.ended for view in observer.look()) and observer.silent_since is not None
    assert all(run.status() is None for run in runs)
    commands.squeue = "7_0|RUNNING|None\n7_1|RUNNING|None\n7_2|RUNNING|None\n"
    observer.look()
    assert observer.silent_since is None


def test_a_job_that_can_never_start_is_cancelled_and_said_so(sweep_and_runs, monkeypatch):
    sweep, runs = sweep_and_runs
    rest = "7_1|RUNNING|None\n7_2|RUNNING|None\n"
    commands = Commands(monkeypatch, f"7_0|PENDING|launch failed requeued held\n{rest}")
    assert [view.ended for view in Observer(sweep).look()] == [True, False, False]
    assert ["scancel", "7_0"] in commands.asked
    assert "can never start (launch failed requeued held)" in runs[0].status()["error"]


def test_a_run_that_another_launch_works_on_is_waited_for(sweep_and_runs, monkeypatch):
    sweep, runs = sweep_and_runs
    Commands(monkeypatch, "7_1|RUNNING|None\n7_2|RUNNING|None\n")
    runs[0].set_status(state="running", slurm_job_id="99")
    with Lease.acquire(runs[0]):
        observer = Observer(sweep)
        assert not observer.look()[0].ended
        runs[0].set_status(state="completed")
        assert observer.look()[0].ended


def test_an_end_of_its_own_stands_whatever_slurm_says(sweep_and_runs, monkeypatch):
    sweep, runs = sweep_and_runs
    for run, state in zip(runs, ("completed", "diverged", "failed"), strict=True):
        run.set_status(state=state, error=None if state == "completed" else "its own")
    commands = Commands(monkeypatch, "")
    views = Observer(sweep).look()
    assert all(view.ended for view in views) and not commands.asked
    assert [view.left_by_others for view in views] == [False, False, False]
    assert not declare(runs[0].path.parents[1], runs[0].path.name, "lost", "not at all")


def test_what_was_taken_for_preemption_was_scancel(sweep_and_runs, monkeypatch):
    sweep, runs = sweep_and_runs
    runs[0].set_status(state="preempted", error="asked to end")
    commands = Commands(monkeypatch, "7_0|RUNNING|None\n7_1|RUNNING|None\n7_2|RUNNING|None\n")
    observer = Observer(sweep)
    assert not observer.look()[0].ended, "its job lives, and may go on or start again"
    commands.squeue = commands.squeue.replace("7_0|RUNNING", "7_0|CANCELLED")
    assert observer.look()[0].ended and runs[0].status()["state"] == "cancelled"


def test_a_process_that_vanished_is_found_in_a_sweep_without_jobs(tmp_path):
    planned = plan("model=synthetic", f"outputs={tmp_path}")
    sweep = create_sweep(tmp_path, planned)
    run = RunFolder(run_path(tmp_path, planned.runs[0].run_id))
    assert not Observer(sweep).look()[0].ended
    run.set_status(state="running")
    with Lease.acquire(run):
        assert not Observer(sweep).look()[0].ended
    assert Observer(sweep).look()[0].ended and run.status()["state"] == "lost"


def test_memory_counts_as_nobodys_fault_and_a_mistake_does_not(sweep_and_runs, monkeypatch):
    sweep, runs = sweep_and_runs
    Commands(monkeypatch, "")
    errors = ("OutOfMemoryError: CUDA out of memory", "data=x: no such file", "ValueError: a bug")
    for run, error in zip(runs, errors, strict=True):
        run.set_status(state="failed", error=error)
    assert [view.left_by_others for view in Observer(sweep).look()] == [True, False, False]


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
        Observer(tmp_path / "nowhere")


def test_the_manifest_holds_groups_and_jobs(sweep_and_runs):
    sweep, runs = sweep_and_runs
    manifest = read_manifest(sweep)
    assert manifest["groups"] == [[run.path.name] for run in runs]
    assert Job(**manifest["jobs"][1]) == Job(**asdict(Job(**manifest["jobs"][1])))
    assert manifest["jobs"][1]["id"] == "7_1" and manifest["jobs"][1]["runs"] == [runs[1].path.name]
