"""Evaluations of trained SAEs: `evals/NAME.json`, and beside it a summary with flat metrics, settings and warnings.

SAEs of one model and layer are evaluated side by side, so that the part that is the same for all is computed once. An
evaluation that fails is reported, and the others are done.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from sae_sweeps.activations.synthetic import SyntheticWorld
from sae_sweeps.architectures.saelens import ExportedSAE
from sae_sweeps.config.evaluations import (
    EVALUATIONS,
    VERSION,
    EvalConfig,
    config_of,
    data_setting,
    describe,
    evaluation_names,
    find_evaluation,
    in_order,
    plain_name,
    same_settings,
    settings_of,
)
from sae_sweeps.config.hooks import hook_name
from sae_sweeps.config.identity import canonical
from sae_sweeps.config.judged import judged_model
from sae_sweeps.config.plugins import blamed
from sae_sweeps.config.run import RunConfig
from sae_sweeps.config.schema import LayerConfig, SyntheticConfig
from sae_sweeps.errors import ConfigError, DataError, Interrupted, NoNetwork, UserError
from sae_sweeps.evaluation.batches import is_plain, split_batches
from sae_sweeps.evaluation.core import MEAN_TOKENS, first_batches, synthetic_activations
from sae_sweeps.evaluation.result import Measured, Result
from sae_sweeps.evaluation.shared import Shared
from sae_sweeps.evaluation.sources import data_of, open_source
from sae_sweeps.evaluation.tasks import check_tasks
from sae_sweeps.runs.session import RunSession, held_out_pool
from sae_sweeps.storage.files import object_in, one_line, write_json, write_text
from sae_sweeps.storage.hub import commit_of
from sae_sweeps.storage.run_folder import SUMMARY, RunFolder, read_summaries, read_summary
from sae_sweeps.storage.secrets import without_secrets

UNNAMED = ("core", "separation")
"""Evaluations whose warnings are listed without their name."""


@dataclass
class Subject:
    """One SAE that is to be evaluated."""

    name: str
    run: RunConfig
    """Its model, layer, text and `eval`."""
    folder: Path
    """Holds `evals/`."""
    sae: ExportedSAE
    inputs: dict[str, Any] = field(default_factory=dict)
    """Text and digests that a command chose for an SAE of another library; a run's are in its config."""


@dataclass
class Failure:
    """An evaluation that could not be done."""

    subject: str
    evaluation: str
    why: str

    def __str__(self) -> str:
        return f"evaluation {self.evaluation} failed: {self.why}"

    def warning(self, folder: Path) -> str:
        """The failure, and whether the folder still has the evaluation's numbers by other settings or inputs."""
        earlier = (folder / "evals" / f"{self.evaluation}{SUMMARY}").exists()
        if not earlier:
            return str(self)
        return f"{str(self).rstrip('.')}; its numbers here are earlier ones, by other settings"


def wanted(run: RunConfig) -> list[str]:
    """The evaluations that the config names and the model allows, in their order; those on another model at the end,
    so that each model is loaded once."""
    if run.eval.name == "none":
        return []
    chosen = [name for name in evaluation_names() if name in run.eval.evaluations]
    possible = [name for name in chosen if not (run.synthetic and find_evaluation(name).needs_model)]
    return sorted(possible, key=lambda name: judged(run, name) is not run)


def check_sources(runs: Iterable[RunConfig]) -> None:
    """Check that the runs' `eval.data` have what their evaluations need, before anything is trained or evaluated.

    Raises ConfigError for names that are not in the data, DataError for a file that does not serve.
    """
    seen: list[EvalConfig] = []
    for run in runs:
        evaluations = wanted(run)
        cfg = replace(run.eval, data=data_of(run.eval, run.model), evaluations=evaluations)
        if cfg not in seen and any("data" in find_evaluation(name).reads for name in evaluations):
            seen.append(cfg)
            check_tasks(open_source(cfg, run.model), cfg, evaluations)


def judged(run: RunConfig, name: str) -> RunConfig:
    """The run with the model of `eval.unlearning.model` where the evaluation is unlearning, else the run itself."""
    model = judged_model(run.eval.unlearning.model, run.model)
    if name != "unlearning" or model is run.model:
        return run
    if model.source == "hub":
        model = replace(model, revision=commit_of("model", str(model.path), model.revision)[0])
    return replace(run, model=model, eval=replace(run.eval, data=data_of(run.eval, run.model)))


def measured_on(run: RunConfig, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The model, layer and hook of an evaluation, and the inputs of its subject, as its files record them."""
    if run.synthetic:
        return {"model_name": "synthetic", "hook_name": "synthetic", "hook_layer": 0}
    hook = hook_name(run.layer)
    return {"model_name": run.model.path or run.model.name, "hook_name": hook, "hook_layer": run.layer.index, **inputs}


def is_done(run: RunConfig, folder: Path, name: str, inputs: Mapping[str, Any] = MappingProxyType({})) -> bool:
    """Whether the folder has this evaluation with the same settings, on the same model, layer and inputs."""
    path = folder / "evals" / f"{name}{SUMMARY}"
    file = find_evaluation(name).file
    if not path.exists() or (file and not (path.parent / file).exists()):
        return False
    done, place = read_summary(path), measured_on(judged(run, name), inputs)
    return same_settings(done["settings"], run.eval, name) and done.get("measured_on", place) == place


def is_evaluated(run: RunConfig, folder: RunFolder) -> bool:
    return all(is_done(run, folder.path, name) for name in wanted(run))


def evaluate_group(
    subjects: list[Subject], session: RunSession, cache: Path, report: Callable[[str], None] = lambda line: None
) -> list[Failure]:
    """Evaluate SAEs of one model, layer and text side by side; `report` is called with a line about each evaluation."""
    failures = []
    for subject in subjects:
        subject.sae = subject.sae.to(session.device)
    for name in wanted(subjects[0].run):
        pending = [subject for subject in subjects if not is_done(subject.run, subject.folder, name, subject.inputs)]
        began = time.monotonic()
        found = _attempt(name, pending, session, cache) if pending else []
        failures += found
        before = f", {len(subjects) - len(pending)} done before" if len(pending) < len(subjects) else ""
        run = subjects[0].run
        other = f" on {judged(run, name).model.path}" if judged(run, name) is not run else ""
        report(f"{name}: {len(pending) - len(found)} done{other} in {time.monotonic() - began:.1f} s{before}")
        for failure in found:
            report(f"{failure.subject}: {failure}")
    session.forget_features()
    return failures


def _attempt(name: str, subjects: list[Subject], session: RunSession, cache: Path) -> list[Failure]:
    """Failures of one evaluation of several SAEs; after an unexpected error each SAE is evaluated by itself."""
    try:
        _evaluate(name, subjects, session, cache)
        return []
    except Interrupted:
        raise
    except UserError as error:
        return [Failure(subject.name, name, without_secrets(str(error))) for subject in subjects]
    except Exception as error:
        if len(subjects) == 1:
            log = subjects[0].folder / "evals" / f"{name}.error.log"
            write_text(log, without_secrets(traceback.format_exc()))
            why = f"{blamed(error) or f'{type(error).__name__}: {one_line(error)}'} (traceback in {log})"
            return [Failure(subjects[0].name, name, without_secrets(why))]
    # after the block: the error holds its frames, and they the tensors that left no memory
    return [failure for subject in subjects for failure in _attempt(name, [subject], session, cache)]


def _evaluate(name: str, subjects: list[Subject], session: RunSession, cache: Path) -> None:
    """One evaluation of SAEs of one model, layer and text: `evals/NAME.json` and its summary."""
    evaluation, run = find_evaluation(name), judged(subjects[0].run, name)
    shared = shared_of(run, subjects, session, cache)
    finite = {}
    for subject in subjects:
        broken = subject.sae.nonfinite()
        if broken and evaluation.finite_only:
            warning = f"not evaluated: the SAE's {' and '.join(broken)} is not finite"
            sae = subject.sae
            _write(subject, name, Result(name, subject.name, sae.cfg(), {}, {}, [], {}, [warning], shared.source.kind))
        else:
            finite[subject.name] = subject
    if not finite:
        return
    own = config_of(run.eval, name)
    results = evaluation.evaluate({key: subject.sae for key, subject in finite.items()}, shared, own)
    done = set()
    for key, result in results.items() if isinstance(results, Mapping) else results:
        if key not in finite or not hasattr(result, "flat"):
            raise ConfigError(
                f"eval.evaluations={name}: gave {type(result).__name__} for {key}; give a Result or Numbers for each "
                f"of {', '.join(finite)}."
            )
        _write(finite[key], name, result)
        done.add(key)
    if finite.keys() - done:
        raise ConfigError(f"eval.evaluations={name}: gave no result for {', '.join(sorted(finite.keys() - done))}.")


def shared_of(run: RunConfig, subjects: list[Subject], session: RunSession, cache: Path) -> Shared:
    """What evaluations of these SAEs on the run's model share, with access to held-out text.

    Raises ConfigError, DataError or NoNetwork for another model than the training's that cannot be used in its place.
    """
    trained = subjects[0].run
    if run is trained:
        shared = session.shared(run, cache)
    else:
        mend = "give eval.unlearning.model=same to judge the model that the SAE was trained on"
        try:
            shared = session.shared(run, cache)
        except (ConfigError, DataError, NoNetwork) as error:
            raise type(error)(
                f"eval.unlearning.model={run.model.path}: could not be loaded ({str(error).rstrip('.')}); {mend}."
            ) from error
        sizes, needed = (shared.lm.d_in, shared.lm.n_layers), (trained.model.d_in, trained.model.n_layers)
        if sizes != needed:
            raise ConfigError(
                f"eval.unlearning.model={run.model.path}: has d_in={sizes[0]} and {sizes[1]} layers, and "
                f"{trained.model.name} has d_in={needed[0]} and {needed[1]}; give its sibling, or {mend}."
            )
    shared.data, shared.folders = run.data, {subject.name: subject.folder / "evals" for subject in subjects}
    shared.contexts = lambda n: session.held_out(run, n)
    shared.tokens = lambda n: held_out_pool(run, session, cache, n)
    shared.world = SyntheticWorld(run.model) if isinstance(run.model, SyntheticConfig) else None
    return shared


def _write(subject: Subject, name: str, result: Measured) -> None:
    content = result.to_json()
    if content is not None:
        note = content["eval_result_unstructured"].setdefault("sae_sweeps", {})
        note["measured_on"] = measured_on(judged(subject.run, name), {})  # the summary has the inputs
        if "selection" in find_evaluation(name).reads:
            note["selection"] = subject.run.eval.selection
        write_json(subject.folder / "evals" / f"{name}.json", content)
    summarise(subject, name, result.flat(), result.warnings)


def summarise(subject: Subject, name: str, metrics: Mapping[str, Any], warnings: list[str]) -> None:
    content = {"settings": settings_of(subject.run.eval, name), "metrics": metrics, "warnings": warnings}
    content["measured_on"] = measured_on(judged(subject.run, name), subject.inputs)
    if name not in EVALUATIONS:  # tables read these, since they never run code from outside
        found = {metric: describe(plain_name(metric), find_evaluation(name).metrics) for metric in metrics}
        content["described"] = {plain_name(metric): how for metric, how in found.items() if how}
    (subject.folder / "evals" / f"{name}.error.log").unlink(missing_ok=True)
    write_json(subject.folder / "evals" / f"{name}{SUMMARY}", content)  # last: with it the evaluation is done


def descriptions(folder: Path) -> dict[str, Any]:
    """`described` of results.json: what is better, and the short name, of metrics of evaluations from outside."""
    summaries = read_summaries(folder).values()
    found = {metric: how for summary in summaries for metric, how in summary.get("described", {}).items()}
    return {"described": found} if found else {}


def collected(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Metrics and warnings of every evaluation that the folder holds."""
    metrics: dict[str, Any] = {}
    warnings: list[str] = []
    for name, evaluation in read_summaries(folder).items():
        metrics |= evaluation["metrics"]
        prefix = "" if name in UNNAMED else f"{name}: "
        warnings += [f"{prefix}{warning}" for warning in evaluation["warnings"]]
    return metrics, warnings


def eval_of_results(run: RunConfig, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """`eval` as the config of results.json has it: the settings of every evaluation in the folder, though the run's
    own `eval` may have chosen few of them; and a warning that names those of other settings.

    It is what the results have before, with the keys that the evaluations of `run` read as they are in `run`.
    """
    now, chosen = run.to_dict()["eval"], wanted(run)
    settings = {name: summary["settings"] for name, summary in read_summaries(folder).items()}
    earlier = [name for name in settings if name not in chosen]
    if not earlier:
        return now, []
    merged = now | _recorded_eval(folder)
    merged |= {key: now[key] for name in chosen for key in settings_of(run.eval, name) if key in now}
    if merged["name"] == "none":
        merged["name"] = now["name"]
    merged["evaluations"] = in_order({*map(str, merged["evaluations"]), *chosen, *settings})
    other = [name for name in earlier if not _has_settings(merged, settings[name])]
    what = f"{', '.join(other)}: measured by other settings than config.eval, those in evals/NAME{SUMMARY}"
    return merged, [what] if other else []


def _recorded_eval(folder: Path) -> dict[str, Any]:
    """`eval` of the results in the folder, which are written anew; empty where they have none that serves."""
    with suppress(UserError):
        found = object_in((RunFolder(folder).results() or {}).get("config", {}), "eval", folder)
        return found if isinstance(found.get("evaluations"), list) else {}
    return {}


def _has_settings(config: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Whether a config's `eval` holds the settings that an evaluation recorded."""
    for key, value in settings.items():
        if key in (VERSION, "code"):  # no keys of `eval`
            continue
        has = config.get(key)
        if key == "data":
            has = data_setting(str(has))
        same = value.items() <= has.items() if isinstance(value, dict) and isinstance(has, dict) else value == has
        if not same:
            return False
    return True


def held_out_activations(run: RunConfig, layers: Sequence[LayerConfig], session: RunSession) -> list[torch.Tensor]:
    """Of each layer the activations [N, d_in] that core measures reconstruction on, on the CPU, from one pass.

    Those of SAEBench-sized evaluations are the first MEAN_TOKENS of them, in whole batches. Of a text with a single
    held-out context, which core refuses, that one.
    """
    cfg = run.eval
    if isinstance(run.model, SyntheticConfig):
        batches = ((x_BD, None) for x_BD in synthetic_activations(SyntheticWorld(run.model), cfg))
        return [torch.cat([x_nD for x_nD, _ in first_batches(batches)])]
    tokens_NL = session.held_out(run, cfg.batch_size * (cfg.recon_batches + cfg.sparsity_batches))
    lm = session.language_model(run, canonical(run)["model"]["digest"])
    assert lm is not None
    contexts = split_batches(tokens_NL, cfg)[1] if len(tokens_NL) > 1 else [tokens_NL]
    session.progress.stage("held out", sum(map(len, contexts)), "context")
    parts: list[list[torch.Tensor]] = []
    n_tokens = n_contexts = 0
    for tokens_SL in contexts:
        tokens_SL = tokens_SL.to(lm.device)
        plain_SL = is_plain(tokens_SL, lm.special_ids)
        parts.append([acts_SLD[plain_SL].cpu() for acts_SLD in lm.activations_at(tokens_SL, layers)])
        n_tokens, n_contexts = n_tokens + len(parts[-1][0]), n_contexts + len(tokens_SL)
        session.check(n_contexts)
        if n_tokens >= MEAN_TOKENS:
            break
    return [torch.cat(of_layer) for of_layer in zip(*parts, strict=True)]
