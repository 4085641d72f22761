"""The same training by the fast kernels and by the plain formulas: how far their losses come apart."""

from __future__ import annotations

from bench.contenders import as_batches, trainings
from bench.data import Shape
from bench.results import Results
from bench.setting import Setting

STEPS = 300
IN_FLOAT64 = 1e-9
"""Largest relative difference of a loss in float64; float32 decides ties of rounding and then goes its own way."""


class Apart(Exception):
    """Losses that differ by more than rounding in float64."""


def paths(setting: Setting, results: Results) -> None:
    """TopK and BatchTopK, with and without ortho. Raises Apart at the end, after measuring all."""
    wrong = []
    steps = 2 if setting.small else STEPS
    narrow = setting.shape() if setting.small else Shape(256, 64, 1024, 8, setting.device)
    wide = Shape(1024, 768, 8192, 32, setting.device) if setting.device == "cuda" and not setting.small else narrow
    ways = {"float64": narrow} | ({} if setting.small else {"float32": wide, "bfloat16": wide})
    for precision, shape in ways.items():
        for architecture in ("topk", "batch_topk"):
            for penalty in ("none", "ortho base_threshold=0.05 lambda2_max=0.1"):
                words = f"penalty={penalty} train.precision={precision} num_tokens={steps * shape.batch}"
                fast, plain = (
                    losses(shape, architecture, f"{words} train.kernels={kernels}", steps)
                    for kernels in ("auto", "reference")
                )
                gaps = [abs(a - b) / max(abs(b), 1e-30) for a, b in zip(fast, plain, strict=True)]
                row = {
                    "architecture": architecture, "penalty": penalty.split()[0], "precision": precision,
                    "first 10 steps": max(gaps[:10]), "all steps": max(gaps), "last loss": fast[-1],
                    "by the plain formulas": plain[-1],
                }  # fmt: skip
                results.add(
                    f"Largest relative difference of a loss in {steps} steps, {shape.d_in} -> {shape.d_sae}", row
                )
                if precision == "float64" and not max(gaps) <= IN_FLOAT64:
                    wrong.append(f"{architecture}, penalty {penalty.split()[0]}: {max(gaps):.1e}")
    if wrong:
        raise Apart(f"in float64 the losses differ by more than {IN_FLOAT64}: {'; '.join(wrong)}")


def losses(shape: Shape, architecture: str, words: str, steps: int) -> list[float]:
    """Every step's whole loss."""
    (training,), data = trainings(shape, words, architecture), as_batches(shape)
    return [training.step(data[i % len(data)], i, logged=True).numbers["loss"] for i in range(steps)]
