"""Batches are a pure function of (data_seed, step), whatever holds the tokens; every token once per epoch."""

import logging

import pytest
import torch

from sae_sweeps.activations import store as module
from sae_sweeps.activations.sampler import Sampler
from sae_sweeps.activations.store import MemoryStore, StreamStore, Window
from sae_sweeps.architectures.batch import Batch
from sae_sweeps.config.schema import DataConfig
from sae_sweeps.errors import ConfigError, DataError

CONTEXT = 10


class NumberedSource:
    """Token i of `n` has id and activation i; contexts of 10 tokens, of which the first is not trained on."""

    d_in, dtype = 1, torch.float32

    def __init__(self, n: int):
        self.n = n
        self.pulled = 0

    def count(self, stop):
        return min(stop, self.n)

    def stream(self, start, stop):
        for first in range(start, min(stop, self.n), 7):
            i = torch.arange(first, min(first + 7, stop, self.n), dtype=torch.int32)
            self.pulled += len(i)
            sequence, position = i // (CONTEXT - 1), 1 + i % (CONTEXT - 1)
            yield Batch(i[:, None].float(), i, sequence, position, torch.zeros_like(i, dtype=torch.int8))


def memory(n):
    return MemoryStore(Batch.concatenate(list(NumberedSource(n).stream(0, n))), DataConfig())


def stream(n, num_tokens, buffer_tokens):
    return StreamStore(Window([NumberedSource(n)], num_tokens, buffer_tokens, DataConfig()))


def ids(sampler, steps):
    return [sampler.batch(step).token_ids.tolist() for step in steps]


def flat(batches):
    return [token for batch in batches for token in batch]


def test_every_token_once_per_epoch_in_a_new_order():
    sampler = Sampler(memory(96), 12)
    first, second = ids(sampler, range(8)), ids(sampler, range(8, 16))
    assert sorted(flat(first)) == sorted(flat(second)) == list(range(96))
    assert first != second and flat(first) != list(range(96))


def test_an_epoch_may_end_inside_a_batch():
    drawn = flat(ids(Sampler(memory(10), 4), range(10)))
    assert all(sorted(drawn[i : i + 10]) == list(range(10)) for i in range(0, 40, 10))
    assert sorted(Sampler(memory(3), 9).batch(0).token_ids.tolist()) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("kind", ["tokens", "adjacent_pairs", "contiguous_windows"])
@pytest.mark.parametrize("make", [lambda: memory(300), lambda: stream(300, 10**6, 64), lambda: stream(300, 300, 64)])
def test_pure_function_of_data_seed_and_step(make, kind):
    steps = [0, 1, 2, 5, 11, 30, 47]
    options = {"kind": kind, "window": 4}
    straight = ids(Sampler(make(), 16, 3, **options), range(48))
    assert ids(Sampler(make(), 16, 3, **options), reversed(steps)) == [straight[step] for step in reversed(steps)]
    for step in steps:  # a new process that resumes there
        assert ids(Sampler(make(), 16, 3, **options), [step]) == [straight[step]]
    assert ids(Sampler(make(), 16, 4, **options), [5]) != [straight[5]]


def test_fields_belong_together_and_are_float32():
    store = memory(300)
    store.batch.x = store.batch.x.to(torch.bfloat16)
    batch = Sampler(store, 32).batch(3)
    assert batch.x.dtype == torch.float32 and batch.x.shape == (32, 1)
    assert torch.equal(batch.x[:, 0].bfloat16(), batch.token_ids.bfloat16())
    assert torch.equal(batch.sequence * 9 + batch.position - 1, batch.token_ids)


def test_adjacent_pairs():
    sampler = Sampler(memory(90), 16, kind="adjacent_pairs")
    anchors = []
    for step in range(10):  # 80 anchors: 8 of each context's 9 tokens have a successor
        batch = sampler.batch(step)
        one, other = batch[:8], batch[8:]
        assert torch.equal(one.sequence, other.sequence) and torch.equal(one.position + 1, other.position)
        anchors += one.token_ids.tolist()
    assert sorted(anchors) == [i for i in range(90) if i % 9 != 8]


def test_contiguous_windows():
    batch = Sampler(memory(900), 24, kind="contiguous_windows", window=6).batch(2)
    sequence, position = batch.sequence.view(4, 6), batch.position.view(4, 6)
    assert (sequence == sequence[:, :1]).all() and (position.diff() == 1).all()
    assert len(set(batch.token_ids.tolist())) > 12


def test_stream_draws_from_one_buffer_after_the_other():
    drawn = ids(Sampler(stream(10**6, 320, 70), 16), range(20))  # 4 batches from each 64 tokens
    for part in range(5):
        assert sorted(flat(drawn[4 * part : 4 * part + 4])) == list(range(64 * part, 64 * part + 64))


def test_stream_harvests_each_token_once():
    store = stream(10**6, 320, 64)
    ids(Sampler(store, 16), range(20))
    assert store._window.sources[0].pulled == 320


def test_stream_begins_again_when_the_text_ends(caplog):
    sampler = Sampler(stream(100, 10**6, 64), 16)  # 6 batches fit
    with caplog.at_level(logging.WARNING):
        drawn = ids(sampler, range(18))
    assert "ends after 100 tokens" in caplog.text and sampler.store.n_tokens == 100
    for epoch in range(3):
        tokens = flat(drawn[6 * epoch : 6 * epoch + 6])
        assert len(set(tokens)) == 96 and max(tokens) < 100
    assert drawn[:6] != drawn[6:12]


def test_less_text_than_a_batch():
    assert len(ids(Sampler(stream(5, 100, 64), 16), [0, 3])[1]) == 16


def test_the_thread_gives_the_same_batches():
    sampler = Sampler(memory(300), 16)
    ahead = [batch.token_ids.tolist() for batch in sampler.batches(3, 9)]
    assert ahead == ids(sampler, range(3, 9)) and list(sampler.batches(4, 4)) == []


def test_an_error_in_the_thread_reaches_the_caller(monkeypatch):
    sampler = Sampler(memory(300), 16)
    monkeypatch.setattr(sampler.store, "take", lambda index: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(sampler.batches(0, 3))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"kind": "pairs"}, "train.sampling=pairs"),
        ({"batch_size": 15, "kind": "adjacent_pairs"}, "batch_size=15 must be a multiple of 2"),
        ({"batch_size": 16, "kind": "contiguous_windows", "window": 5}, "multiple of 5"),
        ({"kind": "contiguous_windows", "window": 0}, "train.window=0"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_mistakes(options, words):
    with pytest.raises(ConfigError, match=words):
        Sampler(memory(100), **{"batch_size": 16} | options)


def test_no_window_fits_a_context():
    with pytest.raises(DataError, match="no context has 16 consecutive tokens; raise data.context"):
        Sampler(memory(100), 16, kind="contiguous_windows", window=16).batch(0)


def test_module_default_is_not_tiny():
    assert module.SHARD_BYTES >= 2**26
