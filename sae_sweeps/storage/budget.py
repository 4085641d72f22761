"""Keys that compared runs must share: `--dry-run` warns before, `python -m analysis audit` afterwards."""

from collections.abc import Collection, Iterable
from typing import Any

BUDGET = {
    "num_tokens": "num_tokens",
    "total_steps": "total_steps",
    "batch_size": "batch_size",
    "k": "architecture.k",
    "d_sae": "architecture.d_sae",
    "model": "model.name",
    "layer": "layer.index",
    "data": "data.name",
    "data_seed": "data_seed",
    "recon": "train.recon",
}
"""Each key with its place in a run's config; `recon` because losses of two forms do not compare."""

SO = dict.fromkeys(("num_tokens", "total_steps", "batch_size", "k", "d_sae"), "they are not compared at equal budgets")
SO |= {"recon": "their losses do not compare"}

AS_RECORDED = "as_recorded"
"""The tag of runs that keep the budget of an earlier study's record on purpose: for reproduction, not conclusions."""

NEVER_EXEMPT = ("num_tokens", "total_steps")
"""Keys that have to agree even where the sweep varies them."""


def exempt(key: str, varied: Collection[str]) -> bool:
    """Whether a key of BUDGET may differ because the sweep varies it."""
    names = {key, BUDGET[key], BUDGET[key].removesuffix(".name")}
    return key not in NEVER_EXEMPT and bool(names & set(varied))


def unequal(key: str, values: Iterable[Any], varied: Collection[str] = ()) -> str | None:
    """A sentence about runs that differ in a key of BUDGET, or None; None values are of runs without the key."""
    found = {value for value in values if value is not None}
    if len(found) < 2 or exempt(key, varied):
        return None
    return f"the runs differ in {key} ({listed(found)}): {SO.get(key, 'they do not compare')}"


def kept_values(key: str, own: Iterable[Any], values: Iterable[Any], varied: Collection[str] = ()) -> str | None:
    """`key 40, 320`, the values `own` of runs that keep a record's budget, where not all runs have one; else None."""
    found = set(own) - {None}
    return f"{key} {listed(found)}" if found and unequal(key, values, varied) else None


def listed(values: Iterable[Any]) -> str:
    """The values in their order, of more than six the ends."""
    ordered = sorted(values, key=lambda value: (isinstance(value, str), value))
    shown = ordered if len(ordered) <= 6 else [*ordered[:3], "...", *ordered[-2:]]
    return ", ".join(map(_word, shown))


def _word(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
