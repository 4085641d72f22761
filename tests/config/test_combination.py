import pytest
import torch
from bounds import close
from composing import one, plan

from sae_sweeps.architectures.batch import Batch
from sae_sweeps.config.identity import canonical
from sae_sweeps.errors import ConfigError
from sae_sweeps.sweeps.plan import describe
from sae_sweeps.training.step import Training

BOTH = "penalty=ortho+strict_ortho"


def test_each_penalty_has_its_own_weight_and_schedule():
    run = one(BOTH, "penalty.ortho.lambda2_max=0.7", "penalty.strict_ortho.schedule=power").run
    ortho, strict = run.penalty_terms()
    assert (ortho.name, ortho.config.lambda2_max, ortho.schedule.name) == ("ortho", 0.7, "power")
    assert (strict.name, strict.schedule.name) == ("strict_ortho", "power")
    assert ortho.weight(0, 10) == 0.7 and ortho.weight(5, 10) == pytest.approx(0.175)
    strict = one(BOTH).run.penalty_terms()[1]
    assert strict.schedule.name == "constant"  # the penalty's own default


def test_keys_of_a_schedule_and_of_a_penalty_are_written_out():
    run = one(BOTH, "penalty.ortho.schedule.decay_power=0.5", "penalty.ortho.threshold=constant").run
    penalty = run.to_dict()["penalty"]
    assert penalty["name"] == "ortho+strict_ortho"
    assert penalty["ortho"]["schedule"] == {"name": "power", "decay_power": 0.5}
    assert penalty["ortho"]["threshold"] == "constant"
    assert "schedule" not in run.to_dict() and "schedule" not in canonical(run)


@pytest.mark.parametrize("word", ["lambda2_max=0.5", "decay_power=1.0", "base_threshold=0.2", "schedule=constant"])
def test_bare_keys_are_errors(word):
    with pytest.raises(ConfigError, match=rf"{word}: no run of this command uses it .*penalty\.ortho\."):
        one(BOTH, word)


def test_in_a_sweep_bare_keys_feed_only_the_single_penalty():
    runs = plan("model=synthetic", "penalty=ortho,ortho+strict_ortho", "lambda2_max=0.1,0.2").runs
    assert [planned.title for planned in runs] == [
        "penalty=ortho lambda2_max=0.1",
        "penalty=ortho lambda2_max=0.2",
        BOTH,
    ]
    assert runs[2].run.penalty_terms()[0].config.lambda2_max == 0.5 and len(runs[2].equals) == 1


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("penalty=ortho+ortho", "is given twice"),
        ("penalty=ortho+none", "none cannot be added"),
        ("penalty=ortho+", "an empty part cannot be added"),
        ("penalty=ortho+nonsense", "nonsense cannot be added; choose of"),
    ],
)
def test_what_cannot_be_added_is_named(word, message):
    with pytest.raises(ConfigError, match=message):
        one(word)


def test_a_part_that_never_acts_is_refused():
    with pytest.raises(ConfigError, match="penalty=ortho: its weight is 0 at every step"):
        one(BOTH, "penalty.ortho.lambda2_max=0")


def test_unused_keys_of_a_part_are_refused():
    with pytest.raises(ConfigError, match="penalty.ortho.tau=0.5: no run of this command uses it"):
        one(BOTH, "penalty.ortho.tau=0.5")


def test_the_terms_add_up_and_are_logged_separately():
    run = one(BOTH, "d_sae=32", "k=4", "batch_size=16", "num_tokens=160").run
    training = Training(run, 1.0, torch.zeros(64), torch.device("cpu"))
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    zeros = torch.zeros(16, dtype=torch.int32)
    row = training.step(Batch(x, zeros, zeros, zeros, zeros.to(torch.int8)), 0, True, True).numbers
    penalty = sum(row[f"{name}_loss"] * row[f"{name}_weight"] for name in ("ortho", "strict_ortho"))
    close(row["penalty_loss"], penalty, n=6, dtype=torch.float32)  # sums of a few numbers, none negative
    assert row["penalty_weight"] == 1
    rest = row["recon_loss"] + row["aux_weight"] * row["aux_loss"]
    close(row["loss"], rest + penalty, n=10, dtype=torch.float32)
    assert {"grad_norm/ortho", "grad_norm/strict_ortho_enc", "penalty/ortho/threshold"} <= row.keys()


def test_dry_run_prints_both_weights():
    text = describe(plan("model=synthetic", BOTH))
    assert "penalty ortho, weight at 0, 50, 100 %: 0.5" in text and "penalty strict_ortho, weight" in text
    assert "ortho.schedule.name=power" in text
