"""`launch.py --from RUN_DIR`: the same numbers from a folder alone, and a sentence for what is no longer the same."""

import json
import shutil

import pytest

from sae_sweeps.cli.command import main
from sae_sweeps.cli.compose import compose_points
from sae_sweeps.cli.repeat import compared, copy_selection
from sae_sweeps.config.run import run_config
from sae_sweeps.errors import ConfigError
from sae_sweeps.storage.files import write_json
from sae_sweeps.storage.run_folder import FORMAT
from tests.sweeps.commands import PROJECT, numbers, run_folders

TINY = ["model=synthetic", "model.d_in=16", "d_sae=32", "k=4", "num_tokens=1024", "batch_size=128", "report=false"]


@pytest.fixture(scope="module")
def components(tmp_path_factory):
    return shutil.copytree(PROJECT / "examples" / "own_components", tmp_path_factory.mktemp("components") / "mine")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, components):
    """The folder of a run with a penalty from outside, whose sweep is gone."""
    outputs = tmp_path_factory.mktemp("trained") / "o"
    own = [f"hydra.searchpath=[file://{components}]", "penalty=alignment", "train.held_out_tokens=64"]
    assert main([*TINY, *own, f"outputs={outputs}"]) == 0
    shutil.rmtree(outputs / "sweeps")
    (folder,) = run_folders(outputs)
    return folder


@pytest.fixture
def copied(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "elsewhere" / trained.name)


def test_the_same_numbers_from_the_folder_alone(copied, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--from", str(copied), "report=false"]) == 0
    (again,) = run_folders(tmp_path / "outputs" / "repeats")
    assert again.name == copied.name and numbers(again) == numbers(copied)
    assert (again / "selection.json").read_bytes() == (copied / "selection.json").read_bytes()
    out = capsys.readouterr().out
    assert f"repeat  bit for bit the numbers of {copied}: " in out and "weights, " in out


def test_numbers_that_differ_are_named(copied, tmp_path, capsys):
    file = copied / "results.json"
    results = json.loads(file.read_text())
    results["metrics"]["final_loss"] = 1.5
    results["provenance"] |= {"threads": 1, "host": "another"}
    file.write_text(json.dumps(results))
    assert main([f"--from={copied}", f"outputs={tmp_path / 'o'}", "report=false"]) == 0
    out = capsys.readouterr().out
    assert f"differs from {copied}: final_loss " in out and "was 1.5" in out and "was another" in out


def rewrite(folder, name, old, new):
    content = (folder / name).read_text()
    assert old in content
    (folder / name).write_text(content.replace(old, new))


def another_method(folder):
    rewrite(folder, "identity.json", '"method_version": ', '"method_version": 1')


def another_lr(folder):
    rewrite(folder, "config.yaml", "batch_size: 128", "batch_size: 64")


def interpolated(folder):
    rewrite(folder, "config.yaml", "title: null", "title: ${oc.env:HOME}")


def code_beside(folder):
    (file,) = [line.split(": ")[1] for line in (folder / "config.yaml").read_text().splitlines() if "_file_:" in line]
    shutil.copy(file, folder / "alignment.py")
    rewrite(folder, "config.yaml", file, str(folder / "alignment.py"))


def missing_code(folder):
    rewrite(folder, "config.yaml", "alignment.py", "alignment_.py")


def newer(folder):
    rewrite(folder, "status.json", f'"format_version": {FORMAT}', f'"format_version": {FORMAT + 1}')


def no_config(folder):
    (folder / "config.yaml").write_text("- a list")


def code_of_a_number(folder):
    (file,) = [line.split(": ")[1] for line in (folder / "config.yaml").read_text().splitlines() if "_file_:" in line]
    rewrite(folder, "config.yaml", file, "5")


def cut_log(folder):
    rewrite(folder, "metrics.jsonl", "}\n", "\n")


def recorded(key, value):
    def change(folder):
        results = json.loads((folder / "results.json").read_text())
        results["provenance"][key] = value
        (folder / "results.json").write_text(json.dumps(results))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (another_method, "was trained by version 1"),
        (another_lr, "its config.yaml is not what its id was made of (batch_size"),
        (interpolated, "holds the interpolation ${oc.env:HOME}, which no launch records"),
        (code_beside, "code is not run from there"),
        (missing_code, "is missing; put it back, or name the folder that holds it now"),
        (newer, f"has the format_version {FORMAT + 1}, and this version of sae-sweeps reads up to {FORMAT}"),
        (no_config, "is damaged (it is not a YAML mapping)"),
        (code_of_a_number, "config.yaml is damaged (_file_=5 is no path of a file)"),
        (cut_log, "metrics.jsonl is damaged at line 1"),
        (recorded("threads", "two"), "is damaged (its provenance.threads=two is no whole number above 0)"),
        (recorded("threads", True), "is damaged (its provenance.threads=True is no whole number above 0)"),
        (recorded("threads", 0), "is damaged (its provenance.threads=0 is no whole number above 0)"),
        (recorded("packages", [1]), "is damaged (its provenance.packages=[1] is no object)"),
    ],
)
def test_what_is_no_longer_the_same_is_one_sentence(change, message, copied, tmp_path, capsys):
    change(copied)
    assert main(["--from", str(copied), f"outputs={tmp_path / 'o'}"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "o").exists()


def test_code_that_moved_is_found_where_the_command_points(copied, components, tmp_path, capsys):
    moved = shutil.copytree(components, tmp_path / "moved")
    rewrite(copied, "config.yaml", str(components), str(tmp_path / "gone"))
    words = ["--from", str(copied), "--dry-run", f"outputs={tmp_path / 'o'}", f"hydra.searchpath=[file://{moved}]"]
    assert main(words) == 0 and copied.name in capsys.readouterr().out
    (moved / "penalty" / "alignment.py").write_text("raise SystemExit('run')")
    assert main(words) == 2 and "is missing; put it back" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--from"], "takes one run's folder"),
        (["--from", "k=3"], "takes one run's folder"),
        (["--from", "nowhere"], "is no run's folder"),
        (["--from", "{run}", "k=3"], "a repeat keeps what the run was; give one of outputs"),
        (["--from", "{run}", "-m"], "repeats one run"),
        (["--from", "{run}", "--from={run}"], "takes one run's folder"),
        (["--from", "{run}", "outputs={outputs}"], "the run itself lies there"),
    ],
)
def test_words_that_a_repeat_does_not_take(words, message, trained, capsys):
    outputs = trained.parents[1]
    assert main([word.format(run=trained, outputs=outputs) for word in words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("begun", [False, True])
def test_a_repeat_that_is_refused_leaves_only_what_was_there(begun, trained, tmp_path, monkeypatch):
    def refused(*args):
        raise ConfigError("cluster=slurm: sbatch refuses the job.")

    monkeypatch.setattr("sae_sweeps.cli.launch.carry_out", refused)
    folder = tmp_path / "a" / "b" / "runs" / trained.name
    if begun:
        write_json(folder / "selection.json", {})
        (folder / "checkpoint").mkdir()
    assert main(["--from", str(trained), f"outputs={tmp_path / 'a' / 'b'}"]) == 2
    assert (folder / "selection.json").exists() == (folder / "checkpoint").exists() == begun
    assert begun or not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("made", "requested", "way"),
    [
        ({"threads": 1}, "auto", "plain"),
        ({"threads": 1}, "bfloat16", "bfloat16"),
        ({"threads": 1, "selection": "bounded"}, "auto", None),  # recorded, but its file is lost
        ({}, "auto", None),  # never began
    ],
)
def test_a_run_of_an_earlier_version_is_repeated_as_it_was(made, requested, way, tmp_path):
    run = run_config(compose_points([f"train.selection={requested}"])[0].cfg)
    file = copy_selection(tmp_path / "run", tmp_path / "repeat", run, made)
    assert (file and json.loads(file.read_text())) == (way and {"way": way, "block": 0})


def test_where_there_is_nothing_to_compare_no_number_is_called_equal(tmp_path):
    write_json(tmp_path / "results.json", {"metrics": {"fvu": 0.5}})
    for metrics, expected in (({}, "nothing to compare"), ({"fvu": 0.5}, "bit for bit"), ({"fvu": 0.4}, "differs")):
        old = {"metrics": metrics, "provenance": {}}
        assert compared(tmp_path / "old", old, [], tmp_path).startswith(expected)
