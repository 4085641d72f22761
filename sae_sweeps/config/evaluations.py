"""What is evaluated and how: SAEBench's published constants are the defaults. The text under a field is its manual."""

import ast
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from sae_sweeps.config.paths import PACKAGE, how_made
from sae_sweeps.config.plugins import evaluation_module
from sae_sweeps.errors import ConfigError
from sae_sweeps.fields import AtLeastOne, NotNegative, Positive, SomePositive, at_least, one_of

BUILTIN, LABELLED = "builtin_", "labelled_"
PREFIXES = {"builtin": BUILTIN, "labelled": LABELLED}
"""Begins the name of a metric that was measured on built-in data, or on labelled text of one's own, to distinguish it
from SAEBench's."""


def prefix_of(metric: str) -> str:
    """What the name begins with where it was measured on other data than SAEBench's, or an empty string."""
    return next((prefix for prefix in PREFIXES.values() if metric.startswith(prefix)), "")


def plain_name(metric: str) -> str:
    """The name without that beginning."""
    return metric.removeprefix(prefix_of(metric))


EVALUATIONS = (
    "core", "separation", "sparse_probing", "hierarchy", "tpp", "scr", "absorption", "unlearning", "autointerp",
    "features",
)  # fmt: skip
"""Files of sae_sweeps/evaluation that hold an evaluation, in the order in which they run: neighbours share
activations."""

VERSION = "version"
"""In recorded settings: that of the evaluation's definition, where it is not the first."""

LOGITS_BYTES = 2**29
"""Largest block of log-probabilities on a GPU. On a CPU a batch's are computed at once: its numbers depend on that."""


def contexts_at_once(n_contexts: int, context: int, vocabulary: int, on_gpu: bool) -> int:
    """How many contexts of a batch have their logits in memory together."""
    return max(1, min(n_contexts, LOGITS_BYTES // (4 * context * vocabulary))) if on_gpu else n_contexts


Metrics = Mapping[str, tuple[str | None, str | None]]
"""By a regular expression for the whole name of a metric: which values are better (higher, lower, one for nearest to 1,
or None) and its short name in tables, in which `\\1` is the first group of the expression (None: the name itself)."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation, as planning, running and tables use it."""

    name: str
    """As in `eval.evaluations`; its results are `evals/NAME.json`."""
    evaluate: Callable[..., Any]
    """evaluate(saes, shared, config), as `sae_sweeps/evaluation/__init__.py` describes it."""
    metrics: Metrics = field(default_factory=dict)
    reads: tuple[str, ...] = ("data", "seed")
    """Keys of `eval` that decide its numbers: where one differs, it is evaluated again."""
    config: type | None = None
    """Dataclass of its own keys, `eval.NAME.KEY`, where EvalConfig does not hold them."""
    needs_model: bool = True
    """Whether it needs a language model, which synthetic activations do not have."""
    finite_only: bool = True
    """Whether an SAE with a weight that is not finite is left out, with a warning."""
    no_effect: tuple[str, ...] = ()
    """Keys within `reads` that change no number, such as `autointerp.price_in`."""
    version: int = 1
    """Raised whenever the same settings would give other numbers: older results are then evaluated again."""
    digest: str | None = None
    """Digest of the code of an evaluation from outside: evaluated again where it differs."""
    file: str | None = None
    """File that it leaves in `evals/` beside its summary; evaluated again where it is missing."""


_registered: dict[str, Evaluation] = {}


def register(evaluation: Evaluation) -> None:
    """Add an evaluation from outside to those of this process, in the place of one that has the same name there.

    Raises ConfigError for the name of an evaluation or a key of this project.
    """
    if evaluation.name in EVALUATIONS or evaluation.name in EvalConfig.__dataclass_fields__:
        raise ConfigError(f"eval.evaluations={evaluation.name}: this name is taken; give your evaluation another.")
    _registered[evaluation.name] = evaluation
    _readers_among.cache_clear()


def evaluation_names() -> tuple[str, ...]:
    """Every evaluation that can be chosen, in the order in which they run."""
    return (*EVALUATIONS, *_registered)


def in_order(names: Iterable[str]) -> list[str]:
    """Names of evaluations, those of this project as they run, then others by the alphabet."""
    return sorted(names, key=lambda name: (EVALUATIONS.index(name) if name in EVALUATIONS else len(EVALUATIONS), name))


def find_evaluation(name: str) -> Evaluation:
    """The evaluation of this name. Raises ConfigError where there is none."""
    if name in _registered:
        return _registered[name]
    if name not in EVALUATIONS:
        raise ConfigError(f"eval.evaluations={name}: must be one of {', '.join(evaluation_names())}.")
    return evaluation_module(name).EVALUATION


def describe(metric: str, metrics: Metrics) -> tuple[str | None, str | None] | None:
    """What is better of a metric, and its short name, where one of the expressions fits its name."""
    for pattern, (better, short) in metrics.items():
        if match := re.fullmatch(pattern, metric):
            return better, short and match.expand(short)
    return None


@cache
def known_metrics() -> dict[str, tuple[str | None, str | None]]:
    """METRICS of this project's evaluations, read from their files without importing them: they load torch."""
    known: dict[str, tuple[str | None, str | None]] = {}
    for name in EVALUATIONS:
        text = (PACKAGE / "evaluation" / f"{name}.py").read_text(encoding="utf-8")
        if literal := re.search(r"^METRICS = (\{.*?\})$", text, re.MULTILINE | re.DOTALL):
            known |= ast.literal_eval(literal[1])
    return known


def readers() -> Mapping[str, list[str]]:
    """Which evaluations read a key of `eval`."""
    return _readers_among(evaluation_names())


@cache
def _readers_among(names: tuple[str, ...]) -> Mapping[str, list[str]]:
    out: dict[str, list[str]] = {}
    for name in names:
        evaluation = find_evaluation(name)
        own = (name,) if evaluation.config else ()
        for key in (*evaluation.reads, *own, *(("llm_batch", "sae_batch") if evaluation.needs_model else ())):
            out.setdefault(key, []).append(name)
    return out


def same_settings(then: Mapping[str, Any], cfg: "EvalConfig", name: str) -> bool:
    """Whether an evaluation that was done with the settings `then` would give the same numbers now.

    A key that did not exist then had its default.
    """
    now = settings_of(cfg, name)
    if then.get(VERSION, 1) != now.get(VERSION, 1) or find_evaluation(name).config is not None:
        return dict(then) == now
    usual = settings_of(EvalConfig(), name)
    for key, value in usual.items():
        given = then.get(key, value)
        usual[key] = {**value, **given} if isinstance(value, dict) and isinstance(given, Mapping) else given
    return bool(usual == now)


def config_of(cfg: "EvalConfig", name: str) -> Any:
    """What an evaluation is given as its config: the part of `eval` that has its name, or all of `eval`."""
    return cfg.own[name] if name in cfg.own else getattr(cfg, name, cfg)


def resolve_data(cfg: "EvalConfig") -> None:
    """Make `eval.data` an absolute path where it is one. Raises ConfigError where nothing is there."""
    if cfg.data in ("auto", "builtin", "saebench"):
        return
    path = Path(cfg.data).expanduser().absolute()
    if not path.exists():
        raise ConfigError(
            f"eval.data={cfg.data}: there is no such file or folder{how_made(cfg.data)}; give a file of labelled text, "
            "a folder that holds SAEBench's data sets, builtin, or saebench to fetch them from the hub."
        )
    cfg.data = str(path)


def file_digest(file: Path) -> str:
    """12 hexadecimal digits of a file's content."""
    stat = file.stat()
    return _digest(file, stat.st_size, stat.st_mtime_ns)


@cache
def _digest(file: Path, _size: int, _changed_ns: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:12]


def data_setting(data: str) -> str:
    """`eval.data` as recorded settings have it: a file of labelled text by the digest of its content."""
    return f"labelled:{file_digest(Path(data))}" if Path(data).is_file() else data


def settings_of(cfg: "EvalConfig", name: str) -> dict[str, Any]:
    """What decides an evaluation's numbers: recorded beside them, and compared before it is done again."""
    evaluation = find_evaluation(name)
    found: dict[str, Any] = {key: getattr(cfg, key) for key in evaluation.reads}
    if evaluation.config is not None:
        found[name] = cfg.own[name]
    if evaluation.digest is not None:
        found["code"] = evaluation.digest
    if evaluation.version > 1:
        found[VERSION] = evaluation.version
    if "data" in found:
        found["data"] = data_setting(cfg.data)
    for key, value in found.items():
        if is_dataclass(value) and not isinstance(value, type):
            found[key] = {k: v for k, v in asdict(value).items() if f"{key}.{k}" not in evaluation.no_effect}
    return found


@dataclass
class ProbingConfig:
    """Rows of labelled text: sparse probing, and TPP on two of the same data sets."""

    datasets: list[str] | None = None
    """Names of data sets (see `eval.data`); null means all that SAEBench uses, or all built-in ones."""
    train_rows: Annotated[int, at_least(4)] = 4000
    """Rows of a binary task, half of them of the class; built-in data have 400."""
    test_rows: Annotated[int, at_least(4)] = 1000
    """Likewise; built-in data have 200."""
    context: Annotated[int, at_least(2)] = 128
    """Tokens of a row that are read."""
    k_values: SomePositive[int] = field(default_factory=lambda: [1, 2, 5, 10, 20, 50])
    """Numbers of features that a sparse probe may use (SAEBench: 1, 2, 5)."""
    all_features: bool = True
    """Also train a probe on all features (the slowest part); false leaves `sae_test_accuracy` out."""
    probe_epochs: AtLeastOne[int] = 100
    """Of the probe on all features."""
    probe_batch: AtLeastOne[int] = 250
    probe_lr: Positive[float] = 1e-2
    probe_patience: AtLeastOne[int] = 10
    """Epochs without a better accuracy after which it ends."""


@dataclass
class AblationConfig:
    """TPP and SCR: how much ablating the features that matter most to a probe moves that probe and the others."""

    n_values: SomePositive[int] = field(default_factory=lambda: [2, 5, 10, 20, 50, 100, 500])
    """Numbers of features that are ablated."""
    datasets: list[str] | None = None
    """Data sets of TPP; null means SAEBench's two, or both built-in ones."""
    pairs: dict[str, Any] | None = None
    """Pairs of classes for SCR by data set, as {DATASET: [[professor, nurse], ...]}; null means SAEBench's eight, or
    four built-in ones. A pair of which the data have too few rows is left out and named."""
    train_rows: Annotated[int, at_least(4)] = 4000
    """Rows of SCR's tasks; each quadrant gives a quarter of them. Built-in data have 400."""
    test_rows: Annotated[int, at_least(4)] = 1000
    """Likewise; built-in data have 200."""
    probe_epochs: AtLeastOne[int] = 20
    probe_batch: AtLeastOne[int] = 16
    probe_lr: Positive[float] = 1e-3
    probe_l1: NotNegative[float] = 1e-3
    probe_patience: AtLeastOne[int] = 20
    """Epochs without a better accuracy after which it ends."""


@dataclass
class HierarchyConfig:
    """Sparse probing of coarse classes and of fine classes inside them, with k-fold cross-validation."""

    folds: Annotated[int, at_least(2)] = 5
    """Every row is in the test part of exactly one fold."""
    rows: Annotated[int, at_least(4)] = 400
    """Rows per fine class; built-in data have 100."""
    k_values: SomePositive[int] = field(default_factory=lambda: [1, 2, 5])


@dataclass
class AbsorptionConfig:
    """Feature absorption on first letters (Chanin et al. 2024, arXiv:2409.14507)."""

    max_words: int | None = None
    """At most this many words of the vocabulary, drawn by the seed; null means all."""
    max_k: AtLeastOne[int] = 10
    """Largest sparse probe in the search for split features."""
    f1_jump: float = 0.03
    """A further feature counts as split off when it raises F1 by more than this."""
    min_probe_f1: float = 0.6
    """A letter counts when the model's own probe exceeds this F1."""
    min_letters: AtLeastOne[int] = 20
    """With fewer such letters nothing is scored."""
    template: str = "{word} has the first letter:"
    """Of a prompt's lines; a letter follows in the examples."""
    token_pos: int | None = None
    """Token of the prompt whose activation is used, from the end; null means the word's last (SAEBench: -6)."""
    l1_decay: NotNegative[float] = 0.01
    epochs: AtLeastOne[int] = 50
    """Of the probe on the model's activations and of the L1 probe on the features."""
    probe_batch: AtLeastOne[int | None] = None
    """Words per step of the L1 probe; null means SAEBench's 4096, or 16 on built-in data, which have 250 words."""


@dataclass
class UnlearningConfig:
    """Clamping of features that fire on text to forget and hardly on text to retain, judged by questions."""

    model: str = "auto"
    """Model that is judged: a hub name, a folder, `same` (the one that the SAE was trained on), or auto: the
    instruction-tuned sibling that `model.instruct` names where it names one, else same."""
    datasets: list[str] | None = None
    """Sets of questions, the one to forget among them; null means SAEBench's five, or both built-in ones."""
    questions: Annotated[str, one_of("correct", "correct-iff-question", "correct-no-tricks")] = "correct"
    """Which of the questions that the model answers right count: all; those that it does not answer right by the
    choices alone; or those without choices such as `All of the above`."""
    retain_thresholds: SomePositive[float] = field(default_factory=lambda: [0.001, 0.01])
    """Features that fire on at least this share of the tokens to retain are not clamped."""
    n_features: SomePositive[int] = field(default_factory=lambda: [10, 20])
    multipliers: SomePositive[int] = field(default_factory=lambda: [25, 50, 100, 200])
    """A chosen feature that fires is clamped to minus this."""
    contexts: AtLeastOne[int] = 1024
    """Contexts of each corpus on which firing is counted; built-in data have 64."""
    context: Annotated[int, at_least(2)] = 1024
    """Their length in tokens; built-in data have 128."""
    all_orders: bool = True
    """A question counts if the model answers it right in all 24 orders of its choices; false: in the given order."""
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
    """Name of the environment variable that holds the key, where the server needs one."""
    confirm: bool = False
    """false: estimate the cost, show it, and stop."""
    price_in: float = 0.15
    """Dollars per million tokens sent."""
    price_out: float = 0.60
    """Dollars per million tokens received."""
    n_latents: AtLeastOne[int] = 1000
    latents: list[int] | None = None
    """Exactly these features in the place of a draw."""
    dead_below: float = 15
    """Features that fire on at most this many tokens are excluded."""
    total_tokens: AtLeastOne[int] = 2_000_000
    """Held-out tokens searched for examples."""
    buffer: AtLeastOne[int] = 10
    """Tokens shown on each side of an example."""
    no_overlap: bool = True
    """The strongest examples of a feature have no token in common."""
    act_threshold: Annotated[float, at_least(0)] = 0.01
    """Share of the largest activation above which a token counts as active."""
    scoring: bool = True
    """false: explanations only, without a score."""
    demos: bool = True
    """Examples of explanations in the request for one."""
    top_shown: AtLeastOne[int] = 10
    """Strongest examples for the explanation."""
    sampled_shown: NotNegative[int] = 5
    """Further ones, drawn by the square of their activation."""
    top_scored: NotNegative[int] = 2
    """The same for the prediction."""
    sampled_scored: NotNegative[int] = 2
    random_scored: NotNegative[int] = 10
    """Examples from anywhere."""
    max_tokens_in_explanation: int = 30
    concurrency: AtLeastOne[int] = 10
    """Requests at a time."""


FEATURES_FORMAT = 1
"""Of evals/features.npz."""


@dataclass
class FeaturesConfig:
    """What is kept of every feature for `python -m analysis features` and `compare`."""

    tokens: AtLeastOne[int] = 131_072
    """Held-out tokens that are read; fewer where the text ends."""
    examples: AtLeastOne[int] = 20
    """Contexts kept in which the feature fires most, each at its strongest token."""
    samples: AtLeastOne[int] = 25
    """Tokens kept of all those on which it fires, drawn at random."""
    before: NotNegative[int] = 20
    """Tokens before an example's own whose activations are kept."""
    after: NotNegative[int] = 8
    """Tokens after it."""
    logits: AtLeastOne[int] = 10
    """Tokens kept whose logits its decoder row raises most, and as many that it lowers most."""
    nearest: AtLeastOne[int] = 8
    """Features kept that are nearest by cosine, and as many by overlap."""


@dataclass
class EvalConfig:
    name: str = "core"
    """core, quick, full, features, or none."""
    evaluations: list[str] = field(default_factory=lambda: ["core", "separation"])
    """Any of core, separation, sparse_probing, hierarchy, tpp, scr, absorption, unlearning, autointerp, features, or
    your own."""
    data: str = "auto"
    """Labelled text and questions: builtin (made from the standard library), saebench (by name from the hub), a folder
    that holds SAEBench's data sets under their names, a file of labelled text of your own (docs/evaluations.md), or
    auto: builtin for the built-in model, else saebench."""
    seed: NotNegative[int] = 42
    """Seed of the draws of rows, prompts and initial probe weights; results do not depend on the evaluations' order."""
    selection: Annotated[str, one_of("validation", "test")] = "validation"
    """Rows on which anything is chosen (a probe's epoch, SCR's direction, a letter's features, unlearning's setting):
    `validation`, one half of the test rows while the other half is measured, and the other way round; `test`, the rows
    that are measured, as in SAEBench, which raises the numbers."""
    sae_batch: AtLeastOne[int] = 4096
    """Tokens that an SAE encodes at once."""
    llm_batch: AtLeastOne[int] = 32
    """Rows per forward pass of the language model."""
    batch_size: Positive[int] = 16
    """Contexts per batch of the core evaluation."""
    recon_batches: Positive[int] = 4
    """Batches for the KL and cross-entropy metrics (SAEBench: 200)."""
    sparsity_batches: Positive[int] = 16
    """Batches for reconstruction, sparsity and density metrics, following the former in the stream (SAEBench: 2000)."""
    exclude_special_tokens: bool = True
    """Leave the activation at BOS, EOS and padding as it is when the SAE's output is put in its place."""
    exclude_outliers: bool = True
    """The core evaluation of an SAE that was trained under `data.max_norm`: leave tokens beyond that norm out of its
    reconstruction and sparsity metrics, and their activation as it is for CE and KL; false: every token (SAEBench)."""
    compute_kl: bool = True
    """The core evaluation's `kl_div_...`."""
    compute_ce_loss: bool = True
    """`ce_loss_...`."""
    compute_l2_norms: bool = True
    """`l2_...` and `relative_reconstruction_bias`."""
    compute_sparsity_metrics: bool = True
    """`l0` and `l1`."""
    compute_variance_metrics: bool = True
    """`explained_variance...`, `mse...`, `cossim` and `fvu`."""
    compute_featurewise_density_statistics: bool = True
    """How often each feature fires, and the metrics that follow from it."""
    compute_featurewise_weight_based_metrics: bool = True
    """Norms and cosines of each feature's weights, and their means."""
    composition: bool = False
    """Also train a small SAE on the decoder's rows, to see how far they are sums of others (seconds to minutes)."""
    label_tokens: Positive[int] = 4096
    """Held-out tokens on which features are compared with labels, where the text has roles."""
    probing: ProbingConfig = field(default_factory=ProbingConfig)
    ablation: AblationConfig = field(default_factory=AblationConfig)
    hierarchy: HierarchyConfig = field(default_factory=HierarchyConfig)
    absorption: AbsorptionConfig = field(default_factory=AbsorptionConfig)
    unlearning: UnlearningConfig = field(default_factory=UnlearningConfig)
    autointerp: AutointerpConfig = field(default_factory=AutointerpConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    own: dict[str, Any] = field(default_factory=dict)
    """Config of each evaluation that has a dataclass of its own, by name; in files and commands it is `eval.NAME`."""
