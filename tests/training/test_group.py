"""Members of a group end with the weights and rows that each has alone, bit for bit, whatever happens to the others."""

import threading

import pytest
import torch
from composed import D_IN, STEPS, batch_at, configured

from sae_sweeps.activations.sampler import prepared
from sae_sweeps.errors import Diverged, Interrupted
from sae_sweeps.training.checkpoint import load_checkpoint
from sae_sweeps.training.loop import Member, TrainingCallbacks, train
from sae_sweeps.training.step import Training

WORDS = {
    "topk": "architecture=topk k=8 k_start=4 penalty=ortho penalty.momentum=0.9",
    "batch_topk": "architecture=batch_topk k=8 penalty=contrastive penalty.diversity_weight=0.1",
    "jumprelu": "architecture=jumprelu target_l0=8 penalty=strict_ortho train.precision=bfloat16",
    "unclipped": "architecture=standard l1_penalty=0.04 lr=1e-4 penalty=decorrelation train.clip=0",
    "gated": "architecture=gated target_l0=8 penalty=decorrelation",
    "grouped": "architecture=topk k=8 penalty=bottleneck group_layer.dropout=0.1 group_layer.adapt=mi "
    "group_layer.adapt_every=5 group_layer.group_size=8 group_layer.max_size=16 group_layer.window=96",
}


class Record(TrainingCallbacks):
    """Keeps what happens to a run; `breaks` maps a step to what its row raises."""

    def __init__(self, breaks=None):
        self.rows, self.notes, self.saves, self.quarters, self.end, self.breaks = [], [], [], [], None, breaks or {}

    def on_row(self, row):
        if row["step"] in self.breaks:
            raise self.breaks[row["step"]]
        self.rows.append({key: value for key, value in row.items() if key != "tokens_per_s"})

    def on_monitor(self, record):
        self.notes.append(record)

    def on_checkpoint(self, step):
        self.saves.append(step)

    def on_quarter(self, training, percent):
        self.quarters.append(percent)

    def on_complete(self, member):
        self.end = {k: v.clone() for m in member.training.modules().values() for k, v in m.state_dict().items()}

    def on_failure(self, error):
        self.end = error


def member(name, folder, breaks=None, resumed=False, stream=None):
    run = configured(*WORDS[name].split())
    run.train.log_every, run.train.monitor_every, run.train.checkpoint_every = 1, 4, 10
    training = Training(run, 1.0, torch.zeros(D_IN), torch.device("cpu"))
    start = load_checkpoint(training, folder / name) if resumed else 0
    return Member(training, start, folder / name, Record(breaks), stream)


def go(members, draw=lambda step: {None: batch_at(step)}, **more):
    """Train a group; what happened to each member."""
    records = [one.callbacks for one in members]
    train(members, draw, **more)
    assert not any(member.active for member in members)
    return records


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Each run in a group of one."""
    folder = tmp_path_factory.mktemp("alone")
    return {name: go([member(name, folder)])[0] for name in WORDS}


def assert_same(record, reference, since=0):
    assert record.rows == [row for row in reference.rows if row["step"] >= since]
    assert record.notes == [note for note in reference.notes if note["step"] >= since]
    assert record.end.keys() == reference.end.keys()
    assert all(torch.equal(record.end[key], reference.end[key]) for key in reference.end)


def test_together_is_alone(alone, tmp_path):
    for name, record in zip(WORDS, go([member(name, tmp_path) for name in WORDS]), strict=True):
        assert_same(record, alone[name])
        assert record.saves == [10, 20, STEPS] and record.quarters == [25, 50, 75, 100]


def test_stopped_together_and_resumed_in_other_groups(alone, tmp_path):
    """Stopped after 13 steps; one goes on alone, the others beside one that starts anew and one stopped later."""
    behind = []
    records = go([member(n, tmp_path) for n in WORDS], stop=lambda: len(behind) == 13, on_step=behind.append)
    assert all(isinstance(r.end, Interrupted) and "step 13 of 30" in str(r.end) for r in records)
    (topk,) = go([member("topk", tmp_path, resumed=True)])
    assert_same(topk, alone["topk"], since=13)
    later = []
    (early,) = go([member("gated", tmp_path, resumed=True)], stop=lambda: len(later) == 7, on_step=later.append)
    assert "step 20 of 30" in str(early.end)
    mixed = ["jumprelu", "gated", "grouped", "batch_topk", "unclipped"]
    fresh = member("topk", tmp_path / "anew")
    records = go([*(member(n, tmp_path, resumed=True) for n in mixed), fresh])
    for name, record, since in zip([*mixed, "topk"], records, (13, 20, 13, 13, 13, 0), strict=True):
        assert_same(record, alone[name], since)


def test_batches_are_drawn_once_for_all_that_take_them(alone, tmp_path):
    drawn = []

    def draw(step):
        drawn.append(step)
        return {"a": batch_at(step), "b": batch_at(step + 1000)}

    members = [member("topk", tmp_path / stream, stream=stream) for stream in ("a", "b")]
    a, b = go([*members, member("gated", tmp_path, stream="a")], draw)[:2]
    assert drawn == list(range(STEPS))
    assert_same(a, alone["topk"])
    assert [row["step"] for row in b.rows] == [row["step"] for row in a.rows] and b.rows[0]["loss"] != a.rows[0]["loss"]


def test_a_failure_ends_its_own_run_only(alone, tmp_path):
    bug, memory = RuntimeError("a bug"), torch.OutOfMemoryError("CUDA out of memory")
    members = [
        member("topk", tmp_path, {12: bug}),
        member("batch_topk", tmp_path),
        member("jumprelu", tmp_path, {0: memory}),
        member("grouped", tmp_path),
        member("gated", tmp_path),
    ]
    with torch.no_grad():
        members[4].training.sae.W_dec[3, 3] = torch.nan
    topk, batch_topk, jumprelu, grouped, gated = go(members)
    assert topk.end is bug and topk.saves == [10] and jumprelu.end is memory and jumprelu.saves == []
    assert isinstance(gated.end, Diverged) and gated.end.step == 0 and gated.saves == []
    assert_same(batch_topk, alone["batch_topk"])
    assert_same(grouped, alone["grouped"])


def test_without_clipping_a_gradient_passes_whole_beside_runs_that_clip(alone):
    norms = [row["grad_norm/total"] for row in alone["unclipped"].rows]
    run = configured(*WORDS["unclipped"].split())
    training, clip = Training(run, 1.0, torch.zeros(D_IN), torch.device("cpu")), max(norms) + 1
    run.train.clip = clip  # which no gradient reaches
    for step in range(STEPS):
        training.step(batch_at(step), step)
    assert min(norms) > 1
    assert all(torch.equal(alone["unclipped"].end[k], v) for k, v in training.sae.state_dict().items())


def test_a_run_without_clipping_diverges_alone(alone, tmp_path):
    """Too large a learning rate: its second step is not finite. It keeps no checkpoint; the others are untouched."""
    run = configured(*WORDS["unclipped"].split(), "lr=1e30", "lr_schedule.warmup=0")
    run.train.log_every = 1
    wild = Member(Training(run, 1.0, torch.zeros(D_IN), torch.device("cpu")), 0, tmp_path / "wild", Record())
    names = [name for name in WORDS if name != "unclipped"]
    records = go([wild, *(member(name, tmp_path) for name in names)])
    assert isinstance(records[0].end, Diverged) and records[0].end.step in (1, 2)
    assert len(records[0].rows) == records[0].end.step and records[0].saves == []
    assert not (tmp_path / "wild").exists()
    for name, record in zip(names, records[1:], strict=True):
        assert_same(record, alone[name])


def test_a_stream_that_breaks_ends_those_on_it_alone(alone, tmp_path):
    broken = OSError("the text is gone")

    def draw(step):
        return {"a": batch_at(step), "b": broken if step == 5 else batch_at(step)}

    topk, gated = go([member("topk", tmp_path, stream="a"), member("gated", tmp_path, stream="b")], draw)
    assert_same(topk, alone["topk"])
    assert gated.end is broken and len(gated.rows) == 5


def test_a_run_that_must_not_go_on_writes_nothing_more(alone, tmp_path):
    class Lost(Exception):
        pass

    members = [member("topk", tmp_path), member("gated", tmp_path)]
    behind = []

    def before_step():
        if len(behind) >= 10:
            raise Lost

    members[1].callbacks.before_step = before_step
    topk, gated = go(members, on_step=behind.append, stop=lambda: len(behind) == 15)
    assert isinstance(gated.end, Lost) and gated.saves == [] and not (tmp_path / "gated").exists()
    assert topk.saves == [10, 15]


def test_a_flush_writes_checkpoints_and_the_training_goes_on(alone, tmp_path):
    members, behind = [member("topk", tmp_path), member("gated", tmp_path)], []
    wanted = [7, 24]

    def flush():
        return bool(wanted) and len(behind) >= wanted[0] and bool(wanted.pop(0))

    records = go(members, flush=flush, on_step=behind.append)
    for name, record in zip(("topk", "gated"), records, strict=True):
        assert record.saves == [7, 10, 20, 24, STEPS]
        assert_same(record, alone[name])


def test_a_stop_acts_while_a_batch_is_being_drawn(tmp_path):
    """A stream harvests its next window, say: the checkpoint is written before that is done."""
    drawing, written = threading.Event(), threading.Event()

    class Noting(Record):
        def on_failure(self, error):
            super().on_failure(error)
            written.set()

    def draw(step):
        if step == 5:
            drawing.set()
            assert written.wait(60)
        return {None: batch_at(step)}

    one = member("topk", tmp_path)
    one.callbacks = record = Noting()
    train([one], draw, stop=drawing.is_set)
    assert str(record.end) in ("stopped at step 4 of 30", "stopped at step 5 of 30")
    assert record.saves == [int(str(record.end).split()[3])]


def test_a_run_with_all_steps_behind_it_is_finished_without_a_batch(alone, tmp_path):
    go([member("topk", tmp_path)])
    (again,) = go([member("topk", tmp_path, resumed=True)], draw=None)
    assert again.rows == [] and all(torch.equal(again.end[k], alone["topk"].end[k]) for k in again.end)


def test_time_that_is_shared_is_shared_out(tmp_path):
    members = [member("topk", tmp_path), member("gated", tmp_path)]
    kept = list(members)
    go(members)
    for one in kept:
        assert 0 < one.shared_seconds < one.seconds and 0 < one.stopwatch.seconds() < one.seconds
    assert kept[0].shared_seconds == kept[1].shared_seconds


def test_prepared_draws_one_step_ahead_in_order_and_passes_errors_on():
    assert list(prepared(str, range(3, 6))) == [(3, "3"), (4, "4"), (5, "5")] and list(prepared(str, range(0))) == []
    with pytest.raises(ZeroDivisionError):
        list(prepared(lambda step: 1 // (2 - step), range(4)))
