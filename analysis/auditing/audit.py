"""What makes a comparison unsound: every rule of `auditing/rules`, applied to any number of runs at once."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.auditing.comparison import Comparison
from analysis.auditing.finding import LEVELS, Finding
from analysis.auditing.run import runs_of
from analysis.text import clean
from sae_sweeps.storage.sweep_folder import read_manifest

if TYPE_CHECKING:
    import pandas as pd


def audit(full: "pd.DataFrame", varied: Iterable[str] = ()) -> list[Finding]:
    """Everything that the rules find in the runs of a frame of `analysis.reading.records.records`, worst first.

    Args:
        varied: keys that the sweep varies on purpose (`varied_by` reads them from its manifest). They may differ;
            tokens and steps may not.
    """
    from analysis.auditing.rules import RULES

    comparison = Comparison(runs_of(full), set(varied))
    found = [
        Finding(rule.code, rule.level, clean(sentence, 400), tuple(dict.fromkeys(run.run_id for run in runs)))
        for rule in RULES
        for sentence, runs in rule.find(comparison)
    ]
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))


def varied_by(paths: Iterable[str | Path]) -> set[str]:
    """The keys that the sweeps of the paths vary: of a sweep's folder, of a folder with sweeps, of an outputs tree."""
    found: set[str] = set()
    for path in map(Path, paths):
        places = [path, path / "manifest.json", *path.glob("*/manifest.json"), *path.glob("sweeps/*/manifest.json")]
        for place in places:
            if place.name == "manifest.json" and place.is_file():
                found.update(map(str, read_manifest(place.parent).get("varied") or []))
    return found
