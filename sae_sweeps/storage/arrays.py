"""Arrays in npz files, which may come from elsewhere: sizes are checked before memory is taken; no pickle is read."""

import math
import zipfile
import zlib
from pathlib import Path

import numpy as np

from sae_sweeps.errors import DamagedFile
from sae_sweeps.storage.files import one_line

MOST_INFLATED = 20
"""Times its size on disk that an archive's content may have where it is more than SMALL bytes."""
SMALL = 2**26
MEND = "fetch or restore it"
BROKEN = (OSError, EOFError, ValueError, TypeError, KeyError, NotImplementedError, zlib.error, zipfile.BadZipFile)


def read_npz(path: Path, mend: str = MEND) -> dict[str, np.ndarray]:
    """The arrays of an npz file. Raises DamagedFile for a file that is not one, inflates, or holds objects."""
    try:
        refuse_inflated(path, mend)
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                _check_header(archive, member)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except BROKEN as error:
        raise DamagedFile(f"{path} is damaged ({one_line(error)}); {mend}.") from None


def refuse_inflated(path: Path, mend: str = MEND) -> None:
    """Raise DamagedFile for a zip archive whose content is many times its size; other files pass."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        inflated = sum(member.file_size for member in archive.infolist())
    if inflated > max(SMALL, MOST_INFLATED * path.stat().st_size):
        raise DamagedFile(f"{path} is damaged (it inflates more than {MOST_INFLATED} times); {mend}.")


def _check_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Raise ValueError where an array's shape and dtype are not those of as many bytes as follow its header."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        if dtype.hasobject:
            raise ValueError(f"{member.filename} holds Python objects")
        if file.tell() + math.prod(shape) * dtype.itemsize != member.file_size:
            raise ValueError(f"{member.filename} has the shape {list(shape)} and {member.file_size} bytes")
