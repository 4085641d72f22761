"""A config node as an instance of its dataclass: types, finite numbers, and the rules of its fields (fields.py)."""

from __future__ import annotations

import json
import math
import re
from copy import deepcopy
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sae_sweeps.config.keys import TOP_KEYS
from sae_sweeps.errors import ConfigError
from sae_sweeps.fields import Rule
from sae_sweeps.storage.secrets import secret_in


def typed(cls: type, node: DictConfig, where: str, less: tuple[str, ...] = ()) -> Any:
    """`node`, less some keys, as an instance of the dataclass `cls`. Raises ConfigError naming the first wrong key."""
    if missing := sorted(str(key) for key in node if OmegaConf.is_missing(node, str(key))):
        raise ConfigError(f"{as_given(where, missing[0])}: has no default; give {as_given(where, missing[0])}=VALUE.")
    whole: Any = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    values = {key: value for key, value in whole.items() if key not in less}
    known = {f.name for f in fields(cls)}
    for key in values:
        if key not in known:
            raise ConfigError(f"{where}.{key}: {where}={values.get('name', cls.__name__)} has no such key.")
    for f in fields(cls):
        if f.name not in values and f.default is MISSING and f.default_factory is MISSING:
            raise ConfigError(f"{where}.{f.name} is missing from the config file of {where}={values.get('name')}.")
    _check_leaves(values, where)
    try:
        out = deepcopy(_object(cls, json.dumps(values, sort_keys=True)))
    except OmegaConfBaseException as error:
        key = str(error.full_key or _culprit(cls, values))
        given = OmegaConf.select(OmegaConf.create(values), key) if key else values
        raise ConfigError(f"{as_given(where, key)}={given}: {expected(cls, key)}") from None
    check_values(out, where)
    return out


def check_values(config: Any, where: str = "") -> None:
    """Raise ConfigError for the first field of a config, or of one inside it, whose rule does not hold."""
    cls: type = type(config)
    for key, rules in _rules(cls).items():
        value = getattr(config, key)
        if is_dataclass(value):
            check_values(value, f"{where}.{key}".lstrip("."))
        for rule in rules:
            if value is not None and not rule.holds(value):
                raise ConfigError(f"{as_given(where, key)}={value}: {rule.mend}")


@cache
def _rules(cls: type) -> dict[str, list[Rule]]:
    """The rules of each field; one that a subclass declares again without rules keeps those of its base."""
    found: dict[str, list[Rule]] = {f.name: [] for f in fields(cls)}
    for base in (base for base in cls.__mro__ if is_dataclass(base)):
        for name, hint in get_type_hints(base, include_extras=True).items():
            rules = [rule for rule in getattr(hint, "__metadata__", ()) if isinstance(rule, Rule)]
            if name in found:
                found[name] = found[name] or rules
    return found


def as_given(where: str, key: str) -> str:
    """The name by which a command gives a key of a group, or of one penalty of several (`penalty.ortho`)."""
    return key if not where or (key in TOP_KEYS and "." not in where) else f"{where}.{key}"


def _check_leaves(values: dict[str, Any], where: str) -> None:
    """Raise ConfigError for a number that is not finite, and for a token or a password."""
    for key, value in values.items():
        for leaf in value if isinstance(value, list) else [value]:
            if isinstance(leaf, dict):
                _check_leaves(leaf, f"{where}.{key}")
            if isinstance(leaf, list):
                _check_leaves({key: leaf}, where)
            if isinstance(leaf, float) and not math.isfinite(leaf):
                raise ConfigError(f"{as_given(where, key)}={leaf}: must be a finite number.")
            if isinstance(leaf, str):
                refuse_secret(as_given(where, key), leaf)


def refuse_secret(key: str, text: str) -> None:
    """Raise ConfigError, without repeating it, for a token or a password: configs are recorded and shown."""
    if what := secret_in(text):
        raise ConfigError(
            f"{key}: holds {what}, which would be recorded and shown; leave it to the environment, which jobs have too."
        )


@cache
def _object(cls: type, values: str) -> Any:
    """An instance of `cls` from JSON. OmegaConf takes a while, and the runs of a sweep share most of their groups."""
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), json.loads(values)))


def _culprit(cls: type, values: dict[str, Any]) -> str:
    """The key whose value `cls` cannot take, where OmegaConf's error has none."""
    types = get_type_hints(cls)
    for key, value in values.items():
        try:
            OmegaConf.merge(OmegaConf.structured(cls), {key: value})
        except OmegaConfBaseException:
            within = _culprit(types[key], value) if is_dataclass(types[key]) and isinstance(value, dict) else ""
            return f"{key}.{within}" if within else key
    return ""


WORDS_OF_TYPES = (
    ("int", "a whole number", "whole numbers, as in [1,2]"),
    ("float", "a number", "numbers, as in [0.1,0.2]"),
    ("bool", "true or false", "true or false"),
    ("str", "a word", "words, as in [a,b]"),
)


def expected(cls: type, key: str) -> str:
    """What a key of the dataclass `cls` takes, in words."""
    first, _, rest = key.partition(".")
    found = get_type_hints(cls).get(first.partition("[")[0], "")
    if rest and is_dataclass(found):
        return expected(found, rest)  # type: ignore[arg-type]
    kind = str(found)
    for name, one, several in WORDS_OF_TYPES:
        if re.search(rf"\b{name}\b", kind):
            return f"must be a list of {several}." if "list[" in kind and "[" not in key else f"must be {one}."
    return "has the wrong type."
