"""Groups carried out in this process: what is shared, and what must not be."""

import json
from copy import deepcopy
from functools import cache

import pytest
import torch

from sae_sweeps.activations import store
from sae_sweeps.activations.harvest import SyntheticSource
from sae_sweeps.activations.language_model import LanguageModel
from sae_sweeps.cli.compose import compose_points
from sae_sweeps.config.schema import ClusterConfig
from sae_sweeps.errors import ConfigError, Diverged
from sae_sweeps.runs import evaluate
from sae_sweeps.runs import task as task_module
from sae_sweeps.runs.console import Console
from sae_sweeps.runs.inline import run_all
from sae_sweeps.runs.signals import Stop
from sae_sweeps.runs.task import RunTask
from sae_sweeps.storage.lease import Lease
from sae_sweeps.storage.run_folder import RunFolder
from sae_sweeps.sweeps.plan import Plan, make_plan
from sae_sweeps.training.step import Training

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("side_by_side")]  # its fixture is made once

CPU = torch.device("cpu")
TINY = [
    "model=synthetic", "d_sae=64", "batch_size=128", "num_tokens=5120", "train.log_every=1", "train.monitor_every=8",
    "train.held_out_tokens=128", "train.checkpoint_every=10", "device=cpu",
]  # fmt: skip
EIGHT = ["penalty=none,ortho", "k=4,8", "seed=0,1"]


@cache
def composed(*words):
    return make_plan(compose_points([*TINY, *words, *([] if "eval=none" in words else ["eval.sparsity_batches=1"])]))


def planned(*words):
    return deepcopy(composed(*words))


def carried_out(plan, outputs, size=None, **more):
    """States of a plan's runs after `run_all` under `outputs`."""
    for one in plan.runs:
        one.run.outputs = str(outputs)
    more.setdefault("stop", Stop())
    return run_all(plan, outputs, outputs / "sweep", CPU, cluster=ClusterConfig(group_size=size), **more)


def folders(plan, outputs):
    return [outputs / "runs" / one.run_id for one in plan.runs]


def read(folder, name):
    return json.loads((folder / name).read_text())


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def numbers(folder):
    """Everything of a run that its siblings must not change."""
    rows = [
        {key: value for key, value in row.items() if key != "tokens_per_s"} for row in lines(folder / "metrics.jsonl")
    ]
    files = ("sae/sae_weights.safetensors", "checkpoint/state.safetensors", "monitors.jsonl")
    contents = [content(folder / name) for name in files if (folder / name).exists()]
    return rows, contents, read(folder, "results.json")["metrics"]


def content(path):
    """A file's bytes; of tensors without the digests of logs in the header, since logs hold times."""
    found = path.read_bytes()
    if path.suffix != ".safetensors":
        return found
    start = 8 + int.from_bytes(found[:8], "little")
    header = {name: where for name, where in json.loads(found[8:start]).items() if name != "__metadata__"}
    return header, found[start:]


def assert_same(plan, outputs, other, but=()):
    for one, other_one in zip(folders(plan, outputs), folders(plan, other), strict=True):
        if one.name not in but:
            assert numbers(one) == numbers(other_one)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Eight runs, each in a group of its own."""
    outputs, plan = tmp_path_factory.mktemp("alone"), planned(*EIGHT)
    states = carried_out(plan, outputs, size=1)
    assert list(states.ended.values()) == ["completed"] * 8 and not states.interrupted
    return outputs


def test_groups_of_one_three_and_eight_give_the_same_numbers(alone, tmp_path, capsys):
    for size in (3, 8):
        plan = planned(*EIGHT)
        carried_out(plan, tmp_path / str(size), size)
        assert_same(plan, tmp_path / str(size), alone)
        made = [read(folder, "results.json")["provenance"] for folder in folders(plan, tmp_path / str(size))]
        assert [m["group_size"] for m in made] == ([3, 3, 3, 3, 3, 3, 2, 2] if size == 3 else [8] * 8)
        assert all(0 <= m["shared_time_s"] <= m["wall_time_s"] and m["tokens_per_s"] > 0 for m in made)
    said = capsys.readouterr().out
    assert "[1-3/8] 3 runs side by side: synthetic, 5,120 tokens\n" in said and "[1-8/8] 8 runs" in said
    assert said.count("  completed: fvu") == 16


def test_a_stream_is_harvested_once_for_all(tmp_path, monkeypatch):
    harvested, stream = [], SyntheticSource.stream

    def counting(source, start, stop):
        for batch in stream(source, start, stop):
            if source.split == "train":
                harvested.append(len(batch))
            yield batch

    monkeypatch.setattr(SyntheticSource, "stream", counting)
    words = ["activations.mode=stream", "eval=none", "seed=0,1", "data_seed=0,1"]
    # of each group one to measure norms, one to start from and one to train on, or one where a part has as many tokens
    for buffer, passes in ((1024, 3), (5120, 1)):
        plan = planned(*words, f"activations.buffer_tokens={buffer}")
        for size, groups in ((4, 1), (1, 4)):
            harvested.clear()
            carried_out(plan, tmp_path / f"{buffer}-{size}", size)
            assert sum(harvested) == groups * passes * 5120
        assert_same(plan, tmp_path / f"{buffer}-4", tmp_path / f"{buffer}-1")


def test_a_language_model_reads_its_text_once_for_all(tmp_path, monkeypatch, tiny_gpt_neox_folder):
    calls, activations = [], LanguageModel.activations_at

    def counting(lm, tokens_SL, layers):
        calls.append(len(tokens_SL))
        return activations(lm, tokens_SL, layers)

    monkeypatch.setattr(LanguageModel, "activations_at", counting)
    words = ["activations.mode=stream", "activations.buffer_tokens=2560", "data.context=32", "eval.recon_batches=1"]
    words += ["train.held_out_tokens=0", "eval.batch_size=2", "seed=0,1,2", "num_tokens=2560"]
    plan = planned(f"model={tiny_gpt_neox_folder}", *words)
    for size in (3, 1):
        calls.append(0)
        carried_out(plan, tmp_path / str(size), size)
    together, alone = calls[1 : calls.index(0, 1)], calls[calls.index(0, 1) + 1 :]
    assert sum(alone) == 3 * sum(together) > 0  # to train and to evaluate
    assert_same(plan, tmp_path / "3", tmp_path / "1")
    assert all("ce_loss_score" in numbers(folder)[2] for folder in folders(plan, tmp_path / "3"))


LAYERS = [
    "num_tokens=2560", "d_sae=64", "k=8", "data.context=32", "eval.batch_size=2", "eval.recon_batches=1",
    "eval.evaluations=[core]", "train.checkpoint_every=5",
]  # fmt: skip
HOOKS = "layer=resid_post,mlp.hook_post"
MODES = {mode: [f"activations.mode={mode}"] for mode in ("memory", "disk", "stream")}
MODES["stream"] += ["activations.buffer_tokens=1024"]


def layers_of(llama, *words):
    return planned(f"model={llama}", *LAYERS, *words)


@pytest.fixture(scope="module")
def layers_alone(tmp_path_factory, tiny_llama_folder):
    """Each layer and hook launched by itself, by how activations are kept."""
    found = {}
    for mode, kept in MODES.items():
        found[mode] = tmp_path_factory.mktemp(mode)
        for one in layers_of(tiny_llama_folder, HOOKS, "layer=0,2", *kept).runs:
            store._in_memory.clear()
            assert list(carried_out(Plan([one], [], []), found[mode]).ended.values()) == ["completed"]
    return found


def harvest_passes(monkeypatch):
    """Counts batches of contexts that the language model reads up to a layer, by the number of layers."""
    calls, activations = [], LanguageModel.activations_at

    def counting(lm, tokens_SL, layers):
        calls.append(len(layers))
        return activations(lm, tokens_SL, layers)

    monkeypatch.setattr(LanguageModel, "activations_at", counting)
    return calls


@pytest.mark.parametrize("mode", MODES)
def test_layers_together_end_with_the_numbers_of_each_alone(
    layers_alone, tiny_llama_folder, tmp_path, monkeypatch, mode
):
    """Two layers with two hooks of different widths, stopped in the middle; one goes on alone, three together."""
    plan = layers_of(tiny_llama_folder, HOOKS, "layer=0,2", *MODES[mode])
    assert len({one.run.d_in for one in plan.runs}) == 2 and len(plan.runs) == 4
    store._in_memory.clear()
    with monkeypatch.context() as patch:
        states = carried_out(deepcopy(plan), tmp_path, stop=stop_after(7, patch))
    assert states.interrupted and list(states.ended.values()) == ["interrupted"] * 4
    store._in_memory.clear()
    one = Plan(deepcopy(plan.runs[1:2]), [], [])
    assert list(carried_out(one, tmp_path).ended.values()) == ["completed"]
    store._in_memory.clear()
    calls = harvest_passes(monkeypatch)
    assert list(carried_out(plan, tmp_path).ended.values()) == ["completed"] * 4
    assert 3 in calls
    assert_same(plan, tmp_path, layers_alone[mode])
    if mode == "disk":
        assert artifacts(tmp_path) == artifacts(layers_alone[mode]) != {}


def artifacts(outputs):
    """The stored activations, file by file."""
    folder = outputs / "activations"
    return {path.relative_to(folder): path.read_bytes() for path in folder.glob("*/*") if "digests" not in path.parts}


def test_three_layers_take_the_passes_of_one(tiny_llama_folder, tmp_path, monkeypatch):
    words = ["num_tokens=2560", "data.context=32", "eval=none", "k=8", *MODES["stream"]]
    calls, counts = harvest_passes(monkeypatch), []
    for layers in ("layer=2", "layer=0,1,2"):
        calls.clear()
        store._in_memory.clear()
        carried_out(planned(f"model={tiny_llama_folder}", *words, layers), tmp_path / layers)
        counts.append(list(calls))
    assert counts == [[1] * len(counts[0]), [3] * len(counts[0])] and counts[0]


def test_what_happens_to_one_layer_does_not_reach_the_others(layers_alone, tiny_llama_folder, tmp_path, monkeypatch):
    plan = layers_of(tiny_llama_folder, HOOKS, "layer=0,2", "activations.mode=memory")
    of = {(one.run.layer.hook, one.run.layer.index): one.run_id for one in plan.runs}
    doomed = {("resid_post", 2): Diverged(3, "loss"), ("mlp.hook_post", 2): ValueError("a bug")}
    with monkeypatch.context() as patch:
        failing(patch, lambda run, step: doomed.get((run.layer.hook, run.layer.index)) if step == 3 else None)
        site = LanguageModel.site

        def refused(lm, layer):
            if (layer.hook, layer.index) == ("mlp.hook_post", 0):
                raise ConfigError("no such hook")
            return site(lm, layer)

        patch.setattr(LanguageModel, "site", refused)
        store._in_memory.clear()
        states = carried_out(plan, tmp_path)
    ended = {place: states.ended[name] for place, name in of.items()}
    assert ended.pop(("resid_post", 2)) == "diverged" and ended.pop(("mlp.hook_post", 2)) == "failed"
    assert ended.pop(("mlp.hook_post", 0)) == "failed" and ended == {("resid_post", 0): "completed"}
    refused_folder = tmp_path / "runs" / of["mlp.hook_post", 0]
    assert read(refused_folder, "status.json")["error"] == "no such hook"
    assert_same(plan, tmp_path, layers_alone["memory"], but={name for place, name in of.items() if place not in ended})


def stop_after(n_rows, monkeypatch, kind=Stop, **state):
    """A stop that is set once the first run of a group has logged that many rows."""
    stop, log = kind(**state), RunTask.on_row

    def counting(self, row):
        log(self, row)
        if row["step"] == n_rows - 1:
            stop.signal = 15

    monkeypatch.setattr(RunTask, "on_row", counting)
    return stop


def test_interrupted_in_a_group_and_resumed_in_others(alone, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        states = carried_out(planned(*EIGHT), tmp_path, 8, stop=stop_after(13, patch, state="preempted"))
    plan = planned(*EIGHT)
    assert states.interrupted and list(states.ended.values()) == ["preempted"] * 8
    for folder in folders(plan, tmp_path):
        status = read(folder, "status.json")
        assert (status["state"], status["step"]) == ("preempted", 13) and not (folder / "lease.json").exists()
    one = planned("penalty=ortho", "k=4", "seed=1")
    assert list(carried_out(one, tmp_path).ended.values()) == ["completed"]
    with monkeypatch.context() as patch:  # three go on to step 27; the rest stay where they are
        carried_out(planned(*EIGHT), tmp_path, 3, stop=stop_after(27, patch))
    states = carried_out(planned(*EIGHT), tmp_path, 8)
    assert list(states.ended.values()) == ["completed"] * 8
    assert_same(plan, tmp_path, alone)
    starts = {read(folder, "results.json")["provenance"]["start_step"] for folder in folders(plan, tmp_path)}
    assert starts == {13, 27}


def test_a_flush_writes_every_members_checkpoint_and_says_so_in_its_status(tmp_path, monkeypatch):
    plan, seen, log = planned("seed=0,1", "eval=none", "train.checkpoint_every=1000"), [], RunTask.on_row
    wanted = []

    def logging(self, row):
        log(self, row)
        if row["step"] == 6 and self.run.seed == 1:
            wanted.append(True)
        if row["step"] == 7 and self.run.seed == 0:
            for folder in folders(plan, tmp_path):
                seen.append((read(folder, "status.json")["step"], (folder / "checkpoint/state.safetensors").exists()))

    monkeypatch.setattr(RunTask, "on_row", logging)
    monkeypatch.setattr(task_module, "STATUS_EVERY_S", 1e9)
    states = carried_out(plan, tmp_path, flush=lambda: bool(wanted) and wanted.pop())
    assert seen == [(7, True), (7, True)] and list(states.ended.values()) == ["completed"] * 2


def failing(monkeypatch, error_of):
    """Make `Training.step` raise what `error_of(run, step, training)` gives."""
    step_of = Training.step

    def step(self, batch, step, *more):
        if (error := error_of(self.run, step)) is not None:
            raise error
        return step_of(self, batch, step, *more)

    monkeypatch.setattr(Training, "step", step)


def test_what_happens_to_one_does_not_reach_its_siblings(alone, tmp_path, monkeypatch, capsys):
    plan = planned(*EIGHT)
    doomed = {plan.runs[1].run_id: Diverged(12, "penalty_loss"), plan.runs[4].run_id: ValueError("a bug")}
    which = {(one.run.penalty.name, one.run.architecture.k, one.run.seed): one.run_id for one in plan.runs}

    def error_of(run, step):
        name = which[run.penalty.name, run.architecture.k, run.seed]
        return doomed.get(name) if step == 12 else None

    failing(monkeypatch, error_of)
    states = carried_out(plan, tmp_path, 8)
    assert [states.ended[name] for name in doomed] == ["diverged", "failed"]
    assert sorted(states.ended.values()) == ["completed"] * 6 + ["diverged", "failed"]
    diverged, failed = (tmp_path / "runs" / name for name in doomed)
    assert read(diverged, "status.json")["error"] == "penalty_loss is not finite at step 12"
    assert "a bug" in (failed / "error.log").read_text() and "error.log" in read(failed, "status.json")["error"]
    assert_same(plan, tmp_path, alone, but=doomed)
    said = capsys.readouterr().out
    assert said.index("diverged: penalty_loss") < said.index("completed: fvu")  # at once, not at the end


def test_who_runs_out_of_memory_gets_a_second_chance_alone(alone, tmp_path, monkeypatch, capsys):
    plan, failures = planned(*EIGHT), {3: 1, 5: 2}  # by the run's number, how often
    names = {plan.runs[number].run_id: number for number in failures}
    left = dict(failures)

    def error_of(run, step):
        for one in plan.runs:
            if one.run is run and step == 12 and left.get(names.get(one.run_id)):
                left[names[one.run_id]] -= 1
                return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")
        return None

    failing(monkeypatch, error_of)
    states = carried_out(plan, tmp_path, 8)
    second, hopeless = (tmp_path / "runs" / name for name in names)
    assert states.ended[second.name] == "completed" and states.ended[hopeless.name] == "failed"
    assert "OutOfMemoryError" in read(hopeless, "status.json")["error"]
    assert_same(plan, tmp_path, alone, but={hopeless.name})
    results = read(second, "results.json")
    assert "ran out of memory in a group of 8 runs and was trained alone" in results["warnings"]
    assert results["provenance"]["group_size"] == 1 and results["provenance"]["start_step"] == 10
    assert capsys.readouterr().out.count("ran out of memory; it will be tried again alone") == 2


def test_a_member_whose_lease_is_lost_leaves_and_writes_nothing(alone, tmp_path, monkeypatch):
    plan, log, waited = planned(*EIGHT), RunTask.on_row, []
    taken = folders(plan, tmp_path)[2]

    def logging(self, row):
        log(self, row)
        if self.run_id == taken.name and row["step"] == 12:
            self.lease.lost = True

    def announce(waiting, outputs, announced, console):
        waited.extend(one.run_id for one in waiting)
        assert read(taken, "status.json")["state"] == "running" and len(lines(taken / "metrics.jsonl")) == 13
        assert not (taken / "error.log").exists()
        monkeypatch.setattr(RunTask, "on_row", log)
        (taken / "lease.json").unlink()  # the other one gives up

    monkeypatch.setattr(RunTask, "on_row", logging)
    monkeypatch.setattr("sae_sweeps.runs.inline.announce", announce)
    states = carried_out(plan, tmp_path, 8)
    assert waited == [taken.name] and list(states.ended.values()) == ["completed"] * 8
    assert_same(plan, tmp_path, alone)


def test_a_run_that_another_process_holds_comes_last(tmp_path, monkeypatch):
    plan = planned("seed=0,1,2", "eval=none")
    held = folders(plan, tmp_path)[1]
    lease = Lease.acquire(RunFolder(held))
    order, end = [], RunTask.end

    def ending(self, error=None):
        order.append(self.run_id)
        end(self, error)

    monkeypatch.setattr(RunTask, "end", ending)
    monkeypatch.setattr(Lease, "holder", staticmethod(lambda folder: "somebody"))
    monkeypatch.setattr("sae_sweeps.runs.inline.announce", lambda *words: lease.release())
    states = carried_out(plan, tmp_path)
    assert order[-1] == held.name and set(states.ended.values()) == {"completed"}


def test_a_damaged_lease_or_status_fails_its_run_alone(tmp_path, capsys):
    plan = planned("seed=0,1,2", "eval=none")
    lease, status, good = folders(plan, tmp_path)
    for folder, name in ((lease, "lease.json"), (status, "status.json")):
        folder.mkdir(parents=True)
        (folder / name).write_text("{")
    states = carried_out(plan, tmp_path)
    assert states.ended == {lease.name: "failed", status.name: "failed", good.name: "completed"}
    assert capsys.readouterr().out.count("is damaged") == 2 and (lease / "lease.json").read_text() == "{"


def test_a_failing_evaluation_stays_with_its_run(tmp_path, monkeypatch):
    plan, summarise = planned("seed=0,1"), evaluate.summarise

    def summarising(subject, name, metrics, warnings):
        if subject.run.seed == 1 and name == "core":
            raise ValueError("no such luck")
        summarise(subject, name, metrics, warnings)

    monkeypatch.setattr(evaluate, "summarise", summarising)
    states = carried_out(plan, tmp_path)
    assert list(states.ended.values()) == ["completed", "completed in part"]
    first, second = (read(folder, "results.json") for folder in folders(plan, tmp_path))
    assert "fvu" in first["metrics"] and "fvu" not in second["metrics"]
    assert any("no such luck" in warning for warning in second["warnings"])


def test_an_interrupted_evaluation_keeps_what_was_done(tmp_path, monkeypatch):
    plan, stop, summarise = planned("seed=0,1"), Stop(), evaluate.summarise

    def summarising(subject, name, metrics, warnings):
        summarise(subject, name, metrics, warnings)
        if name == "separation" and subject.run.seed == 0:
            stop.signal = 2

    monkeypatch.setattr(evaluate, "summarise", summarising)
    states = carried_out(plan, tmp_path, stop=stop)
    assert states.interrupted and list(states.ended.values()) == ["completed", "interrupted"]
    trained = [(folder / "trained.json").stat().st_mtime_ns for folder in folders(plan, tmp_path)]
    assert list(carried_out(plan, tmp_path).ended.values()) == ["completed"] * 2
    assert trained == [(folder / "trained.json").stat().st_mtime_ns for folder in folders(plan, tmp_path)]


def test_a_quiet_console_says_nothing(tmp_path, capsys):
    carried_out(planned("seed=0,1", "eval=none"), tmp_path, console=Console(quiet=True))
    told = capsys.readouterr()
    assert not told.out and not told.err
