"""The results in a run's folder: trained.json, results.json, and whether the run is complete."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from sae_sweeps.config.run import RunConfig
from sae_sweeps.errors import DamagedFile
from sae_sweeps.runs.evaluate import Failure, collected, descriptions, eval_of_results, is_evaluated
from sae_sweeps.storage.files import read_json, write_json, write_text
from sae_sweeps.storage.run_folder import FORMAT, LOGS, TRAINED, RunFolder

LAST_STEP = ("loss", "recon_loss", "sparsity_loss", "penalty_loss", "penalty_weight", "dead_features")
"""Numbers of the last row of metrics.jsonl that results.json holds; the loss as final_loss."""
OF_TRAINING = ("final_loss", *LAST_STEP[1:], "tokens", "steps")
"""Metrics that every run has, whatever is evaluated."""


def final_status(run: RunConfig, folder: RunFolder) -> dict[str, Any] | None:
    """The status of a run that diverged or is complete; None where there is something to do."""
    status = folder.status()
    if status is None or status["state"] not in ("completed", "diverged"):
        return None
    return status if status["state"] == "diverged" or is_complete(run, folder) else None


def is_complete(run: RunConfig, folder: RunFolder) -> bool:
    """Whether the run is trained and has the evaluations of `run.eval`. Raises DamagedFile for results.json too."""
    return (folder.path / TRAINED).exists() and folder.results() is not None and is_evaluated(run, folder)


def write_config(run: RunConfig, folder: RunFolder) -> None:
    """config.yaml: the values in use, with interpolations resolved."""
    write_text(folder.config_path, OmegaConf.to_yaml(OmegaConf.create(run.to_dict())))


def write_results(
    run: RunConfig, run_id: str, folder: RunFolder, title: str, failures: list[Failure], doubts: Sequence[str] = ()
) -> dict[str, Any]:
    """results.json from the last row of metrics.jsonl, `trained.json` and everything in `evals/`.

    `doubts` are further warnings. `config.eval` has the settings of every evaluation there.
    """
    trained = folder.read_trained(LOGS)
    rows = folder.metrics.rows()
    if not rows:
        raise DamagedFile(
            f"{folder.metrics.path} is empty; restore it, or delete the folder {folder.path} to train again."
        )
    last = rows[-1]
    metrics: dict[str, Any] = {("final_loss" if key == "loss" else key): last.get(key) for key in LAST_STEP}
    measured, warnings = collected(folder.path)
    judged_by, others = eval_of_results(run, folder.path)
    results = {
        "format_version": FORMAT,
        "run_id": run_id,
        "title": title,
        "config": run.to_dict() | {"eval": judged_by},
        "metrics": metrics | {"tokens": last["tokens"], "steps": last["step"] + 1} | measured,
        "provenance": trained["provenance"],
    }
    failed = [failure.warning(folder.path) for failure in failures]
    results["warnings"] = [*trained["warnings"], *warnings, *others, *doubts, *failed]
    results |= descriptions(folder.path)
    write_json(folder.results_path, results)
    return results


def in_brief(folder: RunFolder) -> str:
    """One line on a run that has just completed."""
    results = read_json(folder.results_path)
    metrics, made = results["metrics"], results["provenance"]
    shown = [f"{name} {metrics[name]:.4g}" for name in ("fvu", "ce_loss_score", "l0") if metrics.get(name) is not None]
    speed = [f"{made['tokens_per_s']:,} tokens/s"] if made["tokens_per_s"] else []
    return ", ".join([*shown, f"{made['wall_time_s']:.1f} s", *speed])
