"""The five studies' figures: every number comes through, and the audit finds what their records teach."""

import json
import math
from pathlib import Path

import pytest

from analysis.auditing.audit import audit
from analysis.output.formats import render
from analysis.output.notes import notes
from analysis.reading.figures import REFERENCE_PATH, figures_import
from analysis.reading.import_files import write_import
from analysis.reading.names import OLDER_METRICS
from analysis.reading.records import records
from analysis.reading.sources import read_sources
from analysis.tables.compare import table
from sae_sweeps.errors import DataError

FIGURES = json.loads(REFERENCE_PATH.read_text())
STUDIES = list(dict.fromkeys(run["study"] for run in FIGURES["runs"]))
NOTES = Path(__file__).parent / "study_notes.txt"


def every_number(frame, run_id_of):
    """Check that a frame holds every metric of the figures, and only empty cells where there is no number."""
    rows = {row["run", "run_id"]: row for _, row in frame.iterrows()}
    checked = 0
    for place, run in enumerate(FIGURES["runs"]):
        row = rows[run_id_of(place, run)]
        for name, value in run["metrics"].items():
            cell = row["metrics", OLDER_METRICS.get(name, name)]
            assert math.isnan(cell) if value is None else cell == value, (run["study"], run["run"], name)
            checked += 1
    return checked


def test_every_number_of_the_reference_is_in_the_table():
    result = table(["reference"])
    assert every_number(result.frame, lambda place, run: f"{run['study']}/{run['run']}") == 271
    assert ("metrics", "explained_variance") not in result.frame.columns
    assert set(result.frame["run", "source"]) == {"as reported in the five studies' records"}
    assert "source" in render(result, "csv").splitlines()[0].split(",")


def test_every_number_comes_through_notes_and_back(tmp_path):
    (tmp_path / "all.txt").write_text(notes(records(["reference"])))
    (found,) = read_sources([tmp_path / "all.txt"])
    path, how = write_import(found, tmp_path)
    assert how == "new" and write_import(found, tmp_path) == (path, "as before")
    assert found.n_numbers() == figures_import(REFERENCE_PATH, FIGURES).n_numbers()
    before, after = records(["reference"]), records([path])
    assert {name for name in before if name[0] == "metrics"} == {name for name in after if name[0] == "metrics"}
    after["run", "run_id"] = [recorded.own["run_id"] for recorded in after["run", "recorded"]]
    assert every_number(after, lambda place, run: f"{run['study']}/{run['run']}") == 271
    after = after.set_index(("run", "run_id"), drop=False).loc[list(before["run", "run_id"])]
    for name in ("title", "state", "step", "total_steps"):
        assert list(before["run", name]) == list(after["run", name])
    for column in before.columns:
        if column[0] == "config" and column[1] != "study" and not column[1].startswith("eval."):
            assert list(before[column].astype(str)) == list(after[column].astype(str)), column


def test_config_keys_stand_under_todays_names():
    frame = records(["reference:progressive_orthogonality"])
    row = frame[frame["run", "run_id"] == "progressive_orthogonality/2"].iloc[0]
    config = {name: row["config", name] for kind, name in frame.columns if kind == "config"}
    assert (config["architecture.k"], config["lr_schedule.lr"], config["layer.index"]) == (40, 2e-4, 12)
    assert (row["run", "step"], config["num_tokens"], config["model"]) == (2441, 5_000_000, "google/gemma-2-2b")


def test_a_study_by_name_and_a_mistaken_one():
    assert sum(len(records([f"reference:{study}"])) for study in STUDIES) == len(FIGURES["runs"])
    with pytest.raises(DataError, match="reference:nothing: there is no such study; choose one of selective"):
        records(["reference:nothing"])


# What the records teach ----------------------------------------------------------------------------------------------


def found_in(study):
    return {(finding.code, run) for finding in audit(records([f"reference:{study}"])) for run in finding.runs}


def found_in_notes(tmp_path):
    path, _ = write_import(read_sources([NOTES])[0], tmp_path)
    return {(finding.code, run): finding.sentence for finding in audit(records([path])) for run in finding.runs}


def test_different_budgets():
    found = found_in("progressive_orthogonality")
    for run in ("topk_baseline", "1", "2"):
        for code in ("budget-steps", "budget-tokens", "budget-k"):
            assert (code, f"progressive_orthogonality/{run}") in found


def test_a_learning_rate_that_is_not_the_one_used(tmp_path):
    assert found_in_notes(tmp_path)["prose-number", "study_notes/0"] == "its text has lr 2e-4, its record 0.0003."


def test_stable_beside_nan(tmp_path):
    assert ("prose-stable", "study_notes/3") in found_in_notes(tmp_path)


@pytest.mark.parametrize("study", ["adaptive_sharing", "contrastive", "information_bottleneck"])
def test_a_baseline_that_never_trained_and_was_evaluated_elsewhere(study):
    found = found_in(study)
    for code in ("never-trained", "dead", "eval-layer"):
        assert (code, f"{study}/0") in found
    sentence = next(f.sentence for f in audit(records(["reference:adaptive_sharing"])) if f.code == "dead")
    assert sentence == ("the SAE is dead: L0 = 0, every probe accuracy exactly 0.5, cosine similarity not a number.")


def test_nan_losses_that_ran_to_the_end():
    found = found_in("selective_orthogonality")
    assert {run for code, run in found if code == "diverged"} == {f"selective_orthogonality/{n}" for n in range(5, 10)}


def test_a_run_of_one_step_beside_one_of_195():
    found = found_in("contrastive")
    assert ("one-step", "contrastive/3") in found
    assert {("budget-steps", "contrastive/3"), ("budget-steps", "contrastive/4")} <= found


def test_identical_results_of_two_configurations():
    found = found_in("selective_orthogonality")
    assert {run for code, run in found if code == "identical"} == {f"selective_orthogonality/{n}" for n in (1, 2)}


@pytest.mark.parametrize("study", ["selective_orthogonality", "contrastive", "information_bottleneck"])
def test_unlearning_at_its_floor_in_every_run(study):
    assert [f.sentence.split()[0] for f in audit(records([f"reference:{study}"])) if f.code == "floor"] == [
        "unlearning_score"
    ]
    assert "floor" in {f.code for f in audit(records(["reference"]))}


def test_a_perfect_score_that_is_not_sparse():
    found = found_in("progressive_orthogonality")
    run = "progressive_orthogonality/standard_baseline"
    assert ("perfect-score", run) in found
    assert ("not-sparse", "progressive_orthogonality/topk_baseline") not in found


def test_two_forms_of_the_loss():
    (finding,) = [f for f in audit(records(["reference"])) if f.code == "studies-differ"]
    assert "recon (norm, squared)" in finding.sentence
