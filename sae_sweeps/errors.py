"""Errors that a user can mend. Each message is one sentence: the key or file, the value, the mend."""

import difflib
import errno
import re
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in the command, the config or the data it names. Ends the command with status 2."""


class ConfigError(UserError):
    """A key has a value that cannot be meant."""


class NeedsRoles(ConfigError):
    """The run needs text to forget and text to retain, or texts in pairs, and its data has none."""


class DataError(UserError):
    """A file or data set that the config names is missing, empty or unreadable."""


class DamagedFile(UserError):
    """A file that this project wrote earlier no longer reads back as it was written."""


class NoNetwork(UserError):
    """Something had to be fetched by name and could not be."""


OUT_OF_MEMORY = "OutOfMemoryError"
"""Begins the error of a run that found no memory, on a GPU or not; `resume` starts it again."""
NO_MEMORY = re.compile(
    r"out[ _]?of[ _]?memory|status_alloc_failed|allocation_failed|memoryallocation|can(?:'t|not) allocate memory"
    r"|not enough memory|bad_alloc|unable to allocate",
    re.IGNORECASE,
)
"""How torch, CUDA and its libraries, Triton, safetensors, numpy and the system put it. A kernel that needs more shared
memory than a GPU has ("out of resource") is another error: another attempt needs as much."""


def out_of_memory(error: BaseException | None) -> bool:
    """Whether the device or the machine had no memory left: the error itself, or what it was raised from."""
    while error is not None and not isinstance(error, UserError):
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            return True
        if isinstance(error, RuntimeError | OSError | ValueError) or type(error).__module__ != "builtins":
            if NO_MEMORY.search(f"{type(error).__name__}: {error}"):
                return True
        error = error.__cause__
    return False


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """The end of a sentence about an unknown word: the known one that is nearest, or else `otherwise`."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]}?" if near else otherwise


def who_has(choices: list[str]) -> str:
    """The end of a sentence about a missing key: "; penalty=a, penalty=b and penalty=c do", or nothing."""
    names = " and ".join(filter(None, [", ".join(choices[:-1]), *choices[-1:]]))
    return f"; {names} {'does' if len(choices) == 1 else 'do'}" if choices else ""


class Diverged(Exception):
    """A loss term or gradient stopped being finite. Final for the run; never a result.

    Attributes:
        step: the step whose update was not taken.
        term: the loss term or gradient that went first.
    """

    def __init__(self, step: int, term: str):
        super().__init__(f"{term} is not finite at step {step}")
        self.step = step
        self.term = term


def as_exception(error: BaseException) -> Exception:
    """The error, with its place, as one that ends a run and nothing else: code from outside may call sys.exit."""
    if isinstance(error, Exception):
        return error
    return RuntimeError(f"sys.exit({error}) was called").with_traceback(error.__traceback__)


class Interrupted(Exception):
    """Ctrl-C or SIGTERM reached a run; its checkpoint is written."""
