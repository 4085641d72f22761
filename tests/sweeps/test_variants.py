import pytest
from commands import run, run_folders
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sae_sweeps.cli.compose import register
from sae_sweeps.cli.main import main
from sae_sweeps.config.paths import config_dir
from sae_sweeps.config.words import rewrite
from sae_sweeps.errors import ConfigError
from sae_sweeps.sweeps.plan import make_plan
from sae_sweeps.sweeps.variants import Variant, choices_of, chosen, points_of

VARIANTS = {
    "TopK": "penalty=none",
    "progressive": "penalty=ortho lambda2_max=0.1,0.5",
    "slow": "penalty=ortho schedule.decay_power=0.5 tags=[slow,extra]",
}


def plan_of(variants, *overrides, key="arms"):
    """The plan of one command's point with these variants."""
    register()

    def composed(words):
        cfg = compose("config", overrides=["model=synthetic", *words])
        OmegaConf.set_struct(cfg, False)
        cfg[key] = variants
        return cfg

    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return make_plan(points_of(list(overrides), composed))


@pytest.mark.parametrize("key", ["variants", "arms"])
def test_a_variant_is_a_sweep_of_its_own_under_its_name(key):
    plan = plan_of(VARIANTS, key=key)
    assert [planned.title for planned in plan.runs] == [
        "TopK",
        "progressive lambda2_max=0.1",
        "progressive lambda2_max=0.5",
        "slow",
    ]
    assert [planned.run.penalty.name for planned in plan.runs] == ["none", "ortho", "ortho", "ortho"]
    assert plan.runs[3].run.tags == ["slow", "extra"] and plan.runs[3].run.schedule.decay_power == 0.5


def test_the_command_line_wins_over_the_variants():
    plan = plan_of(VARIANTS, "lambda2_max=0.7")
    assert [planned.title for planned in plan.runs] == ["TopK", "progressive", "slow"]
    assert [planned.run.penalty.lambda2_max for planned in plan.runs[1:]] == [0.7, 0.7]


def test_both_names_of_the_key_are_a_mistake():
    cfg = OmegaConf.create({"arms": {"a": "k=4"}, "variants": {"b": "k=8"}})
    with pytest.raises(ConfigError, match="arms: an older name of .variants."):
        points_of([], lambda words: cfg)


def test_equal_variants_are_one_run_and_named():
    plan = plan_of({"a": "penalty=none", "b": "penalty=none seed=0"})
    assert [(planned.title, len(planned.equals)) for planned in plan.runs] == [("a", 1)]


def test_a_key_that_no_variant_uses_is_refused():
    with pytest.raises(ConfigError, match="lambda2_max=0.5: no run of this command uses it"):
        plan_of({"TopK": "penalty=none"}, "lambda2_max=0.5")


@pytest.mark.parametrize("word", ["penalty", "+penalty=none", "k="])
def test_a_word_that_is_none_is_named(word):
    with pytest.raises(ConfigError, match="penalty|k="):
        choices_of("mine", word)


PINNED = {"TopK": "penalty=none", "Run 1": {"words": "penalty=none k=4 lr=2e-4,3e-4", "name": "small"}}


def test_a_mapping_pins_its_words_and_the_plan_names_what_it_refuses():
    plan = plan_of(PINNED, "k=16", "lr=0.1")
    assert [(p.title, p.run.architecture.k, p.run.lr_schedule.lr) for p in plan.runs] == [
        ("TopK", 16, 0.1),
        ("Run 1: small lr=0.0002", 4, 0.0002),
        ("Run 1: small lr=0.0003", 4, 0.0003),
    ]
    assert plan.notes == [
        "k=16 does not reach every variant: k=4 stays in Run 1",
        "lr=0.1 does not reach every variant: lr=0.0002,0.0003 stays in Run 1",
    ]
    assert plan.runs[1].pinned == ["penalty=none", "k=4", "lr=0.0002"] and plan.runs[0].pinned == []


@pytest.mark.parametrize("word", ["schedule=cosine", "group_layer=groups", "lr_schedule.decay=0.1"])
def test_a_pinned_choice_takes_its_group_along(word):
    variants = {"open": "penalty=ortho", "Run 1": {"words": "penalty=ortho lr_schedule=linear"}}
    opened, pinned = plan_of(variants, word).runs
    alone = plan_of(variants).runs
    assert pinned.run_id == alone[0].run_id != opened.run_id


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            {"wrods": "k=4"},
            "variants.a.wrods: no such key; a variant has words, recorded, planned, own, name, descript",
        ),
        ({"words": {"k": 4}}, "variants.a.words: must be text"),
        ({"recorded": "k=4", "planned": "k=5"}, "variants.a: has recorded and planned; give one."),
        ({"words": "k"}, "variants.a: `k` is not a word of the form key=value."),
    ],
)
def test_a_mistake_in_a_mapping_is_one_sentence(node, message):
    with pytest.raises(ConfigError, match=message):
        plan_of({"a": node})


def test_the_last_word_of_a_key_holds_and_groups_keys_have_their_top_level_name():
    assert choices_of("a", "lr=1 lr_schedule.lr=2 layer=3") == {
        "lr": ["lr_schedule.lr=2"],
        "layer.index": ["layer.index=3"],
    }


@pytest.mark.parametrize(
    ("only", "titles"),
    [
        ("TopK", ["TopK"]),
        ("topk*", ["TopK", "TopK, k grows"]),
        ("Run 1", ["Run 1, scaled: alpha 0.5, lambda2 0.1"]),
        ("run 1, scaled", ["Run 1, scaled: alpha 0.5, lambda2 0.1"]),
        ("Run 1, scaled: alpha 0.5, lambda2 0.1", ["Run 1, scaled: alpha 0.5, lambda2 0.1"]),
        (" Run 10 | TopK ", ["TopK", "Run 10, planned"]),
        ("~Run *", ["TopK", "TopK, k grows"]),
        ("Run *|~Run 10", ["Run 1, scaled: alpha 0.5, lambda2 0.1"]),
    ],
)
def test_variants_are_chosen_by_their_titles(only, titles):
    variants = ["TopK", "TopK, k grows", "Run 1, scaled: alpha 0.5, lambda2 0.1", "Run 10, planned"]
    assert [variant.title for variant in chosen([Variant(title, {}) for title in variants], only)] == titles


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ("Run 2", "only=Run 2: no variant's title matches Run 2; they are TopK; Run 1."),
        ("TopK|Run 2", "no variant's title matches Run 2"),
        ("~*", "only=~*: leaves no variant; they are TopK; Run 1."),
        (" | ", "has no pattern"),
    ],
)
def test_a_choice_of_nothing_is_a_mistake(only, message):
    with pytest.raises(ConfigError) as caught:
        chosen([Variant("TopK", {}), Variant("Run 1", {})], only)
    assert message in str(caught.value)


def test_only_is_a_word_of_experiments_with_variants():
    assert rewrite(["only=Run *|TopK, k grows"]) == ["only='Run *|TopK, k grows'"]
    assert rewrite(["only='a'"]) == ["only='a'"]
    with pytest.raises(ConfigError, match="only=a: chooses variants of an experiment, and this command has none."):
        plan_of({}, "only='a'")


@pytest.mark.slow
def test_an_experiment_runs_every_variant(tmp_path):
    small = ["model=synthetic", "num_tokens=4096", "d_sae=128", "k=8", "eval=none"]
    out = run("-m", "experiment=demo", *small, f"outputs={tmp_path}").stdout
    assert len(run_folders(tmp_path)) == 3 and "lambda2_max=0.5" in out
    assert "report" not in out and not list(tmp_path.glob("sweeps/*/report.html")), "report=false"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("variants: []", "experiment=mine: its file has a list where indented lines of NAME: WORDS belong"),
        ("variants: penalty=none", "experiment=mine: its file's variants must be indented lines of NAME: WORDS."),
        ("study: builtin", "experiment=mine: its file's study must be indented lines of NAME: WORDS."),
        ("variants: {x y: 'k=${share:a,b}'}", "variants.x y: "),
        ("variants: {x: 'k=${shared.nope}'}", "variants.x: Interpolation key 'shared.nope' not found; mend the file"),
        ("variants: {x: 'k=a( penalty=none'}", "variants.x: `k=a(` cannot be read as key=value"),
        ("variants:\n  x: k='8", "variants.x: `k='8` has a quotation mark without its second one"),
        ("variants: {x: 'k='8'}", "while parsing a flow mapping"),
        (None, "experiment=mine: its file lacks `# @package _global_`; write that as the first line."),
    ],
)
def test_a_mistake_in_a_file_of_variants_is_one_sentence(tmp_path, monkeypatch, capsys, text, message):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    file = tmp_path / "conf" / "experiment" / "mine.yaml"
    file.write_text("variants: {x: k=4}" if text is None else f"# @package _global_\n{text}\n")
    monkeypatch.chdir(tmp_path)
    assert main(["launch", "experiment=mine", "model=synthetic", "--dry-run"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {message}") and printed.count("\n") == 1
