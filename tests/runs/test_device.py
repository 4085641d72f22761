"""The device of a run: made current, and the CPU never taken without a word where there is a GPU."""

import pytest
import torch
from torch.cuda._utils import _get_device_index

from sae_sweeps.errors import ConfigError
from sae_sweeps.runs import session
from sae_sweeps.runs.session import check_device, device_for


@pytest.fixture
def machine(monkeypatch):
    """Sets the GPUs that the driver lists and those that torch sees; the list of devices made current."""
    current = []
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_NTASKS", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.append(_get_device_index(device)))

    def has(listed, seen):
        monkeypatch.setattr(session, "visible_gpus", lambda: listed)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: seen > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
        return current

    return has


def test_the_chosen_device_is_made_current(machine):
    current = machine(["0", "1"], 2)
    assert device_for("cuda:1") == torch.device("cuda:1") and current == [1]
    assert device_for("auto").type == device_for("cuda").type == "cuda" and current == [1, 0, 0]
    assert device_for("cpu").type == "cpu" and len(current) == 3
    with pytest.raises(ConfigError, match="device=cuda:2: torch .* sees 2 CUDA devices"):
        device_for("cuda:2")


def test_auto_is_the_cpu_where_there_is_nothing_else(machine, capsys):
    machine([], 0)
    assert device_for("auto").type == "cpu" and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "cuda, mend", [(None, "built without CUDA; install its CUDA build"), ("13.0", "update the driver, or install")]
)
def test_auto_names_a_gpu_that_it_cannot_use(cuda, mend, machine, monkeypatch, capsys):
    machine(["0"], 0)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert device_for("auto").type == "cpu"
    printed = capsys.readouterr().out
    assert printed.startswith("warning: device=auto trains on the CPU: the driver lists 1 GPU, but") and mend in printed
    assert device_for("cpu").type == "cpu" and capsys.readouterr().out == ""


@pytest.mark.parametrize("listed", [["0"], []])
def test_auto_is_no_cpu_where_a_gpu_is_reserved(listed, machine):
    machine(listed, 0)
    with pytest.raises(
        ConfigError, match=r"cluster.gpus=1: a GPU is reserved, and .*give device=cpu, or cluster.gpus=0"
    ):
        device_for("auto", "cluster.gpus=1")
    assert device_for("cpu", "cluster.gpus=1").type == "cpu"


def test_tasks_of_slurm_share_the_gpus_where_it_binds_none(machine, monkeypatch):
    machine(["0", "1"], 2)
    monkeypatch.setenv("SLURM_NTASKS", "4")
    taken = []
    for rank in range(4):
        monkeypatch.setenv("SLURM_LOCALID", str(rank))
        taken.append(device_for("auto").index)
    assert taken == [0, 1, 0, 1] and device_for("cuda:1").index == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")  # bound
    assert check_device("cuda").index is None
