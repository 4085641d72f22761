"""The command line around Hydra: words that Hydra cannot read are rewritten before, its errors translated after.

`layer=12` sets a number, `model=PATH` and `data=PATH` become choices, `--dry-run` and `--debug` are flags. Every
mistake ends in one sentence on stderr and status 2; `--debug` or HYDRA_FULL_ERROR=1 shows the traceback.
"""

from __future__ import annotations

import atexit
import difflib
import os
import re
import shutil
import sys
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sae_sweeps.config.penalties import combined_node
from sae_sweeps.config.schema import RootConfig
from sae_sweeps.errors import ConfigError, UserError, who_has

CONF = Path(__file__).parent.parent / "conf"
LATE = ("penalty", "schedule", "architecture", "group_layer", "lr_schedule", "model", "data")
"""Groups whose choices differ in their keys, or bring along a choice of another that does."""
ARMS = "arms: they belong in a file of conf/experiment, as those of the studies do."
ENDINGS = {".txt": "text", ".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet"}


def main() -> NoReturn:
    """Run the command in sys.argv; exits with 0, 1 (a run failed or diverged) or 2 (a mistake)."""
    debug = "--debug" in sys.argv or os.environ.get("HYDRA_FULL_ERROR") == "1"
    let_threads_sleep()
    try:
        status = run_command(sys.argv[1:])
    except KeyboardInterrupt:
        status = 130
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if debug:
            raise
        status = complain(sentence(error))
    sys.exit(status)


def let_threads_sleep() -> None:
    """Before torch is loaded, for training: OpenMP's threads would spin while they wait, on the cores that the kernels'
    own threads are to run on next. A step takes a quarter longer then, and 2 to 15 times as long on a busy machine.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def complain(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def run_command(words: list[str]) -> int:
    """Compose with Hydra and hand over to the launcher. Returns the exit status."""
    from sae_sweeps.sweeps import outcome

    register()
    sys.argv[1:] = rewrite([word for word in words if word != "--debug"])
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors through; they are told in one sentence here
    outcome.status, outcome.error = 0, None
    hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(task)()
    if outcome.error is not None:
        raise outcome.error
    return outcome.status


def task(cfg: DictConfig) -> None:
    """A single run is a sweep of one."""
    from sae_sweeps.sweeps import outcome
    from sae_sweeps.sweeps.launch import launch
    from sae_sweeps.sweeps.plan import Point

    try:
        launch([Point(cfg, list(HydraConfig.get().overrides.task))])
    except UserError as error:  # past Hydra, which would print a line of its own
        outcome.error = error


def register() -> None:
    """Tell Hydra of the typed root and of the scratch folder into which its sweeper drops a file."""
    ConfigStore.instance().store(name="schema", node=RootConfig)
    OmegaConf.register_new_resolver("scratch", _scratch, replace=True, use_cache=True)


def _scratch() -> str:
    folder = tempfile.mkdtemp(prefix="sae_sweeps-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


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
    path = CONF / "experiment" / f"{given.get('experiment')}.yaml"
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
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


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
        ConfigStore.instance().store(group="penalty", name=value, node=combined_node(value, CONF), package="_global_")
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
            mend = _suggest(value, choices(group), "one of") if choices(group) else "--info searchpath tells where."
            return f"{group}={value}: no such choice; {mend}"
    if found := re.search(r"Could not override '([^']+)'", text):
        return unknown_key(found[1].split("@")[0], text)
    if found := re.search(r"Value '(.*)' (?:\(?of type '\w+'\)? could not be converted to|is not a valid) (\w+)", text):
        key = re.search(r"full_key: (\S+)", text)
        kind = {"Integer": "a whole number", "Float": "a number", "bool": "true or false"}.get(found[2], found[2])
        return f"{key[1] if key else 'a key'}={found[1]}: must be {kind}."
    if found := re.search(r"override (\S+)=(\S+)\s+Invalid value assigned: \w+ is not a ListConfig", text):
        return f"{found[1]}={found[2]}: must be a list, as in {found[1]}=[{found[2]}]."
    if "Error merging override arms=" in text:
        return ARMS
    if found := re.search(r"Error merging override (\w+)=(.*?)\n(?:Value|field|Cannot)", text, re.DOTALL):
        from sae_sweeps.config.run import expected

        return f"{found[1]}={' '.join(found[2].split())}: {expected(RootConfig, found[1])}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read as key=value; quote values that hold blanks or special characters."
    if found := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '(.*?)'", text, re.DOTALL):
        return f"{found[1]}: several values make a sweep; add -m."
    return " ".join(text.split())


def unknown_key(key: str, text: str) -> str:
    keys = all_keys()
    if key == "arms":
        return ARMS
    if key in keys:  # another choice of the group has it
        group, _, leaf = key.partition(".")
        readers = [f"{group}={name}" for name in choices(group) if leaf in _keys_of(CONF / group / f"{name}.yaml")]
        return f"{key}: the chosen {group} has no such key{who_has(readers)}."
    return f"{key}: no such key; {_suggest(key, keys, '')}"


def _keys_of(path: Path) -> list[str]:
    """Keys of one choice of a group; a file with a global package holds them under the group's name."""
    node: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False) or {}
    return [key for key in _dotted(node.get(path.parent.name, node)) if key != "defaults"]


def _dotted(node: dict[str, Any]) -> list[str]:
    """Keys of a tree of dicts, a key of a key behind a dot."""
    parts = [(key, _dotted(value) if isinstance(value, dict) else []) for key, value in node.items()]
    return [name for key, below in parts for name in (key, *(f"{key}.{leaf}" for leaf in below))]


def all_keys() -> list[str]:
    """Every key that some choice of some group has, dotted, and the keys at the top level."""
    keys = {f.name for f in fields(RootConfig)}
    groups = [path for path in CONF.glob("*/*.yaml") if path.parent.name != "experiment"]
    return sorted(keys | {f"{path.parent.name}.{key}" for path in groups for key in _keys_of(path)})


def _suggest(word: str, known: list[str], otherwise: str) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not close:  # `tau` for `penalty.tau`
        close = [key for key in known if key.rpartition(".")[2] == word.rpartition(".")[2]][:1]
    if close:
        return f"did you mean {close[0]}?"
    return f"{otherwise} {', '.join(known)}." if otherwise else "`python launch.py --help` lists the keys."
