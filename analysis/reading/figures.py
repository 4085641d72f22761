"""Figures of runs in the form of the reference: the five studies' records."""

from pathlib import Path
from typing import Any

from analysis.reading.configs import flat_config
from analysis.reading.imports import Import, imported_run, safe_stem, state_of
from analysis.reading.names import STEPS, config_name
from analysis.reading.record import Recorded
from sae_sweeps.errors import DataError

REFERENCE = "reference"
"""The path word for the figures of all five studies; `reference:STUDY` is one study's."""
REFERENCE_PATH = Path(__file__).parents[1] / "reference" / "runs.json"


def is_figures(content: Any) -> bool:
    runs = content.get("runs") if isinstance(content, dict) else None
    return isinstance(runs, list) and bool(runs) and all(isinstance(run, dict) and "metrics" in run for run in runs)


def figures_import(path: Path, content: dict[str, Any]) -> Import:
    """Figures in the form of the reference.

    {"runs": [{study, run, name, config, metrics, not_finite, evaluations, details, description}]}: `not_finite` names
    the metrics whose null is a nan (or `diverged` is true), `evaluations` and `details` are as in `Recorded`.
    """
    name = REFERENCE if path == REFERENCE_PATH else safe_stem(path.stem)
    runs = []
    for number, run in enumerate(content["runs"]):
        study = run.get("study")
        try:
            config = {config_name(key): value for key, value in flat_config(run.get("config") or {}).items()}
            metrics = {str(key): value for key, value in run["metrics"].items() if is_number(value)}
            evaluations, details = dict(run.get("evaluations") or {}), dict(run.get("details") or {})
            judged = {
                f"eval.{evaluation}.{key}": facts[key]
                for evaluation, facts in evaluations.items()
                for key in ("layer", "model")
                if key in facts
            }
            not_finite = {"final_loss"} if run.get("diverged") else set()
            not_finite |= set(run.get("not_finite") or ())
        except (AttributeError, TypeError):
            raise DataError(f"{path}: run {number} has no config or metrics that read as such; mend it.") from None
        metrics |= {key: float("nan") for key in not_finite if metrics.get(key) is None and key in metrics}
        steps = next((config.pop(key) for key in STEPS if key in config), None)
        runs.append(
            imported_run(
                f"{study or name}/{run.get('run', number)}",
                str(run.get("name") or run.get("title") or ""),
                ({"study": study} if study else {}) | config | judged,
                metrics,
                steps,
                state_of(steps, metrics),
                str(run.get("description") or ""),
                recorded=Recorded(evaluations=evaluations, details=details),
            )
        )
    return Import(name, "the five studies' records" if name == REFERENCE else path.name, "figures", runs)


def is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
