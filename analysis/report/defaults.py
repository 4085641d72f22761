"""What each key is where nobody sets it: the groups' own files in conf/."""

import re
from functools import cache
from typing import Any

from analysis.reading.configs import flat_config, read_yaml
from sae_sweeps.config.paths import config_dir
from sae_sweeps.errors import DamagedFile

ALWAYS = {"train": "default", "activations": "default"}
"""Groups with one choice, which the config does not name."""
OTHER = re.compile(r"\$\{([\w.]+)\}")
TOP = re.compile(r"\$\{top:\w+,(.*)\}")


@cache
def file_of(group: str, choice: str) -> dict[str, Any]:
    """Dotted keys of conf/GROUP/CHOICE.yaml; empty where there is no such file. Names come from runs: no paths."""
    path = config_dir() / group / f"{choice}.yaml"
    if not re.fullmatch(r"[\w-]+", choice) or not re.fullmatch(r"\w+", group) or not path.is_file():
        return {}
    try:
        content = read_yaml(path)
    except DamagedFile:
        return {}
    packaged = content.get(group)
    inside = packaged if isinstance(packaged, dict) else content
    inside = {key: plain(value) for key, value in inside.items() if key not in ("defaults", "hydra")}
    return flat_config(inside, group)


@cache
def top_level() -> dict[str, Any]:
    """Keys of conf/config.yaml, and the group choices of its defaults list."""
    path = config_dir() / "config.yaml"
    if not path.is_file():
        return {}
    content = read_yaml(path)
    choices = [item for item in content.pop("defaults", []) if isinstance(item, dict)]
    content.pop("hydra", None)
    named = {key: value for item in choices for key, value in item.items() if not key.startswith("override")}
    return flat_config(content) | {key: value for key, value in named.items() if value is not None}


def defaults_of(config: dict[str, Any]) -> dict[str, Any]:
    """The value of each key where nobody sets it, given the choices of a run's groups.

    Keys whose default is worked out from others (but for another key's value), or null at the top level, are left out.
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
    """`${top:k,32}` as 32: what holds where the top level says nothing."""
    if isinstance(value, str) and (match := TOP.fullmatch(value)):
        import yaml

        return yaml.safe_load(match[1])
    return value


def is_open(value: Any) -> bool:
    return isinstance(value, str) and ("${" in value or value == "???")
