"""Run notes: their form, the baseline, numbers and order, and that a round trip through an import loses nothing."""

import ast
import json
import math
import random

import pytest

from analysis.__main__ import main
from analysis.output.notes import notes
from analysis.reading.import_files import write_import
from analysis.reading.records import records
from analysis.reading.sources import read_sources
from analysis.tables.compare import table
from sae_sweeps.errors import ConfigError, DataError
from sae_sweeps.storage.files import write_json
from tests.analysis.outputs import METRICS, add_run

HOSTILE = "=1+1 [red]x[/red]\n## Run 9: x\nResults: {'fvu': 9} `*| <b>&\x1b[31m\u202e ''' {"
AWKWARD = (
    "Two aims:\n1. fewer shared features\n2. the same fvu\n\nSeen: \"nothing\" and 'all'.",
    "Results: {'fvu': 9}\nDescription: no\nState: {'run_id': 'x'}\nWarnings:\n- none",
    "## Run 9: not a run\nRun 3: nor this",
    "```python\nlr = 3e-4\n```\n| a | b |\n#### quoted\n> quoted",
    "'quoted'",
    '"quoted"',
    "'quoted' and 'more'",
    "'''",
    "  leading blanks, trailing ones  \n\n\n",
    "\n",
    "NaN",
    "None",
    "{}",
    "{'a': nan}",
    "- Training loss: 204.4 (higher)\n- lr: 2e-4\n(k = 320)",
    "ünïcödé, 日本語, emoji 🙂, עברית, \u202d\u2028\u0085",
    "\x00\x07\x1b[31m\t\r\n\x0b\x0c tail",
    "back\\slash \\n \\'",
    "Findings of the audit:\n- error, diverged: it is not",
    "In common: {'seed': 1}\n# Title: other\n# Experiment description: other",
    "word " * 20_000,
    "x" * 50_000,
    HOSTILE,
)
STATES = ("diverged", "failed", "interrupted", "preempted", "cancelled", "queued", "running")


def imported(text, folder, name="n"):
    """The path of an import of notes."""
    source = folder / f"{name}.txt"
    source.write_text(text, encoding="utf-8", newline="")
    return write_import(read_sources([source])[0], folder / f"{name}.json", replace=True)[0]


def headings(text):
    return [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]


def blocks(text):
    return text.split("\n## ")[1:]


def in_dict(label, block):
    text = block.partition(f"\n{label}: ")[2]
    lines = text.split("\n")
    end = next(n for n, line in enumerate(lines) if n and not line.startswith("    "))
    return ast.literal_eval("\n".join(lines[:end]))


# Form ----------------------------------------------------------------------------------------------------------------


def test_the_form_of_the_records(sweep):
    text = notes(records([sweep]))
    assert text == notes(records([sweep]))
    assert headings(text) == ["Run 0: Baseline: as bbbb", "Run 1: as aaaa", "Run 2: as cccc"]
    head = text.partition("\n## ")[0].splitlines()
    assert head[0] == "# Title: 3 runs: penalty none, ortho, lambda2_max 0.5, 0.1, seed 0, 1"
    assert head[2].startswith(
        "# Experiment description: 1. Topk SAE of 1,024 features (k = 32) on builtin layer 2. 2. "
    )
    assert "3. The baseline is Run 0 (bbbb), without a penalty." in head[2]
    base, ortho, lost = blocks(text)
    assert in_dict("State", ortho) == {
        "run_id": "aaaa", "state": "completed", "step": 100, "total_steps": 100,
    }  # fmt: skip
    assert in_dict("Against Run 0, varied", ortho) == {
        "penalty": "ortho", "penalty.lambda2_max": 0.5, "penalty.tau": 0.1,
    }  # fmt: skip
    training = in_dict("Results", ortho)["training results"]
    assert training["config"] | {"dict_size": 1024, "k": 32, "layer": 2, "lm_name": "builtin"} == training["config"]
    assert training["config"]["submodule_name"] == "resid_post_layer_2" and training["config"]["steps"] == 100
    assert training["final_info"] | {"training_steps": 100, "final_loss": 30.5, "layer": 2} == training["final_info"]
    assert training["final_info"]["kl_div_score"] is None
    against = " ".join(ortho.partition("Against Run 0: ")[2].split())
    assert against.startswith("fvu 0.04000 (0.01 lower, better); ce_loss_score 0.9000 (equal);")
    assert "Against" not in base and "Against Run 0: " not in lost
    assert in_dict("State", lost)["error"] == "penalty_loss is not finite at step 40"
    assert "- error, diverged: diverged (penalty_loss is not finite at step 40), so there is no result." in " ".join(
        lost.split()
    )
    composed = (
        "Description, from the config: topk SAE of 1,024 features (k = 32) on builtin layer 2, with penalty ortho"
    )
    assert composed in " ".join(ortho.split())
    assert max(map(len, text.splitlines()[4:])) <= 100


def test_each_evaluation_has_its_settings_layer_and_detail(outputs, tmp_path):
    folder = add_run(outputs, "aaaa", metrics={"sae_top_1_test_accuracy": 0.7, "sae_test_accuracy": None})
    detail = [{"dataset_name": "ag_news", "sae_top_1_test_accuracy": 0.7, "sae_test_accuracy": None}]
    metrics = {"sae_test_accuracy": None, "sae_top_1_test_accuracy": 0.7}
    sae = {"d_in": 128, "metadata": {"model_name": "m", "hook_name": "blocks.12.hook_resid_post"}}
    whole = {"eval_type_id": "sparse_probing", "eval_config": {"k_values": [1, 2]}, "eval_id": "e", "sae_cfg_dict": sae,
             "datetime_epoch_millis": 1737, "sae_bench_commit_hash": "c", "eval_result_details": detail}  # fmt: skip
    write_json(folder / "evals" / "sparse_probing.json", whole)
    write_json(folder / "evals" / "sparse_probing.summary.json", {"settings": {}, "metrics": metrics, "warnings": []})
    text = notes(records([outputs]))
    (block,) = blocks(text)
    assert in_dict("Results", block)["sparse probing evaluation results"] == {
        "eval_type_id": "sparse_probing", "eval_config": {"k_values": [1, 2]}, "eval_id": "e",
        "datetime_epoch_millis": 1737, "sae_bench_commit_hash": "c", "eval_result_metrics": metrics,
        "eval_result_details": detail,
        "sae_cfg_dict": {"model_name": "m", "hook_layer": 12, "hook_name": "blocks.12.hook_resid_post"},
    }  # fmt: skip
    path = imported(text, tmp_path)
    (recorded,) = records([path])["run", "recorded"]
    assert recorded.details == {"sparse_probing": detail}
    assert recorded.evaluations["sparse_probing"] == {
        "settings": {"k_values": [1, 2]}, "layer": 12, "hook": "blocks.12.hook_resid_post", "model": "m",
        "eval_id": "e", "time_ms": 1737, "commit": "c", "metrics": list(metrics),
    }  # fmt: skip
    assert notes(records([path])) == text


# The baseline, numbers and order -------------------------------------------------------------------------------------


def test_a_baseline_is_requested_by_id_or_title(sweep):
    for word in ("aa", "as aaaa"):
        text = notes(records([sweep]), baseline=word)
        assert headings(text)[0] == "Run 0: Baseline: as aaaa" and "Run 0 (aaaa), as requested." in text
        assert blocks(text)[1].count("Against Run 0, varied: {'penalty': 'none'}") == 1
    for word, what in (("zz", "no run"), ("", "3 runs")):
        with pytest.raises(ConfigError, match=f"{what} of these paths"):
            notes(records([sweep]), baseline=word)


def test_the_baseline_is_the_run_from_which_the_others_differ_least(outputs):
    plain = {"penalty": {"name": "none"}}
    add_run(outputs, "a", plain | {"architecture.k": 64, "num_tokens": 7})
    add_run(outputs, "b", plain)
    add_run(outputs, "c", {"architecture.k": 64})
    add_run(outputs, "d", {"seed": 1})
    text = notes(records([outputs]))
    assert [line[:8] for line in headings(text)] == ["Run 0: B", "Run 0b: ", "Run 1: c", "Run 2: d"]
    assert in_dict("State", blocks(text)[0])["run_id"] == "b"
    assert "Run 0 (b), without a penalty, from which the others differ in the fewest keys." in text
    add_run(outputs, "e", plain | {"architecture.k": 64, "seed": 2})
    text = notes(records([outputs]))
    nearest = {in_dict("State", block)["run_id"]: block.partition("Against ")[2][:6] for block in blocks(text)}
    assert nearest["d"] == "Run 0," and nearest["a"] == ""


def test_tags_and_titles_name_baselines(outputs):
    add_run(outputs, "a", {"penalty": {"name": "none"}})
    add_run(outputs, "b", {"penalty": {"name": "none"}, "seed": 1}, title="The baseline, clipped")
    add_run(outputs, "c")
    assert headings(notes(records([outputs])))[0] == "Run 0: The baseline, clipped"
    add_run(outputs, "c", {"tags": ["baseline"]})
    text = notes(records([outputs]))
    assert headings(text)[0] == "Run 0: Baseline: c" and "Run 0 (c), tagged baseline." in text


def test_where_every_run_is_plain_the_first_alone_is_the_baseline(outputs):
    for k in (8, 16):
        add_run(outputs, f"k{k:02}", {"penalty": {"name": "none"}, "architecture.k": k})
    text = notes(records([outputs]))
    assert headings(text) == ["Run 0: Baseline: k08", "Run 1: k16"]
    assert in_dict("Against Run 0, varied", blocks(text)[1]) == {"architecture.k": 16}


def test_runs_keep_the_numbers_of_the_record(outputs):
    for run_id, title in (
        ("a", "Run 3, as recorded"), ("b", "matched L0"), ("c", "Run 1, as recorded"), ("d", "Run 3, as recorded"),
    ):  # fmt: skip
        add_run(outputs, run_id, {"seed": ord(run_id)}, title=title)
    add_run(outputs, "e", {"penalty": {"name": "none"}}, title="Run 0, its baseline")
    text = notes(records([outputs]))
    assert headings(text) == [
        "Run 0: its baseline", "Run 1: as recorded", "Run 3: as recorded", "Run 3b: as recorded", "Run 4: matched L0",
    ]  # fmt: skip


# The round trip ------------------------------------------------------------------------------------------------------


def same(a, b):
    return a == b or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))


def by_id(full):
    """The rows of a frame by the ids that the runs had where they were trained."""
    rows = full.to_dict("records")
    return {
        (row["run", "recorded"].own["run_id"] if row["run", "recorded"] else row["run", "run_id"]): row for row in rows
    }


def check_round_trip(before, folder, varied=()):
    """Notes of a frame come back as the same facts and are written again as the same text."""
    text = notes(before, varied=tuple(varied))
    assert not {c for c in text if not c.isprintable()} - {"\n"}
    path = imported(text, folder)
    after = records([path])
    assert notes(after) == text
    assert notes(records([imported(notes(after), folder, "again")])) == text
    there, here = by_id(before), by_id(after)
    assert there.keys() == here.keys()
    kept = [c for c in before.columns if c[0] != "run" and c[1].partition(".")[0] not in (
        "outputs", "device", "title", "description", "logger", "activations",
    )]  # fmt: skip
    for run_id, row in there.items():
        for name in ("title", "state", "step", "total_steps", "error", "description", "warnings"):
            assert here[run_id]["run", name] == row["run", name], (run_id, name)
        assert set(here[run_id]["run", "nulls"]) == set(row["run", "nulls"])
        for column in kept:
            found = here[run_id].get(column, math.nan)
            assert same(found, row[column]) and type(found) is type(row[column]), (run_id, column)
    extra = {column for column in after.columns if column[0] == "metrics"} - set(before.columns)
    assert all(after[column].isna().all() for column in extra if column[1] != "mean_full_absorption_score")
    return text


def test_every_number_and_state_comes_back(outputs, tmp_path):
    add_run(outputs, "base", {"penalty": {"name": "none"}}, {"fvu": 0.1 + 0.2, "mse": 1e-300, "l1": 1e22, "kl": None})
    for number, state in enumerate(STATES):
        more = {"step": 40, "error": f"it {state}"} if state != "queued" else {"step": None, "total_steps": None}
        add_run(outputs, state, {"seed": number, "description": f"no {number}"}, state=state, **more)
    lost = add_run(outputs, "lost", {"seed": 9}, state="running", step=3)
    (lost / "lease.json").unlink()
    text = check_round_trip(records([outputs]), tmp_path)
    assert "'state': 'lost?'" in text and "Description: no 3" in text
    assert "'final_loss': 30.5" in text and "0.30000000000000004" in text and "1e-300" in text


def test_values_of_every_kind_come_back_as_what_they_were(outputs, tmp_path):
    values = (1, 1.0, True, "1", None, "None", "nan", 1e-9, 10**20, -0.0, "a 'b' \"c\"\n{d}", [1, "x"], [], "")
    for number, value in enumerate(values):
        add_run(outputs, f"r{number:02}", {"penalty.odd": value, "seed": 5})
    add_run(outputs, "without")
    check_round_trip(records([outputs]), tmp_path)


def test_awkward_text_comes_back(outputs, tmp_path):
    for number, words in enumerate(AWKWARD):
        config = {"description": words, "seed": number, "penalty.odd": words}
        add_run(outputs, f"r{number:02}", config, title=words[:300], warnings=(words[:99], "plain"))
        add_run(outputs, f"s{number:02}", {"description": words, "seed": number}, state="failed", error=words)
    text = check_round_trip(records([outputs]), tmp_path)
    assert f"\nDescription: {AWKWARD[0]}\n" in text  # as it is, since it reads back so
    check_round_trip(records([outputs / "runs" / "r01"]), tmp_path)


def test_any_text_comes_back(outputs, tmp_path):
    parts = (
        "\n", " ", "'", '"', "\\", "{", "}", "#", "Run 1:", "## Run 2: x", "Results: {", "Description: ", "```", "- ",
        "State: {'run_id': 1}", "é", "\t", "\r", "nan", "1.5", "(k = 3)", "\u2028", "> ", "    ", "\n\n", "#### ",
    )  # fmt: skip
    draw = random.Random(0)
    for number in range(60):
        words, title = ("".join(draw.choices(parts, k=draw.randrange(1, 12))) for _ in range(2))
        add_run(outputs, f"r{number:02}", {"description": words, "seed": number}, title=title)
    check_round_trip(records([outputs]), tmp_path)


def test_findings_of_the_whole_sweep_come_back(sweep, tmp_path):
    text = check_round_trip(records([sweep]), tmp_path, varied=["penalty", "seed"])
    assert "Findings of the audit:\n- error, diverged" in text
    assert "reported" not in notes(records([imported(text, tmp_path)]))


def test_two_files_of_notes_together_are_audited_anew(sweep, outputs, tmp_path):
    one = imported(notes(records([outputs / "runs" / "aaaa"])), tmp_path, "one")
    two = imported(notes(records([outputs / "runs" / "bbbb"])), tmp_path, "two")
    assert "note, reported" in notes(records([one, two]))


def test_metrics_from_outside_keep_their_direction(outputs, tmp_path):
    from analysis.metrics import _recorded, described

    for run_id, value in (("a", 1.0), ("b", 2.0)):
        folder = add_run(outputs, run_id, {"seed": value, "penalty.name": "none" if value < 2 else "x"}, {"odd": value})
        results = json.loads((folder / "results.json").read_text())
        write_json(folder / "results.json", results | {"described": {"odd": ["lower", "od"]}})
    text = notes(records([outputs]))
    assert "odd 2.000 (1 higher, worse)" in " ".join(text.split())
    path = imported(text, tmp_path)
    _recorded.clear()
    described.cache_clear()
    assert notes(records([path])) == text


def test_hostile_text_never_passes_for_a_run(outputs, tmp_path):
    add_run(outputs, "a", {"penalty.name": HOSTILE, "seed": 1}, title=HOSTILE, warnings=(HOSTILE,))
    add_run(outputs, "b", {"seed": 2}, state="failed", error=HOSTILE)
    (found,) = read_sources([_written(notes(records([outputs])), tmp_path / "h.txt")])
    assert [run["run_id"] for run in found.runs] == ["h/0", "h/1"]
    assert found.runs[0]["metrics"]["fvu"] == METRICS["fvu"] and found.runs[0]["config"]["penalty"] == HOSTILE


def _written(text, path):
    path.write_text(text)
    return path


def test_notes_that_a_hand_has_changed(sweep, tmp_path):
    text = notes(records([sweep]))
    more = text.replace("'final_loss': 30.5", "'final_loss': 31.5", 1) + "\n## Run 7: planned\nDescription: k = 320\n"
    full = records([imported(more, tmp_path)])
    assert list(full["run", "run_id"]) == ["n/0", "n/1", "n/2", "n/7"]
    assert full["metrics", "final_loss"].tolist()[0] == 31.5 and full["run", "description"].tolist()[3] == "k = 320"
    for old, new in (("Results: {", "Results: "), ("'state': 'completed'", "'stat': 1"), ("'final_info'", "'final'")):
        with pytest.raises(DataError, match=r"n\.txt, line \d+: the run does not read back \(.*\); mend it\."):
            imported(text.replace(old, new, 1), tmp_path)


def test_the_command_writes_whole_files(sweep, tmp_path, capsys):
    assert main(["notes", str(sweep), "-o", str(tmp_path / "n" / "notes.txt")]) == 0
    assert capsys.readouterr().out == f"3 runs -> {tmp_path / 'n' / 'notes.txt'}\n"
    assert main(["notes", str(sweep)]) == 0
    assert capsys.readouterr().out == (tmp_path / "n" / "notes.txt").read_text()
    assert main(["notes", str(sweep), "--baseline", "nobody"]) == 2
    assert (
        capsys.readouterr().err == "error: --baseline nobody: no run of these paths; give a run id or a whole title.\n"
    )


def test_notes_of_imports_are_of_their_studies(tmp_path):
    text = notes(records(["reference:progressive_orthogonality"]))
    assert headings(text)[:2] == ["Run 0: TopK baseline", "Run 0b: standard (ReLU + L1) baseline"]
    results = in_dict("Results", blocks(text)[0])
    assert list(results)[0] == "training results" and "core evaluation results" in results
    again = notes(records([imported(text, tmp_path)]))
    assert again == text
    assert len(table([tmp_path / "n.json"]).frame) == 4


def test_a_penalty_that_is_not_recorded_is_not_taken_for_none(tmp_path):
    results = "{{'training results': {{'config': {{'k': {}}}, 'final_info': {{'final_loss': {}}}}}}}"
    run = f"## Run {{}}: {{}}\nResults: {results}\n"
    titles = ("Orthogonality penalty, weight 0.5", "Another weight", "Baseline")
    lines = [run.format(n, title, n, n) for n, title in enumerate(titles, 1)]
    for count, baseline, reason in (
        (1, None, None),
        (2, "Run 1: Baseline: Orthogonality", "the first with results"),
        (3, "Run 3: Baseline", "a baseline by its title"),
    ):
        text = " ".join(notes(records([imported("# Title: x\n" + "\n".join(lines[:count]), tmp_path)])).split())
        assert "without a penalty" not in text and text.count("penalty not recorded") == count
        assert [baseline is not None, reason is not None] == [f"## {baseline}" in text, f", {reason}." in text]
        assert ("aseline: Orth" in text) == (count == 2)
