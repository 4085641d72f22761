"""Models and data sets of the hub in a run's config, each put at a commit: a branch may move, and a commit cannot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sae_sweeps.config.data import source
from sae_sweeps.config.schema import DataConfig, ModelConfig
from sae_sweeps.storage.hub import COMMIT, commit_of


@dataclass(frozen=True)
class Repository:
    """A repository of the hub that a config names."""

    key: str
    """`model.revision`, `data.revision`, `data.forget` or `data.retain`."""
    kind: str
    """model or dataset."""
    name: str
    revision: str | None
    subset: str | None = None

    def at(self, revision: str) -> str:
        """The value of the key that names this revision."""
        if self.key.endswith(".revision"):
            return revision
        return f"{self.name}:{self.subset}@{revision}" if self.subset else f"{self.name}@{revision}"


def repositories(model: ModelConfig, data: DataConfig) -> Iterator[Repository]:
    """Those of a run's model and text. Raises ConfigError and DataError for sources of text that are not there."""
    if model.source == "hub" and model.path:
        yield Repository("model.revision", "model", model.path, model.revision)
    if model.source == "synthetic":
        return
    if data.kind == "hub" and data.path and not Path(data.path).is_dir():
        yield Repository("data.revision", "dataset", data.path, data.revision)
    for key in ("forget", "retain") if data.kind == "forget_retain" else ():
        part = source(data, key)
        if part.kind == "hub":
            yield Repository(f"data.{key}", "dataset", str(part.path), part.revision, part.subset)


def pin(model: ModelConfig, data: DataConfig) -> None:
    """Replace branches and tags by the commits that they are at, as far as those are known."""
    for found in repositories(model, data):
        commit, _ = commit_of(found.kind, found.name, found.revision)
        if commit is not None:
            group, _, key = found.key.partition(".")
            setattr({"model": model, "data": data}[group], key, found.at(commit))


def unpinned(model: ModelConfig, data: DataConfig) -> list[str]:
    """A sentence for each of a run's model and text whose commit is not known: with it the run id would change."""
    out = []
    for found in repositories(model, data):
        if COMMIT.fullmatch(found.revision or ""):
            continue
        revision, group = found.revision or "main", found.key.partition(".")[0]
        _, why = commit_of(found.kind, found.name, revision)
        what, option = ("data set ", " --repo-type dataset") if found.kind == "dataset" else ("", "")
        files = f"{group if found.key.endswith('.revision') else found.key}=DIR"
        out.append(
            f"{found.key}={found.at(revision)}: the commit of {what}{found.name} is not known, because the cache has "
            f"no record of it and {why}; run `hf download {found.name}{option}` here once there is a network, or with "
            f"--local-dir DIR on a machine that has one, copy DIR here and give {files}; a commit whose files "
            f"the cache has is {found.key}={found.at('COMMIT')}."
        )
    return out
