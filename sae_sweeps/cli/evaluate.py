"""`python -m sae_sweeps evaluate PATH... [key=value ...]`: evaluations of finished runs and of SAEs of other
libraries, side by side where they share model, layer and text."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from sae_sweeps.architectures import foreign
from sae_sweeps.cli.compose import compose_points
from sae_sweeps.config import plugins
from sae_sweeps.config.aliases import canonical_words
from sae_sweeps.config.hooks import layer_of_hook_name
from sae_sweeps.config.hub import unpinned
from sae_sweeps.config.identity import canonical
from sae_sweeps.config.paths import config_dir
from sae_sweeps.config.run import RunConfig, run_config
from sae_sweeps.errors import ConfigError, DataError, Interrupted, UserError
from sae_sweeps.runs.console import Console
from sae_sweeps.runs.evaluate import (
    Failure,
    Subject,
    check_sources,
    collected,
    descriptions,
    eval_of_results,
    evaluate_group,
    is_done,
    wanted,
)
from sae_sweeps.runs.export import trained_sae
from sae_sweeps.runs.results import write_results
from sae_sweeps.runs.session import RunSession, device_for
from sae_sweeps.runs.unchanged import refuse_changed
from sae_sweeps.storage.digests import digest_of_files, short_hash
from sae_sweeps.storage.files import write_json
from sae_sweeps.storage.hub import COMMIT
from sae_sweeps.storage.lease import Lease
from sae_sweeps.storage.run_folder import TRAINED, RunFolder
from sae_sweeps.sweeps.plan import why_unused
from sae_sweeps.sweeps.sweep import recorded_config, run_of

if TYPE_CHECKING:
    from sae_sweeps.architectures.saelens import ExportedSAE

FIXED = ("seed", "num_tokens", "d_sae", "k", "architecture", "penalty", "schedule", "train")
"""Keys and groups of training, which do not apply to a trained SAE."""


@dataclass
class Target:
    """One SAE that the command names."""

    name: str
    folder: Path
    """Holds `evals/` and results.json."""
    run: RunConfig
    cache: Path
    is_run: bool
    title: str
    inputs: dict[str, Any] = field(default_factory=dict)
    """As `Subject.inputs`."""
    architecture: dict[str, Any] = field(default_factory=dict)
    """Of an SAE of another library: `name`, `d_sae` and `k`, for results.json."""
    doubt: str | None = None
    """Why its model or text may not be the one that it was trained on, for printing and results.json."""


def evaluate(paths: list[Path], words: list[str]) -> int:
    """Evaluate the SAEs at the paths and print a table. Returns 0; 1 where an evaluation failed; 130 if interrupted."""
    from sae_sweeps.runs.signals import Stop, caught_signals

    words = canonical_words(words)
    points = compose_points(words)
    if len(points) != 1:
        raise ConfigError("evaluate takes one value of each key; give it the runs of a sweep instead.")
    refuse_training_words(words)
    cfg = points[0].cfg
    if cfg.eval.name == "none" or not cfg.eval.evaluations:
        word = "eval=none" if cfg.eval.name == "none" else "eval.evaluations=[]"
        raise ConfigError(f"{word}: leaves nothing to evaluate; give eval=core, quick, full or features, or name some.")
    targets, refused = find_targets(paths, cfg, words)
    refuse_unread(words, targets)
    give_own_names(targets)
    check_sources(target.run for target in targets)
    stop, console = Stop(), Console()
    session = RunSession(device_for(cfg.device), stop, console.progress)
    for name, error in refused.items():
        console.print(f"error: {name}: {error}")
    failed, interrupted = bool(refused), False
    with caught_signals(stop):
        for number, group in enumerate(grouped(targets), 1):
            console.print(f"[{number}] {one_line_of(group)}")
            try:
                failed |= evaluate_targets(group, session, console)
            except Interrupted:
                interrupted = True
                break
    console.close()
    show([target.folder for target in targets if (target.folder / "results.json").exists()])
    if interrupted:
        print("interrupted: the same command goes on where it stopped")
        return 130
    return int(failed)


def give_own_names(targets: list[Target]) -> None:
    """Give SAEs whose folders have the same name (trainer_0, sae, one run in two outputs folders) distinct names: the
    shortest ends of their paths that differ."""
    of_name: dict[str, list[Target]] = {}
    for target in targets:
        of_name.setdefault(target.name, []).append(target)
    for alike in (targets for targets in of_name.values() if len(targets) > 1):
        paths = [target.folder.resolve().parts for target in alike]
        for n in range(2, max(map(len, paths)) + 1):
            names = ["-".join(parts[-n:]) for parts in paths]
            if len(set(names)) == len(names):
                for target, name in zip(alike, names, strict=True):
                    target.name = name
                break


def refuse_training_words(words: list[str]) -> None:
    for word in words:
        key = word.partition("=")[0]
        if key.partition(".")[0] in FIXED:
            raise ConfigError(f"{word}: evaluate trains nothing; give eval, model, layer, data, device or outputs.")


def refuse_unread(words: list[str], targets: list[Target]) -> None:
    """Raise ConfigError for a key of `eval` that no evaluation of this command reads."""
    unused = [target.run.unused_keys() for target in targets]
    for word in words:
        key, _, value = word.partition("=")
        if key.startswith("eval.") and value != "null":
            reasons = [why_unused(keys, key) for keys in unused]
            if reasons and None not in reasons:
                raise ConfigError(f"{word}: no evaluation of this command reads it ({reasons[0]}); leave it out.")


def one_line_of(group: list[Target]) -> str:
    run = group[0].run
    where = run.model.name if run.synthetic else f"{run.model.path or run.model.name} layer {run.layer.index}"
    return f"{where}, {len(group)} SAE{'s' * (len(group) != 1)}: {', '.join(wanted(run)) or 'nothing to evaluate'}"


def grouped(targets: list[Target]) -> list[list[Target]]:
    """Targets that share model, layer and text, in the order of the first of each."""
    groups: dict[str, list[Target]] = {}
    for target in targets:
        identity = canonical(target.run, target.cache / "digests")
        shared = {key: identity.get(key) for key in ("model", "layer", "data")}
        groups.setdefault(short_hash([shared, str(target.cache)]), []).append(target)
    return list(groups.values())


def evaluate_targets(group: list[Target], session: RunSession, console: Console) -> bool:
    """Evaluate a group. Returns whether an evaluation failed. Runs leased by another process are named and skipped."""
    subjects, held, leases, failed = [], {}, [], False
    try:
        for target in group:
            todo = [name for name in wanted(target.run) if not is_done(target.run, target.folder, name, target.inputs)]
            if not todo:
                console.print(f"  {target.name}: done before")
                continue
            if target.is_run:
                lease = Lease.acquire(target.folder)
                if lease is None:
                    console.print(f"  {target.name}: {Lease.holder(target.folder)} is working on it; skipped")
                    continue
                leases.append(lease)
            if target.doubt:
                console.print(f"  {target.name}: warning: {target.doubt}")
            try:
                sae = sae_of(target)
            except UserError as error:
                console.print(f"  {target.name}: error: {error}")
                failed = True
                continue
            subjects.append(Subject(target.name, target.run, target.folder, sae, target.inputs))
            held[target.name] = target
        if not subjects:
            return failed
        failures: list[Failure] = []
        try:
            failures = evaluate_group(subjects, session, group[0].cache, lambda line: console.print(f"  {line}"))
        finally:  # what was done before an interruption counts
            for name, target in held.items():
                record(target, [failure for failure in failures if failure.subject == name])
        return failed or bool(failures)
    finally:
        for lease in leases:
            lease.release()


def record(target: Target, failures: list[Failure]) -> None:
    """Write results.json from all evaluations in the folder."""
    doubts = [target.doubt] if target.doubt else []
    if target.is_run:
        run_id = target.folder.resolve().name
        write_results(target.run, run_id, RunFolder(target.folder), target.title, failures, doubts)
    else:
        write_foreign(target, [*doubts, *(failure.warning(target.folder) for failure in failures)])


def sae_of(target: Target) -> ExportedSAE:
    if target.is_run:
        return trained_sae(target.run, RunFolder(target.folder))
    return foreign.load(target.folder)


def find_targets(paths: list[Path], cfg: DictConfig, words: list[str]) -> tuple[list[Target], dict[str, UserError]]:
    """The SAEs at the paths, each once, and by the name of its folder why another there cannot be evaluated.

    Raises DataError for a path without an SAE. Where no SAE is left, the error is the first that is about the command,
    else the first.
    """
    targets: dict[Path, Target] = {}
    refused: dict[Path, UserError] = {}
    for folder, is_run in folders_at(paths, words):
        place = folder.resolve()
        if place in targets or place in refused:
            continue
        try:
            targets[place] = of_run(folder, cfg) if is_run else of_other_library(folder, words)
        except UserError as error:
            refused[place] = error
    if not targets:
        raise min(refused.values(), key=lambda error: not isinstance(error, ConfigError))
    return list(targets.values()), {place.name: error for place, error in refused.items()}


def folders_at(paths: list[Path], words: list[str]) -> Iterator[tuple[Path, bool]]:
    """The folders of SAEs at the paths, and whether each is a run's. Raises DataError for a path without one."""
    from analysis.reading.run_folders import runs_at

    for path in paths:
        if path.name == "sae" and (path.parent / TRAINED).exists():
            path = path.parent
        if not path.exists():
            raise DataError(f"{path} does not exist; give a run, a sweep, an outputs folder or an SAE's folder.")
        if (sae := foreign.folder_of(path)) is not None:
            yield sae, False
            continue
        runs = [folder for folder, _ in runs_at(path) if (folder / TRAINED).exists()]
        if not runs:
            raise DataError(
                f"{path} holds no trained SAE; give a finished run, a sweep, or a folder with one of "
                f"{', '.join(foreign.FORMATS)}."
            )
        refuse_words_of_the_run(words)
        yield from ((folder, True) for folder in runs)


def refuse_words_of_the_run(words: list[str]) -> None:
    """Raise ConfigError for another model, layer or text than a run has in its config."""
    for word in words:
        if word.partition("=")[0].partition(".")[0] in ("model", "layer", "data", "num_tokens"):
            raise ConfigError(
                f"{word}: a run is evaluated on its own model, layer and text; leave the word out, or copy the run's "
                "sae/ elsewhere and evaluate the copy."
            )


def of_run(folder: Path, cfg: DictConfig) -> Target:
    """The target for a run's folder: its own config with the evaluations of this command."""
    run = run_of(recorded_config(folder), folder, cfg, ("eval", "device", "logger"))
    results = RunFolder(folder).results() or {}
    if unknown := unpinned(run.model, run.data):
        raise ConfigError(unknown[0])
    outputs = folder.resolve().parents[1]
    doubt = refuse_changed(run, folder, outputs)
    title = results.get("title") or ""
    return Target(folder.resolve().name, folder, run, outputs / "activations", True, title, doubt=doubt)


def of_other_library(folder: Path, words: list[str]) -> Target:
    """The target for an SAE trained elsewhere; model, layer and text are those of the command, else its own."""
    sae = foreign.load(folder)
    metadata = sae.metadata
    given = {word.partition("=")[0].partition(".")[0] for word in words}
    more = []
    if "model" not in given:
        more += model_words(sae.model_name, folder)
        if COMMIT.fullmatch(str(metadata.get("model_revision"))):
            more.append(f"model.revision={metadata['model_revision']}")
    if "layer" not in given:
        more += layer_words(sae.hook_name, folder)
    if "data" not in given:
        builtin = "model=builtin" in [*more, *words]
        more += data_words(metadata.get("dataset_path"), "builtin" if builtin else "openwebtext")
    for key, name in (("data.context", "context_size"), ("data.prepend_bos", "prepend_bos")):
        if not any(word.startswith(f"{key}=") for word in words) and metadata.get(name) is not None:
            more.append(f"{key}={metadata[name]}")
    (point,) = compose_points([*more, *words])
    run = run_config(point.cfg)
    if run.data.max_norm is not None:
        raise ConfigError(
            f"data.max_norm={run.data.max_norm}: an SAE is judged within the norm that it was trained under, "
            "metadata.norm_limit of its cfg.json; leave the word out."
        )
    if run.d_in != sae.d_in:
        raise ConfigError(
            f"{folder}: the SAE reads d_in={sae.d_in} and {run.model.name} has {run.d_in}; give the "
            "model that it was trained on, as model=PATH."
        )
    unknown = unpinned(run.model, run.data)
    if unknown and run.model.source == "hub" and not COMMIT.fullmatch(run.model.revision or ""):
        raise ConfigError(unknown[0])
    name, cache = folder.resolve().name, Path(run.outputs) / "activations"
    doubt = unknown[0] if unknown else None
    architecture = {"d_sae": sae.d_sae, "k": sae.k, "name": sae.architecture}
    inputs = inputs_of(run, folder, cache / "digests")
    return Target(name, folder, run, cache, False, name, inputs, architecture, doubt)


def inputs_of(run: RunConfig, folder: Path, digests: Path) -> dict[str, Any]:
    """What decides an evaluation of an SAE of another library besides its settings, model and layer by name."""
    identity = canonical(run, digests)
    files = sorted(folder / name for name in foreign.FILES if (folder / name).is_file())
    inputs = {"model_digest": identity["model"]["digest"], "sae_digest": digest_of_files(files, digests)}
    return inputs | {"data": identity["data"]} if "data" in identity else inputs


def model_words(name: str | None, folder: Path) -> list[str]:
    """The overrides that choose the model that an SAE names."""
    if not name:
        raise ConfigError(f"{folder}: the SAE names no model; give it, as model=PATH or model=hub model.path=NAME.")
    if name in plugins.choices("model"):
        return [f"model={name}"]
    if Path(name).expanduser().exists():
        return [f"model={name}"]
    known = {yaml_of("model", choice).get("path"): choice for choice in plugins.choices("model")}
    short = {str(path).rpartition("/")[2]: c for path, c in known.items() if path}
    if name in known or name in short:
        return [f"model={known.get(name) or short[name]}"]
    return ["model=hub", f"model.path={name}"]


def yaml_of(group: str, choice: str) -> dict[str, Any]:
    content: Any = OmegaConf.to_container(OmegaConf.load(config_dir() / group / f"{choice}.yaml"))
    return content


def layer_words(hook: str | None, folder: Path) -> list[str]:
    found = layer_of_hook_name(hook or "")
    if found is None:
        named = f"its hook {hook} is in no layer" if hook else "the SAE names no hook"
        raise ConfigError(f"{folder}: {named}; give its layer, as layer=N, or layer=mlp_out layer=N for another place.")
    return [f"layer={found.hook}", f"layer.index={found.index}"]


def data_words(dataset: str | None, otherwise: str) -> list[str]:
    """The text that the SAE was trained on where it is available, else OpenWebText, as in SAEBench, or on the built-in
    model its text."""
    if dataset and (dataset in plugins.choices("data") or Path(dataset).expanduser().exists()):
        return [f"data={dataset}"]
    return [f"data={otherwise}"]


def write_foreign(target: Target, failures: list[str]) -> None:
    """Write results.json beside an SAE trained elsewhere."""
    metrics, warnings = collected(target.folder)
    run = target.run
    judged_by, others = eval_of_results(run, target.folder)
    config = {
        "model": {"name": run.model.name, "path": run.model.path},
        "layer": {"hook": run.layer.hook, "index": run.layer.index},
        "data": {"name": run.data.name},
        "architecture": target.architecture,
        "eval": judged_by,
    }
    content = {"run_id": target.name, "title": target.title, "config": config, "metrics": metrics}
    content |= descriptions(target.folder)
    content |= {"provenance": {}, "warnings": [*warnings, *others, *failures]}
    write_json(target.folder / "results.json", content)


def show(folders: list[Path]) -> None:
    from analysis.metrics import HEADLINES
    from analysis.output.formats import render
    from analysis.tables.compare import table

    if not folders:
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    columns = table(folders).frame.columns
    varied = [name for kind, name in columns if kind == "config"]
    measured = [name for name in HEADLINES if ("metrics", name) in columns]
    print()
    print(render(table(folders, columns=[*varied, *measured]), "text", width=width))
    for folder in folders[:8]:
        print(f"evals   {folder / 'evals'}")
