"""The config, group by group. The text under a field is its manual: YAML files only choose values.

A length in time (`warmup`, `decay`, ...) is a fraction of the run when below 1 and a number of steps otherwise.
"""

import re
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from sae_sweeps.config.evaluations import EvalConfig
from sae_sweeps.errors import ConfigError
from sae_sweeps.fields import (
    AtLeastOne,
    BelowOne,
    DType,
    InnerShare,
    NotNegative,
    Positive,
    Rule,
    added,
    at_least,
    one_of,
)


@dataclass
class ModelConfig:
    name: str = "builtin"
    """What tables call the model."""
    source: str = "builtin"
    """builtin, local (a folder in Hugging Face format), hub (by name) or synthetic."""
    path: str | None = None
    """Folder for `local`, hub name for `hub`."""
    revision: str | None = None
    """Commit, branch or tag on the hub, main where null; recorded as the commit that it is at."""
    dtype: DType = "float32"
    """Weights and forward pass: float32, bfloat16 or float16."""
    default_layer: int | None = None
    """Layer used when `layer` is not given; null means the middle one."""
    default_d_sae: int | None = None
    """Dictionary size when `d_sae` is not given; null means 8 * d_in."""
    d_in: int | None = None
    """Width of the residual stream; read from the model's config.json where there is one."""
    n_layers: int | None = None
    """Number of layers; read from the model's config.json where there is one."""
    vocabulary: int | None = None
    """Number of tokens that it predicts, by which memory is planned; read from the model's config.json likewise."""
    instruct: str | None = None
    """Its instruction-tuned sibling on the hub, or a folder: the model that unlearning is judged on."""


CHILD_RATE = 0.5
"""Share of a parent's firings in which each of its children fires too."""


@dataclass
class SyntheticConfig(ModelConfig):
    """Activations with known features: x = sum_j a_j features_j + noise, unit-norm features [n_features, d_in]."""

    name: str = "synthetic"
    source: str = "synthetic"
    default_d_sae: int | None = 512
    d_in: AtLeastOne[int | None] = 64
    n_features: AtLeastOne[int] = 256
    l0: float = 8.0
    """Mean number of true features active per token."""
    n_correlated: NotNegative[int] = 64
    """Number of features, the first ones, that are in groups which tend to fire together."""
    correlated_group_size: AtLeastOne[int] = 4
    correlation: BelowOne = 0.6
    """Correlation of the Gaussian latents within a group (copula)."""
    n_hierarchical: NotNegative[int] = 64
    """Number of features, the next ones, that are in parent-child families; a child fires only with its parent."""
    children_per_parent: AtLeastOne[int] = 3
    magnitude_mean: float = 1.0
    magnitude_std: NotNegative[float] = 0.25
    """Of an active feature's coefficient (normal, clipped at 0.1)."""
    noise: NotNegative[float] = 0.01
    """Standard deviation of isotropic noise per dimension."""
    world_seed: int = 0
    """Draws the features and the stream; independent of `seed` and `data_seed`."""

    def check(self) -> None:
        """Raise ConfigError for counts of features that exclude each other."""
        if self.n_correlated + self.n_hierarchical > self.n_features:
            raise ConfigError(
                f"model.n_correlated={self.n_correlated} and model.n_hierarchical={self.n_hierarchical} exceed "
                f"model.n_features={self.n_features}; lower one of them."
            )
        families = -(-self.n_hierarchical // (1 + self.children_per_parent))
        most = self.n_features - (1 - CHILD_RATE) * (self.n_hierarchical - families)
        if not 0 < self.l0 < most:
            raise ConfigError(
                f"model.l0={self.l0}: must lie between 0 and {most:g}, where model.n_features={self.n_features} are "
                "always active."
            )


@dataclass
class LayerConfig:
    hook: Annotated[
        str, Rule(re.compile(r"\w+(\.\w+)*").fullmatch, "give resid_post, mlp_out or a hook such as attn.hook_z.")
    ] = "resid_post"
    """resid_post (residual stream after the layer), mlp_out, attn_out, or any hook of TransformerLens in a layer:
    resid_mid, attn.hook_z, mlp.hook_post, blocks.3.hook_resid_mid."""
    index: int | None = None
    """Layer number from 0; `layer=12` sets it."""
    d_in: AtLeastOne[int | None] = None
    """Width of the activations; read from the model."""


KINDS_WITH_ROLES = {"builtin_roles", "builtin_labelled", "forget_retain"}
"""Kinds of text whose documents have roles; a kind from outside may be added."""


@dataclass
class DataConfig:
    name: str = "builtin"
    kind: str = "builtin"
    """builtin, text (file or folder of *.txt), jsonl, parquet, hub (by name, streamed); with roles: builtin_roles,
    builtin_labelled, forget_retain (two sources)."""
    path: str | None = None
    """File or folder, or the hub data set's name."""
    subset: str | None = None
    """The hub data set's configuration."""
    split: str = "train"
    """The hub data set's split."""
    revision: str | None = None
    """As in `model`."""
    text_field: str = "text"
    """Column of JSONL, Parquet and hub rows that holds the text."""
    context: Annotated[int, at_least(2, "a context holds at least BOS and one token; give 2 or more.")] = 128
    """Tokens per context, BOS included."""
    prepend_bos: bool = True
    """Each context starts with BOS; between documents there is a BOS in any case, as in SAELens."""
    train_on: Annotated[str, one_of("non_special", "all")] = "non_special"
    """Which tokens train the SAE: non_special (not BOS, EOS or padding) or all."""
    max_norm: Annotated[
        float | None,
        at_least(
            1, "half of the tokens have a norm above one median; give 1 or more, as in 10, or null for all tokens."
        ),
    ] = added(None)
    """Leaves out tokens whose activation has a norm of more than so many medians, in training and where the SAE is
    evaluated; null keeps every token. The median is that of the first 16,384 training tokens of the layer."""
    forget: str | None = None
    """Text to forget: a file, a folder, or a hub name as ORG/NAME, ORG/NAME:SUBSET or ORG/NAME:SUBSET@REVISION."""
    retain: str | None = None
    """Text to retain, given in the same way."""
    forget_share: float = 0.5
    """Share of the characters read that are to be forgotten, as long as both sources last."""
    label_field: str | None = None
    """Column of JSONL, Parquet and hub rows that labels the text; the labels forget and retain are those roles."""
    labels: list[str] | None = None
    """The labels in the order of their roles; null means all that a local source holds, sorted."""
    pair_field: str | None = None
    """Column that holds a second text which belongs to the first: a precomputed positive pair."""
    held_out: InnerShare = 0.1
    """Share of the documents kept for evaluation, chosen by a hash of each text (built-in data: by module)."""
    own: Any = None
    """Keys of a kind from outside that has a dataclass of its own; in files and commands they are `data.KEY`."""

    def has_roles(self) -> bool:
        """Whether the text is marked as to forget or to retain, or has labels."""
        return self.kind in KINDS_WITH_ROLES or self.label_field is not None

    def has_pairs(self) -> bool:
        """Whether the text is in precomputed pairs."""
        return self.pair_field is not None


@dataclass
class ActivationsConfig:
    mode: Annotated[str, one_of("auto", "memory", "disk", "stream")] = "auto"
    """memory, disk (safetensors shards), stream (a rolling buffer), or auto: by the activations' size alone."""
    dtype: Annotated[str, one_of("auto", "float32", "bfloat16", "float16")] = "auto"
    """How activations are stored: float32, bfloat16, float16, or auto, the model's own."""
    buffer_tokens: Positive[int] = 262144
    """Tokens in a stream's buffer; batches are shuffled within it."""
    memory_gb: NotNegative[float] = 2.0
    """`auto` keeps activations in memory up to this size."""
    disk_gb: NotNegative[float] = 50.0
    """`auto` writes activations to disk up to this size, and streams beyond it."""
    device_gb: NotNegative[float | None] = None
    """On a GPU, activations of memory and disk are copied to it up to this size, of all layers of a group together;
    null: where they fit beside the training."""
    harvest_batch: Positive[int] = 32
    """Contexts per forward pass of the language model."""


@dataclass
class TrainConfig:
    recon: Annotated[str, one_of("squared", "norm")] = "squared"
    """squared (error summed over d_in, mean over the batch) or norm (mean Euclidean norm of the error)."""
    precision: Annotated[str, one_of("float32", "bfloat16", "float64")] = "float32"
    """float32; bfloat16: the forward pass under autocast, weights and statistics stay float32; float64: everything, to
    separate rounding from method."""
    matmul: Annotated[str, one_of("float32", "tf32")] = added("float32")
    """How a GPU takes products of float32 matrices: float32; tf32: factors rounded to 10 bits of mantissa (a relative
    error of up to 2^-11 each), sums in float32, several times faster; a CPU has float32 alone."""
    normalize_activations: bool = False
    """Scale activations so that their mean norm is sqrt(d_in); the scale is recorded and folded back on export."""
    b_dec_init: Annotated[str, one_of("mean", "geometric_median", "zero")] = "mean"
    """Decoder bias at the start: mean or geometric_median of the first batches, or zero."""
    clip: Annotated[float, at_least(0, "must be 0 (no clipping) or more.")] = 1.0
    """Largest gradient norm; 0 leaves gradients alone."""
    beta1: BelowOne = 0.9
    beta2: BelowOne = 0.999
    dead_after_tokens: Positive[int] = 100_000
    """A feature counts as dead once it has not fired for this many tokens."""
    sampling: Annotated[
        str, one_of("auto", "tokens", "adjacent_pairs", "contiguous_windows", "role_pairs", "text_pairs")
    ] = "auto"
    """How batches are drawn: tokens (shuffled), adjacent_pairs, contiguous_windows, role_pairs (two tokens of one
    role), text_pairs (precomputed pairs); auto: as the penalty needs."""
    window: Positive[int] = 32
    """Tokens per window under contiguous_windows."""
    log_every: Positive[int] = 10
    """Steps between rows of metrics.jsonl."""
    checkpoint_minutes: Positive[float] = 5.0
    """Minutes between checkpoints: about this much is repeated after a kill. Each is written beside the training."""
    checkpoint_every: Positive[int | None] = None
    """Steps between further checkpoints: at most this many are repeated after a kill; null: by time alone."""
    monitor_every: Annotated[int, at_least(0, "must be 0 (none) or more.")] = 50
    """Steps between measurements beyond a row: gradient norms by loss term, held-out fvu, pairs of features and the
    penalty's; 0 leaves them out."""
    selection: Annotated[str, one_of("auto", "plain", "bounded", "bfloat16", "exact")] = "auto"
    """How the active features are found. plain: by the product in float32; bounded: by one in bfloat16 and a bound of
    its error, in float32 where that leaves it undecided, exactly; auto (exact in earlier runs): the faster of the two,
    measured once and recorded in selection.json. bfloat16 (topk, batch_topk, matryoshka): a product in bfloat16 picks
    the features alone, their values are recomputed in float32; others may win."""
    kernels: Annotated[str, one_of("auto", "reference")] = "auto"
    """auto: the fastest that are exact on the device; reference: plain dense formulas. Recorded in the results."""
    held_out_tokens: Annotated[int, at_least(0, "must be 0 (none) or more.")] = 2048
    """Held-out tokens, of those that core measures, on which fvu is followed during training; 0 leaves it out."""

    def bytes(self) -> int:
        """Bytes of each number of the weights and of a step's computations."""
        return 8 if self.precision == "float64" else 4


@dataclass
class LoggerConfig:
    name: str = "none"
    """none, or wandb."""
    mode: Annotated[str, one_of("offline", "online")] = "offline"
    """offline (no key, no network) or online."""
    project: str = "sae-sweeps"
    entity: str | None = None
    tags: list[str] = field(default_factory=list)


@dataclass
class ClusterConfig:
    """Where a sweep's runs are trained; changes no number and is no part of a run's identity."""

    name: str = "inline"
    """inline: every run in this process."""
    group_size: Positive[int | None] = None
    """Most runs in a group, which share the language model's passes; null: as many as memory_gb holds."""
    memory_gb: Positive[float | None] = None
    """Memory of one group's device; null: read from the device where possible."""


@dataclass
class LocalConfig(ClusterConfig):
    """Processes on this machine, one for each group at a time."""

    name: str = "local"
    processes: Positive[int | None] = None
    """Groups trained side by side; null: one for each GPU, or 2 without any. Each process gets a GPU of its own."""
    detach: bool = False
    """Return once the processes are started; `python -m sae_sweeps status SWEEP_DIR` shows how they are."""
    retries: NotNegative[int] = 1
    """How often a run is started again that was lost or ran out of memory; never after a divergence or an error."""
    poll_s: Positive[float] = 1.0
    """Seconds between two readings of the runs' states."""


@dataclass
class SlurmConfig(ClusterConfig):
    """Jobs of Slurm, through submitit: one array per launch, one job for `tasks` groups."""

    name: str = "slurm"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    """Features that a node must have, as sbatch's --constraint."""
    gpus: NotNegative[int] = 1
    """GPUs of a job; 0 for none."""
    gpu_type: str | None = None
    """Kind of GPU, as in --gres=gpu:KIND:N."""
    tasks: Positive[int] = 1
    """Groups side by side in one job; the job's GPUs are divided evenly among them."""
    cpus: Positive[int] = 4
    """CPUs of each group; also its number of threads where OMP_NUM_THREADS is not set."""
    mem: Annotated[
        str | None, Rule(re.compile(r"\d+[KMGT]?B?", re.IGNORECASE).fullmatch, "give a size such as 32G.")
    ] = "16G"
    """Memory of a job, as sbatch's --mem; null: the partition's default."""
    time: str = "4:00:00"
    """Time limit of a job: minutes, H:MM:SS or D-HH:MM:SS. A job that reaches it is queued again."""
    exclusive: bool = False
    """Whole nodes, shared with no other job."""
    array_parallelism: Positive[int] = 256
    """Most jobs of an array that run at the same time."""
    exclude: str | None = None
    """Nodes to leave out, as sbatch's --exclude."""
    mail_user: str | None = None
    mail_type: str | None = None
    """When to write, as sbatch's --mail-type (END,FAIL)."""
    setup: list[str] = field(default_factory=list)
    """Shell lines before the job's command, such as `module load cuda`."""
    python: str | None = None
    """Python on the nodes; null: the one that launches."""
    extra: list[str] = field(default_factory=list)
    """Further options of sbatch by their long names, such as ["reservation=mine",reboot]."""
    signal_s: Positive[int] = 90
    """Seconds before the time limit at which a job writes its checkpoints and queues again."""
    max_restarts: NotNegative[int] = 20
    """How often Slurm may start a job again (preemption, time limit, node failure) before it counts as failed."""
    detach: bool = False
    """Return after submission; `python -m sae_sweeps status SWEEP_DIR` shows the jobs."""
    retries: NotNegative[int] = 1
    """How often a run is submitted again that was lost or ran out of memory; never after a divergence or an error."""
    poll_s: Positive[float] = 10.0
    """Seconds between two readings of the runs' states and of squeue, one call for all jobs."""


def defaults_of(config: Any) -> dict[str, Any]:
    """The default of every key of a dataclass; `own` is no key, but holds those of code from outside."""
    return {key: value for key, value in asdict(config()).items() if key != "own"}


def values_of(config: type) -> Any:
    """A field with the values of a dataclass as a plain dict: a choice may have further keys."""
    return field(default_factory=lambda: defaults_of(config))


@dataclass
class RootConfig:
    """The whole config: the keys that sweeps vary, typed, and the groups, whose files in conf/ hold what differs."""

    model: Any = values_of(ModelConfig)
    layer: Any = values_of(LayerConfig)
    data: Any = values_of(DataConfig)
    architecture: Any = None
    group_layer: Any = None
    penalty: Any = None
    schedule: Any = None
    lr_schedule: Any = None
    train: Any = values_of(TrainConfig)
    activations: Any = values_of(ActivationsConfig)
    eval: Any = values_of(EvalConfig)
    logger: Any = values_of(LoggerConfig)
    cluster: Any = values_of(ClusterConfig)
    num_tokens: int = 409600
    """Tokens to train on; steps are num_tokens // batch_size."""
    batch_size: int = 1024
    """Tokens per step."""
    seed: int = 0
    """Initialises the SAE."""
    data_seed: int = 0
    """Orders the data; the same for all runs unless given."""
    k: int | None = None
    """Active features per token (topk)."""
    k_start: int | None = None
    """k at the first step, rising linearly to k."""
    d_sae: int | None = None
    """Dictionary size."""
    lr: float | None = None
    """Peak learning rate."""
    l1_penalty: float | None = None
    """Weight of the L1 term (standard)."""
    lambda2_max: float | None = None
    """Peak weight of the penalty."""
    base_threshold: float | None = None
    """Overlap above which two features compete (ortho)."""
    decay_power: float | None = None
    """a in (1 - p)^a (schedule=power)."""
    target_l0: float | None = None
    """L0 to aim at, for the architectures that can."""
    outputs: str = "outputs"
    """Where runs, sweeps and activations live."""
    device: str = "auto"
    """auto (CUDA when there is one), cpu, cuda, cuda:N."""
    title: str | None = None
    """A title for tables and notes; by default composed of the varied keys and values."""
    description: str = ""
    """What the run is for, in a sentence or two; recorded with its results and written in its notes."""
    tags: list[str] = field(default_factory=list)
    """Words that mark the run in its results and at W&B, as_recorded for one."""
    study: dict[str, str] = field(default_factory=dict)
    """Words of an experiment on the study's own model: model -> words, below those of the command and of variants."""
    shared: dict[str, str] = field(default_factory=dict)
    """Words that an experiment's variants share, by names of its own: ${shared.NAME} in a variant's words."""
    variants: dict[str, Any] = field(default_factory=dict)
    """The variants of an experiment: name -> words, or a mapping; each variant is a sweep of its own
    (sae_sweeps/sweeps/variants.py)."""
    arms: dict[str, Any] = field(default_factory=dict)
    """The same, in older files."""
    only: str | None = None
    """Patterns of the titles of an experiment's variants to run, separated by |, as in only='Run *|TopK'; ~ before one
    leaves those out."""
    objective: str | None = None
    """Metric of results.json that a sweeper such as Optuna optimises."""
    report: bool = True
    """Whether a launch ends with the sweep's report.html, a few seconds' work."""
    dry_run: bool = False
    """Compose and check everything, start nothing (`--dry-run`)."""
