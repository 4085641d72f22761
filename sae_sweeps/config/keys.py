"""Keys at the top level that feed whichever group is chosen; null there means the group's own value."""

TOP_KEYS = (
    "k", "k_start", "d_sae", "lr", "l1_penalty", "lambda2_max", "base_threshold", "decay_power", "target_l0",
)  # fmt: skip
