"""Reads the five studies' raw records with the importer and compares every figure with the project's reference.

    python -m scripts.check_records PATH [--figures FILE]

PATH is a folder with STUDY.txt of each study. Exit status 1 where a figure differs, is missing, or is read and not in
the reference. Values of the reference's configs that a run's own text does not give (a study's runs share them) are
counted, not compared.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from analysis.reading.figures import REFERENCE_PATH, figures_import
from analysis.reading.imports import Import
from analysis.reading.notes import parse_notes
from analysis.reading.sources import read_source
from sae_sweeps.errors import UserError
from sae_sweeps.storage.files import read_json

EXPECTED = {
    "selective_orthogonality": 10, "progressive_orthogonality": 4, "adaptive_sharing": 1, "contrastive": 5,
    "information_bottleneck": 5,
}  # fmt: skip
"""Study -> runs of its record."""
BASELINES = {"baseline_topk_sae": "topk_baseline", "baseline_standard_sae": "standard_baseline"}
"""Ids that the importer gives to runs that a record does not number -> those of the reference."""
TRAINER = ("study", "trainer.", "device", "resample_steps", "layer.hook")
"""Beginnings of keys that are no figures: of the trainer's code, of the file."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("path", type=Path, help="the folder with the five records")
    parser.add_argument(
        "--figures", type=Path, help="further figures in the reference's form, compared as far as they go"
    )
    args = parser.parse_args()
    try:
        return check(args.path, args.figures)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def check(folder: Path, other: Path | None) -> int:
    reference = by_id(figures_import(REFERENCE_PATH, read_json(REFERENCE_PATH)))
    further = by_id(figures_import(other, read_json(other))) if other else {}
    differences: list[str] = []
    total = Counted()
    for study, expected in EXPECTED.items():
        path = folder / f"{study}.txt"
        found = parse_notes(read_source(path), study, path)
        print(f"{path.name}: {len(found.runs)} runs, {found.n_numbers():,} metrics; {found.study.title or 'no title'}")
        if len(found.runs) != expected:
            differences.append(f"{path.name}: {len(found.runs)} runs were read, the record has {expected}")
        ids = set()
        for run in found.runs:
            run_id = reference_id(run["run_id"])
            ids.add(run_id)
            if run_id not in reference:
                differences.append(f"{run_id} is not in the reference")
                continue
            counted = Counted()
            differences += compared(run_id, run, reference[run_id], counted, strict=True)
            print(f"  {counted.line(run_id, run)}")
            if run_id in further:
                differences += compared(f"{run_id}, {other}", run, further[run_id], Counted(), strict=False)
            total.add(counted)
        missing = [run_id for run_id in reference if run_id.startswith(f"{study}/") and run_id not in ids]
        differences += [f"{run_id} is in the reference and was not read" for run_id in missing]
        for message in found.messages:
            print(f"  {message}")
    print(
        f"{total.compared():,} figures compared with {REFERENCE_PATH.name}" + (f" and {other}" if other else ""), end=""
    )
    print(f": {len(differences)} differ" if differences else ": all equal")
    for difference in differences:
        print(f"  {difference}")
    return 1 if differences else 0


def reference_id(run_id: str) -> str:
    """The id in the reference of a run as read."""
    study, _, number = run_id.partition("/")
    return f"{study}/{BASELINES.get(number, number)}"


def by_id(figures: Import) -> dict[str, dict[str, Any]]:
    return {run["run_id"]: run for run in figures.runs}


class Counted:
    """Figures of one run, or of all, that were compared."""

    def __init__(self) -> None:
        self.metrics = self.config = self.evaluations = self.details = self.shared = 0

    def add(self, other: "Counted") -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def compared(self) -> int:
        return self.metrics + self.config + self.evaluations + self.details

    def line(self, run_id: str, run: dict[str, Any]) -> str:
        steps = "steps not recorded" if run["steps"] is None else f"{run['steps']:,} steps"
        layers = {name: facts.get("layer") for name, facts in run["recorded"].get("evaluations", {}).items()}
        at = ", ".join(f"{name} {'' if layer is None else layer}".strip() for name, layer in layers.items())
        return (
            f"{run_id}: {run['state']}, {steps}; {self.metrics} metrics, {self.config} of the config "
            f"({self.shared} more are the study's), {self.details} per class"
            + (f"; evaluations at layer: {at}" if at else "")
        )


def compared(name: str, run: dict[str, Any], wanted: dict[str, Any], counted: Counted, strict: bool) -> list[str]:
    """The differences of a run as read to one of the reference; `strict` also lists what the reference lacks."""
    found = []

    def check_one(kind: str, key: str, here: Any, there: Any) -> None:
        setattr(counted, kind, getattr(counted, kind) + 1)
        if here != there or isinstance(here, bool) != isinstance(there, bool):
            found.append(f"{name}: {key} is {there!r} in the reference and was read as {here!r}")

    for key in dict.fromkeys([*wanted["metrics"], *run["metrics"]]):
        if key not in wanted["metrics"] and not strict:
            continue
        if key not in wanted["metrics"] or key not in run["metrics"]:
            where = "in the reference only" if key in wanted["metrics"] else "not in the reference"
            found.append(f"{name}: {key} is {where}")
        else:
            check_one("metrics", key, run["metrics"][key], wanted["metrics"][key])
    if strict:
        check_one("metrics", "not_finite", sorted(run["not_finite"]), sorted(wanted["not_finite"]))
    config = run["config"] | ({} if run["steps"] is None else {"steps": run["steps"]})
    wanted_config = wanted["config"] | ({} if wanted["steps"] is None else {"steps": wanted["steps"]})
    for key, value in config.items():
        if key in wanted_config:
            check_one("config", key, value, wanted_config[key])
        elif strict and not key.startswith(TRAINER):
            found.append(f"{name}: {key} is {value!r} and not in the reference")
    counted.shared += len(wanted_config.keys() - config.keys())
    if strict:
        if run["steps"] is not None or run["state"] == "diverged":
            check_one("config", "state", run["state"], wanted["state"])
        here, there = run["recorded"], wanted["recorded"]
        for kind in ("evaluations", "details"):
            for key in here.get(kind, {}).keys() ^ there.get(kind, {}).keys():
                found.append(f"{name}: {kind} of {key} were {'' if key in here.get(kind, {}) else 'not '}read")
            for key in here.get(kind, {}).keys() & there.get(kind, {}).keys():
                if kind == "evaluations":
                    for fact, value in there[kind][key].items():
                        check_one(kind, f"{key}: {fact}", here[kind][key].get(fact), value)
                else:
                    compare_details(check_one, key, here[kind][key], there[kind][key])
    return found


def compare_details(check_one: Any, name: str, here: list[dict[str, Any]], there: list[dict[str, Any]]) -> None:
    check_one("details", f"{name}: rows", len(here), len(there))
    for row, (mine, other) in enumerate(zip(here, there, strict=False)):
        for key in dict.fromkeys([*other, *mine]):
            check_one("details", f"{name}, row {row}: {key}", mine.get(key), other.get(key))


if __name__ == "__main__":
    sys.exit(main())
