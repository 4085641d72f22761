"""What a plain step, neither logged nor monitored, waits for and launches on the real device."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from itertools import product

import torch

from bench.contenders import as_batches, trainings
from bench.data import Shape
from bench.profile import launches_and_waits
from bench.results import Results
from bench.setting import ROOT, Setting

FIRST = ("none", "ortho", "topk", "batch_topk")
"""Measured before the others."""


def syncs(setting: Setting, results: Results) -> None:
    """Every architecture with every penalty: synchronisations as torch sees them, waits and launches as CUDA does."""
    from sae_sweeps.config.plugins import choices

    shape = setting.shapes()[0] if setting.small else Shape(1024, 256, 4096, 16, setting.device, bfloat16=True)
    penalties = sorted(choices("penalty"), key=lambda name: (name not in FIRST, name))
    architectures = sorted(choices("architecture"), key=lambda name: (name not in FIRST, name))
    pairs = list(product(penalties, architectures))
    for penalty, architecture in pairs[:: 2 * len(architectures) + 1] if setting.small else pairs:
        row: dict[str, object] = {"architecture": architecture, "penalty": penalty}
        try:
            row |= counted(shape, architecture, f"penalty={penalty}", warm=1 if setting.small else 4)
        except Exception as error:  # one combination's failure hides no other's count
            row["places"] = f"{type(error).__name__}: {str(error)[:200]}"
        results.add(f"A plain step, {shape}", row)


def counted(shape: Shape, architecture: str, words: str, warm: int) -> dict[str, object]:
    (training,), data = trainings(shape, words, architecture), as_batches(shape)
    half = training.total_steps // 2  # where schedules have begun
    steps = iter(range(half, half + 100))
    for _ in range(warm):
        step = next(steps)
        training.step(data[step % len(data)], step)
    torch.cuda.synchronize()
    places: Counter[str] = Counter()

    def count(message: object, *args: object, **more: object) -> None:
        if "synchronizing" in str(message):
            places[place()] += 1

    def plain_step() -> None:
        step = next(steps)
        training.step(data[step % len(data)], step)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = count
            torch.cuda.set_sync_debug_mode("warn")
            plain_step()
        if not places:  # then torch must not refuse the step either
            torch.cuda.set_sync_debug_mode("error")
            plain_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    launches, waits = launches_and_waits(plain_step)
    return {
        "synchronisations": sum(places.values()),
        "waits": waits,
        "launches": launches,
        "places": ", ".join(f"{where} ({n})" for where, n in places.most_common(6)),
    }


def place() -> str:
    """file:line, from the checkout, of the innermost line of the product that is running."""
    frame, ours = sys._getframe(), str(ROOT / "sae_sweeps")
    while frame.f_back is not None and not frame.f_code.co_filename.startswith(ours):
        frame = frame.f_back
    return f"{frame.f_code.co_filename.removeprefix(f'{ROOT}/')}:{frame.f_lineno}"
