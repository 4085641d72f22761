"""Evaluations of trained SAEs: `evals/NAME.json`, and beside it a summary with flat metrics, settings and warnings.

SAEs of one model and layer are evaluated side by side, so that what no SAE decides is done once. An evaluation that
fails is told of and takes nothing else with it.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sae_sweeps.activations.harvest import SyntheticSource
from sae_sweeps.activations.synthetic import SyntheticWorld
from sae_sweeps.architectures.saelens import ExportedSAE
from sae_sweeps.config.evaluations import EVALUATIONS, SETTINGS, WITHOUT_MODEL, EvalConfig
from sae_sweeps.config.run import RunConfig
from sae_sweeps.config.schema import DataConfig, SyntheticConfig
from sae_sweeps.errors import DamagedFile, Interrupted, UserError
from sae_sweeps.evaluation.composition import composition
from sae_sweeps.evaluation.geometry import decoder_geometry
from sae_sweeps.evaluation.labels import label_separation
from sae_sweeps.evaluation.recovery import recovery
from sae_sweeps.evaluation.result import Result
from sae_sweeps.runs.session import RunSession, evenly, held_out_pool
from sae_sweeps.storage.files import one_line, read_json, write_json, write_text
from sae_sweeps.storage.run_folder import RunFolder

SUMMARY = ".summary.json"
"""Beside SAEBench's `evals/core.json`: `evals/core.summary.json`."""

ANSWERS = "autointerp.answers.jsonl"
"""Beside `evals/autointerp.json`: what the judge said, kept as it came."""

NOT_SETTINGS = {"autointerp": ("confirm", "price_in", "price_out", "concurrency", "api_key_env")}
"""Keys within a part of `eval` that change no number."""

HELD_OUT_SPREAD = 16
"""Held-out tokens are taken evenly from this many times as many, so that they come from more than one document."""
LABEL_SPREAD = 32
"""The same for tokens with labels: a label may be rare."""
HELD_OUT_PART = 1024
"""Tokens encoded at once, as many as in a step."""


@dataclass
class Subject:
    """One SAE that is to be evaluated."""

    name: str
    run: RunConfig
    """Says the model, layer and text that it belongs to, and `eval`."""
    folder: Path
    """Holds `evals/`."""
    sae: ExportedSAE


@dataclass
class Failure:
    """An evaluation that could not be done."""

    subject: str
    evaluation: str
    why: str

    def __str__(self) -> str:
        return f"evaluation {self.evaluation} failed: {self.why}"


def settings_of(cfg: EvalConfig, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {key: getattr(cfg, key) for key in SETTINGS[name]}
    for key, value in found.items():
        if hasattr(value, "__dataclass_fields__"):
            found[key] = {k: v for k, v in asdict(value).items() if k not in NOT_SETTINGS.get(key, ())}
    return found


def wanted(run: RunConfig) -> list[str]:
    """The evaluations that the config asks for and the model allows, in their order."""
    if run.eval.name == "none":
        return []
    return [n for n in EVALUATIONS if n in run.eval.evaluations and (not run.synthetic or n in WITHOUT_MODEL)]


def is_done(cfg: EvalConfig, folder: Path, name: str) -> bool:
    """Whether the folder holds this evaluation, made by the same settings."""
    path = folder / "evals" / f"{name}{SUMMARY}"
    return path.exists() and read_summary(path)["settings"] == settings_of(cfg, name)


def read_summary(path: Path) -> dict[str, Any]:
    """What `summarise` wrote. Raises DamagedFile where it is something else."""
    content = read_json(path)
    if not isinstance(content, dict) or not {"settings", "metrics", "warnings"} <= set(content):
        raise DamagedFile(f"{path} is damaged (it has no metrics); remove it, and the evaluation is done again.")
    return content


def is_evaluated(run: RunConfig, folder: RunFolder) -> bool:
    return all(is_done(run.eval, folder.path, name) for name in wanted(run))


def evaluate_group(
    subjects: list[Subject], session: RunSession, cache: Path, tell: Callable[[str], None] = lambda line: None
) -> list[Failure]:
    """Evaluate SAEs of one model, layer and text side by side; `tell` hears a line about each evaluation."""
    failures = []
    for subject in subjects:
        subject.sae = subject.sae.to(session.device)
    for name in wanted(subjects[0].run):
        left = [subject for subject in subjects if not is_done(subject.run.eval, subject.folder, name)]
        began = time.monotonic()
        found = (
            [Failure(who, name, why) for who, why in _attempt(name, left, session, cache).items() if why]
            if left
            else []
        )
        failures += found
        before = f", {len(subjects) - len(left)} done before" if len(left) < len(subjects) else ""
        tell(f"{name}: {len(left) - len(found)} done in {time.monotonic() - began:.1f} s{before}")
        for failure in found:
            tell(f"{failure.subject}: {failure}")
    session.forget_features()
    return failures


def _attempt(name: str, left: list[Subject], session: RunSession, cache: Path) -> dict[str, str | None]:
    """One evaluation of several SAEs, and of each alone where that fails; what went wrong with each, or None."""
    try:
        EVALUATE.get(name, _labelled)(name, left, session, cache)
    except Interrupted:
        raise
    except Exception as error:
        if len(left) > 1 and not isinstance(error, UserError):
            return {key: why for one in left for key, why in _attempt(name, [one], session, cache).items()}
        if not isinstance(error, UserError):
            log = left[0].folder / "evals" / f"{name}.error.log"
            write_text(log, traceback.format_exc())
            return {left[0].name: f"{type(error).__name__}: {one_line(error)} (traceback in {log})"}
        return dict.fromkeys([one.name for one in left], str(error))
    return dict.fromkeys([one.name for one in left])


def summarise(subject: Subject, name: str, metrics: Mapping[str, Any], warnings: list[str]) -> None:
    content = {"settings": settings_of(subject.run.eval, name), "metrics": metrics, "warnings": warnings}
    write_json(subject.folder / "evals" / f"{name}{SUMMARY}", content)
    (subject.folder / "evals" / f"{name}.error.log").unlink(missing_ok=True)


def _core(name: str, subjects: list[Subject], session: RunSession, cache: Path) -> None:
    """SAEBench's core evaluation: `evals/core.json`."""
    from sae_sweeps.evaluation.core import evaluate_activations, evaluate_core, write_core

    run = subjects[0].run
    saes = {subject.name: subject.sae for subject in subjects}
    if isinstance(run.model, SyntheticConfig):
        session.progress.stage("core", 1, "evaluation")
        n_tokens = run.eval.sparsity_batches * run.eval.batch_size * DataConfig().context
        world = SyntheticSource(SyntheticWorld(run.model), DataConfig().context, "held_out", torch.float32)
        results = evaluate_activations(saes, (batch.x for batch in world.stream(0, n_tokens)))
    else:
        lm, tokens_NL = session.held_out(run)
        session.progress.stage("core", len(tokens_NL), "context")
        results = evaluate_core(saes, run.eval, lm, run.layer, tokens_NL, session.check)
    for subject in subjects:
        result = results[subject.name]
        write_core(result, subject.folder)
        summarise(subject, name, result.metrics, result.warnings)


def _separation(name: str, subjects: list[Subject], session: RunSession, cache: Path) -> None:
    session.progress.stage("separation", len(subjects), "SAE")
    for number, subject in enumerate(subjects, 1):
        summarise(subject, name, separation(subject.run, session, cache, subject.sae), [])
        session.check(number)


def _labelled(name: str, subjects: list[Subject], session: RunSession, cache: Path) -> None:
    """The evaluations on labelled text, words and questions: `evals/NAME.json` in SAEBench's form."""
    from sae_sweeps.evaluation.absorption import evaluate_absorption
    from sae_sweeps.evaluation.hierarchy import evaluate_hierarchy
    from sae_sweeps.evaluation.scr import evaluate_scr
    from sae_sweeps.evaluation.sparse_probing import evaluate_sparse_probing
    from sae_sweeps.evaluation.tpp import evaluate_tpp
    from sae_sweeps.evaluation.unlearning import evaluate_unlearning

    shared = session.shared(subjects[0].run, cache)
    whole = {}
    for subject in subjects:
        broken = [key for key, w in subject.sae.weights.items() if not torch.isfinite(w).all()]
        if broken:
            warning = f"not evaluated: the SAE's {' and '.join(broken)} is not finite"
            _write(
                subject,
                Result(name, subject.name, subject.sae.cfg(), {}, {}, warnings=[warning], data=shared.source.kind),
            )
        else:
            whole[subject.name] = subject
    if not whole:
        return
    evaluate = {
        "sparse_probing": evaluate_sparse_probing,
        "hierarchy": evaluate_hierarchy,
        "tpp": evaluate_tpp,
        "scr": evaluate_scr,
        "absorption": evaluate_absorption,
        "unlearning": evaluate_unlearning,
    }[name]
    for key, result in evaluate({key: subject.sae for key, subject in whole.items()}, shared).items():
        _write(whole[key], result)


def _autointerp(name: str, subjects: list[Subject], session: RunSession, cache: Path) -> None:
    from sae_sweeps.activations.contexts import held_out_contexts
    from sae_sweeps.evaluation.answers import Answers
    from sae_sweeps.evaluation.autointerp import evaluate_autointerp
    from sae_sweeps.storage.printing import print_line

    run = subjects[0].run
    shared = session.shared(run, cache)
    n_contexts = run.eval.autointerp.total_tokens // run.data.context
    tokens_NL = held_out_contexts(run.model, run.data, shared.lm, n_contexts)
    saes = {subject.name: subject.sae for subject in subjects}
    model = run.eval.autointerp.model
    answers = {subject.name: Answers(subject.folder / "evals" / ANSWERS, model) for subject in subjects}
    results = evaluate_autointerp(saes, shared, tokens_NL, answers, print_line)
    for subject in subjects:
        results[subject.name].eval_config["dataset_name"] = run.data.path or run.data.name
        _write(subject, results[subject.name])


def _write(subject: Subject, result: Result) -> None:
    write_json(subject.folder / "evals" / f"{result.evaluation}.json", result.to_json())
    summarise(subject, result.evaluation, result.flat(), result.warnings)


EVALUATE: dict[str, Callable[[str, list[Subject], RunSession, Path], None]] = {
    "core": _core,
    "separation": _separation,
    "autointerp": _autointerp,
}


def collected(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Metrics and warnings of every evaluation that the folder holds."""
    metrics: dict[str, Any] = {}
    warnings: list[str] = []
    for path in sorted((folder / "evals").glob(f"*{SUMMARY}")):
        evaluation = read_summary(path)
        metrics |= evaluation["metrics"]
        name = path.name.removesuffix(SUMMARY)
        told = evaluation["warnings"]
        warnings += told if name in WITHOUT_MODEL else [f"{name}: {warning}" for warning in told]
    return metrics, warnings


def separation(run: RunConfig, session: RunSession, cache: Path, sae: ExportedSAE) -> dict[str, float]:
    """How separate the features are: geometry of the decoder, recovery of true features, labels, composition."""
    W_dec = sae.weights["W_dec"].to(session.device)
    metrics = decoder_geometry(W_dec)
    if isinstance(run.model, SyntheticConfig):
        world = SyntheticWorld(run.model)
        metrics |= recovery(W_dec, world.features_FD, world.kind, world.parent_F)
    elif run.data.has_roles():
        metrics |= labels_of(run, session, cache, sae)
    if run.eval.composition:
        metrics |= composition(W_dec)
    return metrics


@torch.no_grad()
def labels_of(run: RunConfig, session: RunSession, cache: Path, sae: ExportedSAE) -> dict[str, float]:
    """nmi and silhouette on about `eval.label_tokens` held-out tokens, as many of each role where there are so many."""
    pool = held_out_pool(run, session, cache, run.eval.label_tokens * LABEL_SPREAD)
    roles = pool.role.unique().tolist()
    share = run.eval.label_tokens // len(roles)
    rows = [(pool.role == role).nonzero()[:, 0] for role in roles]
    chosen = torch.cat([found[evenly(share, len(found))] for found in rows]).sort().values
    batch = pool[chosen]
    f_BF = torch.cat([sae.encode(part.float().to(sae.device)) for part in batch.x.split(HELD_OUT_PART)]).cpu()
    return label_separation(f_BF, batch.role, max_tokens=run.eval.label_tokens)


def held_out_activations(run: RunConfig, session: RunSession, cache: Path) -> torch.Tensor | None:
    """`train.held_out_tokens` held-out activations [n, d_in] that are the same for every run, or None where 0."""
    n_tokens = run.train.held_out_tokens
    if n_tokens == 0:
        return None
    pool = held_out_pool(run, session, cache, n_tokens * HELD_OUT_SPREAD)
    return pool.x[evenly(n_tokens, len(pool))].float().to(session.device)


@torch.no_grad()
def held_out_fvu(sae: ExportedSAE, x: torch.Tensor) -> float:
    """Fraction of the variance of x [n, d_in] that the SAE leaves unexplained."""
    error = sum((sae.decode(sae.encode(part)) - part).square().sum() for part in x.split(HELD_OUT_PART))
    return float(error / (x - x.mean(0)).square().sum())
