"""The plan of a command: its points as checked runs, equal ones dropped, unused keys refused."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from sae_sweeps.config.evaluations import find_evaluation
from sae_sweeps.config.hub import unpinned
from sae_sweeps.config.identity import canonical, digests_of
from sae_sweeps.config.keys import TOP_KEYS
from sae_sweeps.config.paths import config_dir
from sae_sweeps.config.penalties import Combination
from sae_sweeps.config.run import RunConfig, activations_gb, run_config, used_top_keys
from sae_sweeps.errors import ConfigError, NeedsRoles, who_has
from sae_sweeps.storage.budget import AS_RECORDED, BUDGET, kept_values, unequal
from sae_sweeps.storage.digests import short_hash

NOT_IN_TITLES = (
    "outputs", "dry_run", "device", "logger", "eval", "tags", "description", "experiment", "objective", "report",
    "only",
)  # fmt: skip


@dataclass
class Point:
    """One point of the product, as Hydra composed it."""

    cfg: DictConfig
    overrides: list[str]
    variant: str | None = None
    """The experiment's variant that it belongs to."""
    study: list[str] = field(default_factory=list)
    """Those of the overrides that the experiment has for this model."""
    pinned: list[str] = field(default_factory=list)
    """Those that the variant keeps whatever the command gives."""
    refused: dict[str, str] = field(default_factory=dict)
    """Words of the command that do not reach the variant, each with the one that it keeps."""
    description: str = ""
    tags: list[str] = field(default_factory=list)


@dataclass
class PlannedRun:
    run: RunConfig
    run_id: str
    title: str
    overrides: list[str]
    equals: list[str] = field(default_factory=list)
    """The further points that are the same run: their titles, or their overrides where those are the same too."""
    pinned: list[str] = field(default_factory=list)
    """Those that its variant keeps whatever the command gives."""
    digests: dict[str, str] = field(default_factory=dict)
    """Of its model and text when it was planned."""


@dataclass
class Plan:
    runs: list[PlannedRun]
    warnings: list[str]
    varied: list[str]
    """Keys that differ between the points of the command."""
    points: list[str] = field(default_factory=list)
    """The run id of each point, in the order of the command; equal points have the same."""
    notes: list[str] = field(default_factory=list)
    """Words of the command that some variants do not take, and variants that are left out."""
    provisional: list[str] = field(default_factory=list)
    """Why ids of its runs may change, and a launch has to wait: hub models and data sets whose commit is not known."""


def make_plan(points: list[Point]) -> Plan:
    """Check every point before anything starts. Raises ConfigError for the first mistake."""
    outputs = Path(points[0].cfg.outputs)
    points, configs, notes = with_roles(points)
    notes += words_refused(points)
    varied = varied_keys([point.overrides for point in points])
    read = [keys_read(point, run) for point, run in zip(points, configs, strict=True)]
    refuse_unused(points, configs, read)
    within = {
        variant: varied_keys([point.overrides for point in points if point.variant == variant])
        for variant in {point.variant for point in points}
    }
    runs: dict[str, PlannedRun] = {}
    identities: list[str] = []
    digests: dict[str, str] = {}
    for point, run, keys in zip(points, configs, read, strict=True):
        refuse_inactive(run)
        content = canonical(run, outputs / "activations" / "digests", digests)
        identity = short_hash(content)
        identities.append(identity)
        title = title_of(point, within[point.variant], run, keys)
        if identity not in runs:
            runs[identity] = PlannedRun(
                run, identity, title, point.overrides, pinned=point.pinned, digests=digests_of(content)
            )
        elif (title, point.overrides) != (runs[identity].title, runs[identity].overrides):
            runs[identity].equals.append(title if title != runs[identity].title else " ".join(point.overrides))
    planned = list(runs.values())
    warnings = [*budget_warnings(planned, varied), *run_warnings(planned)]
    provisional = list(
        dict.fromkeys(sentence for each in planned for sentence in unpinned(each.run.model, each.run.data))
    )
    return Plan(planned, warnings, varied, identities, notes, provisional)


def with_roles(points: list[Point]) -> tuple[list[Point], list[RunConfig], list[str]]:
    """The points with their checked configs, without the variants that need roles which the data lacks, and a line
    that names those. Raises ConfigError where no point is left."""
    kept, configs = [], []
    lacking: dict[str, NeedsRoles] = {}
    for point in points:
        try:
            run = run_config(point.cfg)
        except NeedsRoles as error:
            if point.variant is None:
                raise
            lacking.setdefault(point.variant, error)
            continue
        run.tags += [tag for tag in point.tags if tag not in run.tags]
        run.description = " ".join(filter(None, [point.description, run.description]))
        kept.append(point)
        configs.append(run)
    if not kept:
        raise next(iter(lacking.values()))
    titles: dict[str, list[str]] = {}
    for variant, lack in lacking.items():
        titles.setdefault(str(lack), []).append(variant)
    return kept, configs, [f"left out: {'; '.join(names)} ({why})" for why, names in titles.items()]


def words_refused(points: list[Point]) -> list[str]:
    """A line for each key of the command that some variants keep to themselves. Raises ConfigError where all do."""
    words: dict[str, dict[str, None]] = {}
    keeping: dict[str, dict[str, dict[str, None]]] = {}
    for point in points:
        for word, kept in point.refused.items():
            key, value = split_override(word)
            words.setdefault(key, {})[value] = None
            keeping.setdefault(key, {}).setdefault(kept, {})[str(point.variant).partition(":")[0]] = None
    out = []
    for key, values in words.items():
        word = f"{key}={','.join(values)}".replace("layer.index=", "layer=")
        who = "; ".join(
            f"{kept.replace('layer.index=', 'layer=')} stays in {', '.join(names)}"
            for kept, names in keeping[key].items()
        )
        if all(any(split_override(refused)[0] == key for refused in point.refused) for point in points):
            raise ConfigError(f"{word}: no variant takes it ({who}); leave it out.")
        out.append(f"{word} does not reach every variant: {who}")
    return out


def split_override(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return key, value


def varied_keys(overrides: list[list[str]]) -> list[str]:
    """Keys whose value differs between the points, in the order of the command."""
    values: dict[str, set[str]] = {}
    for point in overrides:
        for key, value in map(split_override, point):
            values.setdefault(key, set()).add(value)
    return [key for key, seen in values.items() if len(seen) > 1]


def title_of(point: Point, varied: list[str], run: RunConfig, keys: KeysRead) -> str:
    """The overrides that distinguish this run: of the varied keys that it uses, or in a single run all.

    `varied` are the keys that differ between the command's points, or between those of the point's variant.
    """
    if run.title:
        return run.title
    hidden = (*(split_override(word)[0] for word in point.study), *NOT_IN_TITLES)
    shown = [
        override
        for override in point.overrides
        if split_override(override)[0] not in hidden
        and override.partition("=")[0].partition(".")[0] != "cluster"
        and (not (varied or point.variant) or split_override(override)[0] in varied)
        and unused_because(override, run, keys) is None
    ]
    shown = [_as_named(override, run) for override in shown]
    words = " ".join([*([point.variant] if point.variant else []), *shown])
    return words.replace("layer.index=", "layer=").replace("schedule@", "") or "defaults"


def _as_named(override: str, run: RunConfig) -> str:
    """The override of a model or a text by its name in letters that Hydra's choices cannot have."""
    group, _ = split_override(override)
    name = getattr(run, group).name if group in ("model", "data") else ""
    return override if name.isascii() else f"{group}={name}"


@dataclass(frozen=True)
class KeysRead:
    """Which of the keys that a command may give change a run."""

    top: set[str]
    """Those at the top level that its groups read."""
    unused: dict[str, str]
    """As `RunConfig.unused_keys`."""


def keys_read(point: Point, run: RunConfig) -> KeysRead:
    return KeysRead(used_top_keys(point.cfg), run.unused_keys())


def unused_because(override: str, run: RunConfig, keys: KeysRead) -> str | None:
    """Why an override cannot change this run, or None."""
    key, _ = split_override(override)
    if key in TOP_KEYS and key not in keys.top:
        if isinstance(run.penalty, Combination):
            names = " or ".join(f"penalty.{term.name}.{key}" for term in run.penalty.terms)
            return f"in penalty={run.penalty.name} each penalty has its own keys, such as {names}"
        chosen = ", ".join(f"{g}={getattr(run, g).name}" for g in ("architecture", "penalty", "schedule"))
        return f"{chosen} has no such key{_who_reads(key)}"
    key = "layer" if key == "layer.index" else key
    return why_unused(keys.unused, key)


def why_unused(unused: dict[str, str], key: str) -> str | None:
    """Why a key, or the group that it is in, is unused, or None."""
    return next((why for name, why in unused.items() if key == name or key.startswith(f"{name}.")), None)


def refuse_unused(points: list[Point], configs: list[RunConfig], read: list[KeysRead]) -> None:
    """Raise ConfigError for a key that was given and that no run of the command uses."""
    unused: dict[str, str] = {}
    used: set[str] = set()
    for point, run, keys in zip(points, configs, read, strict=True):
        for override in point.overrides:
            if override in point.study:
                continue  # the user did not give it
            reason = unused_because(override, run, keys)
            if reason is None:
                used.add(split_override(override)[0])
            elif split_override(override)[1] != "null":
                unused.setdefault(override, reason)
    for override, reason in unused.items():
        if split_override(override)[0] not in used:
            name = override.replace("layer.index=", "layer=")
            raise ConfigError(f"{name}: no run of this command uses it ({reason}); {_mend_of_unused(override)}.")


def _mend_of_unused(override: str) -> str:
    """What to write in place of a key that no run uses."""
    key, value = split_override(override)
    group, _, field = key.partition(".")
    if field == "path" and value:
        return f"a file or folder is {group}={value}, a name of the hub {group}=hub {group}.path={value}"
    return "leave it out"


def _who_reads(key: str) -> str:
    readers = [
        f"{path.parent.name}={path.stem}"
        for path in sorted(config_dir().glob("*/*.yaml"))
        if f"${{top:{key}," in path.read_text()
    ]
    return who_has(readers)


def refuse_inactive(run: RunConfig) -> None:
    """Raise ConfigError for a penalty whose weight is 0 at every step, or which can never act."""
    for term in run.penalty_terms():
        T = run.total_steps
        coarse = [term.weight(step, T) for step in range(0, T, T // 100 + 1)]
        if not any(coarse) and not any(term.weight(step, T) for step in range(T)):
            raise ConfigError(
                f"penalty={term.config.name}: its weight is 0 at every step "
                f"(peak {term.config.peak_weight():g}, schedule={term.schedule.name}); for a run without it give "
                "penalty=none, or leave it out of the sum."
            )
        reason = term.config.never_acts()
        if reason:
            raise ConfigError(f"penalty={term.config.name}: can never act, why_unused {reason}.")


def budget_warnings(runs: list[PlannedRun], varied: list[str]) -> list[str]:
    """Runs compared at unequal budgets. What the command itself varies is exempt, tokens and steps never; runs that
    keep a record's budget are one sentence."""
    keeping = [budget_of(planned.run) for planned in runs if AS_RECORDED in planned.run.tags]
    compared = [budget_of(planned.run) for planned in runs if AS_RECORDED not in planned.run.tags]
    found = [unequal(key, (budget[key] for budget in compared), varied) for key in BUDGET]
    every = [*compared, *keeping]
    own = [
        kept_values(key, (budget[key] for budget in keeping), (budget[key] for budget in every), varied)
        for key in BUDGET
    ]
    if any(own):
        found.append(f"the runs tagged {AS_RECORDED} keep the budgets of their record: {'; '.join(filter(None, own))}")
    return [sentence for sentence in found if sentence]


def budget_of(run: RunConfig) -> dict[str, Any]:
    """The run's value of each key of BUDGET, None where it has no such key."""
    unused = run.unused_keys()
    found = {}
    for key, path in BUDGET.items():
        node: Any = None if key in unused else run
        for part in path.split("."):
            node = getattr(node, part, None)
        found[key] = node
    return found


def run_warnings(runs: list[PlannedRun]) -> list[str]:
    """The warnings of single runs, each once, with the titles of the runs where it does not hold for all."""
    titles_of: dict[str, list[str]] = {}
    for planned in runs:
        for warning in warnings_of(planned.run):
            titles_of.setdefault(warning, []).append(planned.title)
    return [text if len(titles) == len(runs) else f"{', '.join(titles)}: {text}" for text, titles in titles_of.items()]


def warnings_of(run: RunConfig) -> list[str]:
    out = run.penalty.plan_warnings()
    for term in run.penalty_terms():
        out += term.schedule.plan_warnings(run.total_steps)
    if why := run.why_not_saelens():
        out.append(why)
    if run.synthetic and run.eval.name != "none":
        left_out = [name for name in run.eval.evaluations if find_evaluation(name).needs_model]
        if left_out:
            out.append(f"model=synthetic has no language model, so these are left out: {', '.join(left_out)}")
    peak = run.peak_learning_rate()
    if peak < 0.999 * run.lr_schedule.lr:
        out.append(
            f"the learning rate peaks at {peak:.3g}, never at lr={run.lr_schedule.lr:g}; "
            f"its warm-up and decay leave no room in {run.total_steps} steps"
        )
    used = run.total_steps * run.batch_size
    if used != run.num_tokens:
        out.append(
            f"{used:,} of num_tokens={run.num_tokens:,} are trained on: whole batches of {run.batch_size:,} only"
        )
    return out


def weights_gb(run: RunConfig) -> float:
    """Memory that a run keeps between its steps, in GB: weights, gradients, two moments, and in bfloat16 rounded copies
    of the weights."""
    copies = 2 if run.train.precision == "bfloat16" else 0
    return 2 * run.d_in * run.architecture.d_sae * (4 * run.train.bytes() + copies) / 1e9


def step_gb(run: RunConfig) -> float:
    """Memory of a step on top of that, in GB: three [B, d_sae]."""
    return 3 * run.batch_size * run.architecture.d_sae * run.train.bytes() / 1e9


def kept_gb(run: RunConfig) -> float:
    """Activations that are kept in memory, in GB: all of them, or a stream's window."""
    share = {"memory": 1.0, "stream": min(1.0, run.activations.buffer_tokens / run.num_tokens)}
    return activations_gb(run) * share.get(run.activations.mode, 0.0)


def memory_gb(run: RunConfig) -> float:
    """Rough peak of training in GB, without the language model."""
    return weights_gb(run) + step_gb(run) + kept_gb(run)


def describe(plan: Plan, groups: Sequence[str] = ()) -> str:
    """The text of `--dry-run`; `groups` are its lines about groups and jobs."""
    lines = []
    for number, planned in enumerate(plan.runs, 1):
        run, T = planned.run, planned.run.total_steps
        model = f"{run.model.name}" + ("" if run.synthetic else f" layer {run.layer.index} {run.layer.hook}")
        data = "synthetic" if run.synthetic else run.data.name
        provisional = " (provisional)" * bool(unpinned(run.model, run.data))
        lines.append(f"run {number}  {planned.run_id}{provisional}  {planned.title}")
        if run.description:
            lines.append(f"  {run.description}")
        lines.append(f"  {model}, data {data}, activations in {run.activations.mode}, eval {run.eval.name}")
        seeds = f"seed {run.seed}" + (f", data_seed {run.data_seed}" if run.data_seed else "")
        lines.append(f"  steps {T:,} x {run.batch_size:,} = {T * run.batch_size:,} tokens, {seeds}")
        lr = f"lr peak {run.peak_learning_rate():.3g} ({run.lr_schedule.name})"
        lines.append(f"  {lr}, at the end {run.learning_rate(T - 1):.3g}")
        for term in run.penalty_terms():
            weights = ", ".join(f"{term.weight(s, T):.4g}" for s in (0, T // 2, T - 1))
            lines.append(f"  penalty {term.config.name}, weight at 0, 50, 100 %: {weights} ({term.schedule.name})")
        unused, nodes = run.unused_keys(), run.to_dict()
        for group in ("architecture", "group_layer", "penalty", "schedule", "lr_schedule", "train"):
            if group not in unused and group in nodes and (group != "group_layer" or nodes[group]["name"] != "none"):
                name = nodes[group].pop("name", "")
                shown = [f"{key}={value}" for key, value in _flat(nodes[group]) if f"{group}.{key}" not in unused]
                lines.append(f"  {group} {name}".rstrip() + f": {' '.join(shown)}" * bool(shown))
        if planned.pinned:
            lines.append(f"  pinned: {' '.join(planned.pinned)}".replace("layer.index=", "layer="))
        lines.append(f"  memory about {memory_gb(run):.2f} GB beside the language model")
        lines += [f"  the same run as: {point}" for point in planned.equals]
    lines += groups
    lines += plan.notes
    lines += [f"warning: {warning}" for warning in plan.warnings]
    lines += [f"provisional run ids, nothing can be launched yet: {why}" for why in plan.provisional]
    return "\n".join(lines)


def _flat(node: dict[str, Any], head: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of a nested dict with their values."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{head}{key}.")
        else:
            yield f"{head}{key}", value


def safe_name(title: str, limit: int = 80) -> str:
    """The title as a file name, at most `limit` characters."""
    return re.sub(r"[^\w=.,+-]+", "_", title)[:limit].strip("._") or "run"
