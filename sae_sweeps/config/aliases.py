"""Other names of keys: those of SAELens, SAEBench, sparsify and dictionary_learning that mean exactly the same."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from sae_sweeps.errors import ConfigError

ALIASES = {
    "training_tokens": "num_tokens",
    "train_batch_size_tokens": "batch_size",
    "out_batch_size": "batch_size",
    "dict_size": "d_sae",
    "num_latents": "d_sae",
    "l1_coefficient": "l1_penalty",
    "l1_warm_up_steps": "architecture.l1_warmup",
    "l0_warm_up_steps": "architecture.l0_warmup",
    "auxk_alpha": "architecture.aux_weight",
    "lr_warm_up_steps": "lr_schedule.warmup",
    "lr_warmup_steps": "lr_schedule.warmup",
    "lr_decay_steps": "lr_schedule.decay",
    "adam_beta1": "train.beta1",
    "adam_beta2": "train.beta2",
    "max_grad_norm": "train.clip",
    "context_size": "data.context",
    "ctx_len": "data.context",
    "prepend_bos": "data.prepend_bos",
    "text_column": "data.text_field",
    "store_batch_size_prompts": "activations.harvest_batch",
    "refresh_batch_size": "activations.harvest_batch",
    "llm_batch_size": "eval.llm_batch",
    "eval_batch_size_prompts": "eval.batch_size",
    "n_eval_reconstruction_batches": "eval.recon_batches",
    "n_eval_sparsity_variance_batches": "eval.sparsity_batches",
    "exclude_special_tokens_from_reconstruction": "eval.exclude_special_tokens",
    "wandb_project": "logger.project",
    "wandb_entity": "logger.entity",
}
"""Accepted wherever words of a command are; configs, titles, tables and run ids have the names on the right alone."""


def canonical_words(words: list[str]) -> list[str]:
    """The words of a command with every key by its own name. Raises ConfigError for a key given by two names."""
    out = []
    names: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        ours = ALIASES.get(key, key) if equals else key
        if (first := names.setdefault(ours, key)) != key:
            raise ConfigError(f"{word}: the same key as {first}; give {ours} once.")
        out.append(ours + equals + value)
    return out


def variants_of(cfg: DictConfig) -> dict[str, Any]:
    """The variants of an experiment, by name; older files call them `arms`. Raises ConfigError where both are there."""
    if cfg.variants and cfg.arms:
        raise ConfigError("arms: an older name of `variants`, which the experiment has too; keep variants.")
    found: Any = cfg.variants or cfg.arms
    return found
