"""One run from activations to results: harvest, train, export, evaluate, record."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from omegaconf import OmegaConf

from sae_sweeps.activations.harvest import SyntheticSource
from sae_sweeps.activations.sampler import Sampler
from sae_sweeps.activations.store import ActivationStore, open_activations
from sae_sweeps.activations.synthetic import SyntheticWorld
from sae_sweeps.config.identity import canonical, short_hash
from sae_sweeps.config.run import RunConfig
from sae_sweeps.config.schema import DataConfig, SyntheticConfig
from sae_sweeps.errors import ConfigError, Interrupted
from sae_sweeps.evaluation.geometry import similarity_snapshot
from sae_sweeps.files import read_json, write_bytes, write_json, write_text
from sae_sweeps.runs.export import export, live_sae, trained_sae
from sae_sweeps.runs.folder import RunFolder
from sae_sweeps.runs.lease import Lease
from sae_sweeps.runs.provenance import provenance
from sae_sweeps.saelens import ExportedSAE
from sae_sweeps.training.checkpoint import has_checkpoint, load_checkpoint
from sae_sweeps.training.loop import Watch, train
from sae_sweeps.training.start import activation_scale, decoder_bias, first_tokens
from sae_sweeps.training.step import Training

if TYPE_CHECKING:
    from sae_sweeps.activations.language_model import LanguageModel

# Metrics of the last step that stand beside the evaluation's in results.json.
LAST_STEP = ("loss", "recon_loss", "sparsity_loss", "penalty_loss", "penalty_weight", "dead_features")

SUMMARY = ".summary.json"
"""Beside SAEBench's `evals/core.json`: `evals/core.summary.json` with flat metrics, settings and warnings."""
TRAINED = "trained.json"
"""Marks a run whose training is done; holds its provenance and warnings."""

HELD_OUT_SPREAD = 16
HELD_OUT_PART = 1024
"""Tokens encoded at once, as many as in a step."""

STATUS_EVERY_S = 1.0
"""Seconds between updates of status.json while training."""


class LeaseLost(Exception):
    """Another process took the run over; this one must not write to it any more."""


@dataclass
class Progress:
    """What a run tells whoever watches: `stage(name, total, unit, done=0)` opens a stage, `tick` reports units done."""

    stage: Callable[..., None] = lambda name, total, unit, done=0: None
    tick: Callable[[int], None] = lambda done: None


@dataclass
class Bench:
    """What runs in one process share: the device and the language model."""

    device: torch.device
    stop: Callable[[], bool] = lambda: False
    progress: Progress = field(default_factory=Progress)
    _models: dict[str, LanguageModel] = field(default_factory=dict)
    _held_out: dict[str, torch.Tensor] = field(default_factory=dict)

    def language_model(self, run: RunConfig, digest: str) -> LanguageModel | None:
        """The run's language model, loaded once; None for synthetic activations."""
        if run.synthetic:
            return None
        if digest not in self._models:
            from sae_sweeps.activations.language_model import load_language_model

            self._models.clear()  # one at a time: the next may be as large
            self._models[digest] = load_language_model(run.model, self.device)
        return self._models[digest]

    def held_out(self, run: RunConfig) -> tuple[LanguageModel, torch.Tensor]:
        """The language model and the held-out contexts [N, context] that `eval` asks for, tokenised once."""
        from sae_sweeps.activations.contexts import held_out_contexts

        identity = canonical(run)
        lm = self.language_model(run, identity["model"]["digest"])
        assert lm is not None
        n_contexts = run.eval.batch_size * (run.eval.recon_batches + run.eval.sparsity_batches)
        key = short_hash([identity["model"], identity["data"], n_contexts])
        if key not in self._held_out:
            self._held_out = {key: held_out_contexts(run.model, run.data, lm, n_contexts)}
        return lm, self._held_out[key]

    def check(self, done: int) -> None:
        """Report progress outside the training loop; there a stop needs no checkpoint."""
        self.progress.tick(done)
        if self.stop():
            raise Interrupted("stopped before a step was taken")


def device_for(name: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises ConfigError when CUDA is asked for and absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise ConfigError(
            f"device={name}: torch {torch.__version__} sees {found} CUDA device{'s' * (found != 1)} here; "
            "give device=cpu, or install torch's CUDA build on a machine with a GPU."
        )
    return device


def activation_key(run: RunConfig, identity: dict[str, Any], split: str, num_tokens: int) -> dict[str, Any]:
    """What determines a store of activations."""
    key: dict[str, Any] = {name: identity[name] for name in ("model", "layer", "data") if name in identity}
    if not run.synthetic:
        key["harvest_batch"] = run.activations.harvest_batch  # other shapes, other last bits
    return key | {"split": split, "num_tokens": num_tokens, "dtype": run.activations.dtype}


def open_split(run: RunConfig, bench: Bench, cache: Path, split: str, num_tokens: int) -> ActivationStore:
    """Activations of the training or the held-out text, harvested if nobody did before; held-out ones in memory."""
    identity = canonical(run, cache / "digests")
    bench.progress.stage("harvest", num_tokens, "tok")
    data = DataConfig() if run.synthetic else run.data  # synthetic text has no say
    kept = run.activations if split == "train" else replace(run.activations, mode="memory")
    return open_activations(
        run.model, run.layer, data, kept, num_tokens, cache, bench.device,
        split=split, key=activation_key(run, identity, split, num_tokens),
        lm=bench.language_model(run, identity["model"]["digest"]), progress=bench.check,
    )  # fmt: skip


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
    train(training, sampler.batches, start, folder.checkpoint, record, stop, watch)
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


def held_out_activations(run: RunConfig, bench: Bench, cache: Path) -> torch.Tensor | None:
    """`train.held_out_tokens` held-out activations [n, d_in] that are the same for every run, or None where 0.

    Taken evenly from HELD_OUT_SPREAD times as many, so that they come from more than one document.
    """
    n_tokens = run.train.held_out_tokens
    if n_tokens == 0:
        return None
    store = open_split(run, bench, cache, "held_out", n_tokens * HELD_OUT_SPREAD)
    rows = torch.arange(min(n_tokens, store.n_tokens)) * store.n_tokens // min(n_tokens, store.n_tokens)
    return store.rows(0, store.n_tokens).take(rows.numpy()).x.float().to(bench.device)


@torch.no_grad()
def held_out_fvu(sae: ExportedSAE, x: torch.Tensor) -> float:
    """Fraction of the variance of x [n, d_in] that the SAE leaves unexplained."""
    error = sum((sae.decode(sae.encode(part)) - part).square().sum() for part in x.split(HELD_OUT_PART))
    return float(error / (x - x.mean(0)).square().sum())


def write_snapshot(folder: RunFolder, W_dec: torch.Tensor, percent: int) -> None:
    """monitors/similarity_25.npz and so on: how similar the decoder's rows are at a quarter of the training."""
    content = io.BytesIO()
    np.savez_compressed(content, **similarity_snapshot(W_dec.cpu(), seed=0))
    write_bytes(folder.path / "monitors" / f"similarity_{percent}.npz", content.getvalue())


def evaluate_run(run: RunConfig, folder: RunFolder, bench: Bench) -> None:
    """Run the evaluation that the config asks for on the exported SAE: `evals/core.json` and its summary."""
    if run.eval.name == "none":
        return
    from sae_sweeps.evaluation.core import evaluate_activations, evaluate_core, write_core

    sae = trained_sae(run, folder)
    bench.progress.stage("evaluate", 1, "SAE")
    if isinstance(run.model, SyntheticConfig):
        n_tokens = run.eval.sparsity_batches * run.eval.batch_size * DataConfig().context
        world = SyntheticSource(SyntheticWorld(run.model), DataConfig().context, "held_out", torch.float32)
        result = evaluate_activations({"sae": sae}, (batch.x for batch in world.stream(0, n_tokens)))["sae"]
    else:
        lm, tokens_NL = bench.held_out(run)
        result = evaluate_core({"sae": sae}, run.eval, lm, run.layer, tokens_NL)["sae"]
    write_core(result, folder.path)
    summary = {"settings": asdict(run.eval), "metrics": result.metrics, "warnings": result.warnings}
    write_json(folder.evals / f"{run.eval.name}{SUMMARY}", summary)


def is_evaluated(run: RunConfig, folder: RunFolder) -> bool:
    """Whether `evals/` holds what `eval` asks for, made by the same settings."""
    if run.eval.name == "none":
        return True
    path = folder.evals / f"{run.eval.name}{SUMMARY}"
    return path.exists() and read_json(path)["settings"] == asdict(run.eval)


def is_complete(run: RunConfig, folder: RunFolder) -> bool:
    """Whether nothing is left to do for this run and the evaluation it asks for."""
    return (folder.path / TRAINED).exists() and folder.results_path.exists() and is_evaluated(run, folder)


def write_config(run: RunConfig, folder: RunFolder) -> None:
    """config.yaml: what is really used, no interpolation left."""
    write_text(folder.config_path, OmegaConf.to_yaml(OmegaConf.create(run.to_dict())))


def write_results(run: RunConfig, run_id: str, folder: RunFolder, title: str) -> dict[str, Any]:
    """results.json from the last row of metrics.jsonl, `trained.json` and everything in `evals/`."""
    last = folder.metrics.rows()[-1]
    trained = read_json(folder.path / TRAINED)
    metrics: dict[str, Any] = {("final_loss" if key == "loss" else key): last.get(key) for key in LAST_STEP}
    metrics |= {"tokens": last["tokens"], "steps": last["step"] + 1}
    warnings = list(trained["warnings"])
    for path in sorted(folder.evals.glob(f"*{SUMMARY}")):
        evaluation = read_json(path)
        metrics |= evaluation["metrics"]
        warnings += evaluation["warnings"]
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
    if not is_evaluated(run, folder):
        evaluate_run(run, folder, bench)
    return write_results(run, run_id, folder, title)
