"""The words of a command as Hydra reads them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from sae_sweeps.config import plugins
from sae_sweeps.config.aliases import canonical_words
from sae_sweeps.config.data import COMPRESSED, ENDINGS, ending_of, kinds_at
from sae_sweeps.config.hooks import is_hook_name
from sae_sweeps.config.mistakes import OF_EXPERIMENTS, of_experiments
from sae_sweeps.config.paths import how_made
from sae_sweeps.config.penalties import combined_node
from sae_sweeps.config.typed import refuse_secret
from sae_sweeps.errors import ConfigError

LATE = ("penalty", "schedule", "architecture", "group_layer", "lr_schedule", "model", "data")
"""Groups whose choices differ in their keys, or bring along a choice of another that does."""

PATHS = ("model.path", "data.path", "data.forget", "data.retain", "outputs")
LAYERS = r"[\d,\s-]+|range\(.*\)"
NO_NAME = r"\s*([+-]?(\d[\d_]*\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?inf|nan|true|false)\s*"
"""What Hydra reads as a number or a truth value, where a group's choice is a name."""


def rewrite(words: list[str]) -> list[str]:
    """The command's words as Hydra reads them. Raises ConfigError for words that would be ignored or misread."""
    out = []
    for word in words:
        refuse_secret(word.partition("=")[0], word)
    for word in with_targets(canonical_words(words)):
        key, equals, value = word.partition("=")
        if word == "--dry-run":
            out.append("dry_run=true")
        elif key.rpartition(".")[2] in (plugins.FILE, plugins.DIGEST):
            raise ConfigError(f"{word}: is recorded by the launch; give {key.rpartition('.')[0]}.{plugins.TARGET}.")
        elif word.startswith(("+", "~")):
            raise ConfigError(f"{word}: keys cannot be added or removed; give key=value for a key that exists.")
        elif equals and not value and not key.startswith("-"):
            raise ConfigError(f"{key}=: the value is empty; give one, or leave the word out.")
        elif key == "layer" and re.fullmatch(LAYERS, value):
            out.append(f"layer.index={value}")
        elif _is_no_name(value) and (plugins.choices(key) or key.startswith("hydra/")):
            known = plugins.choices(key)
            choices = f", {'a whole number, a hook or one ' * (key == 'layer')}of {', '.join(known)}" if known else ""
            raise ConfigError(f"{word}: {key} takes one choice{choices}.")
        elif key == "local" and equals:
            raise ConfigError(
                f"{word}: no such key; conf/local.yaml is read without a word, SAE_SWEEPS_LOCAL=none ignores it."
            )
        elif key == "layer" and any(is_hook_name(part) for part in value.split(",")):
            out.append(f"layer.hook={value}")
        elif "${" in value and "${oc." not in value and (key in ("model", "data") or key in PATHS):
            raise ConfigError(
                f"{word}: configs read ${{...}} as the value of another key; give the file another name, or link to it."
            )
        elif key in (*plugins.GROUPS, "model") and equals:
            out.append(f"{key}={','.join(_choice(key, part) for part in _parts(value))}")
        elif key in OF_EXPERIMENTS:
            raise ConfigError(of_experiments(key))
        elif key == "only" and value[0] not in "'\"":  # titles have blanks and commas
            out.append(f"only={quoted(value)}")
        elif key == "hydra.searchpath":
            continue  # plugins.search_path_words gives it to Hydra, with the other folders that are searched
        elif re.fullmatch(r"(schedule)@[\w.]+|penalty\.\w+\.(schedule)", key):
            out.append(f"schedule@{key.removeprefix('schedule@')}={_choice('schedule', value)}")
        elif key in PATHS and "," in value and Path(value).expanduser().exists():
            out.append(f"{key}={quoted(value)}")
        elif value.startswith("~") or not (value.isascii() or value[0] in "'\"[{"):
            # Hydra's parser takes these letters in quotes alone
            parts = value.split(",") if "," in value and key != "description" else [value]
            out.append(f"{key}={','.join(quoted(part) for part in parts)}")
        else:
            out.append(word)
    out = wait_for_the_choice(out)
    refuse_keys_of_variants(out)
    # Hydra's parser takes its flags before the first key only
    return sorted(out, key=lambda word: word not in ("-m", "--multirun"))


def quoted(value: str) -> str:
    """A word's value as Hydra's parser reads any letters: in quotes, with a backslash before a quote."""
    return "'" + value.replace("\\", r"\\").replace("'", r"\'") + "'"


def _is_no_name(value: str) -> bool:
    parts = value.split(",")
    return bool(re.match(r"\[|\{|null$", value)) or any(re.fullmatch(NO_NAME, part, re.IGNORECASE) for part in parts)


def refuse_keys_of_variants(words: list[str]) -> None:
    """Raise ConfigError for a key of the penalty or its schedule beside an experiment whose variants choose them."""
    given = dict(word.partition("=")[::2] for word in words)
    path = plugins.choice_file("experiment", given.get("experiment", ""))
    if path is None or not re.search(r"^(variants|arms):", path.read_text(), re.MULTILINE):
        return
    for key, value in given.items():
        if key.startswith(("penalty.", "schedule.")):
            raise ConfigError(
                f"{key}={value}: the variants of experiment={given['experiment']} choose their own penalties; change "
                f"it in conf/experiment/{path.name}, or give a variant's words without the experiment."
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


def with_targets(words: list[str]) -> list[str]:
    """`GROUP=NAME GROUP._target_=FILE.CLASS` as a choice made for it; without GROUP=NAME it is named after FILE."""
    suffix = f".{plugins.TARGET}"
    targets = {key.removesuffix(suffix): value for key, _, value in map(_split, words) if key.endswith(suffix)}
    out = [word for word in words if not _split(word)[0].endswith(suffix)]
    for group, target in targets.items():
        if group not in plugins.GROUPS:
            raise ConfigError(f"{group}{suffix}={target}: takes a group, one of {', '.join(plugins.GROUPS)}.")
        given = [value for key, _, value in map(_split, out) if key == group]
        name = given[-1] if given else target.rpartition(".")[0].rpartition(".")[2] or target
        if not re.fullmatch(r"[\w-]+", name) or (plugins.config_dir() / group / f"{name}.yaml").is_file():
            raise ConfigError(f"{group}{suffix}={target}: goes with one name of your own, as in {group}=NAME.")
        made = plugins.target_node(group, name, target)
        plugins.make_choice(group, name, made, everywhere=group in made)
        out = [word for word in out if _split(word)[0] != group] + [f"{group}={name}"]
    return out


def _split(word: str) -> tuple[str, str, str]:
    return word.partition("=")


def _parts(value: str) -> list[str]:
    """The choices of a group that a word lists; one path may hold commas, and several are quoted then."""
    if Path(value).expanduser().is_file():
        return [value]
    found = re.findall(r"""(?:^|,)\s*(?:"([^"]*)"|'([^']*)'|([^,]*?))\s*(?=,|$)""", value)
    return [double or single or plain for double, single, plain in found]


def _choice(group: str, value: str) -> str:
    """A choice of the group as it is; one from outside, a path or a sum of penalties as a choice made for it."""
    if group == "penalty" and "+" in value:
        return _combination(value)
    path = Path(value).expanduser()
    if (group, value) in plugins.made:
        return value
    if group in plugins.GROUPS:
        if path.suffix == ".yaml" and path.is_file():
            plugins.refuse_hiding(path.resolve(), group)
            return _outside(group, path.resolve())
        if (outside := plugins.outside_choices(group).get(value)) is not None:
            plugins.refuse_hiding(outside)
            return _outside(group, outside)
        if group != "data" and ("/" in value or value.startswith(("~", "."))):
            raise ConfigError(
                f"{group}={value}: no such YAML file; give one that exists, or one of our choices' names."
            )
    if group not in ("model", "data") or value in plugins.choices(group):
        return value
    if not (path.exists() or "/" in value or value.startswith((".", "~")) or ending_of(path) in ENDINGS):
        return value
    base = _base_of(group, path, value)
    name = re.sub(r"[^\w-]+", "_", path.resolve().name, flags=re.ASCII) or base
    while name in plugins.choices(group) or _taken.setdefault((group, name), path.resolve()) != path.resolve():
        name += "_"  # another folder of the same name, or one named like a choice
    shown = name if path.resolve().name.isascii() else re.sub(r"[^\w.-]+", "_", path.resolve().name)
    node: dict[str, Any] = {"defaults": [base, "_self_"], "name": shown, "path": str(path.absolute())}
    ConfigStore.instance().store(group=group, name=name, node=node)
    return name


_taken: dict[tuple[str, str], Path] = {}


def _outside(group: str, path: Path) -> str:
    """An outside choice with code, in Hydra's store with all keys of its dataclass; YAML without code is Hydra's."""
    node = plugins.outside_node(group, path)
    if node is not None:
        plugins.make_choice(group, path.stem, node, everywhere=group in node)
    elif path.parent not in (folder / group for folder in plugins.folders()):
        raise ConfigError(
            f"{group}={path}: has no _target_ and lies in no folder that is searched; give its folder, as "
            f"hydra.searchpath=[file://{path.parent.parent}] {group}={path.stem}."
        )
    return path.stem


def _combination(value: str) -> str:
    """`a+b` as a choice of the group penalty, made for it."""
    known = [name for name in plugins.choices("penalty") if name != "none"]
    ConfigStore.instance().store(
        group="penalty", name=value, node=combined_node(value, known, _penalty_node), package="_global_"
    )
    return value


def _penalty_node(name: str) -> dict[str, Any]:
    """The YAML of a penalty, unresolved; an outside one with the defaults of its dataclass."""
    path = plugins.choice_file("penalty", name)
    assert path is not None
    ours: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    return plugins.outside_node("penalty", path) or ours


def _base_of(group: str, path: Path, value: str) -> str:
    if not path.exists():
        named = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", value)
        hub = f", or {group}=hub {group}.path={value} for a name on the Hugging Face hub" if named else ""
        raise ConfigError(
            f"{group}={value}: no such file or folder{how_made(value)}; give one that exists, one of "
            f"{', '.join(plugins.choices(group))}{hub}."
        )
    if group == "model":
        return "local"
    kinds = kinds_at(path)
    if path.is_file() and not kinds:
        raise ConfigError(
            f"data={value}: unknown file extension; use {', '.join(ENDINGS)} (text and JSON also with "
            f"{' or '.join(COMPRESSED)} behind it), or data=text data.path={value}."
        )
    if len(kinds) != 1:
        what = "no text" if not kinds else f"several formats ({', '.join(sorted(kinds))})"
        raise ConfigError(
            f"data={value}: the folder holds {what}; name one with data=text, jsonl or parquet and data.path={value}."
        )
    return kinds.pop()
