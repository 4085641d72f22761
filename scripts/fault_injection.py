"""A fault at a chosen moment of a process's writing: it is killed, its disk is full or read-only, a folder vanishes.

A moment is the n-th time that a file of an outputs tree is opened for writing, renamed, removed, synced to the disk or,
for rows of a log, written to. `install` has a process meet a fault there, or list its moments.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import sys
import threading
from collections import Counter
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from typing import Any

TEMPORARY = re.compile(r"^\.(.+)\.\d+\.[0-9a-f]{8}(\.tmp)?$")
SWEEP = re.compile(r"^\d{8}-\d{6}-[0-9a-f]{4}$")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
LASTING = {"full": errno.ENOSPC, "read-only": errno.EROFS}
"""What holds for every write from the moment on."""
ONCE = {"full once": errno.ENOSPC, "error": errno.EIO}
SIGNALS = {"SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
ENVIRONMENT = "SAE_SWEEPS_FAULT"


@dataclass(frozen=True)
class Moment:
    kind: str
    """open, rename, remove, mkdir, fsync or row."""
    name: str
    """The file's place in the outputs tree, without what differs from launch to launch."""
    number: int
    """How often it came before."""


@dataclass(frozen=True)
class Fault:
    moment: Moment
    action: str
    """kill, torn (a part is written, then kill), one of LASTING, ONCE or SIGNALS, or `remove FOLDER`."""
    share: float = 0.5
    """Of the bytes that a torn write leaves."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Fault:
        content = json.loads(text)
        return cls(Moment(**content.pop("moment")), **content)


def plain_name(path: str) -> str:
    """A path of the tree without temporary names and the names of sweeps."""
    parts = [found[1] if (found := TEMPORARY.match(part)) else part for part in path.split("/")]
    return "/".join("SWEEP" if SWEEP.match(part) else part for part in parts)


class Injector:
    """Counts the moments of this process and lets the fault happen."""

    def __init__(self, root: Path, fault: Fault | None, listed: list[Moment] | None, fired: Path):
        self.root, self.fault, self.listed, self.fired = os.path.realpath(root), fault, listed, fired
        self.seen: Counter[tuple[str, str]] = Counter()
        self.lasting: int | None = None
        self.lock = threading.RLock()
        self.busy = threading.local()

    def place(self, path: Any) -> str | None:
        """The plain name of a path below the root, else None."""
        if not isinstance(path, str | bytes | os.PathLike):
            return None
        whole = os.path.abspath(os.fsdecode(path))
        return plain_name(whole[len(self.root) + 1 :]) if whole.startswith(self.root + "/") else None

    def meet(self, kind: str, path: Any) -> Fault | None:
        """Count a moment; act, or return the fault where it is a torn write, which the caller makes."""
        name = self.place(path)
        if name is None or getattr(self.busy, "now", False):
            return None
        with self.lock:
            moment = Moment(kind, name, self.seen[kind, name])
            self.seen[kind, name] += 1
            if self.listed is not None:
                self.listed.append(moment)
            if self.lasting is not None:
                raise OSError(self.lasting, os.strerror(self.lasting), os.fsdecode(path))
            if self.fault is None or self.fault.moment != moment or not self._first():
                return None
            return self.fault if self.fault.action == "torn" else self._act(self.fault.action, path)

    def _first(self) -> bool:
        """Whether the fault has not happened yet, in whatever process."""
        self.busy.now = True
        try:
            os.close(os.open(self.fired, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            return True
        except FileExistsError:
            return False
        finally:
            self.busy.now = False

    def _act(self, action: str, path: Any) -> None:
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif action in SIGNALS:
            os.kill(os.getpid(), SIGNALS[action])
        elif action in LASTING or action in ONCE:
            number = {**LASTING, **ONCE}[action]
            self.lasting = LASTING.get(action)
            raise OSError(number, os.strerror(number), os.fsdecode(path))
        else:
            self.busy.now = True
            shutil.rmtree(os.path.join(self.root, action.removeprefix("remove ").strip()), ignore_errors=True)
            self.busy.now = False

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES:
            self.meet("open", arguments[0])
        elif event == "os.rename":
            self.meet("rename", arguments[1])
        elif event in ("os.remove", "os.mkdir"):
            self.meet(event.removeprefix("os."), arguments[0])


def install(root: Path, fault: Fault | None, fired: Path, listed: list[Moment] | None = None) -> None:
    """Let this process meet the fault, which happens once in all processes that share `fired`; list its moments."""
    injector = Injector(root, fault, listed, fired)
    fsync = os.fsync

    def synced(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if not os.path.isdir(path) and (torn := injector.meet("fsync", path)):
            os.ftruncate(descriptor, int(os.fstat(descriptor).st_size * torn.share))
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    class Rows(FileIO):
        def write(self, line: Any) -> int:
            if torn := injector.meet("row", self.name):
                super().write(line[: int(len(line) * torn.share)])
                os.kill(os.getpid(), signal.SIGKILL)
            return super().write(line)

    from sae_sweeps.storage import rows

    rows.FileIO = Rows  # type: ignore[misc]
    os.fsync = synced
    sys.addaudithook(injector.audit)


def install_from_environment() -> None:
    """What `injected/sitecustomize.py` does in every process of a cluster."""
    if text := os.environ.get(ENVIRONMENT):
        content = json.loads(text)
        install(Path(content["root"]), Fault.from_json(content["fault"]), Path(content["fired"]))
