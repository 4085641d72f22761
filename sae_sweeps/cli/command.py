"""`launch.py` and `sae-sweeps launch`: words in, runs out, mistakes in one sentence.

`layer=12` sets a number, `model=PATH` and `data=PATH` become choices, `--dry-run`, `--from RUN_DIR` and `--debug` are
flags. Every mistake ends in one sentence on stderr and status 2; `--debug` or HYDRA_FULL_ERROR=1 shows the traceback.
"""

from __future__ import annotations

import os
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from sae_sweeps.cli.compose import MULTIRUN, AnotherSweeper, compose_points, register
from sae_sweeps.cli.mistakes import guarded, let_threads_sleep
from sae_sweeps.config.local import Local, read_local
from sae_sweeps.config.paths import config_dir
from sae_sweeps.config.plugins import search_path_words, set_search_path
from sae_sweeps.config.words import rewrite
from sae_sweeps.errors import ConfigError
from sae_sweeps.storage.files import one_line
from sae_sweeps.storage.printing import print_line

HELPING = {"-h", "--help", "--hydra-help", "-sc", "--shell-completion"}
"""Flags that work whatever is in conf/local.yaml."""


def main(words: list[str] | None = None) -> int:
    """Run the command of the words, by default those of sys.argv.

    Returns its exit status: 0, 1 (a run failed or diverged), 2 (a mistake) or 130 (interrupted).
    """
    words = [word for word in (sys.argv[1:] if words is None else words) if word != "--"]
    let_threads_sleep()
    return guarded(lambda: run_command([word for word in words if word != "--debug"]), "--debug" in words)


def run_command(words: list[str]) -> int:
    """Compose the points of the command and launch them. Returns the exit status."""
    if any(word.partition("=")[0] == "--from" for word in words):
        from sae_sweeps.cli.repeat import repeat

        set_search_path(words)
        return repeat(words, read_local(words))
    flags = [word for word in words if word.startswith("-") and word not in (*MULTIRUN, "--dry-run")]
    set_search_path(words)
    local = None if HELPING & set(flags) else read_local(words)
    if not flags:
        try:
            points = compose_points(words, single=True, local=local)
        except AnotherSweeper:
            points = None
        if local:
            print_line(local.sentence())
        if points is not None:
            from sae_sweeps.cli.launch import launch

            return launch(points).status
    return run_hydra(words, local)


def run_hydra(words: list[str], local: Local | None) -> int:
    """Hand the command to Hydra itself: flags such as --help and --cfg, and sweepers that need the results of points.

    The launcher of hydra_plugins/ launches the points and keeps the exit status.
    """
    from sae_sweeps.cli.hydra_sweeper import failures, statuses

    statuses.clear()  # of an earlier command of this process
    failures.clear()
    register()
    before, os.environ["HYDRA_FULL_ERROR"] = os.environ.get("HYDRA_FULL_ERROR"), "1"  # errors are ours to print
    # Hydra's parser takes its flags, each with its value, before the first key only
    set_search_path(words)
    rewritten = rewrite(words)
    if local:
        local.make_choice()
    given = sorted([*rewritten, *search_path_words()], key=lambda word: "=" in word and not word.startswith("-"))
    argv, sys.argv = sys.argv, [sys.argv[0], *given]
    try:
        hydra.main(config_path=str(config_dir()), config_name="config", version_base="1.3")(_single)()
    except ValueError as error:
        if not failures:  # of flags that do not go together
            raise ConfigError(f"{' '.join(words)}: {one_line(error)}.") from error
    finally:
        sys.argv = argv
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
    if failures:
        raise failures[0]
    return max(statuses, default=0)


def _single(cfg: DictConfig) -> None:
    """A single run that Hydra itself started, as with `--config-name`."""
    from sae_sweeps.cli.hydra_sweeper import failures, statuses
    from sae_sweeps.cli.launch import launch
    from sae_sweeps.sweeps.plan import Point

    try:
        statuses.append(launch([Point(cfg, list(HydraConfig.get().overrides.task))]).status)
    except Exception as error:
        failures.append(error)  # Hydra prints lines of its own about one that passes through it
