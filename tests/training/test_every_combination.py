"""Every architecture trains with every penalty, and every option of every penalty at least once."""

from dataclasses import fields

import pytest
import torch
from composed import D_IN, STEPS, batch_at, choices, configured

from sae_sweeps.architectures.context import squared_error
from sae_sweeps.config.plugins import component
from sae_sweeps.errors import ConfigError
from sae_sweeps.training.step import Training

pytestmark = pytest.mark.slow


def train(*words: str) -> tuple[float, float, dict[str, float]]:
    """Reconstruction loss of one batch before and after 30 steps on others, and the last step's numbers."""
    run = configured(*words)
    training = Training(run, 1.0, torch.zeros(D_IN), torch.device("cpu"))
    fixed = batch_at(999)

    def loss() -> float:
        with torch.no_grad():
            z = training.sae.pre_activations(fixed.x)
            error = fixed.x - training.sae.decode(training.sae.activate(z, 0))
            return float(squared_error(error.square().sum(1)))

    before = loss()
    for step in range(STEPS):
        report = training.step(batch_at(step), step, logged=True, monitored=step % 10 == 0)
        assert all(torch.tensor(value).isfinite() for value in report.numbers.values()), report.numbers
    assert all(parameter.isfinite().all() for _, parameter in training.named_parameters())
    return before, loss(), report.numbers


CONSTANT = {"schedule": "schedule=constant", "lr": "lr_schedule.decay=0"}
# grouping=corpus needs text with roles, which these batches have and model=synthetic has not


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("penalty", choices("penalty"))
@pytest.mark.parametrize("architecture", choices("architecture"))
def test_every_architecture_with_every_penalty(architecture, penalty, precision):
    words = [f"architecture={architecture}", f"penalty={penalty}", f"train.precision={precision}", *CONSTANT.values()]
    if architecture in ("topk", "batch_topk", "matryoshka"):
        words.append("k=8")
    if architecture == "jumprelu":
        words.append("target_l0=8")
    before, after, numbers = train(*words)
    assert after < before, (before, after)
    assert numbers["penalty_weight"] > 0


# Every key of every penalty and of the group layer, with values other than its own.
OPTIONS = {
    "ortho": [
        "lambda2_max=0.1", "penalty.threshold=constant", "penalty.threshold=increasing", "base_threshold=0.05",
        "penalty.momentum=0.9", "penalty.competition=sigmoid penalty.tau=0.5", "penalty.overlap=min",
        "penalty.overlap=cosine", "penalty.overlap=batch", "penalty.reduction=per_feature", "penalty.reduction=mean",
    ],
    "strict_ortho": ["lambda2_max=0.1", "penalty.reduction=sum", "penalty.reduction=mean"],
    "adaptive_sharing": [
        "lambda2_max=0.1", "penalty.reduction=sum", "penalty.reduction=mean", "penalty.tau=1.0", "penalty.decay=0.5",
        "penalty.breakpoints=[0.0,1.0] penalty.alphas=[0.9,0.1]",
    ],
    "selective_ortho": [
        "lambda2_max=1.0", "penalty.reduction=per_feature", "penalty.reduction=mean", "penalty.statistic=max",
        "penalty.statistic=std", "penalty.statistic=frequency", "penalty.alpha=0.3", "penalty.decay=0.5",
        "penalty.grouping=kmeans penalty.regroup_every=7",
    ],
    "decorrelation": [
        "lambda2_max=0.5", "penalty.reduction=mean", "penalty.reduction=per_feature", "penalty.active_fraction=0.25",
        "penalty.variance_floor=0.01",
    ],
    "ortsae": ["lambda2_max=1.0", "penalty.chunk_size=7"],
    "contrastive": [
        "lambda2_max=0.5", "penalty.positives=top5_similar", "penalty.head_dim=8", "penalty.temperature=0.5",
        "penalty.diversity_weight=0.5",
    ],
    "bottleneck": [
        "lambda2_max=10", "penalty.group_lasso_weight=0.01", "penalty.l2_weight=0.1", "penalty.contrastive_weight=0.1",
        "penalty.temperature=0.5 penalty.contrastive_weight=0.1", "group_layer.group_size=8", "group_layer.window=32",
        "group_layer.variance_floor=0.001", "group_layer.competition=true group_layer.temperature=2.0",
        "group_layer.competition=true group_layer.competition_train_only=true", "group_layer.mask=0.5",
        "group_layer.mask=1 group_layer.mask_train_only=true", "group_layer.dropout=0.2",
        "group_layer.dropout=0.1 group_layer.dropout_train_only=false", "group_layer.residual=0.1",
        "group_layer.residual=0.1 group_layer.residual_train_only=true", "group_layer.reversal=0.1",
        "group_layer.adapt=similarity group_layer.adapt_every=5 group_layer.group_size=8",
        "group_layer.adapt=mi group_layer.adapt_every=5 group_layer.group_size=8 group_layer.adapt_pairs=2 "
        "group_layer.adapt_share=0.5 group_layer.max_size=16",
    ],
}  # fmt: skip


def test_no_option_is_left_out():
    """The list above names every key; a new key has to be added to it."""
    top = {"lambda2_max", "base_threshold"}
    for penalty in choices("penalty"):
        keys = {word.partition("=")[0] for words in OPTIONS[penalty] for word in words.split()}
        named = {key.removeprefix("penalty.") for key in keys if key.startswith("penalty.") or key in top}
        assert named | {"name"} == {f.name for f in fields(component("penalty", penalty).config)}
    keys = {word.partition("=")[0] for words in OPTIONS["bottleneck"] for word in words.split()}
    named = {key.removeprefix("group_layer.") for key in keys if key.startswith("group_layer.")}
    assert named | {"name"} == {f.name for f in fields(component("group_layer", "groups").config)}


@pytest.mark.parametrize(
    ("penalty", "words"), [(penalty, words) for penalty, options in OPTIONS.items() for words in options]
)
@pytest.mark.parametrize("architecture", ["topk", "standard"])
def test_every_option(architecture, penalty, words):
    k = ["k=8"] if architecture == "topk" else []
    before, after, _ = train(f"architecture={architecture}", f"penalty={penalty}", *words.split(), *k)
    assert after < before


@pytest.mark.parametrize("words", ["penalty.grouping=corpus", "penalty.positives=pairs"])
def test_options_that_need_roles(words):
    """On a language model's text; here only the step, on batches that have roles."""
    penalty = {"grouping": "selective_ortho", "positives": "contrastive"}[words.split(".")[1].split("=")[0]]
    with pytest.raises(ConfigError, match="roles|forget"):
        configured(f"penalty={penalty}", words)
    run = configured(f"penalty={penalty}", "k=8")
    key, _, value = words.removeprefix("penalty.").partition("=")
    setattr(run.penalty, key, value)
    training = Training(run, 1.0, torch.zeros(D_IN), torch.device("cpu"))
    numbers = [training.step(batch_at(step), step, True, True).numbers for step in range(5)]
    assert (
        numbers[-1]["penalty_loss"] > 0 and numbers[-1]["grad_norm/penalty"] + numbers[-1]["grad_norm/penalty_enc"] > 0
    )


@pytest.mark.parametrize("schedule", choices("schedule"))
def test_every_schedule_weighs_the_penalty(schedule):
    run = configured("penalty=ortho", f"schedule={schedule}", "k=8")
    training = Training(run, 1.0, torch.zeros(D_IN), torch.device("cpu"))
    for step in (0, 15, STEPS - 1):
        numbers = training.step(batch_at(step), step, True).numbers
        assert numbers["penalty_weight"] == run.penalty_terms()[0].weight(step, STEPS)
