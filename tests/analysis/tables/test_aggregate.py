import csv
import io
import json
import math
import statistics

import pytest
from scipy import stats

from analysis.output.formats import render
from analysis.tables.compare import table
from sae_sweeps.errors import ConfigError
from tests.analysis.outputs import add_run

VALUES = {"none": [0.20, 0.23, 0.21], "ortho": [0.192, 0.1931, 0.1921, 0.1956]}


@pytest.fixture
def seeds(tmp_path):
    outputs = tmp_path / "outputs"
    for penalty, values in VALUES.items():
        for seed, fvu in enumerate(values):
            changes = {"penalty": {"name": penalty}, "seed": seed, "title": f"{penalty} {seed}"}
            add_run(outputs, f"{penalty}-{seed}", changes, {"fvu": fvu, "extra": 1.0} if seed else {"fvu": fvu})
    return outputs


def test_seeds_become_mean_spread_and_interval(seeds):
    result = table([seeds], aggregate=["seed"])
    assert (
        list(result.frame["run", "run_id"]) == ["none-0", "ortho-0"] and ("config", "seed") not in result.frame.columns
    )
    assert [list(runs) for runs in result.frame["run", "runs"]] == [
        [f"none-{seed}" for seed in range(3)],
        [f"ortho-{seed}" for seed in range(4)],
    ]
    for row, values in enumerate(VALUES.values()):
        mean, std, n = statistics.fmean(values), statistics.stdev(values), len(values)
        low, high = stats.t.interval(0.95, n - 1, loc=mean, scale=std / math.sqrt(n))
        told = [result.frame[kind, "fvu"][row] for kind in ("metrics", "std", "n", "ci_low", "ci_high")]
        assert told == pytest.approx([mean, std, n, low, high], rel=1e-12)
    assert list(result.frame["n", "extra"]) == [2, 3]  # of the runs that have it
    assert list(result.frame["std", "extra"]) == [0, 0]


def test_runs_from_before_a_key_was_added_have_its_default(tmp_path):
    added = {"layer.d_in": 64, "model.instruct": "x/y", "train.recon": "squared", "eval.seed": 42}
    for seed, changes in enumerate(({}, added, added | {"eval.seed": 1})):
        add_run(tmp_path, f"run-{seed}", {"train": {}, "eval": {}, "seed": seed, **changes}, {"fvu": 0.1 * seed})
    frame = table([tmp_path], aggregate=["seed"]).frame
    assert [list(runs) for runs in frame["run", "runs"]] == [["run-0", "run-1"], ["run-2"]]


def test_which_evaluations_a_run_has_does_not_keep_it_apart(tmp_path):
    how = {"eval": {"name": "core", "evaluations": ["core"], "recon_batches": 4}}
    more = {"eval": how["eval"] | {"name": "full", "evaluations": ["core", "features"]}}
    other = {"eval": more["eval"] | {"recon_batches": 5}}
    for seed, changes in enumerate((how, more, other)):
        add_run(tmp_path, f"run-{seed}", {"seed": seed, **changes}, {"fvu": 0.1 * seed})
    frame = table([tmp_path], aggregate=["seed"]).frame
    assert [list(runs) for runs in frame["run", "runs"]] == [["run-0", "run-1"], ["run-2"]]
    assert ("config", "eval.evaluations") not in frame.columns, "the row's runs have different ones"
    assert list(frame["config", "eval.recon_batches"]) == [4, 5]


def test_what_people_and_programs_see(seeds):
    result = table([seeds], aggregate=["seed"])
    shown = render(result)
    assert "0.213 ± 0.015 (3)" in shown and "0.1932 ± 0.0017 (4)*" in shown and "ortho-0 +3" in shown
    assert "mean ± standard deviation (runs) over seed" in shown
    header, first, _ = csv.reader(io.StringIO(render(result, "csv")))
    row = dict(zip(header, first, strict=True))
    assert row["runs"] == "none-0 none-1 none-2" and row["fvu_n"] == "3"
    assert float(row["fvu_std"]) == pytest.approx(statistics.stdev(VALUES["none"]))
    assert {"fvu_mean", "fvu_ci_low", "fvu_ci_high"} <= set(header) and "fvu" not in header
    content = json.loads(render(result, "json"))
    assert content["runs"][1]["metrics"]["fvu"].keys() == {"mean", "std", "n", "ci_low", "ci_high"}
    assert content["folded"] == ["seed"] and content["best"]["fvu"] == ["ortho-0"]


def test_a_single_run_has_no_spread(tmp_path):
    add_run(tmp_path, "a", {"seed": 0, "penalty.tau": 1}, {"fvu": 0.2})
    add_run(tmp_path, "b", {"seed": 0, "penalty.tau": 2}, {"fvu": 0.4})
    add_run(tmp_path, "c", {"seed": 1, "penalty.tau": 2}, {"fvu": 0.6})
    result = table([tmp_path], aggregate=["seed"])
    assert math.isnan(result.frame["std", "fvu"][0]) and math.isnan(result.frame["ci_low", "fvu"][0])
    assert "0.2000 (1)" in render(result) and "0.50 ± 0.14 (2)" in render(result)
    assert any(
        "nothing is aggregated" in w
        for w in table([tmp_path / "runs" / "a", tmp_path / "runs" / "b"], aggregate=["seed"]).warnings
    )


@pytest.mark.parametrize(
    "other",
    [
        {"config": {"architecture.k": 64}},
        {"config": {"penalty": {"name": "none"}}},
        {"config": {"eval.recon_batches": 9}},  # judged otherwise
        {"config": {"odd": None}},
        {"config": {"batch_size": True}},
        {"metrics": {"tokens": 99_000}},
        {"metrics": {"steps": 99}},
        {"metrics": {"tokens": None}, "config": {"num_tokens": 7}},
        {"state": "diverged"},
        {"state": "running"},
    ],
)  # fmt: skip
def test_runs_that_differ_in_more_stay_apart(tmp_path, other):
    add_run(tmp_path, "a", {"seed": 0, "batch_size": 1})
    add_run(tmp_path, "b", {"seed": 1, "batch_size": 1})
    more = dict(other)
    add_run(tmp_path, "c", {"seed": 2, "batch_size": 1} | more.pop("config", {}), **more)
    result = table([tmp_path], aggregate=["seed"])
    assert [list(runs) for runs in result.frame["run", "runs"]] == [["a", "b"], ["c"]]


def test_where_a_run_was_made_does_not_keep_it_apart(tmp_path):
    for seed, device in enumerate(("cpu", "cuda")):
        add_run(tmp_path, f"r{seed}", {"seed": seed, "device": device, "logger.name": device, "title": f"t{seed}"})
    assert len(table([tmp_path], aggregate=["seed"]).frame) == 1


def test_titles_lose_the_words_of_the_aggregated_keys_alone(tmp_path):
    for seed, title in enumerate(("TopK k=8", "TopK seed=1 k=8", "TopK k=8 seed=2")):
        add_run(tmp_path, f"r{seed}", {"seed": seed}, title=title)
    for seed, title in enumerate(("one data_seed=3", "other")):
        add_run(tmp_path, f"s{seed}", {"seed": seed, "k": 4}, title=title)
    result = table([tmp_path], aggregate=["seed"])
    assert list(result.frame["run", "title"]) == ["TopK k=8", None]


def test_runs_without_the_key_and_equal_seeds(tmp_path):
    for name in "abc":
        add_run(tmp_path, name, {"seed": 0, "device": name})
    result = table([tmp_path], aggregate=["seed"])
    assert len(result.frame) == 1
    assert "a, b, c: aggregated runs of equal seed, so their spread and interval are too small." in result.warnings
    for name in "de":
        add_run(tmp_path, name, {"arm": {"name": name}}, state="completed")
    result = table([tmp_path], aggregate=["arm"])
    assert [list(runs) for runs in result.frame["run", "runs"]] == [["a"], ["b"], ["c"], ["d", "e"]]


def test_several_keys_fold_together(seeds):
    result = table([seeds], aggregate=["seed", "penalty"])
    assert list(result.frame["n", "fvu"]) == [7] and not [c for c in result.frame.columns if c[0] == "config"]
    with pytest.raises(ConfigError, match="did you mean seed"):
        table([seeds], aggregate=["seeds"])
    with pytest.raises(ConfigError, match="--aggregate fvu: that is no config key"):
        table([seeds], aggregate=["fvu"])


def test_differences_to_a_baseline(seeds):
    result = table([seeds], baseline="none-1", columns=["fvu"])
    differences = list(result.frame["difference", "fvu"])
    assert math.isnan(differences[1])
    assert differences[3] == pytest.approx(0.192 - 0.23) and ("difference_low", "fvu") not in result.frame.columns
    shown = render(result)
    assert "Δfvu" in shown and "-0.0380" in shown and "differences to none-1 (penalty none, seed 1)" in shown
    assert (
        list(table([seeds], baseline="penalty = none and seed = 0", columns=["fvu"]).frame["difference", "fvu"])[1] > 0
    )
    assert "fvu_difference" in render(result, "csv").splitlines()[0]
    assert json.loads(render(result, "json"))["runs"][3]["differences"]["fvu"]["value"] == pytest.approx(-0.038)


def test_differences_of_folds_have_welchs_interval(seeds):
    result = table([seeds], aggregate=["seed"], baseline="penalty = none")
    test = stats.ttest_ind(VALUES["ortho"], VALUES["none"], equal_var=False)
    interval = test.confidence_interval(0.95)
    told = [result.frame[kind, "fvu"][1] for kind in ("difference", "difference_low", "difference_high")]
    expected = statistics.fmean(VALUES["ortho"]) - statistics.fmean(VALUES["none"])
    assert told == pytest.approx([expected, interval.low, interval.high], rel=1e-9)
    assert [result.frame[kind, "l0"][1] for kind in ("difference_low", "difference_high")] == [
        0,
        0,
    ]  # without any spread
    assert ("difference", "tokens") not in result.frame.columns
    words = f"{expected:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"
    assert words in render(result)


@pytest.mark.parametrize(
    ("baseline", "sentence"),
    [
        ("nothing", "no run here has that id"),
        ("penalty = none", "3 rows match; name one row, or --aggregate what they differ in"),
        ("penalty = ", "--baseline 'penalty =': the end at position 11 is not a value"),
        ("seed = 77", "no run matches; name one row"),
    ],
)
def test_a_baseline_is_one_row(seeds, baseline, sentence):
    with pytest.raises(ConfigError) as caught:
        table([seeds], baseline=baseline)
    assert sentence in str(caught.value)


def test_a_pivot_averages_what_shares_a_cell(seeds):
    result = table([seeds], pivot=("penalty", "k", "fvu"))
    assert list(result.frame["config", "penalty"]) == ["none", "ortho"]
    assert list(result.frame["n", "k=32"]) == [3, 4]
    assert result.frame["metrics", "k=32"][0] == pytest.approx(statistics.fmean(VALUES["none"]))
    assert "mean ± standard deviation (runs) of runs that differ in seed" in result.notes
    shown = table([seeds], pivot=("seed", "penalty", "fvu"))
    assert list(shown.frame["config", "seed"]) == [0, 1, 2, 3]
    text = render(shown)
    assert text.splitlines()[1].split() == ["seed", "penalty=none", "penalty=ortho"]
    assert text.count("*") == 2 and "0.1920*" in text  # one cell, and the legend
    assert text.splitlines()[6].split() == ["3", "0.1956"]  # nothing where no run is
    assert json.loads(render(shown, "json"))["pivot"] == "fvu"


def test_a_pivot_keeps_kinds_and_null_apart(tmp_path):
    for number, value in enumerate((1, True, None, "1", 2.5)):
        add_run(tmp_path, f"r{number}", {"odd": value}, {"fvu": number + 1.0})
    add_run(tmp_path, "r9", {}, {"fvu": 9.0})
    result = table([tmp_path], pivot=("k", "odd", "fvu"))
    cells = {name: result.frame["metrics", name][0] for kind, name in result.frame.columns if kind == "metrics"}
    assert sorted(cells.values()) == [1, 2, 3, 4, 5, 9]
    assert len(cells) == 6 and {"odd=true", "odd=2.5", "odd=null"} <= set(cells)


def test_a_pivot_refuses_what_does_not_compare(seeds, tmp_path):
    add_run(seeds, "more", {"penalty": {"name": "none"}, "seed": 0}, {"tokens": 7})
    for words, sentence in (
        (("penalty", "k", "fvu"), "runs under k=32 differ in tokens; take some of them out with --where"),
        (("penalty", "penalty", "fvu"), "rows and columns are the same key"),
        (("penalty", "seed", "k"), "that is no metric"),
    ):
        with pytest.raises(ConfigError) as caught:
            table([seeds], pivot=words)
        assert sentence in str(caught.value)
    with pytest.raises(ConfigError, match="--pivot cannot be combined"):
        table([seeds], pivot=("penalty", "seed", "fvu"), aggregate=["seed"])
