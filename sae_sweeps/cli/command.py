"""The command line around Hydra: words that Hydra cannot read are rewritten before, its errors translated after.

`layer=12` sets a number, `model=PATH` and `data=PATH` become choices, `--dry-run` and `--debug` are flags. Every
mistake ends in one sentence on stderr and status 2; `--debug` or HYDRA_FULL_ERROR=1 shows the traceback.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from typing import NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sae_sweeps.config.mistakes import sentence
from sae_sweeps.config.paths import config_dir
from sae_sweeps.config.schema import RootConfig
from sae_sweeps.config.words import rewrite
from sae_sweeps.errors import UserError


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
    from sae_sweeps.cli import outcome

    register()
    sys.argv[1:] = rewrite([word for word in words if word != "--debug"])
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors through; they are told in one sentence here
    outcome.status, outcome.error = 0, None
    hydra.main(config_path=str(config_dir()), config_name="config", version_base="1.3")(task)()
    if outcome.error is not None:
        raise outcome.error
    return outcome.status


def task(cfg: DictConfig) -> None:
    """A single run is a sweep of one."""
    from sae_sweeps.cli import outcome
    from sae_sweeps.cli.launch import launch
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
