"""A user's own `conf/local.yaml`: where runs are logged and trained, in every launch. One line of it is enough:

    logger: wandb

Its keys are those of the groups logger and cluster, written as on the command line or nested. They win over a preset,
and the command's own words win over them. They are no part of a run's id.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sae_sweeps.config import plugins
from sae_sweeps.config.aliases import ALIASES, canonical_words
from sae_sweeps.config.cluster import cluster_config
from sae_sweeps.config.content import content
from sae_sweeps.config.paths import config_dir
from sae_sweeps.config.schema import LoggerConfig
from sae_sweeps.config.typed import typed
from sae_sweeps.errors import ConfigError, did_you_mean

GROUPS = ("logger", "cluster")
GROUP, CHOICE = "local", "yaml"
"""The optional entry of conf/config.yaml's defaults list."""
SWITCH = "SAE_SWEEPS_LOCAL"
"""`none` in this environment variable: no local.yaml is read, as in the tests and in `make demo`."""


@dataclass
class Local:
    """What a local.yaml sets in one command."""

    path: Path
    choices: dict[str, str]
    """Group -> choice."""
    values: dict[str, Any]
    """Dotted key -> value."""
    left_out: list[str]
    """Its words that have no effect: the command has its own, or the logger or cluster in use has no such key."""
    reasons: list[str] = field(default_factory=list)
    """Why, and the line that mends it, where neither the command nor this file chooses that logger or cluster."""

    def words(self) -> list[str]:
        return [f"{key}={_word(value)}" for key, value in (self.choices | self.values).items()]

    def sentence(self) -> str:
        left_out = f"; left out here: {' '.join(self.left_out)}" if self.left_out else ""
        return "; ".join([f"{_shown(self.path)} sets {' '.join(self.words()) or 'nothing'}{left_out}", *self.reasons])

    def make_choice(self) -> None:
        """Make the choice that the defaults list names."""
        node: dict[str, Any] = {"defaults": [{f"override /{group}": name} for group, name in self.choices.items()]}
        for key, value in self.values.items():
            group, _, leaf = key.partition(".")
            node.setdefault(group, {})[leaf] = value
        plugins.make_choice(GROUP, CHOICE, node, everywhere=True)


def local_file() -> Path | None:
    """The working folder's conf/local.yaml, else that of the checkout; None where there is none, or SWITCH is none."""
    if os.environ.get(SWITCH) == "none":
        return None
    checkout = config_dir().parent.joinpath("launch.py").is_file()
    folders = [Path("conf"), *([config_dir()] if checkout else [])]
    return next((path for folder in folders if os.path.lexists(path := folder / "local.yaml")), None)


def read_local(words: Iterable[str]) -> Local | None:
    """The local.yaml for a command's words; None without one. Raises ConfigError for one that cannot be used."""
    path = local_file()
    if path is None:
        return None
    try:
        return _without_others(_checked(path, _flat(path)), list(words))
    except ConfigError as error:
        raise ConfigError(f"{_shown(path)}: {error}") from None


def _flat(path: Path) -> dict[str, Any]:
    """Dotted keys of the file with their values, a group's choice under the group's name."""
    try:
        loaded = OmegaConf.load(path)
        node: Any = OmegaConf.to_container(loaded, resolve=True)
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        why = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise ConfigError(f"cannot be read ({why}); mend it, or remove it.") from None
    if not node or not isinstance(node, dict):
        what = "a list" if node else "nothing"
        raise ConfigError(f"holds {what}; write lines of KEY: VALUE, such as `logger: wandb`, or remove it.")
    flat: dict[str, Any] = {}
    for key, value in node.items():
        inside = {f"{key}.{leaf}": v for leaf, v in value.items()} if isinstance(value, dict) else {str(key): value}
        for name, leaf_value in inside.items():
            name = ALIASES.get(name, name)
            name = name.removesuffix(".name") if name.removesuffix(".name") in GROUPS else name
            if name in flat:
                raise ConfigError(f"{name} is there twice; keep one.")
            flat[name] = leaf_value
    return flat


def _checked(path: Path, flat: dict[str, Any]) -> Local:
    """Raises ConfigError for a key of another group, an unknown choice or key, and a value of the wrong type."""
    chosen: dict[str, str] = {}
    for key, value in flat.items():
        group = key.partition(".")[0]
        if group not in GROUPS:
            mend = did_you_mean(group, GROUPS, "give others in the command.")
            raise ConfigError(f"{key}: only keys of logger and cluster belong here, as in `logger: wandb`; {mend}")
        if key == group:
            choices = plugins.choices(group)
            if value not in choices:
                mend = did_you_mean(str(value), choices, f"one of {', '.join(choices)}.")
                raise ConfigError(f"{group}={_word(value)}: no such choice; {mend}")
            chosen[group] = value
    values = {key: value for key, value in flat.items() if key not in GROUPS}
    for key, value in values.items():
        group, _, leaf = key.partition(".")
        known = {name: _keys(group, name) for name in plugins.choices(group)}
        readers = [name for name, keys in known.items() if leaf in keys]
        if not readers:
            near = did_you_mean(leaf, set().union(*known.values())).replace("mean ", f"mean {group}.")
            raise ConfigError(f"{key}: no such key" + (f"; {near}" if near else "."))
        if group in chosen and chosen[group] not in readers:
            raise ConfigError(f"{key}: {group}={chosen[group]} has no such key; {' and '.join(readers)} have it.")
        node = OmegaConf.create(content(_file(group, chosen.get(group, readers[0]))) | {leaf: value})
        typed(LoggerConfig, node, group) if group == "logger" else cluster_config(node)
    return Local(path, chosen, values, [])


def _without_others(local: Local, words: list[str]) -> Local:
    """The settings that reach this command: its own choice of a group may lack keys, and its own words win."""
    given = dict(word.split("=", 1) for word in canonical_words(words) if "=" in word)
    for group in GROUPS:
        name = given.get(group, local.choices.get(group) or _of_preset(group, given.get("experiment")))
        unused = set()
        for key in [key for key in local.values if key.startswith(f"{group}.")]:
            unknown = plugins.choice_file(group, name) is None  # several, or one that Hydra refuses
            leaf = key.partition(".")[2]
            if key in given or unknown or name == "none" or leaf not in _keys(group, name):
                local.left_out.append(f"{key}={_word(local.values.pop(key))}")
                unused |= set() if key in given or unknown else {leaf}
        if unused and group not in given and group not in local.choices:
            users = [choice for choice in plugins.choices(group) if choice != "none" and unused <= _keys(group, choice)]
            lines = " or ".join(f"`{group}: {choice}`" for choice in users) or f"`{group}: NAME`"
            local.reasons.append(f"{group}={name} is in use, which has no {', '.join(sorted(unused))}: add {lines}")
        if group in local.choices and given.get(group, local.choices[group]) != local.choices[group]:
            local.left_out.insert(0, f"{group}={local.choices.pop(group)}")
    return local


def _of_preset(group: str, preset: str | None) -> str:
    """The choice that a preset, or else conf/config.yaml, makes of a group."""
    chosen = ""
    for file in (config_dir() / "config.yaml", plugins.choice_file("experiment", preset) if preset else None):
        with suppress(OSError, ValueError, yaml.YAMLError, OmegaConfBaseException):  # Hydra refuses such a preset
            node: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False) if file else {}
            entries = node.get("defaults") if isinstance(node, dict) else None
            for entry in entries if isinstance(entries, list) else []:
                if isinstance(entry, dict):
                    chosen = next((v for k, v in entry.items() if k in (group, f"override /{group}")), chosen)
    return chosen


def _file(group: str, name: str) -> Path:
    file = plugins.choice_file(group, name)
    assert file is not None
    return file


def _keys(group: str, name: str) -> set[str]:
    return set(content(_file(group, name))) - {"name"}


def _word(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _shown(path: Path) -> Path:
    """The path as a user gives it: relative to the working folder where it is below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
