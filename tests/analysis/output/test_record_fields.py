"""The page on notes names every field of the studies' records, and the notes have each where the page says so."""

import ast
import re
from pathlib import Path

import pytest

from analysis.output.notes import notes
from analysis.reading.records import records
from sae_sweeps.storage.files import write_json
from tests.analysis.outputs import add_run

PAGE = Path(__file__).parents[3] / "docs" / "analysis.md"

RECORD_FIELDS = {
    "config": "trainer_class dict_class lr steps seed activation_dim dict_size k l1_penalty warmup_steps device layer "
    "resample_steps lm_name wandb_name submodule_name",
    "final_info": "training_steps final_loss layer dict_size learning_rate sparsity_penalty",
    "evaluation": "eval_type_id eval_config eval_id datetime_epoch_millis eval_result_metrics eval_result_details "
    "sae_bench_commit_hash sae_lens_id sae_lens_release_id sae_lens_version sae_cfg_dict eval_result_unstructured "
    "eval_cfg metrics unique_id sae_set sae_id",
    "sae_cfg_dict": "model_name d_in d_sae hook_layer hook_name context_size hook_head_index architecture "
    "apply_b_dec_to_input finetuning_scaling_factor activation_fn_str prepend_bos normalize_activations dtype "
    "dataset_path dataset_trust_remote_code seqpos_slice training_tokens sae_lens_training_version neuronpedia_id",
    "renamed": "absorption_rate num_absorption explained_variance mean_absorption_score",
}
"""All that the records' result dicts hold, but for the metrics and settings, whose names are the same here."""


def rows():
    """The cells of the table `Field by field`, each as the names in it."""
    text = PAGE.read_text().partition("### Field by field\n")[2].partition("\n\n`import` reads")[0]
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(lines) > 15
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def names(cell):
    return re.findall(r"`([\w. ]+)`", cell)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("fields")
    config = {
        "architecture": {"name": "standard", "d_sae": 1024, "k": 32, "l1_penalty": 0.04},
        "lr_schedule": {"name": "linear", "lr": 3e-4, "warmup": 1000},
        "data": {"name": "openwebtext", "context": 128, "prepend_bos": True},
        "train": {"precision": "float32", "normalize_activations": False},
    }
    metrics = {"explained_variance_legacy": 0.3, "mean_absorption_score": 0.01, "mean_full_absorption_score": 0.01}
    folder = add_run(outputs, "aaaa", config, metrics | {"fvu": 0.2}, title="a (title)!")
    for name, own in (("core", ["explained_variance_legacy", "fvu"]), ("absorption", list(metrics)[1:])):
        sae = {"metadata": {"model_name": "m", "hook_name": "blocks.2.hook_resid_post"}}
        detail = [{"first_letter": "a", "full_absorption_rate": 0.1, "num_full_absorption": 1}]
        content = {"eval_type_id": name, "eval_config": {"a": 1}, "eval_id": "e", "datetime_epoch_millis": 1,
                   "eval_result_metrics": {}, "eval_result_details": detail if name == "absorption" else detail * 101,
                   "sae_bench_commit_hash": "c", "sae_cfg_dict": sae}  # fmt: skip
        write_json(folder / "evals" / f"{name}.json", content)
        summary = {"settings": {}, "metrics": dict.fromkeys(own, 1.0), "warnings": []}
        write_json(folder / "evals" / f"{name}.summary.json", summary)
    text = notes(records([outputs]))
    parts = {
        label: re.search(rf"^{label}: (\{{.*?\}})$(?!\n    )", text, re.M | re.S)[1] for label in ("State", "Results")
    }
    return {label: ast.literal_eval(part) for label, part in parts.items()}


def test_the_page_names_every_field_of_the_records():
    listed = {name for row in rows() for name in names(row[0])}
    assert not {name for group in RECORD_FIELDS.values() for name in group.split()} - listed


def test_every_field_is_where_the_page_has_it(written):
    results = written["Results"]
    core, absorption = (results[f"{name} evaluation results"] for name in ("core", "absorption"))
    groups = {
        "State": written["State"],
        "config": results["training results"]["config"],
        "final_info": results["training results"]["final_info"],
        "EVALUATION evaluation results": core,
        "sae_cfg_dict": core["sae_cfg_dict"],
        "eval_result_details": absorption["eval_result_details"][0],
    }
    flat = {name for group in groups.values() for name in group} | absorption.keys()
    flat |= {f"{head}.{name}" for head, group in groups.items() for name in group}
    flat |= core["eval_result_metrics"].keys() | absorption["eval_result_metrics"].keys()
    checked = set()
    for field, place, _ in rows():
        wanted = [] if place.startswith("none") else names(place)
        if "by the same names" in place:
            group, wanted = groups[wanted[0]], [name for name in names(field) if name not in groups]
            assert set(wanted) <= group.keys(), field
        checked |= set(wanted) - {"In common"} - groups.keys()
    assert not checked - flat and len(checked) > 35
    assert "eval_result_details" not in core  # per feature: it stays in its file
