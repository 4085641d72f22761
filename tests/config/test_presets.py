"""Each study's one line on its own model composes to the values of its record, run for run."""

import re
import socket

import pytest
from composing import plan, points
from omegaconf import OmegaConf

from sae_sweeps.activations import language_model
from sae_sweeps.config.paths import config_dir
from sae_sweeps.errors import ConfigError
from sae_sweeps.sweeps.plan import describe
from sae_sweeps.sweeps.variants import SCALED, variant_of

pytestmark = pytest.mark.slow  # some 130 runs are composed, more than once

STUDIES = {
    "selective_orthogonality": "gemma-2-2b",
    "progressive_orthogonality": "gemma-2-2b",
    "adaptive_sharing": "pythia-70m",
    "contrastive": "gemma-2-2b",
    "information_bottleneck": "gemma-2-2b",
}

# What four studies share: their trainer
TRAINER = {
    "model": "gemma-2-2b", "layer": 19, "d_sae": 2304, "architecture": "standard", "l1": 0.04, "target_l0": None,
    "recon": "norm", "clip": 0.0, "precision": "float32", "lr_schedule": "constant", "lr": 3e-4, "warmup": 1000,
    "batch": 1024, "steps": 4882, "seed": 0, "penalty": "none", "eval": "full",
}  # fmt: skip
SELECTIVE = TRAINER | {"data": "openwebtext"}
ORTHO = {"penalty": "selective_ortho", "reduction": "sum", "schedule": "constant", "grouping": "relative_threshold"}
DECORRELATION = {"penalty": "decorrelation", "reduction": "sum", "active_fraction": 1.0}
RAMP = {"schedule.warmup": 1000}
TWO_PHASE = (
    DECORRELATION
    | RAMP
    | {"schedule": "two_phase", "active_fraction": 0.25, "lambda2": 0.1, "initial": 0.005}
    | {"wait_warmups": 2, "ramp_warmups": 8}
)
TOPK = {
    "model": "gemma-2-2b", "layer": 12, "data": "openwebtext", "eval": "full", "d_sae": 16384, "architecture": "topk",
    "k": 320, "recon": "squared", "precision": "float32", "lr_schedule": "constant", "lr": 2e-4, "warmup": 0,
    "batch": 2048, "steps": 2441, "seed": 42, "penalty": "none",
}  # fmt: skip
PROGRESSIVE = TOPK | {
    "penalty": "ortho", "schedule": "power", "decay_power": 2.0, "threshold": "decreasing", "competition": "linear",
    "reduction": "sum", "momentum": 0.0, "k_start": None,
}  # fmt: skip
PLANNED = PROGRESSIVE | {"seed": 0, "lambda2": 0.5, "base_threshold": 0.3}
LABELLED = TRAINER | {"data": "wmdp_bio"}
SIMILAR = {
    "penalty": "contrastive", "head_dim": 128, "positives": "top5_similar", "similar_by": "feature_acts",
    "temperature": 0.1, "lambda2": 0.5,
}  # fmt: skip
GROUPS = {"penalty": "bottleneck", "group_size": 32, "window": 32, "l2_weight": 0.0, "dropout": 0.0, "adapt": "none"}
LATER = GROUPS | {"l2_weight": 0.01, "clip": 1.0, "lr": 1e-4}

RECORDED = {
    "selective_orthogonality": {
        "Run 0, as recorded": SELECTIVE,
        "Run 1, as recorded": SELECTIVE | ORTHO | {"alpha": 0.5, "lambda2": 0.1},
        "Run 2, as recorded": SELECTIVE | ORTHO | {"alpha": 0.3, "lambda2": 0.1},
        "Run 3, as recorded": SELECTIVE | ORTHO | {"alpha": 0.3, "lambda2": 1.0},
        "Run 4, as recorded": SELECTIVE | ORTHO | {"grouping": "kmeans", "lambda2": 1.0},
        "Run 5, as recorded": SELECTIVE | DECORRELATION | {"schedule": "constant", "lambda2": 0.5},
        "Run 6, as recorded": SELECTIVE | DECORRELATION | RAMP
        | {"schedule": "linear", "ramp_warmups": 10, "lambda2": 0.5},
        "Run 7, as recorded": SELECTIVE | DECORRELATION | RAMP
        | {"schedule": "exponential", "initial": 0.01, "lambda2": 0.1},
        "Run 8, as recorded": SELECTIVE | TWO_PHASE,
        "Run 9, as recorded": SELECTIVE | TWO_PHASE | {"precision": "bfloat16", "clip": 1.0},
    },
    "progressive_orthogonality": {
        "TopK baseline, as recorded": TOPK,
        "standard baseline, as recorded": TOPK
        | {"architecture": "standard", "k": None, "l1": 0.04, "target_l0": None, "lr": 3e-4, "warmup": 1000},
        "Run 1, as recorded": PROGRESSIVE | {"k": 40, "steps": 488},
        "Run 2, as recorded": PROGRESSIVE | {"k": 40},
        "Run 3, planned": PLANNED,
        "Run 4, planned": PLANNED | {"decay_power": 0.5},
        "Run 5, planned": PLANNED | {"threshold": "increasing", "base_threshold": 0.1},
        "Run 7, planned": PLANNED | {"competition": "sigmoid"},
        "fixed weight, planned": PLANNED | {"decay_power": 0.0},
        "static, planned": PLANNED | {"decay_power": 0.0, "threshold": "constant"},
        "k grows, planned": PLANNED | {"k_start": 80},
        "momentum, planned": PLANNED | {"momentum": 0.9},
        "Gated, planned": TOPK | {"architecture": "gated", "k": None, "target_l0": 320.0, "seed": 0},
    },
    "adaptive_sharing": {
        "Run 0, as recorded": LABELLED,
        "baseline, planned": LABELLED | {"model": "pythia-70m", "layer": 3, "d_sae": 4096, "clip": 1.0},
        "strict, planned": LABELLED
        | {"model": "pythia-70m", "layer": 3, "d_sae": 4096, "clip": 1.0, "penalty": "strict_ortho"},
        "adaptive, planned": LABELLED
        | {"model": "pythia-70m", "layer": 3, "d_sae": 4096, "clip": 1.0, "penalty": "adaptive_sharing"},
    },
    "contrastive": {
        "Run 0, as recorded": LABELLED,
        "Run 1, as recorded": LABELLED | SIMILAR | {"positives": "adjacent", "lambda2": 0.1},
        "Run 2, as recorded": LABELLED | SIMILAR,
        "Run 3, as recorded": LABELLED | SIMILAR | {"clip": 1.0, "batch": 256},
        "Run 4, as recorded": LABELLED | SIMILAR
        | {"clip": 1.0, "batch": 512, "lr": 1e-4, "steps": 195, "warmup": 0.2048},
        "adjacent, clipped, planned": LABELLED | SIMILAR
        | {"positives": "adjacent", "lambda2": 0.1, "batch": 128, "clip": 1.0},
    },
    "information_bottleneck": {
        "Run 0, as recorded": LABELLED,
        "Run 2, as recorded": LABELLED | GROUPS,
        "Run 3, as recorded": LABELLED | LATER | {"l1": 0.1, "dropout": 0.1},
        "Run 4, as recorded": LABELLED | LATER
        | {"l1": 0.2, "dropout": 0.2, "adapt": "mi", "residual": 0.1, "group_lasso_weight": 0.01}
        | {"lr_schedule": "cosine"},
        "Run 5, as recorded": LABELLED | LATER
        | {"l1": 0.2, "adapt": "similarity", "contrast": "groups", "contrastive_weight": 0.1}
        | {"softmax competition": True, "mask": 0.25, "reversal": 0.1, "lr_schedule": "warm_restarts"},
        "mixed precision, planned": LABELLED | GROUPS | {"precision": "bfloat16"},
    },
}  # fmt: skip
"""METHODS of the studies as values: what the record gives for each run, and what was planned."""

PLACES = {
    "model": "model.name", "layer": "layer.index", "data": "data.name", "eval": "eval.name",
    "d_sae": "architecture.d_sae", "architecture": "architecture.name", "l1": "architecture.l1_penalty",
    "target_l0": "architecture.target_l0", "k": "architecture.k", "k_start": "architecture.k_start",
    "recon": "train.recon", "clip": "train.clip", "precision": "train.precision", "lr_schedule": "lr_schedule.name",
    "lr": "lr_schedule.lr", "warmup": "lr_schedule.warmup", "batch": "batch_size", "steps": "total_steps",
    "seed": "seed", "penalty": "penalty.name", "lambda2": "penalty.lambda2_max", "schedule": "schedule.name",
    "schedule.warmup": "schedule.warmup", "initial": "schedule.initial", "wait_warmups": "schedule.wait_warmups",
    "ramp_warmups": "schedule.ramp_warmups", "decay_power": "schedule.decay_power",
    "softmax competition": "group_layer.competition",
} | {
    key: f"group_layer.{key}"
    for key in ("group_size", "window", "dropout", "adapt", "residual", "mask", "reversal")
}  # fmt: skip


def value(run, key):
    """The value that a run has in use for a name of the tables above; None where it has no such key."""
    node = run
    for part in PLACES.get(key, f"penalty.{key}").split("."):
        node = getattr(node, part, None)
    return node


@pytest.fixture(scope="module")
def studies():
    """The plan of each study's one line, without a network and without loading a model."""
    with pytest.MonkeyPatch.context() as patch:

        def refused(*_, **__):
            raise AssertionError("a dry run loads no model and needs no network")

        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(socket.socket, "connect", refused)
        patch.setattr(language_model, "load_language_model", refused)
        return {
            study: plan(f"experiment={study}", f"model={model}", f"only={'|'.join(RECORDED[study])}")
            for study, model in STUDIES.items()
        }


def variants(study):
    """The variants of a study's preset on its own model, uncomposed: fast."""
    node = OmegaConf.load(config_dir() / "experiment" / f"{study}.yaml")
    OmegaConf.resolve(node)
    return [variant_of(name, words, own=True) for name, words in node.variants.items()]


@pytest.mark.parametrize("study", RECORDED)
def test_recorded_and_planned_runs_have_the_values_of_the_record(study, studies):
    runs = {planned.title.partition(":")[0]: planned.run for planned in studies[study].runs}
    for title, expected in RECORDED[study].items():
        found = {key: value(runs[title], key) for key in expected}
        assert found == expected, title
        lr = expected["lr"] * (1 if expected["steps"] > 1000 or title == "Run 4, as recorded" else 0)
        assert not lr or runs[title].peak_learning_rate() == pytest.approx(lr), title
        assert runs[title].tags == ["as_recorded" if "as recorded" in title else "planned"], title
        assert runs[title].description, title
        if expected["lr_schedule"] == "constant":
            steps = runs[title].total_steps
            assert runs[title].learning_rate(steps - 1) == runs[title].peak_learning_rate(), "no decay"
    tagged = {variant.title.partition(":")[0] for variant in variants(study) if variant.tags}
    assert tagged == set(RECORDED[study]) | ({"Run 6, planned"} if study == "progressive_orthogonality" else set())
    assert not any("peaks at" in warning for warning in studies[study].warnings)


def test_the_planned_grid_is_whole():
    (grid,) = (variant for variant in variants("progressive_orthogonality") if variant.title == "Run 6, planned: grid")
    assert grid.words["lambda2_max"] == [f"lambda2_max={weight}" for weight in (0.1, 0.5, 1.0)]
    assert grid.words["base_threshold"] == [f"base_threshold={base}" for base in (0.1, 0.2, 0.3, 0.4, 0.5)]
    assert grid.words["k"] == ["k=320"] and grid.pinned


def test_steps_that_the_record_lacks_are_named(studies):
    """Recorded as 0, 1 or not at all: ours, and the description has the recorded number."""
    recorded = {
        "adaptive_sharing": {"Run 0, as recorded": "0"},
        "contrastive": {"Run 0, as recorded": "0", "Run 1, as recorded": "none", "Run 2, as recorded": "none",
                        "Run 3, as recorded": "1"},
        "information_bottleneck": {f"Run {n}, as recorded": "0" for n in (0, 2, 3, 4)} | {"Run 5, as recorded": "none"},
    }  # fmt: skip
    for study, runs in recorded.items():
        found = {run.title.partition(":")[0]: run.run for run in studies[study].runs}
        for title, steps in runs.items():
            assert found[title].description.startswith(f"steps: ours, recorded {steps}."), (study, title)
            assert found[title].total_steps == 4882
    topk = {run.title.partition(":")[0]: run.run for run in studies["progressive_orthogonality"].runs}
    for title in ("TopK baseline, as recorded", "Run 1, as recorded", "Run 2, as recorded"):
        assert "lr 2e-4 used, 3e-4 logged" in topk[title].description


def test_runs_without_clipping_have_clipped_twins():
    """Both reductions, both precisions; all else, the study's d_sae, steps and warm-up with it, as in the original."""
    found = {variant.title.partition(":")[0]: variant.words for variant in variants("selective_orthogonality")}
    for number in (5, 6, 7, 8):
        twin, original = dict(found[f"Run {number}, clipped"]), dict(found[f"Run {number}, as recorded"])
        assert twin.pop("penalty.reduction") == ["penalty.reduction=sum", "penalty.reduction=mean"]
        assert twin.pop("train.precision") == ["train.precision=float32", "train.precision=bfloat16"]
        assert (twin.pop("train.clip"), original.pop("train.clip")) == (["train.clip=1.0"], ["train.clip=0"])
        assert original.pop("train.precision") == ["train.precision=float32"]
        assert twin == original and twin["d_sae"] == ["d_sae=2304"]
    made = plan("experiment=selective_orthogonality", "only=Run 5, clipped", "num_tokens=20480")
    assert [(value(run.run, "reduction"), value(run.run, "precision")) for run in made.runs] == [
        ("sum", "float32"), ("mean", "float32"), ("sum", "bfloat16"), ("mean", "bfloat16"),
    ]  # fmt: skip


@pytest.mark.parametrize("study", RECORDED)
def test_variants_of_a_study_have_one_form_of_reconstruction_loss(study):
    """The preset's, which no variant leaves."""
    form = "squared" if study == "progressive_orthogonality" else "norm"
    node = OmegaConf.load(config_dir() / "experiment" / f"{study}.yaml")
    assert OmegaConf.select(node, "train.recon", default="squared") == form
    assert {word for variant in variants(study) for word in variant.words.get("train.recon", [])} == {
        f"train.recon={form}"
    }


def test_variants_that_need_roles_are_left_out_and_named():
    (line,) = plan("experiment=selective_orthogonality", "model=gemma-2-2b", "only=*forget*|Run 0").notes
    assert line.startswith("left out: forget against retain; TopK, forget against retain (")
    assert "data=openwebtext" in line
    with_roles = plan("experiment=selective_orthogonality", "model=gemma-2-2b", "data=wmdp_bio", "only=*forget*|Run 0")
    assert [run.title for run in with_roles.runs][1:] == [
        "forget against retain lambda2_max=0.1",
        "forget against retain lambda2_max=1.0",
        "TopK, forget against retain",
    ] and with_roles.notes == []
    with pytest.raises(ConfigError, match="penalty.grouping=corpus: needs text to forget"):
        plan("experiment=selective_orthogonality", "data=builtin", "only=*forget*")


def test_words_of_the_command_reach_what_the_record_leaves_open():
    words = ["experiment=progressive_orthogonality", "model=gemma-2-2b", "only=*as recorded*|TopK"]
    given = ["target_l0=320", "k=64", "lr=2e-4", "num_tokens=2048000", "data=pile", "eval=core", "seed=1"]
    made = plan(*words, *given)
    runs = {run.title.partition(":")[0]: run.run for run in made.runs}
    open_keys = {"data": "pile", "eval": "core"}
    for title in [title for title in RECORDED["progressive_orthogonality"] if "as recorded" in title]:
        expected = RECORDED["progressive_orthogonality"][title] | open_keys
        assert {key: value(runs[title], key) for key in expected} == expected, title
    assert (runs["TopK"].architecture.k, runs["TopK"].seed, runs["TopK"].num_tokens) == (64, 1, 2048000)
    lines = "\n".join(made.notes)
    assert "lr=0.0002 does not reach every variant: lr=0.0003 stays in standard baseline, as recorded" in lines
    assert "k=64 does not reach every variant: k=320 stays in TopK baseline, as recorded; k=40 stays in Run 1" in lines
    assert "data=" not in lines and "eval=" not in lines


def test_a_word_that_every_variant_refuses_is_a_mistake():
    words = ["experiment=progressive_orthogonality", "model=gemma-2-2b", "only=Run 1|Run 2"]
    with pytest.raises(ConfigError) as caught:
        plan(*words, "lr=1e-3")
    assert str(caught.value) == (
        "lr=0.001: no variant takes it (lr=0.0002 stays in Run 1, as recorded, Run 2, as recorded); leave it out."
    )
    assert plan(*words, "lr=0.0002").notes == [], "the recorded value itself"
    for word in ("lr_schedule=cosine", "architecture.aux_weight=0.1", "lr_schedule.lr=1e-3"):
        with pytest.raises(ConfigError, match="no variant takes it"):
            plan(*words, word)


def test_a_seed_sweep_keeps_one_of_each_run_whose_seed_is_recorded():
    made = plan("experiment=progressive_orthogonality", "model=gemma-2-2b", "only=Run 2|TopK", "seed=0,1,2")
    assert [run.title for run in made.runs] == [
        "Run 2, as recorded: progressive", "TopK seed=0", "TopK seed=1", "TopK seed=2",
    ]  # fmt: skip
    assert made.notes == ["seed=0,1,2 does not reach every variant: seed=42 stays in Run 2, as recorded"]
    assert made.runs[0].equals == []


@pytest.mark.parametrize("study", RECORDED)
def test_elsewhere_runs_are_scaled_to_equal_budgets(study):
    """The record's weights, schedules, form of the loss and learning rate, at the command's budget."""
    titles = [title.replace("as recorded", "scaled") for title in RECORDED[study]]
    made = plan(f"experiment={study}", f"only={'|'.join(titles)}", "num_tokens=204800")
    runs = {run.title.partition(":")[0]: run.run for run in made.runs}
    for title, expected in RECORDED[study].items():
        elsewhere = title.replace("as recorded", "scaled")
        same_run = [run.run for run in made.runs if any(elsewhere in equal for equal in run.equals)]
        run = runs[elsewhere] if elsewhere in runs else same_run[0]
        own = ("layer", "data", "eval", "model", "d_sae", "k", "k_start", "target_l0", "batch", "steps", "seed")
        planned = ("lr", "lr_schedule", "warmup") if study == "progressive_orthogonality" and "planned" in title else ()
        lengths = {key: 0.2048 for key in ("warmup", "schedule.warmup") if expected.get(key) == 1000}
        if title == "standard baseline, as recorded":
            lengths["warmup"] = 0.4097
        kept = {key: at for key, at in (expected | lengths).items() if key not in (*own, *planned)}
        assert {key: value(run, key) for key in kept} == kept, title
        assert (run.total_steps, run.batch_size, run.model.name) == (200, 1024, "builtin")
        assert run.tags == ["scaled" if "scaled" in elsewhere else "planned"] or title not in runs
    assert not [warning for warning in made.warnings if "equal budgets" in warning]


def test_k_grows_from_a_quarter_of_its_end_everywhere():
    for words, ends in ((["k=64"], (16, 64)), ([], (8, 32)), (["model=gemma-2-2b"], (80, 320))):
        made = plan("experiment=progressive_orthogonality", "only=k grows|TopK, k grows", *words)
        assert {(run.run.architecture.k_start, run.run.architecture.k) for run in made.runs} == {ends}


def test_the_dry_run_prints_what_is_pinned_and_the_description():
    text = describe(plan("experiment=contrastive", "model=gemma-2-2b", "only=Run 3|TopK"))
    first, second = re.split(r"^run 2 ", text, flags=re.MULTILINE)
    assert "  steps: ours, recorded 1. As Run 2 with" in first and "batch_size=256" in first.split("pinned: ")[1]
    assert "eval full" in first and "seed 0" in first and "lr_schedule constant: lr=0.0003 warmup=1000" in first
    assert "pinned" not in second


def test_presets_hold_no_word_that_none_of_their_variants_uses():
    for path in (config_dir() / "experiment").glob("*.yaml"):
        shared = re.findall(r"^  (\w+): .*", path.read_text().partition("shared:")[2].partition("variants:")[0], re.M)
        assert all(f"${{shared.{name}}}" in path.read_text() for name in shared), path.name


@pytest.mark.parametrize(
    ("folder", "words", "kind"),
    [
        ("gemma-2-2b", [], "as recorded"),
        ("mine", ["model.name=gemma-2-2b"], "as recorded"),
        ("mine", [], "scaled"),
    ],
)
def test_a_local_copy_of_the_model_is_the_studys_own_by_its_name(folder, words, kind, tmp_path):
    (tmp_path / folder).mkdir()
    (found,) = points("experiment=contrastive", f"model={tmp_path / folder}", "only=Run 0", *words)
    assert found.variant == f"Run 0, {kind}: baseline"


def test_descriptions_hold_at_every_budget():
    """A size that only the study's own model has is in a sentence about the record; a scaled run has SCALED beside."""
    size = re.compile(r"\bk (is |still )?\d|\d steps|\d M tokens|batch(es)? of \d|layer \d|d_sae \d")
    for study in RECORDED:
        node = OmegaConf.load(config_dir() / "experiment" / f"{study}.yaml")
        OmegaConf.resolve(node)
        for name, words in node.variants.items():
            scaled = variant_of(name, words, own=False)
            assert scaled.description.endswith(SCALED) == bool(scaled.tags), (study, name)
            for sentence in re.split(r"(?<=[a-z\d)]\.) ", scaled.description):
                assert not size.search(sentence) or re.search("record|study's own model", sentence), (study, sentence)
        assert SCALED not in " ".join(variant.description for variant in variants(study))
