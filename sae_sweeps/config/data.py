"""The kinds of text of `data.kind`: the keys that each reads, its files, and the digest of its content.

`activations/text.py` reads the documents of each kind of this table. A kind from outside brings its own reader, a
function of its config that gives (name, text) pairs or Documents in a fixed order, and is added by `register`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from sae_sweeps.config.schema import KINDS_WITH_ROLES, DataConfig
from sae_sweeps.errors import ConfigError, DataError
from sae_sweeps.storage.digests import digest_of_files, short_hash

ENDINGS = {".txt": "text", ".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet", ".arrow": "arrow"}
"""The kind of a file by its ending."""
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
"""Second endings of text and JSON."""
DESCRIPTIONS = {"state.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json"}
"""Files of a folder that `datasets` wrote which hold no rows."""

SPLIT_BY_TEXT = ("path", "held_out")
COLUMNS = ("text_field", "label_field", "labels", "pair_field")
HUB = ("subset", "split", "revision")
TWO = ("forget", "retain", "forget_share")
OWN_KEYS = (*SPLIT_BY_TEXT, *COLUMNS, *HUB, *TWO)
"""Keys of `data` that only some kinds read."""


@dataclass(frozen=True)
class TextSource:
    """One kind of text."""

    reads: tuple[str, ...] = ()
    """Of OWN_KEYS those that it reads."""
    endings: tuple[str, ...] = ()
    """Endings of its files in a folder; where files have the first, those with another are left out."""
    documents: Callable[[Any], Iterable[Any]] | None = None
    """From outside: gives the documents, in the same order each time."""
    config: type | None = None
    """From outside: dataclass of its own keys, an instance of which `documents` is given; None: it is given `data`."""
    digest: str | None = None
    """From outside: digest of its code, a part of the run id."""


SOURCES = {
    "builtin": TextSource(),
    "builtin_roles": TextSource(),
    "builtin_labelled": TextSource(),
    "text": TextSource(SPLIT_BY_TEXT, (".txt",)),
    "jsonl": TextSource((*SPLIT_BY_TEXT, *COLUMNS), (".jsonl", ".json")),
    "parquet": TextSource((*SPLIT_BY_TEXT, *COLUMNS), (".parquet",)),
    "arrow": TextSource((*SPLIT_BY_TEXT, *COLUMNS, "split"), (".arrow",)),
    "hub": TextSource((*SPLIT_BY_TEXT, *COLUMNS, *HUB)),
    "forget_retain": TextSource(("held_out", "text_field", "split", *TWO)),
}
TOP_VARIANCE = 0.2
"""Share of the training activations' variance with which a thousandth of the tokens rules the loss and fvu."""

MOST_LEFT_OUT = 0.02
"""Share of the training tokens beyond `data.max_norm` above which they are no few outliers."""

BUILTIN = ("builtin", "builtin_roles", "builtin_labelled")
_registered: dict[str, TextSource] = {}


def register(kind: str, source: TextSource, has_roles: bool = False) -> None:
    """Add a kind of text from outside to those of this process, in the place of one that has the same name there.

    `has_roles`: whether its Documents have roles (retain, forget or labels). Raises ConfigError for a kind of this
    project and for a source without `documents`.
    """
    if kind in SOURCES:
        raise ConfigError(f"data.kind={kind}: this name is taken; give your source another.")
    if source.documents is None:
        raise ConfigError(f"data.kind={kind}: has no function that gives its documents; name one.")
    _registered[kind] = source
    if has_roles:
        KINDS_WITH_ROLES.add(kind)


def find_source(kind: str) -> TextSource:
    """The kind of text of this name. Raises ConfigError where there is none."""
    found = SOURCES.get(kind) or _registered.get(kind)
    if found is None:
        raise ConfigError(f"data.kind={kind} is not known; choose one of {', '.join((*SOURCES, *_registered))}.")
    return found


def unused_data_keys(kind: str) -> list[str]:
    """Keys of `data` that a kind of text does not read."""
    found = find_source(kind)
    own = {f.name for f in fields(found.config)} if found.config else set()
    return [key for key in OWN_KEYS if key not in found.reads and key not in own]


def check_data(cfg: DataConfig) -> None:
    """Check the config and its files before any text is read. Raises ConfigError, DataError."""
    found = find_source(cfg.kind)
    if not 0 < cfg.held_out < 1:
        raise ConfigError(f"data.held_out={cfg.held_out} is not a share; choose one above 0 and below 1.")
    if cfg.kind == "forget_retain":
        if not 0 < cfg.forget_share < 1:
            raise ConfigError(f"data.forget_share={cfg.forget_share} is not a share; choose one above 0 and below 1.")
        for key in ("forget", "retain"):
            check_data(source(cfg, key))
    if cfg.kind in SOURCES and "path" in found.reads and not cfg.path:
        raise ConfigError(f"data.path is empty: give the {cfg.kind} file, folder or hub name, as data=PATH.")
    if found.endings:
        files_of(cfg)


def ending_of(file: Path) -> str:
    """The file's ending without that of a compression: `.jsonl` of `a.jsonl.gz`."""
    name = Path(file.name.lower())
    plain = Path(name.stem).suffix if name.suffix in COMPRESSED else ""
    return plain if ENDINGS.get(plain) in ("text", "jsonl") else name.suffix


def kinds_at(path: Path) -> set[str]:
    """The kinds of text of a file, or of the files of a folder."""
    files = [path] if path.is_file() else files_in(path)
    return {ENDINGS[ending_of(file)] for file in files if ending_of(file) in ENDINGS and file.name not in DESCRIPTIONS}


def files_in(folder: Path) -> list[Path]:
    """The files of a folder and of the folders below it, linked ones too, sorted; what begins with a dot is left out.

    A folder that is reached twice is read once.
    """
    found, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        known = os.path.realpath(place)
        folders[:] = [] if known in seen else sorted(name for name in folders if not name.startswith("."))
        if known not in seen:
            found += [Path(place, name) for name in names if not name.startswith(".")]
        seen.add(known)
    return sorted(found)


def files_of(cfg: DataConfig) -> list[Path]:
    """The files of a local text, sorted. Raises DataError where there are none, or none that holds anything."""
    path, endings = Path(str(cfg.path)).expanduser(), find_source(cfg.kind).endings
    if not path.exists():
        raise DataError(f"data={cfg.path}: no such file or folder; give a file or folder of {cfg.kind}.")
    files = [path]
    if path.is_dir():
        by_ending: dict[str, list[Path]] = {}
        for file in files_in(path):
            if file.name not in DESCRIPTIONS:
                by_ending.setdefault(ending_of(file), []).append(file)
        files = next((by_ending[ending] for ending in endings if ending in by_ending), [])
    if not files:
        raise DataError(f"data={cfg.path}: the folder holds no *{endings[0]} file; give one that does.")
    _refuse_dead_links(cfg, files)
    if not any(file.stat().st_size for file in files):
        raise DataError(f"data={cfg.path}: is empty; give text to train on.")
    return files


def _refuse_dead_links(cfg: DataConfig, files: list[Path]) -> None:
    for file in files:
        if not file.exists():
            raise DataError(f"data={cfg.path}: {file} is a link to what does not exist; mend the link, or remove it.")


def data_digest(cfg: DataConfig, cache: Path | None = None) -> str:
    """Content digest of local text; name, subset, split and commit of a hub data set; code of a source from outside.

    Raises ConfigError and DataError as `check_data` does.
    """
    check_data(cfg)
    if cfg.kind in BUILTIN:
        from sae_sweeps.builtin.text.corpus import digest

        return digest()
    if cfg.kind == "forget_retain":
        return short_hash([data_digest(source(cfg, key), cache) for key in ("forget", "retain")])
    if cfg.kind == "hub":
        if (folder := Path(str(cfg.path))).is_dir():  # a copy of the data set, which `datasets` reads in its place
            files = files_in(folder)
            _refuse_dead_links(cfg, files)
            return short_hash([digest_of_files(files, cache), cfg.subset, cfg.split])
        return f"hub:{cfg.path}/{cfg.subset or ''}/{cfg.split}@{cfg.revision or 'main'}"
    if cfg.kind in _registered:
        given = getattr(cfg.own, "path", None) or cfg.path
        files = [] if given is None else [Path(given).expanduser(), *Path(given).expanduser().rglob("*")]
        content = digest_of_files(sorted(file for file in files if file.is_file()), cache)
        return short_hash([_registered[cfg.kind].digest, content])
    return digest_of_files(files_of(cfg), cache)


def source(cfg: DataConfig, key: str) -> DataConfig:
    """The config of one of two corpora, `data.forget` or `data.retain`: a file, a folder, or ORG/NAME:SUBSET@REVISION.

    Raises ConfigError for a source that is not given or whose format is unclear, DataError for one that is missing.
    """
    value = getattr(cfg, key)
    if not value:
        raise ConfigError(f"data.{key} is not set: give a file, a folder, or a hub name as ORG/NAME:SUBSET.")
    path = Path(value).expanduser()
    if path.exists():
        kinds = kinds_at(path)
        if len(kinds) != 1:
            what = "no text" if not kinds else f"several formats ({', '.join(sorted(kinds))})"
            raise ConfigError(f"data.{key}={value}: holds {what}; give files of one of {', '.join(ENDINGS)}.")
        return replace(cfg, name=key, kind=kinds.pop(), path=str(path))
    name, _, revision = value.partition("@")
    name, _, subset = name.partition(":")
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or ending_of(Path(name)) in ENDINGS:
        raise DataError(f"data.{key}={value}: no such file or folder, and no hub name of the form ORG/NAME:SUBSET.")
    return replace(cfg, name=key, kind="hub", path=name, subset=subset or None, revision=revision or None)
