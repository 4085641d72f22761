import pytest

from analysis.metrics import DIRECTIONS, FIRST, TARGETS, direction, group, short_name, unfitness
from analysis.output.formats import render
from analysis.tables.compare import table
from analysis.tables.marks import reached_rows
from tests.analysis.outputs import METRICS, add_run

SAEBENCH = [f"{who}_top_{k}_test_accuracy" for who in ("sae", "llm") for k in (1, 2, 5, 10, 20, 50, 100)]
SAEBENCH += [f"scr_{what}_threshold_{k}" for what in ("dir1", "metric", "dir2") for k in (2, 5, 10, 20, 50, 100, 500)]
SAEBENCH += [
    f"tpp_threshold_{k}_{what}"
    for what in ("total_metric", "intended_diff_only", "unintended_diff_only")
    for k in (2, 5, 10, 20, 50, 100, 500)
]
NAMES = list(dict.fromkeys([*FIRST, *METRICS, *SAEBENCH, *(name for name in DIRECTIONS if "*" not in name)]))


def test_short_names_are_shorter_and_no_two_alike():
    shorts = [short_name(name) for name in NAMES]
    assert len(set(shorts)) == len(NAMES) and not set(shorts) & (set(NAMES) - {n for n in NAMES if short_name(n) == n})
    assert all(len(short) <= len(name) for short, name in zip(shorts, NAMES, strict=True))
    assert (
        short_name("sae_top_1_test_accuracy") == "top1"
        and short_name("builtin_sae_top_1_test_accuracy") == "builtin_top1"
    )
    assert short_name("scr_dir2_threshold_500") == "scr500_dir2" and short_name("unheard_of") == "unheard_of"


def test_every_metric_that_is_shown_has_a_group():
    assert "other" not in {group(name) for name in NAMES} and group("unheard_of") == "other"
    assert (group("fvu"), group("scr_metric_threshold_10"), group("penalty_loss")) == ("core", "SCR/TPP", "penalty")
    assert group("builtin_unlearning_score") == "built-in data"
    groups = [group(name) for name in FIRST]
    assert len(set(groups)) == 1 + sum(a != b for a, b in zip(groups, groups[1:], strict=False))  # each stands together


def test_targets_have_the_direction_of_their_metric():
    assert {name: direction(name) for name in TARGETS} == {name: better for name, (better, _) in TARGETS.items()}


def test_targets_are_marked_beyond_and_not_at_the_value(tmp_path):
    values = {
        "mean_absorption_score": (0.0099, 0.01),
        "unlearning_score": (0.11, 0.1),
        "sae_top_1_test_accuracy": (0.75, 0.74),
    }
    for row, run_id in enumerate("ab"):
        metrics = {name: pair[row] for name, pair in values.items()}
        builtin = {f"builtin_{name}": pair[0] for name, pair in values.items()}
        add_run(tmp_path, run_id, {"seed": row}, metrics | builtin)
    result = table([tmp_path])
    for name in values:
        assert reached_rows(result, ("metrics", name)) == {0}
        assert reached_rows(result, ("metrics", f"builtin_{name}")) == set()
    shown = render(result)
    assert shown.count("✓") == 4 and "0.7500*✓" in shown
    assert (
        "✓ target reached: sae_top_1_test_accuracy > 0.74, mean_absorption_score < 0.01, unlearning_score > 0.1"
        in shown
    )


@pytest.mark.parametrize(
    ("sizes", "why"),
    [
        ((32, 1024, 128), None),
        ((102.4, 1024, 128), None),
        ((102.5, 1024, 128), "not sparse: l0 102.5 is above a tenth of d_sae 1,024"),
        ((129, 16384, 128), "not sparse: l0 129 is above d_in 128"),
        ((0, 1024, 128), "dead: no feature fires (l0 0)"),
        ((None, 1024, 128), None),
        ((float("nan"), 1024, 128), None),
        ((32, None, None), None),
        ((0, None, None), "dead: no feature fires (l0 0)"),
    ],
)
def test_what_is_no_merit(sizes, why):
    assert unfitness(*sizes) == why


def test_an_unfit_sae_is_never_praised_and_the_table_says_why(tmp_path):
    dense = {"l0": 500.0, "fvu": 0.001, "mean_absorption_score": 0.001}
    dead = {"l0": 0, "fvu": 1.0, "nearest_neighbour_cosine": 0.0, "mean_absorption_score": 0.0}
    fit = {"nearest_neighbour_cosine": 0.2, "mean_absorption_score": 0.3}
    add_run(tmp_path, "dense", {"seed": 0}, dense | {"nearest_neighbour_cosine": 0.1})
    add_run(tmp_path, "dead", {"seed": 1}, dead)
    add_run(tmp_path, "fit", {"seed": 2}, fit | {"fvu": 0.1})
    add_run(tmp_path, "fit2", {"seed": 3}, fit | {"fvu": 0.2})
    result = table([tmp_path])
    shown = render(result)
    assert "0.1000*" in shown and "✓" not in shown and shown.count("*") == 2
    told = "dead (dead: no feature fires (l0 0)), dense (not sparse: l0 500 is above a tenth of d_sae 1,024)"
    assert f"never marked best: {told}" in shown.splitlines()
    assert "never marked best" in render(result, "markdown") and "not sparse" in render(result, "html")
    folded = table([tmp_path], where="seed in (0, 1)", aggregate=["seed"])
    assert folded.unfit.keys() == {"dead"}
    pivot = table([tmp_path], pivot=("k", "seed", "fvu"))
    assert "0.1000*" in render(pivot) and render(pivot).count("*") == 2


def test_marks_before_the_rows(tmp_path):
    add_run(tmp_path, "a", {"seed": 0}, warnings=("odd",))
    add_run(tmp_path, "b", {"seed": 1})
    result = table([tmp_path])
    result.levels = {"a": "error", "b": "warning"}
    lines = render(result).splitlines()
    assert [line[:3] for line in lines if line[:1] in "!?" and "seed" not in line][:2] == ["! a", "? b"]
    assert "! error, ? warning" in lines
    assert '<td data-v="!">!</td>' in render(result, "html")
    result.levels = {"a": "warning", "b": "warning"}  # of all alike: no mark
    assert render(result).splitlines()[4].startswith("a ")


def test_the_width_is_that_of_the_layers_activations(tmp_path):
    changes = {"layer.d_in": 32, "model.d_in": 128, "architecture.d_sae": 4096}
    add_run(tmp_path, "narrow", changes, {"l0": 64.0, "fvu": 0.1})
    assert table([tmp_path]).unfit == {"narrow": "not sparse: l0 64 is above d_in 32"}
