"""All runs of an audit."""

from collections.abc import Collection
from functools import cached_property
from typing import Any

from analysis.auditing.run import Run
from analysis.reading.record import ABSENT

SEEDS = ("seed", "data_seed")
"""Keys in which repeated runs of one configuration differ."""
NOT_THE_METHOD = (
    *SEEDS, "outputs", "device", "title", "description", "tags", "dry_run", "logger", "cluster", "activations", "eval",
)  # fmt: skip
"""Keys and groups that do not change what is trained: seeds, places, hardware, evaluations."""


class Comparison:
    """All runs of an audit, and the keys that their sweep varies."""

    def __init__(self, runs: list[Run], varied: Collection[str] = ()):
        self.runs, self.varied = runs, varied

    @cached_property
    def measured(self) -> list[Run]:
        return [run for run in self.runs if run.measured]

    @cached_property
    def configurations(self) -> list[list[Run]]:
        """The measured runs in lists; runs of one list differ only in their seeds."""
        keys = self.method_keys
        found: dict[tuple[Any, ...], list[Run]] = {}
        for run in self.measured:
            found.setdefault((run.source, *(run.config.get(key) for key in keys)), []).append(run)
        return list(found.values())

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
