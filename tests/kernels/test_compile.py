"""Triton's kernels compiled for real GPUs without one; in a process of its own, as the other tests interpret them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
from scripts import compile_kernels  # noqa: E402

ROOT = Path(__file__).parents[2]


SHAPE = compile_kernels.STUDY


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"stack": 8}, "spills"),
        ({"spills": 2}, "spills"),
        ({"shared": 300_000}, "shared memory"),
        ({"registers": 255, "warps": 16}, "registers of"),
        ({"loads": {64: 8}}, "128 bits"),
        ({}, ""),
    ],
)
def test_faults_are_found(changed, fault):
    fields = dict(kernel="k", target=80, shape=SHAPE, warps=4, shared=0, seconds=0.1, narrow="", registers=64)
    found = list(compile_kernels.Compiled(**fields | {"loads": {128: 4}} | changed).faults())
    assert (len(found) == 1 and fault in found[0]) if fault else not found


def test_the_main_loop_is_the_one_that_reads():
    lines = ["LDG.E R1, [R2]", "IADD R1, R1, 1", "LDG.E.128 R4, [R2]", "FADD R1, R1, R4", "BRA 0x20", "EXIT"]
    code = [(16 * i, line) for i, line in enumerate(lines)]
    assert compile_kernels.loads(compile_kernels.main_loop(code)) == {128: 1}
    assert compile_kernels.loads(compile_kernels.main_loop(code[:2])) == {32: 1}


def test_a_kernel_that_is_never_launched_is_found():
    """A kernel counts as compiled where one that was compiled calls it."""
    code = """
from types import SimpleNamespace
from scripts import compile_kernels as check
module = check.modules()[0]
prefix, names = module.__name__.rpartition(".")[2], list(check.kernels(module))
all_but = lambda left: [SimpleNamespace(kernel=f"{prefix}.{name}") for name in names if name != left]
print(sorted(name for name in names if check.forgotten(all_but(name), [prefix]) == []))
print(sorted(set(names) & {name for one in names for name in check.called(check.kernels(module)[one])}))
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment)
    never_missed, called_by_others = done.stdout.splitlines()
    assert never_missed == called_by_others != "[]", done.stderr
