"""Run notes that `analysis.output.notes` wrote, read back without loss.

A run of such notes has `State: {...}` right below its heading. Its facts are in the dicts `State` and `Results`, in
what all runs have `In common`, and in the text after `Description: `, the last of the section. All else is for people.
"""

import ast
import re
from pathlib import Path
from typing import Any

from analysis.reading.imports import Import, imported_run
from analysis.reading.literals import read_dict
from analysis.reading.names import COLUMN_NAMES
from analysis.reading.record import Recorded, submodule_name
from analysis.reading.saebench import FACTS
from analysis.text import clean
from sae_sweeps.errors import DataError

COMMON, STATE, RESULTS, DESCRIPTION = "In common", "State", "Results", "Description"
FINDINGS = "Findings of the audit:"
HEADING = re.compile(rf"## Run (\d+[a-z]?): (.*)\n{STATE}: \{{")
COMPOSED = "Description, from the config"
"""The label of a description that is no one's own words."""
COUNTED = "counted"
"""In a run's State where its metric `steps` is its `step`, so that it is not written twice."""
TRAINING = "training results"
FIELDS = (
    "architecture", "activation_dim", "dict_size", "k", "lr", "l1_penalty", "warmup_steps", "seed", "layer", "lm_name",
)  # fmt: skip
"""The config keys that are written under the records' names."""
REPEATED = ("training_steps", "layer", "dict_size", "learning_rate", "sparsity_penalty")
"""Fields of the records' `final_info` that follow from others: written, never read."""
EVALUATION = {"settings": "eval_config"} | {ours: theirs for theirs, ours in FACTS.items()}
"""What `Recorded.evaluations` keeps of an evaluation -> SAEBench's name of it, as in the records."""
SAE = {"model": "model_name", "layer": "hook_layer", "hook": "hook_name"}
"""Likewise, within `sae_cfg_dict`."""


def own_notes(text: str, name: str, path: Path) -> tuple[Import, str]:
    """The runs of notes that this project wrote, and the text without them: what other hands have added.

    Raises DataError for a run that does not read back.
    """
    head, *sections = re.split(r"^(?=## Run )", text, flags=re.MULTILINE)
    found = Import(name, path.name, "notes", [])
    if not any(map(HEADING.match, sections)):
        return found, text
    common = dict_after(COMMON, head)[0] if f"\n{COMMON}: " in head else {}
    for key, label in (("title", "Title"), ("experiment", "Experiment description")):
        if line := re.search(rf"^# {label}: (.*)$", head, re.MULTILINE):
            setattr(found.study, key, line[1])
    rest = "\n" * head.count("\n")
    for section in sections:
        if not (heading := HEADING.match(section)):
            rest += section
            continue
        number = rest.count("\n") + 1
        try:
            run = own_run(f"{name}/{heading[1]}", heading[2], section, common, findings_in(head))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            why = str(error) if isinstance(error, ValueError) else "its dicts have another form"
            why = f"it has no {error}" if isinstance(error, KeyError) else clean(why)
            raise DataError(f"{path}, line {number}: the run does not read back ({why}); mend it.") from None
        run["recorded"]["line"] = number
        found.runs.append(run)
        rest += "\n" * section.count("\n")
    return found, rest


def own_run(run_id: str, title: str, text: str, common: dict[str, Any], findings: list[str]) -> dict[str, Any]:
    """The imported run of one section.

    Args:
        common: the config that all runs of the file share.
        findings: what the audit found about all of them.
    """
    state, rest = dict_after(STATE, text)
    head = rest.partition(f"\n{RESULTS}: ")[0]
    results, rest = dict_after(RESULTS, rest)
    training = results.pop(TRAINING)
    metrics = {key: value for key, value in training["final_info"].items() if key not in REPEATED}
    own = {"run_id": state["run_id"], "findings": findings + findings_in(head)}
    recorded = Recorded(counted=state.get("steps") == COUNTED, own=own)
    recorded.own |= {key: state[key] for key in ("total_steps", "error", "described") if key in state}
    for content in results.values():
        name, sae = content["eval_type_id"], content.get("sae_cfg_dict", {})
        metrics |= content["eval_result_metrics"]
        recorded.evaluations[name] = {key: content[own] for key, own in EVALUATION.items() if own in content}
        recorded.evaluations[name] |= {key: sae[own] for key, own in SAE.items() if own in sae}
        recorded.evaluations[name]["metrics"] = list(content["eval_result_metrics"])
        if "eval_result_details" in content:
            recorded.details[name] = content["eval_result_details"]
    return imported_run(
        run_id=run_id,
        title=state.get("title", title) or "",
        config=config_in(common | training["config"]),
        metrics=metrics,
        steps=state.get("step"),
        state=state["state"],
        description=description_in(rest),
        warnings=state.get("warnings", []),
        recorded=recorded,
    )


def dict_after(label: str, text: str) -> tuple[dict[str, Any], str]:
    """The dict after `LABEL: ` at the beginning of a line, and what follows. Raises ValueError where there is none."""
    after = text.partition(f"\n{label}: ")[2]
    found = read_dict(after, 0)
    if found is None or found.cut or found.unread:
        raise ValueError(f"{label}: {found and (found.cut or found.unread[0][1]) or 'no dict'}")
    return found.value, after[found.end :]


def config_in(content: dict[str, Any]) -> dict[str, Any]:
    """The config of `training results`: FIELDS under today's keys, without what repeats others."""
    config = {COLUMN_NAMES.get(key, key) if key in FIELDS else key: value for key, value in content.items()}
    config.pop("steps", None)
    if config.get("submodule_name") == submodule_name(config):
        config.pop("submodule_name", None)
    return config


def findings_in(text: str) -> list[str]:
    """The findings of the audit that a passage lists."""
    listed = text.partition(f"\n{FINDINGS}\n")[2]
    items = re.match(r"(?:- .*\n?(?: {2,}.*\n?)*)*", listed)
    return [" ".join(item.split()) for item in re.findall(r"^- (.*(?:\n {2,}.*)*)", items[0] if items else "", re.M)]


def description_in(text: str) -> str:
    """A run's description: a quoted literal on one line, or all that follows the label; empty for a composed one."""
    words = text.partition(f"\n{DESCRIPTION}: ")[2].rstrip("\n")
    if re.fullmatch(r"(['\"]).*\1", words):
        try:
            return str(ast.literal_eval(words))
        except (ValueError, SyntaxError):  # words that begin and end with a quote
            pass
    return words
