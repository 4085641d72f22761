"""Sweeps on a real Slurm: the numbers of a sweep in one process, whatever the cluster does to it."""

import os
import shutil
import signal
import time

import pytest
from commands import PROJECT
from sweeping import (
    LONG,
    ON_SLURM,
    SLOWLY,
    TINY,
    finish,
    folder_of,
    has_checkpoint,
    hold,
    hold_each,
    jobs,
    kill_process_of,
    launch,
    let_go,
    numbers,
    push_until,
    read,
    rows,
    run,
    run_folders,
    status,
    the_sweep,
    trains,
    wait_for,
)  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.slurm]


def same_numbers(outputs, whole):
    for folder in run_folders(whole):
        assert numbers(outputs / "runs" / folder.name) == numbers(folder), folder.name


def test_the_demo_sweep_and_24_runs_in_3_groups_on_3_nodes_have_the_numbers_of_one_process(slurm, tmp_path):
    grid = ["-m", *TINY, "num_tokens=2560", "k=2,4,8", "seed=0,1,2,3", "penalty=ortho", "lambda2_max=0.1,0.5"]
    run(*grid, f"outputs={tmp_path / 'inline'}")
    words = [*ON_SLURM, "cluster.group_size=8", "cluster.gpus=2", f"outputs={tmp_path / 'slurm'}"]
    done = run(*grid, *words, cluster=slurm)
    assert "3 jobs submitted to Slurm" in done.stdout and "[24/24]" in done.stdout
    assert len(run_folders(tmp_path / "slurm")) == 24
    same_numbers(tmp_path / "slurm", tmp_path / "inline")
    (sweep,) = (tmp_path / "slurm" / "sweeps").iterdir()
    ids = [job["id"] for job in jobs(sweep)]
    listed = slurm.call("squeue", "-h", "-r", "-t", "all", "-o", "%i %N %T", "-j", ids[0].partition("_")[0]).split("\n")
    placed = dict(line.split()[:2] for line in listed if line)
    assert {placed[id] for id in ids} == {"n0", "n1", "n2"}
    assert all(status(f)["slurm_job_id"] in ids and status(f)["restarts"] == 0 for f in run_folders(tmp_path / "slurm"))
    again = run(*grid, *words, cluster=slurm)
    assert "24 of 24 runs are at their end already" in again.stdout and "submitted" not in again.stdout


def test_a_penalty_from_outside_has_in_jobs_the_numbers_of_one_process(slurm, tmp_path):
    mine = shutil.copytree(PROJECT / "examples" / "own_components", tmp_path / "mine")
    words = ["-m", *TINY, "num_tokens=2560", "k=4", f"hydra.searchpath=[file://{mine}]", "penalty=ortho,alignment"]
    run(*words, f"outputs={tmp_path / 'inline'}")
    done = run(*words, *ON_SLURM, f"outputs={tmp_path / 'slurm'}", cluster=slurm)
    assert done.stdout.count("completed") == 2
    same_numbers(tmp_path / "slurm", tmp_path / "inline")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Six runs in one process, and the words of their command."""
    outputs, grid = tmp_path_factory.mktemp("undisturbed"), ["-m", *LONG, "k=4", "seed=0,1,2,3,4,5"]
    run(*grid, f"outputs={outputs}")
    return outputs, grid


@pytest.mark.parametrize("accounting", [False, True], ids=["no_accounting", "accounting"])
def test_struck_in_every_way_each_run_ends_complete_or_with_its_reason(accounting, undisturbed, tmp_path, request):
    """One sweep of six jobs. In turn: scancel, requeue, SIGKILL of the process, preemption, a node's daemon and the
    controller stopped and started; the sixth is let alone."""
    slurm = request.getfixturevalue("slurm_with_accounting" if accounting else "slurm")
    (whole, grid), outputs = undisturbed, tmp_path / "struck"
    log = tmp_path / "log"
    words = [*grid, *ON_SLURM, SLOWLY, "cluster.group_size=1", f"outputs={outputs}"]
    launcher = launch(*words, cluster=slurm, log=log)
    try:
        sweep = the_sweep(outputs)
        cancelled, requeued, killed, preempted, *_ = jobs(sweep)
        array = cancelled["id"].partition("_")[0]
        ready = {cancelled["id"]: trains, requeued["id"]: has_checkpoint, killed["id"]: trains}
        ready[preempted["id"]] = has_checkpoint
        # all are held before the first is struck: a strike can last longer than a run
        hold_each({folder_of(outputs, job): ready[job["id"]] for job in jobs(sweep) if job["id"] in ready})
        slurm.call("scancel", cancelled["id"])
        slurm.call("scontrol", "requeue", requeued["id"])
        kill_process_of(folder_of(outputs, killed))
        preempt(slurm, preempted["id"], folder_of(outputs, preempted))
        slurm.stop_process("slurmd-n2")
        slurm.stop_process("slurmctld")
        time.sleep(1)
        slurm.start_controller()
        slurm.start_node(2)
        assert finish(launcher, slurm) == 1, log.read_text()
    finally:
        launcher.kill()
    printed = log.read_text()
    ends = {job["id"]: status(folder_of(outputs, job)) for job in jobs(sweep)}
    assert ends[cancelled["id"]]["state"] == "cancelled", ends
    assert f"Slurm job {cancelled['id']} was cancelled" in ends[cancelled["id"]]["error"]
    assert [e["state"] for e in ends.values()].count("completed") == len(ends) - 1, (ends, printed)
    for job in (requeued, killed, preempted):
        assert status(folder_of(outputs, job))["restarts"] >= 1, (job, ends)
    assert jobs(sweep)[-1]["id"].partition("_")[0] != array, "the killed run was submitted once more"
    assert "recorded no end" in printed or "FAILED" in printed or "NODE_FAIL" in printed
    for folder in run_folders(whole):
        if folder.name != cancelled["runs"][0]:
            assert numbers(outputs / "runs" / folder.name) == numbers(folder), folder.name
    tables = printed.rsplit("sweep  ", 1)[1]
    assert cancelled["runs"][0] in tables and "seed=0" in tables and "_log.out" in tables
    resumed = run("resume", sweep, cluster=slurm, module="sae_sweeps")
    assert "5 of 6 runs are at their end already" in resumed.stdout
    same_numbers(outputs, whole)


def preempt(slurm, id, folder):
    """A job of a higher partition takes the node, both of its GPUs; the run does not end in the time of grace."""
    node = slurm.call("squeue", "-h", "-r", "-o", "%N", "-j", id).strip()
    slurm.call("sbatch", "-p", "urgent", "-w", node, "--gpus-per-node=2", "-o", "/dev/null", "--wrap", "sleep 1")
    wait_for(lambda: status(folder)["state"] == "preempted")
    hold(folder, "preempted")


def test_detached_watched_warned_cancelled_and_resumed(slurm, tmp_path):
    grid = ["-m", *LONG, "k=4", "seed=0,1", f"outputs={tmp_path}"]
    done = run(*grid, *ON_SLURM, SLOWLY, "cluster.group_size=1", "cluster.detach=true", cluster=slurm)
    sweep = the_sweep(tmp_path)
    assert f"python -m sae_sweeps status {sweep}" in done.stdout and "2 jobs submitted" in done.stdout
    job, other = jobs(sweep)
    first, second = folder_of(tmp_path, job), folder_of(tmp_path, other)
    hold_each({first: has_checkpoint, second: trains})
    printed = run("status", sweep, cluster=slurm, module="sae_sweeps").stdout
    assert "running" in printed and job["id"] in printed and "2 runs" in printed
    # the time limit's warning: checkpoints are written and the job queues again, by submitit
    slurm.call("scancel", "-s", "USR2", job["id"])
    let_go(first)
    wait_for(lambda: status(first)["state"] == "preempted")
    stopped = rows(first)[-1]["step"]
    push_until(slurm, lambda: status(first)["restarts"] == 1)
    hold_each({first: lambda folder: status(folder)["state"] == "running"})
    assert status(first)["step"] >= stopped - 20, "goes on where the warning stopped it"
    run("cancel", sweep, cluster=slurm, module="sae_sweeps")
    listed = read_status(sweep, slurm)
    assert {r["state"] for r in listed} == {"cancelled"} and all(r["at_its_end"] for r in listed)
    assert not slurm.call("squeue", "-h").strip()
    words = ["cluster.group_size=2", "cluster.detach=false", "cluster.setup=[]"]
    run("resume", sweep, *words, cluster=slurm, module="sae_sweeps")
    assert {r["state"] for r in read_status(sweep, slurm)} == {"completed"}
    assert len(jobs(sweep)) == 3 and len(jobs(sweep)[-1]["runs"]) == 2


def read_status(sweep, slurm=None):
    import json

    return json.loads(run("status", sweep, "--json", cluster=slurm, module="sae_sweeps").stdout)


def test_jobs_that_slurm_forgets_are_found_lost_and_started_again(slurm, tmp_path):
    """The controller comes back without its state: squeue knows nothing, and there is no accounting."""
    log = tmp_path / "log"
    words = ["-m", *LONG, "k=4", "seed=0,1", f"outputs={tmp_path / 'o'}"]
    launcher = launch(*words, *ON_SLURM, SLOWLY, "cluster.group_size=1", "cluster.retries=1", cluster=slurm, log=log)
    try:
        sweep = the_sweep(tmp_path / "o")
        first, second = jobs(sweep)
        wait_for(lambda: trains(folder_of(tmp_path / "o", first)), 300)
        slurm.forget_everything()
        wait_for(lambda: len(jobs(sweep)) > 2, 120)  # found dead and submitted again
        assert finish(launcher, slurm) == 0, log.read_text()
    finally:
        launcher.kill()
    assert "Slurm no longer knows job" in log.read_text() and "started again" in log.read_text()


def test_a_failed_run_is_a_failed_job_and_its_siblings_complete(slurm, tmp_path):
    words = ["-m", *TINY, "num_tokens=6400", "k=4", "lr=1e-3,1e30", f"outputs={tmp_path}"]
    done = run(*words, *ON_SLURM, "cluster.retries=3", cluster=slurm, expect=1)
    sweep = the_sweep(tmp_path)
    (job,) = jobs(sweep)
    assert sorted(status(f)["state"] for f in run_folders(tmp_path)) == ["completed", "diverged"]
    slurm.wait_for(lambda: slurm.call("squeue", "-h", "-t", "all", "-o", "%T", "-j", job["id"]).strip() == "FAILED")
    last = done.stdout.strip().splitlines()[-1]
    assert "lr=1e+30" in last or "lr=1e30" in last, done.stdout
    assert "diverged" in last and "is not finite at step" in last and str(sweep / job["logs"][0]) in last


def test_two_launches_share_what_both_want(slurm, tmp_path):
    shared = ["-m", *LONG, f"outputs={tmp_path}", *ON_SLURM, SLOWLY, "cluster.group_size=1", "seed=0"]
    one = launch(*shared, "k=2,4", cluster=slurm, log=tmp_path / "one")
    two = launch(*shared, "k=4,8", cluster=slurm, log=tmp_path / "two")
    assert finish(one) == 0 and finish(two) == 0, (tmp_path / "two").read_text()
    assert len(run_folders(tmp_path)) == 3
    for folder in run_folders(tmp_path):
        steps = [row["step"] for row in rows(folder)]
        assert steps == sorted(set(steps)) and status(folder)["restarts"] == 0
    for sweep in (tmp_path / "sweeps").iterdir():
        listed = read_status(sweep, slurm)
        assert [r["state"] for r in listed] == ["completed", "completed"]


def test_what_sbatch_refuses_is_a_mistake_and_leaves_nothing(slurm, tmp_path):
    words = [*TINY, *ON_SLURM, "cluster.partition=nowhere", f"outputs={tmp_path}"]
    done = run(*words, cluster=slurm, expect=2)
    assert "cluster=slurm: sbatch refuses the job (" in done.stderr and "partition" in done.stderr
    assert done.stderr.count("\n") == 1 and not list(tmp_path.glob("sweeps/*"))
    assert not run_folders(tmp_path)


def test_several_groups_of_a_node_share_its_gpus(slurm, tmp_path):
    words = ["-m", *TINY, "num_tokens=2560", "k=2,4", f"outputs={tmp_path}", "cluster.group_size=1"]
    node = ["cluster=slurm_node", "cluster.gpus=2", "cluster.tasks=2", "cluster.cpus=1", "cluster.mem=null"]
    setup = f'cluster.setup=["echo gpus $CUDA_VISIBLE_DEVICES > {tmp_path}/gpus"]'
    run(*words, *node, setup, "cluster.poll_s=0.3", cluster=slurm)
    (job,) = jobs(the_sweep(tmp_path))
    assert job["groups"] == [0, 1] and len(job["logs"]) == 2
    assert all((the_sweep(tmp_path) / log).exists() for log in job["logs"])
    assert (tmp_path / "gpus").read_text() == "gpus 0,1\n"
    assert all(status(folder)["state"] == "completed" for folder in run_folders(tmp_path))


def test_ctrl_c_leaves_the_jobs_running_and_says_how_to_come_back(slurm, tmp_path):
    log = tmp_path / "log"
    launcher = launch(*LONG, "k=4", *ON_SLURM, SLOWLY, f"outputs={tmp_path / 'o'}", cluster=slurm, log=log)
    sweep = the_sweep(tmp_path / "o")
    (job,) = jobs(sweep)
    wait_for(lambda: trains(folder_of(tmp_path / "o", job)), 300)
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(60) == 130
    assert f"python -m sae_sweeps status {sweep}" in log.read_text()
    assert os.path.exists(f"/proc/{status(folder_of(tmp_path / 'o', job))['pid']}")
    run("resume", sweep, cluster=slurm, module="sae_sweeps")
    assert read(folder_of(tmp_path / "o", job), "status.json")["restarts"] == 0
