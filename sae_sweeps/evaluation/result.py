"""The result of one evaluation of one SAE, and SAEBench's JSON for it."""

from __future__ import annotations

import math
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Protocol

from sae_sweeps.config.evaluations import PREFIXES
from sae_sweeps.storage.files import with_floats


class Measured(Protocol):
    """The result of an evaluation for one SAE."""

    @property
    def warnings(self) -> list[str]:
        """Reasons to doubt the numbers."""
        ...

    def flat(self) -> dict[str, Any]:
        """Metrics by name, as results.json holds them."""
        ...

    def to_json(self) -> dict[str, Any] | None:
        """Content of `evals/NAME.json`; None where there is no such file."""
        ...


@dataclass
class Numbers:
    """Metrics by name, and nothing more."""

    metrics: dict[str, float]
    warnings: list[str] = field(default_factory=list)

    def flat(self) -> dict[str, float]:
        return self.metrics

    def to_json(self) -> None:
        return None


@dataclass
class Result:
    """One evaluation of one SAE, in SAEBench's form."""

    evaluation: str
    """As in `eval.evaluations`."""
    sae_name: str
    sae_cfg: dict[str, Any]
    """The SAE's `cfg.json`."""
    eval_config: dict[str, Any]
    """How it was measured, by SAEBench's names."""
    metrics: dict[str, dict[str, float | None]]
    """By SAEBench's groups and names; None where not measured."""
    details: list[dict[str, Any]] = field(default_factory=list)
    unstructured: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    """Reasons to doubt the numbers."""
    data: str = "saebench"
    """saebench, builtin or labelled."""
    also: dict[str, float] = field(default_factory=dict)
    """Flat metrics that SAEBench has no place for, and older names of those it has."""
    more: dict[str, Any] = field(default_factory=dict)
    """Further content of the file: numbers from which the metrics follow."""

    def flat(self) -> dict[str, float]:
        """Metrics as results.json holds them; nan where undefined."""
        named = {name: value for group in self.metrics.values() for name, value in group.items()} | self.also
        prefix = PREFIXES.get(self.data, "")
        return {prefix + name: value for name, value in named.items() if value is not None}

    def to_json(self) -> dict[str, Any]:
        """SAEBench's file, with -1 for nan and null for metrics that were not measured."""
        note: dict[str, Any] = {"data": self.data, **self.also, **self.more, "warnings": self.warnings}
        return envelope(
            TYPE_IDS.get(self.evaluation, self.evaluation),
            self.eval_config,
            self.metrics,
            self.details,
            self.unstructured | {"sae_sweeps": note},
            self.sae_name,
            self.sae_cfg,
        )


TYPE_IDS = {"absorption": "absorption_first_letter"}
"""What SAEBench calls an evaluation where we call it otherwise."""


def envelope(
    type_id: str,
    eval_config: dict[str, Any],
    metrics: dict[str, Any],
    details: list[dict[str, Any]],
    unstructured: dict[str, Any],
    sae_name: str,
    sae_cfg: dict[str, Any],
) -> dict[str, Any]:
    """SAEBench's JSON, its keys in its order, with -1 for nan."""
    content = {
        "eval_type_id": type_id,
        "eval_config": eval_config,
        "eval_id": str(uuid.uuid4()),
        "datetime_epoch_millis": int(time.time() * 1000),
        "eval_result_metrics": metrics,
        "eval_result_details": details,
        "sae_bench_commit_hash": "Unknown",  # what SAEBench writes outside a git repository
        "sae_lens_id": "custom_sae",
        "sae_lens_release_id": sae_name,
        "sae_lens_version": None,
        "sae_cfg_dict": sae_cfg,
        "eval_result_unstructured": unstructured,
    }
    return with_floats(content, lambda value: -1 if math.isnan(value) else value)
