"""Run folders with all that training leaves for figures, without training."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from sae_sweeps.storage.files import write_bytes
from sae_sweeps.storage.run_folder import RunFolder
from tests.analysis.outputs import add_run

SCORES = {
    "unlearning_score": 0.05, "sae_top_1_test_accuracy": 0.7, "sae_top_2_test_accuracy": 0.75,
    "llm_top_1_test_accuracy": 0.8, "llm_top_2_test_accuracy": 0.85, "nearest_neighbour_cosine": 0.3, "nmi": 0.1,
    "silhouette": 0.02, "l1": 40.0, "recovery_mmcs": 0.9,
}  # fmt: skip


def add_trained(
    outputs: Path, run_id: str, config: dict[str, Any], metrics: dict[str, Any] | None = None, n: int = 12, **more: Any
) -> Path:
    """A run of `n` logged steps with every monitor there is."""
    folder = RunFolder(add_run(outputs, run_id, config, SCORES | (metrics or {}), **more))
    draw = np.random.default_rng(sum(map(ord, run_id)))
    for step in range(n):
        shrink = float(np.exp(-step / n) * (1 + 0.01 * draw.random()))
        row = {"step": step, "tokens": 1000 * (step + 1), "loss": 90 * shrink, "recon_loss": 80 * shrink}
        row |= {"sparsity_loss": 0.0, "penalty_loss": 3.0 * step, "penalty_weight": 1 - step / n, "l0": 32.0}
        row |= {"fvu": shrink / 2, "dead_features": 0.0, "lr": 1e-3, "k": 32.0, "penalty/threshold": 0.3 * shrink}
        if step % 3 == 0 or step == n - 1:
            row |= {"held_out_fvu": shrink / 2, "held_out_fvu_per_token": shrink / 3}
            row |= {"grad_norm/recon": 9 * shrink, "grad_norm/recon_enc": 5 * shrink}
            row |= {"grad_norm/penalty": 0.1 * step, "grad_norm/penalty_enc": 0.0}
            for record in monitors(step, draw):
                folder.monitors.append({"step": step, **record})
        folder.metrics.append(row)
    folder.close()
    for percent in (25, 50, 75, 100):
        write_bytes(folder.path / "monitors" / f"similarity_{percent}.npz", snapshot(draw))
    return folder.path


def monitors(step: int, draw: np.random.Generator) -> list[dict[str, Any]]:
    pairs = {name: draw.random(6).tolist() for name in ("overlap", "c", "abs_cosine", "correlation")}
    mi = draw.random((4, 4)).tolist()
    deciles = {name: np.sort(draw.random(11)).tolist() for name in ("mean", "max", "std", "frequency")}
    layer = {"sizes": [8] * 4, "mean_energy": draw.random(4).tolist(), "active_share": draw.random(4).tolist()}
    layer |= {"mi_mean": 0.1, "mi_quantiles": {"0.5": 0.1, "0.9": 0.2}, "mi": mi}
    watched = {"pairs": [[i, i + 1] for i in range(6)], **pairs}
    return [
        {"monitor": "pairs", "chosen": 2, "chosen_at": 0, **watched},
        {"monitor": "pairs", "chosen": 25, "chosen_at": 3, **watched},
        {"monitor": "competition", **watched},
        {"monitor": "groups", **layer},
        {"monitor": "groups", "sizes": [3, 5], "first": [1, 0, 1, 0, 1, 0, 0, 0], "deciles": deciles},
        {"monitor": "group_event", "kind": "mi", "moved": 3, "sizes_after": [9, 7, 8, 8]},
        {"monitor": "contrastive", "alignment": 0.5, "uniformity": None, "retrieval": 0.4, "chance": 0.1},
    ]


def snapshot(draw: np.random.Generator, n: int = 20) -> bytes:
    rows = draw.standard_normal((n, 8))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    block = rows @ rows.T
    counts = np.histogram(np.abs(block[np.triu_indices(n, 1)]), 50, (0, 1))[0]
    out = io.BytesIO()
    arrays = {"histogram": counts, "edges": np.linspace(0, 1, 51), "features": np.arange(n)}
    np.savez_compressed(out, block=block.astype(np.float16), **arrays)
    return out.getvalue()
