"""The machine: what it is, which packages it has, and what it can do at best, measured."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys

import torch

from bench.results import Results
from bench.setting import ROOT, Setting
from bench.timing import seconds

PACKAGES = (
    "torch", "triton", "numpy", "numba", "hydra-core", "omegaconf", "transformers", "tokenizers", "safetensors",
    "pandas", "scikit-learn", "datasets", "transformer-lens", "eai-sparsify", "sae-lens", "dictionary-learning",
)  # fmt: skip
CLOCKS = "clocks.sm,clocks.max.sm,clocks.mem,temperature.gpu,power.draw,clocks_event_reasons.active"


def machine(setting: Setting, results: Results) -> None:
    """What is measured on, and the rates that everything else is to be read beside."""
    device = setting.device
    facts: dict[str, object] = {
        "name": name(device), "python": platform.python_version(), "threads": torch.get_num_threads(),
        "commit": commit(),
    }  # fmt: skip
    if device == "cpu":
        facts["instructions"] = instructions()
    if device == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        facts |= {
            "capability": ".".join(map(str, torch.cuda.get_device_capability())),
            "multiprocessors": gpu.multi_processor_count,
            "memory, GB": gpu.total_memory / 1e9,
            "L2, MB": getattr(gpu, "L2_cache_size", 0) / 1e6,
            "CUDA of torch": torch.version.cuda,
            "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or "unknown",
            "clocks": clocks(),
        }
    for fact, value in facts.items():
        results.add("Machine", {"": fact, "value": value})
    for package in PACKAGES:
        results.add("Packages", {"package": package, "version": version(package)})
    rates = {"float32": (torch.float32, False)}
    if device == "cuda":
        rates |= {"TF32": (torch.float32, True), "bfloat16": (torch.bfloat16, True)}
    n = 256 if setting.small else 8192 if device == "cuda" else 2048
    for label, (dtype, tf32) in rates.items():
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a, out = torch.randn(n, n, device=device).to(dtype), torch.empty(n, n, device=device, dtype=dtype)
        rate = 2 * n**3 / seconds(lambda a=a, out=out: torch.mm(a, a, out=out), device, cold=False) / 1e9  # type: ignore[misc]
        results.add("Rates", {"": f"matrix product {n} x {n}, {label}", "rate": rate, "unit": "GFLOP/s"})
        results.line(gflops=rate)  # the last one is the rate of what is trained in
    source = torch.randn((4 if setting.small else 1024 if device == "cuda" else 64) * 2**20 // 4, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / seconds(lambda: target.copy_(source), device) / 1e9
    results.add("Rates", {"": "copy, bytes read and written", "rate": copied, "unit": "GB/s"})
    if device == "cuda":
        part = source[: len(source) // 4]
        for label, host in (("pageable", part.cpu()), ("pinned", torch.empty(part.shape, pin_memory=True))):
            rate = part.nbytes / seconds(lambda host=host: part.copy_(host), device, times=5) / 1e9  # type: ignore[misc]
            results.add("Rates", {"": f"{label} memory to the GPU", "rate": rate, "unit": "GB/s"})


def commit() -> str:
    """The project's commit, with `-dirty` where files were changed."""
    return _output("git", "describe", "--always", "--dirty") or "unknown"


def name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        with open("/proc/cpuinfo") as lines:
            model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model}, {os.cpu_count()} cores"


INSTRUCTIONS = (
    "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "asimd", "sve",
    "bf16",
)  # fmt: skip
"""Sets of vector and matrix instructions that decide how fast a CPU trains, by Linux' names."""


def instructions() -> str:
    """Those that this CPU has, and what torch's own kernels take of them."""
    try:
        with open("/proc/cpuinfo") as lines:
            flags = next(line for line in lines if line.startswith(("flags", "Features"))).split()
    except (OSError, StopIteration):
        flags = []
    found = " ".join(name for name in INSTRUCTIONS if name in flags)
    return f"{found or 'instruction sets unknown'}; torch takes {torch.backends.cpu.get_cpu_capability()}"


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def clocks() -> str:
    """Clocks, temperature, power and reasons for lower clocks now, by nvidia-smi; empty without it."""
    if shutil.which("nvidia-smi") is None:
        return ""
    found = _output("nvidia-smi", "-i", os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0",
                    f"--query-gpu={CLOCKS}", "--format=csv,noheader")  # fmt: skip
    names = ("SM", "of", "memory", "temperature", "power", "slowed by")
    return ", ".join(f"{word} {value.strip()}" for word, value in zip(names, found.split(","), strict=False) if value)


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        print(f"{command[0]}: {error}", file=sys.stderr)
        return ""
