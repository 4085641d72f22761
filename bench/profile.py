"""Where the time of a training step goes: by phase on a CPU, by kernel and with a trace on a GPU."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from bench.contenders import as_batches, ours, trainings
from bench.data import Shape
from bench.results import Results
from bench.setting import Setting
from bench.timing import synchronized

WAITS = {"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy"}
LAUNCHES = {"cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch"}
KERNELS = 25
"""Most kernels in a table."""
STEPS = 5


def profile(setting: Setting, results: Results) -> None:
    from bench.parts import derived

    shape = setting.shape()
    if setting.device == "cpu":
        for phase, seconds, share in phases(shape):
            results.add(f"A step of TopK, {shape}", {"phase": phase, "ms": 1e3 * seconds, "share": share})
        return
    small_k, large_k = setting.shapes()
    for name, shape, words, first in (
        (f"k{small_k.k}", small_k, "", 0.0),
        (f"k{large_k.k}", large_k, "", 0.0),
        (f"k{small_k.k}-ortho", small_k, "penalty=ortho lambda2_max=0.1 base_threshold=0.1", 0.99),
    ):
        kernels(setting, results, name, shape, words, first)
        for part, seconds in derived(shape) if not words else ():
            results.add(
                f"Derived from the data sheet: parts of a step, TopK, {shape}", {"part": part, "ms": 1e3 * seconds}
            )


def kernels(setting: Setting, results: Results, name: str, shape: Shape, words: str, first_step: float) -> None:
    """The kernels of a step by time, and a trace of the steps beside the results."""
    step = ours(shape, words, first_step=first_step)
    warm, n = (1, 1) if setting.small else (10, 20)
    for i in range(warm):
        step(i)
    start = synchronized(setting.device)
    for i in range(warm, warm + n):
        step(i)
    took = (synchronized(setting.device) - start) / n
    n = 1 if setting.small else STEPS
    found = profiled(lambda: [step(i) for i in range(n)])  # none of them is logged
    device_time: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in found.events():
        if str(event.device_type).endswith("CUDA") and not getattr(event, "is_user_annotation", False):
            device_time[event.name] += event.time_range.elapsed_us() / 1e6 / n
            calls[event.name] += 1
    busy = sum(device_time.values())
    title = f"TopK, {shape}{f', {words}' if words else ''}"
    results.add(
        f"A step, {title}",
        {"ms, whole": 1e3 * took, "ms, device busy": 1e3 * busy, "peak GB": torch.cuda.max_memory_allocated() / 1e9},
    )
    for kernel, seconds in device_time.most_common(KERNELS):
        row = {"kernel": kernel[:120], "calls": calls[kernel] / n, "ms": 1e3 * seconds, "share": seconds / busy}
        results.add(f"Kernels of a step, {title}", row)
    found.export_chrome_trace(str(Path(setting.folder) / f"trace-{name}.json.gz"))


def profiled(work: Callable[[], Any]) -> torch.profiler.profile:
    has = torch.profiler.supported_activities() & {ProfilerActivity.CPU, ProfilerActivity.CUDA}
    with torch.profiler.profile(activities=has) as found:
        work()
        torch.cuda.synchronize()
    return found


def launches_and_waits(work: Callable[[], Any]) -> tuple[int, int]:
    """How often CUDA launches in `work`, and how often the host waits for it, as CUDA's own calls have it."""
    launches, waits = _calls(work)
    return launches, waits - _own_waits()


def _calls(work: Callable[[], Any]) -> tuple[int, int]:
    names = Counter(event.name for event in profiled(work).events())
    return sum(names[name] for name in LAUNCHES), sum(names[name] for name in WAITS)


@cache
def _own_waits() -> int:
    """What `profiled` itself waits."""
    return _calls(lambda: None)[1]


def phases(shape: Shape, steps: int = 15) -> list[tuple[str, float, float]]:
    """(phase, median seconds per step, share of the step); `a: b` is a part of phase `a`."""
    from sae_sweeps.kernels import largest_numba

    (training,), data = trainings(shape), as_batches(shape)
    seconds = dict[str, list[float]]()
    kernels = training.sae.kernels
    assert kernels is not None

    def timed(owner: Any, name: str, label: str) -> Callable[[], None]:
        work = getattr(owner, name)

        def wrapped(*args: Any, **more: Any) -> Any:
            start = synchronized(shape.device)
            try:
                return work(*args, **more)
            finally:
                seconds.setdefault(label, []).append(synchronized(shape.device) - start)

        setattr(owner, name, wrapped)
        return lambda: setattr(owner, name, work)

    back = [
        timed(training.sae, "encode", "encode"),
        timed(largest_numba, "largest_of", "encode: selection of the k largest"),
        timed(training.sae, "residual", "decode, error, chosen activations' gradient"),
        timed(torch.Tensor, "backward", "backward"),
        timed(kernels, "transposed", "backward: pairs by feature"),
        timed(kernels, "weight_gradient", "backward: weight gradients"),
        timed(training.optimizer, "project_gradients", "parallel gradient, norm"),
        timed(training.optimizer, "step", "clipping, Adam, rows to unit norm"),
    ]
    whole = []
    try:
        for i in range(steps):
            start = synchronized(shape.device)
            training.step(data[i % len(data)], i)
            whole.append(synchronized(shape.device) - start)
    finally:
        for undo in back:
            undo()
    total = statistics.median(whole[2:])
    found = []
    for label, values in seconds.items():
        per_step = len(values) // steps
        medians = [statistics.median(values[i::per_step][2:]) for i in range(per_step)]
        found.append((label, sum(medians), sum(medians) / total))
    listed = sum(share for label, _, share in found if ":" not in label)
    found.append(("the rest", total * (1 - listed), 1 - listed))
    return [*sorted(found), ("whole step", total, 1.0)]
