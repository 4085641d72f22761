"""cluster=local, and the commands that come back to a sweep; no Slurm is needed."""

import json
import os
import signal

import pytest
from sweeping import (
    LONG,
    TINY,
    finish,
    folder_of,
    has_checkpoint,
    hold_each,
    jobs,
    kill_process_of,
    launch,
    numbers,
    python,
    read,
    rows,
    run,
    run_folders,
    status,
    the_sweep,
    trains,
    wait_for,
)  # fmt: skip

pytestmark = pytest.mark.slow

LOCAL = ["cluster=local", "cluster.processes=2", "cluster.poll_s=0.2"]


def listed(sweep):
    return json.loads(run("status", sweep, "--json", module="sae_sweeps").stdout)


def test_processes_give_the_numbers_of_one_even_when_one_is_killed(tmp_path):
    grid = ["-m", *LONG, "k=2,4,8"]
    log = tmp_path / "log"
    launcher = launch(*grid, *LOCAL, f"outputs={tmp_path / 'local'}", log=log)
    sweep = the_sweep(tmp_path / "local")
    first, second = jobs(sweep)  # dealt out evenly to the processes
    assert [len(first["runs"]), len(second["runs"])] == [2, 1]
    hold_each({folder_of(tmp_path / "local", second): has_checkpoint})
    kill_process_of(folder_of(tmp_path / "local", second))
    assert finish(launcher) == 0, log.read_text()
    assert "its process ended on signal 9" in log.read_text() and "started again" in log.read_text()
    run(*grid, f"outputs={tmp_path / 'inline'}")
    for folder in run_folders(tmp_path / "inline"):
        assert numbers(tmp_path / "local" / "runs" / folder.name) == numbers(folder)
    assert status(folder_of(tmp_path / "local", second))["restarts"] == 1


def test_ctrl_c_leaves_processes_which_cancel_ends_and_resume_takes_up_in_one(tmp_path):
    log = tmp_path / "log"
    launcher = launch("-m", *LONG, "k=4", "seed=0,1,2", *LOCAL, f"outputs={tmp_path}", log=log)
    sweep = the_sweep(tmp_path)
    hold_each({folder_of(tmp_path, job): trains for job in jobs(sweep)})
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(60) == 130
    assert f"python -m sae_sweeps status {sweep}" in log.read_text()
    before = listed(sweep)
    alive = [folder for folder in run_folders(tmp_path) if status(folder)["state"] == "running"]
    assert alive and all(os.path.exists(f"/proc/{status(folder)['pid']}") for folder in alive)
    assert any(r["state"] == "running" and r["job_state"] == "RUNNING" for r in before)
    done = run("cancel", sweep, module="sae_sweeps")
    assert "3 of 3 runs cancelled" in done.stdout
    assert {r["state"] for r in listed(sweep)} == {"cancelled"}
    steps = {folder.name: rows(folder)[-1]["step"] for folder in alive}
    done = run("resume", sweep, "cluster=inline", module="sae_sweeps")
    assert {r["state"] for r in listed(sweep)} == {"completed"} and min(steps.values()) > 0


def test_a_sweep_of_one_process_is_looked_at_and_resumed_too(tmp_path):
    log = tmp_path / "log"
    launcher = launch("-m", *LONG, "k=4", "seed=0,1", f"outputs={tmp_path}", log=log)
    wait_for(lambda: run_folders(tmp_path))
    hold_each({run_folders(tmp_path)[0]: has_checkpoint})
    (sweep,) = (tmp_path / "sweeps").iterdir()
    table = run("status", sweep, module="sae_sweeps").stdout
    assert "seed=0" in table and "running" in table and "/500" in table and "2 runs" in table
    launcher.kill()
    launcher.wait()
    assert "lost" in {r["state"] for r in listed(sweep)}
    run("resume", sweep, module="sae_sweeps")
    runs = listed(sweep)
    assert [r["state"] for r in runs] == ["completed", "completed"] and all(r["at_its_end"] for r in runs)
    assert all(r["loss"] > 0 and r["step"] == 500 for r in runs)


def test_diverged_is_final_unless_resume_is_given_the_flag(tmp_path):
    words = ["-m", *TINY, "num_tokens=6400", "k=4", "lr=1e-3,1e30", f"outputs={tmp_path}", *LOCAL]
    done = run(*words, expect=1)
    last = done.stdout.strip().splitlines()[-1]
    assert "diverged" in last and "is not finite at step" in last and last.endswith(".log")
    sweep = the_sweep(tmp_path)
    assert "not started again" in run("resume", sweep, module="sae_sweeps", expect=1).stdout
    again = run("resume", sweep, "--diverged", module="sae_sweeps", expect=1).stdout
    assert "1 job for processes on this machine: 1 run" in again
    assert sorted(r["restarts"] for r in listed(sweep)) == [0, 1]


def test_a_job_started_once_too_often_fails_with_the_reason(tmp_path):
    words = [*TINY, "num_tokens=640", "k=4", f"outputs={tmp_path}", "cluster=local", "cluster.detach=true"]
    run(*words)
    sweep = the_sweep(tmp_path)
    wait_for(lambda: listed(sweep)[0]["at_its_end"], 120)
    manifest = read(sweep, "manifest.json")
    manifest["cluster"]["max_restarts"] = 2
    (sweep / "manifest.json").write_text(json.dumps(manifest))
    (folder,) = run_folders(tmp_path)
    queued = read(folder, "status.json") | {"state": "queued"}
    (folder / "status.json").write_text(json.dumps(queued))
    os.environ["SLURM_RESTART_COUNT"] = "3"
    try:
        done = run(sweep, 0, module="sae_sweeps.cluster.worker", expect=1)
    finally:
        del os.environ["SLURM_RESTART_COUNT"]
    assert "started again 3 times" in done.stdout and status(folder)["state"] == "failed"
    assert "cluster.max_restarts" in status(folder)["error"]


def test_mistakes_are_one_sentence(tmp_path):
    launched = run(*TINY, "-m", "cluster=local", "k=4", f"outputs={tmp_path}", "num_tokens=640")
    (sweep,) = (tmp_path / "sweeps").iterdir()
    for words, message in {
        ("status", tmp_path / "nowhere"): "is no sweep",
        ("cancel", tmp_path): "is no sweep",
        ("resume", sweep, "k=8"): "k=8: resume takes words of the cluster group only",
        ("resume", sweep, "cluster.procesess=1"): "did you mean cluster.processes?",
        ("resume", sweep, "cluster=slrm"): "did you mean slurm?",
    }.items():
        done = run(*words, module="sae_sweeps", expect=2)
        assert message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert "[1/1]" in launched.stdout
    for words, message in {
        ("-m", "cluster=slurm", "cluster.partion=gpu"): "did you mean cluster.partition?",
        ("cluster.partition=gpu",): "the chosen cluster has no such key; cluster=slurm and cluster=slurm_node do",
        ("-m", "cluster=local,inline"): "cluster: one for the whole command",
        ("cluster=local", "cluster.detach=true", "objective=fvu"): "has to wait for its runs",
    }.items():
        done = run(*TINY, "k=4", f"outputs={tmp_path / 'o'}", *words, expect=2)
        assert message in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_dry_run_lists_groups_and_jobs_and_starts_nothing(tmp_path):
    words = ["--dry-run", "-m", *TINY, "num_tokens=640", "k=2,4,8", f"outputs={tmp_path / 'o'}", "cluster=slurm"]
    done = run(*words, "cluster.group_size=2", "cluster.partition=gpu", "cluster.time=2:00:00")
    for text in ("group 1", "group 2", "2 jobs, submitted by sbatch", "--partition=gpu", "--time=120", "--array=0-1%2"):
        assert text in done.stdout, done.stdout
    assert not (tmp_path / "o").exists()


def test_status_loads_nothing_heavy(tmp_path):
    code = (
        "import sys\nfrom sae_sweeps.__main__ import main\n"
        f"assert main(['status', {str(tmp_path)!r}]) == 2\n"
        "heavy = {'torch', 'transformers', 'pandas', 'submitit', 'wandb'} & set(sys.modules)\nassert not heavy, heavy"
    )
    import subprocess

    from sweeping import PROJECT, env

    done = subprocess.run(python(code), cwd=PROJECT, env=env(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
