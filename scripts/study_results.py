"""Runs the studies' presets on the built-in model and writes docs/study_results.md. `make studies`.

Every variant is trained with seed 0, those on which a sentence of docs/studies.md is based with seeds 1 and 2 too. What
is complete in OUTPUTS is not trained again. `--write-only` trains nothing. Numbers depend on the number of threads in
their last digits: OMP_NUM_THREADS=1 gives the page's.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from scripts.launches import INTERRUPTED, ROOT, launch

PAGE = ROOT / "docs" / "study_results.md"


@dataclass
class Preset:
    name: str
    columns: list[str]
    seeded: str
    """`only=` of the variants that are trained with seeds 1 and 2 too."""


COMMON = ["fvu", "ce_loss_score", "l0", "nearest_neighbour_cosine", "mean_abs_cosine"]
HEADS = {
    "ce_loss_score": "CE score", "l0": "L0", "nearest_neighbour_cosine": "nearest neighbour",
    "mean_abs_cosine": "mean abs cosine",
}  # fmt: skip
PRESETS = [
    Preset(
        "progressive_orthogonality",
        COMMON,
        "TopK|TopK, *|Run 3|Run 4|fixed weight|static|k grows|standard at matched L0|Gated|strict|OrtSAE",
    ),
    Preset(
        "selective_orthogonality",
        [*COMMON, "nmi", "silhouette"],
        "standard at matched L0|TopK|TopK, *|alpha 0.3 at matched L0|k-means at matched L0|forget against retain",
    ),
    Preset(
        "adaptive_sharing",
        [*COMMON, "nmi"],
        "standard at matched L0|TopK|TopK, *|strict at matched L0|adaptive at matched L0",
    ),
    Preset(
        "contrastive",
        [*COMMON, "nmi", "silhouette"],
        "standard at matched L0|TopK|TopK, *|adjacent at matched L0|top 5 similar at *|forget and retain pairs",
    ),
    Preset("information_bottleneck", COMMON, "standard at matched L0|bottleneck|masks|groups by MI|contrast between *"),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="PRESET", help="default: all five")
    parser.add_argument("--outputs", type=Path, default=Path("outputs/studies"), metavar="FOLDER")
    parser.add_argument("--write-only", action="store_true", help="write the page from the runs that exist")
    args = parser.parse_args()
    presets = [preset for preset in PRESETS if not args.names or preset.name in args.names]
    failed = False
    for preset in presets:
        if not args.write_only:
            for words in commands(preset):
                started = time.monotonic()
                ended = launch(*words, f"outputs={args.outputs / preset.name}", "report=false")
                if ended == INTERRUPTED:
                    print("interrupted: run the same command again to continue; the page is unchanged", flush=True)
                    return INTERRUPTED
                failed |= ended != 0
                print(f"{' '.join(words)}: {(time.monotonic() - started) / 60:.1f} minutes", flush=True)
    PAGE.write_text(
        page([preset for preset in PRESETS if (args.outputs / preset.name / "runs").is_dir()], args.outputs)
    )
    return int(failed)


def commands(preset: Preset) -> list[list[str]]:
    return [[f"experiment={preset.name}"], [f"experiment={preset.name}", "-m", "seed=1,2", f"only='{preset.seeded}'"]]


def page(presets: list[Preset], outputs: Path) -> str:
    parts = [
        "# The five studies on the built-in model: every variant",
        "",
        "Written by `make studies`; what follows from it is in [studies.md](studies.md). 400 steps of 1,024 tokens,",
        "layer 2, d_sae 2,048 in the progressive study and 512 in the others, one thread. A mean over three seeds has",
        "its standard deviation; a number alone is one seed. Below each table is what `analysis audit` finds.",
    ]
    for preset in presets:
        runs = outputs / preset.name
        parts += ["", f"## `experiment={preset.name}`", "", *table(preset, runs), "", "```", *audit(runs), "```"]
    return "\n".join(parts) + "\n"


def table(preset: Preset, outputs: Path) -> Iterator[str]:
    """The runs of a preset in its own order, seeds as one row, in Markdown."""
    columns = ["title", "state", *preset.columns]
    text = analysis("table", outputs, "--aggregate", "seed", "--format", "csv", "--columns", ",".join(columns))
    frame = pd.read_csv(io.StringIO(text), dtype={"run_id": str, "runs": str})
    order = in_order(outputs)
    rows = sorted(frame.to_dict("records"), key=lambda row: min(order.index(run) for run in row["runs"].split()))
    yield "| variant | " + " | ".join(HEADS.get(name, name) for name in preset.columns) + " |"
    yield "|---|" + "---:|" * len(preset.columns)
    for row in rows:
        ended = "" if row["state"] == "completed" else f" ({row['state']})"
        yield f"| {row['title']}{ended} | " + " | ".join(cell(row, name) for name in preset.columns) + " |"


def in_order(outputs: Path) -> list[str]:
    """Run ids as the presets list them: sweeps are called by their time, and that of every variant is the first."""
    manifests = sorted(outputs.glob("sweeps/*/manifest.json"))
    return [run["run_id"] for path in manifests for run in json.loads(path.read_text())["runs"]]


def cell(row: dict[str, Any], name: str) -> str:
    mean, std = row[f"{name}_mean"], row[f"{name}_std"]
    if pd.isna(mean):
        return ""
    digits = f"{mean:#.3g}".rstrip(".")
    return digits if pd.isna(std) else f"{digits} ± {std:.1g}"


def audit(outputs: Path) -> list[str]:
    return analysis("audit", outputs, check=False).strip().splitlines()


def analysis(command: str, outputs: Path, *words: str, check: bool = True) -> str:
    line = [sys.executable, "-m", "analysis", command, str(outputs), *words]
    return subprocess.run(line, cwd=ROOT, check=check, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
