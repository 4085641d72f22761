from dataclasses import asdict, replace
from pathlib import Path

import pytest
from composing import plan, points

from sae_sweeps.cli.resume import cluster_of
from sae_sweeps.cluster.local import Local
from sae_sweeps.cluster.schedulers import scheduler_for
from sae_sweeps.cluster.slurm import Slurm, sbatch_lines
from sae_sweeps.config.cluster import KINDS, cluster_config, minutes_of
from sae_sweeps.errors import ConfigError
from sae_sweeps.runs.objective import check_objective


def cluster(*words):
    (point,) = points("model=synthetic", *words)
    return cluster_config(point.cfg.cluster)


@pytest.mark.parametrize(
    ("time", "minutes"), [("90", 90), ("1:30:00", 90), ("1-12:00:00", 2160), ("0:00:30", 1), ("0:01:01", 2)]
)
def test_time_limits_are_read_as_slurm_writes_them(time, minutes):
    assert minutes_of(time) == minutes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cluster=slurm", "cluster.time=soon"], "cluster.time=soon: give minutes"),
        (["cluster=slurm", "cluster.time=0"], "cluster.time=0: must be at least a minute"),
        (["cluster=slurm", "cluster.time=1"], "cluster.signal_s=90: the warning would come before the job"),
        (["cluster=slurm", "cluster.mem=lots"], "cluster.mem=lots: give a size"),
        (["cluster=slurm", "cluster.gpus=3", "cluster.tasks=2"], "cannot be dealt out evenly"),
        (["cluster=slurm", "cluster.retries=-1"], "cluster.retries=-1: must be 0 or more"),
        (["cluster=slurm", "cluster.poll_s=0"], "cluster.poll_s=0.0: must be above 0"),
        (["cluster=slurm", "cluster.cpus=many"], "cluster.cpus=many: must be a whole number"),
        (["cluster=local", "cluster.processes=0"], "cluster.processes=0: must be above 0"),
    ],
)
def test_values_that_cannot_be_meant_are_named(words, message):
    with pytest.raises(ConfigError, match=message):
        cluster(*words)


def test_the_options_reach_sbatch(tmp_path):
    cfg = cluster(
        "cluster=slurm", "cluster.partition=gpu", "cluster.account=lab", "cluster.qos=long", "cluster.constraint=a100",
        "cluster.gpus=2", "cluster.tasks=2", "cluster.cpus=6", "cluster.mem=40G", "cluster.time=1-00:00:00",
        "cluster.array_parallelism=7", "cluster.exclude=n1", "cluster.mail_user=me@here.org",
        "cluster.mail_type=FAIL", "cluster.setup=[module load cuda]", "cluster.signal_s=120",
        'cluster.extra=["reservation=mine",reboot]',
    )  # fmt: skip
    lines = sbatch_lines(cfg, tmp_path, 24)
    for option in (
        "partition=gpu", "account=lab", "qos=long", "constraint=a100", "gpus-per-node=2", "ntasks-per-node=2",
        "cpus-per-task=6", "mem=40G", "time=1440", "array=0-23%7", "exclude=n1", "mail-user=me@here.org",
        "mail-type=FAIL", "signal=USR2@120", "reservation=mine", "reboot", "requeue",
    ):  # fmt: skip
        assert f"#SBATCH --{option}" in lines, option
    assert lines[-1] == "module load cuda"


def test_a_kind_of_gpu_and_whole_nodes():
    lines = sbatch_lines(cluster("cluster=slurm", "cluster.gpu_type=a100"), Path("s"), 1)
    assert "#SBATCH --gres=gpu:a100:1" in lines and not any("gpus" in line or "array" in line for line in lines)
    lines = sbatch_lines(cluster("cluster=slurm_node"), Path("s"), 1)
    assert {"#SBATCH --gpus-per-node=8", "#SBATCH --ntasks-per-node=8", "#SBATCH --exclusive"} <= set(lines)
    assert not any("gpu" in line for line in sbatch_lines(cluster("cluster=slurm", "cluster.gpus=0"), Path("s"), 1))


@pytest.mark.parametrize(
    ("base", "key", "value"), [("inline", "group_size", 2), ("local", "processes", 3), ("slurm", "gpus", 2)]
)
def test_a_preset_of_ones_own_has_any_name_and_its_sweep_resumes(base, key, value, tmp_path, monkeypatch):
    (tmp_path / "conf" / "cluster").mkdir(parents=True)
    (tmp_path / "conf/cluster/lab.yaml").write_text(f"defaults: [{base}, _self_]\nname: lab_{base}\n{key}: {value}\n")
    monkeypatch.chdir(tmp_path)
    chosen = cluster("cluster=lab")
    assert type(chosen) is KINDS[base] and getattr(chosen, key) == value
    monkeypatch.chdir("/")  # where nobody finds the preset
    again = cluster_of({"cluster": asdict(chosen)}, ["cluster.group_size=7"])
    assert again == replace(chosen, group_size=7)
    assert base == "inline" or isinstance(scheduler_for(again), Slurm if base == "slurm" else Local)


@pytest.mark.parametrize(("words", "objective", "mend"), [
    ([], "fvu", None),
    (["eval=none"], "final_loss", None),
    ([], "fvuu", "did you mean fvu?"),
    (["eval=none"], "fvu", "add core to eval.evaluations"),
    (["eval.compute_variance_metrics=false"], "fvu", "they have final_loss"),
    ([], "ce_loss_score", "they have final_loss"),
])  # fmt: skip
def test_an_objective_that_no_run_will_have_is_refused_before(words, objective, mend):
    runs = [planned.run for planned in plan("model=synthetic", *words).runs]
    if mend is None:
        check_objective(objective, runs)
        return
    with pytest.raises(ConfigError, match=f"objective={objective}: these runs have no such metric; {mend}"):
        check_objective(objective, runs)


def test_where_a_run_is_trained_is_no_part_of_it():
    plain, slurm = plan("model=synthetic"), plan("model=synthetic", "cluster=slurm", "cluster.time=30")
    assert plain.runs[0].run_id == slurm.runs[0].run_id and plain.runs[0].title == "model=synthetic"
    assert slurm.runs[0].title == plain.runs[0].title
