"""Every field of SAEBench 0.6's configs is a key here, with its default, and in the files that are written."""

from dataclasses import MISSING, fields, is_dataclass
from types import SimpleNamespace

import pytest
import torch
from toy_lm import toy_sae

from sae_sweeps.config.evaluations import EvalConfig
from sae_sweeps.config.schema import DataConfig, LayerConfig, ModelConfig
from sae_sweeps.evaluation import absorption, autointerp, core, sparse_probing, tpp, unlearning
from sae_sweeps.evaluation.builtin_tasks import BuiltinSource
from sae_sweeps.evaluation.saebench_data import PAIRS, SUBJECTS, SAEBenchSource
from sae_sweeps.evaluation.shared import Shared

TPP_DATA = ["LabHC/bias_in_bios_class_set1", "canrager/amazon_reviews_mcauley_1and5"]
PROBED = [
    TPP_DATA[0], "LabHC/bias_in_bios_class_set2", "LabHC/bias_in_bios_class_set3", TPP_DATA[1],
    f"{TPP_DATA[1]}_sentiment", "codeparrot/github-code", "fancyzhx/ag_news", "Helsinki-NLP/europarl",
]  # fmt: skip
LOOKUP = {
    TPP_DATA[0]: [["professor", "nurse"], ["architect", "journalist"], ["surgeon", "psychologist"],
                  ["attorney", "teacher"]],
    TPP_DATA[1]: [["Books", "CDs_and_Vinyl"], ["Software", "Electronics"], ["Pet_Supplies", "Office_Products"],
                  ["Industrial_and_Scientific", "Toys_and_Games"]],
}  # fmt: skip

NO_NUMBER = "decides no number"
"""Why a field has no key: it is printed, stored, or the size of a batch of which no number depends; or it has one value
only, in SAEBench too."""

FIELDS = {
    "core": {
        "model_name": ("", "model.path"),
        "llm_dtype": ("float32", "model.dtype"),
        "batch_size_prompts": (16, "batch_size"),
        "n_eval_reconstruction_batches": (10, "recon_batches"),
        "n_eval_sparsity_variance_batches": (1, "sparsity_batches"),
        "dataset": ("Skylion007/openwebtext", "data.path"),
        "context_size": (128, "data.context"),
        "compute_kl": (False, "compute_kl"),
        "compute_ce_loss": (False, "compute_ce_loss"),
        "compute_l2_norms": (False, "compute_l2_norms"),
        "compute_sparsity_metrics": (False, "compute_sparsity_metrics"),
        "compute_variance_metrics": (False, "compute_variance_metrics"),
        "compute_featurewise_density_statistics": (False, "compute_featurewise_density_statistics"),
        "compute_featurewise_weight_based_metrics": (False, "compute_featurewise_weight_based_metrics"),
        "exclude_special_tokens_from_reconstruction": (False, "exclude_special_tokens"),
        "verbose": (False, NO_NUMBER),
    },
    "sparse_probing": {
        "random_seed": (42, "seed"),
        "dataset_names": (PROBED, "probing.datasets"),
        "probe_train_set_size": (4000, "probing.train_rows"),
        "probe_test_set_size": (1000, "probing.test_rows"),
        "context_length": (128, "probing.context"),
        "sae_batch_size": (125, "sae_batch"),
        "llm_batch_size": (None, "llm_batch"),
        "llm_dtype": ("", "model.dtype"),
        "model_name": ("", "model.path"),
        "k_values": ([1, 2, 5], "probing.k_values"),
        "lower_vram_usage": (False, "probing.all_features"),
    },
    "scr_and_tpp": {
        "random_seed": (42, "seed"),
        "dataset_names": (TPP_DATA, "ablation.datasets"),
        "perform_scr": (True, "evaluations"),
        "early_stopping_patience": (20, "ablation.probe_patience"),
        "train_set_size": (4000, "ablation.train_rows"),
        "test_set_size": (1000, "ablation.test_rows"),
        "context_length": (128, "probing.context"),
        "probe_train_batch_size": (16, "ablation.probe_batch"),
        "probe_test_batch_size": (500, NO_NUMBER),
        "probe_epochs": (20, "ablation.probe_epochs"),
        "probe_lr": (1e-3, "ablation.probe_lr"),
        "probe_l1_penalty": (1e-3, "ablation.probe_l1"),
        "sae_batch_size": (125, "sae_batch"),
        "llm_batch_size": (None, "llm_batch"),
        "llm_dtype": ("", "model.dtype"),
        "lower_vram_usage": (False, NO_NUMBER),
        "model_name": ("", "model.path"),
        "n_values": ([2, 5, 10, 20, 50, 100, 500], "ablation.n_values"),
        "column1_vals_lookup": (LOOKUP, "ablation.pairs"),
    },
    "absorption": {
        "model_name": ("", "model.path"),
        "random_seed": (42, "seed"),
        "f1_jump_threshold": (0.03, "absorption.f1_jump"),
        "max_k_value": (10, "absorption.max_k"),
        "prompt_template": ("{word} has the first letter:", "absorption.template"),
        "prompt_token_pos": (-6, "absorption.token_pos"),
        "llm_batch_size": (10, "llm_batch"),
        "llm_dtype": ("float32", "model.dtype"),
        "k_sparse_probe_l1_decay": (0.01, "absorption.l1_decay"),
        "k_sparse_probe_batch_size": (4096, "absorption.probe_batch"),
        "k_sparse_probe_num_epochs": (50, "absorption.epochs"),
        "min_GT_probe_f1": (0.6, "absorption.min_probe_f1"),
        "min_feats_for_eval": (20, "absorption.min_letters"),
        "eval_k_sparse_probe_batch_size": (24, NO_NUMBER),
        "precalc_k_sparse_probe_sae_acts": (False, NO_NUMBER),
    },
    "unlearning": {
        "random_seed": (42, "seed"),
        "dataset_names": (list(SUBJECTS), "unlearning.datasets"),
        "intervention_method": ("clamp_feature_activation", NO_NUMBER),
        "retain_thresholds": ([0.001, 0.01], "unlearning.retain_thresholds"),
        "n_features_list": ([10, 20], "unlearning.n_features"),
        "multipliers": ([25, 50, 100, 200], "unlearning.multipliers"),
        "dataset_size": (1024, "unlearning.contexts"),
        "seq_len": (1024, "unlearning.context"),
        "n_batch_loss_added": (50, NO_NUMBER),
        "target_metric": ("correct", "unlearning.questions"),
        "save_metrics": (True, NO_NUMBER),
        "model_name": ("", "unlearning.model"),
        "llm_batch_size": (None, "llm_batch"),
        "llm_dtype": ("", "model.dtype"),
    },
    "autointerp": {
        "model_name": ("", "model.path"),
        "n_latents": (1000, "autointerp.n_latents"),
        "override_latents": (None, "autointerp.latents"),
        "dead_latent_threshold": (15, "autointerp.dead_below"),
        "random_seed": (42, "seed"),
        "dataset_name": ("monology/pile-uncopyrighted", "data.path"),
        "llm_context_size": (128, "data.context"),
        "llm_batch_size": (None, "llm_batch"),
        "llm_dtype": ("", "model.dtype"),
        "buffer": (10, "autointerp.buffer"),
        "no_overlap": (True, "autointerp.no_overlap"),
        "act_threshold_frac": (0.01, "autointerp.act_threshold"),
        "total_tokens": (2_000_000, "autointerp.total_tokens"),
        "scoring": (True, "autointerp.scoring"),
        "max_tokens_in_explanation": (30, "autointerp.max_tokens_in_explanation"),
        "use_demos_in_explanation": (True, "autointerp.demos"),
        "n_top_ex_for_generation": (10, "autointerp.top_shown"),
        "n_iw_sampled_ex_for_generation": (5, "autointerp.sampled_shown"),
        "n_top_ex_for_scoring": (2, "autointerp.top_scored"),
        "n_random_ex_for_scoring": (10, "autointerp.random_scored"),
        "n_iw_sampled_ex_for_scoring": (2, "autointerp.sampled_scored"),
    },
}
"""SAEBench's config -> its field -> its default and our key, under `eval` unless it has another group; read from the
eval_config.py files of SAEBench 0.6.0."""

OTHER_DEFAULTS = {
    "recon_batches": 4, "sparsity_batches": 16,  # a look; eval=full has 200 and 2000, as SAEBench's published runs
    **dict.fromkeys((key for key in FIELDS["core"] if key.startswith("compute_")), True),  # its loop sets them all
    "exclude_special_tokens": True,  # likewise
    "sae_batch": 4096,  # in tokens
    "llm_batch": 32,  # set by its main script
    "probing.k_values": [1, 2, 5, 10, 20, 50],
    "probing.all_features": True,  # the opposite of the field
    "absorption.token_pos": None,  # the word's last token, -6 with its template
    "absorption.probe_batch": None,  # 4096, but on built-in data
    "unlearning.model": "auto",
    "evaluations": ["core", "separation"],
    **dict.fromkeys(("probing.datasets", "ablation.datasets", "ablation.pairs", "unlearning.datasets")),  # those of it
}  # fmt: skip
ROOTS = {"model": ModelConfig(), "data": DataConfig()}


def value_of(key):
    """The default of a key; fails where there is none."""
    group, _, rest = key.partition(".")
    config, path = (ROOTS[group], rest) if group in ROOTS else (EvalConfig(), key)
    for name in path.split("."):
        assert is_dataclass(config) and name in {f.name for f in fields(config)}, f"{key} is no key"
        config = getattr(config, name)
    return config


@pytest.mark.parametrize("config", FIELDS)
def test_every_field_of_saebench_is_a_key_with_its_default(config):
    for field, (default, key) in FIELDS[config].items():
        if key == NO_NUMBER:
            continue
        value = value_of(key)
        if key.partition(".")[0] not in ROOTS:  # the model and the text are given by the run
            assert value == OTHER_DEFAULTS.get(key, default), f"{field}: eval.{key}"


def test_the_lists_of_null_are_saebenchs():
    assert list(SAEBenchSource.probing) == PROBED and list(SAEBenchSource.tpp) == TPP_DATA
    found = {}
    for pair in PAIRS:
        found.setdefault(pair.dataset, []).append(list(pair.classes))
    assert found == LOOKUP


@pytest.fixture
def shared(tmp_path):
    tokenizer = lambda text, add_special_tokens: {"input_ids": list(range(5))}  # noqa: E731
    lm = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32, tokenizer=tokenizer)
    return Shared(EvalConfig(), lm, LayerConfig(index=0), "org/name", "d", SAEBenchSource(None), tmp_path)


def test_what_is_written_has_every_field_and_the_defaults(shared):
    cfg = shared.cfg
    written = {
        "sparse_probing": sparse_probing.eval_config(cfg, shared, PROBED),
        "scr_and_tpp": tpp.eval_config(cfg, shared, True, [], PAIRS),
        "absorption": absorption.eval_config(shared, cfg.absorption),
        "unlearning": unlearning.eval_config(shared, cfg.unlearning, list(SUBJECTS)),
        "autointerp": autointerp.eval_config(shared, 128),
        "core": next(iter(core.evaluate_activations({"it": toy_sae()}, [torch.ones(3, 6)]).values())).eval_config,
    }
    differ = {"model_name", "llm_dtype", "llm_batch_size", "sae_batch_size", "k_values", "dataset", "dataset_name"}
    differ |= {"precalc_k_sparse_probe_sae_acts"}
    for config, found in written.items():
        assert found.keys() == FIELDS[config].keys(), config
        for field, value in found.items():
            if config != "core" and field not in differ:
                assert value == FIELDS[config][field][0], f"{config} {field}"
    assert written["sparse_probing"]["sae_batch_size"] == 32  # rows of 128 tokens
    builtin = absorption.eval_config(Shared(**vars(shared) | {"source": BuiltinSource()}), cfg.absorption)
    assert builtin["k_sparse_probe_batch_size"] == 16


def test_every_field_of_ours_has_a_default():
    for cls in (EvalConfig, *(type(v) for v in vars(EvalConfig()).values() if is_dataclass(v))):
        assert all(f.default is not MISSING or f.default_factory is not MISSING for f in fields(cls))
