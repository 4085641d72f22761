"""Where the time of a training step goes, phase by phase."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from bench.contenders import ours
from bench.data import Shape
from sae_sweeps.training.step import Training


def phases(shape: Shape, threads: int, steps: int = 15) -> list[tuple[str, float, float]]:
    """(phase, median seconds per step, share of the step); `a: b` is a part of phase `a`."""
    torch.set_num_threads(threads)
    trainings: list[Training] = []
    made = Training.__init__

    def remember(self: Training, *args: Any, **more: Any) -> None:
        made(self, *args, **more)
        trainings.append(self)

    Training.__init__ = remember  # type: ignore[method-assign]
    try:
        step = ours(shape)
    finally:
        Training.__init__ = made  # type: ignore[method-assign]
    training, seconds = trainings[0], dict[str, list[float]]()
    kernels = training.sae.kernels
    assert kernels is not None

    def timed(owner: Any, name: str, label: str) -> Callable[[], None]:
        work = getattr(owner, name)

        def wrapped(*args: Any, **more: Any) -> Any:
            start = _now(shape)
            try:
                return work(*args, **more)
            finally:
                seconds.setdefault(label, []).append(_now(shape) - start)

        setattr(owner, name, wrapped)
        return lambda: setattr(owner, name, work)

    back = [
        timed(training.sae, "encode", "encode"),
        timed(kernels, "_largest_of" if shape.device == "cpu" else "largest", "encode: selection of the k largest"),
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
            start = _now(shape)
            step(i)
            whole.append(_now(shape) - start)
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


def _now(shape: Shape) -> float:
    if shape.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
