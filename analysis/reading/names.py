"""Older and other names of config keys and metrics, and what they are called today."""

from typing import Any

from sae_sweeps.config.aliases import ALIASES as COMMAND_NAMES

CONFIG_NAMES = {
    "model_name": "model",
    "layer": "layer.index",
    "train_layer": "layer.index",
    "hook_layer": "layer.index",
    "lm_name": "model",
    "activation_dim": "model.d_in",
    "eval_layer": "eval.layer",
    "d_in": "model.d_in",
    "d_sae": "architecture.d_sae",
    "dict_size": "architecture.d_sae",
    "dictionary_size": "architecture.d_sae",
    "k": "architecture.k",
    "k_start": "architecture.k_start",
    "l1_penalty": "architecture.l1_penalty",
    "sparsity_penalty": "architecture.l1_penalty",
    "target_l0": "architecture.target_l0",
    "lr": "lr_schedule.lr",
    "learning_rate": "lr_schedule.lr",
    "warmup_steps": "lr_schedule.warmup",
    "recon": "train.recon",
    "gradient_clip": "train.clip",
    "max_grad_norm": "train.clip",
    "max_norm": "train.clip",
    "sae_batch_size": "batch_size",
    "initial_scale": "schedule.initial",
    "group_size": "group_layer.group_size",
    "mi_window": "group_layer.window",
    "group_dropout": "group_layer.dropout",
    "contrastive_weight": "penalty.lambda2_max",
    "l2": "penalty.l2_weight",
    "total_tokens": "num_tokens",
    "training_tokens": "num_tokens",
    "lr_logged": "lr_schedule.lr_logged",
    "l1_penalty_logged": "architecture.l1_penalty_logged",
} | {
    name: f"penalty.{name}"
    for name in (
        "lambda2_max", "base_threshold", "threshold", "competition", "overlap", "grouping", "alpha", "head_dim",
        "positives", "temperature", "active_fraction", "tau", "momentum", "reduction",
    )
}  # fmt: skip
"""A config key's name in records -> the present key."""

PLAIN_CONFIG = (
    "model",
    "penalty",
    "architecture",
    "data",
    "schedule",
    "lr_schedule",
    "batch_size",
    "llm_batch_size",
    "num_tokens",
    "seed",
)
"""Config keys that have no other name."""

LOGGED = {
    "lr_schedule.lr": "lr_schedule.lr_logged",
    "architecture.l1_penalty": "architecture.l1_penalty_logged",
}
"""Keys of the config that a trainer's results log as well, perhaps with another value -> the key of the logged one."""

LABELS = {
    "training loss": "final_loss", "final training loss": "final_loss", "final loss": "final_loss",
    "unlearning score": "unlearning_score", "absorption score": "mean_absorption_score",
    "kl divergence score": "kl_div_score", "kl divergence": "kl_div_score", "kl score": "kl_div_score",
    "ce loss score": "ce_loss_score", "cross-entropy loss score": "ce_loss_score", "ce score": "ce_loss_score",
    "explained variance": "explained_variance", "l0 sparsity": "l0", "l1 sparsity": "l1",
    "training steps": "training_steps", "learning rate": "lr", "sparsity penalty": "l1_penalty",
    "alpha threshold": "alpha", "orthogonality penalty": "lambda2_max", "contrastive loss weight": "contrastive_weight",
    "contrastive weight": "contrastive_weight", "temperature parameter": "temperature", "dim": "head_dim",
    "gradient clipping": "gradient_clip", "l2 regularization": "l2", "l2 regularisation": "l2",
    "dropout": "group_dropout", "group size": "group_size", "mi window": "mi_window", "batch size": "batch_size",
    "dictionary size": "dict_size", "initial scale": "initial_scale", "warmup steps": "warmup_steps",
    "warm-up steps": "warmup_steps",
}  # fmt: skip
"""What text calls a figure -> its name in dicts."""

EVALUATIONS = {"absorption_first_letter": "absorption"}
"""SAEBench's `eval_type_id` -> the evaluation's name in `eval.evaluations`, where it is another."""

ARCHITECTURES = (("topk", "topk"), ("jumprelu", "jumprelu"), ("gated", "gated"), ("relu", "standard"))
"""A part of what records call an architecture, a dictionary's class or an activation -> the architecture."""

OLDER_METRICS = {"explained_variance": "explained_variance_legacy"}
"""SAEBench's older names -> present ones, for records without the present name and without this project's fvu."""

ALIASES = {"mean_absorption_score": "mean_full_absorption_score"}
"""Older names that this project writes beside the present ones; an import has both too."""

STEPS = ("steps", "training_steps", "total_steps", "num_steps", "n_steps")
"""Names of the number of optimizer steps in records."""

COLUMN_NAMES = (
    COMMAND_NAMES | {"unique_id": "run_id", "wandb_name": "title", "trainer_class": "architecture"} | CONFIG_NAMES
)
COLUMN_NAMES |= dict.fromkeys(STEPS, "steps")
"""Every other name of a table's column: in records, in other libraries -> the column, as a user may write it."""


def config_name(key: str) -> str:
    return CONFIG_NAMES.get(key, key)


def is_config(key: str) -> bool:
    """Whether this name is a config key, in a block of any kind."""
    return key in CONFIG_NAMES or key in PLAIN_CONFIG


def architecture_name(*words: Any) -> str | None:
    """The architecture that the words of a record name (`AutoEncoderTopK`, `relu`); None where they name none."""
    text = " ".join(map(str, words)).lower().replace("_", "")
    return next((name for part, name in ARCHITECTURES if part in text), None)


def present_names(metrics: dict[str, Any]) -> dict[str, Any]:
    """Metrics under the names that SAEBench gives them today, in their order."""
    renamed: dict[str, Any] = {}
    for name, value in metrics.items():
        present = OLDER_METRICS.get(name, name)
        renamed[name if present in metrics or "fvu" in metrics else present] = value
        alias = ALIASES.get(name)
        if alias is not None and alias not in metrics:
            renamed[alias] = value
    return renamed
