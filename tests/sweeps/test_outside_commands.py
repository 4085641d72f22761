"""Whole commands with components from outside the checkout: in groups and processes, stopped and resumed, failing."""

import json
import shutil
import signal
from pathlib import Path

import pytest
from commands import PROJECT, numbers, read, rows, run, run_folders, start, wait_for

pytestmark = pytest.mark.slow

TINY = ("model=synthetic", "d_sae=32", "model.d_in=16", "k=4", "batch_size=64", "train.held_out_tokens=0", "eval=none")


@pytest.fixture
def mine(tmp_path):
    return Path(shutil.copytree(PROJECT / "examples" / "own_components", tmp_path / "mine"))


def searched(mine):
    return f"hydra.searchpath=[file://{mine}]"


def by_title(outputs):
    return {read(folder, "results.json")["title"]: numbers(folder) for folder in run_folders(outputs)}


def test_beside_ours_in_a_group_in_processes_and_in_the_table(mine, tmp_path):
    words = ("-m", *TINY, "num_tokens=2560", searched(mine), "penalty=ortho,alignment,alignment+ortho", "seed=0,1")
    together = run(*words, f"outputs={tmp_path / 'one'}", cwd=tmp_path)
    assert "6 runs side by side" in together.stdout and together.stdout.count("completed") == 6
    run(*words, "cluster=local", "cluster.group_size=2", f"outputs={tmp_path / 'two'}", cwd=tmp_path)
    assert by_title(tmp_path / "one") == by_title(tmp_path / "two")
    table = json.loads(run("table", tmp_path / "one", "--format", "json", module="analysis").stdout)
    assert len(table["runs"]) == 6
    shown = run("table", tmp_path / "one", module="analysis").stdout
    assert "alignment+ortho" in shown and "_digest_" not in shown and "_file_" not in shown
    run("audit", tmp_path / "one", module="analysis")
    assert "complete, skipped" in run(*words, f"outputs={tmp_path / 'one'}", cwd=tmp_path).stdout


def test_resumed_only_with_the_code_of_its_launch(mine, tmp_path):
    words = (*TINY, "num_tokens=256000", "train.checkpoint_every=50", searched(mine), "penalty=alignment")
    run(*words, f"outputs={tmp_path / 'whole'}")
    outputs = tmp_path / "stopped"
    with (tmp_path / "log").open("w") as log:
        process = start(*words, f"outputs={outputs}", log=log)
        wait_for(lambda: any(len(rows(folder)) > 10 for folder in run_folders(outputs)))
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130, (tmp_path / "log").read_text()
    (sweep,) = (outputs / "sweeps").iterdir()
    file = mine / "penalty" / "alignment.py"
    content = file.read_text()
    file.write_text(content.replace("1 - cos_F", "2 - cos_F"))
    changed = run("resume", sweep, module="sae_sweeps", expect=2)
    assert "has changed since the run was launched, so it is not run" in changed.stderr
    assert changed.stderr.count("\n") == 1
    file.unlink()
    missing = run("resume", sweep, module="sae_sweeps", expect=2)
    assert f"its file {file} is missing" in missing.stderr and missing.stderr.count("\n") == 1
    file.write_text(content)
    run("resume", sweep, module="sae_sweeps")
    assert by_title(outputs) == by_title(tmp_path / "whole")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise ValueError('no good')", "raised ValueError: no good"),
        ("return PenaltyValue(ctx.x.sum(1))", "its loss has shape [64]; it must be one number"),
        ("return ctx.x.sum()", "forward must return a PenaltyValue, and returned a Tensor"),
        ("return PenaltyValue(ctx.sae.W_dec @ ctx.x)", "alignment.py line"),
        ("import sys; sys.exit(3)", "sys.exit(3) was called"),
    ],
)
def test_a_penalty_that_fails_is_named_and_its_siblings_complete(body, message, mine, tmp_path):
    file = mine / "penalty" / "alignment.py"
    head = file.read_text().partition("        cos_F")[0]
    file.write_text(f"{head}        {body}\n\n\nCONFIG = AlignmentConfig\n")
    words = ("-m", *TINY, "num_tokens=1280", searched(mine), "penalty=none,alignment", f"outputs={tmp_path / 'out'}")
    done = run(*words, expect=1)
    assert message in done.stdout and "Traceback" not in done.stdout + done.stderr
    states = {read(folder, "status.json")["state"] for folder in run_folders(tmp_path / "out")}
    assert states == {"completed", "failed"}


def test_an_evaluation_is_done_again_when_its_code_changes(mine, tmp_path):
    words = (*TINY[:-1], "num_tokens=1280", searched(mine), "eval=sharpness", f"outputs={tmp_path / 'out'}")
    run(*words)
    (folder,) = run_folders(tmp_path / "out")
    first = read(folder, "results.json")["metrics"]["sharpness"]
    assert "complete, skipped" in run(*words).stdout
    file = mine / "eval" / "sharpness.py"
    file.write_text(file.read_text().replace("float(share_F", "float(2 * share_F"))
    run(*words)
    assert read(folder, "results.json")["metrics"]["sharpness"] == pytest.approx(2 * first)


@pytest.mark.parametrize(
    ("exports_as", "message"),
    [("standard", "SAELens's standard computes other features than this architecture does"), ("mine", "is not one of")],
)
def test_an_architecture_is_not_exported_as_another(exports_as, message, mine, tmp_path):
    file = mine / "architecture" / "softcap.py"
    file.write_text(file.read_text().replace("(SAE):\n", f"(SAE):\n    exports_as = {exports_as!r}\n\n"))
    words = [word for word in TINY if word != "k=4"]
    done = run(*words, "num_tokens=1280", searched(mine), "architecture=softcap", f"outputs={tmp_path / 'o'}", expect=1)
    assert message in done.stdout and not list((tmp_path / "o").glob("runs/*/sae"))


def test_a_table_over_two_architectures_names_them_and_not_their_files(mine, tmp_path):
    for ending in ("py", "yaml"):
        copy = (mine / "architecture" / f"softcap.{ending}").read_text().replace("softcap.", "other.")
        (mine / "architecture" / f"other.{ending}").write_text(copy)
    words = [word for word in TINY if word != "k=4"]
    words += ["-m", "num_tokens=1280", searched(mine), "architecture=softcap,other", f"outputs={tmp_path / 'o'}"]
    out = run(*words).stdout
    assert "softcap" in out and "other" in out and "_file_" not in out and "_digest_" not in out
