import math

import pytest

from sae_sweeps.errors import DataError
from sae_sweeps.evaluation.scr import BIASED, BY_ATTRIBUTE, BY_CLASS, scr_metrics, untied
from sae_sweeps.evaluation.tasks import PAIRED, six_classes
from sae_sweeps.evaluation.tpp import average, tpp_metrics


def test_tpp_is_intended_less_unintended():
    clean = {"a": 0.9, "b": 0.8, "c": 0.7}
    after = {
        "a": {2: {"a": 0.6, "b": 0.75, "c": 0.7}, 5: {"a": 0.5, "b": 0.8, "c": 0.6}},
        "b": {2: {"a": 0.9, "b": 0.8, "c": 0.7}, 5: {"a": 0.8, "b": 0.4, "c": 0.7}},
        "c": {2: {"a": 0.9, "b": 0.8, "c": 0.5}, 5: {"a": 0.9, "b": 0.8, "c": 0.5}},
    }
    overall, per_class = tpp_metrics(after, clean)
    assert per_class["a"]["tpp_threshold_2_intended_diff_only"] == pytest.approx(0.3)
    assert per_class["a"]["tpp_threshold_2_unintended_diff_only"] == pytest.approx(0.025)
    assert per_class["a"]["tpp_threshold_2_total_metric"] == pytest.approx(0.275)
    assert overall["tpp_threshold_5_total_metric"] == pytest.approx(((0.4 - 0.05) + (0.4 - 0.05) + 0.2) / 3)


def accuracies(changed):
    """A pair in which ablating either probe's features at n = 2 leads to `changed` on both kinds of rows."""
    return {
        label: {2: {f"{BIASED} probe on {data} data": value for data, value in changed.items()}}
        for label in (BY_ATTRIBUTE, BY_CLASS, BIASED)
    }


def clean(original_class, original_attribute):
    return {
        BY_CLASS: 0.9,
        BY_ATTRIBUTE: 0.95,
        f"{BIASED} probe on {BY_CLASS} data": original_class,
        f"{BIASED} probe on {BY_ATTRIBUTE} data": original_attribute,
    }


def of_pair(changed, clean):
    """Where the rows that measure also choose."""
    return scr_metrics([accuracies(changed)], [clean], [clean])


def test_scr_is_the_share_of_the_gap_that_closes():
    found = of_pair({BY_CLASS: 0.8, BY_ATTRIBUTE: 0.6}, clean(0.6, 0.8))
    assert found["scr_dir1_threshold_2"] == pytest.approx((0.8 - 0.6) / (0.9 - 0.6))
    assert found["scr_dir2_threshold_2"] == pytest.approx((0.6 - 0.8) / (0.95 - 0.8))  # may be negative
    assert found["scr_metric_threshold_2"] == found["scr_dir1_threshold_2"]  # the direction that starts lower
    other = of_pair({BY_CLASS: 0.8, BY_ATTRIBUTE: 0.6}, clean(0.85, 0.8))
    assert other["scr_metric_threshold_2"] == other["scr_dir2_threshold_2"]


def test_scr_with_nothing_to_gain_is_0_and_a_tie_has_no_metric():
    found = of_pair({BY_CLASS: 0.8, BY_ATTRIBUTE: 0.6}, clean(0.9, 0.9))
    assert found["scr_dir1_threshold_2"] == 0 and "scr_metric_threshold_2" not in found
    assert "both directions start from the same accuracy" in untied({"books": found})[0]
    assert average([{"x": 1.0}, {"x": 3.0, "y": 5.0}]) == {"x": 2.0, "y": 5.0}


def test_six_classes_are_saebenchs_halves_and_quadrants():
    quadrants = {
        (label, kind): [f"{label}{kind}{i}" for i in range(9)] for label in ("prof", "nurse") for kind in ("m", "f")
    }
    out = six_classes(quadrants, ("prof", "nurse"), ("m", "f"), 4, 0, "test")
    assert list(out) == [name for pair in PAIRED.items() for name in pair] and all(len(t) == 8 for t in out.values())
    kinds = {name: {text[:-1] for text in texts} for name, texts in out.items()}
    assert kinds[BY_ATTRIBUTE] == {"profm", "nursem"} and kinds[BY_CLASS] == {"profm", "proff"}
    assert kinds[BIASED] == {"profm"} and kinds[PAIRED[BIASED]] == {"nursef"}
    assert out[BIASED] != sorted(out[BIASED])  # shuffled
    assert out == six_classes(quadrants, ("prof", "nurse"), ("m", "f"), 4, 0, "test")
    with pytest.raises(DataError, match="9 rows are prof and m, and 11 are needed"):
        six_classes(quadrants, ("prof", "nurse"), ("m", "f"), 5, 0, "test")
    assert not math.isnan(of_pair({BY_CLASS: 1.0, BY_ATTRIBUTE: 1.0}, clean(0.5, 0.6))["scr_dir1_threshold_2"])
