import re
from types import SimpleNamespace

import pytest
from composing import plan
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException

from sae_sweeps.cli.command import main
from sae_sweeps.cli.compose import compose_points, register
from sae_sweeps.config.mistakes import sentence
from sae_sweeps.config.paths import config_dir
from sae_sweeps.config.words import rewrite
from sae_sweeps.errors import ConfigError


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["layer=12"], ["layer.index=12"]),
        (["layer=0,1,2"], ["layer.index=0,1,2"]),
        (["layer=range(0,4)"], ["layer.index=range(0,4)"]),
        (["layer=mlp_out"], ["layer=mlp_out"]),
        (["--dry-run", "-m", "k=1,2"], ["-m", "dry_run=true", "k=1,2"]),
        (["model=builtin,pythia-70m"], ["model=builtin,pythia-70m"]),
    ],
)
def test_words_that_hydra_cannot_read_are_rewritten(words, expected):
    assert rewrite(words) == expected


def test_paths_become_choices_that_can_stand_beside_others(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "my model").mkdir(parents=True)
    (word,) = rewrite([f"model=builtin,{tmp_path / 'one' / 'my model'},{tmp_path / 'two' / 'my model'}"])
    assert word == "model=builtin,my_model,my_model_"
    node = ConfigStore.instance().repo["model"]["my_model_.yaml"].node
    assert node.path == str(tmp_path / "two" / "my model") and list(node.defaults) == ["local", "_self_"]


@pytest.mark.parametrize("name", ["naïve 日本.txt", "notes, v2.txt", "it's.txt", "日本"])
def test_a_path_may_hold_any_letters_and_commas(name, tmp_path):
    path, plain = tmp_path / name, tmp_path / "plain.txt"
    if not path.suffix:
        path.mkdir()
        path = path / "a.txt"
    for file in (path, plain):
        file.write_text("some words")
    quote = '"' if "'" in name else "'"
    (alone,), (quoted,), (swept,) = (
        rewrite([f"data={value}"]) for value in (path, f"{quote}{path}{quote}", f"{quote}{path}{quote},{plain}")
    )
    assert re.fullmatch(r"data=[A-Za-z0-9_]+", alone)
    assert quoted == alone and re.fullmatch(rf"{alone},plain_txt_*", swept)


@pytest.mark.parametrize(
    "words, titles",
    [
        (["title=Größe"], ["Größe"]),
        (["title='Größe, 漢字'"], ["Größe, 漢字"]),
        (["-m", "title=Größe,漢'字,plain"], ["Größe", "漢'字", "plain"]),
    ],
)
def test_any_letters_in_any_value(words, titles):
    assert [point.cfg.title for point in compose_points(words)] == titles


def test_home_in_a_value(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for word in ("outputs=~/sae out", "outputs='~/sae out'"):
        (point,) = compose_points([word])
        assert point.cfg.outputs == f"{tmp_path}/sae out"
    with pytest.raises(ConfigError, match="outputs=~nobodyhere/x: this home folder is not known"):
        compose_points(["outputs=~nobodyhere/x"])


@pytest.mark.parametrize(("ending", "kind"), [("txt", "text"), ("jsonl", "jsonl"), ("parquet", "parquet")])
@pytest.mark.parametrize("folder", [False, True])
def test_the_ending_of_data_gives_its_kind(ending, kind, folder, tmp_path):
    path = tmp_path / f"{kind}{folder}" / f"some.{ending}"
    path.parent.mkdir()
    path.touch()
    target = path.parent if folder else path
    (word,) = rewrite([f"data={target}"])
    assert ConfigStore.instance().repo["data"][word.removeprefix("data=") + ".yaml"].node.defaults[0] == kind


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("k=", "k=: the value is empty"),
        ("+penalty.extra=1", r"\+penalty.extra=1: keys cannot be added"),
        ("~penalty", "cannot be added or removed"),
        ("model=./nowhere", "model=./nowhere: no such file or folder"),
        ("model=some-org/some-model", "model=hub model.path=some-org/some-model"),
        ("data=notes.txt", "data=notes.txt: no such file"),
        ("layer=[]", r"layer=\[\]: layer takes one choice, a whole number, a hook or one of attn_out, mlp_out"),
        ("layer=1.5", "layer=1.5: layer takes one choice, a whole number, a hook or one of attn_out"),
        ("layer=1e3", "layer=1e3: layer takes one choice"),
        ("penalty=none,2", "penalty takes one choice, of adaptive_sharing"),
        ("eval=TRUE", "eval takes one choice, of core, features, full, none, quick"),
        ("penalty=[ortho,contrastive]", "penalty takes one choice, of adaptive_sharing"),
        ("experiment=null", "experiment takes one choice, of adaptive_sharing"),
        ("schedule={}", "schedule takes one choice"),
        ("hydra/sweeper=null", "hydra/sweeper=null: hydra/sweeper takes one choice."),
    ],
)
def test_words_that_would_be_misread_are_refused(word, message):
    with pytest.raises(ConfigError, match=message):
        rewrite([word])


def test_a_folder_of_several_formats_has_to_be_named(tmp_path):
    (tmp_path / "a.txt").touch()
    (tmp_path / "b.jsonl").touch()
    with pytest.raises(ConfigError, match="several formats"):
        rewrite([f"data={tmp_path}"])


def test_an_unforeseen_error_is_still_one_line():
    assert "\n" not in sentence(ValueError("a\nb"))
    assert sentence(ConfigError("k=a\nb: must  be")) == "k=a b: must  be"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-m", "penalty=ortho,ortsae", "penalty.tau=0.2"], ["-m", "penalty=ortho,ortsae", "penalty.tau=choice(0.2)"]),
        (["-m", "penalty=ortho", "penalty.tau=0.2"], ["-m", "penalty=ortho", "penalty.tau=0.2"]),
        (["-m", "penalty=a,b", "schedule.values=[0,1]"], ["-m", "penalty=a,b", "schedule.values=choice([0,1])"]),
        (["-m", "penalty=a,b", "penalty.tau=1,2", "k=3"], ["-m", "penalty=a,b", "penalty.tau=1,2", "k=3"]),
    ],
)
def test_a_key_of_a_swept_group_waits_for_its_choice(words, expected):
    assert rewrite(words) == expected


def test_a_key_that_variants_choose_is_refused():
    with pytest.raises(ConfigError, match="penalty.reduction=mean: the variants of experiment=decorrelation choose"):
        rewrite(["experiment=decorrelation", "penalty.reduction=mean"])
    assert rewrite(["experiment=demo", "penalty.tau=0.2"]) == ["experiment=demo", "penalty.tau=0.2"]


@pytest.mark.parametrize(
    "word, message",
    [
        ("report=maybe", "report=maybe: must be true or false."),
        ("num_tokens=abc", "num_tokens=abc: must be a whole number."),
        ("tags=3", "tags=3: must be a list, as in tags=[3]."),
        ("tags=null", "tags=null: must be a list of words, as in [a,b]."),
        ("title=[1]", "title=[1]: must be a word."),
        ("num_tokens=null", "num_tokens=null: must be a whole number."),
        ("num_tokens='a\nb'", "num_tokens='a b': must be a whole number."),
        ("arms=3", "arms: they belong in a file of conf/experiment, as those of the studies do."),
        ("arms={a: 3}", "arms: they belong in a file of conf/experiment, as those of the studies do."),
        ("variants=3", "variants: they belong in a file of conf/experiment, as those of the studies do."),
        ("study=3", "study: they belong in a file of conf/experiment, as those of the studies do."),
        ("hydra/launcher=abc", "hydra/launcher=abc: no such choice; --info searchpath lists where Hydra looks."),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_what_it_must_be(word, message):
    register()
    with initialize_config_dir(str(config_dir()), version_base="1.3"), pytest.raises(HydraException) as caught:
        compose("config", overrides=[word])
    assert sentence(caught.value) == message


def test_a_value_of_the_wrong_type_in_a_file_is_named_too(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nnum_tokens: abc\n")
    register()
    words = [f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"]
    with initialize_config_dir(str(config_dir()), version_base="1.3"), pytest.raises(HydraException) as caught:
        compose("config", overrides=words)
    assert sentence(caught.value) == "num_tokens=abc: must be a whole number."


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=choice(1,2)"], "model=choice(1,2): model takes names; give some of builtin, "),
        (["penalty=range(0,3)"], "penalty=range(0,3): penalty takes names; give some of adaptive_sharing, "),
        (["k=choice(choice(1,2),3)"], "k=choice(choice(1,2),3): holds a sweep inside a sweep; "),
        (["k=range(0)"], "k=range(0): gives no value; write some, as in k=A,B."),
        (["k=glob(*)"], "k=glob(*): gives no value; "),
        (["k=range(0,3,0)"], "k=range(0,3,0): range() arg 3 must not be zero; write range(START,STOP,STEP)."),
        (["k=range(1,1000000000000)"], "with it the command has more than 100,000 runs; give fewer values."),
        (["k=range(1,400)", "seed=range(0,400)"], "seed=range(0,400): with it the command has more than 100,000 runs"),
        (["lr=interval(0.1,0.2)"], "lr=interval(0.1,0.2): names no values; write them, or add hydra/sweeper=optuna"),
    ],
)
def test_a_sweep_that_names_no_runs_is_refused(words, message):
    with pytest.raises(ConfigError) as caught:
        compose_points(["-m", "model=synthetic", *words])
    assert message in str(caught.value)


def test_sweeps_in_hydras_words_name_the_runs_that_they_name():
    words = ["-m", "penalty=ortho", "schedule=glob(co*)", "k=sort(4,2)", "seed=range(0,3)"]
    points = [point.cfg for point in compose_points(["model=synthetic", *words])]
    found = [(cfg.schedule.name, cfg.architecture.k, cfg.seed) for cfg in points]
    assert found == [(name, k, seed) for name in ("constant", "cosine") for k in (2, 4) for seed in (0, 1, 2)]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("seed=${seed}", "seed: the interpolation leads back to itself; write a value, or ${KEY} with a key "),
        ("seed=${nothing}", "seed: Interpolation key 'nothing' not found; write a value, or ${KEY} with a key "),
        ("seed=${of:3}", "seed: Unsupported interpolation type of; write a value, or ${KEY} with a key "),
        ("k=${oc.env:NOT_HERE}", "Environment variable 'NOT_HERE' not found"),
    ],
)
def test_an_interpolation_that_does_not_resolve_is_named(word, message):
    with pytest.raises((ValueError, ConfigError)) as caught:
        plan("model=synthetic", word)
    assert message in sentence(caught.value) and sentence(caught.value).endswith(".")


def test_a_path_with_a_comma_is_one_value_and_a_reference_in_a_name_is_refused(tmp_path):
    path = tmp_path / "a,b.jsonl"
    path.write_text('{"text": "a"}')
    assert rewrite([f"data.path={path}"]) == [f"data.path='{path}'"]
    with pytest.raises(ConfigError, match="several values make a sweep; add -m, or quote a name that holds a comma"):
        compose_points(["data=jsonl", "data.path=a,c.jsonl"], single=True)
    for word in ("data=t/${x}.jsonl", "model.path=${x}", "data.forget=${x}.txt"):
        with pytest.raises(ConfigError, match="give the file another name, or link to it"):
            rewrite([word])


def test_titles_of_texts_in_other_scripts_are_their_names(tmp_path):
    for name in ("日本.jsonl", "中国.jsonl"):
        (tmp_path / name).write_text('{"text": "a"}')
    made = plan("-m", f"data={tmp_path / '日本.jsonl'},{tmp_path / '中国.jsonl'}", "k=4")
    assert [planned.title for planned in made.runs] in (["data=日本.jsonl"] * 2, ["data=日本.jsonl", "data=中国.jsonl"])


@pytest.mark.parametrize(
    ("word", "mend"),
    [("max_norm=10", "data.max_norm"), ("tau=1", "penalty.tau"), ("trainin_tokens=1", "training_tokens")],
)
def test_an_unknown_key_is_looked_for_in_the_groups_first(word, mend):
    with pytest.raises(Exception) as caught:
        compose_points([word])
    assert sentence(caught.value).endswith(f"no such key; did you mean {mend}?")


def test_plain_text_has_no_columns(tmp_path):
    (tmp_path / "a.txt").write_text("words")
    with pytest.raises(ConfigError, match="rows of .jsonl, .json and .parquet have columns"):
        plan(f"data={tmp_path / 'a.txt'}", "data.label_field=x")


@pytest.mark.parametrize("words", [["--config-name=config"], ["-m", "--config-name=config"]])
def test_a_launch_that_hydra_started_ends_as_it_did_and_not_as_an_earlier_one(words, monkeypatch, capsys):
    def fails(points):
        raise ValueError("of the launch")

    def ends(status):
        return lambda points: SimpleNamespace(status=status, values=[None])

    statuses = []
    for launch in (fails, ends(1), ends(0)):
        monkeypatch.setattr("sae_sweeps.cli.launch.launch", launch)
        try:
            statuses.append(main([*words, "model=synthetic", "k=4"]))
        except ValueError as error:
            statuses.append(str(error))
    assert statuses == ["of the launch", 1, 0]
    assert main(["--resolve", "model=synthetic"]) == 2 and "--resolve flag can only be used" in capsys.readouterr().err
