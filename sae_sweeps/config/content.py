"""Reads the YAML files of group choices, which hold values that differ from the defaults in schema.py."""

from __future__ import annotations

import copyreg
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from sae_sweeps.config.paths import config_dir
from sae_sweeps.config.schema import LocalConfig, RootConfig, SlurmConfig, SyntheticConfig, defaults_of

SCHEMAS = {cls.__name__: cls for cls in (LocalConfig, SlurmConfig, SyntheticConfig)}
"""Those of choices with keys that the others of their group lack; their YAML files name them in `defaults`."""


@cache
def register_schemas() -> None:
    """Give Hydra, once, the typed root, with the defaults of the groups, and the schemas of single choices."""
    store = ConfigStore.instance()
    store.store(name="schema", node=RootConfig)
    for name, cls in SCHEMAS.items():
        store.store(name=name, node=defaults_of(cls))
    # Hydra copies its store at every composition, and copies again what it loads from it: the first is left out
    copyreg.pickle(ConfigStore, _the_store)


def _the_store(store: ConfigStore) -> tuple[Any, tuple[()]]:
    """How `copy.deepcopy` makes a copy of Hydra's store: it is the one of this process again."""
    return ConfigStore.instance, ()


def content(path: Path) -> dict[str, Any]:
    """Every key of a choice with its value, unresolved; `path` is its YAML file, GROUP/NAME.yaml."""
    group = path.parent.name
    return _over(getattr(RootConfig(), group, None) or {}, path)


def _over(base: dict[str, Any], path: Path) -> dict[str, Any]:
    node: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False) or {}
    for entry in node.pop("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            schema = SCHEMAS.get(entry.removeprefix("/").partition("@")[0])
            beside = path.parent / f"{entry}.yaml"  # in an outside folder, or ours
            file = beside if beside.is_file() else config_dir() / path.parent.name / f"{entry}.yaml"
            base = base | defaults_of(schema) if schema else _over(base, file)
    inside = node.get(path.parent.name, node)  # a file with a global package has its keys under the group's name
    merged: Any = OmegaConf.to_container(OmegaConf.merge(base, inside), resolve=False)
    return merged
