import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from analysis.__main__ import main
from analysis.commands.table import FORMATS as OFFERED
from analysis.output.formats import FORMATS, render
from analysis.output.view import labels
from analysis.tables.compare import table
from analysis.tables.marks import best_rows
from sae_sweeps.errors import ConfigError
from sae_sweeps.storage.run_folder import RunFolder
from tests.analysis.outputs import add_run, add_sweep

ROOT = Path(__file__).parents[3]
SINGLE_SEED = "every configuration has a single seed, so their differences may be chance."
HOSTILE = "=1+1 [red]x[/red]\n| a | <b>&\x1b[31m\u202e `*"


@pytest.fixture
def sweep(outputs):
    for run_id, weight, fvu in (("aaaaaaaaaaaa", 0.1, 0.05), ("bbbbbbbbbbbb", 0.5, 0.04), ("cccccccccccc", 1.0, 0.06)):
        add_run(outputs, run_id, {"penalty.lambda2_max": weight}, {"fvu": fvu, "penalty_loss": weight / 7})
    return add_sweep(outputs, "s", ["aaaaaaaaaaaa", "bbbbbbbbbbbb", "cccccccccccc"])


def config_columns(frame):
    return [name for kind, name in frame.columns if kind == "config"]


def test_a_sweep_in_a_hundred_columns(sweep):
    result = table([sweep])
    assert config_columns(result.frame) == ["penalty.lambda2_max"] and result.warnings == [SINGLE_SEED]
    lines = render(result).splitlines()
    assert max(map(len, lines)) <= 100
    assert [word for word in lines[0].split() if "─" not in word] == ["config", "core", "sparsity", "penalty"]
    assert lines[2].split()[:4] == ["run_id", "max", "fvu", "ce_score"] and lines[1].split()[0] == "lambda2_"
    assert lines[5].split()[:3] == ["bbbbbbbbbbbb", "0.5", "0.04000*"] and lines[5].count("*") == 1
    assert "0.07143" in lines[5] and lines[-2:] == ["* best in its column", f"warning: {SINGLE_SEED}"]
    assert "state" not in lines[2] and "steps" not in lines[2]


def test_a_narrow_terminal_gets_fewer_metrics_and_is_told(sweep):
    lines = render(table([sweep]), width=60).splitlines()
    assert max(map(len, lines[:-2])) <= 60 and lines[-2].startswith("left out for want of room: ")
    assert lines[-2].endswith("penalty_loss")
    assert "\x1b" in render(table([sweep]), color=True) and "\x1b" not in render(table([sweep]))


def test_only_keys_that_differ_and_that_tell_runs_apart(outputs):
    add_run(outputs, "a", {"logger.name": "wandb", "title": "x", "outputs": "elsewhere"})
    add_run(
        outputs, "b", {"model.name": "other", "model.d_in": 64, "penalty": {"name": "none"}, "architecture.k": None}
    )
    add_run(outputs, "c", {"architecture.k": True, "layer.index": 3, "seed": 1})
    result = table([outputs])
    assert config_columns(result.frame) == ["model", "layer.index", "architecture.k", "penalty", "seed"]
    assert (
        render(result, "csv")
        .splitlines()[0]
        .startswith("run_id,title,state,step,total_steps,model,layer,k,penalty,seed,")
    )
    assert [row.split(",")[7] for row in render(result, "csv").splitlines()[1:]] == ["32", "", "True"]


def test_labels_are_short_where_they_can_be():
    columns = [
        ("run", "title"),
        ("metrics", "l0"),
        ("metrics", "k"),
        ("config", "model.l0"),
        ("config", "penalty.ortho.tau"),
        ("config", "penalty.contrastive.tau"),
        ("config", "architecture.lr"),
        ("config", "k"),
        ("config", "name"),
    ]
    assert list(labels(columns).values()) == [
        "title", "l0", "k", "model.l0", "ortho.tau", "contrastive.tau", "lr", "config.k", "name",
    ]  # fmt: skip


def test_best_by_direction_and_never_for_what_contains_lambda(outputs):
    add_run(outputs, "a", metrics={"l2_ratio": 0.9, "sae_top_1_test_accuracy": 0.7, "fvu": 0.1, "mse": None})
    add_run(
        outputs, "b", metrics={"l2_ratio": 1.05, "sae_top_1_test_accuracy": 0.8, "fvu": 0.1, "mse": 3, "final_loss": 1}
    )
    add_run(outputs, "c", metrics={"l2_ratio": 1.2, "sae_top_1_test_accuracy": 0.8, "fvu": 0.2, "penalty_loss": 0})
    result = table([outputs])
    best = {column[1]: best_rows(result, column) for column in result.frame.columns}
    assert (best["l2_ratio"], best["sae_top_1_test_accuracy"], best["fvu"]) == ({1}, {1, 2}, {0, 1})
    for unranked in ("final_loss", "penalty_loss", "l0", "mse", "cossim", "run_id", "tokens", "ce_loss_score"):
        assert not best.get(unranked)


def test_unfinished_and_diverged_runs_show_their_state_and_no_number(outputs, sweep):
    add_run(outputs, "dddddddddddd", {"penalty.lambda2_max": 2}, state="diverged", step=40, error="penalty went first")
    add_run(outputs, "eeeeeeeeeeee", {"penalty.lambda2_max": 3}, state="running", step=99)
    result = table([sweep, outputs, add_sweep(outputs, "t", ["never"])])
    assert list(result.frame["run", "state"]) == ["completed"] * 3 + ["diverged", "running", "queued"]
    lines = render(result).splitlines()
    assert lines[7].split() == ["!", "dddddddddddd", "diverged", "at", "40%", "2"]
    assert lines[8].split() == ["eeeeeeeeeeee", "running", "at", "99%", "3"] and lines[9].split() == ["never", "queued"]
    assert "warning: never: 1 of 6 runs are queued." in lines
    assert "warning: eeeeeeeeeeee: 1 of 6 runs are running." in lines
    assert "warning: dddddddddddd: diverged (penalty went first), so there is no result." in lines


def test_unequal_budgets_are_a_warning_and_a_column(outputs):
    add_run(outputs, "a", warnings=("the text repeats",))
    add_run(outputs, "b", {"batch_size": 500}, {"steps": 200}, warnings=("the text repeats",))
    add_run(outputs, "c", {"num_tokens": 50_000}, {"steps": None, "tokens": None}, warnings=("odd",))
    result = table([outputs])
    assert result.warnings[:5] == [
        "the runs differ in total_steps (100, 200): they are not compared at equal budgets.",
        "c: its config means 50 steps, it took 100.",
        "the runs differ in batch_size (500, 1000): they are not compared at equal budgets.",
        "a, b: the text repeats",
        "c: odd",
    ]
    assert result.levels == dict.fromkeys("abc", "error")
    assert "steps" in render(table([outputs])).splitlines()[2]


def test_sorting(outputs, sweep):
    def order(key):
        return "".join(run_id[0] for run_id in table([sweep], sort=key).frame["run", "run_id"])

    add_run(outputs, "dddddddddddd", {"penalty.lambda2_max": None}, state="failed")
    sweep = add_sweep(outputs, "s", ["dddddddddddd", "cccccccccccc", "bbbbbbbbbbbb", "aaaaaaaaaaaa"])
    assert order("fvu") == "bacd" and order("lambda2_max") == "abcd" and order("penalty_loss") == "abcd"
    assert order("state") == "cbad" and order("run_id") == "abcd"


def test_chosen_columns(sweep):
    result = table([sweep], columns=["layer", "k", "kl*", "*_loss"])
    names = [name for _, name in result.frame.columns]
    assert names[:4] == ["run_id", "layer.index", "architecture.k", "kl_div_score"]
    assert sorted(names[4:]) == ["final_loss", "penalty_loss"]
    assert render(result).splitlines()[2].split()[:3] == ["run_id", "layer", "k"]
    with pytest.raises(ConfigError, match="no run has a column 'lamda2_max'; did you mean lambda2_max"):
        table([sweep], columns=["lamda2_max"])
    with pytest.raises(ConfigError, match="choose one of text, markdown, csv, json"):
        render(result, "pdf")


@pytest.fixture
def hostile(outputs):
    odd = {"name": HOSTILE, "penalty.a/b": "-2+3", "penalty.tau": "+x", "penalty.name": "@y"}
    add_run(outputs, "a", odd, {"penalty/overlap|x": 1, "run_id": 7}, title=HOSTILE, warnings=(HOSTILE,))
    add_run(outputs, "b", {"name": "plain", "penalty.tau": 0.1}, {"penalty/overlap|x": 2})
    return outputs


def test_hostile_text_in_a_terminal(hostile):
    shown = render(table([hostile], columns=["name", "title", "penalty/overlap|x", "penalty.a/b"]))
    assert "[red]x[/red] | a | <b>& [31m" not in shown and "[red]x[/red]" in shown
    assert not {c for c in shown if not c.isprintable()} - {"\n"}
    assert len(shown.splitlines()) == 9 and "overlap|x" in shown


def test_hostile_text_in_markdown(hostile):
    shown = render(table([hostile], columns=["name", "title", "penalty/overlap|x"]), "markdown")
    rows = [line for line in shown.splitlines() if line.startswith("|")]
    assert {line.replace(r"\|", "").count("|") for line in rows} == {5} and len(rows) == 4
    assert "<b>" not in shown and r"\[red\]" in shown and r"penalty/overlap\|x" in shown


def test_hostile_text_in_csv_and_json(hostile):
    result = table([hostile])
    header, first, second = csv.reader(io.StringIO(render(result, "csv")))
    assert len(header) == len(first) == len(second) == len(set(header))
    row = dict(zip(header, first, strict=True))
    assert row["title"].startswith("'=1+1") and row["penalty"] == "'@y" and row["tau"] == "'+x"
    content = json.loads(render(result, "json"))
    assert content["runs"][0]["title"] == HOSTILE and content["runs"][0]["metrics"]["run_id"] == 7
    assert content["runs"][0]["config"]["name"] == HOSTILE


def test_a_picture_fetches_nothing_and_hostile_text_stays_text(hostile, sweep):
    from xml.etree import ElementTree

    for path in (hostile, sweep):
        picture = render(table([path]), "svg")
        tree = ElementTree.fromstring(picture)
        words = {tag for element in tree.iter() for tag in [element.tag.rpartition("}")[2]]}
        assert "script" not in words and "image" not in words
        addresses = [part.split('"')[0] for part in picture.split("http")[1:]]
        assert all("www.w3.org" in address or "-->" in address for address in addresses)


def test_json_has_everything(sweep):
    content = json.loads(render(table([sweep]), "json"))
    assert [run["config"] for run in content["runs"]] == [{"penalty.lambda2_max": w} for w in (0.1, 0.5, 1.0)]
    assert content["runs"][0]["metrics"]["kl_div_score"] == 0.98 and content["warnings"] == [SINGLE_SEED]
    assert content["best"] == {"fvu": ["bbbbbbbbbbbb"]}


def test_the_command(sweep, capsys):
    assert main(["table", str(sweep), "--sort", "fvu", "--columns", "lambda2_max,fvu", "--format", "csv"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "run_id,lambda2_max,fvu", "bbbbbbbbbbbb,0.5,0.04", "aaaaaaaaaaaa,0.1,0.05", "cccccccccccc,1,0.06",
    ]  # fmt: skip
    assert set(OFFERED) == set(FORMATS)


@pytest.mark.parametrize("words", [["{}/nowhere"], ["{}", "--sort", "nothing"], ["{}", "--columns", "x*"]])
def test_a_mistake_is_one_sentence_and_exit_status_2(sweep, capsys, words):
    assert main(["table", *(word.format(sweep) for word in words)]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("error: ") and shown.err.count("\n") == 1


def test_nothing_heavy_is_imported():
    code = (
        "import sys, analysis.__main__ as m\n"
        "assert not {'pandas', 'torch', 'rich', 'hydra', 'yaml'} & set(sys.modules)\n"
        "import analysis.tables.table\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_file_is_written_whole_in_the_format_of_its_ending(sweep, tmp_path, capsys):
    for ending, begins in ((".md", "| run_id"), (".tex", "% \\usepackage"), (".html", "<!doctype"), (".json", "{")):
        file = tmp_path / "new" / f"table{ending}"
        assert main(["table", str(sweep), "-o", str(file)]) == 0
        assert file.read_text().startswith(begins) and file.read_text().endswith("\n")
        assert capsys.readouterr().out == f"table   {file}\n"
    assert main(["table", str(sweep), "-o", str(tmp_path / "x.csv"), "--format", "markdown"]) == 0
    assert (tmp_path / "x.csv").read_text().startswith("| run_id")


def test_sorting_the_other_way_round(outputs, sweep, capsys):
    add_run(outputs, "dddddddddddd", {"penalty.lambda2_max": 2}, state="failed")
    for words in (["--sort", "-fvu"], ["--sort=-fvu"]):
        assert main(["table", str(outputs), "--format", "csv", "--columns", "fvu", *words]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line[0] for line in lines[1:]] == ["c", "a", "b", "d"]  # worst first, what has none last


def test_the_words_of_the_command_together(sweep, capsys):
    words = ["--where", "lambda2_max >= 0.5", "--baseline", "cccc", "--sort", "fvu", "--columns", "fvu, lambda2_max"]
    assert main(["table", str(sweep), *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[4].split() == ["bbbbbbbbbbbb", "0.04000*", "-0.0200", "0.5"]
    assert lines[5].split() == ["cccccccccccc", "0.06000", "1"]
    assert main(["table", str(sweep), "--pivot", "penalty", "lambda2_max", "fvu"]) == 0
    assert capsys.readouterr().out.splitlines()[-2] == "fvu by penalty and lambda2_max"
    assert main(["table", str(sweep), "--fold", "lambda2_max"]) == 0
    assert "0.050 ± 0.010 (3)" in capsys.readouterr().out


def test_watching_ends_when_no_run_goes_on(outputs, sweep, capsys, monkeypatch):
    folder = add_run(outputs, "dddddddddddd", {"penalty.lambda2_max": 2}, state="running", step=40)
    waited = []

    def wait(seconds):
        waited.append(seconds)
        if len(waited) == 2:
            add_run(outputs, "dddddddddddd", {"penalty.lambda2_max": 2}, {"fvu": 0.01})

    monkeypatch.setattr("time.sleep", wait)
    assert main(["table", str(outputs), "--watch", "0.5"]) == 0
    shown = capsys.readouterr().out
    assert waited == [0.5, 0.5] and shown.count("running at 40%") == 2 and shown.count("0.01000*") == 1
    assert folder.exists()


def test_watching_ends_with_ctrl_c_and_where_everything_died(outputs, capsys, monkeypatch):
    folder = add_run(outputs, "a", state="running", step=40)

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", interrupt)
    assert main(["table", str(outputs), "--watch"]) == 0
    assert capsys.readouterr().out.count("running at 40%") == 1
    (folder / "lease.json").unlink()
    assert main(["table", str(outputs), "--watch", "--columns", "k,state"]) == 0
    assert "lost? at 40%" in capsys.readouterr().out


def test_watching_waits_for_metrics_that_are_asked_for(outputs, capsys, monkeypatch):
    add_run(outputs, "a", state="running", step=40)
    monkeypatch.setattr("time.sleep", lambda seconds: add_run(outputs, "a"))
    assert main(["table", str(outputs), "--watch", "--columns", "fvu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["a", "running", "at", "40%"] and "0.05000" in lines[-1]
    assert lines[3].startswith("waiting for a first result: no run has a column 'fvu'")
    assert main(["table", str(outputs), "--watch", "--columns", "fuv"]) == 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--where", "k ="], "position 4 is not a value"),
        (["--where", "k = 1"], "no run of 3 matches --where 'k = 1'; architecture.k is 32."),
        (["--fold", "sed"], "did you mean seed?"),
        (["--fold", ","], "--aggregate names no key"),
        (["--pivot", "seed", "k", "fuv"], "did you mean fvu?"),
        (["--baseline", "zzz"], "no run here has that id"),
        (["-o", "table.pdf"], ".pdf names no format"),
        (["--watch", "0"], "write seconds above 0"),
        (["--watch", "--format", "csv"], "leave out --output and --format"),
        (["--sort", "-fuv"], "did you mean fvu?"),
    ],
)
def test_mistakes_in_words_are_told_in_one_sentence(sweep, capsys, words, sentence):
    assert main(["table", str(sweep), *words]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and sentence in shown.err and shown.err.count("\n") == 1


def test_results_that_nothing_asks_for_are_not_read(outputs, sweep, monkeypatch):
    monkeypatch.setattr("analysis.reading.convergence.followed", lambda folder: pytest.fail("read metrics.jsonl"))
    table([sweep], columns=["fvu"], sort="-fvu", where="k = 32")
    table([sweep], pivot=("seed", "k", "fvu"))
    with pytest.raises(pytest.fail.Exception):
        table([sweep], columns=["tokens_*"])


def test_a_target_of_its_own_can_be_filtered_by(outputs):
    for run_id, fvu in (("a", 0.2), ("b", 0.4)):
        folder = RunFolder(add_run(outputs, run_id, {"seed": ord(run_id)}))
        folder.metrics.append({"step": 1, "tokens": 1000, "tokens_per_s": 10, "held_out_fvu": fvu})
    result = table([outputs], target_fvu=0.3, where="tokens_to_fvu <= 1000")
    assert list(result.frame["run", "run_id"]) == ["a"] and result.target_fvu == 0.3
    assert list(table([outputs], where="seed > 0").frame["metrics", "tokens_to_fvu"]) == [1000, 1000]


def test_titles_come_first_where_many_keys_differ(tmp_path):
    keys = ("seed", "architecture.k", "architecture.d_sae", "penalty.tau", "penalty.lambda2_max")
    for number, title in enumerate(("plain", "with more")):
        add_run(tmp_path, f"run-{number}", dict.fromkeys(keys, number + 5), title=title)
    head = render(table([tmp_path]), "markdown").splitlines()[0]
    assert head.index("run_id") < head.index("title") < head.index("fvu") < head.index("d_sae") < head.index("seed")
    add_run(tmp_path, "run-2", dict.fromkeys(keys, 9), title="plain")
    head = render(table([tmp_path]), "markdown").splitlines()[0]
    assert "title" not in head and head.index("d_sae") < head.index("fvu")
