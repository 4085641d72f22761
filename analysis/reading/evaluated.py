"""What the files of a run's folder have about its evaluations, in the form of `Recorded`."""

from pathlib import Path
from typing import Any

from analysis.reading.record import Recorded
from analysis.reading.saebench import FACTS, layer_in
from sae_sweeps.config.evaluations import in_order
from sae_sweeps.storage.files import check_types, object_in, read_json
from sae_sweeps.storage.run_folder import read_summaries

LONGEST = 100
"""Entries of an evaluation's detail that are kept: per class, not per feature."""


def evaluated(folder: Path | None, state: str) -> Recorded:
    """The evaluations of a completed run, each with its metrics, settings, layer and detail per class."""
    found = Recorded()
    if folder is None or state != "completed":
        return found
    summaries = read_summaries(folder)
    for name in in_order(summaries):
        summary, whole = summaries[name], folder / "evals" / f"{name}.json"
        content = read_json(whole) if whole.exists() else {}
        found.evaluations[name] = facts(content, whole) | {
            "settings": object_in(content, "eval_config", whole) or summary["settings"],
            "metrics": list(summary["metrics"]),
        }
        check_types(content, {"eval_result_details": list}, whole)
        details = content.get("eval_result_details")
        if details and len(details) <= LONGEST:
            found.details[name] = details
    return found


def facts(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """The layer, hook and model of the SAE that a file of SAEBench's form is about, and how the file was made.

    Raises DamagedFile for values of other types.
    """
    sae = object_in(content, "sae_cfg_dict", path)
    metadata = object_in(sae, "metadata", path)
    for place in (sae, metadata):
        check_types(place, {"hook_name": str, "model_name": str}, path)
    hook = sae.get("hook_name") or metadata.get("hook_name")
    model = sae.get("model_name") or metadata.get("model_name")
    found = {"layer": layer_in(hook) if hook else None, "hook": hook, "model": model}
    found |= {ours: content.get(theirs) for theirs, ours in FACTS.items()}
    return {key: value for key, value in found.items() if value is not None}
