"""Which runs of a plan go side by side."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sae_sweeps.config.identity import short_hash
from sae_sweeps.sweeps.plan import Plan, PlannedRun


@dataclass
class Group:
    runs: list[PlannedRun]


def plan_groups(plan: Plan, cluster: Any = None) -> list[Group]:
    """Runs that share model, layer and data, at most `group_size` in a group."""
    alike: dict[str, list[PlannedRun]] = {}
    for planned in plan.runs:
        run = planned.run
        alike.setdefault(short_hash([asdict(run.model), asdict(run.layer), asdict(run.data)]), []).append(planned)
    size = (cluster and cluster.group_size) or 32
    return [Group(runs[i : i + size]) for runs in alike.values() for i in range(0, len(runs), size)]


def describe_groups(groups: list[Group], plan: Plan) -> list[str]:
    number = {planned.run_id: n for n, planned in enumerate(plan.runs, 1)}
    return [f"group {n}  runs {', '.join(str(number[p.run_id]) for p in g.runs)}" for n, g in enumerate(groups, 1)]
