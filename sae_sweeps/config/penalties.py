"""Which penalties a run has: one with the run's schedule, or several added together, each with its own.

`penalty=ortho+contrastive` puts each penalty's keys under its name (`penalty.ortho.lambda2_max`) with a schedule of its
own (`penalty.ortho.schedule`); keys at the top level feed neither, since they could mean either.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sae_sweeps.errors import ConfigError

if TYPE_CHECKING:
    from sae_sweeps.config.run import RunConfig

SAMPLING_ORDER = ("tokens", "adjacent_pairs", "contiguous_windows")
"""Each also serves penalties that need one before it."""


def finite(value: Any, what: str) -> float:
    """A number that a component gave. Raises ConfigError for anything else, and for one that is not finite."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{what} is {value!r}; it must be a finite number.")
    return value


@dataclass
class PenaltyTerm:
    """One penalty with its schedule."""

    name: str
    """What its loss is called: `penalty` where it is the only one, else its own name."""
    config: Any
    schedule: Any

    @property
    def place(self) -> str:
        """Its place in the config."""
        return self.name if self.name == "penalty" else f"penalty.{self.name}"

    def weight(self, step: int, total_steps: int) -> float:
        """lambda2(p): peak weight times schedule. Raises ConfigError for a schedule whose value is no number."""
        share = finite(
            self.schedule.value(step, total_steps), f"schedule={self.schedule.name}: its value at step {step}"
        )
        return finite(self.config.peak_weight(), f"penalty={self.config.name}: its peak_weight()") * share


@dataclass
class Combination:
    """Several penalties with the methods of one."""

    name: str
    terms: list[PenaltyTerm]

    def check(self) -> None:
        for term in self.terms:
            term.config.check()
            term.schedule.check()

    def check_run(self, run: RunConfig) -> None:
        for term in self.terms:
            term.config.check_run(run)

    def unused_keys(self) -> dict[str, str]:
        return {f"{term.name}.{key}": why for term in self.terms for key, why in term.config.unused_keys().items()}

    def sampling(self) -> str:
        wanted = {term.config.sampling() for term in self.terms} - {"tokens"}
        if not wanted:
            return "tokens"
        if len(wanted) > 1 and not wanted <= set(SAMPLING_ORDER):
            raise ConfigError(
                f"penalty={self.name}: its parts draw batches in ways that exclude each other "
                f"({', '.join(sorted(wanted))}); combine others, or give one way with train.sampling."
            )
        return max(wanted, key=lambda kind: SAMPLING_ORDER.index(kind) if kind in SAMPLING_ORDER else 0)

    def plan_warnings(self) -> list[str]:
        return [f"{term.name}: {text}" for term in self.terms for text in term.config.plan_warnings()]

    def result_warnings(self, rows: list[dict[str, Any]]) -> list[str]:
        out = []
        for term in self.terms:
            head = f"penalty/{term.name}/"
            own = [{f"penalty/{k[len(head) :]}": v for k, v in row.items() if k.startswith(head)} for row in rows]
            out += [f"{term.name}: {text}" for text in term.config.result_warnings(own)]
        return out

    def to_dict(self) -> dict[str, Any]:
        parts = {term.name: asdict(term.config) | {"schedule": asdict(term.schedule)} for term in self.terms}
        return {"name": self.name, **parts}


def combined_node(choice: str, known: list[str], read: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """`a+b` as a choice of Hydra: defaults and contents, at the package `_global_`; `read` gives a part's YAML.

    Raises ConfigError for a part that is not a penalty, is given twice, or is `none`.
    """
    names = [name.strip() for name in choice.split("+")]
    for name in names:
        if name not in known:
            raise ConfigError(
                f"penalty={choice}: {name or 'an empty part'} cannot be added; choose of {', '.join(known)}."
            )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ConfigError(f"penalty={choice}: {twice[0]} is given twice; change its weight instead.")
    schedules: list[Any] = []
    overrides: list[Any] = []
    parts: dict[str, Any] = {"name": "+".join(names)}
    for name in names:
        node = read(name)
        schedule = "constant"
        for entry in node.get("defaults", []):
            for key, value in entry.items() if isinstance(entry, dict) else ():
                if key == "override /schedule":
                    schedule = value
                elif entry not in overrides:
                    overrides.append(entry)
        schedules.append({f"/schedule@penalty.{name}.schedule": schedule})
        parts[name] = {key: value for key, value in node.get("penalty", node).items() if key != "defaults"}
    return {"defaults": [*schedules, "_self_", *overrides], "penalty": parts}  # Hydra takes overrides last
