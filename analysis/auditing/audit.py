"""What makes a comparison unsound: every rule of `auditing/rules`, applied to any number of runs at once.

Runs of this project are one comparison; each imported study is one of its own, since runs of different
studies are not comparable. Rules that are registered as `across` see the runs of all of them.
"""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import pandas as pd

from analysis.auditing.comparison import Comparison
from analysis.auditing.finding import LEVELS, Finding
from analysis.auditing.run import Run, runs_of
from analysis.grouped import grouped
from analysis.text import clean
from sae_sweeps.errors import DamagedFile
from sae_sweeps.storage.sweep_folder import read_manifest


def audit(full: pd.DataFrame, varied: Iterable[str] = ()) -> list[Finding]:
    """Everything that the rules find in the runs of a frame of `analysis.reading.records.records`, worst first.

    Args:
        varied: keys that the sweep varies on purpose (`varied_by` reads them from its manifest). They may differ;
            tokens and steps may not.
    """
    from analysis.auditing.rules import RULES

    runs, keys = runs_of(full), set(varied)
    everything = Comparison(runs, keys)
    studies = [Comparison(own, keys) for own in by_study(runs).values()]
    found = []
    for rule in RULES:
        for comparison in [everything] if rule.across else studies:
            pairs = ((sentence, run) for sentence, of_runs in rule.find(comparison) for run in of_runs)
            for sentence, of_runs in grouped(pairs).items():
                ids = tuple(dict.fromkeys(run.run_id for run in of_runs))
                found.append(Finding(rule.code, rule.level, clean(sentence, 600), ids, study_of(of_runs), rule.mend))
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))


def by_study(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """The runs of each study; those of this project, and single SAEs, are under an empty name."""
    return grouped((run.study, run) for run in runs)


def study_of(runs: Iterable[Run]) -> str | None:
    """The study of the runs, None where they are of several."""
    found = {run.study for run in runs}
    return found.pop() if len(found) == 1 else None


def varied_by(paths: Iterable[str | Path]) -> set[str]:
    """The keys that the sweeps of the paths vary: of a sweep's folder, of a folder with sweeps, of an outputs tree."""
    found: set[str] = set()
    for path in map(Path, paths):
        places = [path, path / "manifest.json", *path.glob("*/manifest.json"), *path.glob("sweeps/*/manifest.json")]
        for place in places:
            if place.name == "manifest.json" and place.is_file():
                with suppress(DamagedFile):  # its runs are read; their differences are then all warned of
                    found.update(map(str, read_manifest(place.parent).get("varied") or []))
    return found
