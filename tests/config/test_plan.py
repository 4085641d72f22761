import json
import re
from dataclasses import asdict, fields
from pathlib import Path

import pytest
from composing import one, plan
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sae_sweeps.config.content import content
from sae_sweeps.config.evaluations import EvalConfig
from sae_sweeps.config.identity import canonical, run_id
from sae_sweeps.config.paths import config_dir
from sae_sweeps.config.plugins import component
from sae_sweeps.config.run import GROUPS
from sae_sweeps.config.schema import (
    ActivationsConfig,
    ClusterConfig,
    DataConfig,
    LayerConfig,
    LocalConfig,
    LoggerConfig,
    ModelConfig,
    SlurmConfig,
    SyntheticConfig,
    TrainConfig,
)
from sae_sweeps.errors import ConfigError, DataError
from sae_sweeps.runs.session import activation_key
from sae_sweeps.storage.digests import short_hash
from sae_sweeps.sweeps.plan import describe, safe_name
from sae_sweeps.sweeps.sweep import restored

CACHE = Path("~/.cache/sae-sweeps").expanduser()
SMOLLM2, WORDNET = CACHE / "models" / "smollm2-135m", CACHE / "wordnet" / "labelled.jsonl"


def choice_files():
    return sorted(path for group in GROUPS for path in (config_dir() / group).glob("*.yaml"))


@pytest.mark.parametrize("path", choice_files(), ids=lambda path: f"{path.parent.name}={path.stem}")
def test_every_choice_composes_and_names_itself(path):
    group, name = path.parent.name, path.stem
    words = [f"{group}={name}"]
    if (group, name) in [
        ("model", "local"),
        ("model", "hub"),
        ("data", "hub"),
        ("data", "forget_retain"),
    ] or group == "experiment":
        return  # these need a path
    if group == "data" and name in ("text", "jsonl", "parquet", "arrow"):
        with pytest.raises(ConfigError, match="data.path is empty"):
            plan("model=builtin", *words)
        return
    if (group, name) == ("model", "smollm2-135m") and not SMOLLM2.exists():
        with pytest.raises(DataError, match="`make smollm2` downloads and makes it"):
            plan(*words)
        return
    if (group, name) == ("eval", "wordnet"):
        if not WORDNET.exists():
            with pytest.raises(ConfigError, match=r"no such file or folder \(`make wordnet` writes it\)"):
                plan("model=builtin", *words)
        words += ["eval.data=builtin", "model=builtin"]
    elif group in ("data", "layer"):
        words.append("model=pythia-70m")
    elif group != "model":
        words.append("model=synthetic")
    if group == "schedule":
        words.append("penalty=ortho")
    (planned,) = plan(*words).runs
    node = getattr(planned.run, group, None)
    if group not in ("layer", "cluster"):
        assert node.name == name


SHARED = {
    "train": TrainConfig, "activations": ActivationsConfig, "eval": EvalConfig, "layer": LayerConfig,
    "data": DataConfig, "logger": LoggerConfig, "model": ModelConfig, "cluster": ClusterConfig,
}  # fmt: skip
OWN = {
    ("model", "synthetic"): SyntheticConfig, ("cluster", "local"): LocalConfig, ("cluster", "slurm"): SlurmConfig,
    ("cluster", "slurm_node"): SlurmConfig,
}  # fmt: skip


def class_of(group, name):
    return component(group, name).config if group not in SHARED else OWN.get((group, name), SHARED[group])


@pytest.mark.parametrize(
    "path",
    sorted(path for group in (*GROUPS, "train", "activations") for path in (config_dir() / group).glob("*.yaml")),
    ids=lambda path: f"{path.parent.name}={path.stem}",
)
def test_every_choice_has_the_keys_of_its_dataclass(path):
    assert set(content(path)) == {f.name for f in fields(class_of(path.parent.name, path.stem))} - {"own"}


@pytest.mark.parametrize("group", sorted(SHARED))
def test_files_hold_only_what_differs_from_the_defaults(group):
    defaults = asdict(SHARED[group]())
    for path in (config_dir() / group).glob("*.yaml"):
        given = OmegaConf.to_container(OmegaConf.load(path)) or {}
        assert [key for key in given if key not in ("name", "hook") and given[key] == defaults.get(key)] == []


def test_top_level_keys_feed_the_chosen_group():
    run = one("penalty=ortho", "lambda2_max=0.7", "base_threshold=0.2", "decay_power=0.5", "k=9", "lr=2e-4").run
    assert (run.penalty.lambda2_max, run.penalty.base_threshold, run.schedule.decay_power) == (0.7, 0.2, 0.5)
    assert (run.architecture.k, run.lr_schedule.lr) == (9, 2e-4)
    assert one("penalty=ortho").run.penalty.lambda2_max == 0.5  # the group's own value
    assert one("penalty=ortho").run.schedule.name == "power"  # the penalty's own default
    assert one("penalty=ortho", "schedule=constant").run.schedule.name == "constant"


def test_recorded_values_are_the_used_ones():
    run = one("penalty=ortho", "lambda2_max=0.7").run
    assert "${" not in json.dumps(run.to_dict())
    (term,) = run.penalty_terms()
    weight = [term.weight(step, run.total_steps) for step in range(run.total_steps)]
    assert weight[0] == 0.7 and weight[run.total_steps // 2] == pytest.approx(0.175)
    assert max(run.learning_rate(step) for step in range(run.total_steps)) == run.to_dict()["lr_schedule"]["lr"]


@pytest.mark.parametrize(
    "word",
    [
        "seed=1",
        "data_seed=1",
        "k=7",
        "d_sae=300",
        "num_tokens=20480",
        "penalty=ortho",
        "model.l0=5.0",
        "train.clip=0.5",
    ],
)
def test_what_changes_numbers_changes_the_id(word):
    assert one(word).run_id != one().run_id


@pytest.mark.parametrize(
    "word",
    [
        "outputs=elsewhere", "device=cpu", "logger=wandb", "eval=none", "eval.batch_size=3", "train.log_every=3",
        "train.checkpoint_every=7", "activations.mode=disk", "title=hello", "description=why", "k=32",
        "num_tokens=409700", "model.name=other",
    ],
)  # fmt: skip
def test_what_does_not_change_numbers_does_not_change_the_id(word):
    assert one(word).run_id == one().run_id


def test_a_description_is_recorded_and_is_part_of_neither_title_nor_mistakes():
    planned = one("k=7", "description='Half the features, why not?'")
    assert (
        planned.title == "model=synthetic k=7" and planned.run.to_dict()["description"] == "Half the features, why not?"
    )
    assert one().run.to_dict()["description"] == ""
    older = {key: value for key, value in one("k=7").run.to_dict().items() if key != "description"}
    assert restored(older, Path("outputs")).description == ""


@pytest.mark.parametrize("threshold", ["decreasing", "increasing"])
def test_the_fixed_weight_alone_has_a_threshold_that_progresses(threshold):
    """decay_power=0 fixes the weight and nothing else, unlike the static form."""
    whole = plan("model=synthetic", "penalty=ortho", "decay_power=0", f"penalty.threshold={threshold}")
    (planned,) = whole.runs
    (term,), steps = planned.run.penalty_terms(), planned.run.total_steps
    assert {term.weight(step, steps) for step in range(steps)} == {0.5}
    thresholds = term.config.curves(steps)["threshold"]
    assert thresholds[0] == 0.3 and thresholds == sorted(thresholds, reverse=threshold == "decreasing")
    assert len(set(thresholds)) == steps and term.config.never_acts() is None and whole.warnings == []
    static = one("penalty=ortho", "decay_power=0", "penalty.threshold=constant")
    assert len({planned.run_id, static.run_id, one("penalty=ortho").run_id}) == 3


ADDED = [
    (["penalty=contrastive", "penalty.positives=top5_similar"], "penalty", "similar_by", "x"),
    (["penalty=bottleneck", "penalty.contrastive_weight=0.1"], "penalty", "contrast", "tokens"),
    (["penalty=ortho+bottleneck", "penalty.bottleneck.contrastive_weight=0.1"], "penalty.bottleneck", "contrast",
     "tokens"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "place", "key", "before"), ADDED, ids=lambda v: v if isinstance(v, str) else v[0])
def test_a_key_that_was_added_is_in_no_id_at_the_value_that_runs_had_before(words, place, key, before):
    run = one(*words, f"{place}.{key}={before}").run
    stored = run.to_dict()
    node = stored["penalty"] if place == "penalty" else stored["penalty"]["bottleneck"]
    del node[key]  # as in a config.yaml of an earlier run
    earlier = restored(stored, Path(run.outputs))
    assert earlier.to_dict() == run.to_dict() and run_id(earlier) == run_id(run)
    assert f'"{key}":' not in json.dumps(canonical(run))
    other = "groups" if key == "contrast" else "head"
    assert run_id(one(*words, f"{place}.{key}={other}").run) != run_id(run)


def test_the_largest_norm_is_in_the_id_where_it_is_given_and_in_no_harvest():
    every, limited = (planned.run for planned in plan("model=builtin", "data.max_norm=null,10").runs)
    assert "max_norm" not in canonical(every)["data"] and canonical(limited)["data"]["max_norm"] == 10.0
    assert run_id(every) == plan("model=builtin").runs[0].run_id != run_id(limited)
    keys = [activation_key(run, canonical(run), "train", run.num_tokens) for run in (every, limited)]
    assert keys[0] == keys[1] and "max_norm" not in str(keys)
    stored = every.to_dict()
    del stored["data"]["max_norm"]  # as in a config.yaml of an earlier run
    assert run_id(restored(stored, Path(every.outputs))) == run_id(every)


@pytest.mark.parametrize("value", ["0", "-1", "0.9", "nan", "inf", "ten", "[10]"])
def test_a_largest_norm_that_is_none(value):
    with pytest.raises(ConfigError, match=r"data\.max_norm=.*: (half of the tokens|must be a).*\.") as caught:
        plan("model=builtin", f"data.max_norm={value}")
    assert "\n" not in str(caught.value)


def test_positives_are_similar_by_feature_activations_unless_given():
    words = ["penalty=contrastive", "penalty.positives=top5_similar"]
    assert one(*words).run.penalty.similar_by == "feature_acts"
    assert one(*words).run_id != one(*words, "penalty.similar_by=x").run_id
    assert "similar_by" not in canonical(one("penalty=contrastive").run)["penalty"]


def test_streaming_is_another_order_so_another_run():
    assert one("activations.mode=stream").run_id != one().run_id


def test_auto_mode_is_decided_by_the_config_alone():
    assert one().run.activations.mode == "memory"
    assert one("activations.memory_gb=0.01").run.activations.mode == "disk"
    assert one("activations.memory_gb=0.01", "activations.disk_gb=0.02").run.activations.mode == "stream"


def test_the_text_decides_the_id_and_its_place_does_not(tmp_path):
    ids = []
    for folder, text in (("a", "one two three"), ("b", "one two three"), ("c", "one two four")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "text.txt").write_text(text)
        (planned,) = plan("model=pythia-70m", f"data={tmp_path / folder / 'text.txt'}").runs
        ids.append(planned.run_id)
    assert ids[0] == ids[1] != ids[2]


def test_canonical_config_has_no_path_and_no_inert_key(tmp_path):
    (tmp_path / "text.txt").write_text("some text")
    (planned,) = plan("model=pythia-70m", f"data={tmp_path / 'text.txt'}", "penalty=ortho").runs
    config = canonical(planned.run)
    assert str(tmp_path) not in json.dumps(config) and "tau" not in config["penalty"]
    assert short_hash(config) == planned.run_id


def test_equal_points_are_one_run():
    made = plan("model=synthetic", "penalty=none,ortho", "lambda2_max=0.1,0.5")
    assert [len(p.equals) for p in made.runs] == [1, 0, 0]
    assert [p.title for p in made.runs] == [
        "penalty=none",
        "penalty=ortho lambda2_max=0.1",
        "penalty=ortho lambda2_max=0.5",
    ]


MISTAKES = {
    ("penalty=none", "lambda2_max=0.5"): r"lambda2_max=0.5: no run .*penalty=ortho.* do",
    ("penalty=none", "schedule=power"): r"schedule=power: no run .*penalty=none has no weight",
    ("penalty=none", "decay_power=1"): r"decay_power=1: no run",
    ("penalty=ortho", "penalty.tau=0.2"): r"penalty.tau=0.2: no run .*sigmoid",
    ("target_l0=5",): r"target_l0=5: no run",
    ("layer=3",): r"layer=3: no run .*synthetic has no layers",
    ("data=wikitext",): r"data=wikitext: no run .*synthetic",
    ("architecture.aux_weight=0", "architecture.k_aux=3"): r"architecture.k_aux=3: no run",
    ("train.window=8",): r"train.window=8: no run",
    ("penalty=ortho", "penalty.lambda2_max=0.3", "lambda2_max=0.2"): r"lambda2_max=0.2: no run",
    ("k=1000", "d_sae=512"): r"k=1000: is larger than d_sae=512",
    ("k=0",): r"k=0: must be at least 1",
    ("k_start=0",): r"k_start=0",
    ("num_tokens=0",): r"num_tokens=0: must be above 0",
    ("num_tokens=-5",): r"num_tokens=-5",
    ("num_tokens=100",): r"num_tokens=100: less than one batch",
    ("batch_size=0",): r"batch_size=0",
    ("seed=-1",): r"seed=-1",
    ("lr=0",): r"lr=0.0: must be above 0",
    ("lr_schedule.warmup=-1",): r"lr_schedule.warmup=-1",
    ("architecture=standard", "l1_penalty=-1"): r"l1_penalty=-1",
    ("penalty=ortho", "lambda2_max=-1"): r"lambda2_max=-1",
    ("penalty=ortho", "lambda2_max=0"): r"weight is 0 at every step.*penalty=none",
    ("penalty=ortho", "base_threshold=1.0", "penalty.threshold=constant"): r"can never act.*base_threshold=1",
    ("penalty=ortho", "penalty.competition=hard"): r"penalty.competition=hard: must be one of linear, sigmoid",
    ("train.recon=abs",): r"train.recon=abs: must be one of squared, norm",
    ("train.precision=fp8",): r"train.precision=fp8",
    ("train.clip=abc",): r"train.clip=abc: must be a number",
    ("architecture.k_aux=abc",): r"architecture.k_aux=abc: must be a whole number",
    ("train.normalize_activations=7up",): r"train.normalize_activations=7up: must be true or false",
    ("activations.mode=tape",): r"activations.mode=tape",
    ("activations.dtype=int8",): r"activations.dtype=int8",
    ("activations.mode=stream", "activations.buffer_tokens=0"): r"activations.buffer_tokens=0",
    ("activations.harvest_batch=0",): r"activations.harvest_batch=0",
    ("data.train_on=some",): r"data.train_on=some",
    ("eval.recon_batches=0",): r"eval.recon_batches=0",
    ("activations.mode=stream", "activations.buffer_tokens=10"): r"activations.buffer_tokens=10",
    ("activations.buffer_tokens=4096",): r"activations.buffer_tokens=4096: no run .*stream",
    ("eval=none", "eval.batch_size=2"): r"eval.batch_size=2: no run",
    ("logger.mode=online",): r"logger.mode=online: no run .*logger=none",
    ("model.revision=main",): r"model.revision=main: no run",
    ("device=tpu",): r"device=tpu: must be one of auto, cpu, cuda",
    ("device=cuda:one",): r"device=cuda:one: must be",
    ("data.held_out=2",): r"data.held_out=2",
    ("model.d_in=0",): r"model.d_in=0",
    ("lr=1e400",): r"lr=inf: must be a finite number",
    ("train.beta2=nan",): r"train.beta2=nan: must be a finite number",
    ("eval.ablation.probe_lr=inf",): r"eval.ablation.probe_lr=inf: must be a finite number",
    ("eval.unlearning.retain_thresholds=[0.1,nan]",): r"eval.unlearning.retain_thresholds=nan: must be a finite",
    ("eval.probing.k_values=1",): r"eval.probing.k_values=1: must be a list of whole numbers, as in \[1,2\]",
    ("eval.probing.k_values=[1,a]",): r"eval.probing.k_values\[1\]=a: must be a whole number",
    ("eval.probing.datasets={}",): r"eval.probing.datasets=\{\}: must be a list of words",
    ("eval.probing=3",): r"eval.probing=3: has the wrong type",
    ("model.revision=[]",): r"model.revision=\[\]: must be a word",
    ("tags=[a,[b]]",): r"tags\[1\]=\['b'\]: must be a word",
}  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"), MISTAKES.items(), ids=lambda v: " ".join(v) if isinstance(v, tuple) else ""
)
def test_a_mistake_is_one_sentence_with_key_value_and_mend(words, message):
    with pytest.raises(ConfigError, match=message) as caught:
        plan("model=synthetic", *words)
    assert "\n" not in str(caught.value)


def test_tf32_would_reach_the_language_model_that_a_stream_runs_beside_the_steps():
    with pytest.raises(ConfigError, match="train.matmul=tf32: a stream's activations .* give activations.mode=memory"):
        plan("train.matmul=tf32", "activations.mode=stream")
    plan("model=synthetic", "train.matmul=tf32", "activations.mode=stream")


def test_layer_beyond_the_model_is_named():
    with pytest.raises(ConfigError, match=r"layer=6: pythia-70m has 6 layers, numbered 0 to 5"):
        plan("model=pythia-70m", "layer=6", "data=wikitext")


def test_missing_and_empty_text_are_named(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match="empty.txt: is empty"):
        plan("model=pythia-70m", f"data={tmp_path / 'empty.txt'}")
    with pytest.raises(ConfigError, match="missing.txt: no such file"):
        plan("model=pythia-70m", f"data={tmp_path / 'missing.txt'}")


def test_unequal_budgets_are_warned_of_and_what_is_varied_is_exempt_but_tokens():
    assert plan("model=synthetic", "k=8,16").warnings == []
    assert "num_tokens" in plan("model=synthetic", "num_tokens=10240,20480").warnings[0]
    assert any("total_steps" in w for w in plan("model=synthetic", "batch_size=512,1024").warnings)


def test_runs_that_keep_a_records_budget_are_one_warning():
    both = plan("model=synthetic", "num_tokens=10240,20480", "tags=[as_recorded]")
    assert both.warnings[:1] == [
        "the runs tagged as_recorded keep the budgets of their record: num_tokens 10240, 20480; total_steps 10, 20"
    ]
    assert not any("the runs differ" in warning for warning in both.warnings)


def test_a_learning_rate_that_never_peaks_is_warned_of():
    warnings = plan("model=synthetic", "lr_schedule.warmup=1000").warnings
    assert len(warnings) == 1 and "never at lr=0.001" in warnings[0]


def test_dry_run_prints_steps_lr_weights_and_keys():
    text = describe(plan("model=synthetic", "penalty=ortho", "lambda2_max=0.1,0.5"))
    for part in ("400 x 1,024", "lr peak 0.001", "0.5, 0.125, 3.125e-06", "base_threshold=0.3", "GB"):
        assert part in text
    assert "tau" not in text


@pytest.mark.parametrize("title", ["a/b\\c", "..", "", "x" * 500, "<script>alert(1)</script>", "a\nb", "k=1 λ=2"])
def test_names_of_links_are_safe(title):
    name = safe_name(title)
    assert 0 < len(name) <= 80 and not set(name) & set("/\\\n<>\0") and name.strip(".")


def test_evaluations_are_checked_and_their_unused_keys_refused():
    full = one("model=builtin", "eval=full").run.eval
    assert full.recon_batches == 200 and "tpp" in full.evaluations and full.probing.k_values == [1, 2, 5, 10, 20, 50]
    assert one(
        "model=builtin", "eval.evaluations=[core,tpp]", "eval.ablation.n_values=[3]"
    ).run.eval.ablation.n_values == [3]
    mistakes = {
        ("eval.evaluations=[core,foo]",): "eval.evaluations=foo: must be one of core",
        ("eval.ablation.n_values=[3]",): "eval.evaluations has none of tpp, scr",
        ("eval=full", "eval.hierarchy.folds=1"): "eval.hierarchy.folds=1: must be at least 2",
        ("eval=full", "eval.probing.k_values=[]"): "give numbers above 0",
        ("eval=full", "eval.probing.train_rows=many"): "eval.probing.train_rows",
        ("model=synthetic", "eval.seed=3"): "no run of this command uses it",
        ("model=synthetic", "model.n_correlated=300"): "model.n_correlated=300 and model.n_hierarchical=64 exceed",
        ("model=synthetic", "model.l0=240"): "model.l0=240.0: must lie between 0 and 232",
        ("data.path=a.jsonl",): "has none); a file or folder is data=a.jsonl, a name of the hub data=hub data.path",
    }
    for words, message in mistakes.items():
        with pytest.raises((ConfigError, OmegaConfBaseException), match=re.escape(message)):
            plan("model=builtin", *words)
    (warning,) = [w for w in plan("model=synthetic", "eval=full").warnings if "language model" in w]
    assert "sparse_probing" in warning
