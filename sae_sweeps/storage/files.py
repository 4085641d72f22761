"""Files that are written whole or not at all, and read back as they were written or not at all."""

import errno
import hashlib
import json
import math
import os
import pwd
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from sae_sweeps.errors import ConfigError, DamagedFile, DataError, UserError

FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "it is larger than files may be here (ulimit -f)",
}


DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
"""Of a file or folder of another user, and of a read-only file system."""


class DiskFull(UserError):
    """The disk or the quota is full. The file that was at the path before is unchanged."""


class MissingFile(DataError):
    """There is no file at the path."""


def check_output(option: str, path: str | Path, example: str | None = None) -> None:
    """Check that a command can write to a path, a file such as `example`, or without one a folder.

    Raises ConfigError where a folder is at the file's path, a file at the folder's or above, or writing is not allowed.
    """
    path = Path(path)
    option = option if option.endswith("=") else f"{option} "
    if example is not None and path.is_dir():
        raise ConfigError(f"{option}{path}: that is a folder; name a file, such as {example}.")
    folder = path if example is None else path.parent
    above = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    if not above.is_dir():
        raise ConfigError(f"{option}{path}: {above} is not a folder; give another path.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(f"{option}{path}: nothing may be written in {above}; give another path.")


def denied(error: OSError) -> str:
    """What a PermissionError or a read-only file system means, in one sentence that names the file and its owner."""
    path = Path(os.fsdecode(error.filename or "")).absolute()
    above = next(place for place in (path, *path.parents) if place.exists())
    uid, owner = above.stat().st_uid, ""
    if uid != os.getuid():
        with suppress(KeyError):  # a user of another machine
            owner = pwd.getpwuid(uid).pw_name
        owner = f", {above} belongs to {owner or f'user {uid}'}"
    why = (error.strerror or "permission denied").lower()
    return f"{error.filename}: {why}{owner}; give a folder of yours, as outputs=FOLDER."


def about_path(error: OSError) -> str | None:
    """What an error of the system about a file or folder means, in one sentence; None for one that names none."""
    if error.errno in DENIED:
        return denied(error)
    if error.filename is None:
        return None
    return f"{os.fsdecode(error.filename)}: {(error.strerror or 'cannot be used').lower()}; check the path."


@contextmanager
def without_new_folders(path: Path) -> Iterator[None]:
    """After a UserError remove the folders of `path` and above it that were not there before, if they are empty."""
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        yield
    except UserError:
        for folder in new:
            with suppress(OSError):
                folder.rmdir()
        raise


def write_bytes(path: str | Path, content: bytes) -> None:
    """Put `content` at `path`, creating its folder; after a kill at any moment the old or the new file is there, whole.

    Raises DiskFull when the disk or the quota is full.
    """
    with written_whole(Path(path)) as file:
        file.write(content)


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which gets its name where the block ends without an error; else as `write_bytes`."""
    with naming_full_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_beside(path)
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fsync_folder(path.parent)


def write_text(path: str | Path, text: str) -> None:
    """`write_bytes` of the text in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, obj: Any) -> None:
    """`write_text` of `obj` as indented JSON; NaN and infinities become null."""
    write_text(path, json.dumps(without_nonfinite(obj), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """What `write_json` wrote. Raises MissingFile, DamagedFile when it is not JSON, DataError when unreadable."""
    try:
        with open(path, "rb") as file:
            return json.loads(file.read())
    except FileNotFoundError:
        raise MissingFile(f"{path} is missing; check the path.") from None
    except (ValueError, RecursionError) as error:  # covers bad UTF-8 too
        raise DamagedFile(f"{path} is damaged ({one_line(error)}); restore it, or remove it to start anew.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the path and its permissions.") from None


def object_in(content: Any, key: str, path: str | Path) -> dict[str, Any]:
    """The object under a key of a JSON object, empty where missing or null. Raises DamagedFile for other types."""
    value = content.get(key) or {} if isinstance(content, dict) else None
    if not isinstance(value, dict):
        raise DamagedFile(f"{path} is damaged (its {key} is no object); restore it.")
    return value


def check_types(content: dict[str, Any], types: Mapping[str, type | tuple[type, ...]], path: str | Path) -> None:
    """Raise DamagedFile where a key of these is there, not null, and of another type than these."""
    for key, kinds in types.items():
        value = content.get(key)
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
            raise DamagedFile(f"{path} is damaged (its {key} is {str(value)[:40]}); restore it.")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A mapping of plain values in YAML, without tags or aliases: a few of those can expand to more than memory holds.

    Raises MissingFile, DamagedFile for anything else, DataError when unreadable.
    """
    import yaml

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        text = Path(path).read_bytes()
        if b"*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, loader)):
            raise DamagedFile(f"{path} is damaged (it has aliases, which are not read); restore it.")
        content = yaml.load(text, loader)
    except FileNotFoundError:
        raise MissingFile(f"{path} is missing; check the path.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DamagedFile(f"{path} is damaged ({one_line(error)[:200]}); restore it.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the path and its permissions.") from None
    if not isinstance(content, dict):
        raise DamagedFile(f"{path} is damaged (it is not a YAML mapping); restore it.")
    return content


def digest_of(path: Path) -> str:
    """SHA-256 of a file's content; empty where there is none, be it no file or an empty one."""
    try:
        with open(path, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                return ""
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the path and its permissions.") from None


def without_nonfinite(obj: Any) -> Any:
    """A copy of a tree of dicts, lists and scalars with NaN and infinities replaced by None."""
    return with_floats(obj, lambda value: value if math.isfinite(value) else None)


def with_floats(obj: Any, change: Callable[[float], Any]) -> Any:
    """A copy of a tree of dicts, lists and scalars with `change` applied to every float."""
    if isinstance(obj, dict):
        return {key: with_floats(value, change) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        values = [with_floats(value, change) for value in obj]
        return values if isinstance(obj, list) else tuple(values)
    return change(obj) if isinstance(obj, float) else obj


def temporary_beside(path: Path) -> Path:
    """A name in the same folder (a rename is atomic only there) that no other process uses; hidden, short, `.tmp`."""
    return path.with_name(f".{path.name[:100]}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def remove_temporaries(folder: Path) -> None:
    """Remove what killed processes were writing in a folder that this process alone writes to.

    Status, lease and clock are left: other processes write those, and they are small.
    """
    for path in folder.rglob(".*.tmp"):
        if path.name.startswith((".status.json.", ".lease.json.", ".clock.")):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def fsync_folder(folder: Path) -> None:
    """Make a rename in `folder` last through a power cut; file systems that cannot sync a folder are left alone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in FULL:
            raise
    finally:
        os.close(descriptor)


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Turn "no space left" inside the block into DiskFull, which names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        what = FULL[error.errno]
        raise DiskFull(f"{path} cannot be written: {what}; free some space or choose another place.") from None


def one_line(error: object) -> str:
    """An error's text on one line, without a final full stop."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
