"""What a plain step, neither logged nor monitored, waits for and launches on the real device."""

from __future__ import annotations

import warnings
from collections import Counter

import torch

from bench.contenders import as_batches, trainings
from bench.data import Shape
from bench.profile import launches_and_waits
from bench.results import Results
from bench.setting import ROOT, Setting

WARM = 4


def syncs(setting: Setting, results: Results) -> None:
    """Every architecture with every penalty: synchronisations as torch sees them, waits and launches as CUDA does."""
    from sae_sweeps.config.plugins import choices

    shape = setting.shapes()[0] if setting.small else Shape(1024, 256, 4096, 16, setting.device, bfloat16=True)
    for penalty in sorted(choices("penalty"), key=lambda name: (name != "none", name != "ortho", name)):
        for architecture in sorted(choices("architecture"), key=lambda name: (not name.startswith("topk"), name)):
            row: dict[str, object] = {"architecture": architecture, "penalty": penalty}
            try:
                row |= _counted(shape, architecture, f"penalty={penalty}")
            except Exception as error:  # one combination's failure hides no other's count
                row |= {"places": f"{type(error).__name__}: {str(error)[:200]}"}
            results.add(f"A plain step, {shape}", row)


def _counted(shape: Shape, architecture: str, words: str) -> dict[str, object]:
    (training,), data = trainings(shape, words, architecture), as_batches(shape)
    half = training.total_steps // 2  # where schedules have begun
    steps = iter(range(half, half + 100))
    for _ in range(WARM):
        step = next(steps)
        training.step(data[step % len(data)], step)
    torch.cuda.synchronize()
    places: Counter[str] = Counter()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step = next(steps)
            training.step(data[step % len(data)], step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for one in caught:
        if "synchronizing CUDA operation" in str(one.message):
            places[f"{one.filename.removeprefix(f'{ROOT}/')}:{one.lineno}"] += 1
    if not places:  # nothing counted: then torch must not refuse it either
        torch.cuda.set_sync_debug_mode("error")
        try:
            step = next(steps)
            training.step(data[step % len(data)], step)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    step = next(steps)
    launches, waits = launches_and_waits(lambda: training.step(data[step % len(data)], step))
    return {
        "synchronisations": sum(places.values()),
        "waits": waits,
        "launches": launches,
        "places": ", ".join(f"{place} ({n})" for place, n in places.most_common(6)),
    }
