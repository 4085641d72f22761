"""The curves that a config will follow, before anything is trained: weights, learning rate, threshold, k."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from sae_sweeps.config.run import RunConfig
from sae_sweeps.errors import ConfigError
from sae_sweeps.storage.files import write_bytes, write_text
from sae_sweeps.sweeps.plan import PlannedRun

BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 60
QUARTERS = (0, 25, 50, 75, 100)
FORMATS = (".csv", ".png", ".svg", ".pdf")


@dataclass
class Curve:
    name: str
    values: list[float]
    """One per step."""

    def at(self, percent: int) -> float:
        return self.values[round(percent / 100 * (len(self.values) - 1))]


def curves(run: RunConfig) -> list[Curve]:
    """Everything that follows a schedule in this run."""
    T = run.total_steps
    found: dict[str, list[float]] = {"learning rate": [run.learning_rate(step) for step in range(T)]}
    for term in run.penalty_terms():
        found[f"{term.config.name} weight"] = [term.weight(step, T) for step in range(T)]
        found |= {f"{term.config.name} {name}": values for name, values in term.config.curves(T).items()}
    found |= run.architecture.curves(T)
    return [Curve(name, [float(value) for value in values]) for name, values in found.items()]


def draw(runs: list[PlannedRun]) -> str:
    """Each run's curves as lines of blocks, with the values at the quarters; none that the run above has too."""
    lines: list[str] = []
    before: dict[str, list[float]] = {}
    for planned in runs:
        T = planned.run.total_steps
        found = curves(planned.run)
        shown = [curve for curve in found if before.get(curve.name) != curve.values]
        lines.append(f"{planned.title}   ({T:,} steps)")
        if not shown:
            lines.append("  as the run above")
        for curve in shown:
            at = "  ".join(f"{percent}%: {curve.at(percent):.3g}" for percent in QUARTERS)
            lines += [f"  {curve.name:<24} {sparkline(curve.values)}", f"  {'':<24} {at}"]
        before = {curve.name: curve.values for curve in found}
    return "\n".join(lines)


def sparkline(values: list[float], width: int = WIDTH) -> str:
    """The values from 0 to their largest as a line of blocks, the mean of each column's steps."""
    width = min(width, len(values))
    edges = [i * len(values) // width for i in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in zip(edges, edges[1:], strict=False)]
    top = max(means)
    return "".join(BLOCKS[round(value / top * (len(BLOCKS) - 1)) if top > 0 else 0] for value in means)


def write(runs: list[PlannedRun], path: Path) -> None:
    """The curves as a table of numbers (.csv) or a figure (.png, .svg, .pdf). Raises ConfigError for another ending."""
    if path.suffix not in FORMATS:
        raise ConfigError(f"-o {path}: the ending decides the format; give one of {', '.join(FORMATS)}.")
    if path.suffix == ".csv":
        out = io.StringIO()
        table = csv.writer(out, lineterminator="\n")
        table.writerow(["run", "curve", "step", "value"])
        for planned in runs:
            for curve in curves(planned.run):
                table.writerows([planned.title, curve.name, step, value] for step, value in enumerate(curve.values))
        write_text(path, out.getvalue())
        return
    write_bytes(path, figure(runs, path.suffix[1:]))


def figure(runs: list[PlannedRun], format: str) -> bytes:
    """One panel per curve, one line per run; runs that share a line share its entry in the legend."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels: dict[str, dict[tuple[float, ...], list[str]]] = {}
    for planned in runs:
        for curve in curves(planned.run):
            panels.setdefault(curve.name, {}).setdefault(tuple(curve.values), []).append(planned.title)
    fig, axes = plt.subplots(len(panels), 1, figsize=(8, 2.4 * len(panels)), squeeze=False, layout="constrained")
    for ax, (name, lines) in zip(axes[:, 0], panels.items(), strict=True):
        for values, titles in lines.items():
            label = titles[0] if len(titles) == 1 else f"{titles[0]} and {len(titles) - 1} more"
            ax.plot([step / len(values) * 100 for step in range(len(values))], values, label=label)
        ax.set(ylabel=name, xlim=(0, 100))
        ax.set_ylim(bottom=0)
        ax.spines[["top", "right"]].set_visible(False)
        if len(runs) > 1:
            ax.legend(fontsize="x-small", frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    axes[-1, 0].set_xlabel("% of the training")
    out = io.BytesIO()
    fig.savefig(out, format=format, dpi=150, metadata={"Date": None} if format == "svg" else None)
    plt.close(fig)
    return out.getvalue()
