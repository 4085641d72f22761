from pathlib import Path

import pytest
from composing import plan, points

from sae_sweeps.cluster.slurm import sbatch_lines
from sae_sweeps.config.cluster import cluster_config, minutes_of
from sae_sweeps.errors import ConfigError


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


def test_where_a_run_is_trained_is_no_part_of_it():
    plain, slurm = plan("model=synthetic"), plan("model=synthetic", "cluster=slurm", "cluster.time=30")
    assert plain.runs[0].run_id == slurm.runs[0].run_id and plain.runs[0].title == "model=synthetic"
    assert slurm.runs[0].title == plain.runs[0].title
