"""Plans in groups, and groups carried out in this process: what is shared, and what must not be."""

import json

import pytest
import torch

from sae_sweeps.activations.harvest import SyntheticSource
from sae_sweeps.errors import ConfigError, Diverged
from sae_sweeps.runs import evaluate, execute
from sae_sweeps.runs.folder import RunFolder
from sae_sweeps.runs.lease import Lease
from sae_sweeps.sweeps import work
from sae_sweeps.sweeps.compose import compose_points
from sae_sweeps.sweeps.console import Console
from sae_sweeps.sweeps.groups import NoLimits, describe_groups, plan_groups, ranges
from sae_sweeps.sweeps.launch import Stop, run_all
from sae_sweeps.sweeps.plan import describe, make_plan
from sae_sweeps.training.step import Training

CPU = torch.device("cpu")
TINY = [
    "model=synthetic", "d_sae=64", "batch_size=128", "num_tokens=5120", "train.log_every=1", "train.monitor_every=8",
    "train.held_out_tokens=128", "train.checkpoint_every=10", "eval.sparsity_batches=1", "device=cpu",
]  # fmt: skip
EIGHT = ["penalty=none,ortho", "k=4,8", "seed=0,1"]


def planned(*words):
    return make_plan(compose_points([*TINY, *words]))


def carried_out(plan, outputs, size=None, **more):
    """States of a plan's runs after `run_all` under `outputs`."""
    for one in plan.runs:
        one.run.outputs = str(outputs)
    more.setdefault("stop", Stop())
    return run_all(plan, outputs, outputs / "sweep", CPU, cluster=NoLimits(size), **more)


def folders(plan, outputs):
    return [outputs / "runs" / one.run_id for one in plan.runs]


def read(folder, name):
    return json.loads((folder / name).read_text())


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def numbers(folder):
    """Everything of a run that its siblings must not change."""
    rows = [{key: value for key, value in row.items() if key != "tokens_per_s"} for row in lines(folder / "metrics.jsonl")]
    files = ("sae/sae_weights.safetensors", "checkpoint/state.safetensors", "monitors.jsonl")
    contents = [(folder / name).read_bytes() for name in files if (folder / name).exists()]
    return rows, contents, read(folder, "results.json")["metrics"]


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
    words = ["activations.mode=stream", "activations.buffer_tokens=1024", "eval=none", "seed=0,1", "data_seed=0,1"]
    plan = planned(*words)
    for size, passes in ((4, 3), (1, 8)):  # one to train on, and one by each run or order of the data to start from
        harvested.clear()
        carried_out(plan, tmp_path / str(size), size)
        assert sum(harvested) == passes * 5120
    assert_same(plan, tmp_path / "4", tmp_path / "1")


def stop_after(n_rows, monkeypatch, kind=Stop, **state):
    """A stop that is set once the first run of a group has logged that many rows."""
    stop, log = kind(**state), execute.Work.log

    def counting(self, row):
        log(self, row)
        if row["step"] == n_rows - 1:
            stop.signal = 15

    monkeypatch.setattr(execute.Work, "log", counting)
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
    plan, seen, log = planned("seed=0,1", "eval=none", "train.checkpoint_every=1000"), [], execute.Work.log
    wanted = []

    def logging(self, row):
        log(self, row)
        if row["step"] == 6 and self.run.seed == 1:
            wanted.append(True)
        if row["step"] == 7 and self.run.seed == 0:
            for folder in folders(plan, tmp_path):
                seen.append((read(folder, "status.json")["step"], (folder / "checkpoint/state.safetensors").exists()))

    monkeypatch.setattr(execute.Work, "log", logging)
    monkeypatch.setattr(execute, "STATUS_EVERY_S", 1e9)
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
    plan, log, waited = planned(*EIGHT), execute.Work.log, []
    taken = folders(plan, tmp_path)[2]

    def logging(self, row):
        log(self, row)
        if self.run_id == taken.name and row["step"] == 12:
            self.lease.lost = True

    def announce(waiting, outputs, announced, console):
        waited.extend(one.run_id for one in waiting)
        assert read(taken, "status.json")["state"] == "running" and len(lines(taken / "metrics.jsonl")) == 13
        assert not (taken / "error.log").exists()
        monkeypatch.setattr(execute.Work, "log", log)
        (taken / "lease.json").unlink()  # the other one gives up

    monkeypatch.setattr(execute.Work, "log", logging)
    monkeypatch.setattr("sae_sweeps.sweeps.launch.announce", announce)
    states = carried_out(plan, tmp_path, 8)
    assert waited == [taken.name] and list(states.ended.values()) == ["completed"] * 8
    assert_same(plan, tmp_path, alone)


def test_a_run_that_another_process_holds_comes_last(tmp_path, monkeypatch):
    plan = planned("seed=0,1,2", "eval=none")
    held = folders(plan, tmp_path)[1]
    lease = Lease.acquire(RunFolder(held))
    order, end = [], work.Hand.end

    def ending(self, error):
        order.append(self.one.planned.run_id)
        end(self, error)

    monkeypatch.setattr(work.Hand, "end", ending)
    monkeypatch.setattr(Lease, "holder", staticmethod(lambda folder: "somebody"))
    monkeypatch.setattr("sae_sweeps.sweeps.launch.announce", lambda *words: lease.release())
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


def test_groups_share_what_the_language_model_reads():
    plan = planned("model=pythia-70m", "layer=1,2", "data=builtin", "num_tokens=5120,10240", "seed=0,1", "data_seed=0,1")
    groups = plan_groups(plan, NoLimits(memory_gb=100.0))
    assert [len(group.runs) for group in groups] == [4, 4, 4, 4]
    for group in groups:
        assert len({(one.run.layer.index, one.run.num_tokens) for one in group.runs}) == 1
        budget = group.runs[0].run.num_tokens
        assert group.tokens == (budget, 4 * budget)
    assert groups[0].key == "pythia-70m layer 1 resid_post, data builtin, 5,120 tokens"
    assert sorted(id(one) for group in groups for one in group.runs) == sorted(map(id, plan.runs))


def test_batch_sizes_share_a_store_but_not_a_stream():
    words = ["batch_size=128,256", "seed=0,1"]
    assert [len(g.runs) for g in plan_groups(planned(*words))] == [4]
    stream = ["activations.mode=stream", "activations.buffer_tokens=1024"]
    assert [len(g.runs) for g in plan_groups(planned(*words, *stream))] == [2, 2]


def test_size_and_memory_limit_a_group():
    plan = planned("seed=range(10)")
    assert [len(g.runs) for g in plan_groups(plan, NoLimits(group_size=4))] == [4, 4, 2]
    (whole,) = plan_groups(plan, NoLimits(memory_gb=10.0))
    (single, *_) = plan_groups(plan, NoLimits(group_size=1))
    halves = plan_groups(plan, NoLimits(memory_gb=(whole.memory_gb + single.memory_gb) / 2))
    assert len(halves) == 2 and all(g.memory_gb <= (whole.memory_gb + single.memory_gb) / 2 for g in halves)
    assert [len(g.runs) for g in plan_groups(plan, NoLimits(memory_gb=1e-9))] == [1] * 10  # never none
    for limits, key in ((NoLimits(group_size=0), "group_size=0"), (NoLimits(memory_gb=-1.0), "memory_gb=-1.0")):
        with pytest.raises(ConfigError, match=f"cluster.{key}: must be"):
            plan_groups(plan, limits)


def test_memory_counts_the_language_model_once():
    one, two = (plan_groups(planned("model=builtin", f"seed={seeds}"))[0] for seeds in ("0", "0,1"))
    own = 2 * 160 * 64 * 16 / 1e9
    assert two.memory_gb - one.memory_gb == pytest.approx(own)
    files = plan_groups(planned("model=builtin"))[0].runs[0].run
    assert one.memory_gb > own and files.model.d_in == 160


def test_the_dry_run_tells_groups_tokens_and_memory():
    plan = planned("model=builtin", "layer=1,2", "seed=0,1")
    text = describe(plan, describe_groups(plan_groups(plan), plan))
    assert "group 2  runs 3-4\n  builtin layer 2 resid_post, data builtin, 5,120 tokens: " in text
    assert "the language model reads 5,120 tokens, SAEs train on 10,240, memory about 0." in text
    assert "in all: the language model reads 10,240 tokens, SAEs train on 20,480" in text


@pytest.mark.parametrize(("numbers", "text"), [([1, 2, 3, 5], "1-3,5"), ([4], "4"), ([2, 4, 5], "2,4-5"), ([], "")])
def test_ranges(numbers, text):
    assert ranges(numbers) == text
