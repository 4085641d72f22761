"""Each variant against the baseline that was trained like it."""

import math

import pytest
from scipy import stats

from analysis.auditing.audit import audit
from analysis.plots.effects import comparisons
from analysis.plots.study import Study
from analysis.report.answer import answer
from tests.analysis.outputs import add_run

FVU = {"none": (0.50, 0.52, 0.51), "ortho": (0.40, 0.43, 0.41), "strict": (0.505, 0.53, 0.50)}


@pytest.fixture
def study(tmp_path):
    """Three seeds of two penalties beside none, one seed of them at another k, and one without a baseline."""
    for penalty, values in FVU.items():
        for seed, fvu in enumerate(values):
            add_run(tmp_path, f"{penalty}{seed}", config(penalty, 8, seed), metrics(fvu))
        if penalty != "strict":
            add_run(tmp_path, f"{penalty}16", config(penalty, 16, 0), metrics(values[0] / 2))
    add_run(tmp_path, "alone", config("ortho", 32, 0), metrics(0.1))
    return Study.of([tmp_path])


def config(penalty, k, seed):
    return {"penalty": {"name": penalty}, "architecture.k": k, "seed": seed}


def metrics(fvu):
    return {"fvu": fvu, "l0": 8.0, "ce_loss_score": 0.9}


def test_differences_and_intervals_are_welchs(study):
    (at_8, at_16), alone = comparisons(study)
    assert [len(one.variants) for one in (at_8, at_16)] == [2, 1] and len(alone) == 1
    assert at_8.metrics == ["fvu"], "what is the same in all runs shows nothing"
    for variant in at_8.variants:
        values = study.values(variant, "fvu")
        interval = stats.ttest_ind(values, FVU["none"], equal_var=False).confidence_interval(0.95)
        effect = at_8.effects[variant.label, "fvu"]
        low, high = effect.difference - effect.reach, effect.difference + effect.reach
        assert (low, high) == pytest.approx((interval.low, interval.high), rel=1e-12)
        assert effect.clear == (values == list(FVU["ortho"])) and effect.improves == (effect.difference < 0)
    (single,) = at_16.effects.values()
    assert math.isnan(single.reach) and not single.clear and single.difference == pytest.approx(-0.05)


def test_the_answer_counts_what_is_clear_and_names_what_is_not_compared(study):
    found = answer(study, audit(study.full))
    assert found.verdicts[0].startswith("1 of 2 differences have a 95 % interval on one side of 0 (1 better, 0 worse)")
    assert found.verdicts[1] == "1 difference has one seed on a side, and no interval."
    assert "No baseline was trained like" in found.verdicts[2]
    assert [kind for _, cells in found.tables[0].rows for kind, _, _ in cells] == ["better", "unclear"]
    assert found.tables[1].rows[0][1][0][2] == "one seed"
