"""Killed anywhere and started again, a run ends with the same weights, bit for bit."""

import pytest
import torch
from composed import D_IN, configured, save_checkpoint
from composed import batch_at as window_at
from toy import ToyConfig, batch_at, register_toy, run_config

from sae_sweeps.architectures.standard import StandardConfig
from sae_sweeps.architectures.topk import TopKConfig
from sae_sweeps.errors import DamagedFile, Interrupted
from sae_sweeps.penalties.ortho import OrthoConfig
from sae_sweeps.schedules import PowerConfig
from sae_sweeps.storage.run_folder import RunFolder
from sae_sweeps.training.checkpoint import FILE, Writer, check_logs, load_checkpoint
from sae_sweeps.training.loop import Member, TrainingCallbacks, train
from sae_sweeps.training.step import Training

register_toy()
ORTHO = OrthoConfig("ortho", 0.5, "decreasing", 0.3, 0.9, "linear", 0.1, "jaccard", "sum")
RUNS = {
    "topk, progressive k, ortho with momentum": dict(
        architecture=TopKConfig("topk", 48, 4, 8, None, 1 / 32), penalty=ORTHO, schedule=PowerConfig("power", 2.0)
    ),
    "standard, toy penalty": dict(
        architecture=StandardConfig("standard", 48, 0.05, 0.3, None), penalty=ToyConfig("toy")
    ),
    "topk, bf16, norm": dict(
        architecture=TopKConfig("topk", 48, 4, None, 4, 0.1), precision="bfloat16", recon="norm"
    ),
}  # fmt: skip


class Record(TrainingCallbacks):
    """Keeps what a run logs; an error is raised."""

    def __init__(self):
        self.rows, self.notes = [], []

    def on_row(self, row):
        self.rows.append(row)

    def on_monitor(self, record):
        self.notes.append(record)


def train_alone(training, start, folder, at=batch_at, stop=lambda: False, record=None, on_step=lambda step: None):
    """A group of one; its rows."""
    record = record or Record()

    def draw(step):
        try:
            return {None: at(step)}
        except Kill as kill:
            return {None: kill}

    train([Member(training, start, folder, record)], draw, stop, on_step=on_step)
    return record.rows


class Kill(Exception):
    pass


def fresh(run, scale=1.0):
    return Training(run, scale, torch.full((16,), 0.3), torch.device("cpu"))


def state(training):
    return {
        **{k: v.clone() for module in training.modules().values() for k, v in module.state_dict().items()},
        **{f"m{i}": s["exp_avg_sq"].clone() for i, s in enumerate(training.optimizer.state.values())},
    }


@pytest.mark.parametrize("name", RUNS)
def test_killed_three_times_equals_undisturbed(name, tmp_path):
    run = run_config(**RUNS[name])
    undisturbed = fresh(run)
    last = train_alone(undisturbed, 0, tmp_path / "a")[-1]
    reached = 0
    for kill_at in (3, 9, 14):

        def dies(step, kill_at=kill_at):
            if step == kill_at:
                raise Kill
            return batch_at(step)

        killed = fresh(run)
        start = load_checkpoint(killed, tmp_path / "b") if (tmp_path / "b" / FILE).exists() else 0
        assert reached - start <= run.train.checkpoint_every
        reached = kill_at
        with pytest.raises(Kill):
            train_alone(killed, start, tmp_path / "b", dies)
    resumed = fresh(run, scale=7.0)  # the checkpoint's scale is the one that counts
    end = train_alone(resumed, load_checkpoint(resumed, tmp_path / "b"), tmp_path / "b")[-1]
    for key, value in state(undisturbed).items():
        assert torch.equal(value, state(resumed)[key]), key
    assert {k: v for k, v in end.items() if k != "tokens_per_s"} == {
        k: v for k, v in last.items() if k != "tokens_per_s"
    }


def test_the_toy_penalty_trains_its_head_and_moves_its_average(tmp_path):
    run = run_config(**RUNS["standard, toy penalty"])
    training = fresh(run)
    before = state(training)
    row = train_alone(training, 0, tmp_path)[-1]
    after = state(training)
    assert not torch.equal(before["head"], after["head"]) and not torch.equal(before["average"], after["average"])
    assert row["penalty/tokens"] == 32 and row["penalty_loss"] > 0 and row["grad_norm/penalty"] == 0


def test_stop_writes_a_checkpoint_of_the_very_step(tmp_path):
    run = run_config(**RUNS["topk, bf16, norm"])
    training, steps = fresh(run), []
    with pytest.raises(Interrupted, match="step 7 of 20"):
        train_alone(training, 0, tmp_path, stop=lambda: len(steps) == 7, on_step=steps.append)
    assert load_checkpoint(fresh(run), tmp_path) == 7


def test_a_checkpoint_of_a_run_that_has_taken_no_step_reads_back(tmp_path):
    run = run_config(**RUNS["topk, bf16, norm"])
    save_checkpoint(fresh(run), 0, tmp_path)
    assert load_checkpoint(fresh(run), tmp_path) == 0


@pytest.mark.parametrize("damage", ["truncated", "flipped", "other config"])
def test_a_damaged_checkpoint_is_named(damage, tmp_path):
    run = run_config(**RUNS["topk, bf16, norm"])
    training = fresh(run)
    training.step(batch_at(0), 0)
    save_checkpoint(training, 1, tmp_path)
    path = tmp_path / FILE
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[:-10])
    elif damage == "flipped":
        content[-5] ^= 1
        path.write_bytes(content)
    else:
        run = run_config(TopKConfig("topk", 40, 4, None, None, 0.1))
    with pytest.raises(DamagedFile, match=rf"{FILE}.*delete"):
        load_checkpoint(fresh(run), tmp_path)


def test_the_seed_decides_the_start_and_the_data_seed_does_not():
    run = run_config(**RUNS["topk, bf16, norm"])
    first = fresh(run).sae.W_dec
    run.data_seed = 5
    assert torch.equal(first, fresh(run).sae.W_dec)
    run.seed = 1
    assert not torch.equal(first, fresh(run).sae.W_dec)


COMPOSED = [
    "architecture=batch_topk k=8 k_start=4 penalty=ortho",
    "architecture=matryoshka k=8 penalty=ortsae",
    "architecture=jumprelu target_l0=8 penalty=strict_ortho train.precision=bfloat16",
    "architecture=gated target_l0=8 penalty=adaptive_sharing",
    "architecture=p_anneal target_l0=8 penalty=decorrelation",
    "architecture=topk k=8 penalty=selective_ortho penalty.grouping=kmeans penalty.regroup_every=5",
    "architecture=topk k=8 penalty=contrastive penalty.diversity_weight=0.1",
    "architecture=topk k=8 penalty=bottleneck group_layer.dropout=0.1 group_layer.reversal=0.1 group_layer.adapt=mi "
    "group_layer.adapt_every=5 group_layer.group_size=8 group_layer.max_size=16 group_layer.window=96",
    "architecture=standard penalty=bottleneck group_layer.adapt=similarity group_layer.adapt_every=5",
    "architecture=topk k=8 penalty=ortho+contrastive+bottleneck penalty.ortho.momentum=0.9",
]


@pytest.mark.parametrize("words", COMPOSED)
def test_whatever_moves_is_resumed_exactly(words, tmp_path):
    """Heads, averages, windows, groups and controls: stopped after 13 of 30 steps and resumed, bit for bit."""
    run = configured(*words.split())
    run.train.monitor_every = 3

    def made(scale=1.0):
        return Training(run, scale, torch.zeros(D_IN), torch.device("cpu"))

    whole, parts = Record(), Record()
    undisturbed = made()
    last = train_alone(undisturbed, 0, tmp_path / "a", window_at, record=whole)[-1]
    stopped, steps = made(), []
    with pytest.raises(Interrupted):
        train_alone(stopped, 0, tmp_path / "b", window_at, lambda: len(steps) == 13, parts, steps.append)
    resumed = made(7.0)
    start = load_checkpoint(resumed, tmp_path / "b")
    end = train_alone(resumed, start, tmp_path / "b", window_at, record=parts)[-1]
    for key, value in state(undisturbed).items():
        assert torch.equal(value, state(resumed)[key]), key
    assert {**end, "tokens_per_s": 0} == {**last, "tokens_per_s": 0}
    assert whole.notes == parts.notes


def test_a_log_that_lost_rows_before_its_checkpoint_is_named(tmp_path):
    folder = RunFolder(tmp_path)
    one = fresh(run_config(**RUNS["topk, bf16, norm"]))
    for step in range(3):
        folder.metrics.append({"step": step})
    Writer().start(one, 3, folder.checkpoint, beside=False, logs=folder.log_digests()).finish()
    check_logs(folder.checkpoint, folder.log_digests())
    folder.truncate(1)
    with pytest.raises(DamagedFile, match="metrics.jsonl: its rows up to .* delete .*checkpoint to train"):
        check_logs(folder.checkpoint, folder.log_digests())
