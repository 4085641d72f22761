"""One owner per run: a lease file in the run's folder, kept warm by its owner and taken over when the owner is dead.

Works between processes of one machine and between machines that share a file system. Every decision is taken under a
short lock on a side file. Ages are differences of two times that the file system itself stamped, so that the machines'
clocks need not agree.
"""

import fcntl
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sae_sweeps.errors import DamagedFile, DataError
from sae_sweeps.storage.files import MissingFile, read_json, temporary_beside, write_json

BEAT_S = 5.0
"""Seconds between heartbeats."""
STALE_S = 60.0
"""Seconds without a heartbeat after which an owner counts as dead, where the process table cannot be read."""
LOCK_WAIT_S = 10.0
"""How long to wait for the side file's lock; it is locked for milliseconds, unless its owner is stopped."""

_threads = threading.Lock()  # the side file's lock excludes other processes only


class Lease:
    """The right to work on a run. `with lease:` releases it at the end; a killed owner's is taken over by the next."""

    def __init__(self, folder: Path, owner: dict[str, Any]):
        self.folder = folder
        self.owner = owner
        self.lost = False
        """True once another process took the lease over (this one was stopped or cut off for too long)."""
        self._stop = threading.Event()
        self._beat = threading.Thread(target=self._keep_warm, name=f"lease-{folder.name}", daemon=True)

    @classmethod
    def acquire(cls, run_folder: str | os.PathLike) -> "Lease | None":
        """Take the run, or return None when a live owner has it (`Lease.holder` describes it).

        Raises DamagedFile when lease.json does not read back, DataError where the file system has no locks.
        """
        folder = Path(run_folder)
        folder.mkdir(parents=True, exist_ok=True)
        with mutex(folder) as locked:
            if not locked:
                return None
            file_system_time(folder)  # changing the folder makes network file systems forget what they knew of it
            if _live_owner(folder):
                return None
            lease = cls(folder, this_process() | {"token": secrets.token_hex(16)})
            write_json(lease.path, lease.owner)
        lease._beat.start()
        return lease

    @staticmethod
    def holder(run_folder: str | os.PathLike) -> str | None:
        """The live process that works on the run, as `process 12 on host`, or None."""
        owner = _live_owner(Path(run_folder))
        return f"process {owner['pid']} on {owner['host']}" if owner else None

    @property
    def path(self) -> Path:
        return self.folder / "lease.json"

    def check(self) -> bool:
        """Read the lease now; whether it is still ours. To be called before writing a result."""
        owner = _read(self.folder)
        if owner is None or owner["token"] != self.owner["token"]:
            self.lost = True
        return not self.lost

    def release(self) -> None:
        """Give the run back; nothing happens when the lease is lost, already released, or in a forked child."""
        if self._stop.is_set() or os.getpid() != self.owner["pid"]:
            return
        self._stop.set()
        if self._beat.is_alive():
            self._beat.join()
        # Even unlocked: the file is only removed when it is ours. A full or read-only disk and a removed folder end no
        # launch: with this process the lease ends too.
        with suppress(OSError, DataError, DamagedFile), mutex(self.folder):
            if not self.lost and self.check():
                self.path.unlink(missing_ok=True)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    def _keep_warm(self) -> None:
        while not self._stop.wait(BEAT_S):
            try:
                if not self.check():
                    return
                os.utime(self.path)
            except (OSError, DataError, DamagedFile):
                continue  # a file server that stalls; the next beat tries again


def this_process() -> dict[str, Any]:
    """The identity of this process: unlike every other, also a later one with the same pid."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "boot_id": _boot_id(),
        "pid_namespace": _pid_namespace(),
        "start_time": process_start(os.getpid()),
    }


def process_start(pid: int) -> int | None:
    """Start of a live process in clock ticks since boot; None when there is no such process, or no /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat[stat.rindex(")") + 2 :].split()  # the name before may hold blanks; `fields` starts at the state
    return None if fields[0] in "ZX" else int(fields[19])


def process_alive(owner: dict[str, Any]) -> bool | None:
    """Whether the owner's process is running; None when that is unknown here (another machine or container)."""
    here = this_process()
    if any(owner.get(key) != here[key] for key in ("host", "boot_id", "pid_namespace")):
        return None
    if here["start_time"] is not None:
        return process_start(owner["pid"]) == owner["start_time"]
    try:  # no /proc: a missing process is dead, a present one may be another with the same pid
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return None


@contextmanager
def mutex(folder: Path) -> Iterator[bool]:
    """Hold the folder's side lock; yields False when a stopped process kept it from us for LOCK_WAIT_S seconds."""
    deadline = time.monotonic() + LOCK_WAIT_S
    with _threads, open(folder / "lease.lock", "ab") as side:
        while True:
            try:
                fcntl.lockf(side, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except (BlockingIOError, PermissionError):
                if time.monotonic() > deadline:
                    yield False
                    return
                time.sleep(0.005)
            except OSError as error:
                raise DataError(
                    f"{folder} is on a file system without file locks ({error.strerror}); set outputs=PATH elsewhere."
                ) from None
        yield True  # closing the file gives the lock back


def _read(folder: Path) -> dict[str, Any] | None:
    """The owner on record, or None."""
    path = folder / "lease.json"
    try:
        owner = read_json(path)
    except MissingFile:
        return None
    if not isinstance(owner, dict) or not {"host", "pid", "start_time", "token"} <= owner.keys():
        raise DamagedFile(f"{path} is damaged (it names no owner); remove it when no process works on this run.")
    return owner


def _live_owner(folder: Path) -> dict[str, Any] | None:
    """The owner on record if it is running: by the process table where that can be read, by its heartbeat elsewhere."""
    owner = _read(folder)
    if owner is None:
        return None
    alive = process_alive(owner)
    if alive is None:
        alive = _seconds_since_beat(folder) <= STALE_S
    return owner if alive else None


_beats: dict[Path, tuple[float, float]] = {}
"""The heartbeat that this process saw last in each folder, and time.monotonic() when it was new."""


def _seconds_since_beat(folder: Path) -> float:
    """Age of the heartbeat by the file system's clock; 0 in a folder that we may not write to.

    A heartbeat from the future, left by a clock that was put back, is as old as this process has seen it unchanged.
    """
    try:
        now = file_system_time(folder)
        with open(folder / "lease.json", "rb") as lease:  # opening makes network file systems query the server
            beat = os.fstat(lease.fileno()).st_mtime
    except FileNotFoundError:
        return float("inf")
    except OSError:
        return 0.0
    if _beats.get(folder, (None,))[0] != beat:
        _beats[folder] = beat, time.monotonic()
    return max(now - beat, time.monotonic() - _beats[folder][1])


def file_system_time(folder: Path) -> float:
    """What the file system stamps on a file touched now, in seconds. Not the side file: closing it drops its lock."""
    probe = temporary_beside(folder / "clock")
    try:
        with open(probe, "xb") as file:
            return os.fstat(file.fileno()).st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    """Containers on one machine may have process numbers of their own."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
