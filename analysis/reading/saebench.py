"""SAEBench's result files, of today and older, as imported runs: one for each SAE, with all of its evaluations."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.grouped import grouped
from analysis.reading.literals import leaves
from sae_sweeps.config.evaluations import PREFIXES
from sae_sweeps.config.hooks import layer_of_hook_name
from sae_sweeps.errors import DataError
from sae_sweeps.storage.files import object_in

if TYPE_CHECKING:
    from analysis.reading.imports import Import

FACTS = {"eval_id": "eval_id", "datetime_epoch_millis": "time_ms", "sae_bench_commit_hash": "commit"}
"""Keys of SAEBench's results -> those of `Recorded.evaluations`."""
CAN_BE_MINUS_ONE = ("scr", "tpp", "shift_and_tpp")
"""Evaluations whose scores may be exactly -1; in the others' files -1 means nan."""


def results_in(content: Any) -> list[dict[str, Any]]:
    """The results in a JSON file: one, or in the format of older versions one for each SAE name."""
    if not isinstance(content, dict):
        return []
    if isinstance(content.get("eval_result_metrics"), dict):
        return [content]
    sides = list(content.values())
    nested = bool(sides) and all(isinstance(s, dict) and isinstance(s.get("eval_result_metrics"), dict) for s in sides)
    return [{"sae_lens_id": name} | side for name, side in content.items()] if nested else []


def saebench_imports(results: list[tuple[Path, dict[str, Any]]]) -> list["Import"]:
    """One import for each SAE; raises DataError where two files give one of its metrics different values."""
    from analysis.reading.imports import Import, imported_run, safe_stem

    found = []
    for name, sides in grouped((sae_name(content), (path, content)) for path, content in results).items():
        metrics: dict[str, float | None] = {}
        config: dict[str, Any] = {}
        read: list[str] = []
        for path, content in sorted(sides, key=lambda side: (kind_of(side[1]), str(side[0]))):
            new = metrics_of(content)
            for key, value in new.items():
                if key in metrics and metrics[key] != value:
                    raise DataError(
                        f"{path}: {key} of {name} is {value} here and {metrics[key]} in another file; give one."
                    )
            metrics |= new
            for key, value in config_of(content, path).items():
                config.setdefault(key, value)
            read.append(kind_of(content))
        nulls = [key for key, value in metrics.items() if value is None and "cossim" in key]
        warnings = [f"{key} is -1 in SAEBench's file, which means nan" for key in nulls]
        run = imported_run(name, f"SAEBench: {', '.join(dict.fromkeys(read))}", config, metrics, warnings=warnings)
        found.append(Import(safe_stem(name), f"SAEBench's files of {name}", "saebench", [run]))
    return found


def sae_name(content: dict[str, Any]) -> str:
    parts = (content.get("sae_lens_release_id"), content.get("sae_lens_id"))
    return "/".join(str(part) for part in parts if part and part != "custom_sae") or "custom_sae"


def kind_of(content: dict[str, Any]) -> str:
    return str(content.get("eval_type_id") or "unknown").removesuffix("_first_letter")


def metrics_of(content: dict[str, Any]) -> dict[str, float | None]:
    """The metrics of a file without their groups; those of other data than SAEBench's with their prefix."""
    kind, found = kind_of(content), dict[str, float | None]()
    extra = content.get("eval_result_unstructured") or {}
    ours = extra.get("sae_sweeps", extra) if isinstance(extra, dict) else {}
    prefix = PREFIXES.get(str(ours.get("data")), "")
    also = {name: value for name, value in ours.items() if isinstance(value, int | float)} if is_ours(ours) else {}
    for path, value in (*leaves(content["eval_result_metrics"]), *(((name,), value) for name, value in also.items())):
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            is_nan = value == -1 and kind not in CAN_BE_MINUS_ONE
            found[prefix + path[-1]] = None if is_nan else value
    return found


def is_ours(extra: dict[str, Any]) -> bool:
    """Whether this project wrote the file: only its `eval_result_unstructured` has warnings."""
    return "warnings" in extra


def config_of(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """The SAE's config as the file records it, under this project's keys, with the model it was evaluated on.

    Raises DamagedFile for values of other types.
    """
    cfg, judged = object_in(content, "sae_cfg_dict", path), object_in(content, "eval_config", path)
    metadata = object_in(cfg, "metadata", path)
    hook = str(cfg.get("hook_name") or metadata.get("hook_name") or "")
    place = layer_of_hook_name(hook)
    found = {
        "model": cfg.get("model_name") or metadata.get("model_name"),
        "layer.index": cfg.get("hook_layer", layer_in(hook)),
        "layer.hook": place.hook if place else hook.rpartition("hook_")[2] or None,
        "model.d_in": cfg.get("d_in"),
        "architecture": cfg.get("architecture"),
        "architecture.d_sae": cfg.get("d_sae"),
        "architecture.k": cfg.get("k") or object_in(cfg, "activation_fn_kwargs", path).get("k"),
        "data": cfg.get("dataset_path") or metadata.get("dataset_path"),
        "eval.model": judged.get("model_name") or None,
    }
    return {key: value for key, value in found.items() if value is not None}


def layer_in(hook: str) -> int | None:
    return next(_numbers(hook), None)


def _numbers(hook: str) -> Iterator[int]:
    return (int(part) for part in hook.split(".") if part.isdigit())
