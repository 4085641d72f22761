"""How a step's time and memory grow with d_sae, k, batch and group size: docs/scaling.png, the expected slope beside.

python -m bench.scaling
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from bench.data import Shape
from bench.rounds import Contender, interleaved
from bench.setting import ROOT, Setting

AXES = {
    "d_sae": [2048, 4096, 8192, 16384, 32768, 65536],
    "k": [8, 16, 32, 64, 128, 256],
    "batch": [256, 512, 1024, 2048, 4096, 8192],
    "group": [1, 2, 4, 8],
}
BASE = Shape(batch=1024, d_in=512, d_sae=8192, k=32)


def measure(axis: str, setting: Setting) -> tuple[list[float], list[float]]:
    """Seconds per step and GB of each value of an axis, measured in turn, each in a process of its own."""

    def contender(value: int) -> Contender:
        if axis == "group":
            return Contender(str(value), "ours", BASE, {"group": value})
        return Contender(str(value), "ours", replace(BASE, **{axis: value}))

    found, _ = interleaved([contender(value) for value in AXES[axis]], setting, 1)
    for value, measured in found.items():
        print(f"{axis}={value}: {1e3 * measured.median:.1f} ms, {measured.peak_gb:.2f} GB", flush=True)
    return [measured.median for measured in found.values()], [measured.peak_gb for measured in found.values()]


def expected(axis: str, value: float) -> float:
    """Multiply-adds of a step, up to a factor: the encoder's product, and four sums over the active pairs that cost 16
    times as much for each multiply-add."""
    if axis == "group":
        return value
    shape = replace(BASE, **{axis: value})
    return shape.batch * shape.d_in * (shape.d_sae + 16 * 4 * shape.k)


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "scaling.png")
    words = parser.parse_args()
    setting = Setting("cpu", words.rounds, words.threads, folder="")
    figure, rows = plt.subplots(2, len(AXES), figsize=(13, 6), sharey="row", layout="constrained")
    for column, axis in enumerate(AXES):
        seconds, memory = measure(axis, setting)
        values = AXES[axis]
        time_axes, memory_axes = rows[0][column], rows[1][column]
        middle = len(values) // 2
        line = [expected(axis, v) / expected(axis, values[middle]) * seconds[middle] * 1e3 for v in values]
        time_axes.loglog(values, [1e3 * s for s in seconds], "o-", label="measured")
        time_axes.loglog(values, line, "--", color="gray", label="expected: group B d_in (d_sae + 64 k)")
        memory_axes.semilogx(values, memory, "o-")
        memory_axes.set_xlabel(axis)
        for axes in (time_axes, memory_axes):
            axes.set_xticks(values, [str(v) for v in values], rotation=45)
            axes.minorticks_off()
            axes.grid(alpha=0.3)
        memory_axes.set_ylim(0)
    rows[0][0].set_ylabel("ms per step")
    rows[1][0].set_ylabel("peak memory of the process, GB")
    rows[0][0].legend(fontsize=8)
    figure.suptitle(f"A TopK step on a CPU, {words.threads} threads; where not varied: {BASE}", fontsize=10)
    figure.savefig(words.out, dpi=120)
    print(words.out)


if __name__ == "__main__":
    main()
