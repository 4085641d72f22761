"""Groups of a plan's runs that train side by side: they share one pass of the language model and fit in memory."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sae_sweeps.config.evaluations import contexts_at_once
from sae_sweeps.config.facts import model_folder
from sae_sweeps.config.hooks import hook_name
from sae_sweeps.config.run import RunConfig, activations_gb
from sae_sweeps.config.schema import ClusterConfig
from sae_sweeps.errors import ConfigError
from sae_sweeps.storage.printing import spans
from sae_sweeps.sweeps.plan import Plan, PlannedRun, kept_gb, step_gb, weights_gb

MORE_PASSES = " (and one more for each hook that is on none of its own modules)"
LARGEST_GROUP = 32
"""Runs in a group without `cluster.group_size`; an interruption stops all of them."""
USABLE_MEMORY = 0.8
"""Share of the memory that is planned with; the rest is for what estimates leave out."""
SHARD_GB = 0.14
"""Memory for harvesting a further layer to disk: a shard in the making."""
VOCABULARY = 50_000
"""Of a language model whose config.json is not here."""
START_TOKENS = 16_384
"""Tokens of a further layer that its runs start from, all layers at the same time."""


class Tokens(NamedTuple):
    harvested: int
    """Tokens that the language model reads to train on, once for the group and all its layers; 0 for synthetic
    activations."""
    trained: int
    """Tokens that the group's SAEs train on, all together."""


@dataclass
class Group:
    """Runs that train side by side."""

    runs: list[PlannedRun]
    key: str
    """Model, layers, data and tokens, for printing."""
    memory_gb: float
    """Estimated peak."""
    tokens: Tokens

    @property
    def reading(self) -> str:
        """How the tokens `{}` are read, for printing."""
        layers = one_of_each_layer(planned.run for planned in self.runs)
        if len(layers) == 1:
            return "the language model reads {} tokens"
        more = any(run.layer.hook not in ("resid_pre", "resid_post") for run in layers)
        return "one pass of the language model reads {} tokens for all layers" + MORE_PASSES * more


def plan_groups(plan: Plan, limits: ClusterConfig | None = None) -> list[Group]:
    """The plan's runs in groups, in the order of their first runs, within `group_size` and `memory_gb` of `limits`.

    A group shares model, data, token budget, how activations are kept and the evaluations; from a stream also the batch
    size, which decides the parts that a stream is read in. Runs of several layers come into one group as far as it has
    room, layer after layer. Raises ConfigError for limits out of range.
    """
    limits = limits or ClusterConfig()
    if limits.group_size is not None and limits.group_size < 1:
        raise ConfigError(f"cluster.group_size={limits.group_size}: must be at least 1, or null to go by memory.")
    if limits.memory_gb is not None and limits.memory_gb <= 0:
        raise ConfigError(f"cluster.memory_gb={limits.memory_gb}: must be above 0, or null for what the machine has.")
    alike: dict[str, list[PlannedRun]] = {}
    for planned in plan.runs:
        alike.setdefault(_shared_config(planned.run), []).append(planned)
    if not alike:
        return []
    on_gpu, available = usable_memory_gb(plan.runs[0].run.device)
    available = limits.memory_gb or available
    most = limits.group_size or LARGEST_GROUP
    beside = math.inf if not on_gpu or limits.memory_gb == math.inf else USABLE_MEMORY * machine_gb()
    room = Room(most, available, on_gpu, beside)
    number = {planned.run_id: n for n, planned in enumerate(plan.runs)}
    pieces = [piece for shared in alike.values() for piece in _split(_by_layer(shared), room)]
    return [_group(sorted(piece, key=lambda planned: number[planned.run_id])) for piece in pieces]


def _shared_config(run: RunConfig) -> str:
    """The part of a run's config that the runs of a group have in common, as JSON."""
    nodes: dict[str, Any] = {name: asdict(getattr(run, name)) for name in ("model", "data", "activations", "eval")}
    del nodes["data"]["max_norm"]  # the text is harvested whole
    nodes |= {"tokens": run.total_steps * run.batch_size, "outputs": run.outputs, "device": run.device}
    if run.activations.mode == "stream":
        nodes["batch_size"] = run.batch_size
    return json.dumps(nodes, sort_keys=True)


class Room(NamedTuple):
    """What limits a group."""

    runs: int
    device_gb: float
    """Memory of the device that trains."""
    on_gpu: bool
    main_gb: float
    """Main memory where that is another."""

    def holds(self, runs: list[PlannedRun]) -> bool:
        fits = memory_of(runs, self.on_gpu) <= self.device_gb and main_memory_of(runs) <= self.main_gb
        return len(runs) <= self.runs and fits


def _by_layer(runs: list[PlannedRun]) -> list[PlannedRun]:
    """Layer after layer, so that pieces hold the activations of as few layers as can be."""
    order = list(dict.fromkeys(hook_name(planned.run.layer) for planned in runs))
    return sorted(runs, key=lambda planned: order.index(hook_name(planned.run.layer)))


def _split(runs: list[PlannedRun], room: Room) -> Iterable[list[PlannedRun]]:
    """The runs in their order, in pieces of several where there is room."""
    piece: list[PlannedRun] = []
    for planned in runs:
        if piece and not room.holds([*piece, planned]):
            yield piece
            piece = []
        piece.append(planned)
    yield piece


def _group(runs: list[PlannedRun]) -> Group:
    run = runs[0].run
    budget = run.total_steps * run.batch_size
    tokens = Tokens(0 if run.synthetic else budget, budget * len(runs))
    return Group(runs, describe_shared(runs), memory_of(runs), tokens)


def one_of_each_layer(runs: Iterable[RunConfig]) -> list[RunConfig]:
    """The first of the runs of each layer, in their order."""
    first: dict[str, RunConfig] = {}
    for run in runs:
        first.setdefault(hook_name(run.layer), run)
    return list(first.values())


def describe_shared(runs: list[PlannedRun]) -> str:
    run, layers = runs[0].run, [one.layer for one in one_of_each_layer(planned.run for planned in runs)]
    tokens = f"{run.total_steps * run.batch_size:,} tokens"
    if run.synthetic:
        return f"{run.model.name}, {tokens}"
    if len({layer.hook for layer in layers}) == 1:
        where = f"{', '.join(str(layer.index) for layer in layers)} {run.layer.hook}"
    else:
        where = ", ".join(f"{layer.index} {layer.hook}" for layer in layers)
    return f"{run.model.name} layer{'s' * (len(layers) > 1)} {where}, data {run.data.name}, {tokens}"


def memory_of(runs: list[PlannedRun], on_gpu: bool = False) -> float:
    """Estimated peak of a group in GB; activations that are kept in main memory do not count on a GPU."""
    configs = [planned.run for planned in runs]
    beside = 0.0 if on_gpu else main_memory_of(runs)
    beside += sum(START_TOKENS * run.d_in * 4 / 1e9 for run in one_of_each_layer(configs)[1:])
    at_work = max(*map(step_gb, configs), logits_gb(configs[0], on_gpu))
    return language_model_gb(configs[0]) + beside + sum(map(weights_gb, configs)) + at_work


def main_memory_of(runs: list[PlannedRun]) -> float:
    """Main memory beside that of the device that trains, in GB: activations of each layer that are kept, shards that
    are written together, and copies of states on their way to the disk."""
    configs = [planned.run for planned in runs]
    first, *further = one_of_each_layer(configs)
    shards = sum(min(activations_gb(run), SHARD_GB) for run in further if run.activations.mode == "disk")
    return kept_gb(first) + sum(map(kept_gb, further)) + shards + copies_gb(configs)


def copies_gb(configs: list[RunConfig]) -> float:
    """Weights and moments of checkpoints that are being written: by time one after the other, by steps of all runs."""
    by_steps = sum(0.75 * weights_gb(run) for run in configs if run.train.checkpoint_every)
    return max(by_steps, *(0.75 * weights_gb(run) for run in configs))


def logits_gb(run: RunConfig, on_gpu: bool) -> float:
    """Logits in the core evaluation, in GB: log-probabilities in float32 and the logits that they are made from."""
    measured = run.eval.name != "none" and "core" in run.eval.evaluations
    if run.synthetic or not measured or not (run.eval.compute_kl or run.eval.compute_ce_loss):
        return 0.0
    vocabulary, context = run.model.vocabulary or VOCABULARY, run.data.context
    contexts = contexts_at_once(run.eval.batch_size, context, vocabulary, on_gpu)
    width = 8 if run.model.dtype == "float32" else 10
    return contexts * context * vocabulary * width / 1e9


def fits_on_device(configs: list[RunConfig], activations: float, free: float) -> bool:
    """Whether so many GB of activations are kept on a GPU with so many free, beside all that the training needs."""
    most = configs[0].activations.device_gb
    if most is not None:
        return activations <= most
    return activations + sum(map(weights_gb, configs)) + max(map(step_gb, configs)) <= USABLE_MEMORY * free


def language_model_gb(run: RunConfig) -> float:
    """The language model's weights in GB: by its files where it is on disk, else by its shape."""
    if run.synthetic:
        return 0.0
    folder, width = model_folder(run.model), 4 if run.model.dtype == "float32" else 2
    if folder is not None:
        files = [*folder.glob("*.safetensors")] or [*folder.glob("*.bin")]
        return sum(file.stat().st_size for file in files) / 1e9
    d_in, n_layers = run.model.d_in or 0, run.model.n_layers or 0
    return (12 * n_layers * d_in**2 + 2 * (run.model.vocabulary or VOCABULARY) * d_in) * width / 1e9


def usable_memory_gb(device: str) -> tuple[bool, float]:
    """Whether the runs go on a GPU, and the memory that may be planned with, there or in this machine, in GB."""
    import torch

    if device != "cpu" and torch.cuda.is_available():
        number = torch.device(device).index if device.startswith("cuda") else 0
        return True, USABLE_MEMORY * torch.cuda.get_device_properties(number or 0).total_memory / 1e9
    return False, USABLE_MEMORY * machine_gb()


def machine_gb() -> float:
    """Free memory of this machine in GB, or less where its control group (a container, a Slurm job) allows less."""
    free = [_meminfo()]
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            most, now = ((Path("/sys/fs/cgroup") / name).read_text().strip() for name in (limit, used))
        except OSError:
            continue
        if most != "max":
            free.append(int(most) - int(now))
    return max(min(free), 0) / 1e9


def _meminfo() -> float:
    """Available bytes; all there are where /proc/meminfo is missing."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * float(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def describe_groups(groups: list[Group], plan: Plan) -> list[str]:
    """The lines of `--dry-run` about groups."""
    number = {planned.run_id: n for n, planned in enumerate(plan.runs, 1)}
    lines = []
    for n, group in enumerate(groups, 1):
        lines.append(f"group {n}  run{'s' * (len(group.runs) > 1)} {ranges([number[p.run_id] for p in group.runs])}")
        counts = counted(group.tokens, group.reading)
        lines.append(f"  {group.key}: {counts}, memory about {group.memory_gb:.2f} GB")
    if len(groups) > 1:
        whole = Tokens(*(sum(part) for part in zip(*(group.tokens for group in groups), strict=True)))
        lines.append(f"in all: {counted(whole)}")
    return lines


def counted(tokens: Tokens, reading: str = "the language model reads {} tokens") -> str:
    read = f"{reading.format(f'{tokens.harvested:,}')}, " if tokens.harvested else ""
    return f"{read}SAEs train on {tokens.trained:,}"


def ranges(numbers: list[int]) -> str:
    """1, 2, 3, 5 as `1-3,5`."""
    return ",".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in spans(numbers))
