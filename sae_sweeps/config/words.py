"""The words of a command as Hydra reads them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore

from sae_sweeps.config.data import ENDINGS
from sae_sweeps.config.paths import config_dir
from sae_sweeps.config.penalties import combined_node
from sae_sweeps.errors import ConfigError

LATE = ("penalty", "schedule", "architecture", "group_layer", "lr_schedule", "model", "data")
"""Groups whose choices differ in their keys, or bring along a choice of another that does."""
ARMS = "arms: they belong in a file of conf/experiment, as those of the studies do."


def rewrite(words: list[str]) -> list[str]:
    """The command's words as Hydra reads them. Raises ConfigError for words that would be ignored or misread."""
    out = []
    for word in words:
        key, equals, value = word.partition("=")
        if word == "--dry-run":
            out.append("dry_run=true")
        elif word.startswith(("+", "~")):
            raise ConfigError(f"{word}: keys cannot be added or removed; give key=value for a key that exists.")
        elif equals and not value and not key.startswith("-"):
            raise ConfigError(f"{key}=: the value is empty; give one, or leave the word out.")
        elif re.match(r"\[|\{|null$", value) and (choices(key) or key.startswith("hydra/")):
            raise ConfigError(f"{word}: {key} takes one choice{', of ' * bool(choices(key))}{', '.join(choices(key))}.")
        elif key == "layer" and re.fullmatch(r"[\d,\s-]+|range\(.*\)", value):
            out.append(f"layer.index={value}")
        elif key in ("model", "data") and equals:
            out.append(f"{key}={','.join(_choice(key, part.strip()) for part in value.split(','))}")
        elif key == "penalty" and "+" in value:
            out.append(f"{key}={','.join(_combination(part.strip()) for part in value.split(','))}")
        elif re.fullmatch(r"penalty\.\w+\.schedule", key):
            out.append(f"schedule@{word}")
        else:
            out.append(word)
    out = wait_for_the_choice(out)
    refuse_keys_of_arms(out)
    # Hydra's parser wants its flags before the first key
    return sorted(out, key=lambda word: word not in ("-m", "--multirun"))


def refuse_keys_of_arms(words: list[str]) -> None:
    """Raise ConfigError for a key of the penalty or its schedule beside an experiment whose arms choose them."""
    given = dict(word.partition("=")[::2] for word in words)
    path = config_dir() / "experiment" / f"{given.get('experiment')}.yaml"
    if not path.exists() or "\narms:" not in path.read_text():
        return
    for key, value in given.items():
        if key.startswith(("penalty.", "schedule.")):
            raise ConfigError(
                f"{key}={value}: the arms of experiment={given['experiment']} choose their own penalties; change it in "
                f"conf/experiment/{path.name}, or give an arm's words without the experiment."
            )


def wait_for_the_choice(words: list[str]) -> list[str]:
    """A key of a group beside a sweep over groups becomes a sweep of one: Hydra puts plain words into the config before
    a choice is made, where the group may not have the key yet."""
    swept = [key for key, _, value in (word.partition("=") for word in words) if "." not in key and "," in value]
    if not {"-m", "--multirun"} & set(words) or not set(swept) & set(LATE):
        return words
    out = []
    for word in words:
        key, equals, value = word.partition("=")
        late = equals and key.partition(".")[0] in LATE and "." in key
        several = value.startswith(("choice(", "range(", "glob(")) or ("," in value and value[0] not in "[{'\"")
        out.append(f"{key}=choice({value})" if late and not several else word)
    return out


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))


def _choice(group: str, value: str) -> str:
    """A choice of the group as it is; a path as a choice made for it, named after the file or folder."""
    path = Path(value).expanduser()
    if value in choices(group) or not (
        path.exists() or "/" in value or value.startswith((".", "~")) or path.suffix in ENDINGS
    ):
        return value
    base = _base_of(group, path, value)
    name = re.sub(r"[^\w-]+", "_", path.resolve().name) or base
    while name in choices(group) or _taken.setdefault((group, name), path.resolve()) != path.resolve():
        name += "_"  # another folder of the same name, or one named like a choice
    node: dict[str, Any] = {"defaults": [base, "_self_"], "name": name, "path": str(path.absolute())}
    ConfigStore.instance().store(group=group, name=name, node=node)
    return name


_taken: dict[tuple[str, str], Path] = {}


def _combination(value: str) -> str:
    """`a+b` as a choice of the group penalty, made for it; anything else as it is."""
    if "+" in value:
        ConfigStore.instance().store(
            group="penalty", name=value, node=combined_node(value, config_dir()), package="_global_"
        )
    return value


def _base_of(group: str, path: Path, value: str) -> str:
    if not path.exists():
        named = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", value)
        hub = f", or {group}=hub {group}.path={value} for a name on the Hugging Face hub" if named else ""
        raise ConfigError(
            f"{group}={value}: no such file or folder; give one that exists, one of {', '.join(choices(group))}{hub}."
        )
    if group == "model":
        return "local"
    if path.is_file():
        if path.suffix not in ENDINGS:
            raise ConfigError(
                f"data={value}: the ending tells the format; use {', '.join(ENDINGS)}, or data=text data.path={value}."
            )
        return ENDINGS[path.suffix]
    kinds = {ENDINGS[file.suffix] for file in path.rglob("*") if file.suffix in ENDINGS}
    if len(kinds) != 1:
        what = "no text" if not kinds else f"several formats ({', '.join(sorted(kinds))})"
        raise ConfigError(
            f"data={value}: the folder holds {what}; name one with data=text, jsonl or parquet and data.path={value}."
        )
    return kinds.pop()
