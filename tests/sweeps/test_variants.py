import pytest
from commands import run, run_folders
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sae_sweeps.cli.compose import register
from sae_sweeps.config.paths import config_dir
from sae_sweeps.errors import ConfigError
from sae_sweeps.sweeps.plan import make_plan
from sae_sweeps.sweeps.variants import choices_of, points_of

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


@pytest.mark.slow
def test_an_experiment_runs_every_variant(tmp_path):
    small = ["model=synthetic", "num_tokens=4096", "d_sae=128", "k=8", "eval=none"]
    out = run("-m", "experiment=demo", *small, f"outputs={tmp_path}").stdout
    assert len(run_folders(tmp_path)) == 3 and "lambda2_max=0.5" in out
    assert "report" not in out and not list(tmp_path.glob("sweeps/*/report.html")), "report=false"
