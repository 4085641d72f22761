"""Notes of the five studies' shapes, with their figures and in other words: every figure is read, and nothing else."""

import json
from pathlib import Path

import pytest

from analysis.reading.import_files import imported_records, write_import
from analysis.reading.imports import Import
from analysis.reading.literals import leaves
from analysis.reading.notes import parse_notes

SHAPES = Path(__file__).parent / "shapes"
IT, PT = "google/gemma-2-2b-it", "google/gemma-2-2b"
TRAINED = {
    "layer.index": 19, "architecture.d_sae": 2304, "lr_schedule.lr": 3e-4, "architecture.l1_penalty": 0.04,
}  # fmt: skip
OF_SAE = {"model": PT, "model.d_in": 2304, "architecture": "standard", "layer.hook": "resid_post"}


def shape(name: str) -> Import:
    path = SHAPES / f"{name}.txt"
    return parse_notes(path.read_text(), name, path)


def runs_of(name):
    return {run["run_id"].removeprefix(f"{name}/"): run for run in shape(name).runs}


def config_of(run):
    """The config without what a trainer calls its own, and the evaluations'."""
    left_out = ("study", "trainer.", "device", "resample_steps", "eval.")
    return {key: value for key, value in run["config"].items() if not key.startswith(left_out)}


def layers(run):
    return {name: facts.get("layer") for name, facts in run["recorded"]["evaluations"].items()}


def lines_of(name, start):
    """Where lines that begin so are, from 1."""
    text = (SHAPES / f"{name}.txt").read_text().splitlines()
    return [number for number, line in enumerate(text, 1) if line.startswith(start)]


@pytest.mark.parametrize(
    ("name", "numbers", "title", "headings"),
    [
        ("selective", "0123456789", "Two groups, kept apart", ["curves.png", "metrics.png"]),
        ("progressive", ["baseline_topk", "baseline_standard", "1", "2"], "A penalty that fades", []),
        ("adaptive", "0", "Features that may be shared", []),
        ("contrastive", "01234", "Neighbours as positives", ["steps.png"]),
        ("bottleneck", "02345", "Groups that share little", ["group_mi.png"]),
    ],
)
def test_the_runs_of_each_and_what_is_beside_them(name, numbers, title, headings):
    found = shape(name)
    assert [run["run_id"] for run in found.runs] == [f"{name}/{number}" for number in numbers]
    assert found.study.title == title and found.study.experiment.startswith("1. ")
    assert [passage["heading"] for passage in found.study.passages] == headings
    assert {run["config"]["study"] for run in found.runs} == {name}
    assert not any(run["warnings"] or run["recorded"].get("unread") for run in found.runs)
    assert not any(run["recorded"].get("contradictions") for run in found.runs)


@pytest.mark.parametrize("name", ["selective", "progressive", "adaptive", "contrastive", "bottleneck"])
def test_every_number_of_every_dict_is_kept(name, tmp_path):
    found = shape(name)
    kept = {value for _, value in leaves_of(json.loads(json.dumps(found.to_json()["runs"])))}
    for line in (SHAPES / f"{name}.txt").read_text().splitlines():
        _, brace, rest = line.partition("{'")
        if brace and rest.rstrip().endswith("}") and "'Name'" not in line:
            content = eval(brace + rest, {"nan": float("nan")})  # a file of our own
            written = {value for key, value in leaves_of(content) if key != "training_tokens" and value == value}
            assert written <= kept
    assert -100_000 not in kept
    path, _ = write_import(found, tmp_path)
    record = imported_records(path)[0]
    assert record.recorded.study == found.study and record.recorded.line == found.runs[0]["recorded"]["line"]


def leaves_of(tree):
    """(last key, value) of every number in dicts and lists."""
    for path, value in leaves({"": tree} if not isinstance(tree, dict) else tree):
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict | list):
                yield from leaves_of(item)
            elif isinstance(item, int | float) and not isinstance(item, bool):
                yield path[-1], item


# Selective: lists, phrases, and results at the end that are the baseline's ------------------------------------------


def test_figures_of_lists_and_phrases():
    runs = runs_of("selective")
    losses = [runs[number]["metrics"]["final_loss"] for number in "0123456789"]
    assert losses == [200.22540283203125, 204.3647, 204.3647, 212.4835, 203.2178] + [None] * 5
    assert {run["metrics"]["unlearning_score"] for run in runs.values()} == {0.0}
    weights = {number: config_of(run) for number, run in runs.items() if number != "0"}
    assert weights == {
        "1": {"penalty.alpha": 0.5, "penalty.lambda2_max": 0.1},
        "2": {"penalty.alpha": 0.3, "penalty.lambda2_max": 0.1},
        "3": {"penalty.alpha": 0.3, "penalty.lambda2_max": 1.0},
        "4": {"penalty.alpha": 0.3, "penalty.lambda2_max": 1.0},
        "5": {"penalty.lambda2_max": 0.5, "penalty.alpha": 0.3},
        "6": {"penalty.lambda2_max": 0.5},
        "7": {"penalty.lambda2_max": 0.1, "schedule.initial": 0.01},
        "8": {"penalty.active_fraction": 0.25, "schedule.initial": 0.005, "penalty.lambda2_max": 0.1},
        "9": {"train.clip": 1.0},
    }
    assert runs["1"]["recorded"]["remarks"] == {
        "penalty.alpha": "where the groups part",
        "final_loss": "somewhat above the baseline",
        "unlearning_score": "as before",
    }
    assert runs["1"]["description"].startswith("The first trial of the penalty: - Alpha threshold: 0.5")


def test_a_loss_that_is_nan_is_diverged():
    runs = runs_of("selective")
    assert [runs[number]["state"] for number in "0123456789"] == ["completed"] * 5 + ["diverged"] * 5
    assert runs["5"]["not_finite"] == ["final_loss"] and runs["4"]["not_finite"] == []
    assert runs["5"]["recorded"]["readings"]["final_loss"] == [
        {
            "value": "nan",
            "line": lines_of("selective", "- Training loss: NaN (not stable)")[0],
            "text": "- Training loss: NaN (not stable)",
            "in": "text",
        }
    ]


def test_results_under_another_runs_heading_go_to_the_run_that_they_are_of():
    found = shape("selective")
    baseline, last = found.runs[0], found.runs[9]
    line = lines_of("selective", "Results: {")[0]
    assert found.messages == [
        f"line {line}: these results are Run 0's, not Run 9's: the text after them calls them the baseline's, and "
        "final_loss 200.22540283203125 is Run 0's, and Run 9's nan."
    ]
    assert baseline["recorded"]["moved"] == found.messages[0] and "moved" not in last["recorded"]
    assert baseline["steps"] == 4882 and last["steps"] is None and last["metrics"]["final_loss"] is None
    assert baseline["description"].endswith("The baseline's results.") and "baseline" not in last["description"]
    assert layers(baseline) == {"core": 19, "scr": 12, "absorption": 19, "sparse_probing": 12, "unlearning": 19}
    assert baseline["config"]["eval.scr.layer"] == 12 and baseline["config"]["eval.unlearning.model"] == IT
    assert config_of(baseline) == TRAINED | OF_SAE | {
        "lr_schedule.warmup": 1000,
        "lr_schedule.lr_logged": 3e-4,
        "architecture.l1_penalty_logged": 0.04,
    }
    assert [row["first_letter"] for row in baseline["recorded"]["details"]["absorption"]] == ["a", "i"]
    assert baseline["recorded"]["details"]["sparse_probing"][0]["sae_top_100_test_accuracy"] is None
    probing = baseline["recorded"]["evaluations"]["sparse_probing"]
    assert probing["settings"]["k_values"] == [1, 2, 5, 10, 20, 50] and probing["model"] == PT
    assert probing["eval_id"] == "fddb5e3e-09c2-4d2c-b7ac-9077585d20ec"


@pytest.mark.parametrize(
    ("after", "loss", "owner"),
    [
        ("Description: of the baseline", 200.2254, "0"),  # its figures alone
        ("Description: Baseline results", 150.5, "0"),  # the text alone
        ("Description: the last", 212.5, "3"),
        ("Description: the last", 150.5, "9"),
    ],
)
def test_whose_results_they_are(after, loss, owner):
    text = (
        "## Run 0: Baseline\nResults: Training loss 200.2254\n## Run 3: more\n- Training loss: 212.5\n"
        f"## Run 9: last\n- Training loss: NaN\nResults: {{'final_loss': {loss}, 'l0': 7.0}}\n{after}\n"
    )
    found = parse_notes(text, "n", Path("n.txt"))
    assert [run["run_id"][2:] for run in found.runs if "l0" in run["metrics"]] == [owner]
    if owner == "9":
        (run,) = (run for run in found.runs if run["run_id"] == "n/9")
        assert run["recorded"]["contradictions"] == ["final_loss"]


# Progressive: a chat's transcript -------------------------------------------------------------------------------------


def test_a_transcript_has_the_runs_that_it_reports():
    runs = runs_of("progressive")
    topk, standard, one, two = runs.values()
    assert [run["steps"] for run in runs.values()] == [2441, 2441, 488, 2441]
    assert [run["metrics"]["final_loss"] for run in runs.values()] == [
        2897.302734375, 701.0477905273438, 5431.6123046875, 4357.5732421875,
    ]  # fmt: skip
    for run, k, lr in ((topk, 320, 2e-4), (one, 40, 2e-4), (two, 40, 2e-4), (standard, None, 3e-4)):
        config = config_of(run)
        assert (config.get("architecture.k"), config["lr_schedule.lr"]) == (k, lr)
        assert (config["lr_schedule.lr_logged"], config["architecture.l1_penalty_logged"]) == (3e-4, 0.04)
        assert config.get("architecture.l1_penalty") == (0.04 if run is standard else None)
        assert config["architecture"] == ("standard" if run is standard else "topk")
        assert (config["layer.index"], config["architecture.d_sae"], run["warnings"]) == (12, 16384, [])
    assert set(layers(topk).values()) == {12} and topk["config"]["eval.unlearning.model"] == IT
    assert one["metrics"]["explained_variance_legacy"] == 0.52734375 and "unlearning_score" not in one["metrics"]


def test_a_transcripts_plans_code_and_repetitions_are_no_runs_and_no_figures():
    found = shape("progressive")
    planned, again = lines_of("progressive", "2. **Run 3**"), lines_of("progressive", "#### Run 2 is done")
    assert found.messages == [
        f"line {again[1]}: Run 2 again, as in line {again[0]}",
        f"line {planned[0]}: planned, and no run of the notes: Runs 3, 4, 5, 7",
    ]
    one, two = found.runs[2:]
    assert [reading["in"] for reading in one["recorded"]["readings"]["final_loss"]] == ["dict", "text"]
    assert one["recorded"]["readings"]["steps"][-1]["value"] == 488
    assert two["recorded"]["readings"]["explained_variance"][-1]["value"] == 0.61
    assert {reading["value"] for reading in two["recorded"]["readings"].get("architecture.k", [])} <= {40}
    assert "Key Insights" in one["description"] and "expert" not in one["description"]
    assert "num_tokens" not in one["description"] and "SEARCH" not in two["description"]


# Adaptive, contrastive, bottleneck: untrained, not recorded -----------------------------------------------------------


def test_0_steps_are_untrained_and_none_is_not_recorded():
    (run,) = runs_of("adaptive").values()
    assert (run["state"], run["steps"]) == ("untrained", 0) and run["metrics"]["final_loss"] is None
    assert run["not_finite"] == ["cossim"] and config_of(run) == TRAINED | OF_SAE
    assert layers(run) == {"sparse_probing": 5, "core": 5}
    states = [(run["state"], run["steps"]) for run in runs_of("contrastive").values()]
    assert states == [("completed", None)] * 3 + [("completed", 1), ("completed", 195)]
    states = [(run["state"], run["steps"]) for run in runs_of("bottleneck").values()]
    assert states == [("untrained", 0)] * 4 + [("unrecorded", None)]


def test_settings_in_prose():
    found = {number: config_of(run) for number, run in runs_of("contrastive").items()}
    assert found == {
        "0": {},
        "1": {"penalty.head_dim": 128, "penalty.lambda2_max": 0.1},
        "2": {"penalty.lambda2_max": 0.5, "penalty.temperature": 0.1},
        "3": TRAINED | {"train.clip": 1.0, "llm_batch_size": 16, "batch_size": 256},
        "4": TRAINED | {"lr_schedule.lr": 1e-4, "batch_size": 512},
    }
    found = {number: config_of(run) for number, run in runs_of("bottleneck").items()}
    assert found == {
        "0": TRAINED | OF_SAE,
        "2": TRAINED | {"group_layer.group_size": 32, "group_layer.window": 32},
        "3": TRAINED
        | {"lr_schedule.lr": 1e-4, "architecture.l1_penalty": 0.1, "penalty.l2_weight": 0.01, "train.clip": 1.0}
        | {"group_layer.dropout": 0.1},
        "4": TRAINED | {"lr_schedule.lr": 1e-4, "architecture.l1_penalty": 0.2, "group_layer.dropout": 0.2},
        "5": {},
    }


# Pieces ---------------------------------------------------------------------------------------------------------------


def read(text):
    return parse_notes(text, "n", Path("n.txt"))


def test_what_looks_like_a_figure_and_is_none_is_listed():
    (run,) = read(
        "## Run 1: x\nResults:\n- Training loss: about 200\n- Training loss: ~200.22\n- L0 sparsity: 80-90\n"
        "- Unlearning score: 25%\n- Learning rate: 3e-4 (as before)\n- Explained variance: 0.61/0.75\n- NMI: 0.25\n"
        "Config: {'k': 40, 'device': device(type='cuda'), 'training_tokens': -100000}\n"
    ).runs
    assert run["metrics"] == {"nmi": 0.25}
    assert run["config"] == {"lr_schedule.lr": 3e-4, "architecture.k": 40}
    assert [(unread["line"], unread["why"]) for unread in run["recorded"]["unread"]] == [
        (10, "no budget of tokens"), (10, "no literal"), (4, "~200.22 is no whole number"),
        (5, "80-90 is no whole number"), (6, "a percentage; write it as 0.25"), (8, "0.61/0.75 is no whole number"),
    ]  # fmt: skip


def test_a_cut_dict_is_named_and_what_is_whole_in_it_is_read():
    found = read("## Run 1: x\nResults: {'l0': 40.0, 'core': {'mse': 3.0, 'cossim': 0.84\nDescription: cut, alas\n")
    (run,) = found.runs
    assert run["metrics"] == {"l0": 40.0, "mse": 3.0} and run["description"] == "cut, alas"
    assert [line for line in found.messages if "cut short" in line] == [
        "line 2: not read (cut short, the line ends): ... Results: {'l0': 40.0, 'core': {'mse': 3.0, 'cossim': 0.84"
    ]


def test_text_that_contradicts_a_dict_is_kept_beside_it():
    found = read("## Run 1: x\nResults: {'final_loss': 200.2254, 'lr': 3e-4}\n- Training loss: 200.2\n- lr: 2e-4\n")
    (run,) = found.runs
    assert run["config"] == {"lr_schedule.lr": 3e-4} and run["metrics"] == {"final_loss": 200.2254}
    assert run["recorded"]["contradictions"] == ["lr_schedule.lr"] and run["warnings"] == []
    assert [reading["value"] for reading in run["recorded"]["readings"]["lr_schedule.lr"]] == [3e-4, 2e-4]
    assert found.messages == ["Run 1: lr_schedule.lr is 0.0003 in line 2 and 0.0002 in line 4"]


def test_notes_in_a_quote_or_a_fence_are_notes():
    plain = "## Run 1: x\nResults: {'l0': 40.0,\n 'k': 40}\n- Training loss: 2.5\n"
    quoted = "".join(f"> {line}\n" for line in plain.splitlines())
    for text in (plain, quoted, f"```\n{plain}```\n", f"> > {plain}".replace("\n", "\n> > ")):
        (run,) = read(text).runs
        assert run["metrics"] == {"final_loss": 2.5, "l0": 40.0} or run["metrics"] == {"l0": 40.0, "final_loss": 2.5}
        assert run["config"] == {"architecture.k": 40}


def test_a_heading_about_a_run_does_not_begin_another():
    found = read(
        "## Run 1: x\nResults: {'l0': 1.0}\n## Run 1 Analysis\nAll went well.\n## Planned runs\n### Run 2: more\n"
        "- Training loss: 9.0\n### Run 3: less\n## Run 4\nResults: {'l0': 2.0}\n"
    )
    assert [run["run_id"] for run in found.runs] == ["n/1", "n/4"]
    assert found.runs[0]["metrics"] == {"l0": 1.0} and "All went well." in found.runs[0]["description"]
    assert found.messages == ["line 6: planned, and no run of the notes: Runs 2, 3"]


def test_proposals_comparisons_and_code_give_no_figures():
    (run,) = read(
        "## Run 1: x\nDescription: It had a learning rate of 3e-4. A temperature of 0.5 should help.\n"
        "We may need a sparsity penalty of 0.9. The baseline had a batch size of 64.\n"
        "```python\nlr = 1e-2\nk = 7\n```\nNext steps:\n- Alpha threshold: 0.9\n"
    ).runs
    assert run["config"] == {"lr_schedule.lr": 3e-4}
