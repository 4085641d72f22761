"""Types of config fields that carry the rule of their values, as in `tau: Positive[float] = 0.1`.

To OmegaConf and type checkers `Positive[float]` is a float; `check_values` of config/typed.py reads the rule. A rule of
one field alone is written in place: `Annotated[int, at_least(2, "a correlation needs 2 tokens; give more.")]`. None
keeps every rule. Values that exclude each other are found by the `check` of their config.
"""

from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields
from typing import Annotated, Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Rule:
    holds: Callable[[Any], bool]
    mend: str
    """Ends the sentence about a value for which it does not hold, after `key=value: `."""


def one_of(*choices: str) -> Rule:
    return Rule(lambda value: value in choices, f"must be one of {', '.join(choices)}.")


def at_least(least: float, mend: str = "") -> Rule:
    return Rule(lambda value: value >= least, mend or f"must be at least {least}.")


def added(default: Any) -> Any:
    """Default of a field that stored configs of earlier runs lack: what they mean without it.

    At this value it is no part of a run's id. New runs have the value of the YAML file, which may be another.
    """
    return field(default=default, metadata={"added": True})


def at_added_default(config: Any) -> list[str]:
    """The `added` fields of a config that have their default."""
    own: tuple[Field[Any], ...] = fields(config)
    return [f.name for f in own if f.metadata.get("added") and getattr(config, f.name) == f.default]


Positive = Annotated[T, Rule(lambda value: value > 0, "must be above 0.")]
NotNegative = Annotated[T, at_least(0, "must be 0 or more.")]
AtLeastOne = Annotated[T, at_least(1)]
SomePositive = Annotated[list[T], Rule(lambda values: bool(values) and min(values) > 0, "give numbers above 0.")]
Share = Annotated[float, Rule(lambda value: 0 <= value <= 1, "must lie between 0 and 1.")]
InnerShare = Annotated[float, Rule(lambda value: 0 < value < 1, "must lie between 0 and 1.")]
PositiveShare = Annotated[float, Rule(lambda value: 0 < value <= 1, "must be above 0 and at most 1.")]
BelowOne = Annotated[float, Rule(lambda value: 0 <= value < 1, "must lie in [0, 1).")]
"""Decays of moving averages, probabilities of leaving out."""
Length = Annotated[float, at_least(0, "a length cannot be negative; give a fraction below 1 or a number of steps.")]
"""Of a part of the run: a fraction of it below 1, else a number of steps."""
PenaltyWeight = Annotated[float, at_least(0, "must be above 0; for a run without it give penalty=none.")]
DType = Annotated[str, one_of("float32", "bfloat16", "float16")]
