"""Errors of Hydra and OmegaConf as one sentence that names the key, the value and the mend."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException
from yaml import YAMLError

from sae_sweeps.config.aliases import ALIASES
from sae_sweeps.config.content import content
from sae_sweeps.config.paths import config_dir
from sae_sweeps.config.plugins import choice_file, choices, folders
from sae_sweeps.config.schema import RootConfig
from sae_sweeps.errors import UserError, did_you_mean, who_has

OF_EXPERIMENTS = ("variants", "arms", "study", "shared")
"""Keys that files of conf/experiment give, and no command."""


def sentence(error: Exception) -> str:
    """An error of Hydra, OmegaConf or ours as one sentence that names the key, the value and the mend."""
    if isinstance(error, UserError):
        return " ".join(str(error).splitlines())  # a value may hold several
    text = f"{error}\n{error.__cause__ or ''}"
    if isinstance(error, MissingConfigException):
        found = re.search(r"Could not (?:find|load) '?([\w/.-]+)/([^/'\n]+)'?", text)
        if found:
            group, value = found[1], found[2].removesuffix(".yaml")
            if (group, value) == ("hydra/sweeper", "optuna"):
                return "hydra/sweeper=optuna: Optuna is not installed; pip install 'sae-sweeps[optuna]'."
            mend = (
                _suggest(value, choices(group), "one of")
                if choices(group)
                else "--info searchpath lists where Hydra looks."
            )
            return f"{group}={value}: no such choice; {mend}"
    if found := re.search(r"^In 'experiment/([^']+)':.*?raised while composing", text):
        if wrong := in_experiment(text):
            return f"experiment={found[1]}: {wrong}"
    found = re.search(r"full_key: ((?:variants|arms|study|shared)\.\S.*?)\s*(?:\n|$)", text)
    if found and "nterpolation" in text:
        return f"{found[1]}: {text.splitlines()[0]}; mend the file of conf/experiment that has it."
    if isinstance(error, InterpolationResolutionError):
        what = re.sub(r"^Recursive interpolation detected.*", "the interpolation leads back to itself", str(error))
        where = f"{error.full_key}: " if error.full_key else ""
        mend = "write a value, or ${KEY} with a key of the config that has one."
        return f"{where}{what.splitlines()[0].rstrip('.')}; {mend}"
    if found := re.search(r"Could not override '([^']+)'", text):
        return unknown_key(found[1].split("@")[0], text)
    if found := re.search(r"Value '(.*)' (?:\(?of type '\w+'\)? could not be converted to|is not a valid) (\w+)", text):
        key = re.search(r"full_key: (\S+)", text)
        kind = {"Integer": "a whole number", "Float": "a number", "bool": "true or false"}.get(found[2], found[2])
        return f"{key[1] if key else 'a key'}={found[1]}: must be {kind}."
    if found := re.search(
        r"override (\w[\w.]*)=(.+?)\s+Invalid value assigned: \w+ is not a ListConfig", text, re.DOTALL
    ):
        value = " ".join(found[2].split())
        return f"{found[1]}={value}: must be a list, as in {found[1]}=[{value}]."
    if found := re.search(rf"Error merging override ({'|'.join(OF_EXPERIMENTS)})=", text):
        return of_experiments(found[1])
    if found := re.search(r"Error merging override (\w+)=(.*?)\n(?:Value|field|Cannot)", text, re.DOTALL):
        from sae_sweeps.config.typed import expected

        return f"{found[1]}={' '.join(found[2].split())}: {expected(RootConfig, found[1])}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read as key=value; quote values that hold blanks or special characters."
    if found := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '(.*?)'", text, re.DOTALL):
        return f"{found[1]}: several values make a sweep; add -m."
    return " ".join(text.split())


def in_experiment(text: str) -> str | None:
    """What is wrong with a file of conf/experiment that Hydra refuses to merge, and the mend; None for other errors."""
    if "Key 'experiment' not in" in text:
        return "its file lacks `# @package _global_`; write that as the first line."
    if found := re.search(rf"Cannot assign \w+ to Dict.*?full_key: ({'|'.join(OF_EXPERIMENTS)})\b", text, re.DOTALL):
        return f"its file's {found[1]} must be indented lines of NAME: WORDS."
    if "Cannot merge DictConfig with ListConfig" in text:
        return "its file has a list where indented lines of NAME: WORDS belong, as below `variants:`."
    return None


def unknown_key(key: str, text: str) -> str:
    keys = all_keys()
    if key in OF_EXPERIMENTS:
        return of_experiments(key)
    if key in keys:  # another choice of the group has it
        group, _, leaf = key.partition(".")
        files = {name: choice_file(group, name) for name in choices(group)}
        readers = [f"{group}={name}" for name, path in files.items() if path and leaf in _keys_of(path)]
        return f"{key}: the chosen {group} has no such key{who_has(readers)}."
    return f"{key}: no such key; {_suggest(key, [*keys, *ALIASES], '')}"


def of_experiments(key: str) -> str:
    return f"{key}: they belong in a file of conf/experiment, as those of the studies do."


def _keys_of(path: Path) -> list[str]:
    """Keys of one choice of a group, dotted; none of an outside file that does not read back."""
    try:
        return _dotted(content(path))
    except (OSError, ValueError, TypeError, AttributeError, YAMLError, OmegaConfBaseException):
        return []


def _dotted(node: dict[str, Any]) -> list[str]:
    """Keys of a tree of dicts, a key of a key behind a dot."""
    parts = [(key, _dotted(value) if isinstance(value, dict) else []) for key, value in node.items()]
    return [name for key, below in parts for name in (key, *(f"{key}.{leaf}" for leaf in below))]


def all_keys() -> list[str]:
    """Every key that some choice of some group has, dotted, and the keys at the top level."""
    keys = {f.name for f in fields(RootConfig)}
    places = [path for folder in (config_dir(), *folders()) for path in folder.glob("*/*.yaml")]
    groups = [path for path in places if path.parent.name != "experiment"]
    return sorted(keys | {f"{path.parent.name}.{key}" for path in groups for key in _keys_of(path)})


def _suggest(word: str, known: list[str], otherwise: str) -> str:
    others = f"{otherwise} {', '.join(known)}." if otherwise else "`python launch.py --help` lists the keys."
    same_end = (key for key in known if key.rpartition(".")[2] == word.rpartition(".")[2])  # `tau` for `penalty.tau`
    found = next((f"did you mean {key}?" for key in same_end), "")
    near = did_you_mean(word, known, others)
    return near if "." in word else found or near
