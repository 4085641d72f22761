"""The runs that one rule of the audit sees at once."""

import re
from collections.abc import Collection, Sequence
from functools import cached_property

from analysis.auditing.run import Run
from analysis.grouped import grouped
from analysis.reading.record import ABSENT, Study

SEEDS = ("seed", "data_seed")
"""Keys in which repeated runs of one configuration differ."""
NOT_THE_METHOD = (
    *SEEDS, "outputs", "device", "title", "description", "tags", "dry_run", "logger", "cluster", "activations", "eval",
)  # fmt: skip
"""Keys and groups that do not change what is trained: seeds, places, hardware, evaluations."""


class Comparison:
    """The runs of one study, or all runs of this project, and the keys that their sweep varies."""

    def __init__(self, runs: list[Run], varied: Collection[str] = ()):
        self.runs, self.varied = runs, varied

    @cached_property
    def measured(self) -> list[Run]:
        return [run for run in self.runs if run.measured]

    @cached_property
    def compared(self) -> list[Run]:
        """The measured runs without those that keep a record's own budget on purpose."""
        return [run for run in self.measured if not run.as_recorded]

    @cached_property
    def imported(self) -> bool:
        """Whether these are runs of an imported study."""
        return any(run.study for run in self.runs)

    @cached_property
    def notes(self) -> Study:
        """What the notes of an imported study have beside its runs."""
        return next((run.recorded.study for run in self.runs), Study())

    @cached_property
    def model(self) -> str | None:
        """The one model that an imported study names for its training, if it is one."""
        found = {str(run.config["model"]) for run in self.runs if run.study and run.config.get("model")}
        return found.pop() if len(found) == 1 else None

    @cached_property
    def baselines(self) -> list[Run]:
        """The measured runs without the method under study."""
        return [run for run in self.measured if is_baseline(run)]

    @cached_property
    def others(self) -> list[Run]:
        """The compared runs that are no baseline."""
        return [run for run in self.compared if not is_baseline(run)]

    @cached_property
    def configurations(self) -> list[list[Run]]:
        """The compared runs in lists; runs of one list differ only in their seeds."""
        keys, found = self.method_keys, []
        alike = grouped(((run.source, *(run.config.get(key) for key in keys)), run) for run in self.compared)
        for runs in alike.values():
            seeds = {tuple(run.config.get(key) for key in SEEDS) for run in runs}
            # notes name few keys: runs that share those are one configuration where their seeds say so
            repeats = (
                not runs[0].study or len(seeds) == len(runs) and all(run.config.get("seed") is not None for run in runs)
            )
            found += [runs] if repeats else [[run] for run in runs]
        return found

    @cached_property
    def keys(self) -> list[str]:
        """The config keys of the measured runs."""
        shapes = dict.fromkeys(tuple(run.config) for run in self.measured)  # few: one for each kind of run
        return list(dict.fromkeys(key for shape in shapes for key in shape))

    @cached_property
    def method_keys(self) -> list[str]:
        """Config keys outside NOT_THE_METHOD in which measured runs differ."""
        configs = [run.config for run in self.measured]
        judged = (key for key in self.keys if key.partition(".")[0] not in NOT_THE_METHOD)
        return [key for key in judged if len({config.get(key, ABSENT) for config in configs}) > 1]


def is_baseline(run: Run) -> bool:
    """Whether a run is without the method under study: without a penalty or, where none is recorded, by its title."""
    penalty = run.config.get("penalty")
    return penalty == "none" or (penalty is None and (run.source is None or is_titled(run)))


def is_titled(run: Run) -> bool:
    return re.search(r"\bbaseline\b", run.title, re.IGNORECASE) is not None


def baselines_of(runs: Sequence[Run]) -> tuple[list[Run], str]:
    """The runs that others are compared with, and how they were chosen.

    They are those tagged `baseline`, or else those of `is_baseline`: of them those with that word in their title, if
    there are any.
    """
    if tagged := [run for run in runs if '"baseline"' in str(run.config.get("tags"))]:
        return tagged, "tagged baseline"
    found = [run for run in runs if is_baseline(run)]
    found = [run for run in found if is_titled(run)] or found
    recorded = all(run.config.get("penalty") == "none" for run in found)
    return found, "without a penalty" if recorded else "a baseline by its title"
