"""Opens the source of labelled text and questions that `eval.data` names."""

from __future__ import annotations

from pathlib import Path

from sae_sweeps.config.evaluations import EvalConfig
from sae_sweeps.config.schema import ModelConfig
from sae_sweeps.evaluation.builtin_tasks import BuiltinSource
from sae_sweeps.evaluation.saebench_data import SAEBenchSource
from sae_sweeps.evaluation.tasks import Source


def kind_of(cfg: EvalConfig, model: ModelConfig) -> str:
    """builtin, or saebench for the hub's data sets and local copies of them."""
    if cfg.data == "auto":
        return "builtin" if model.source == "builtin" else "saebench"
    return "builtin" if cfg.data == "builtin" else "saebench"


def open_source(cfg: EvalConfig, model: ModelConfig) -> Source:
    """The source that `eval.data` names."""
    if kind_of(cfg, model) == "builtin":
        return BuiltinSource()
    return SAEBenchSource(None if cfg.data in ("auto", "saebench") else Path(cfg.data).expanduser())
