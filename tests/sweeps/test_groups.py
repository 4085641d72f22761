"""A plan in groups: what is shared, and what limits them."""

import pytest

from sae_sweeps.cli.compose import compose_points
from sae_sweeps.config.schema import ClusterConfig
from sae_sweeps.errors import ConfigError
from sae_sweeps.sweeps import groups as module
from sae_sweeps.sweeps.groups import describe_groups, plan_groups, ranges
from sae_sweeps.sweeps.plan import describe, make_plan

TINY = ["d_sae=64", "batch_size=128", "num_tokens=5120", "device=cpu"]


def planned(*words):
    return make_plan(compose_points(["model=synthetic", *TINY, *words]))


def test_groups_share_what_the_language_model_reads():
    plan = planned(
        "model=pythia-70m", "layer=1,2", "data=builtin", "num_tokens=5120,10240", "seed=0,1", "data_seed=0,1"
    )
    groups = plan_groups(plan, ClusterConfig(memory_gb=100.0))
    assert [len(group.runs) for group in groups] == [8, 8]
    for group in groups:
        assert {one.run.layer.index for one in group.runs} == {1, 2}
        (budget,) = {one.run.num_tokens for one in group.runs}
        assert group.tokens == (budget, 8 * budget)
    assert groups[0].key == "pythia-70m layers 1, 2 resid_post, data builtin, 5,120 tokens"
    assert sorted(id(one) for group in groups for one in group.runs) == sorted(map(id, plan.runs))


def test_batch_sizes_share_a_store_but_not_a_stream():
    words = ["batch_size=128,256", "seed=0,1"]
    assert [len(g.runs) for g in plan_groups(planned(*words))] == [4]
    stream = ["activations.mode=stream", "activations.buffer_tokens=1024"]
    assert [len(g.runs) for g in plan_groups(planned(*words, *stream))] == [2, 2]


def test_runs_with_and_without_outliers_share_a_harvest():
    plan = planned("model=pythia-70m", "layer=1", "data=builtin", "data.max_norm=null,10")
    assert [len(group.runs) for group in plan_groups(plan, ClusterConfig(memory_gb=100.0))] == [2]


def test_size_and_memory_limit_a_group():
    plan = planned("seed=range(10)")
    assert [len(g.runs) for g in plan_groups(plan, ClusterConfig(group_size=4))] == [4, 4, 2]
    (whole,) = plan_groups(plan, ClusterConfig(memory_gb=10.0))
    (single, *_) = plan_groups(plan, ClusterConfig(group_size=1))
    halves = plan_groups(plan, ClusterConfig(memory_gb=(whole.memory_gb + single.memory_gb) / 2))
    assert len(halves) == 2 and all(g.memory_gb <= (whole.memory_gb + single.memory_gb) / 2 for g in halves)
    assert [len(g.runs) for g in plan_groups(plan, ClusterConfig(memory_gb=1e-9))] == [1] * 10  # never none
    for key, value in {"group_size": 0, "memory_gb": -1.0}.items():
        with pytest.raises(ConfigError, match=f"cluster.{key}={value}: must be"):
            plan_groups(plan, ClusterConfig(**{key: value}))


def test_memory_counts_the_language_model_once():
    one, two = (plan_groups(planned("model=builtin", f"seed={seeds}"))[0] for seeds in ("0", "0,1"))
    own = 2 * 160 * 64 * 16 / 1e9
    assert two.memory_gb - one.memory_gb == pytest.approx(own)
    files = plan_groups(planned("model=builtin"))[0].runs[0].run
    assert one.memory_gb > own and files.model.d_in == 160


def test_the_dry_run_lists_groups_tokens_and_memory():
    plan = planned("model=builtin", "num_tokens=5120,10240", "seed=0,1")
    text = describe(plan, describe_groups(plan_groups(plan), plan))
    assert "group 2  runs 3-4\n  builtin layer 2 resid_post, data builtin, 10,240 tokens: " in text
    assert "the language model reads 5,120 tokens, SAEs train on 10,240, memory about 0." in text
    assert "in all: the language model reads 15,360 tokens, SAEs train on 30,720" in text


def test_the_dry_run_shows_layers_that_share_a_pass():
    text = "\n".join(describe_groups(plan_groups(plan := planned("model=builtin", "layer=0,1,2", "seed=0,1")), plan))
    assert text.startswith(
        "group 1  runs 1-6\n  builtin layers 0, 1, 2 resid_post, data builtin, 5,120 tokens: one pass of the language "
        "model reads 5,120 tokens for all layers, SAEs train on 30,720, memory about 0."
    )
    plan = planned("model=builtin", "layer=resid_post,mlp.hook_post", "layer=1")
    text = "\n".join(describe_groups(plan_groups(plan), plan))
    assert "builtin layers 1 resid_post, 1 mlp.hook_post, data" in text
    assert "for all layers (and one more for each hook that is on none of its own modules), SAEs train" in text


def test_layers_share_a_group_as_far_as_their_activations_have_room():
    """Each layer's come on top; seeds by layer keep the pieces' layers few, and no piece has fewer runs than alone."""
    plan = planned("model=builtin", "seed=0,1,2", "layer=0,1,2", "activations.mode=memory", "num_tokens=512000")
    (whole,) = plan_groups(plan, ClusterConfig(memory_gb=100.0))
    (layer, *_) = plan_groups(planned("model=builtin", "seed=0,1,2", "layer=0", "num_tokens=512000"))
    (seed, *_) = plan_groups(planned("model=builtin", "seed=0", "layer=0,1,2", "num_tokens=512000"))
    kept = 512_000 * 160 * 4 / 1e9
    weights, start = 2 * 160 * 64 * 16 / 1e9, 16_384 * 160 * 4 / 1e9
    assert whole.memory_gb - layer.memory_gb == pytest.approx(2 * (kept + start) + 6 * weights)
    assert whole.memory_gb - seed.memory_gb == pytest.approx(6 * weights)
    pieces = plan_groups(plan, ClusterConfig(memory_gb=layer.memory_gb + kept / 2))
    assert [[one.run.layer.index for one in piece.runs] for piece in pieces] == [[0] * 3, [1] * 3, [2] * 3]
    pieces = plan_groups(plan, ClusterConfig(memory_gb=100.0, group_size=6))
    assert [sorted({one.run.layer.index for one in piece.runs}) for piece in pieces] == [[0, 1], [2]]


def test_activations_of_many_layers_need_main_memory_where_a_gpu_trains(monkeypatch):
    monkeypatch.setattr(module, "usable_memory_gb", lambda device: (True, 80.0))
    plan = planned("model=builtin", "layer=0,1,2", "activations.mode=memory", "num_tokens=512000")
    for gb, sizes in ((10.0, [3]), (0.9, [2, 1]), (0.1, [1, 1, 1])):
        monkeypatch.setattr(module, "machine_gb", lambda gb=gb: gb)
        assert [len(group.runs) for group in plan_groups(plan)] == sizes


@pytest.mark.parametrize(("numbers", "text"), [([1, 2, 3, 5], "1-3,5"), ([4], "4"), ([2, 4, 5], "2,4-5"), ([], "")])
def test_ranges(numbers, text):
    assert ranges(numbers) == text


def test_memory_counts_logits_by_the_vocabulary_and_copies_of_checkpoints():
    """Core holds a batch's logits on a CPU, and no more than a block of them on a GPU."""
    words = ("model=gemma-2-2b", "data=builtin", "d_sae=16384", "batch_size=2048", "num_tokens=5000000", "k=40")
    runs = planned(*words).runs
    without = planned(*words, "eval=none").runs
    vocabulary, tokens = 256_000, runs[0].run.eval.batch_size * runs[0].run.data.context
    assert runs[0].run_id == planned(*words, "model.vocabulary=1000").runs[0].run_id
    step = module.step_gb(runs[0].run)
    assert module.memory_of(runs) - module.memory_of(without) == pytest.approx(tokens * vocabulary * 10 / 1e9 - step)
    assert module.logits_gb(runs[0].run, on_gpu=True) == pytest.approx(1.25 * 2**29 * 2 / 1e9, rel=0.05)
    state, two = 3 * 2 * 2304 * 16384 * 4 / 1e9, planned(*words, "seed=0,1").runs
    copies = module.copies_gb([one.run for one in two])
    assert copies == pytest.approx(state)  # one is written after the other
    for one in two:
        one.run.train.checkpoint_every = 250
    assert module.copies_gb([one.run for one in two]) == pytest.approx(2 * state)
