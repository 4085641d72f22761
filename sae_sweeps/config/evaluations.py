"""What is evaluated and how: SAEBench's published constants are the defaults. The text under a field is its manual."""

from dataclasses import dataclass, field

BUILTIN = "builtin_"
"""Begins the name of a metric that was measured on built-in data, to keep it apart from SAEBench's."""

EVALUATIONS = (
    "core", "separation", "sparse_probing", "hierarchy", "tpp", "scr", "absorption", "unlearning", "autointerp",
)  # fmt: skip
"""In the order in which they are done: those that share activations stand together."""
SETTINGS = {
    "core": ("batch_size", "recon_batches", "sparsity_batches", "exclude_special_tokens"),
    "separation": ("composition", "label_tokens"),
    "sparse_probing": ("data", "seed", "probing"),
    "hierarchy": ("data", "seed", "probing", "hierarchy"),
    "tpp": ("data", "seed", "probing", "ablation"),
    "scr": ("data", "seed", "probing", "ablation"),
    "absorption": ("data", "seed", "absorption"),
    "unlearning": ("data", "seed", "unlearning"),
    "autointerp": ("seed", "autointerp"),
}
"""Which keys of `eval` decide the numbers of each evaluation."""
WITHOUT_MODEL = ("core", "separation")
"""What can be asked of activations that no language model makes."""


def readers() -> dict[str, list[str]]:
    """Which evaluations read a key of `eval`."""
    out: dict[str, list[str]] = {}
    for evaluation, keys in SETTINGS.items():
        speed = () if evaluation in WITHOUT_MODEL else ("llm_batch",)
        for key in (*keys, *speed):
            out.setdefault(key, []).append(evaluation)
    return out


@dataclass
class ProbingConfig:
    """Rows of labelled text: sparse probing, and TPP, which asks about two of the same data sets."""

    datasets: list[str] | None = None
    """Names of data sets (see `eval.data`); null means all that SAEBench uses, or all built-in ones."""
    train_rows: int = 4000
    """Rows of a binary task, half of them of the class; built-in data have 400."""
    test_rows: int = 1000
    """Likewise; built-in data have 200."""
    context: int = 128
    """Tokens of a row that are read."""
    k_values: list[int] = field(default_factory=lambda: [1, 2, 5])
    """Numbers of features that a sparse probe may use."""
    all_features: bool = True
    """Also train a probe on all features (the slowest part); false leaves `sae_test_accuracy` out."""


@dataclass
class AblationConfig:
    """TPP and SCR: how much ablating the features that matter most to a probe moves that probe and the others."""

    n_values: list[int] = field(default_factory=lambda: [2, 5, 10, 20, 50, 100, 500])
    """Numbers of features that are ablated."""
    train_rows: int = 4000
    """Rows of SCR's tasks; a quarter of them is what each quadrant must give. Built-in data have 400."""
    test_rows: int = 1000
    """Likewise; built-in data have 200."""
    probe_epochs: int = 20
    probe_batch: int = 16
    probe_lr: float = 1e-3
    probe_l1: float = 1e-3


@dataclass
class HierarchyConfig:
    """Sparse probing of coarse classes and of fine classes inside them, with k-fold cross-validation."""

    folds: int = 5
    """Every row is in the test part of exactly one fold."""
    rows: int = 400
    """Rows per fine class; built-in data have 100."""
    k_values: list[int] = field(default_factory=lambda: [1, 2, 5])


@dataclass
class AbsorptionConfig:
    """Feature absorption on first letters (Chanin et al. 2024, arXiv:2409.14507)."""

    max_words: int | None = None
    """At most so many words of the vocabulary, drawn by the seed; null means all."""
    max_k: int = 10
    """Largest sparse probe in the search for split features."""
    f1_jump: float = 0.03
    """A further feature counts as split off when it raises F1 by more than this."""
    min_probe_f1: float = 0.6
    """A letter counts when the model's own probe exceeds this F1."""
    min_letters: int = 20
    """With fewer such letters nothing is scored."""
    l1_decay: float = 0.01
    epochs: int = 50
    """Of the probe on the model's activations and of the L1 probe on the features."""


@dataclass
class UnlearningConfig:
    """Clamping of features that fire on text to forget and hardly on text to retain, judged by questions."""

    retain_thresholds: list[float] = field(default_factory=lambda: [0.001, 0.01])
    """Features that fire on at least this share of the tokens to retain are left alone."""
    n_features: list[int] = field(default_factory=lambda: [10, 20])
    multipliers: list[int] = field(default_factory=lambda: [25, 50, 100, 200])
    """A chosen feature that fires is clamped to minus this."""
    contexts: int = 1024
    """Contexts of each corpus on which firing is counted; built-in data have 64."""
    context: int = 1024
    """Their length in tokens; built-in data have 128."""
    all_orders: bool = True
    """A question counts if the model answers it right in all 24 orders of its choices; false: as it is asked."""
    side_effect: float = 0.99
    """A setting counts only if at least this share of the other questions is still answered right."""


@dataclass
class AutointerpConfig:
    """A judge model explains features and predicts where they fire; never called unless `confirm` is true."""

    judge: str | None = None
    """Base address of an OpenAI-compatible server, such as http://localhost:8000/v1."""
    model: str = "gpt-4o-mini"
    """The judge's name there."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key, where the server wants one."""
    confirm: bool = False
    """false: estimate the cost, show it, and stop."""
    price_in: float = 0.15
    """Dollars per million tokens sent."""
    price_out: float = 0.60
    """Dollars per million tokens received."""
    n_latents: int = 1000
    dead_below: float = 15
    """A feature that fires on at most so many tokens is not asked about."""
    total_tokens: int = 2_000_000
    """Held-out tokens searched for examples."""
    buffer: int = 10
    """Tokens shown on each side of an example."""
    max_tokens_in_explanation: int = 30
    concurrency: int = 10
    """Requests at a time."""


@dataclass
class EvalConfig:
    name: str = "core"
    """core, quick, full, or none."""
    evaluations: list[str] = field(default_factory=lambda: ["core", "separation"])
    """Any of core, separation, sparse_probing, hierarchy, tpp, scr, absorption, unlearning, autointerp."""
    data: str = "auto"
    """Labelled text and questions: builtin (made from the standard library), saebench (by name from the hub), a folder
    that holds SAEBench's data sets under their names, or auto: builtin for the built-in model, else saebench."""
    seed: int = 42
    """Draws rows, prompts and what probes start from; no result depends on what was evaluated before."""
    llm_batch: int = 32
    """Rows per forward pass of the language model."""
    batch_size: int = 16
    """Contexts per batch of the core evaluation."""
    recon_batches: int = 4
    """Batches for the KL and cross-entropy metrics (SAEBench: 200)."""
    sparsity_batches: int = 16
    """Batches for reconstruction, sparsity and density metrics, following the former in the stream (SAEBench: 2000)."""
    exclude_special_tokens: bool = True
    """Leave the activation at BOS, EOS and padding as it is when the SAE's output is put in its place."""
    composition: bool = False
    """Also train a small SAE on the decoder's rows, to see how far they are sums of others (seconds to minutes)."""
    label_tokens: int = 4096
    """Held-out tokens on which features are compared with labels, where the text has roles."""
    probing: ProbingConfig = field(default_factory=ProbingConfig)
    ablation: AblationConfig = field(default_factory=AblationConfig)
    hierarchy: HierarchyConfig = field(default_factory=HierarchyConfig)
    absorption: AbsorptionConfig = field(default_factory=AbsorptionConfig)
    unlearning: UnlearningConfig = field(default_factory=UnlearningConfig)
    autointerp: AutointerpConfig = field(default_factory=AutointerpConfig)
