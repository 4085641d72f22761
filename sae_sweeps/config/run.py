"""One run's config: typed, complete and checked, with all interpolations resolved."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from sae_sweeps.config import data as texts
from sae_sweeps.config.data import find_source, unused_data_keys
from sae_sweeps.config.evaluations import (
    EvalConfig,
    Evaluation,
    evaluation_names,
    find_evaluation,
    readers,
    register,
    resolve_data,
)
from sae_sweeps.config.facts import ModelFacts, activation_width, model_facts
from sae_sweeps.config.hooks import with_short_hook
from sae_sweeps.config.hub import pin
from sae_sweeps.config.judged import judged_model
from sae_sweeps.config.penalties import Combination, PenaltyTerm, finite
from sae_sweeps.config.plugins import KEYS, TARGET, Code, Component, code_of, component
from sae_sweeps.config.schema import (
    ActivationsConfig,
    DataConfig,
    LayerConfig,
    LoggerConfig,
    ModelConfig,
    SyntheticConfig,
    TrainConfig,
)
from sae_sweeps.config.typed import check_values, refuse_secret, typed
from sae_sweeps.errors import ConfigError, NeedsRoles
from sae_sweeps.fields import NotNegative, Positive, Rule
from sae_sweeps.schedules import peak

GROUPS = (
    "model", "layer", "data", "architecture", "group_layer", "penalty", "schedule", "lr_schedule", "eval", "logger",
    "cluster",
)  # fmt: skip


def _top(key: str, default: Any = None, *, _root_: DictConfig, _parent_: DictConfig) -> Any:
    """`${top:key,default}`: the key at the top level where it is given and can only mean this group."""
    value = None if in_combination(str(_parent_._get_full_key(""))) else OmegaConf.select(_root_, key)
    return default if value is None else value


def in_combination(key: str) -> bool:
    """Whether a node, such as `penalty.ortho`, belongs to one of several penalties that are added together."""
    return key.startswith("penalty.")


DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
OmegaConf.register_new_resolver("top", _top, replace=True)
# `${share:0.25,${k}}`: a share of a whole number, in the words of a variant
OmegaConf.register_new_resolver("share", lambda share, of: round(share * of), replace=True)


@dataclass
class RunConfig:
    """The config of one run. `to_dict` gives the content of config.yaml."""

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
    num_tokens: Positive[int]
    batch_size: Positive[int]
    seed: NotNegative[int]
    data_seed: NotNegative[int]
    outputs: str
    device: Annotated[str, Rule(DEVICE.fullmatch, "must be one of auto, cpu, cuda, cuda:N.")]
    title: str | None
    description: str = ""
    tags: list[str] = field(default_factory=list)
    code: dict[str, Code] = field(default_factory=dict)
    """Code from outside, by its place in the config: `penalty`, `penalty.NAME`, `schedule`, ..."""

    @property
    def total_steps(self) -> int:
        return self.num_tokens // self.batch_size

    @property
    def d_in(self) -> int:
        """Width of the activations that the SAE reads."""
        return self.layer.d_in or self.model.d_in or 0

    @property
    def synthetic(self) -> bool:
        return self.model.source == "synthetic"

    def penalty_terms(self) -> list[PenaltyTerm]:
        """The penalties with their schedules, in the order given; none where the run has none."""
        if isinstance(self.penalty, Combination):
            return self.penalty.terms
        return [] if self.penalty.name == "none" else [PenaltyTerm("penalty", self.penalty, self.schedule)]

    def learning_rate(self, step: int) -> float:
        value = self.lr_schedule.value(step, self.total_steps)
        return finite(value, f"lr_schedule={self.lr_schedule.name}: its value at step {step}")

    def peak_learning_rate(self) -> float:
        return peak(self.learning_rate, self.total_steps)

    def why_not_saelens(self) -> str | None:
        """Why the run's SAE cannot be written in SAELens's format, in one sentence, or None."""
        if (
            "architecture" in self.code
            and self.component("architecture", self.architecture).component.exports_as is None
        ):
            return f"there will be no sae/, because SAELens's format has no architecture like {self.architecture.name}."
        options = self.group_layer.active_at_inference()
        if not options:
            return None
        keys = " and ".join(f"group_layer.{option}_train_only=true" for option in options)
        return (
            "there will be no sae/, because SAELens's format cannot hold what "
            f"{' and '.join(f'group_layer.{option}' for option in options)} "
            f"{'does' if len(options) == 1 else 'do'} at inference; give {keys} to have it."
        )

    def component(self, group: str, config: Any, place: str | None = None) -> Component:
        """The component of one of the run's groups; `place` is its place in the config where that is not the group."""
        return component(group, config.name, self.code.get(place or group))

    def to_dict(self) -> dict[str, Any]:
        out = asdict(self)
        del out["code"]
        if isinstance(self.penalty, Combination):
            out["penalty"] = self.penalty.to_dict()
            del out["schedule"]
        out["eval"] |= out["eval"].pop("own")
        out["data"] |= out["data"].pop("own") or {}
        for place, code in self.code.items():
            node = out
            for key in place.split("."):
                node = node.setdefault(key, {})
            node |= code.to_dict()
        return out

    def unused_keys(self) -> dict[str, str]:
        """Keys and groups that cannot change this run, each with the reason."""
        out: dict[str, str] = {}
        if self.synthetic:
            out |= {"layer": "model=synthetic has no layers", "data": "model=synthetic makes its own activations"}
            why = "model=synthetic has no forward pass to judge"
            out["activations.harvest_batch"] = why
            out |= {
                f"eval.{key}": why
                for key in ("recon_batches", "exclude_special_tokens", "compute_kl", "compute_ce_loss")
            }
            of_model = (key for key, names in readers().items() if all(find_evaluation(n).needs_model for n in names))
            out |= dict.fromkeys((f"eval.{key}" for key in of_model), "model=synthetic has no language model")
        if self.model.source not in ("local", "hub"):
            out["model.path"] = f"model.source={self.model.source} has none"
        if self.model.source != "hub":
            out["model.revision"] = "only models of the hub have one"
        none = f"data.kind={self.data.kind} has none"
        columns = f"{none}; rows of .jsonl, .json and .parquet have columns" if self.data.kind == "text" else none
        for key in unused_data_keys(self.data.kind):
            out[f"data.{key}"] = columns if key in texts.COLUMNS else none
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
        f"eval.{key}": f"eval.evaluations has none of {', '.join(names)}"
        for key, names in readers().items()
        if not set(names) & set(cfg.evaluations)
    }


def run_config(cfg: DictConfig) -> RunConfig:
    """The composed Hydra config as a checked `RunConfig`. Raises ConfigError with one sentence."""
    model_class = SyntheticConfig if cfg.model.source == "synthetic" else ModelConfig
    model = typed(model_class, cfg.model, "model")
    code: dict[str, Code] = {}
    outputs = Path(cfg.outputs).resolve()
    if not isinstance(cfg.tags, ListConfig | list | tuple):  # an interpolation, `tags=${seed}`
        raise ConfigError(f"tags={cfg.tags}: must be a list, as in tags=[{cfg.tags}].")
    for number, tag in enumerate(cfg.tags):
        if not isinstance(tag, str):
            raise ConfigError(f"tags[{number}]={tag}: must be a word.")
        refuse_secret("tags", tag)
    for key in ("title", "description", "outputs"):
        refuse_secret(key, str(cfg.get(key)))
    run = RunConfig(
        model=model,
        layer=with_short_hook(typed(LayerConfig, cfg.layer, "layer")),
        data=_data(cfg.data, code, outputs),
        activations=typed(ActivationsConfig, cfg.activations, "activations"),
        architecture=_component("architecture", cfg.architecture, code, outputs),
        group_layer=_component("group_layer", cfg.group_layer, code, outputs),
        penalty=_penalty(cfg.penalty, code, outputs),
        schedule=_component("schedule", cfg.schedule, code, outputs),
        lr_schedule=_component("lr_schedule", cfg.lr_schedule, code, outputs),
        train=typed(TrainConfig, cfg.train, "train"),
        eval=_eval(cfg.eval, code, outputs),
        logger=typed(LoggerConfig, cfg.logger, "logger"),
        description=cfg.get("description") or "",
        tags=list(cfg.tags),
        code=code,
        **{key: cfg[key] for key in ("num_tokens", "batch_size", "seed", "data_seed", "outputs", "device", "title")},
    )
    pin(run.model, run.data)
    facts = model_facts(run.model)
    _fill(run, facts)
    _check(run, facts)
    return run


def _component(group: str, node: DictConfig, code: dict[str, Code], outputs: Path, place: str | None = None) -> Any:
    """The config of a group's choice; code from outside that it names is added to `code` under its place."""
    place = place or group
    found = code_of(group, node)
    if found is not None:
        _refuse_code_among_runs(f"{group}={node.name}", found, outputs)
        code[place] = found
    return typed(
        component(group, node.name, found).config, node, place, less=KEYS if place == group else ("schedule", *KEYS)
    )


def _refuse_code_among_runs(choice: str, code: Code, outputs: Path) -> None:
    """Raise ConfigError for code that lies where runs are kept, and so may have come with a run from elsewhere."""
    if code.file and not Path(code.file).is_absolute():
        raise ConfigError(f"{choice}: {code.file} depends on the working folder; code is run from whole paths alone.")
    if code.file and any(Path(code.file).resolve().is_relative_to(outputs / part) for part in ("runs", "sweeps")):
        raise ConfigError(f"{choice}: {code.file} lies among runs; code is not run from there.")


def _penalty(node: DictConfig, code: dict[str, Code], outputs: Path) -> Any:
    """The config of a penalty, or of several with their schedules."""
    if "+" not in node.name:
        return _component("penalty", node, code, outputs)
    terms = []
    for name in node.name.split("+"):
        place = f"penalty.{name}"
        config = _component("penalty", node[name], code, outputs, place)
        schedule = _component("schedule", node[name].schedule, code, outputs, f"{place}.schedule")
        terms.append(PenaltyTerm(name, config, schedule))
    return Combination(node.name, terms)


def _data(node: DictConfig, code: dict[str, Code], outputs: Path) -> DataConfig:
    """The data group; text with a `_target_` is read by code from outside, which is registered.

    Keys of a kind from outside that has a dataclass of its own are typed by that.
    """
    found = code_of("data", node)
    if found is not None:
        _refuse_code_among_runs(f"data={node.name}", found, outputs)
        code["data"] = found
        reader = component("data", node.name, found).component
        if not isinstance(reader, texts.TextSource):
            reader = texts.TextSource(("path", "held_out"), documents=reader)
        texts.register(node.kind, replace(reader, digest=found.digest))
    cls = find_source(node.kind).config
    if cls is None:
        return typed(DataConfig, node, "data", less=KEYS)
    own, common = ({f.name for f in fields(c)} for c in (cls, DataConfig))
    cfg = typed(DataConfig, node, "data", less=(*(own - common), *KEYS))
    cfg.own = typed(cls, node, "data", less=(*(common - own), *KEYS))
    return cfg


def _eval(node: DictConfig, code: dict[str, Code], outputs: Path) -> EvalConfig:
    """The eval group; the part of an evaluation with a dataclass of its own is typed by that.

    A part with a `_target_` is an evaluation from outside, which is registered.
    """
    outside = [str(name) for name in node if isinstance(node[name], DictConfig) and TARGET in node[name]]
    for name in outside:
        found = code_of("eval", node[name], choice=str(node.name))
        assert found is not None
        _refuse_code_among_runs(f"eval.{name}", found, outputs)
        code[f"eval.{name}"] = found
        register(replace(_checked(name, component("eval", name, found).component), name=name, digest=found.digest))
    classes = {name: cls for name in evaluation_names() if (cls := find_evaluation(name).config) is not None}
    given = {name: typed(cls, node[name], f"eval.{name}", less=KEYS) for name, cls in classes.items() if name in node}
    cfg = typed(EvalConfig, node, "eval", less=(*given, *outside))
    resolve_data(cfg)
    for name in cfg.evaluations:
        find_evaluation(name)  # refuses one that does not exist
        if name in classes:
            cfg.own[name] = given.get(name) or classes[name]()
    return cfg


def _checked(name: str, evaluation: Any) -> Evaluation:
    """An evaluation from outside. Raises ConfigError for anything else, and for one that reads unknown keys."""
    if not isinstance(evaluation, Evaluation):
        raise ConfigError(f"eval.{name}: its _target_ must name an Evaluation of sae_sweeps.config.evaluations.")
    if unknown := sorted(set(evaluation.reads) - {f.name for f in fields(EvalConfig)}):
        raise ConfigError(f"eval.{name}: reads {unknown[0]}, which is no key of eval; mend `reads` of the Evaluation.")
    if evaluation.config is not None and not (isinstance(evaluation.config, type) and is_dataclass(evaluation.config)):
        raise ConfigError(f"eval.{name}: the config of the Evaluation must be a dataclass of its own keys.")
    return evaluation


def _fill(run: RunConfig, facts: ModelFacts) -> None:
    """Replace null and auto by the values that the model and the penalty imply."""
    run.model.d_in, run.model.n_layers, run.model.vocabulary = facts.d_in, facts.n_layers, facts.vocabulary
    if run.synthetic:
        run.layer.index = 0
    elif run.layer.index is None:
        run.layer.index = run.model.default_layer if run.model.default_layer is not None else facts.n_layers // 2
    run.layer.d_in = activation_width(run.model, run.layer, facts)
    if run.architecture.d_sae is None:
        run.architecture.d_sae = 8 * run.d_in
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
    return run.num_tokens * run.d_in * width / 1e9


def _mode_for(size_gb: float, cfg: ActivationsConfig) -> str:
    """Where activations are kept: by their size and the config's limits alone, since a stream gives other batches.

    The only place that decides: planning, execution and resume, on whatever machine, read what it wrote.
    """
    if size_gb <= cfg.memory_gb:
        return "memory"
    return "disk" if size_gb <= cfg.disk_gb else "stream"


MOST_TOKENS = 10**13
"""About as many as the largest text corpora have; a GPU would train on them for years."""


def _check(run: RunConfig, facts: ModelFacts) -> None:
    """Raise ConfigError for invalid values and for values that exclude each other."""
    check_values(run)
    if run.num_tokens > MOST_TOKENS:
        raise ConfigError(f"num_tokens={run.num_tokens}: no run would end; give at most {MOST_TOKENS:,}.")
    if run.num_tokens < run.batch_size:
        raise ConfigError(
            f"num_tokens={run.num_tokens}: less than one batch; give at least batch_size={run.batch_size}."
        )
    if not run.synthetic and not 0 <= (run.layer.index or 0) < facts.n_layers:
        raise ConfigError(
            f"layer={run.layer.index}: {run.model.name} has {facts.n_layers} layers, "
            f"numbered 0 to {facts.n_layers - 1}."
        )
    _check_pairs(run)
    activations = run.activations
    if activations.mode == "stream" and activations.buffer_tokens < run.batch_size:
        raise ConfigError(
            f"activations.buffer_tokens={activations.buffer_tokens}: must hold at least one batch of {run.batch_size}."
        )
    if run.train.matmul == "tf32" and activations.mode == "stream" and not run.synthetic:
        raise ConfigError(  # torch has one such setting for all threads
            "train.matmul=tf32: a stream's activations are computed beside the steps, so some would be rounded too; "
            "give activations.mode=memory or disk, or train.matmul=float32."
        )
    if run.train.selection == "bfloat16":
        if not hasattr(run.architecture, "k"):
            raise ConfigError(
                f"train.selection=bfloat16: architecture={run.architecture.name} selects nothing; give topk, "
                "batch_topk or matryoshka, or train.selection=auto."
            )
        if run.train.kernels == "reference":
            raise ConfigError("train.selection=bfloat16: the reference kernels are exact; give train.kernels=auto.")
    if run.train.selection == "bounded":
        _check_bounded(run)
    if isinstance(run.model, SyntheticConfig):
        run.model.check()
    run.lr_schedule.check()
    run.schedule.check()
    run.architecture.check(run.d_in)
    run.group_layer.check(run.architecture.d_sae)
    run.penalty.check()
    run.penalty.check_run(run)
    judged_model(run.eval.unlearning.model, run.model)
    folds, rows = run.eval.hierarchy.folds, run.eval.hierarchy.rows
    if folds > rows // 2:
        raise ConfigError(f"eval.hierarchy.folds={folds}: leaves fewer than two rows in a fold.")


def _check_bounded(run: RunConfig) -> None:
    """Raise ConfigError where `train.selection=bounded` is not to be had."""
    mend = "or give train.selection=auto."
    for key, value, wanted in (
        ("kernels", run.train.kernels, "auto"),
        ("precision", run.train.precision, "float32"),
        ("matmul", run.train.matmul, "float32"),
    ):
        if value != wanted:
            raise ConfigError(
                f"train.selection=bounded: needs float32 products and compiled kernels, but train.{key}={value}; "
                f"give train.{key}={wanted}, {mend}"
            )


def _check_pairs(run: RunConfig) -> None:
    """Raise ConfigError for pairs of text without data that has them."""
    if run.data.has_pairs() and run.data.train_on == "all":
        raise ConfigError("data.train_on=all: texts in pairs are filled up with special tokens; give non_special.")
    has = {"role_pairs": run.data.has_roles(), "text_pairs": run.data.has_pairs()}
    if not has.get(run.train.sampling, True) or (run.synthetic and run.train.sampling in has):
        raise NeedsRoles(
            f"train.sampling={run.train.sampling}: data={run.data.name} has no roles or pairs; give "
            "data=builtin_roles, data.label_field=COLUMN or data.pair_field=COLUMN."
        )


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
