import pytest

from sae_sweeps.errors import ConfigError
from sae_sweeps.schedules import ConstantConfig, ConstantLRConfig, LinearLRConfig, PowerConfig, steps_of


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
    ],
)
def test_values_that_cannot_be_meant_are_refused(config):
    with pytest.raises(ConfigError):
        config.check()
