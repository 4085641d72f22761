"""What every command does with mistakes. Imports little: `--help` needs none of Hydra."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from sae_sweeps.errors import UserError
from sae_sweeps.storage.files import about_path
from sae_sweeps.storage.printing import replace_unprintable
from sae_sweeps.storage.secrets import without_secrets


def guarded(command: Callable[[], int], debug: bool) -> int:
    """A command's exit status; a mistake is printed in one sentence, with `debug` or HYDRA_FULL_ERROR=1 raised."""
    replace_unprintable()
    debug = debug or os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        return command()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        from sae_sweeps.config.mistakes import sentence
        from sae_sweeps.config.plugins import blamed, suspected

        if isinstance(error, UserError) or type(error).__module__.partition(".")[0] in ("hydra", "omegaconf", "yaml"):
            message = sentence(error)
        elif (outside := blamed(error)) is None and isinstance(error, OSError) and (about := about_path(error)):
            message = about
        elif (outside := outside or suspected(error)) is not None:
            message = f"{outside}; --debug shows the traceback."
        else:
            raise
        print(f"error: {without_secrets(message)}", file=sys.stderr)
        return 2


def let_threads_sleep() -> None:
    """Set, before torch is loaded, that OpenMP's threads sleep while they wait: spinning, they would keep the kernels'
    own threads from the cores. A step takes a quarter longer then, and 2 to 15 times as long on a busy machine.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
