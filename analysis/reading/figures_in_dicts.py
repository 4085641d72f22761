"""Figures of a run's dicts: config, metrics, evaluations with their layers and models, per-class detail."""

import re
from dataclasses import dataclass, field
from typing import Any

from analysis.reading.literals import Literal
from analysis.reading.names import EVALUATIONS, LOGGED, STEPS, architecture_name, config_name, is_config
from analysis.reading.saebench import FACTS

CONFIG_BLOCK = re.compile(r"config|varied|common|setting|hyper|argument|param", re.I)
RESULT_BLOCK = re.compile(r"result|metric|score|eval|loss", re.I)
LAYER_IN_NAME = re.compile(r"layer_(\d+)|blocks\.(\d+)\.")
ABOUT_EVALUATION = {
    *FACTS, "eval_type_id", "eval_config", "eval_result_metrics", "eval_result_details", "eval_result_unstructured",
    "sae_cfg_dict", "sae_lens_id", "sae_lens_release_id", "sae_lens_version", "unique_id", "sae_set", "sae_id",
    "eval_cfg",
}  # fmt: skip
"""Keys beside an evaluation's metrics, which are none."""
TRAINER = {
    "trainer_class": "trainer.class", "dict_class": "trainer.dict", "wandb_name": "trainer.wandb_name",
    "device": "trainer.device",
}  # fmt: skip
"""What a trainer calls its own classes and runs -> the key of the config."""
SUBMODULE = re.compile(r"(\w+)_layer_\d+")
"""A trainer's `submodule_name`: the hook and its layer."""
USED, LOGGED_ONLY, OF_SAE = "used", "logged", "sae"


@dataclass
class Figure:
    """One value of one figure, and where it is."""

    name: str
    """The config key of today, or a metric's name as recorded."""
    value: Any
    line: int
    text: str
    is_config: bool
    place: str = "dict"
    """dict or text."""
    role: str = ""
    """used: in a config; logged: in a trainer's results; sae: in SAEBench's description of the SAE."""
    remark: str = ""


@dataclass
class Block:
    """A dict of the notes as figures."""

    label: str
    line: int
    figures: list[Figure] = field(default_factory=list)
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)
    details: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)
    unread: list[dict[str, Any]] = field(default_factory=list)
    after: str = ""
    """The text right after it."""
    content: Literal = field(default_factory=Literal)


def block_of(label: str, content: Literal, line: int) -> Block:
    """The figures of a dict."""
    block = Block(label, line, content=content)
    block.doubts += [f"{key} is given twice with different values in {label or 'a dict'}" for key in doubled(content)]
    in_config = CONFIG_BLOCK.search(label) is not None and not RESULT_BLOCK.search(label)
    read_tree(block, content, (), USED if in_config else "", in_config)
    return block


def doubled(tree: Literal) -> list[str]:
    return [*tree.doubled, *(key for value in tree.values() if isinstance(value, Literal) for key in doubled(value))]


def read_tree(block: Block, tree: dict[Any, Any], path: tuple[str, ...], role: str, whole_names: bool) -> None:
    """Add the figures of a dict at `path`; a config block's own keys keep their dotted names."""
    known = read_evaluations(block, tree, path)
    trainer = isinstance(tree.get("config"), dict) and isinstance(tree.get("final_info"), dict)
    for key, value in tree.items():
        if key in known:
            continue
        here = (*path, str(key))
        if isinstance(value, dict):
            inner = USED if CONFIG_BLOCK.search(str(key)) else LOGGED_ONLY if trainer and key == "final_info" else role
            read_tree(block, value, here, inner, whole_names)
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            block.details[str(key)] = value
        else:
            add(block, here, value, role, whole_names)


def add(block: Block, path: tuple[str, ...], value: Any, role: str, whole_names: bool) -> None:
    key = path[-1]
    is_metric = (value is None or isinstance(value, int | float)) and not isinstance(value, bool)
    text = ".".join(path)
    if role == USED or not is_metric or is_config(key) or (key in STEPS and key != "steps"):
        name = "steps" if key in STEPS else TRAINER.get(key) or config_name(text if whole_names else key)
        if role == LOGGED_ONLY:
            name = LOGGED.get(name, name)
        if name == "num_tokens" and isinstance(value, int | float) and not value > 0:
            block.unread.append({"line": block.line, "text": f"{text}: {value}", "why": "no budget of tokens"})
            return
        block.figures.append(Figure(name, value, block.line, text, True, role=role))
        if key in ("trainer_class", "dict_class") and (architecture := architecture_name(value)):
            block.figures.append(Figure("architecture", architecture, block.line, text, True, role=role))
        if key == "submodule_name" and (hook := SUBMODULE.fullmatch(str(value))):
            block.figures[-1] = Figure("layer.hook", hook[1], block.line, text, True, role=role)
    else:
        block.figures.append(Figure("steps" if key == "steps" else key, value, block.line, text, False, role=role))


def read_evaluations(block: Block, tree: dict[Any, Any], path: tuple[str, ...]) -> set[str]:
    """Add what an evaluation's result holds where the dict is one; the keys that it is made of."""
    known: set[str] = set()
    if isinstance(tree.get("eval_result_metrics"), dict):
        kind = str(tree.get("eval_type_id") or "unknown")
        name = EVALUATIONS.get(kind, kind)
        facts = facts_of(tree, tree.get("eval_config"), block.line)
        sae = tree.get("sae_cfg_dict")
        hook = str(sae.get("hook_name") or "") if isinstance(sae, dict) else ""
        layer = sae.get("hook_layer") if isinstance(sae, dict) else None
        facts |= {"layer": layer if layer is not None else layer_in(hook, tree.get("sae_lens_release_id"))}
        facts |= {"hook": hook}
        if isinstance(sae, dict):
            read_sae(block, sae, path)
        details = tree.get("eval_result_details")
        if isinstance(details, list) and details and all(isinstance(item, dict) for item in details):
            block.details[name] = details
        add_evaluation(block, name, facts, tree["eval_result_metrics"], (*path, "eval_result_metrics"))
        known |= ABOUT_EVALUATION
    if isinstance(tree.get("eval_cfg"), dict) and isinstance(tree.get("metrics"), dict):
        facts = facts_of({}, tree["eval_cfg"], block.line)
        facts |= {"layer": layer_in(tree.get("unique_id"), tree.get("sae_set"))}
        add_evaluation(block, "core", facts, tree["metrics"], (*path, "metrics"))
        known |= ABOUT_EVALUATION | {"metrics"}
    return known


def facts_of(tree: dict[Any, Any], settings: Any, line: int) -> dict[str, Any]:
    settings = settings if isinstance(settings, dict) else {}
    found = {name: tree.get(key) for key, name in FACTS.items()}
    return found | {"model": settings.get("model_name"), "settings": dict(settings), "line": line}


def add_evaluation(
    block: Block, name: str, facts: dict[str, Any], metrics: dict[Any, Any], path: tuple[str, ...]
) -> None:
    before = len(block.figures)
    read_tree(block, metrics, path, "", False)
    facts["metrics"] = [figure.name for figure in block.figures[before:] if not figure.is_config]
    block.evaluations[name] = {key: value for key, value in facts.items() if value not in (None, "", {}, [])}
    for key in ("layer", "model"):
        if key in block.evaluations[name]:
            text = ".".join((*path[:-1], name, key))
            block.figures.append(Figure(f"eval.{name}.{key}", facts[key], block.line, text, True, role=OF_SAE))


def layer_in(*names: Any) -> int | None:
    """The layer that a hook's or a release's name has."""
    found = (LAYER_IN_NAME.search(str(name)) for name in names if name)
    return next((int(match[1] or match[2]) for match in found if match), None)


def read_sae(block: Block, sae: dict[Any, Any], path: tuple[str, ...]) -> None:
    """Read the training of an SAE from SAEBench's description of it; its layer is the evaluation's."""
    hook = str(sae.get("hook_name") or "")
    values = {
        "model": sae.get("model_name"),
        "model.d_in": sae.get("d_in"),
        "architecture.d_sae": sae.get("d_sae"),
        "architecture": architecture_name(sae.get("architecture"), sae.get("activation_fn_str")),
        "layer.hook": hook.rpartition("hook_")[2],
    }
    text = ".".join((*path, "sae_cfg_dict"))
    for name, value in values.items():
        if value:
            block.figures.append(Figure(name, value, block.line, text, True, role=OF_SAE))
