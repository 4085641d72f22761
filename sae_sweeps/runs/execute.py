"""Runs from activations to results, side by side: harvest, train, export, evaluate, record."""

from __future__ import annotations

import gc
import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from sae_sweeps.config.run import RunConfig
from sae_sweeps.evaluation.geometry import similarity_snapshot
from sae_sweeps.kernels.choose import name as kernels_name
from sae_sweeps.kernels.choose import prepare as prepare_kernels
from sae_sweeps.runs.batches import Batches, stream_of
from sae_sweeps.runs.evaluate import (
    Failure,
    Subject,
    collected,
    evaluate_group,
    held_out_fvu,
    is_evaluated,
)
from sae_sweeps.runs.export import export, live_sae, trained_sae
from sae_sweeps.runs.provenance import provenance
from sae_sweeps.runs.session import RunSession
from sae_sweeps.storage.files import read_json, write_bytes, write_json, write_text
from sae_sweeps.storage.lease import Lease
from sae_sweeps.storage.run_folder import RunFolder
from sae_sweeps.training.checkpoint import has_checkpoint, load_checkpoint
from sae_sweeps.training.loop import Member, TrainingCallbacks, train
from sae_sweeps.training.start import activation_scale, decoder_bias
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


class Work(TrainingCallbacks):
    """One run that this process has the lease of, and the files in which its training is recorded.

    Args:
        log: told every row of metrics.jsonl.
        tell: told, in words, what whoever watches should know.
        end: told once how the run's part here ended: None, or what stood in the way.
    """

    def __init__(
        self,
        run: RunConfig,
        run_id: str,
        title: str,
        folder: RunFolder,
        lease: Lease,
        log: Callable[[dict[str, Any]], None],
        tell: Callable[[str], None],
        end: Callable[[Exception | None], None],
    ):
        self.run, self.run_id, self.title, self.folder, self.lease = run, run_id, title, folder, lease
        self.tell, self.end, self._log = tell, end, log
        self.ended = False
        self.group_size = 1
        self.ran_out: str | None = None
        """Says that the run ran out of memory beside others, and so is trained alone."""
        self._held_out: torch.Tensor | None = None
        self._n_tokens = 0
        self._told = 0.0

    @property
    def trained(self) -> bool:
        return (self.folder.path / TRAINED).exists()

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Whatever goes wrong inside is this run's end and nobody else's."""
        try:
            yield
        except Exception as error:
            self.left(error)

    def start(self, batches: Batches, session: RunSession) -> Member:
        """Put the run where its checkpoint says, or at its start."""
        run, folder, d_in = self.run, self.folder, batches.store.d_in
        if has_checkpoint(folder.checkpoint):
            training = Training(run, 1.0, torch.zeros(d_in, device=session.device), session.device)
            start = load_checkpoint(training, folder.checkpoint)
        else:
            x = batches.first[stream_of(run)]
            training = Training(run, activation_scale(x, run.train), decoder_bias(x, run.train), session.device)
            start = 0
        folder.truncate(start - 1)
        folder.set_status(step=start)
        self._told = time.monotonic()
        self._held_out, self._n_tokens = batches.held_out[run.train.held_out_tokens], batches.store.n_tokens
        return Member(training, start, folder.checkpoint, self, stream_of(run))

    # What happens on the way -----------------------------------------------------------------------------------------

    def check(self) -> None:
        if self.lease.lost:  # not even a checkpoint: the files are another's now
            raise LeaseLost(f"another process took over {self.folder.path}")

    def log(self, row: dict[str, Any]) -> None:
        self.folder.metrics.append(row)
        if time.monotonic() - self._told > STATUS_EVERY_S:
            self.saved(row["step"] + 1)
        self._log(row)

    def note(self, record: dict[str, Any]) -> None:
        self.folder.monitors.append(record)

    def look(self, training: Training) -> dict[str, float]:
        if self._held_out is None:
            return {}
        return {"held_out_fvu": held_out_fvu(live_sae(self.run, training), self._held_out)}

    def quarter(self, training: Training, percent: int) -> None:
        write_snapshot(self.folder, training.sae.W_dec.detach(), percent)

    def saved(self, step: int) -> None:
        self.folder.set_status(step=step)
        self._told = time.monotonic()

    def done(self, member: Member) -> None:
        """Export `sae/`; write `trained.json` last."""
        run, began = self.run, time.monotonic()
        refused = run.why_not_saelens()
        if refused is None:
            export(run, member.training, self.folder)
        warnings = [refused] * (refused is not None) + run.penalty.result_warnings(self.folder.metrics.rows())
        wanted = run.total_steps * run.batch_size
        if self._n_tokens < wanted:
            repeats = wanted / self._n_tokens
            warnings.append(
                f"the text holds {self._n_tokens:,} tokens: the {wanted:,} trained on repeat it {repeats:.2f} times"
            )
        if self.ran_out:
            warnings.append(self.ran_out)
        trained = {
            "warnings": warnings,
            "provenance": provenance(str(member.training.device), torch.get_num_threads())
            | {
                "kernels": kernels_name(member.training.sae.kernels),
                "activation_scale": member.training.scale,
                "start_step": member.start,
                "group_size": self.group_size,
                "wall_time_s": round(member.seconds + time.monotonic() - began, 2),
                "shared_time_s": round(member.shared_seconds, 2),
                "tokens_per_s": member.speed(member.total - member.start - 1, member.stopwatch.seconds()),
            },
        }
        write_json(self.folder.path / TRAINED, trained)

    def left(self, error: Exception) -> None:
        if self.group_size > 1 and out_of_memory(error):
            self.ran_out = f"ran out of memory in a group of {self.group_size} runs and was trained alone"
            self.tell(f"{self.run_id}  {self.title}: ran out of memory; it will be tried again alone")
        else:
            self.finish(error)

    def finish(self, error: Exception | None) -> None:
        self.ended = True
        self.end(error)


def out_of_memory(error: Exception) -> bool:
    """Whether the device or the machine had no memory left."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def execute(works: list[Work], session: RunSession) -> None:
    """Bring the runs of a group to their results, side by side, doing only what is not done yet.

    The runs share model, layer, text, budget, `eval` and `outputs`. How each ended is told to its `end`.
    """
    if not works:
        return
    cache = Path(works[0].run.outputs) / "activations"
    train_together([work for work in works if not work.trained], session, cache)
    for work in works:
        if work.ran_out and not work.ended:
            gc.collect()
            if session.device.type == "cuda":
                torch.cuda.empty_cache()
            train_together([work], session, cache)
    evaluate_together([work for work in works if not work.ended], session, cache)


def train_together(works: list[Work], session: RunSession, cache: Path) -> None:
    """Train each to the end, from its checkpoint where there is one, on batches that are drawn once."""
    if not works:
        return
    for work in works:
        work.group_size = 1
    began = time.monotonic()
    compiling = [prepare_kernels(asked, session.device) for asked in {work.run.train.kernels for work in works}]
    try:
        batches = Batches(works[0].run, session, cache)
    except Exception as error:
        for work in works:
            work.left(error)
        return
    prepared: list[Work] = []
    members: list[Member] = []
    for work in works:
        work.group_size = len(works)
        with work.apart():
            batches.prepare(work.run, fresh=not has_checkpoint(work.folder.checkpoint))
            prepared.append(work)
    for thread in compiling:
        thread.join()
    share = (time.monotonic() - began) / len(works)
    for work in prepared:
        began = time.monotonic()
        with work.apart():
            members.append(work.start(batches, session))
            members[-1].shared(share)
            members[-1].seconds += time.monotonic() - began
    batches.first.clear()
    ends = [(member.start, member.total, member.training.run.batch_size) for member in members]
    tokens = sum(total * size for _, total, size in ends)

    def done(step: int) -> int:
        return sum(min(max(step, start), total) * size for start, total, size in ends)

    session.progress.stage("train", tokens, "tok", done(0))
    train(
        members,
        lambda step: batches.draw(tuple(members), step),
        session.stop,
        session.flush,
        lambda step: session.progress.tick(done(step)),
    )


def evaluate_together(works: list[Work], session: RunSession, cache: Path) -> None:
    """Evaluate trained runs on shared passes and write their results; what was done before an interruption counts."""
    subjects: list[Subject] = []
    failures: list[Failure] = []
    stopped: Exception | None = None
    for work in works:
        with work.apart():
            if not is_evaluated(work.run, work.folder):
                subjects.append(Subject(work.run_id, work.run, work.folder.path, trained_sae(work.run, work.folder)))
    if subjects:
        try:
            failures = evaluate_group(subjects, session, cache)
        except Exception as error:
            stopped = error
    for work in works:
        if work.ended:
            continue
        with work.apart():
            if not work.lease.check():
                work.check()
            if stopped is not None and not is_evaluated(work.run, work.folder):
                raise stopped
            mine = [failure for failure in failures if failure.subject == work.run_id]
            write_results(work.run, work.run_id, work.folder, work.title, mine)
            if mine:
                raise EvaluationsFailed("; ".join(map(str, mine)))
            work.finish(None)


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
