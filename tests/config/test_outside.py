"""Components from outside: where they are looked for, how they are part of a run, and what is refused."""

import shutil
import sys
from pathlib import Path

import pytest
from composing import plan

from sae_sweeps.config import plugins
from sae_sweeps.config.identity import canonical
from sae_sweeps.config.paths import config_dir
from sae_sweeps.errors import ConfigError, UserError
from sae_sweeps.storage.files import read_json
from sae_sweeps.sweeps.sweep import restored

EXAMPLES = Path(__file__).parents[2] / "examples" / "own_components"
SMALL = ("model=synthetic", "num_tokens=65536", "d_sae=64")


@pytest.fixture
def mine(tmp_path):
    """A copy of the examples, away from the checkout."""
    return Path(shutil.copytree(EXAMPLES, tmp_path / "mine folder"))


@pytest.fixture(autouse=True)
def no_folders_afterwards():
    yield
    plugins.set_search_path([])


def searched(folder):
    return f"hydra.searchpath=['file://{folder}']"


def planned(folder, *words):
    return plan(searched(folder), *SMALL, *words).runs


def test_a_folder_gives_a_penalty_with_the_defaults_of_its_dataclass(mine):
    (run,) = [p.run for p in planned(mine, "penalty=alignment", "penalty.lambda2_max=3")]
    assert run.penalty.lambda2_max == 3 and type(run.penalty).__name__ == "AlignmentConfig"
    node = run.to_dict()["penalty"]
    assert node["_target_"] == "alignment.Alignment" and node["_file_"] == str(mine / "penalty" / "alignment.py")
    assert run.component("penalty", run.penalty).component.__name__ == "Alignment"


def test_a_key_at_the_top_level_reaches_it(mine):
    one, other = planned(mine, "-m", "penalty=alignment", "lambda2_max=1,2")
    assert (one.run.penalty.lambda2_max, other.run.penalty.lambda2_max) == (1, 2)
    assert one.title == "lambda2_max=1" and other.title == "lambda2_max=2"


def test_in_a_sum_each_has_its_own_keys_and_schedule(mine):
    words = ("penalty=alignment+ortho", "penalty.alignment.schedule=sawtooth", "penalty.alignment.schedule.teeth=2")
    (run,) = [p.run for p in planned(mine, *words)]
    terms = {term.name: term for term in run.penalty_terms()}
    assert terms["alignment"].schedule.teeth == 2 and terms["ortho"].schedule.name == "power"
    assert set(run.code) == {"penalty.alignment", "penalty.alignment.schedule"}


def test_its_content_is_part_of_the_run_id_and_its_place_is_not(mine, tmp_path):
    (before,) = planned(mine, "penalty=alignment")
    elsewhere = Path(shutil.copytree(mine, tmp_path / "elsewhere"))
    (moved,) = planned(elsewhere, "penalty=alignment")
    assert moved.run_id == before.run_id
    file = elsewhere / "penalty" / "alignment.py"
    file.write_text(file.read_text().replace("1 - cos_F", "2 - cos_F"))
    (changed,) = planned(elsewhere, "penalty=alignment")
    assert changed.run_id != before.run_id
    assert "_file_" not in canonical(before.run)["penalty"]


def test_the_command_names_a_yaml_or_a_class(mine):
    (by_folder,) = planned(mine, "penalty=alignment")
    (by_file,) = plan(*SMALL, f"penalty={mine / 'penalty' / 'alignment.yaml'}").runs
    (by_class,) = planned(mine, "penalty._target_=alignment.Alignment")
    assert by_folder.run_id == by_file.run_id == by_class.run_id


def test_the_working_folder_and_installed_packages_are_searched(mine, tmp_path, monkeypatch):
    (expected,) = planned(mine, "penalty=alignment")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(mine, tmp_path / "conf")
    (here,) = plan(*SMALL, "penalty=alignment").runs
    assert here.run_id == expected.run_id
    shutil.rmtree(tmp_path / "conf")
    package = tmp_path / "site" / "their_package"
    (package / "conf" / "penalty").mkdir(parents=True)
    (package / "__init__.py").touch()
    shutil.copy(mine / "penalty" / "alignment.py", package / "theirs.py")
    (package / "conf" / "penalty" / "theirs.yaml").write_text("_target_: their_package.theirs.Alignment\n")
    meta = tmp_path / "site" / "their_package-1.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: their_package\nVersion: 1\n")
    (meta / "entry_points.txt").write_text("[sae_sweeps]\ntheirs = their_package.conf\n")
    monkeypatch.syspath_prepend(package.parent)
    plugins._of_packages.cache_clear()
    try:
        (theirs,) = plan(*SMALL, "penalty=theirs").runs
        assert theirs.run.code["penalty"].file is None and theirs.run_id != expected.run_id
    finally:
        plugins._of_packages.cache_clear()
        sys.modules.pop("their_package", None)


def test_folders_are_searched_in_their_order(mine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    local = Path(shutil.copytree(mine, tmp_path / "conf"))
    (local / "schedule" / "sawtooth.yaml").unlink()
    plugins.set_search_path([searched(mine)])
    assert plugins.folders() == [mine, local]
    assert plugins.outside_choices("penalty")["alignment"] == mine / "penalty" / "alignment.yaml"


def test_a_name_that_hides_one_of_ours_names_both_files(mine):
    theirs = mine / "penalty" / "ortho.yaml"
    theirs.write_text("_target_: alignment.Alignment\n")
    with pytest.raises(ConfigError) as caught:
        planned(mine, "penalty=none")
    assert str(theirs) in str(caught.value) and str(config_dir() / "penalty" / "ortho.yaml") in str(caught.value)
    plugins.set_search_path([])
    with pytest.raises(ConfigError, match=r"penalty=ortho: .* has the name of"):
        plan(*SMALL, f"penalty={theirs}")


def test_one_in_the_working_folder_is_refused_where_it_is_chosen(mine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "penalty").mkdir(parents=True)
    (tmp_path / "conf" / "penalty" / "ortho.yaml").write_text("{}")
    plan(*SMALL)
    with pytest.raises(ConfigError, match="has the name of"):
        plan(*SMALL, "penalty=ortho")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"penalty/alignment.yaml": "_target_: nowhere.Alignment"}, "no nowhere.py beside its YAML"),
        ({"penalty/alignment.yaml": "_target_: Alignment"}, "must be FILE.CLASS"),
        ({"penalty/alignment.yaml": "_target_: alignment.Missing"}, "has no Missing; mend its _target_"),
        ({"penalty/alignment.yaml": "_target_: [alignment"}, "cannot be read as YAML"),
        ({"penalty/alignment.yaml": "_target_: alignment.Alignment\nwidth: 3"}, "penalty.width: penalty=alignment has"),
        ({"penalty/alignment.py": "class Alignment:\n    pass\n"}, "has no CONFIG, the dataclass of its keys"),
        (
            {"penalty/alignment.py": "import nothing_of_this_name\n"},
            "ModuleNotFoundError.*line 1.*component is one file",
        ),
        ({"penalty/alignment.py": "def broken(:\n"}, "cannot be imported .SyntaxError"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_sentence(mine, change, message):
    for name, content in change.items():
        (mine / name).write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        planned(mine, "penalty=alignment")
    assert "\n" not in str(caught.value)


def test_classes_extend_ours(mine):
    file = mine / "penalty" / "alignment.py"
    content = file.read_text().replace(
        "class AlignmentConfig(WeightedConfig):", "class AlignmentConfig:\n    name: str"
    )
    file.write_text(content)
    with pytest.raises(ConfigError, match="AlignmentConfig in .* must be a class that extends .*base.PenaltyConfig"):
        planned(mine, "penalty=alignment")


def test_a_schedule_gives_finite_numbers(mine):
    file = mine / "schedule" / "sawtooth.py"
    file.write_text(file.read_text().replace("% 1.0", "% 1.0 if step < 9 else float('nan')"))
    with pytest.raises(
        ConfigError, match=r"schedule=sawtooth: its value at step \d+ is nan; it must be a finite number"
    ):
        planned(mine, "penalty=alignment", "schedule=sawtooth")


def test_code_is_run_only_with_the_content_that_was_launched(mine, tmp_path):
    (one,) = planned(mine, "penalty=alignment")
    config = one.run.to_dict()
    assert restored(config, tmp_path / "outputs").code == one.run.code
    file = mine / "penalty" / "alignment.py"
    ran = tmp_path / "ran"
    plugins._loaded.clear()
    file.write_text(f"open({str(ran)!r}, 'w')\n" + file.read_text())
    with pytest.raises(UserError, match="has changed since the run was launched, so it is not run"):
        restored(config, tmp_path / "outputs")
    assert not ran.exists()
    file.unlink()
    with pytest.raises(UserError, match=r"penalty=alignment: its file .* is missing; put it back"):
        restored(config, tmp_path / "outputs")


def test_code_among_the_runs_is_never_run(mine, tmp_path):
    (one,) = planned(mine, "penalty=alignment")
    config = one.run.to_dict()
    inside = tmp_path / "outputs" / "runs" / "stranger" / "alignment.py"
    inside.parent.mkdir(parents=True)
    shutil.copy(mine / "penalty" / "alignment.py", inside)
    config["penalty"]["_file_"] = str(inside)
    with pytest.raises(ConfigError, match="lies among runs"):
        restored(config, tmp_path / "outputs")


def test_suggestions_include_choices_from_outside(mine):
    from sae_sweeps.config.mistakes import sentence

    with pytest.raises(Exception) as caught:  # noqa: B017  Hydra's own
        planned(mine, "penalty=alignmen")
    assert sentence(caught.value) == "penalty=alignmen: no such choice; did you mean alignment?"
    with pytest.raises(Exception) as caught:  # noqa: B017  Hydra's own
        planned(mine, "penalty=alignment", "penalty.lambda3=1")
    assert sentence(caught.value).startswith("penalty.lambda3: no such key; did you mean")


def test_importing_notes_and_reading_runs_loads_no_code(mine, tmp_path):
    (one,) = planned(mine, "penalty=alignment")
    plugins._loaded.clear()
    from analysis.reading.records import records
    from sae_sweeps.storage.files import write_json

    folder = tmp_path / "outputs" / "runs" / one.run_id
    folder.mkdir(parents=True)
    content = {"run_id": one.run_id, "title": "t", "config": one.run.to_dict(), "metrics": {"fvu": 0.5}}
    write_json(folder / "results.json", content | {"provenance": {}, "warnings": []})
    assert len(records([folder])) == 1 and read_json(folder / "results.json")["config"]["penalty"]["_digest_"]
    assert not plugins._loaded


def rewritten(mine, group, name, text):
    """A choice of one file in the copy of the examples; `_target_` names its class Own."""
    (mine / group / f"{name}.py").write_text(text)
    (mine / group / f"{name}.yaml").write_text(f"_target_: {name}.Own\n")


PENALTY = """from dataclasses import dataclass
from sae_sweeps.penalties.base import Penalty, PenaltyValue, WeightedConfig
@dataclass(kw_only=True)
class Config(WeightedConfig):
    lambda2_max: float = 1.0
    {key}
class Own(Penalty):
    {method}
CONFIG = Config
"""
SCHEDULE = """from dataclasses import dataclass
from sae_sweeps.schedules import Schedule
@dataclass
class Own(Schedule):
"""
FORWARD = "def forward(self, ctx): return PenaltyValue(ctx.x_hat.sum())"


def test_a_key_without_a_default_is_given_by_the_command(mine):
    rewritten(mine, "penalty", "own", PENALTY.format(key="alpha: float", method=FORWARD))
    one, two = planned(mine, "-m", "penalty=own", "penalty.alpha=1,2")
    assert (one.run.penalty.alpha, two.run.penalty.alpha) == (1, 2)
    (run,) = [p.run for p in planned(mine, "penalty=own+ortho", "penalty.own.alpha=3")]
    assert run.penalty_terms()[0].config.alpha == 3
    with pytest.raises(ConfigError, match=r"^penalty.alpha: has no default; give penalty.alpha=VALUE.$"):
        planned(mine, "penalty=own")


def test_a_field_declared_again_keeps_the_rule_of_its_base(mine):
    with pytest.raises(ConfigError, match="lambda2_max=-1"):
        planned(mine, "penalty=alignment", "lambda2_max=-1")


@pytest.mark.parametrize(
    ("key", "method", "message"),
    [
        ("", "pass", "Own in .* must define forward"),
        ("", "def forward(self): pass", r"Own.forward in .* is called as forward\(self, ctx\)"),
        ("", f"def __init__(self, cfg): pass\n    {FORWARD}", r"called as __init__\(self, cfg, d_in, d_sae"),
        ("x: 'Nowhere' = 1", FORWARD, "a type of Config in .* is not known .*Nowhere"),
        ("_file_: str = 'a'", FORWARD, "has the key _file_"),
        ("def peak_weight(self): return 'x'", FORWARD, "its peak_weight.. is 'x'; it must be a finite number"),
        ("", f"{FORWARD}\nraise SystemExit(0)", "cannot be imported .SystemExit"),
    ],
)
def test_methods_that_their_base_does_not_have_are_refused_at_launch(mine, key, method, message):
    rewritten(mine, "penalty", "own", PENALTY.format(key=key, method=method))
    with pytest.raises(ConfigError, match=message) as caught:
        planned(mine, "penalty=own")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("pass", "must define value"),
        ("def value(self, step): return 1.0", r"is called as value\(self, step, total_steps\)"),
    ],
)
def test_schedules_are_checked_as_penalties_are(mine, body, message):
    rewritten(mine, "schedule", "own", f"{SCHEDULE}    name: str\n    {body}\n")
    with pytest.raises(ConfigError, match=message):
        planned(mine, "penalty=ortho", "schedule=own")


def test_a_learning_rate_is_a_finite_number(mine):
    (mine / "lr_schedule").mkdir()
    rewritten(
        mine,
        "lr_schedule",
        "own",
        f"{SCHEDULE}    name: str\n    lr: float = 1\n    def value(self, step, total): return 'x'\n",
    )
    with pytest.raises(ConfigError, match="lr_schedule=own: its value at step 0 is 'x'; it must be a finite number"):
        planned(mine, "lr_schedule=own")


def test_an_evaluation_is_an_evaluation(mine):
    file = mine / "eval" / "sharpness.py"
    content = file.read_text()
    file.write_text(content.replace("EVALUATION = Evaluation(", "EVALUATION = dict if True else Evaluation("))
    with pytest.raises(ConfigError, match="eval.sharpness: its _target_ must name an Evaluation"):
        planned(mine, "eval=sharpness")
    file.write_text(content.replace("reads=()", "reads=('nothing',)"))
    with pytest.raises(ConfigError, match="eval.sharpness: reads nothing, which is no key of eval"):
        planned(mine, "eval=sharpness")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no _target_ and no defaults"),
        ("- a\n", "holds a list; a choice's file holds KEY: VALUE lines"),
        ("name: own\n", "penalty.name=own: is no choice of ours"),
    ],
)
def test_yaml_that_is_no_choice_is_refused(mine, content, message):
    (mine / "penalty" / "own.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        planned(mine, "penalty=own")


def test_yaml_beside_that_does_not_read_back_is_left_out_of_suggestions(mine):
    from sae_sweeps.config.mistakes import all_keys

    plugins.set_search_path([searched(mine)])
    expected = all_keys()
    for name, content in (("a", "- a\n"), ("b", "a: [\n"), ("c", "3\n")):
        (mine / "penalty" / f"{name}.yaml").write_text(content)
    assert all_keys() == expected


@pytest.mark.parametrize("name", ["with a blank", "with,comma", "it's", "été"])
def test_folders_of_any_name(mine, tmp_path, name):
    (expected,) = planned(mine, "penalty=alignment")
    folder = Path(shutil.copytree(mine, tmp_path / name))
    (found,) = plan(f'hydra.searchpath=["file://{folder}"]', *SMALL, "penalty=alignment").runs
    plugins.set_search_path([])
    (by_file,) = plan(*SMALL, f"penalty={folder / 'penalty' / 'alignment.yaml'}").runs
    assert found.run_id == by_file.run_id == expected.run_id


def test_a_link_to_a_yaml_finds_its_file(mine, tmp_path):
    (tmp_path / "linked" / "penalty").mkdir(parents=True)
    (tmp_path / "linked" / "penalty" / "alignment.yaml").symlink_to(mine / "penalty" / "alignment.yaml")
    (found,) = planned(tmp_path / "linked", "penalty=alignment")
    assert found.run.code["penalty"].file == str(mine / "penalty" / "alignment.py")


def test_a_package_is_searched_by_pkg(mine, tmp_path, monkeypatch):
    package = tmp_path / "site" / "another_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    shutil.copytree(mine, package / "conf")
    monkeypatch.syspath_prepend(package.parent)
    (found,) = plan("hydra.searchpath=[pkg://another_package.conf]", *SMALL, "penalty=alignment").runs
    assert found.run.code["penalty"].file == str(package / "conf" / "penalty" / "alignment.py")
    with pytest.raises(ConfigError, match="pkg://nothing.conf: no such folder of an installed package"):
        plan("hydra.searchpath=[pkg://nothing.conf]", *SMALL)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["penalty._target_=os.system"], "is not code of your own"),
        (["penalty=mine", "penalty._target_=sae_sweeps.penalties.ortho.Ortho"], "is not code of your own"),
        (["penalty=alignment", "penalty._file_=/tmp/x.py"], "_file_=/tmp/x.py: is recorded by the launch"),
        (["penalty=alignment", "penalty._digest_=0"], "is recorded by the launch"),
        (["penalty=../x.yaml"], "penalty=../x.yaml: no such YAML file"),
        (["schedule=../data/builtin"], "no such YAML file"),
        (["penalty=ortho", "penalty.name=other"], "penalty.name=other: is no choice of ours"),
    ],
)
def test_words_that_name_no_code_of_ones_own(mine, words, message):
    with pytest.raises(ConfigError, match=message):
        planned(mine, *words)


def test_the_page_on_components_shows_the_example_as_it_is():
    page = (EXAMPLES.parents[1] / "docs" / "components.md").read_text()
    for name in ("alignment.py", "alignment.yaml"):
        assert (EXAMPLES / "penalty" / name).read_text() in page
