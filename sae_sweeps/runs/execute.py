"""One run from activations to results: harvest, train, export, evaluate, record."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from sae_sweeps.activations.sampler import Sampler
from sae_sweeps.config.run import RunConfig
from sae_sweeps.evaluation.geometry import similarity_snapshot
from sae_sweeps.files import read_json, write_bytes, write_json, write_text
from sae_sweeps.runs.bench import Bench, open_split
from sae_sweeps.runs.evaluate import (
    Failure,
    collected,
    evaluate_run,
    held_out_activations,
    held_out_fvu,
    is_evaluated,
)
from sae_sweeps.runs.export import export, live_sae
from sae_sweeps.runs.folder import RunFolder
from sae_sweeps.runs.lease import Lease
from sae_sweeps.runs.provenance import provenance
from sae_sweeps.training.checkpoint import has_checkpoint, load_checkpoint
from sae_sweeps.training.loop import Watch, train
from sae_sweeps.training.start import activation_scale, decoder_bias, first_tokens
from sae_sweeps.training.step import Training

# Metrics of the last step that stand beside the evaluation's in results.json.
LAST_STEP = ("loss", "recon_loss", "sparsity_loss", "penalty_loss", "penalty_weight", "dead_features")

TRAINED = "trained.json"
"""Marks a run whose training is done; holds its provenance and warnings."""

STATUS_EVERY_S = 1.0
"""Seconds between updates of status.json while training."""


class EvaluationsFailed(Exception):
    """The run is trained and its results are written, but for some evaluations."""


class LeaseLost(Exception):
    """Another process took the run over; this one must not write to it any more."""


def train_run(
    run: RunConfig, folder: RunFolder, bench: Bench, cache: Path, log: Callable[[dict[str, Any]], None], lease: Lease
) -> None:
    """Train to the end, from the checkpoint where there is one; export `sae/`; write `trained.json` last."""
    began = time.monotonic()
    store = open_split(run, bench, cache, "train", run.total_steps * run.batch_size)
    sampler = Sampler(
        store, run.batch_size, run.data_seed, kind=run.train.sampling, window=run.train.window, device=bench.device
    )
    if has_checkpoint(folder.checkpoint):
        training = Training(run, 1.0, torch.zeros(store.d_in, device=bench.device), bench.device)
        start = load_checkpoint(training, folder.checkpoint)
    else:
        x = first_tokens(sampler, run.batch_size, run.total_steps)
        training = Training(run, activation_scale(x, run.train), decoder_bias(x, run.train), bench.device)
        start = 0
    folder.truncate(start - 1)
    folder.set_status(step=start)
    wanted = run.total_steps * run.batch_size
    held_out = held_out_activations(run, bench, cache)
    bench.progress.stage("train", wanted, "tok", start * run.batch_size)

    told = time.monotonic()

    def record(row: dict[str, Any]) -> None:
        nonlocal told
        folder.metrics.append(row)
        if time.monotonic() - told > STATUS_EVERY_S:
            folder.set_status(step=row["step"] + 1)
            told = time.monotonic()
        log(row)

    def stop() -> bool:
        if lease.lost:  # not even a checkpoint: the files are another's now
            raise LeaseLost(f"another process took over {folder.path}")
        return bench.stop()

    def look(training: Training) -> dict[str, float]:
        return {} if held_out is None else {"held_out_fvu": held_out_fvu(live_sae(run, training), held_out)}

    watch = Watch(
        note=folder.monitors.append,
        look=look,
        quarter=lambda training, percent: write_snapshot(folder, training.sae.W_dec.detach(), percent),
        tick=lambda step: bench.progress.tick((step + 1) * run.batch_size),
    )
    train(training, sampler.batches, start, folder.checkpoint, record, stop, watch, bench.flush)
    folder.set_status(step=run.total_steps)
    refused = run.why_not_saelens()
    if refused is None:
        export(run, training, folder)
    seconds = time.monotonic() - began
    warnings = [refused] * (refused is not None) + run.penalty.result_warnings(folder.metrics.rows())
    if store.n_tokens < wanted:
        repeats = wanted / store.n_tokens
        warnings.append(
            f"the text holds {store.n_tokens:,} tokens: the {wanted:,} trained on repeat it {repeats:.2f} times"
        )
    trained = {
        "warnings": warnings,
        "provenance": provenance(str(bench.device), torch.get_num_threads())
        | {
            "kernels": "reference",
            "activation_scale": training.scale,
            "start_step": start,
            "wall_time_s": round(seconds, 2),
            "tokens_per_s": round((run.total_steps - start) * run.batch_size / max(seconds, 1e-9)),
        },
    }
    write_json(folder.path / TRAINED, trained)


def write_snapshot(folder: RunFolder, W_dec: torch.Tensor, percent: int) -> None:
    """monitors/similarity_25.npz and so on: how similar the decoder's rows are at a quarter of the training."""
    content = io.BytesIO()
    np.savez_compressed(content, **similarity_snapshot(W_dec.cpu(), seed=0))
    write_bytes(folder.path / "monitors" / f"similarity_{percent}.npz", content.getvalue())


def is_complete(run: RunConfig, folder: RunFolder) -> bool:
    """Whether nothing is left to do for this run and the evaluation it asks for."""
    return (folder.path / TRAINED).exists() and folder.results_path.exists() and is_evaluated(run, folder)


def write_config(run: RunConfig, folder: RunFolder) -> None:
    """config.yaml: what is really used, no interpolation left."""
    write_text(folder.config_path, OmegaConf.to_yaml(OmegaConf.create(run.to_dict())))


def write_results(
    run: RunConfig, run_id: str, folder: RunFolder, title: str, failures: list[Failure]
) -> dict[str, Any]:
    """results.json from the last row of metrics.jsonl, `trained.json` and everything in `evals/`."""
    last = folder.metrics.rows()[-1]
    trained = read_json(folder.path / TRAINED)
    metrics: dict[str, Any] = {("final_loss" if key == "loss" else key): last.get(key) for key in LAST_STEP}
    metrics |= {"tokens": last["tokens"], "steps": last["step"] + 1}
    warnings = list(trained["warnings"])
    measured, told = collected(folder.path)
    metrics |= measured
    warnings += told + [str(failure) for failure in failures]
    results = {
        "run_id": run_id,
        "title": title,
        "config": run.to_dict(),
        "metrics": metrics,
        "provenance": trained["provenance"],
        "warnings": warnings,
    }
    write_json(folder.results_path, results)
    return results


def execute(
    run: RunConfig,
    run_id: str,
    folder: RunFolder,
    title: str,
    bench: Bench,
    log: Callable[[dict[str, Any]], None],
    lease: Lease,
) -> dict[str, Any]:
    """Bring a run to its results, doing only what is not done yet. Returns what results.json holds."""
    cache = Path(run.outputs) / "activations"
    if not (folder.path / TRAINED).exists():
        train_run(run, folder, bench, cache, log, lease)
    failures = evaluate_run(run, folder, bench, cache, run_id)
    results = write_results(run, run_id, folder, title, failures)
    if failures:
        raise EvaluationsFailed("; ".join(map(str, failures)))
    return results
