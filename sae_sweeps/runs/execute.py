"""Runs from activations to results, side by side: harvest, train, export, evaluate, record."""

from __future__ import annotations

import gc
import time
from pathlib import Path

import torch

from sae_sweeps.config.hooks import hook_name
from sae_sweeps.config.run import RunConfig
from sae_sweeps.config.schema import LayerConfig
from sae_sweeps.kernels.ahead import prepare as prepare_kernels
from sae_sweeps.kernels.launching import StepShape
from sae_sweeps.penalties.base import Penalty
from sae_sweeps.runs.batches import Batches
from sae_sweeps.runs.evaluate import Failure, Subject, evaluate_group, is_evaluated
from sae_sweeps.runs.export import trained_sae
from sae_sweeps.runs.results import write_results
from sae_sweeps.runs.session import RunSession
from sae_sweeps.runs.task import EvaluationsFailed, LeaseLost, RunTask
from sae_sweeps.runs.unchanged import refuse_changed
from sae_sweeps.sweeps.groups import one_of_each_layer
from sae_sweeps.training.checkpoint import has_checkpoint
from sae_sweeps.training.loop import Member, train


def execute(tasks: list[RunTask], session: RunSession) -> None:
    """Bring the runs of a group to their results, side by side, doing only what is not done yet.

    The runs share model, text, budget, `eval` and `outputs`, and each pass of the language model serves all of their
    layers; evaluations go layer by layer. Each run ends by its own `RunTask.end`.
    """
    if not tasks:
        return
    cache = Path(tasks[0].run.outputs) / "activations"
    train_together([task for task in tasks if not task.trained], session, cache)
    for task in tasks:
        if task.retry_warning and not task.ended:
            gc.collect()
            if session.device.type == "cuda":
                torch.cuda.empty_cache()
            train_together([task], session, cache)
    trained = [task for task in tasks if not task.ended]
    session.layers = layers_of(trained)
    for name in map(hook_name, session.layers):
        evaluate_together([task for task in trained if hook_name(task.run.layer) == name], session, cache)


def layers_of(tasks: list[RunTask]) -> list[LayerConfig]:
    return [run.layer for run in one_of_each_layer(task.run for task in tasks)]


def step_shapes(run: RunConfig) -> set[StepShape]:
    """What a run's kernels are compiled for: one shape for each k that its architecture may have at a step."""
    dtype = torch.float64 if run.train.precision == "float64" else torch.float32
    coarse = "bfloat16" in (run.train.precision, run.train.selection)
    k, k_start = (getattr(run.architecture, key, None) for key in ("k", "k_start"))
    sizes = run.batch_size, run.d_in, run.architecture.d_sae
    if not all(sizes):
        return set()
    first, last = sorted((k_start or k or 32, k or 32))
    products = torch.bfloat16 if coarse else dtype
    penalties = [run.component("penalty", term.config, term.place).component for term in run.penalty_terms()]
    own = Penalty.pair_competition
    competition = any(getattr(one, "pair_competition", own) is not own for one in penalties)
    return {StepShape(*sizes, n, dtype, products, competition) for n in range(first, last + 1)}


def train_together(tasks: list[RunTask], session: RunSession, cache: Path) -> None:
    """Train each to the end, from its checkpoint where there is one, on batches that are drawn once."""
    if not tasks:
        return
    began = time.monotonic()
    kernels = {task.run.train.kernels for task in tasks}
    shapes = {shape for task in tasks for shape in step_shapes(task.run)}
    compiling = [prepare_kernels(requested, session.device, shapes) for requested in kernels]
    try:
        session.layers = layers_of(tasks)
        batches = Batches([task.run for task in tasks], session, cache)
    except Exception as error:
        for task in tasks:
            task.end(error)
        return
    prepared: list[RunTask] = []
    members: list[Member] = []
    for task in tasks:
        task.group_size = len(tasks)
        with task.isolate_failure():
            batches.prepare(task.run, fresh=not has_checkpoint(task.folder.checkpoint))
            prepared.append(task)
    batches.draw_first()
    for thread in compiling:
        thread.join()
    share = (time.monotonic() - began) / len(tasks)
    for task in prepared:
        began = time.monotonic()
        with task.isolate_failure():
            member = task.start_training(batches, session)
            member.add_shared_seconds(share)
            member.seconds += time.monotonic() - began
            members.append(member)
    batches.forget_first()

    def tokens_done(step: int) -> int:
        return sum(min(max(step, member.start), member.total) * member.run.batch_size for member in members)

    total = sum(member.total * member.run.batch_size for member in members)
    session.progress.stage("train", total, "tok", tokens_done(0))
    train(
        members,
        lambda step: batches.draw(members, step),
        session.stop,
        session.flush,
        lambda step: session.progress.tick(tokens_done(step)),
    )


def evaluate_together(tasks: list[RunTask], session: RunSession, cache: Path) -> None:
    """Evaluate trained runs of one layer on shared passes and write their results; what was done before an interruption
    counts."""
    subjects: list[Subject] = []
    failures: list[Failure] = []
    stopped: Exception | None = None
    for task in tasks:
        with task.isolate_failure():
            refuse_changed(task.run, task.folder.path, Path(task.run.outputs))
            if not is_evaluated(task.run, task.folder):
                subjects.append(Subject(task.run_id, task.run, task.folder.path, trained_sae(task.run, task.folder)))
    if subjects:
        try:
            session.raise_if_stopped()
            failures = evaluate_group(subjects, session, cache)
        except Exception as error:
            stopped = error
    for task in tasks:
        if task.ended:
            continue
        with task.isolate_failure():
            if not task.lease.check():
                raise LeaseLost(task.folder)
            if stopped is not None and not is_evaluated(task.run, task.folder):
                raise stopped
            own = [failure for failure in failures if failure.subject == task.run_id]
            write_results(task.run, task.run_id, task.folder, task.planned.title, own)
            if own:
                raise EvaluationsFailed("; ".join(map(str, own)))
            task.end()
