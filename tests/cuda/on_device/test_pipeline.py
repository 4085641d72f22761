"""Activations, batches and checkpoints on the simulated device: who waits for whom, and the CPU's own bits."""

import time

import numpy as np
import pytest
import torch
from plain_step import DEVICE, batch, made
from safetensors.torch import load_file
from simulated_cuda import LOG

from sae_sweeps.activations import store as module
from sae_sweeps.activations.harvest import arrived, to_host
from sae_sweeps.activations.on_device import StoreOnDevice
from sae_sweeps.activations.sampler import Sampler, prepared
from sae_sweeps.activations.store import open_layers
from sae_sweeps.architectures.batch import Batch
from sae_sweeps.config.schema import ActivationsConfig, DataConfig, LayerConfig, SyntheticConfig
from sae_sweeps.errors import Diverged, Interrupted
from sae_sweeps.training import checkpoint
from sae_sweeps.training.checkpoint import FILE, Writer, load_checkpoint
from sae_sweeps.training.loop import Member, TrainingCallbacks, train

WORLD = SyntheticConfig(d_in=16, n_features=8, l0=2.0, n_correlated=0, n_hierarchical=0)
N = 1000
SECOND = torch.device("cuda:1")
PLAIN = ["penalty=ortho", "penalty.momentum=0.9", "train.kernels=reference"]
"""Without Triton's kernels, which are interpreted here."""


@pytest.fixture(autouse=True)
def first_device():
    yield
    torch.cuda.set_device(DEVICE)


@pytest.fixture(params=["memory", "disk"])
def store(request, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD_BYTES", 100 * 16 * 2)
    settings = ActivationsConfig(mode=request.param, dtype="bfloat16")
    module._in_memory.clear()
    (opened,) = open_layers(WORLD, [(LayerConfig(), {})], DataConfig(context=16), settings, N, tmp_path, "cpu")
    return opened


def same(one: Batch, other: Batch) -> bool:
    return all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(one.fields(), other.fields(), strict=True))


@pytest.mark.parametrize("device", [DEVICE, SECOND], ids=str)
@pytest.mark.parametrize("kept", ["on the CPU", "on the device"])
@pytest.mark.parametrize("kind", ["tokens", "contiguous_windows"])
def test_batches_have_the_cpus_bits_and_nobody_waits(store, kind, kept, device):
    """They are made on a stream of their own; reading one before it has arrived is an error of the simulation."""
    torch.cuda.set_device(device)
    expected = list(Sampler(store, 32, kind=kind, window=4).batches(0, 5))
    there = store if kept == "on the CPU" else StoreOnDevice(store, device, lambda: None)
    sampler = Sampler(there, 32, kind=kind, window=4, device=device)
    LOG.clear()
    seen = []
    for _, drawn in prepared(sampler.batch, range(5), device=device):
        assert drawn.x.device == device and drawn.x.dtype == torch.float32
        seen.append((drawn, drawn.x * 2))
    assert not LOG.by_place()
    assert all(same(one, reference) for (one, _), reference in zip(seen, expected, strict=True))


def test_a_batch_that_is_not_taken_over_must_not_be_read(store):
    """What `SideStream.take` is for."""
    from sae_sweeps.activations.side_stream import SideStream

    side, sampler = SideStream(DEVICE), Sampler(store, 32, device=DEVICE)
    drawn, ready = side.make(sampler.batch, 0)
    with pytest.raises(Exception, match="stream"):
        drawn.x * 2
    side.take(drawn, ready)
    assert (drawn.x * 2).shape == (32, 16)


def test_a_store_on_the_device_is_the_same_tokens(store):
    there = StoreOnDevice(store, DEVICE, lambda: None)
    rows, index = there.rows(0, N), np.random.default_rng(0).integers(0, N, 77)
    assert same(rows.take(index), store.rows(0, N).take(index)) and rows.take(index).x.is_cuda
    assert np.array_equal(rows.starts(4), store.rows(0, N).starts(4))
    with pytest.raises(KeyboardInterrupt):
        StoreOnDevice(store, DEVICE, lambda: (_ for _ in ()).throw(KeyboardInterrupt))


def test_copies_to_the_cpu_arrive_while_the_next_are_computed():
    computed = []

    def batches():
        for number in range(4):
            x = torch.full((3, 16), float(number), device=DEVICE)
            computed.append(number)
            yield [Batch(to_host(x), *(torch.zeros(3, dtype=torch.int32),) * 4, to_host(x[:, 0]))]

    LOG.clear()
    for number, (one,) in enumerate(arrived(batches(), DEVICE)):
        assert computed[-1] == min(number + 1, 3) and one.x.unique().tolist() == [number]
    assert sum(LOG.by_place().values()) == 4  # each event of a copy, and nothing else


@pytest.mark.parametrize("device", [DEVICE, SECOND], ids=str)
def test_a_checkpoint_beside_the_training_makes_nobody_wait(tmp_path, device):
    torch.cuda.set_device(device)
    training, writer = made(PLAIN, device), Writer()
    for step in range(3):
        training.step(batch(step, device), step)
    before = {name: tensor.detach().cpu().clone() for name, tensor in training.sae.named_parameters()}
    LOG.clear()
    write = writer.start(training, 3, tmp_path, beside=True)
    waited = {operation for operation, _ in LOG.synchronisations}  # the thread waits for the copy, and nothing else
    training.before_update = write.wait_for_copy
    training.step(batch(3, device), 3)
    assert write.finish() and waited <= {"Event.synchronize"}
    stored = load_file(tmp_path / FILE)
    assert all(torch.equal(stored[f"sae.{name}"], tensor) for name, tensor in before.items())
    resumed = made(PLAIN, device)
    assert load_checkpoint(resumed, tmp_path) == 3
    resumed.step(batch(3, device), 3)
    for one, other in zip(training.sae.parameters(), resumed.sae.parameters(), strict=True):
        assert torch.equal(one.cpu(), other.cpu())


def test_a_state_after_a_step_that_was_not_finite_is_never_written(tmp_path):
    training, writer = made(PLAIN, DEVICE), Writer()
    training.step(batch(0, DEVICE), 0)
    wrong = batch(1, DEVICE)
    wrong.x[3, 3] = torch.nan
    training.step(wrong, 1)
    assert not writer.start(training, 2, tmp_path, beside=True).finish() and not (tmp_path / FILE).exists()
    with pytest.raises(Diverged, match="step 1"):
        training.nonfinite_guard.check(wait=True)


@pytest.mark.parametrize("way", ["stopped", "ends while another is written"])
def test_runs_need_the_memory_of_one_copy(way, tmp_path, monkeypatch):
    class Ended(TrainingCallbacks):
        def on_failure(self, error):
            assert isinstance(error, Interrupted)

    memory, start, whole = [], Writer.start, checkpoint.written_whole

    def slowly(path):
        time.sleep(0.2)
        return whole(path)

    def noted(writer, *words, **options):
        write = start(writer, *words, **options)
        memory.append(write.memory)
        return write

    monkeypatch.setattr(Writer, "start", noted)
    monkeypatch.setattr(checkpoint, "written_whole", slowly)
    members = [Member(made(PLAIN, DEVICE), 0, tmp_path / name, Ended()) for name in "ab"]
    if way == "stopped":
        train(members, lambda step: {None: batch(step, DEVICE)}, stop=lambda: True)
    else:
        members[0].writer = members[1].writer
        members[0].save(0, beside=True)
        members[1].save(0)
        for member in members:
            member.finish_write()
    assert len(memory) == 2 and memory[0] is memory[1]
    assert all(load_checkpoint(made(PLAIN, DEVICE), one.folder) == 0 for one in members)


def test_a_training_loop_with_checkpoints_by_time_ends_like_one_without(tmp_path):
    class Quiet(TrainingCallbacks):
        pass

    ends = []
    for minutes in (5.0, 1e-9):
        training = made(PLAIN, DEVICE)
        training.run.train.checkpoint_minutes = minutes
        member = Member(training, 0, tmp_path / str(minutes), Quiet())
        train([member], lambda step: {None: batch(step, DEVICE)})
        ends.append([parameter.cpu() for parameter in training.sae.parameters()])
        assert member.speed(10, member.seconds_of_steps()) > 0
    assert all(torch.equal(*pair) for pair in zip(*ends, strict=True))
