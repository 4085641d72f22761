"""Which format a text file has, and the configs of the two corpora of `data=forget_retain`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sae_sweeps.config.schema import DataConfig
from sae_sweeps.errors import ConfigError, DataError

ENDINGS = {".txt": "text", ".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet"}


def source(cfg: DataConfig, key: str) -> DataConfig:
    """The config of one of two corpora, `data.forget` or `data.retain`: a file, a folder, or a hub name.

    Raises ConfigError for a source that is not given or whose format is unclear, DataError for one that is missing.
    """
    value = getattr(cfg, key)
    if not value:
        raise ConfigError(f"data.{key} is not set: give a file, a folder, or a hub name as ORG/NAME:SUBSET.")
    path = Path(value).expanduser()
    if path.exists():
        files = [path] if path.is_file() else sorted(path.rglob("*"))
        kinds = {ENDINGS[file.suffix] for file in files if file.suffix in ENDINGS}
        if len(kinds) != 1:
            what = "no text" if not kinds else f"several formats ({', '.join(sorted(kinds))})"
            raise ConfigError(f"data.{key}={value}: holds {what}; give files of one of {', '.join(ENDINGS)}.")
        return replace(cfg, name=key, kind=kinds.pop(), path=str(path))
    name, _, subset = value.partition(":")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise DataError(f"data.{key}={value}: no such file or folder, and no hub name of the form ORG/NAME:SUBSET.")
    return replace(cfg, name=key, kind="hub", path=name, subset=subset or None)
