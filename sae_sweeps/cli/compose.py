"""Composes the points (configs) of a command with Hydra; `config/run.py` checks their values later."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString, Sweep
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from sae_sweeps.config.content import register_schemas
from sae_sweeps.config.local import Local
from sae_sweeps.config.paths import config_dir
from sae_sweeps.config.plugins import choices, made_folder, search_path_words, set_search_path
from sae_sweeps.config.words import PATHS, rewrite
from sae_sweeps.errors import ConfigError
from sae_sweeps.sweeps.plan import Point
from sae_sweeps.sweeps.variants import points_of

MULTIRUN = ("-m", "--multirun")
MOST_POINTS = 100_000
"""Runs of one command: planning more would take hours."""


class AnotherSweeper(Exception):
    """The command's points are drawn by a sweeper, such as Optuna, that needs their results."""


class ReadOnce(ConfigRepository):
    """Hydra's configs, each read once for all points of a command. Points share no node: a merge changes them."""

    def __init__(self, search_path: ConfigSearchPath):
        self._read: dict[tuple[str, ...], ConfigResult | None] = {}
        super().__init__(search_path)

    def __deepcopy__(self, memo: object) -> ReadOnce:
        return copy.copy(self)  # Hydra gives its copy other sources at most; what is read is shared

    def load_config(self, config_path: str) -> ConfigResult | None:
        key = config_path, *(source.path for source in self.sources)
        if key not in self._read:
            self._read[key] = self._of_file(config_path) or super().load_config(config_path)
        read = self._read[key]
        return read and replace(read, config=copy.deepcopy(read.config))

    def _of_file(self, config_path: str) -> ConfigResult | None:
        """What an earlier command of this process read from a file that has not changed since."""
        source = self._find_object_source(config_path=config_path, object_type=ObjectType.CONFIG)
        if source is None or source.scheme() != "file":
            return None
        file = Path(source.path, source._normalize_file_name(config_path))
        stat = file.stat()
        key = source.provider, str(file), stat.st_mtime_ns, stat.st_size, stat.st_ino
        if key not in _files:
            _files[key] = super().load_config(config_path)
        return _files[key]


_files: dict[tuple[str | int, ...], ConfigResult | None] = {}


def register() -> None:
    """Give Hydra the typed root and the scratch folder that its sweepers write to."""
    register_schemas()
    OmegaConf.register_new_resolver("scratch", lambda: str(made_folder() / "sweeper"), replace=True)


def compose_points(words: list[str], single: bool = False, local: Local | None = None) -> list[Point]:
    """Every point of the product that the words of a command describe.

    Args:
        local: the user's conf/local.yaml, which launches alone read.
        single: several values are a mistake unless the words, or the config that they choose, make a sweep.

    Raises ConfigError and Hydra's errors for a mistake, AnotherSweeper where the points come from elsewhere.
    """
    register()
    set_search_path(words)
    given = rewrite(words)
    if local:
        local.make_choice()
    overrides = [word for word in given if word not in MULTIRUN]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        assert isinstance(loader, ConfigLoaderImpl)
        loader.repository = ReadOnce(loader.config_search_path)
        parsed = _parsed(overrides)
        check_sweeps(parsed)
        first = next(iter(_product(parsed)))
        whole = compose("config", overrides=[*first, *search_path_words()], return_hydra_config=True)
        hydra = whole.hydra
        if hydra.sweeper._target_ != f"{BasicSweeper.__module__}.{BasicSweeper.__name__}":
            raise AnotherSweeper
        if single and set(MULTIRUN).isdisjoint(given) and hydra.mode != RunMode.MULTIRUN:
            refuse_several(parsed)
        named = [override.key_or_group for override in parsed]
        grid = [f"{key}={value}" for key, value in (hydra.sweeper.params or {}).items() if key not in named]
        with open_dict(whole):
            del whole["hydra"]

        made: dict[tuple[str, ...], DictConfig] = {}
        is_value = cache(_is_value)

        def composed(words: list[str]) -> DictConfig:
            """As `compose` does it, but the choices of groups, which take nearly all the time, once for many values."""
            if words == first:
                return whole
            chosen = tuple(word for word in words if not is_value(word))
            if chosen not in made:
                made[chosen] = compose("config", overrides=[*chosen, *search_path_words()])
            cfg = copy.deepcopy(made[chosen])
            ConfigLoaderImpl._apply_overrides_to_config(_parsed([word for word in words if is_value(word)]), cfg)
            return cfg

        points = [point for chosen in _product(_parsed([*grid, *overrides])) for point in points_of(chosen, composed)]
    for point in points:
        try:
            point.cfg.outputs = str(Path(point.cfg.outputs).expanduser())
        except RuntimeError:
            raise ConfigError(f"outputs={point.cfg.outputs}: this home folder is not known; give its path.") from None
    return points


def _parsed(overrides: list[str]) -> list[Override]:
    return OverridesParser.create(config_loader=GlobalHydra.instance().config_loader()).parse_overrides(overrides)


def _is_value(word: str) -> bool:
    """Whether a word gives a key its value, and does not choose what a group is."""
    key = word.partition("=")[0]
    return not (key.startswith("hydra") or "@" in key or "/" in key or choices(key))


def _product(parsed: list[Override]) -> list[list[str]]:
    """The overrides of each point."""
    (points,) = BasicSweeper.split_arguments(parsed, None)
    return [list(point) for point in points]


def check_sweeps(parsed: list[Override]) -> None:
    """Raise ConfigError for a sweep without values, of too many, or of values that are none."""
    n_points, own_sweeper = 1, any(override.key_or_group == "hydra/sweeper" for override in parsed)
    for override in parsed:
        word, key = override.input_line, override.key_or_group
        if not override.is_sweep_override():
            continue
        if not override.is_discrete_sweep():
            if not own_sweeper:
                raise ConfigError(
                    f"{word}: names no values; write them, or add hydra/sweeper=optuna, which draws some."
                )
            continue
        try:
            values = list(islice(override.sweep_iterator(), MOST_POINTS + 1))
        except ValueError as error:
            raise ConfigError(f"{word}: {error}; write range(START,STOP,STEP).") from None
        n_points *= len(values)
        if not values:
            raise ConfigError(f"{word}: gives no value; write some, as in {key}=A,B.")
        if n_points > MOST_POINTS:
            raise ConfigError(f"{word}: with it the command has more than {MOST_POINTS:,} runs; give fewer values.")
        if any(isinstance(value, Sweep) for value in values):
            raise ConfigError(f"{word}: holds a sweep inside a sweep; write each value once.")
        if choices(key) and not all(isinstance(value, str | QuotedString) for value in values):
            raise ConfigError(f"{word}: {key} takes names; give some of {', '.join(choices(key))}.")


def refuse_several(parsed: list[Override]) -> None:
    for override in parsed:
        if override.is_sweep_override():
            key = override.key_or_group
            comma = f", or quote a name that holds a comma, as {key}=\"'a,b.txt'\"" if key in PATHS else ""
            raise ConfigError(f"{override.input_line}: several values make a sweep; add -m{comma}.")
