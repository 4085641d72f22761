"""Configs and metrics of nested files as flat dicts."""

import json
import math
from functools import lru_cache
from typing import Any

NESTED = {dict, list}


def flat_config(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The config as dotted keys; a group's `name` is its value (`penalty` = ortho, `penalty.tau`), lists are JSON."""
    flat: dict[str, Any] = {}

    def add(config: dict[str, Any], prefix: str) -> None:
        names, values = dotted(prefix, tuple(config)), config.values()
        if NESTED.isdisjoint(map(type, values)):
            flat.update(zip(names, values, strict=True))
            return
        for name, value in zip(names, values, strict=True):
            if isinstance(value, dict):
                add(value, name)
            else:
                flat[name] = json.dumps(value) if isinstance(value, list) else value

    add(config, prefix)
    for key in [key for key in flat if key.endswith(("._file_", "._target_"))]:
        del flat[key]  # of code from outside: its name and its content's digest stay
    return flat


@lru_cache(maxsize=4096)  # runs of a sweep have the same groups
def dotted(prefix: str, keys: tuple[Any, ...]) -> list[str]:
    """The names of a group's keys."""
    return [prefix if prefix and key == "name" else f"{prefix}.{key}" if prefix else str(key) for key in keys]


def flat_metrics(metrics: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Finite numbers only, nested ones under dotted names."""
    flat: dict[str, float] = {}
    for key, value in metrics.items():
        if isinstance(value, dict):
            flat |= flat_metrics(value, f"{prefix}{key}.")
        elif type(value) in (float, int) and math.isfinite(value):
            flat[prefix + key] = value
    return flat
