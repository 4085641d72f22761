"""One run's config, typed, complete and checked: what is really used, with no interpolation left."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from functools import cache
from operator import attrgetter
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sae_sweeps.config.data import find_source, unused_data_keys
from sae_sweeps.config.evaluations import EvalConfig, evaluation_names, find_evaluation, readers
from sae_sweeps.config.facts import ModelFacts, model_facts
from sae_sweeps.config.penalties import Combination, PenaltyTerm
from sae_sweeps.config.plugins import component
from sae_sweeps.config.schema import (
    ActivationsConfig,
    DataConfig,
    LayerConfig,
    LoggerConfig,
    ModelConfig,
    SyntheticConfig,
    TrainConfig,
)
from sae_sweeps.errors import ConfigError
from sae_sweeps.schedules import LR_SCHEDULES, SCHEDULES, peak

# Keys at the top level that feed whichever group is chosen; null there means the group's own value.
TOP_KEYS = (
    "k", "k_start", "d_sae", "lr", "l1_penalty", "lambda2_max", "base_threshold", "decay_power", "target_l0",
)  # fmt: skip
GROUPS = (
    "model", "layer", "data", "architecture", "group_layer", "penalty", "schedule", "lr_schedule", "eval", "logger",
    "cluster",
)  # fmt: skip


def _top(key: str, default: Any = None, *, _root_: DictConfig, _parent_: DictConfig) -> Any:
    """`${top:key,default}`: the key at the top level where it is given and can only mean this group."""
    value = None if in_combination(str(_parent_._get_full_key(""))) else OmegaConf.select(_root_, key)
    return default if value is None else value


def in_combination(key: str) -> bool:
    """Whether a node, `penalty.ortho` say, belongs to one of several penalties that are added together."""
    return key.startswith("penalty.")


OmegaConf.register_new_resolver("top", _top, replace=True)


@dataclass
class RunConfig:
    """Everything one run needs. `to_dict` is what `config.yaml` records."""

    model: ModelConfig
    layer: LayerConfig
    data: DataConfig
    activations: ActivationsConfig
    architecture: Any
    group_layer: Any
    penalty: Any
    schedule: Any
    lr_schedule: Any
    train: TrainConfig
    eval: EvalConfig
    logger: LoggerConfig
    num_tokens: int
    batch_size: int
    seed: int
    data_seed: int
    outputs: str
    device: str
    title: str | None
    tags: list[str] = field(default_factory=list)

    @property
    def total_steps(self) -> int:
        return self.num_tokens // self.batch_size

    @property
    def synthetic(self) -> bool:
        return self.model.source == "synthetic"

    def penalty_terms(self) -> list[PenaltyTerm]:
        """The penalties with their schedules, in the order given; none where the run has none."""
        if isinstance(self.penalty, Combination):
            return self.penalty.terms
        return [] if self.penalty.name == "none" else [PenaltyTerm("penalty", self.penalty, self.schedule)]

    def learning_rate(self, step: int) -> float:
        return self.lr_schedule.value(step, self.total_steps)

    def peak_learning_rate(self) -> float:
        return peak(self.learning_rate, self.total_steps)

    def why_not_saelens(self) -> str | None:
        """Why the run's SAE cannot be written in SAELens's format, in one sentence, or None."""
        options = self.group_layer.active_at_inference()
        if not options:
            return None
        keys = " and ".join(f"group_layer.{option}_train_only=true" for option in options)
        return (
            "there will be no sae/, because SAELens's format cannot say what "
            f"{' and '.join(f'group_layer.{option}' for option in options)} "
            f"{'does' if len(options) == 1 else 'do'} at inference; give {keys} to have it."
        )

    def to_dict(self) -> dict[str, Any]:
        out = asdict(self)
        if isinstance(self.penalty, Combination):
            out["penalty"] = self.penalty.to_dict()
            del out["schedule"]
        out["eval"] |= out["eval"].pop("own")
        out["data"] |= out["data"].pop("own") or {}
        return out

    def unused_keys(self) -> dict[str, str]:
        """Keys and groups that cannot change this run, each with the reason."""
        out: dict[str, str] = {}
        if self.synthetic:
            out |= {"layer": "model=synthetic has no layers", "data": "model=synthetic makes its own activations"}
            why = "model=synthetic has no forward pass to judge"
            out["activations.harvest_batch"] = why
            out |= {"eval.recon_batches": why, "eval.exclude_special_tokens": why}
            of_model = (key for key, names in readers().items() if all(find_evaluation(n).needs_model for n in names))
            out |= dict.fromkeys((f"eval.{key}" for key in of_model), "model=synthetic has no language model to ask")
        if self.model.source not in ("local", "hub"):
            out["model.path"] = f"model.source={self.model.source} has none"
        if self.model.source != "hub":
            out["model.revision"] = "only models of the hub have one"
        out |= {f"data.{key}": f"data.kind={self.data.kind} has none" for key in unused_data_keys(self.data.kind)}
        if self.data.label_field is None:
            out.setdefault("data.labels", "without data.label_field there are no labels")
        if self.activations.mode != "stream":
            out["activations.buffer_tokens"] = "only activations.mode=stream uses it"
        if not self.data.has_roles():
            out["eval.label_tokens"] = f"data={self.data.name} has no roles"
        out |= _unused_eval_keys(self.eval)
        if self.eval.name == "none":
            out |= {f"eval.{f.name}": "eval=none evaluates nothing" for f in fields(EvalConfig) if f.name != "name"}
        if self.logger.name == "none":
            out |= {f"logger.{f.name}": "logger=none logs nothing" for f in fields(LoggerConfig) if f.name != "name"}
        if self.penalty.name == "none":
            out["schedule"] = "penalty=none has no weight to schedule"
        if isinstance(self.penalty, Combination):
            out["schedule"] = "each penalty of a combination has its own, as in penalty.ortho.schedule=cosine"
        for group in ("architecture", "group_layer", "penalty"):
            out |= {f"{group}.{key}": why for key, why in getattr(self, group).unused_keys().items()}
        if self.train.sampling != "contiguous_windows":
            out["train.window"] = "only train.sampling=contiguous_windows uses it"
        return out


def _unused_eval_keys(cfg: EvalConfig) -> dict[str, str]:
    """Keys of the eval group that no chosen evaluation reads."""
    return {
        f"eval.{key}": f"eval.evaluations has none of {', '.join(asking)}"
        for key, asking in readers().items()
        if not set(asking) & set(cfg.evaluations)
    }


def typed(cls: type, node: DictConfig, where: str, less: tuple[str, ...] = ()) -> Any:
    """`node`, less some keys, as an instance of the dataclass `cls`; a wrong type or an unknown key is named."""
    whole: Any = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    values = {key: value for key, value in whole.items() if key not in less}
    known = {f.name for f in fields(cls)}
    for key in values:
        if key not in known:
            raise ConfigError(f"{where}.{key}: {where}={values.get('name', cls.__name__)} has no such key.")
    for f in fields(cls):
        if f.name not in values and f.default is MISSING and f.default_factory is MISSING:
            raise ConfigError(f"{where}.{f.name} is missing from the config file of {where}={values.get('name')}.")
    _finite(values, where)
    try:
        return deepcopy(_object(cls, json.dumps(values, sort_keys=True)))
    except OmegaConfBaseException as error:
        key = str(error.full_key or _culprit(cls, values))
        given = OmegaConf.select(OmegaConf.create(values), key) if key else values
        raise ConfigError(f"{_as_given(where, key)}={given}: {expected(cls, key)}") from None


def _as_given(where: str, key: str) -> str:
    """The name by which a command gives the key of a group."""
    return key if key in TOP_KEYS else f"{where}.{key}"


def _finite(values: dict[str, Any], where: str) -> None:
    for key, value in values.items():
        if isinstance(value, dict):
            _finite(value, f"{where}.{key}")
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise ConfigError(f"{_as_given(where, key)}={number}: must be a finite number.")


def _culprit(cls: type, values: dict[str, Any]) -> str:
    """The key that `cls` cannot take, where OmegaConf does not say."""
    types = {f.name: f.type for f in fields(cls)}
    for key, value in values.items():
        try:
            OmegaConf.merge(OmegaConf.structured(cls), {key: value})
        except OmegaConfBaseException:
            kind = types[key]
            within = _culprit(kind, value) if is_dataclass(kind) and isinstance(value, dict) else ""  # type: ignore[arg-type]
            return f"{key}.{within}" if within else key
    return ""


WORDS_OF_TYPES = (
    ("int", "a whole number", "whole numbers, as in [1,2]"),
    ("float", "a number", "numbers, as in [0.1,0.2]"),
    ("bool", "true or false", "true or false"),
    ("str", "a word", "words, as in [a,b]"),
)


@cache
def _object(cls: type, values: str) -> Any:
    """An instance of `cls` from JSON. OmegaConf takes a while, and the runs of a sweep share most of their groups."""
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), json.loads(values)))


def expected(cls: type, key: str) -> str:
    """What a key of the dataclass `cls` takes, in words."""
    first, _, rest = key.partition(".")
    found = {f.name: f.type for f in fields(cls)}.get(first.partition("[")[0], "")
    if rest and is_dataclass(found):
        return expected(found, rest)  # type: ignore[arg-type]
    kind = str(found)
    for name, one, several in WORDS_OF_TYPES:
        if re.search(rf"\b{name}\b", kind):
            return f"must be a list of {several}." if "list[" in kind and "[" not in key else f"must be {one}."
    return "has the wrong type."


def run_config(cfg: DictConfig) -> RunConfig:
    """The composed Hydra config as a checked `RunConfig`. Raises ConfigError with one sentence."""
    model_class = SyntheticConfig if cfg.model.source == "synthetic" else ModelConfig
    model = typed(model_class, cfg.model, "model")
    for number, tag in enumerate(cfg.tags):
        if not isinstance(tag, str):
            raise ConfigError(f"tags[{number}]={tag}: must be a word.")
    run = RunConfig(
        model=model,
        layer=typed(LayerConfig, cfg.layer, "layer"),
        data=_data(cfg.data),
        activations=typed(ActivationsConfig, cfg.activations, "activations"),
        architecture=typed(component("architecture", cfg.architecture.name).CONFIG, cfg.architecture, "architecture"),
        group_layer=typed(component("group_layer", cfg.group_layer.name).CONFIG, cfg.group_layer, "group_layer"),
        penalty=_penalty(cfg.penalty),
        schedule=typed(SCHEDULES[cfg.schedule.name], cfg.schedule, "schedule"),
        lr_schedule=typed(LR_SCHEDULES[cfg.lr_schedule.name], cfg.lr_schedule, "lr_schedule"),
        train=typed(TrainConfig, cfg.train, "train"),
        eval=_eval(cfg.eval),
        logger=typed(LoggerConfig, cfg.logger, "logger"),
        tags=list(cfg.tags),
        **{key: cfg[key] for key in ("num_tokens", "batch_size", "seed", "data_seed", "outputs", "device", "title")},
    )
    facts = model_facts(run.model)
    _fill(run, facts)
    _check(run, facts)
    return run


def _penalty(node: DictConfig) -> Any:
    """The config of a penalty, or of several with their schedules."""
    if "+" not in node.name:
        return typed(component("penalty", node.name).CONFIG, node, "penalty")
    terms = []
    for name in node.name.split("+"):
        schedule = node[name].schedule
        config = typed(component("penalty", name).CONFIG, node[name], f"penalty.{name}", less=("schedule",))
        where = f"penalty.{name}.schedule"
        terms.append(PenaltyTerm(name, config, typed(SCHEDULES[schedule.name], schedule, where)))
    return Combination(node.name, terms)


def _data(node: DictConfig) -> DataConfig:
    """The data group; keys of a kind from outside that has a dataclass of its own are typed by that."""
    cls = find_source(node.kind).config
    if cls is None:
        return typed(DataConfig, node, "data")
    own, common = ({f.name for f in fields(c)} for c in (cls, DataConfig))
    cfg = typed(DataConfig, node, "data", less=tuple(own - common))
    cfg.own = typed(cls, node, "data", less=tuple(common - own))
    return cfg


def _eval(node: DictConfig) -> EvalConfig:
    """The eval group; the part of an evaluation with a dataclass of its own is typed by that."""
    classes = {name: cls for name in evaluation_names() if (cls := find_evaluation(name).config) is not None}
    given = {name: typed(cls, node[name], f"eval.{name}") for name, cls in classes.items() if name in node}
    cfg = typed(EvalConfig, node, "eval", less=tuple(given))
    for name in cfg.evaluations:
        find_evaluation(name)  # refuses one that does not exist
        if name in classes:
            cfg.own[name] = given.get(name) or classes[name]()
    return cfg


def _fill(run: RunConfig, facts: ModelFacts) -> None:
    """Put numbers where null means `the model decides`."""
    run.model.d_in, run.model.n_layers = facts.d_in, facts.n_layers
    if run.synthetic:
        run.layer.index = 0
    elif run.layer.index is None:
        run.layer.index = run.model.default_layer if run.model.default_layer is not None else facts.n_layers // 2
    if run.architecture.d_sae is None:
        run.architecture.d_sae = 8 * facts.d_in
    if run.train.sampling == "auto":
        run.train.sampling = run.penalty.sampling()
        if run.train.sampling == "role_pairs" and run.data.has_pairs():
            run.train.sampling = "text_pairs"
    if run.activations.dtype == "auto":
        run.activations.dtype = run.model.dtype
    if run.activations.mode == "auto":
        run.activations.mode = _mode_for(activations_gb(run), run.activations)


def activations_gb(run: RunConfig) -> float:
    """Size of the activations that a run trains on, in GB."""
    width = 4 if run.activations.dtype == "float32" else 2
    return run.num_tokens * (run.model.d_in or 0) * width / 1e9


def _mode_for(size_gb: float, cfg: ActivationsConfig) -> str:
    """Decided by the config alone, never by the machine: streaming draws other batches than the rest."""
    if size_gb <= cfg.memory_gb:
        return "memory"
    return "disk" if size_gb <= cfg.disk_gb else "stream"


def _one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{key}={value}: must be one of {', '.join(choices)}.")


def _positive(key: str, value: float) -> None:
    if not value > 0:
        raise ConfigError(f"{key}={value}: must be above 0.")


def _check(run: RunConfig, facts: ModelFacts) -> None:
    _positive("num_tokens", run.num_tokens)
    _positive("batch_size", run.batch_size)
    if run.num_tokens < run.batch_size:
        raise ConfigError(
            f"num_tokens={run.num_tokens}: less than one batch; give at least batch_size={run.batch_size}."
        )
    for key in ("seed", "data_seed"):
        if getattr(run, key) < 0:
            raise ConfigError(f"{key}={getattr(run, key)}: must be 0 or more.")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", run.device):
        raise ConfigError(f"device={run.device}: must be one of auto, cpu, cuda, cuda:N.")
    for key in ("model.dtype", "activations.dtype"):
        group, name = key.split(".")
        _one_of(key, getattr(getattr(run, group), name), ("float32", "bfloat16", "float16"))
    _one_of("layer.hook", run.layer.hook, ("resid_post", "mlp_out", "attn_out"))
    if not run.synthetic and not 0 <= (run.layer.index or 0) < facts.n_layers:
        raise ConfigError(
            f"layer={run.layer.index}: {run.model.name} has {facts.n_layers} layers, "
            f"numbered 0 to {facts.n_layers - 1}."
        )
    if run.data.context < 2:
        raise ConfigError(
            f"data.context={run.data.context}: a context holds at least BOS and one token; give 2 or more."
        )
    _one_of("data.train_on", run.data.train_on, ("non_special", "all"))
    _check_pairs(run)
    if not 0 < run.data.held_out < 1:
        raise ConfigError(f"data.held_out={run.data.held_out}: must lie between 0 and 1.")
    activations = run.activations
    _one_of("activations.mode", activations.mode, ("auto", "memory", "disk", "stream"))
    for name in ("memory_gb", "disk_gb"):
        if getattr(activations, name) < 0:
            raise ConfigError(f"activations.{name}={getattr(activations, name)}: must be 0 or more.")
    _positive("activations.harvest_batch", activations.harvest_batch)
    if activations.mode == "stream" and activations.buffer_tokens < run.batch_size:
        raise ConfigError(
            f"activations.buffer_tokens={activations.buffer_tokens}: must hold at least one batch of {run.batch_size}."
        )
    _check_train(run.train)
    if run.train.selection == "bfloat16":
        if not hasattr(run.architecture, "k"):
            raise ConfigError(
                f"train.selection=bfloat16: architecture={run.architecture.name} selects nothing; give topk, "
                "batch_topk or matryoshka, or train.selection=exact."
            )
        if run.train.kernels == "reference":
            raise ConfigError("train.selection=bfloat16: the reference kernels are exact; give train.kernels=auto.")
    run.lr_schedule.check()
    run.schedule.check()
    run.architecture.check(facts.d_in)
    run.group_layer.check(run.architecture.d_sae)
    run.penalty.check()
    run.penalty.check_run(run)
    _positive("eval.batch_size", run.eval.batch_size)
    _positive("eval.recon_batches", run.eval.recon_batches)
    _positive("eval.sparsity_batches", run.eval.sparsity_batches)
    _positive("eval.label_tokens", run.eval.label_tokens)
    _check_evaluations(run.eval)


def _check_evaluations(cfg: EvalConfig) -> None:
    if cfg.seed < 0:
        raise ConfigError(f"eval.seed={cfg.seed}: must be 0 or more.")
    at_least = {
        "llm_batch": 1, "probing.train_rows": 4, "probing.test_rows": 4, "probing.context": 2, "ablation.train_rows": 4,
        "ablation.test_rows": 4, "ablation.probe_epochs": 1, "ablation.probe_batch": 1, "hierarchy.folds": 2,
        "hierarchy.rows": 4, "absorption.max_k": 1, "absorption.min_letters": 1, "absorption.epochs": 1,
        "unlearning.contexts": 1, "unlearning.context": 2, "autointerp.n_latents": 1, "autointerp.buffer": 1,
        "autointerp.concurrency": 1, "autointerp.total_tokens": 1,
    }  # fmt: skip
    for key, least in at_least.items():
        value = attrgetter(key)(cfg)
        if value < least:
            raise ConfigError(f"eval.{key}={value}: must be at least {least}.")
    for key in ("probing.k_values", "hierarchy.k_values", "ablation.n_values", "unlearning.n_features",
                "unlearning.multipliers", "unlearning.retain_thresholds"):  # fmt: skip
        values = attrgetter(key)(cfg)
        if not values or min(values) <= 0:
            raise ConfigError(f"eval.{key}={values}: give numbers above 0.")
    if cfg.hierarchy.folds > cfg.hierarchy.rows // 2:
        raise ConfigError(f"eval.hierarchy.folds={cfg.hierarchy.folds}: leaves fewer than two rows in a fold.")


def _check_pairs(run: RunConfig) -> None:
    """Pairs need data that has them."""
    if run.data.has_pairs() and run.data.train_on == "all":
        raise ConfigError("data.train_on=all: texts in pairs are filled up with special tokens; give non_special.")
    has = {"role_pairs": run.data.has_roles(), "text_pairs": run.data.has_pairs()}
    if not has.get(run.train.sampling, True) or (run.synthetic and run.train.sampling in has):
        raise ConfigError(
            f"train.sampling={run.train.sampling}: data={run.data.name} has no roles or pairs; give "
            "data=builtin_roles, data.label_field=COLUMN or data.pair_field=COLUMN."
        )


def _check_train(train: TrainConfig) -> None:
    _one_of("train.recon", train.recon, ("squared", "norm"))
    _one_of("train.precision", train.precision, ("float32", "bfloat16", "float64"))
    _one_of("train.kernels", train.kernels, ("auto", "reference"))
    _one_of("train.selection", train.selection, ("exact", "bfloat16"))
    _one_of("train.b_dec_init", train.b_dec_init, ("mean", "geometric_median", "zero"))
    kinds = ("auto", "tokens", "adjacent_pairs", "contiguous_windows", "role_pairs", "text_pairs")
    _one_of("train.sampling", train.sampling, kinds)
    if train.held_out_tokens < 0:
        raise ConfigError(f"train.held_out_tokens={train.held_out_tokens}: must be 0 (none) or more.")
    for name in ("log_every", "checkpoint_every", "monitor_every", "dead_after_tokens", "window"):
        _positive(f"train.{name}", getattr(train, name))
    if train.clip < 0:
        raise ConfigError(f"train.clip={train.clip}: must be 0 (no clipping) or more.")
    for name in ("beta1", "beta2"):
        if not 0 <= getattr(train, name) < 1:
            raise ConfigError(f"train.{name}={getattr(train, name)}: must lie in [0, 1).")


def check_sae(d_sae: int) -> None:
    """Shared by every architecture's own check."""
    _positive("d_sae", d_sae)


def used_top_keys(cfg: DictConfig) -> set[str]:
    """Top-level keys that the chosen groups really read, found in their interpolations."""
    raw: Any = OmegaConf.to_container(cfg, resolve=False)
    if "+" in raw["penalty"]["name"]:
        raw = {group: node for group, node in raw.items() if group not in ("penalty", "schedule")}
    text = " ".join(str(leaf) for group in raw.values() if isinstance(group, dict) for leaf in _leaves(group))
    return set(re.findall(r"\$\{top:(\w+)", text))


def _leaves(node: Any) -> Iterator[Any]:
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else None
    if children is None:
        yield node
    else:
        for child in children:
            yield from _leaves(child)
