"""Where the choices of a group live: the file `penalties/ortho.py` is `penalty=ortho`.

A component's file holds its config dataclass and its class side by side, as `CONFIG` and `COMPONENT`; nothing else
has to name it. Imported when a config is resolved, never before: the files import torch.
"""

from importlib import import_module
from types import ModuleType

PACKAGES = {"architecture": "sae_sweeps.architectures", "penalty": "sae_sweeps.penalties"}
SINGLE = {"group_layer": "sae_sweeps.architectures.group_layer"}
"""Groups whose choices differ in values alone."""


def component(group: str, name: str) -> ModuleType:
    """The module of a choice, with `CONFIG` (its dataclass) and `COMPONENT` (its class)."""
    return import_module(SINGLE.get(group) or f"{PACKAGES[group]}.{name}")


def evaluation_module(name: str) -> ModuleType:
    """The module of one of this project's evaluations, with `EVALUATION`."""
    return import_module(f"sae_sweeps.evaluation.{name}")
