"""Tokens beyond a norm: the same in every mode, never drawn by any way of sampling, and their share of the variance."""

import gc
import statistics
import weakref

import numpy as np
import pytest
import torch
from bounds import close

from sae_sweeps.activations import outliers
from sae_sweeps.activations.outliers import Skipping, StoreWithin, norm_stats
from sae_sweeps.activations.sampler import Sampler
from sae_sweeps.activations.store import MemoryStore, StreamStore, Window
from sae_sweeps.architectures.batch import Batch
from sae_sweeps.config.schema import DataConfig
from sae_sweeps.errors import DataError

N, CONTEXT, WIDTH = 1200, 12, 5


def tokens() -> Batch:
    """x[:, 0] is the token's number; ordinary norms of about 1, and every 50th token has one of 40."""
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(N, WIDTH, generator=generator), dim=1)
    x *= 1 + 0.2 * torch.rand(N, 1, generator=generator)
    x[7::50] *= 40
    number = torch.arange(N, dtype=torch.int32)
    return Batch(x, number, number // CONTEXT, number % CONTEXT, (number // CONTEXT % 3).to(torch.int8))


LONG = set(range(7, N, 50))


class Source:
    d_in, dtype = WIDTH, torch.float32

    def stream(self, start: int, stop: int):
        whole = tokens()[start:stop]
        yield from (whole[first : first + 100] for first in range(0, len(whole), 100))

    def count(self, stop: int) -> int:
        return min(stop, N)


def stores():
    yield "memory", MemoryStore(tokens(), DataConfig())
    yield "stream", StreamStore(Window([Source()], N, 240, DataConfig()))


def test_the_median_the_limit_and_the_share_of_the_variance(monkeypatch):
    x = tokens().x.double()
    norms = [row.square().sum().sqrt().item() for row in x]
    for n, at_once in ((N, 1024), (1150, 100)):
        monkeypatch.setattr(outliers, "N_TOKENS", n)
        monkeypatch.setattr(outliers, "AT_ONCE", at_once)
        median = statistics.median(norms[:n])
        for max_norm, kept in ((None, list(range(n))), (10.0, [i for i in range(n) if norms[i] <= 10 * median])):
            mean = x[kept].mean(0)
            variance = sorted(float((x[i] - mean).square().sum()) for i in kept)
            for _, store in stores():
                found = norm_stats(store, max_norm)
                close(found.median, median, WIDTH + 3, torch.float32)
                assert found.limit == (None if max_norm is None else max_norm * found.median)
                assert found.left_out == pytest.approx(1 - len(kept) / n)
                close(found.top_variance, variance[-1] / sum(variance), 2 * n + 20)  # a thousandth of n: one token
                assert (found.top_variance > 0.03) == (max_norm is None)


def test_there_is_no_share_of_a_thousandth_of_fewer_tokens_or_of_no_variance():
    few = tokens()[:999]
    assert norm_stats(MemoryStore(few, DataConfig()), None).top_variance is None
    same = Batch(torch.ones(N, WIDTH), *tokens().fields()[1:5])
    assert norm_stats(MemoryStore(same, DataConfig()), 10.0).top_variance is None


@pytest.mark.parametrize("kind", ["tokens", "adjacent_pairs", "contiguous_windows", "role_pairs", "text_pairs"])
@pytest.mark.parametrize("mode", ["memory", "stream"])
def test_they_are_never_drawn_and_every_other_is(mode, kind):
    """And pairs and windows are those of the whole text that hold none of them."""
    store = dict(stores())[mode]
    size = 60
    sampler = Sampler(StoreWithin(store, norm_stats(store, 10.0).limit), size, kind=kind, window=4)
    drawn = [sampler.batch(step) for step in range(8 * N // size)]
    numbers = torch.cat([batch.token_ids for batch in drawn]).tolist()
    assert not LONG & set(numbers) and max(batch.norm.max() for batch in drawn) < 2
    if kind in ("tokens", "role_pairs"):
        assert set(numbers) == set(range(N)) - LONG
    for batch in drawn:
        first, second = batch.token_ids.view(2, -1).tolist()
        if kind == "adjacent_pairs":
            assert [n + 1 for n in first] == second and (batch.position.view(2, -1)[1] > 0).all()
        if kind == "contiguous_windows":
            windows = batch.token_ids.view(-1, 4)
            assert (windows.diff(dim=1) == 1).all() and (windows[:, 0] // CONTEXT == windows[:, -1] // CONTEXT).all()
        if kind == "role_pairs":
            assert torch.equal(*batch.role.view(2, -1)) and all(a != b for a, b in zip(first, second, strict=True))
        if kind == "text_pairs":
            assert [n + CONTEXT for n in first] == second and all(n // CONTEXT % 2 == 0 for n in first)
    if mode == "memory":
        spans = {"adjacent_pairs": 2, "contiguous_windows": 4}
        if kind in spans:
            within = [n for n in range(N) if n % CONTEXT <= CONTEXT - spans[kind]]
            wanted = {n for n in within if not LONG & set(range(n, n + spans[kind]))}
            firsts = [b.token_ids.view(2, -1)[0] if spans[kind] == 2 else b.token_ids.view(-1, 4)[:, 0] for b in drawn]
            assert set(torch.cat(firsts).tolist()) == wanted
        if kind == "text_pairs":
            firsts = {n for n in range(N) if n // CONTEXT % 2 == 0 and not {n, n + CONTEXT} & LONG}
            assert {n for batch in drawn for n in batch.token_ids.view(2, -1)[0].tolist()} == firsts


def test_each_token_once_per_epoch():
    store = MemoryStore(tokens(), DataConfig())
    sampler = Sampler(StoreWithin(store, 10.0), 47)  # 1,176 kept: 25 batches and a bit
    numbers = torch.cat([sampler.batch(step).token_ids for step in range(26)]).tolist()
    assert sorted(numbers[:1176]) == sorted(set(range(N)) - LONG)


def test_a_part_is_searched_once_and_its_memory_is_freed_with_it():
    window = Window([Source()], N, 240, DataConfig())
    store = StoreWithin(StreamStore(window), 10.0)
    first = store.rows(0, 240)
    assert store.rows(0, 240) is first and len(first) == 235
    part = weakref.ref(window._rows[0])
    del first
    gc.disable()
    try:
        store._store.rows(240, 480)  # another run's sampler moves the window
        assert part() is None
    finally:
        gc.enable()
    assert len(store.rows(240, 480)) == 235


def test_a_part_without_any_other_token_is_an_error():
    store = MemoryStore(tokens(), DataConfig())
    with pytest.raises(DataError, match="data.max_norm leaves out every token"):
        StoreWithin(store, 0.5).rows(0, N)


def test_skipping_is_deleting():
    for out in ([], [0], [9], [0, 1, 2, 5, 9], list(range(10))):
        kept = np.delete(np.arange(10), out)
        skipping = Skipping(10, np.array(out, np.int64))
        assert len(skipping) == len(kept) and skipping[np.arange(len(kept))].tolist() == kept.tolist()
