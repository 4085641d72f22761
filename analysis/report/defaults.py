"""The default value of each config key: the files of the groups in conf/ over the defaults of the schema."""

import re
from functools import cache
from typing import Any

import yaml

from analysis.reading.configs import flat_config
from sae_sweeps.config.content import content
from sae_sweeps.config.paths import config_dir
from sae_sweeps.config.schema import RootConfig
from sae_sweeps.storage.files import read_yaml

ALWAYS = {"train": "default", "activations": "default"}
"""Groups with one choice, which the config does not name."""
OTHER = re.compile(r"\$\{([\w.]+)\}")
TOP = re.compile(r"\$\{top:\w+,(.*)\}")


@cache
def file_of(group: str, choice: str) -> dict[str, Any]:
    """Dotted keys of a choice with their values; empty where there is no such file or the name is a path."""
    path = config_dir() / group / f"{choice}.yaml"
    if not re.fullmatch(r"[\w-]+", choice) or not re.fullmatch(r"\w+", group) or not path.is_file():
        return {}
    try:
        found = content(path)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return flat_config({key: plain(value) for key, value in found.items()}, group)


@cache
def top_level() -> dict[str, Any]:
    """Keys at the top level with their values, and the group choices of conf/config.yaml."""
    path = config_dir() / "config.yaml"
    if not path.is_file():
        return {}
    found = {key: value for key, value in vars(RootConfig()).items() if not isinstance(value, dict)} | read_yaml(path)
    choices = [item for item in found.pop("defaults", []) if isinstance(item, dict)]
    found.pop("hydra", None)
    named = {key: value for item in choices for key, value in item.items() if " " not in key}
    return flat_config(found) | {key: value for key, value in named.items() if value is not None}


def defaults_of(config: dict[str, Any]) -> dict[str, Any]:
    """The default of each key, given the group choices of a run.

    Keys whose default is computed from others (except a copy of one key), or null at the top level, are left out.
    """
    found = {key: value for key, value in top_level().items() if value is not None}
    groups = {key.partition(".")[0] for key in config if "." in key}
    for group in groups:
        choice = config.get(group) if isinstance(config.get(group), str) else ALWAYS.get(group)
        if group == "layer":
            choice = config.get("layer.hook")
        if choice:
            found |= {key: value for key, value in file_of(group, str(choice)).items() if key != group}
    named = {key: match[1] for key, value in found.items() if (match := OTHER.fullmatch(str(value)))}
    found |= {key: found[other] for key, other in named.items() if other in found}
    return {key: value for key, value in found.items() if not is_open(value)}


def plain(value: Any) -> Any:
    """`${top:k,32}` as 32: the value where the top level does not set the key; other values unchanged."""
    if isinstance(value, str) and (match := TOP.fullmatch(value)):
        return yaml.safe_load(match[1])
    return value


def is_open(value: Any) -> bool:
    return isinstance(value, str) and ("${" in value or value == "???")
