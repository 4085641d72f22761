"""GPUs by the driver's listing, and each process on one of its own."""

import os

import pytest

from sae_sweeps.cluster.worker import take_gpus
from sae_sweeps.storage.gpus import visible_gpus

LAPTOP = "GPU 0: NVIDIA GeForce RTX 3070 Laptop GPU (UUID: GPU-5f1c0a4e-0f3c-7a55-9d2b-1c6a3f0e2b11)\n"
TWO = (
    "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-00000000-0000-0000-0000-000000000001)\n"
    "GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-00000000-0000-0000-0000-000000000002)\n"
)
MIG = (
    "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-a)\n"
    "  MIG 3g.20gb     Device  0: (UUID: MIG-one)\n"
    "  MIG 3g.20gb     Device  1: (UUID: MIG-two)\n"
    "GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-b)\n"
)


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Sets what the driver's tool prints, and its exit status."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def lists(text, status=0):
        (tmp_path / "listing").write_text(text)
        tool = tmp_path / "nvidia-smi"
        tool.write_text(
            f'#!/bin/sh\nwhile IFS= read -r line; do echo "$line"; done < {tmp_path}/listing\nexit {status}\n'
        )
        tool.chmod(0o755)

    return lists


def test_there_is_none_without_a_driver(driver):
    assert visible_gpus() == []


@pytest.mark.parametrize(
    "listing, gpus", [(LAPTOP, ["0"]), (TWO, ["0", "1"]), (MIG, ["MIG-one", "MIG-two", "1"]), ("No devices.\n", [])]
)  # fmt: skip
def test_a_gpu_is_a_line_of_the_listing_whatever_its_name(listing, gpus, driver):
    driver(listing)
    assert visible_gpus() == gpus


def test_a_driver_that_fails_lists_none(driver):
    driver("GPU 0: left from before\nNVIDIA-SMI has failed because it couldn't communicate with the driver.\n", 9)
    assert visible_gpus() == []


@pytest.mark.parametrize(
    "given, gpus",
    {
        "": [], "-1": [], "NoDevFiles": [], "0": ["0"], "2,0": ["2", "0"], "0,-1,1": ["0"], "0, 1": ["0", "1"],
        "GPU-5f1c,MIG-one": ["GPU-5f1c", "MIG-one"],
    }.items(),
)  # fmt: skip
def test_what_the_environment_names_counts_as_cuda_reads_it(given, gpus, driver, monkeypatch):
    driver(TWO)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert visible_gpus() == gpus


@pytest.mark.parametrize(
    "given, tasks, taken",
    [
        ("0,1", 2, ["0", "1"]), (None, 2, ["0", "1"]), (None, 4, ["0", "1", "0", "1"]), ("3", 2, ["3", "3"]),
        ("0,1,2,3", 2, ["0,1", "2,3"]), ("", 2, ["", ""]), (None, 1, [None]),
    ],
)  # fmt: skip
def test_the_tasks_of_a_job_take_gpus_of_their_own(given, tasks, taken, driver, monkeypatch):
    driver(TWO)
    found = []
    for rank in range(tasks):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if given is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        take_gpus(rank, tasks)
        found.append(os.environ.get("CUDA_VISIBLE_DEVICES"))
    assert found == taken
