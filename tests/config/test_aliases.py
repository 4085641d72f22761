"""Names of keys in other libraries: accepted in words, never in a config."""

import pytest
from composing import one, plan

from sae_sweeps.cli.compose import compose_points
from sae_sweeps.config.aliases import ALIASES, canonical_words
from sae_sweeps.config.mistakes import all_keys, unknown_key
from sae_sweeps.errors import ConfigError
from sae_sweeps.sweeps.plan import make_plan


def test_every_alias_is_of_a_key_and_none_is_a_key():
    keys = set(all_keys())
    assert set(ALIASES.values()) <= keys and not ALIASES.keys() & keys


def test_words_have_the_canonical_name_of_each_key():
    words = ["-m", "--dry-run", "training_tokens=1000,2000", "max_grad_norm=0.5", "context_size=64", "k=3"]
    ours = ["-m", "--dry-run", "num_tokens=1000,2000", "train.clip=0.5", "data.context=64", "k=3"]
    assert canonical_words(words) == ours


@pytest.mark.parametrize("words", [["training_tokens=5", "num_tokens=5"], ["ctx_len=64", "context_size=64"]])
def test_two_names_of_one_key_are_a_mistake(words):
    ours = ALIASES[words[0].partition("=")[0]]
    first = words[0].partition("=")[0]
    with pytest.raises(ConfigError, match=rf"^{words[1]}: the same key as {first}; give {ours} once\.$"):
        compose_points(words)


def test_a_run_is_the_same_by_either_name():
    aliased = one("training_tokens=20480", "auxk_alpha=0.1", "lr_warm_up_steps=3", "title=''")
    named = one("num_tokens=20480", "architecture.aux_weight=0.1", "lr_schedule.warmup=3", "title=''")
    assert aliased.run_id == named.run_id and aliased.run.to_dict() == named.run.to_dict()


def test_titles_of_a_sweep_have_the_canonical_names():
    runs = plan("model=synthetic", "train_batch_size_tokens=512,1024", "num_tokens=20480").runs
    assert [planned.title for planned in runs] == ["batch_size=512", "batch_size=1024"]


@pytest.mark.parametrize("key", ["variants", "arms"])
def test_variants_take_aliases_and_a_word_of_the_command_wins_by_either_name(key, tmp_path):
    (tmp_path / "experiment").mkdir()
    file = tmp_path / "experiment" / f"mine_{key}.yaml"
    file.write_text(f"# @package _global_\n{key}:\n  small: penalty=none dict_size=64,128\n")
    words = ["model=synthetic", f"hydra.searchpath=[file://{tmp_path}]", f"experiment={file.stem}"]
    assert [planned.title for planned in make_plan(compose_points(words)).runs] == [
        "small d_sae=64",
        "small d_sae=128",
    ]
    (run,) = make_plan(compose_points([*words, "num_latents=96"])).runs
    assert run.run.architecture.d_sae == 96


def test_variants_and_arms_together_are_a_mistake(tmp_path):
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\nvariants:\n  a: penalty=none\narms:\n  b: penalty=none\n"
    (tmp_path / "experiment" / "both.yaml").write_text(text)
    with pytest.raises(ConfigError, match="arms: an older name of `variants`, which the experiment has too"):
        compose_points(["model=synthetic", f"hydra.searchpath=[file://{tmp_path}]", "experiment=both"])


def test_a_misspelt_alias_is_recognised():
    assert unknown_key("trainin_tokens", "") == "trainin_tokens: no such key; did you mean training_tokens?"
