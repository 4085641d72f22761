"""One artifact, three ways to hold it: the same tokens, checked when read, never half-written, memory bounded."""

import errno
import hashlib
import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from opening import open_activations
from safetensors.torch import load_file, save_file

from sae_sweeps.activations import store as module
from sae_sweeps.activations.language_model import LanguageModel, load_language_model
from sae_sweeps.activations.sampler import Sampler
from sae_sweeps.activations.store import open_layers
from sae_sweeps.config.schema import ActivationsConfig, DataConfig, LayerConfig, ModelConfig, SyntheticConfig
from sae_sweeps.errors import ConfigError, DamagedFile, DataError
from sae_sweeps.storage.files import DiskFull

WORLD = SyntheticConfig(d_in=8, n_features=16, l0=3.0, n_correlated=4, n_hierarchical=4)


@pytest.fixture(autouse=True)
def small_and_forgetful(monkeypatch):
    """Shards of 100 tokens, and nothing remembered from another test."""
    monkeypatch.setattr(module, "SHARD_BYTES", 100 * 8 * 4)
    module._in_memory.clear()
    module._verified.clear()


def open_synthetic(folder, num_tokens=1000, mode="disk", key=None, data=None, **more):
    more_activations = {name: more.pop(name) for name in ("buffer_tokens", "dtype") if name in more}
    return open_activations(
        WORLD,
        LayerConfig(),
        data or DataConfig(context=16),
        ActivationsConfig(mode=mode, **more_activations),
        num_tokens,
        folder,
        "cpu",
        key=key or {"num_tokens": num_tokens},
        **more,
    )


def everything(store):
    return store.rows(0, store.n_tokens).take(np.arange(store.n_tokens))


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.fields(), other.fields(), strict=True))


def left_in(folder):
    return sorted(path.name for path in Path(folder).rglob("*") if path.is_file())


def test_memory_disk_and_stream_hold_the_same_tokens(tmp_path):
    memory, disk, stream = (open_synthetic(tmp_path / mode, mode=mode) for mode in ("memory", "disk", "stream"))
    assert [s.mode for s in (memory, disk, stream)] == ["memory", "disk", "stream"]
    assert [s.n_tokens for s in (memory, disk, stream)] == [1000] * 3
    assert same(everything(memory), everything(disk)) and same(everything(memory), everything(stream))
    assert left_in(tmp_path / "memory") == left_in(tmp_path / "stream") == []
    (place,) = (tmp_path / "disk").iterdir()
    meta = json.loads((place / "meta.json").read_text())
    assert meta["key"] == {"num_tokens": 1000, "split": "train", "format_version": module.FORMAT_VERSION}
    assert len(meta["shards"]) == 10 and len(left_in(place)) == 11


def test_rows_come_in_the_order_asked_for_across_shards(tmp_path):
    disk, memory = (open_synthetic(tmp_path, mode=mode) for mode in ("disk", "memory"))
    index = np.random.default_rng(0).integers(0, 1000, 333)
    assert same(disk.rows(0, 1000).take(index), memory.rows(0, 1000).take(index))


@pytest.mark.parametrize("span", [2, 5, 16])
def test_starts(tmp_path, span):
    disk, memory = (open_synthetic(tmp_path, mode=mode) for mode in ("disk", "memory"))
    tokens = everything(memory)
    place = list(zip(tokens.sequence.tolist(), tokens.position.tolist(), strict=True))
    expected = [
        i for i in range(1000 - span + 1) if all(place[i + j] == (place[i][0], place[i][1] + j) for j in range(span))
    ]
    assert disk.rows(0, 1000).starts(span).tolist() == memory.rows(0, 1000).starts(span).tolist() == expected
    assert not [name for name in left_in(tmp_path) if "activations" not in name and name != "meta.json"]


def test_starts_where_there_are_none(tmp_path):
    for mode in ("disk", "memory"):
        assert len(open_synthetic(tmp_path, mode=mode).rows(0, 1000).starts(17)) == 0
    assert len(open_synthetic(tmp_path, 3, "memory").rows(0, 3).starts(16)) == 0


def test_too_little_disk_is_an_error_before_the_harvest_and_never_another_mode(tmp_path, monkeypatch):
    usage, size = shutil.disk_usage(tmp_path), 1000 * (8 * 4 + 17)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=size - 1))
    monkeypatch.setattr(module, "_write", lambda *args: pytest.fail("harvested"))
    with pytest.raises(
        DiskFull, match=r"activations.mode=disk: .* needs .* free some space, .*activations.mode=stream"
    ):
        open_synthetic(tmp_path / "not" / "there")
    assert open_synthetic(tmp_path, mode="memory").mode == "memory"
    monkeypatch.undo()
    monkeypatch.setattr(module, "SHARD_BYTES", 100 * 8 * 4)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=size))
    assert open_synthetic(tmp_path, num_tokens=1000).mode == "disk"


def test_harvested_once(tmp_path, monkeypatch):
    first = open_synthetic(tmp_path)
    monkeypatch.setattr(module, "_source", lambda *args: pytest.fail("harvested again"))
    assert same(everything(open_synthetic(tmp_path)), everything(first))
    in_memory = open_synthetic(tmp_path, mode="memory")  # from the shards
    shutil.rmtree(tmp_path)
    assert open_synthetic(tmp_path, mode="memory") is in_memory


def test_memory_keeps_the_latest_two(tmp_path):
    stores = [open_synthetic(tmp_path, n, "memory") for n in (10, 20, 30)]
    assert open_synthetic(tmp_path, 30, "memory") is stores[2] and open_synthetic(tmp_path, 20, "memory") is stores[1]
    assert open_synthetic(tmp_path, 10, "memory") is not stores[0]


def test_another_key_or_split_is_another_artifact(tmp_path):
    open_synthetic(tmp_path, key={"a": 1})
    open_synthetic(tmp_path, key={"a": 2})
    held_out = open_synthetic(tmp_path, key={"a": 1}, split="held_out")
    assert len(list(tmp_path.iterdir())) == 3
    assert not same(everything(held_out), everything(open_synthetic(tmp_path, key={"a": 1})))


def without_norms(place):
    """An artifact as it was written before norms were kept."""
    meta = json.loads((place / "meta.json").read_text())
    for shard in meta["shards"]:
        path = place / shard["file"]
        save_file({name: tensor for name, tensor in load_file(path).items() if name != "norm"}, path)
        shard["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (place / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize("mode", ["disk", "memory"])
def test_an_older_artifact_without_norms_is_read_and_has_them(tmp_path, mode):
    before = everything(open_synthetic(tmp_path))
    (place,) = tmp_path.iterdir()
    assert all("norm" in load_file(path) for path in place.glob("*.safetensors"))
    without_norms(place)
    module._verified.clear()
    assert same(everything(open_synthetic(tmp_path, mode=mode)), before)


@pytest.mark.parametrize("mode", ["memory", "disk", "stream"])
def test_the_rows_beyond_a_norm(tmp_path, mode):
    rows = open_synthetic(tmp_path, mode=mode).rows(0, 1000)
    norm = rows.take(np.arange(1000)).x.norm(dim=1)
    limit = float(norm.sort().values[900:902].mean())
    found = rows.beyond(limit)
    assert found.dtype == np.int64 and found.tolist() == (norm > limit).nonzero()[:, 0].tolist() and len(found) == 99
    assert len(rows.beyond(1e9)) == 0


def damage(place, what):
    shard = place / "activations-00003.safetensors"
    if what == "missing":
        shard.unlink()
    elif what == "meta":
        (place / "meta.json").write_text("{")
    elif what == "no meta":
        (place / "meta.json").unlink()
    else:
        content = bytearray(shard.read_bytes())
        content[-5] ^= 1
        shard.write_bytes(content if what == "a bit" else content[:-100])


@pytest.mark.parametrize("mode", ["disk", "memory"])
@pytest.mark.parametrize("what", ["a bit", "truncated", "missing", "meta", "no meta"])
def test_damage_is_named_and_mended_by_deleting(tmp_path, what, mode):
    before = everything(open_synthetic(tmp_path))
    (place,) = tmp_path.iterdir()
    damage(place, what)
    module._verified.clear()
    culprit = "meta.json" if "meta" in what else "activations-00003"
    with pytest.raises(DamagedFile, match=f"{culprit}.* delete the folder {place}"):
        everything(open_synthetic(tmp_path, mode=mode))
    shutil.rmtree(place)
    assert same(everything(open_synthetic(tmp_path, mode=mode)), before)


def test_a_shard_is_verified_once_per_process(tmp_path, monkeypatch):
    everything(open_synthetic(tmp_path))
    monkeypatch.setattr(module.hashlib, "file_digest", lambda *args: pytest.fail("verified again"))
    everything(open_synthetic(tmp_path))


def test_disk_full_leaves_nothing(tmp_path, monkeypatch):
    real = os.fsync
    calls = []

    def full(descriptor):
        calls.append(0)
        if len(calls) > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull, match="is full: activations take 49 bytes per token"):
        open_synthetic(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_leaves_nothing(tmp_path):
    def stop(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_synthetic(tmp_path, 5000, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_who_comes_second_uses_the_first_ones(tmp_path):
    """Another process harvests the same and is done while this one is still at it."""
    firsts = []

    def meanwhile(done):
        if not firsts:
            firsts.append(None)
            firsts[0] = open_synthetic(tmp_path, 3000)
            (place,) = (path for path in tmp_path.iterdir() if not path.name.startswith("."))
            firsts.append((place / "meta.json").stat().st_ino)

    second = open_synthetic(tmp_path, 3000, progress=meanwhile)
    (place,) = tmp_path.iterdir()
    assert (place / "meta.json").stat().st_ino == firsts[1] and same(everything(second), everything(firsts[0]))


def test_progress_counts_tokens(tmp_path):
    counted = []
    open_synthetic(tmp_path, 3000, progress=counted.append)
    assert counted == [1024, 2048, 3000]


def test_abandoned_temporary_folders_are_removed(tmp_path):
    open_synthetic(tmp_path)
    (place,) = tmp_path.iterdir()
    shutil.rmtree(place)
    old, young = (tmp_path / f".{place.name}.{number}" for number in (1, 2))
    for folder in (old, young):
        folder.mkdir()
    os.utime(old, (0, 0))
    open_synthetic(tmp_path)
    assert not old.exists() and young.exists()


def test_more_than_memory_holds(tmp_path):
    with pytest.raises(ConfigError, match="GB of memory, more than there is; use activations.mode=disk"):
        open_synthetic(tmp_path, 2**50, "memory")


def test_stored_dtype(tmp_path):
    full, half = (everything(open_synthetic(tmp_path, key={"d": d}, dtype=d)) for d in ("auto", "bfloat16"))
    assert half.x.dtype == torch.bfloat16 and torch.equal(full.x.bfloat16(), half.x)


def anonymous_megabytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("mode", ["disk", "stream"])
def test_memory_does_not_grow_with_the_number_of_tokens(tmp_path, monkeypatch, mode):
    """128 MB of activations, harvested and sampled, in shards and buffers of 2 MB."""
    world = SyntheticConfig(d_in=256, n_features=8, l0=2.0, n_correlated=0, n_hierarchical=0)
    monkeypatch.setattr(module, "SHARD_BYTES", 2**21)
    settings = ActivationsConfig(mode=mode, buffer_tokens=2048)
    n_tokens, peak = 2**17, []

    def run(n_tokens, folder):
        args = (world, LayerConfig(), DataConfig(context=16), settings, n_tokens, folder, "cpu")
        store = open_activations(*args, key={}, progress=lambda done: peak.append(anonymous_megabytes()))
        sampler = Sampler(store, 512, kind="adjacent_pairs")
        for step in range(0, n_tokens // 512, 3):
            sampler.batch(step)
            peak.append(anonymous_megabytes())

    run(2**16, tmp_path / "warm")  # long enough for the allocator to have what queues and buffers need
    before = max(peak)
    peak.clear()
    run(n_tokens, tmp_path / "measured")
    assert max(peak) - before < 64, "half of what was harvested"


def write_text(path, n):
    path.write_text("\n".join(f'{{"text": "def number_{i}(self): return {i * i}"}}' for i in range(n)))
    return DataConfig(kind="jsonl", path=str(path), context=16)


@pytest.mark.parametrize("hook", ["resid_post", "mlp_out", "attn_out"])
@pytest.mark.parametrize("family", ["gemma2", "llama"])
def test_local_models(request, tmp_path, family, hook):
    model = ModelConfig(source="local", path=str(request.getfixturevalue(f"tiny_{family}_folder")))
    data, layer = write_text(tmp_path / "a.jsonl", 40), LayerConfig(hook, 1)
    store = open_activations(model, layer, data, ActivationsConfig(mode="disk"), 200, tmp_path / "s", "cpu", key={})
    batch = Sampler(store, 32).batch(0)
    assert store.n_tokens == 200 and batch.x.shape == (32, 32) and torch.isfinite(batch.x).all() and batch.x.std() > 0
    assert not set(batch.token_ids.tolist()) & {0, 1, 2}


def test_text_that_ends_early_or_at_once(tiny_llama_folder, tmp_path):
    model = ModelConfig(source="local", path=str(tiny_llama_folder))
    lm = load_language_model(model, "cpu")
    data = write_text(tmp_path / "a.jsonl", 40)
    stores = [
        open_activations(
            model, LayerConfig(), data, ActivationsConfig(mode=mode), 10**6, tmp_path / mode, "cpu", key={}, lm=lm
        )
        for mode in ("memory", "disk", "stream")
    ]
    assert stores[0].n_tokens == stores[1].n_tokens < 10**6 == stores[2].n_tokens
    stores[2].rows(0, 10**6)
    assert stores[2].n_tokens == stores[0].n_tokens
    data.context = 64
    short = write_text(tmp_path / "b.jsonl", 2)
    short.context = 64
    for mode in ("memory", "disk", "stream"):
        with pytest.raises(DataError, match="does not fill one context of 64 tokens"):
            store = open_activations(
                model, LayerConfig(), short, ActivationsConfig(mode=mode), 100, tmp_path / "s", "cpu", key={}, lm=lm
            )
            store.rows(0, 10)


LAYERS = [LayerConfig("resid_post", 0), LayerConfig("mlp.hook_post", 1), LayerConfig("resid_post", 2)]


@pytest.fixture
def passes(monkeypatch):
    """Counts passes of the language model over a batch of contexts."""
    counted, read = [], LanguageModel._read
    monkeypatch.setattr(LanguageModel, "_read", lambda *args: counted.append(len(args[2])) or read(*args))
    return counted


def layers_of_llama(folder, llama, lm, layers, mode, n_tokens=300, **more):
    model = ModelConfig(source="local", path=str(llama))
    data = write_text(folder.parent / "a.jsonl", 40)
    keyed = [(layer, {"layer": f"{layer.index} {layer.hook}", "num_tokens": n_tokens}) for layer in layers]
    settings = ActivationsConfig(mode=mode, buffer_tokens=100, harvest_batch=4)
    return open_layers(model, keyed, data, settings, n_tokens, folder, "cpu", lm=lm, **more)


@pytest.fixture
def llama_lm(tiny_llama_folder):
    lm = load_language_model(ModelConfig(source="local", path=str(tiny_llama_folder)), "cpu")
    lm.site(LAYERS[1])  # compared with TransformerLens' before anything is counted
    return lm


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_layers_together_are_the_artifacts_that_each_is_alone(tiny_llama_folder, llama_lm, tmp_path, passes):
    """Files byte by byte under the same names, also of hooks of different widths; one pass where there were three."""
    together, alone, half = (tmp_path / name for name in ("together", "alone", "half"))
    counted = []
    stores = layers_of_llama(together, tiny_llama_folder, llama_lm, LAYERS, "disk", progress=counted.append)
    n_together = len(passes)
    for layer in LAYERS:
        layers_of_llama(alone, tiny_llama_folder, llama_lm, [layer], "disk")
    assert n_together and len(passes) - n_together > 2.9 * n_together - 3  # the widths are read by a pass each time
    assert contents(together) == contents(alone) and len({path.parts[0] for path in contents(alone)}) == 3
    assert [store.d_in for store in stores] == [32, 64, 32] and counted[-1] == 300

    layers_of_llama(half, tiny_llama_folder, llama_lm, LAYERS[1:2], "disk")
    before = contents(half)
    layers_of_llama(half, tiny_llama_folder, llama_lm, LAYERS, "disk")  # finds one, harvests two
    assert contents(half) == contents(together) and before.items() <= contents(half).items()
    passes.clear()
    layers_of_llama(together, tiny_llama_folder, llama_lm, LAYERS[::-1], "disk")
    assert not passes


def test_layers_together_in_memory_and_as_a_stream(tiny_llama_folder, llama_lm, tmp_path, passes):
    stores = layers_of_llama(tmp_path / "d", tiny_llama_folder, llama_lm, LAYERS, "disk")
    whole = [everything(store) for store in stores]
    for mode in ("memory", "stream"):
        passes.clear()
        found = layers_of_llama(tmp_path / mode, tiny_llama_folder, llama_lm, LAYERS, mode)
        for start, stop in ((0, 100), (100, 200), (200, 300)):
            for store, expected in zip(found, whole, strict=True):
                rows = store.rows(start, stop)
                index = np.arange(100) + (start if mode == "memory" else 0)
                assert same(rows.take(index), expected[start:stop])
        contexts = -(-int(whole[0].sequence[-1] + 1) // 4)
        assert len(passes) <= contexts + 1  # one more to read the width of mlp.hook_post
    passes.clear()
    again = layers_of_llama(tmp_path / "memory", tiny_llama_folder, llama_lm, LAYERS, "memory")
    more = layers_of_llama(tmp_path / "memory", tiny_llama_folder, llama_lm, LAYERS, "memory", split="held_out")
    assert len(module._in_memory) == 6
    assert again == layers_of_llama(tmp_path / "memory", tiny_llama_folder, llama_lm, LAYERS, "memory")
    assert more != again
    layers_of_llama(tmp_path / "memory", tiny_llama_folder, llama_lm, LAYERS[:1], "memory", n_tokens=200)
    assert len(module._in_memory) == 2


def test_a_stream_of_layers_whose_text_ends(tiny_llama_folder, llama_lm, tmp_path):
    stores = layers_of_llama(tmp_path / "s", tiny_llama_folder, llama_lm, LAYERS, "stream", n_tokens=10**6)
    (alone,) = layers_of_llama(tmp_path / "s", tiny_llama_folder, llama_lm, LAYERS[:1], "stream", n_tokens=10**6)
    samplers = [Sampler(store, 32) for store in (*stores, alone)]
    for step in (0, 1, 30, 25, 60):
        batches = [sampler.batch(step) for sampler in samplers]
        assert torch.equal(batches[0].x, batches[-1].x)
        assert all(torch.equal(batch.token_ids, batches[-1].token_ids) for batch in batches)
    assert {store.n_tokens for store in (*stores, alone)} == {alone.n_tokens} and alone.n_tokens < 10**6


@pytest.mark.parametrize("mode", ["disk", "memory", "stream"])
def test_what_is_wrong_with_one_layer_leaves_the_others(tiny_llama_folder, llama_lm, tmp_path, mode):
    layers = [LayerConfig("resid_post", 0), LayerConfig("mlp.hook_pots", 1), LayerConfig("resid_post", 9), LAYERS[2]]
    first, misspelt, beyond, last = layers_of_llama(tmp_path / "s", tiny_llama_folder, llama_lm, layers, mode)
    assert isinstance(misspelt, ConfigError) and "mlp.hook_post" in str(misspelt)
    assert isinstance(beyond, ConfigError) and "layer=9" in str(beyond)
    assert first.n_tokens == last.n_tokens == 300
    assert len(first.rows(0, 300)) and len(last.rows(0, 300))
    if mode == "disk":
        next(first.place.glob("activations-00000*")).unlink()
        damaged, found = layers_of_llama(tmp_path / "s", tiny_llama_folder, llama_lm, [layers[0], LAYERS[2]], mode)
        assert isinstance(damaged, DamagedFile) and found.n_tokens == 300


def test_layers_together_that_are_interrupted_leave_nothing(tiny_llama_folder, llama_lm, tmp_path):
    def stop(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        layers_of_llama(tmp_path / "s", tiny_llama_folder, llama_lm, LAYERS, "disk", progress=stop)
    assert list((tmp_path / "s").iterdir()) == []


def test_work_is_done_beside_the_making_in_order_and_not_far_behind():
    made, worked, third = [], [], threading.Event()

    def things():
        for number in range(20):
            made.append(number)
            if number == 3:
                third.set()
            assert number - len(worked) <= module.AHEAD + 2
            yield number

    def work(number):
        assert number or third.wait(60)  # the first ends after three more are made
        worked.append(number)

    module.beside(work, things())
    assert worked == made == list(range(20))


@pytest.mark.parametrize("who", ["work", "making"])
def test_an_error_of_the_work_or_the_making_ends_both(who):
    worked = []

    def things():
        for number in range(1000):
            if who == "making" and number == 3:
                raise KeyboardInterrupt
            yield number

    def work(number):
        if who == "work" and number == 3:
            raise DiskFull("full")
        worked.append(number)

    with pytest.raises(DiskFull if who == "work" else KeyboardInterrupt):
        module.beside(work, things())
    done = list(worked)
    time.sleep(0.02)
    assert worked == done and 3 not in worked
