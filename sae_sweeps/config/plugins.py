"""Finds components: those of this project by their file's name, and those from outside by a `_target_`.

A component is a Python file and a YAML file. Here the file `penalties/ortho.py` is `penalty=ortho`. Outside, a folder
holds `penalty/NAME.yaml` with `_target_: FILE.CLASS` and beside it `FILE.py`; or `_target_` names a class of an
installed package. The file holds the dataclass of its keys as CONFIG and the class itself as COMPONENT.

Folders are searched in this order: `hydra.searchpath`, the working folder's `conf/`, those that installed packages name
under the entry point group `sae_sweeps`. The content of outside code is part of the run id, and code whose content has
changed since the launch is not run.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib
import importlib.util
import inspect
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, get_type_hints

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException

from sae_sweeps.config.keys import TOP_KEYS
from sae_sweeps.config.paths import config_dir
from sae_sweeps.errors import ConfigError
from sae_sweeps.schedules import LR_SCHEDULES, SCHEDULES, Schedule

PACKAGES = {"architecture": "sae_sweeps.architectures", "penalty": "sae_sweeps.penalties"}
SINGLE = {"group_layer": "sae_sweeps.architectures.group_layer"}
"""Groups whose choices have the same keys and differ in values."""
BASES = {
    "architecture": ("sae_sweeps.architectures.base.ArchitectureConfig", "sae_sweeps.architectures.base.SAE"),
    "penalty": ("sae_sweeps.penalties.base.PenaltyConfig", "sae_sweeps.penalties.base.Penalty"),
}
"""What the config and the class of an outside component extend."""
REQUIRED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "architecture": ((), ("activation", "activate", "encode")),
    "penalty": (("peak_weight",), ("forward",)),
}
"""Of the methods of the config and of the class, those of which an outside component defines one."""
CURVES: dict[str, dict[str, type]] = {"schedule": SCHEDULES, "lr_schedule": LR_SCHEDULES}

GROUPS = ("architecture", "penalty", "schedule", "lr_schedule", "data", "eval")
"""Groups whose choices may come from outside with code of their own."""
TARGET, FILE, DIGEST = "_target_", "_file_", "_digest_"
KEYS = (TARGET, FILE, DIGEST)
"""Keys of a group's config that name outside code: the class, its file, and the file's content."""
ENTRY_POINTS = "sae_sweeps"


class Component(NamedTuple):
    config: Any
    """Its config dataclass; None for a function."""
    component: Any
    """Its class, or the function that it is."""


@dataclass(frozen=True)
class Code:
    """Code from outside: what `_target_`, `_file_` and `_digest_` of a config name."""

    target: str
    """NAME.CLASS, of a file, or PACKAGE.MODULE.CLASS of an installed package."""
    file: str | None
    """None for an installed package."""
    digest: str

    def to_dict(self) -> dict[str, Any]:
        return {TARGET: self.target, FILE: self.file, DIGEST: self.digest}


def component(group: str, name: str, code: Code | None = None) -> Component:
    """The config dataclass and the class of a choice. Raises ConfigError for outside code that cannot be used."""
    if code is not None:
        return _outside(group, name, code)
    if group in CURVES:
        found = Component(CURVES[group].get(name), None)
    else:
        module = _ours(SINGLE.get(group) or f"{PACKAGES[group]}.{name}")
        found = Component(getattr(module, "CONFIG", None), getattr(module, "COMPONENT", None))
    if found.config is None:
        raise ConfigError(f"{group}.name={name}: is no choice of ours, and its config names no code; give _target_.")
    return found


def _ours(name: str) -> ModuleType | None:
    """A module of this project, or None where there is none of that name."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise  # a package that the module needs
        return None


def evaluation_module(name: str) -> ModuleType:
    """The module of one of this project's evaluations, with `EVALUATION`."""
    return importlib.import_module(f"sae_sweeps.evaluation.{name}")


def code_of(group: str, node: Any, choice: str | None = None) -> Code | None:
    """The outside code that a group's config names, or None. Raises ConfigError where it cannot be found.

    `choice` is the group's choice where `node` is a part of it, and so has no name.
    """
    if TARGET not in node:
        return None
    if node.get(DIGEST):
        return Code(str(node[TARGET]), node.get(FILE), str(node[DIGEST]))
    choice = choice or str(node.get("name"))
    path = outside_choices(group).get(choice)
    return find_code(f"{group}={choice}", str(node[TARGET]), path.parent if path else None)


# Folders --------------------------------------------------------------------------------------------------------------

_given: list[Path] = []
made: set[tuple[str, str]] = set()
"""Choices, by group and name, that were made for the words of this command."""


def set_search_path(words: Iterable[str]) -> None:
    """Take the folders that `hydra.searchpath=[...]` names in a command.

    Raises ConfigError for a folder that does not exist, and for a choice there that hides one of ours.
    """
    _given.clear()
    for group, name in made:
        (made_folder() / group / f"{name}.yaml").unlink(missing_ok=True)
    made.clear()
    for word in words:
        if word.startswith("hydra.searchpath="):
            for given in _entries(word):
                if given.startswith("pkg://"):
                    _given.append(_folder_of_package(given))
                    continue
                folder = Path(given.removeprefix("file://")).expanduser()
                if not folder.is_dir():
                    raise ConfigError(f"hydra.searchpath={given}: no such folder; give one that holds config groups.")
                _given.append(folder.resolve())
    for folder in _given:
        for path in sorted(folder.glob("*/*.yaml")):
            refuse_hiding(path)


def _entries(word: str) -> list[str]:
    """The folders of `hydra.searchpath=[...]`; quotes, which a shell may have removed, are needed for commas alone."""
    text = word.partition("=")[2].strip()
    try:
        value = OverridesParser.create().parse_override(word).value()
    except OverrideParseException:
        value = [entry.strip().strip("'\"") for entry in text.strip("[]").split(",")]
    entries = [str(entry) for entry in (value if isinstance(value, list) else [value])]
    return [entry for entry in entries if entry]


def _folder_of_package(given: str) -> Path:
    """The folder that `pkg://PACKAGE.FOLDER` names. Raises ConfigError where there is none."""
    found = _below_package(given.removeprefix("pkg://").replace("/", "."))
    if not found:
        raise ConfigError(f"hydra.searchpath={given}: no such folder of an installed package; install it, or mend it.")
    return found[0]


def _below_package(dotted: str) -> list[Path]:
    """Folders PACKAGE.FOLDER of an installed package, found without importing it."""
    package, *below = dotted.split(".")
    spec = _spec_of(package)
    places = (spec and spec.submodule_search_locations) or ()
    return [folder for place in places if (folder := Path(place, *below)).is_dir()]


def _spec_of(package: str) -> ModuleSpec | None:
    """Where an installed package is, found without importing it; None where there is none of that name."""
    try:
        return importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None


def folders() -> list[Path]:
    """Folders of outside config groups, the first to be searched first."""
    here = Path("conf").resolve()
    local = [here] if here.is_dir() and here != config_dir().resolve() else []
    return list(dict.fromkeys([*_given, *local, *_of_packages()]))


@cache
def _of_packages() -> tuple[Path, ...]:
    """Folders that installed packages name, as in `[project.entry-points.sae_sweeps] mine = "my_package.conf"`."""
    return tuple(folder for entry in entry_points(group=ENTRY_POINTS) for folder in _below_package(entry.value))


@cache
def made_folder() -> Path:
    """A folder of this process for the YAML of choices that are made for its commands; removed at its end."""
    folder = Path(tempfile.mkdtemp(prefix="sae_sweeps-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def make_choice(group: str, name: str, node: dict[str, Any], everywhere: bool = False) -> None:
    """Write a choice where Hydra finds it first; `everywhere`: its keys are those of the whole config."""
    made.add((group, name))
    file = made_folder() / group / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    package = "# @package _global_\n" if everywhere else ""
    file.write_text(package + yaml.safe_dump(node, sort_keys=False, allow_unicode=True), encoding="utf-8")


def search_path_words() -> list[str]:
    """The override by which Hydra searches the same folders, for choices made of outside code and for plain YAML."""
    places = folders()
    if made_folder.cache_info().currsize:
        places = [made_folder(), *places]
    urls = ",".join("'file://" + str(folder).replace("'", "\\'") + "'" for folder in places)
    return [f"hydra.searchpath=[{urls}]"] if urls else []


def choices(group: str) -> list[str]:
    """Names of the choices of a group: ours, and those of the folders that are searched."""
    return sorted({path.stem for path in (config_dir() / group).glob("*.yaml")} | set(outside_choices(group)))


def outside_choices(group: str) -> dict[str, Path]:
    """The YAML files of a group in the folders that are searched, by name."""
    found: dict[str, Path] = {}
    for folder in folders():
        for path in sorted((folder / group).glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def choice_file(group: str, name: str) -> Path | None:
    """The YAML file of a choice. Raises ConfigError for an outside file that hides one of ours."""
    outside, ours = outside_choices(group).get(name), config_dir() / group / f"{name}.yaml"
    if outside is not None:
        refuse_hiding(outside)
        return outside
    return ours if ours.is_file() else None


def refuse_hiding(path: Path, group: str | None = None) -> None:
    """Raise ConfigError for an outside YAML file with the name of one of ours."""
    group = group or path.parent.name
    ours = config_dir() / group / path.name
    if ours.is_file() and ours.resolve() != path.resolve():
        raise ConfigError(
            f"{group}={path.stem}: {path} has the name of {ours}; rename yours, so that every run "
            "records which one it used."
        )


# Code -----------------------------------------------------------------------------------------------------------------


def outside_node(group: str, path: Path) -> dict[str, Any] | None:
    """The config of an outside choice with code: its YAML over its dataclass's defaults; None for YAML without code.

    Raises ConfigError for a file that does not read back or code that cannot be loaded.
    """
    node = _read_yaml(path)
    if TARGET not in node:
        if group != "eval" and not {"name", "defaults", group} & set(node):
            raise ConfigError(
                f"{group}={path.stem}: {path} has no _target_ and no defaults; give _target_: FILE.CLASS."
            )
        return None
    place = path.parent
    if not (place / f"{str(node[TARGET]).rpartition('.')[0]}.py").is_file():
        place = path.resolve().parent  # that of a link's file
    return _whole_node(group, path.stem, node, find_code(f"{group}={path.stem}", str(node[TARGET]), place))


def _read_yaml(path: Path) -> dict[str, Any]:
    """An outside YAML file of keys. Raises ConfigError for one that does not read back or holds something else."""
    try:
        node: Any = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())[:200]}); mend it.") from None
    if not isinstance(node, dict):
        raise ConfigError(f"{path}: holds a {type(node).__name__}; a choice's file holds KEY: VALUE lines.")
    return node


def target_node(group: str, name: str, target: str) -> dict[str, Any]:
    """The config of a choice whose `_target_` the command gives, over the YAML of that name where there is one."""
    path = outside_choices(group).get(name)
    node = {} if path is None else _read_yaml(path)
    file = f"{target.rpartition('.')[0]}.py"
    beside = [path.parent] if path else [*(folder / group for folder in folders()), Path.cwd()]
    place = next((folder for folder in beside if (folder / file).is_file()), None)
    return _whole_node(group, name, node, find_code(f"{group}={name}", target, place))


def _whole_node(group: str, name: str, node: dict[str, Any], code: Code) -> dict[str, Any]:
    head = {"defaults": node.pop("defaults")} if "defaults" in node else {}
    named = {"name": name} | ({"kind": name} if group == "data" else {})
    return head | _defaults(component(group, name, code).config) | node | named | code.to_dict()


def _defaults(config: Any) -> dict[str, Any]:
    """The values of a dataclass's fields, `???` where the launch has to give one; keys at the top level come first."""
    out: dict[str, Any] = {}
    for field in fields(config) if is_dataclass(config) else ():
        if field.default is not MISSING:
            value: Any = field.default
        elif field.default_factory is not MISSING:
            value = field.default_factory()
        else:
            value = None if field.name in TOP_KEYS else "???"
        if field.name in TOP_KEYS:
            value = f"${{top:{field.name},{'null' if value is None else value}}}"
        out[field.name] = value
    return out


def find_code(choice: str, target: str, folder: Path | None) -> Code:
    """The code that a `_target_` names: a file beside the YAML, else a module of an installed package."""
    module, _, name = target.rpartition(".")
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", target):
        raise ConfigError(f"{choice}: _target_={target}: must be FILE.CLASS, or PACKAGE.MODULE.CLASS.")
    if folder is not None and (file := folder / f"{module}.py").is_file():
        return Code(target, str(file.resolve()), _digest_of_file(file))
    found = _spec_of(module.partition(".")[0])
    _refuse_code_of_others(choice, target)
    if found is None:
        beside = f"no {module}.py beside its YAML in {folder}" if folder else "no file of its own"
        raise ConfigError(f"{choice}: _target_={target}: there is {beside} and no installed package of that name.")
    return Code(target, None, _digest_of_package(found))


def _refuse_code_of_others(choice: str, target: str) -> None:
    """Raise ConfigError for a module of Python or of this project."""
    package = target.partition(".")[0]
    if package in sys.stdlib_module_names or package == __package__.partition(".")[0]:
        raise ConfigError(f"{choice}: _target_={target}: is not code of your own; give FILE.CLASS.")


def same_file(group: str, file: str, digest: str) -> Path | None:
    """A file of this name and content in the folders that are searched; None where there is none."""
    found = (folder / group / Path(file).name for folder in folders())
    return next((path.resolve() for path in found if path.is_file() and _digest_of_file(path) == digest), None)


def _digest_of_file(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror}); put it back, or launch again.") from None


def _digest_of_package(spec: Any) -> str:
    """Content of every Python file of an installed package."""
    roots = [Path(place) for place in spec.submodule_search_locations or ()]
    files = sorted(file for root in roots for file in root.rglob("*.py")) or [Path(spec.origin)]
    total = hashlib.sha256()
    for file in files:
        total.update(file.name.encode() + b"\0" + file.read_bytes())
    return total.hexdigest()[:16]


_loaded: dict[Code, ModuleType] = {}


def _outside(group: str, name: str, code: Code) -> Component:
    """Load outside code. Raises ConfigError where its content differs from the digest in the config."""
    choice = f"{group}={name}"
    module = _loaded.get(code)
    if module is None:
        module = _loaded[code] = _load(choice, code)
    attribute = code.target.rpartition(".")[2]
    found = getattr(module, attribute, None)
    if found is None:
        raise ConfigError(f"{choice}: {code.file or module.__name__} has no {attribute}; mend its _target_.")
    where = code.file or module.__name__
    if group in CURVES:
        if not is_dataclass(found) or not isinstance(found, type) or not issubclass(found, Schedule):
            raise ConfigError(f"{choice}: {attribute} in {where} must be a dataclass that extends schedules.Schedule.")
        _check_methods(choice, found, Schedule, ("value",), where)
        return Component(found, None)
    if group == "data" and not callable(getattr(found, "documents", found)):
        raise ConfigError(f"{choice}: {attribute} in {where} must be a function that gives documents, or a TextSource.")
    if group in ("data", "eval"):
        return Component(getattr(found, "config", None), found)
    config = getattr(found, "CONFIG", None) or getattr(module, "CONFIG", None)
    if group in PACKAGES:
        if not is_dataclass(config):
            raise ConfigError(f"{choice}: {where} has no CONFIG, the dataclass of its keys; add it.")
        for given, base, required in zip((config, found), BASES[group], REQUIRED[group], strict=True):
            extended = {f"{cls.__module__}.{cls.__name__}": cls for cls in getattr(given, "__mro__", ())}
            if base not in extended:
                name = getattr(given, "__name__", str(given))
                raise ConfigError(f"{choice}: {name} in {where} must be a class that extends {base}.")
            _check_methods(choice, given, extended[base], required, where)
    return Component(config, found)


def _check_methods(choice: str, cls: type, base: type, required: tuple[str, ...], where: str) -> None:
    """Raise ConfigError where a class defines none of the required methods, or one that cannot be called as its base's.

    A dataclass's annotations are resolved, too: they are the types of its keys.
    """
    if required and all(getattr(cls, name) is getattr(base, name) for name in required):
        raise ConfigError(f"{choice}: {cls.__name__} in {where} must define {' or '.join(required)}; add it.")
    if is_dataclass(cls):
        try:
            get_type_hints(cls)
        except Exception as error:  # whatever an annotation raises
            raise ConfigError(
                f"{choice}: a type of {cls.__name__} in {where} is not known ({error}); mend it."
            ) from None
        if reserved := [f.name for f in fields(cls) if f.name in KEYS]:
            raise ConfigError(f"{choice}: {cls.__name__} in {where} has the key {reserved[0]}; give it another name.")
    for name, method in vars(base).items():
        if not inspect.isfunction(method) or (name.startswith("__") and (is_dataclass(cls) or name != "__init__")):
            continue
        own = inspect.getattr_static(cls, name)
        if own is method or not inspect.isfunction(own):
            continue
        expected = [p.name for p in inspect.signature(method).parameters.values() if p.default is p.empty]
        try:
            inspect.signature(own).bind(*expected)
        except TypeError:
            raise ConfigError(
                f"{choice}: {cls.__name__}.{name} in {where} is called as {name}({', '.join(expected)}); give it these."
            ) from None


def _load(choice: str, code: Code) -> ModuleType:
    if code.file is None:
        _refuse_code_of_others(choice, code.target)
        package = code.target.partition(".")[0]
        spec = _spec_of(package)
        if spec is None:
            raise ConfigError(f"{choice}: the package {package} is not installed here; install it.")
        _same(choice, f"the package {package}", _digest_of_package(spec), code)
        return _imported(choice, lambda: importlib.import_module(code.target.rpartition(".")[0]))
    file = Path(code.file)
    if not file.is_file():
        raise ConfigError(f"{choice}: its file {file} is missing; put it back, or launch again from where it is now.")
    _same(choice, str(file), _digest_of_file(file), code)
    name = f"sae_sweeps_outside_{code.digest}_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    loader = spec.loader
    _imported(choice, lambda: loader.exec_module(module), file)
    return module


def _same(choice: str, what: str, digest: str, code: Code) -> None:
    if digest != code.digest:
        raise ConfigError(
            f"{choice}: {what} has changed since the run was launched, so it is not run; restore it, or launch again "
            "for a new run."
        )


def _imported(choice: str, load: Any, file: Path | None = None) -> Any:
    try:
        return load()
    except (Exception, SystemExit) as error:
        place = _place(error, file)
        raise ConfigError(
            f"{choice}: cannot be imported ({type(error).__name__}: {' '.join(str(error).split())}{place}); a "
            "component is one file, or a package that is installed."
        ) from error


def _place(error: BaseException, file: Path | None = None) -> str:
    """ ", FILE line N", of the innermost line of outside code that an error passed through."""
    files = {getattr(module, "__file__", None) for module in _loaded.values()} | {str(file)}
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    return f", {lines[-1].filename} line {lines[-1].lineno}" if lines else ""


def blamed(error: BaseException) -> str | None:
    """An error that outside code raised, in one sentence; None for an error of our own."""
    place = _place(error)
    if not place:
        return None
    text = " ".join(str(error).split())[:400]
    return f"the component in{place[1:]} raised {type(error).__name__}{': ' if text else ''}{text}"


def suspected(error: BaseException) -> str | None:
    """An error that our code raised on what outside code returned, in one sentence; None where none is loaded."""
    files = sorted({str(getattr(module, "__file__", module.__name__)) for module in _loaded.values()})
    if not files:
        return None
    text = " ".join(str(error).split())[:400]
    return (
        f"{type(error).__name__}: {text}, with outside code ({', '.join(files)}); its methods must return what "
        "those of their base class return"
    )
