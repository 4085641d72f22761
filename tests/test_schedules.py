import math

import pytest

from sae_sweeps.config.typed import check_values
from sae_sweeps.errors import ConfigError
from sae_sweeps.schedules import (
    LR_SCHEDULES,
    SCHEDULES,
    ConstantConfig,
    ConstantLRConfig,
    CosineConfig,
    CosineLRConfig,
    ExponentialConfig,
    LinearConfig,
    LinearLRConfig,
    PiecewiseConfig,
    PowerConfig,
    TwoPhaseConfig,
    WarmRestartsConfig,
    WarmRestartsLRConfig,
    peak,
    steps_of,
)


@pytest.mark.parametrize(("length", "expected"), [(0.05, 50), (0, 0), (0.5, 500), (1, 1), (200, 200)])
def test_a_length_is_a_share_below_one_and_steps_otherwise(length, expected):
    assert steps_of(length, 1000) == expected


@pytest.mark.parametrize("a", [2.0, 0.5, 0.0])
def test_power(a):
    schedule = PowerConfig("power", a)
    for step in range(10):
        assert schedule.value(step, 10) == pytest.approx((1 - step / 10) ** a)
    assert ConstantConfig("constant").value(7, 10) == 1


def test_linear_learning_rate_rises_stays_and_falls():
    schedule = LinearLRConfig("linear", 1e-3, warmup=10, decay=0.2, final=0.1)
    values = [schedule.value(step, 100) for step in range(100)]
    assert values[:10] == pytest.approx([1e-3 * (i + 1) / 10 for i in range(10)])
    assert values[10:80] == pytest.approx([1e-3] * 70)
    assert values[80:] == pytest.approx([1e-3 * (0.1 + 0.9 * (100 - i) / 20) for i in range(80, 100)])


def test_constant_learning_rate_warms_up_only():
    schedule = ConstantLRConfig("constant", 2e-4, warmup=0.1)
    assert [schedule.value(step, 100) for step in (0, 9, 10, 99)] == pytest.approx([2e-5, 2e-4, 2e-4, 2e-4])


@pytest.mark.parametrize(
    "config",
    [
        PowerConfig("power", -1.0),
        ConstantLRConfig("constant", -1e-3, 0.1),
        LinearLRConfig("linear", 1e-3, 0.1, -0.2, 0.0),
        LinearLRConfig("linear", 1e-3, 0.1, 0.2, 2.0),
        LinearConfig("linear", 0, 10),
        LinearConfig("linear", 0.1, -1),
        ExponentialConfig("exponential", 0.1, 1.5),
        PiecewiseConfig("piecewise", [], []),
        PiecewiseConfig("piecewise", [0.0, 1.0], [1.0]),
        PiecewiseConfig("piecewise", [0.5, 0.5], [0.0, 1.0]),
        PiecewiseConfig("piecewise", [0.0, 1.5], [0.0, 1.0]),
        PiecewiseConfig("piecewise", [0.0, 1.0], [0.0, 2.0]),
        CosineConfig("cosine", 2.0, 0.0),
        WarmRestartsConfig("warm_restarts", 0, 1, 0),
        WarmRestartsConfig("warm_restarts", 0.2, 0.5, 0),
        WarmRestartsConfig("warm_restarts", 0.2, 1, 2),
    ],
)
def test_values_that_cannot_be_meant_are_refused(config):
    with pytest.raises(ConfigError):
        check_values(config, "schedule")
        config.check()


@pytest.mark.parametrize(
    "config", [CosineLRConfig("cosine", 1e-3, 0.1, -1), WarmRestartsLRConfig("warm_restarts", 1e-3, 0.1, -1, 1, 0)]
)
def test_learning_rates_that_cannot_be_meant_are_refused(config):
    with pytest.raises(ConfigError):
        check_values(config, "lr_schedule")


def test_the_selective_study_s_curricula():
    """docs/methods.md: warm-up 1000, 4,882 steps."""
    T = 4882
    linear = LinearConfig("linear", 1000, 10)
    assert linear.value(0, T) == 0 and linear.value(4881, T) == pytest.approx(0.4881)
    assert linear.plan_warnings(T) == ["schedule=linear ends at 0.49 of the penalty's peak weight"]
    exponential = ExponentialConfig("exponential", 1000, 0.01)
    assert [exponential.value(i, T) for i in (0, 5, 1000)] == pytest.approx([0.01, 0.01, 1 - math.exp(-1)])
    assert exponential.plan_warnings(T) == []
    two_phase = TwoPhaseConfig("two_phase", 1000, 2, 8, 0.005)
    expected = [0, 0, 0.005, 0.005 + 0.995 / 2]
    assert [two_phase.value(i, 20_000) for i in (0, 1999, 2000, 6000)] == pytest.approx(expected)
    assert two_phase.value(10_000, 20_000) == two_phase.value(19_999, 20_000) == 1
    assert "ends at 0.3" in two_phase.plan_warnings(T)[0]


def test_lengths_as_shares_of_the_run():
    assert LinearConfig("linear", 0.05, 10).value(250, 1000) == pytest.approx(0.5)
    assert TwoPhaseConfig("two_phase", 0.05, 2, 8, 0.0).value(300, 1000) == pytest.approx(0.5)
    assert LinearConfig("linear", 0.001, 1).value(0, 10) == 0  # a unit of at least one step
    assert LinearConfig("linear", 0.1, 0).value(0, 10) == 1


def test_piecewise_goes_through_its_points():
    schedule = PiecewiseConfig("piecewise", [0.2, 0.4, 0.8], [0.5, 1.0, 0.0])
    values = [schedule.value(step, 10) for step in (0, 2, 3, 4, 6, 8, 9)]
    assert values == pytest.approx([0.5, 0.5, 0.75, 1.0, 0.5, 0.0, 0.0])
    assert PiecewiseConfig("piecewise", [0.5], [0.3]).value(9, 10) == 0.3


def test_cosine_and_warm_restarts():
    falling, rising = CosineConfig("cosine", 1.0, 0.2), CosineConfig("cosine", 0.0, 1.0)
    assert [falling.value(i, 10) for i in (0, 5)] == pytest.approx([1.0, 0.6])
    assert [rising.value(i, 10) for i in (0, 5)] == pytest.approx([0.0, 0.5])
    restarts = WarmRestartsConfig("warm_restarts", 4, 2.0, 0.1)
    assert [restarts.value(i, 100) for i in (0, 2, 4, 8, 12)] == pytest.approx([1.0, 0.55, 1.0, 0.55, 1.0])


def test_learning_rates_with_cosine_and_restarts():
    cosine = CosineLRConfig("cosine", 2.0, 10, 0.1)
    values = [cosine.value(i, 110) for i in range(110)]
    assert values[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert values[60] == pytest.approx(2.0 * (0.1 + 0.9 / 2)) and values[-1] == pytest.approx(0.2, abs=1e-3)
    restarts = WarmRestartsLRConfig("warm_restarts", 2.0, 10, 0.25, 1.0, 0.0)
    at = [restarts.value(i, 100) for i in (0, 9, 10, 22, 35, 60)]
    assert at == pytest.approx([0.2, 2.0, 2.0, 2.0 * (1 + math.cos(math.pi * 12 / 25)) / 2, 2.0, 2.0])
    assert WarmRestartsLRConfig("warm_restarts", 2.0, 0, 0.25, 1.0, 0.0).value(0, 1) == 2.0


@pytest.mark.parametrize("schedule", [*SCHEDULES, *(f"lr {name}" for name in LR_SCHEDULES)])
@pytest.mark.parametrize("total_steps", [1, 2, 400])
def test_every_schedule_stays_between_0_and_its_peak(schedule, total_steps):
    examples = {
        "constant": ConstantConfig("constant"),
        "power": PowerConfig("power", 2.0),
        "linear": LinearConfig("linear", 0.05, 10),
        "exponential": ExponentialConfig("exponential", 0.1, 0.01),
        "two_phase": TwoPhaseConfig("two_phase", 0.05, 2, 8, 0.005),
        "piecewise": PiecewiseConfig("piecewise", [0.0, 0.5], [0.0, 1.0]),
        "cosine": CosineConfig("cosine", 1.0, 0.0),
        "warm_restarts": WarmRestartsConfig("warm_restarts", 0.3, 1.5, 0.1),
        "lr constant": ConstantLRConfig("constant", 1.0, 0.05),
        "lr linear": LinearLRConfig("linear", 1.0, 0.05, 0.2, 0.0),
        "lr cosine": CosineLRConfig("cosine", 1.0, 0.05, 0.0),
        "lr warm_restarts": WarmRestartsLRConfig("warm_restarts", 1.0, 0.05, 0.3, 1.5, 0.1),
    }
    values = [examples[schedule].value(step, total_steps) for step in range(total_steps)]
    assert all(0 <= value <= 1 for value in values) and len(set(values)) > (total_steps == 400) * (
        schedule != "constant"
    )


@pytest.mark.parametrize("total_steps", [1, 10, 5000, 300_000])
@pytest.mark.parametrize(
    "schedule",
    [
        LinearLRConfig("linear", 1e-3, 0.1, 0.2, 0.1),
        LinearLRConfig("linear", 1e-3, 200_000, 0.9, 0.0),  # the fall begins before the rise is done
        LinearLRConfig("linear", 1e-3, 10**9, 0.2, 0.0),
        CosineLRConfig("cosine", 1e-3, 0.3, 0.0),
        ConstantLRConfig("constant", 1e-3, 7),
        WarmRestartsLRConfig("warm_restarts", 1e-3, 10, 17, 1.0, 0.0),
        WarmRestartsLRConfig("warm_restarts", 1e-3, 0.01, 0.3, 2.0, 0.5),
    ],
)
def test_the_peak_of_a_long_curve_is_that_over_all_steps(schedule, total_steps):
    values = [schedule.value(step, total_steps) for step in range(total_steps)]
    assert peak(lambda step: schedule.value(step, total_steps), total_steps) == max(values)


def test_restarts_of_one_length_are_the_same_however_many():
    def slowly(step, period):
        start = 0.0
        while step >= start + period:
            start += period
        return 0.1 + 0.9 * (1 + math.cos(math.pi * (step - start) / float(period))) / 2

    schedule = WarmRestartsConfig("warm_restarts", 7, 1.0, 0.1)
    assert [schedule.value(step, 500) for step in range(500)] == [slowly(step, 7) for step in range(500)]
