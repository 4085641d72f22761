"""Opens the source of labelled text and questions that `eval.data` names."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from sae_sweeps.config.evaluations import EvalConfig, file_digest
from sae_sweeps.config.schema import ModelConfig
from sae_sweeps.evaluation.builtin_tasks import BuiltinSource
from sae_sweeps.evaluation.labelled_data import LabelledSource
from sae_sweeps.evaluation.saebench_data import SAEBenchSource
from sae_sweeps.evaluation.tasks import Source


def open_source(cfg: EvalConfig, model: ModelConfig) -> Source:
    """The source that `eval.data` names."""
    data = data_of(cfg, model)
    if data == "builtin":
        return BuiltinSource()
    path = Path(data)
    if path.is_file():
        return _labelled(path, file_digest(path))
    return SAEBenchSource(None if data == "saebench" else path)


@lru_cache(maxsize=1)
def _labelled(file: Path, _digest: str) -> LabelledSource:
    """A file's rows, which a launch checks before it evaluates on them."""
    return LabelledSource(file)


def data_of(cfg: EvalConfig, model: ModelConfig) -> str:
    """`eval.data`, with auto resolved: builtin for SAEs of the built-in model, else saebench."""
    if cfg.data == "auto":
        return "builtin" if model.source == "builtin" else "saebench"
    return cfg.data
