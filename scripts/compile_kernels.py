"""Compile every Triton kernel of the project for real GPUs, on a machine that has none, and read the machine code.

    python -m scripts.compile_kernels [--targets 80 90 100] [--modules NAME ...] [--markdown]

A kernel is compiled by the operation that launches it, on tensors without memory, so with the constants, warps and
alignments of a training step. Prints registers, shared memory, spills and loads of each; ends with 1 where a kernel
spills, needs more registers or shared memory than the target has, or reads in its main loop less than 128 bits at a
time where nothing excuses it (`NARROW` of its module), and where a kernel of the project was not compiled at all.
"""

from __future__ import annotations

import argparse
import ast
import collections
import importlib.util
import inspect
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from sae_sweeps.kernels.launching import StepShape

ROOT = Path(__file__).parents[1]

STUDY = StepShape(batch=2048, d_in=2304, d_sae=16_384, k=40)
SHAPES = (
    STUDY,
    replace(STUDY, products=torch.bfloat16),
    replace(STUDY, k=320),
    replace(STUDY, k=320, products=torch.bfloat16),
    StepShape(batch=512, d_in=512, d_sae=8192, k=32),
    StepShape(batch=2048, d_in=2304, d_sae=65_536, k=40),
    StepShape(batch=1000, d_in=769, d_sae=6151, k=33),
)
"""The studies' shapes, the default's, a large dictionary, and one where nothing is a multiple of 16."""


@dataclass(frozen=True)
class Target:
    """A GPU by its compute capability, with its limits (CUDA C++ Programming Guide, "Compute Capabilities")."""

    name: str
    shared: int
    """Bytes of shared memory that a block may have."""
    shared_sm: int
    """Bytes of shared memory of a multiprocessor."""
    registers: int = 65_536
    """32-bit registers of a multiprocessor, and of a block."""
    warps: int = 64
    """Warps that a multiprocessor holds at most."""


TARGETS = {
    80: Target("A100", 163 * 1024, 164 * 1024),
    90: Target("H100, H200", 227 * 1024, 228 * 1024),
    100: Target("B200", 227 * 1024, 228 * 1024),
}


@dataclass
class Compiled:
    """One kernel's machine code for one target and shape."""

    kernel: str
    target: int
    shape: StepShape
    warps: int
    shared: int
    seconds: float
    narrow: str
    """Why its main loop may read less than 128 bits at a time; empty: it may not."""
    registers: int = 0
    stack: int = 0
    """Bytes of stack and local memory of a thread."""
    spills: int = 0
    """Instructions that read or write local memory."""
    loads: dict[int, int] = field(default_factory=dict)
    """Bits of a global load -> such loads in the main loop."""

    @property
    def warps_per_sm(self) -> int:
        """Warps that a multiprocessor holds at once."""
        limits, per_warp = TARGETS[self.target], -(-self.registers * 32 // 256) * 256
        blocks = [limits.warps // self.warps, limits.registers // (per_warp * self.warps), 32]
        if self.shared:
            blocks.append(limits.shared_sm // (self.shared + 1024))
        return min(blocks) * self.warps

    def faults(self) -> Iterator[str]:
        limits = TARGETS[self.target]
        if self.stack or self.spills:
            yield f"spills: {self.stack} bytes of stack, {self.spills} instructions on local memory"
        if self.shared > limits.shared:
            yield f"needs {self.shared} bytes of shared memory of {limits.shared}"
        if self.registers * self.warps * 32 > limits.registers:
            yield f"needs {self.registers * self.warps * 32} registers of {limits.registers}"
        if not self.narrow and not self.loads.get(128) and self.shape.d_in % 16 == 0:
            yield f"no load of 128 bits in its main loop: {self.loads}"


def modules(names: list[str] | None = None) -> list[Any]:
    """The project's modules that define Triton kernels; of these names alone where some are given."""
    files = sorted((ROOT / "sae_sweeps").rglob("*.py"))
    files = [path for path in files if "@triton.jit" in path.read_text() and path.stem in (names or [path.stem])]
    return [importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts)) for path in files]


def kernels(module: Any) -> dict[str, Any]:
    """The functions that a module compiles with Triton, by name."""
    from triton.runtime.jit import JITFunction

    return {name: one for name, one in vars(module).items()
            if isinstance(one, JITFunction) and one.module == module.__name__}  # fmt: skip


def called(kernel: Any) -> set[str]:
    """Names of functions that a kernel calls."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kernel.fn)))
    return {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}


class NoGPU:
    """Triton's driver of a GPU that is not there: it says which, and nothing can be launched on it."""

    def __init__(self, capability: int):
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch  # Triton keeps what it compiled by device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")


def compiled(capability: int, shape: StepShape, names: list[str] | None = None) -> list[Compiled]:
    """Every kernel that the operations of a step of this shape launch, compiled."""
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    found: list[Compiled] = []
    reading: list[Future[None]] = []
    run = JITFunction.run

    def without_launch(self: Any, *args: Any, grid: Any, warmup: bool, **constants: Any) -> Any:
        began = time.perf_counter()
        kernel = run(self, *args, grid=grid, warmup=True, **constants)
        took = time.perf_counter() - began
        narrow = getattr(sys.modules[self.module], "NARROW", {}).get(self.fn.__name__, "")
        name, options = f"{self.module.rpartition('.')[2]}.{self.fn.__name__}", kernel.metadata
        one = Compiled(name, capability, shape, options.num_warps, options.shared, took, narrow)
        reading.append(threads.submit(read_machine_code, one, kernel.asm["cubin"]))
        found.append(one)
        return kernel

    before = driver._active
    JITFunction.run = without_launch
    driver.set_active(NoGPU(capability))
    try:
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for module in modules(names):
                module.compile_for(shape)
    finally:
        JITFunction.run, driver._active = run, before
    for read in reading:
        read.result()
    return found


def read_machine_code(one: Compiled, cubin: bytes) -> None:
    usage, sass = disassembled(cubin)
    numbers = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    one.registers, one.stack = numbers["REG"], numbers["STACK"] + numbers["LOCAL"]
    code = [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,6})\*/\s+([^;]+);", sass)]
    one.spills = sum(bool(re.search(r"\b(LDL|STL)\b", text)) for _, text in code)
    one.loads = dict(loads(main_loop(code)))


@cache
def disassembled(cubin: bytes) -> tuple[str, str]:
    """What Triton's cuobjdump prints of a kernel: the resources that it uses, and its machine code."""
    import triton.backends.nvidia

    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, sass = (
            subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("-res-usage", "-sass")
        )
    return usage, sass


def main_loop(code: list[tuple[int, str]]) -> list[str]:
    """The innermost loop that reads most from global memory, of several by the widest loads; all instructions where no
    loop reads any."""
    jumps = [(int(found[1], 16), at) for at, text in code if (found := re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", text))]
    spans = {(first, last) for first, last in jumps if first < last}
    innermost = [a for a in spans if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in spans)]
    bodies = [[text for at, text in code if first <= at <= last] for first, last in innermost]

    def read(body: list[str]) -> tuple[int, int]:
        found = loads(body)
        return sum(bits * n for bits, n in found.items()), max(found)

    return max((body for body in bodies if loads(body)), key=read, default=[text for _, text in code])


def loads(code: list[str]) -> collections.Counter[int]:
    """Bits of a global load -> how many."""
    found: collections.Counter[int] = collections.Counter()
    for text in code:
        if load := re.search(r"\bLDG(STS)?\.\S*", text):  # into registers, or into shared memory
            parts = load[0].split(".")
            found[next((int(p) for p in parts if p in ("64", "128", "256")), 16 if "U16" in parts else 32)] += 1
    return found


def forgotten(found: list[Compiled], names: list[str] | None = None) -> list[str]:
    """Kernels of the project that were neither compiled nor called by one that was."""
    missing = []
    for module in modules(names):
        own = kernels(module)
        prefix = module.__name__.rpartition(".")[2]
        reached = {name for name in own if any(one.kernel == f"{prefix}.{name}" for one in found)}
        while more := {name for one in reached for name in called(own[one])} & own.keys() - reached:
            reached |= more
        missing += [f"{prefix}.{name}: compile_for(shape) does not launch it" for name in own.keys() - reached]
    return missing


COLUMNS = ("kernel", "target", "warps", "registers", "shared", "stack", "warps/SM", "loads of the main loop", "seconds")


def row(one: Compiled) -> tuple[str, ...]:
    loads = " + ".join(f"{n} x {bits}" for bits, n in sorted(one.loads.items(), reverse=True)) or "none"
    numbers = one.warps, one.registers, one.shared, one.stack, one.warps_per_sm
    return (one.kernel, f"sm_{one.target}", *map(str, numbers), loads, f"{one.seconds:.1f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", type=int, default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--modules", nargs="+", metavar="NAME", help="of these modules alone, such as sparse_triton")
    parser.add_argument("--markdown", action="store_true", help="tables for docs/cuda.md")
    given = parser.parse_args()
    os.environ.pop("TRITON_INTERPRET", None)  # read when triton is first imported
    if importlib.util.find_spec("triton") is None:
        print("compile_kernels: triton is not installed; it is part of torch's CUDA build and of the extra `dev`.")
        return 2
    faults: list[str] = []
    every: list[Compiled] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        for shape in SHAPES:
            products = "" if shape.products == shape.dtype else f", products in {str(shape.products)[6:]}"
            print(f"\n{'### ' if given.markdown else ''}{shape}{products}\n")
            found = [one for target in given.targets for one in compiled(target, shape, given.modules)]
            rows = sorted({(one.kernel, one.target, row(one)) for one in found})
            table = [COLUMNS, *(cells for *_, cells in rows)]
            if given.markdown:
                table = list(dict.fromkeys(cells[:-1] for cells in table))  # without the seconds
                table.insert(1, ("---",) * len(table[0]))
                print("\n".join(f"| {' | '.join(cells)} |" for cells in table), flush=True)
            else:
                widths = [max(map(len, column)) for column in zip(*table, strict=True)]
                lines = ["  ".join(f"{c:<{w}}" for c, w in zip(cells, widths, strict=True)) for cells in table]
                print("\n".join(lines), flush=True)
            faults += [f"{one.kernel} on sm_{one.target}, {shape}: {fault}" for one in found for fault in one.faults()]
            every += found
    faults += forgotten(every, given.modules)
    print("\n" + ("\n".join(dict.fromkeys(faults)) or "every kernel compiled: no spill, within each target's limits"))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
