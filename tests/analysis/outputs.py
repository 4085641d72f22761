"""Outputs trees as runs leave them, without running any."""

from pathlib import Path
from typing import Any

from sae_sweeps.storage.files import write_json, write_text
from sae_sweeps.storage.lease import this_process
from sae_sweeps.storage.run_folder import RunFolder

CONFIG: dict[str, Any] = {
    "model": {"name": "builtin", "source": "builtin", "d_in": 128},
    "layer": {"hook": "resid_post", "index": 2},
    "architecture": {"name": "topk", "d_sae": 1024, "k": 32, "lr": 0.001},
    "penalty": {"name": "ortho", "lambda2_max": 0.1, "tau": 0.1},
    "logger": {"name": "none", "tags": ["a"]},
    "num_tokens": 100_000,
    "batch_size": 1000,
    "seed": 0,
    "outputs": "outputs",
    "title": None,
}

METRICS: dict[str, Any] = {
    "final_loss": 30.5,
    "penalty_loss": 0.0123456,
    "kl_div_score": 0.98,
    "fvu": 0.05,
    "ce_loss_score": 0.9,
    "l0": 32.0,
    "dead_features": 0.25,
    "explained_variance": 0.95,
    "tokens": 100_000,
    "steps": 100,
}


def changed(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of the tree with dotted keys changed."""
    tree = {key: dict(value) if isinstance(value, dict) else value for key, value in tree.items()}
    for dotted, value in changes.items():
        *parents, leaf = dotted.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def add_run(
    outputs: Path,
    run_id: str,
    config: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
    state: str = "completed",
    title: str | None = None,
    warnings: tuple[str, ...] = (),
    **status: Any,
) -> Path:
    """One run's folder; `config` and `metrics` are changes to the usual ones."""
    folder = RunFolder(outputs / "runs" / run_id)
    full = changed(CONFIG, config or {})
    write_text(folder.config_path, "\n".join(yaml_lines(full)))
    folder.set_status(state=state, **{"step": 100, "total_steps": 100} | status)
    if state == "running":  # by this process, which lives
        write_json(folder.path / "lease.json", this_process() | {"token": run_id})
    if state == "completed":
        content = {"run_id": run_id, "title": title, "config": full, "warnings": list(warnings)}
        write_json(folder.results_path, content | {"metrics": METRICS | (metrics or {})})
    return folder.path


def add_sweep(outputs: Path, name: str, run_ids: list[str]) -> Path:
    folder = outputs / "sweeps" / name
    write_json(folder / "manifest.json", {"runs": [{"run_id": run_id, "title": f"as {run_id}"} for run_id in run_ids]})
    return folder


def yaml_lines(tree: dict[str, Any]) -> list[str]:
    import yaml

    return yaml.safe_dump(tree).splitlines()
