"""Checkpoints written beside the training: the state of their step, whole, in turn, and never lost or torn."""

import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from composed import D_IN, STEPS, batch_at, configured, save_checkpoint
from safetensors.torch import load_file, save

from sae_sweeps.errors import Interrupted
from sae_sweeps.storage.files import DiskFull
from sae_sweeps.training import checkpoint
from sae_sweeps.training.checkpoint import FILE, Writer, load_checkpoint
from sae_sweeps.training.loop import Member, TrainingCallbacks, train
from sae_sweeps.training.step import Training

WORDS = "architecture=topk k=8 penalty=contrastive penalty.diversity_weight=0.1"


class Record(TrainingCallbacks):
    def __init__(self):
        self.rows, self.saves, self.end, self.at_row = [], [], None, lambda step: None

    def on_row(self, row):
        self.rows.append({key: value for key, value in row.items() if key != "tokens_per_s"})
        self.at_row(row["step"])

    def on_checkpoint(self, step):
        self.saves.append(step)

    def on_failure(self, error):
        self.end = error


def training(words=WORDS, **more):
    run = configured(*words.split())
    for key, value in {"log_every": 1, "monitor_every": 0, **more}.items():
        setattr(run.train, key, value)
    return Training(run, 1.0, torch.zeros(D_IN), torch.device("cpu"))


def member(folder, **more):
    return Member(training(**more), 0, folder, Record())


def go(*members, **more):
    train(list(members), lambda step: {None: batch_at(step)}, **more)
    return [one.callbacks for one in members]


def state(one):
    return {name: tensor.clone() for name, tensor in checkpoint._tensors(one).items()}


@contextmanager
def writing(monkeypatch, before=lambda path: None):
    """Calls `before(path)` in the thread before a file is written; yields how many were at once, at each."""
    now, seen, lock, whole = [0], [], threading.Lock(), checkpoint.written_whole

    @contextmanager
    def noted(path):
        with lock:
            now[0] += 1
            seen.append(now[0])
        try:
            before(path)
            with whole(path) as file:
                yield file
        finally:
            with lock:
                now[0] -= 1

    monkeypatch.setattr(checkpoint, "written_whole", noted)
    yield seen


def test_the_file_is_safetensors_own(tmp_path):
    one = training()
    for step in range(3):
        one.step(batch_at(step), step)
    assert not one.sae.W_enc.is_contiguous()  # stored by feature, and by row in the file
    save_checkpoint(one, 3, tmp_path)
    tensors = load_file(tmp_path / FILE)
    assert save(tensors) == (tmp_path / FILE).read_bytes()
    live = state(one)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in live.items())
    assert tensors.keys() - live.keys() == {"step", "scale", "checksum"} and int(tensors["step"]) == 3


def test_a_step_beside_a_slow_copy_waits_before_its_update_alone(tmp_path, monkeypatch):
    one, reference = training(), training()
    one.step(batch_at(0), 0)
    reference.step(batch_at(0), 0)
    before, copyto, forward = state(one), np.copyto, threading.Event()

    def slow(to, source):
        assert forward.wait(60)  # the copy of a weight ends after the next step has computed its loss
        time.sleep(0.01)
        copyto(to, source)

    monkeypatch.setattr(checkpoint.np, "copyto", slow)
    write = Writer().start(one, 1, tmp_path, beside=True)
    one.before_update, computed = write.wait_for_copy, one.forward
    monkeypatch.setattr(one, "forward", lambda *words: (computed(*words), forward.set())[0])
    one.step(batch_at(1), 1)
    reference.step(batch_at(1), 1)
    assert write.finish()
    resumed = training()
    assert load_checkpoint(resumed, tmp_path) == 1
    assert all(torch.equal(before[name], tensor) for name, tensor in state(resumed).items())
    assert all(torch.equal(state(reference)[name], tensor) for name, tensor in state(one).items())
    assert any(not torch.equal(before[name], tensor) for name, tensor in state(one).items())


def test_a_parameter_that_changes_before_the_update_is_found(tmp_path, monkeypatch):
    one, copyto = training(), np.copyto

    def meanwhile(to, source):
        copyto(to, source)
        with torch.no_grad():
            one.sae.b_dec.add_(1)

    monkeypatch.setattr(checkpoint.np, "copyto", meanwhile)
    with pytest.raises(RuntimeError, match="sae.b_dec was changed before the update"):
        Writer().start(one, 0, tmp_path, beside=True).finish()
    assert not (tmp_path / FILE).exists()


def test_checkpoints_by_time_change_no_number_and_are_written_in_turn(tmp_path, monkeypatch):
    (plain,) = go(member(tmp_path / "plain"))
    assert plain.saves == [STEPS]  # five minutes are not over
    beside, start = [], Writer.start

    def noted(writer, *words, **options):
        if options["beside"]:  # the last ones, when a run is complete, wait for no other run's
            beside.append(writer.busy)
        return start(writer, *words, **options)

    monkeypatch.setattr(Writer, "start", noted)
    members = [member(tmp_path / name, checkpoint_minutes=1e-9) for name in "ab"]
    trained = [one.training for one in members]
    records = go(*members)
    assert not any(beside) and len(beside) == sum(len(record.saves) - 1 for record in records) > 0
    for one, record in zip(trained, records, strict=True):
        assert record.rows == plain.rows and record.saves[-1] == STEPS
        assert record.saves == sorted(set(record.saves)) and 0 not in record.saves
        resumed = training()
        load_checkpoint(resumed, tmp_path / "plain")
        assert all(torch.equal(state(resumed)[name], tensor) for name, tensor in state(one).items())


def test_a_run_does_not_wait_for_anothers_write(tmp_path, monkeypatch):
    later = threading.Event()
    slow, other = member(tmp_path / "slow", checkpoint_every=5), member(tmp_path / "other")
    other.callbacks.at_row = lambda step: later.set() if step == 8 else None

    def hold(path):
        assert path.parent.name != "slow" or later.wait(60)

    with writing(monkeypatch, hold):
        records = go(slow, other)
    assert later.is_set() and [record.end for record in records] == [None, None]
    assert records[0].saves == [*range(5, STEPS, 5), STEPS]


def test_an_interrupted_run_ends_with_its_checkpoint_on_the_disk(tmp_path, monkeypatch):
    behind = []
    with writing(monkeypatch, lambda path: time.sleep(0.1)):
        (record,) = go(member(tmp_path, checkpoint_every=7), stop=lambda: len(behind) == 8, on_step=behind.append)
        assert isinstance(record.end, Interrupted) and record.saves == [7, 8]
        assert load_checkpoint(training(), tmp_path) == 8


def test_a_second_ctrl_c_waits_for_the_write_that_has_begun(tmp_path, monkeypatch):
    one = member(tmp_path, checkpoint_every=7)

    def strike(step):
        if step == 7:
            raise KeyboardInterrupt

    one.callbacks.at_row = strike
    with writing(monkeypatch, lambda path: time.sleep(0.1)), pytest.raises(KeyboardInterrupt):
        go(one)
    assert load_checkpoint(training(), tmp_path) == 7


@pytest.mark.parametrize("at", [10, STEPS])
def test_an_error_of_the_thread_ends_the_run_and_leaves_the_file_before(at, tmp_path, monkeypatch):
    one, waited = member(tmp_path, checkpoint_every=5), []
    one.callbacks.at_row = lambda step: waited.append(time.sleep(0.02)) if step > 10 else None
    saves = one.callbacks.saves

    def full(path):
        if saves and saves[-1] == at - 5:
            raise DiskFull("the disk is full")

    with writing(monkeypatch, full):
        (record,) = go(one)
    assert isinstance(record.end, DiskFull) and record.saves[-1] == at - 5 and not one.active
    assert record.rows[-1]["step"] < min(at + 5, STEPS)
    assert load_checkpoint(training(), tmp_path) == at - 5 and [path.name for path in tmp_path.iterdir()] == [FILE]


def test_nothing_is_written_once_it_is_not_allowed(tmp_path):
    one = training()
    save_checkpoint(one, 1, tmp_path)
    allowed = [True, False]  # lost while the file is being written

    def check():
        if not allowed.pop(0):
            raise InterruptedError("taken over")

    with pytest.raises(InterruptedError):
        Writer().start(one, 2, tmp_path, beside=True, allowed=check).finish()
    assert load_checkpoint(training(), tmp_path) == 1 and [path.name for path in tmp_path.iterdir()] == [FILE]


def test_the_memory_of_a_copy_is_used_again(tmp_path):
    one, writer, places = training(), Writer(), set()
    for step in range(3):
        write = writer.start(one, step, tmp_path, beside=True)
        write.finish()
        places.add(write.memory.data_ptr())
    assert len(places) == 1 and not writer.busy
