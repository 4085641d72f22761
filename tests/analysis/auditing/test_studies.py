"""The rules on imported studies, on facts made here: a case that triggers each and one that does not."""

import math
from pathlib import Path

import pytest

from analysis.__main__ import main
from analysis.auditing.audit import audit
from analysis.auditing.finding import run_names
from analysis.auditing.prose import agrees, praise, runs_named, sentences
from analysis.reading.import_files import write_import
from analysis.reading.imports import Import, imported_run
from analysis.reading.record import Recorded, Study
from analysis.reading.records import records

GEMMA = {"model": "google/gemma-2-2b", "layer.index": 19, "model.d_in": 2304, "architecture": "standard"}


def a_run(number, title="", config=None, metrics=None, steps=4882, state="completed", description="", **recorded):
    """One imported run; `recorded` are fields of Recorded."""
    metrics = {"final_loss": 200.0 + int(number)} if metrics is None else metrics
    return imported_run(
        f"notes/{number}", title, GEMMA | (config or {}), metrics, steps, state, description, (), Recorded(**recorded)
    )


@pytest.fixture
def found(tmp_path):
    """Audits one imported study: code -> [(numbers of the runs, sentence)]."""

    def audited(*runs, study=None, name="notes"):
        path, _ = write_import(Import(name, f"{name}.txt", "notes", list(runs), study or Study()), tmp_path, True)
        codes: dict[str, list[tuple[str, str]]] = {}
        for finding in audit(records([path])):
            numbers = " ".join(run.rpartition("/")[2] for run in finding.runs)
            codes.setdefault(finding.code, []).append((numbers, finding.sentence))
        return codes

    return audited


def of_text(*passages):
    return Study(passages=[{"heading": "", "text": text, "line": 10 + n} for n, text in enumerate(passages)])


# Evaluations


def test_evaluations_at_another_layer_than_the_training(found):
    at = {"core": 19, "absorption": 19, "scr": 12, "sparse_probing": 12}
    judged = {name: {"layer": layer} for name, layer in at.items()}
    assert found(a_run(0, evaluations=judged), a_run(1))["eval-layer"] == [
        (
            "0",
            "trained on layer 19, scr and sparse_probing evaluated on layer 12 (absorption and core on layer 19).",
        )
    ]
    assert found(a_run(0, evaluations={"core": {"layer": 5}}))["eval-layer"][0][1] == (
        "trained on layer 19, evaluated on layer 5."
    )
    assert "eval-layer" not in found(a_run(0, evaluations={"core": {"layer": 19}, "scr": {}}))


@pytest.mark.parametrize(
    ("judged", "code"),
    [
        ("google/gemma-2-2b-it", "eval-sibling"),
        ("gemma-2-2b", None),
        ("google/gemma-2-9b-it", "eval-model"),
        ("EleutherAI/pythia-70m", "eval-model"),
    ],
)
def test_evaluated_on_another_model(found, judged, code):
    evaluations = {"unlearning": {"model": judged}, "core": {"model": "google/gemma-2-2b"}}
    codes = found(a_run(0, evaluations=evaluations))
    assert {"eval-sibling", "eval-model"} & set(codes) == ({code} if code else set())
    if code:
        assert "(unlearning) on " in codes[code][0][1]


def test_a_run_without_a_model_has_its_studys(found):
    other = a_run(1, evaluations={"unlearning": {"model": "google/gemma-2-2b-it"}})
    del other["config"]["model"]
    assert [runs for runs, _ in found(a_run(0), other)["eval-sibling"]] == ["1"]
    assert "eval-sibling" not in found(other)


def test_one_evaluation_of_several_studies(tmp_path):
    one = {"sparse_probing": {"eval_id": "e823bbbb-62c9"}}
    paths = []
    for name, evaluations in (("a", one), ("b", one), ("c", {"sparse_probing": {"eval_id": "fddb5e3e"}})):
        run = imported_run(
            f"{name}/0", "Baseline", GEMMA, {"final_loss": 3.0}, 10, recorded=Recorded(evaluations=evaluations)
        )
        paths.append(write_import(Import(name, f"{name}.txt", "notes", [run]), tmp_path)[0])
    (finding,) = [f for f in audit(records(paths)) if f.code == "shared-eval"]
    assert finding.runs == ("a/0", "b/0") and finding.study is None
    assert finding.sentence == "the sparse_probing of these runs is one evaluation (eval_id e823bbbb)."


def test_evaluations_that_some_runs_lack(found):
    core, probing = {"ce_loss_score": 0.9}, {"sae_top_1_test_accuracy": 0.7}
    codes = found(a_run(0, "Baseline", metrics=core | probing), a_run(1, metrics=core))
    assert codes["eval-missing"] == [("1", "sparse_probing is recorded of Run 0 alone.")]
    codes = found(a_run(0, "Baseline", metrics=core), a_run(1, metrics=probing))
    assert "eval-missing" not in codes
    assert codes["nothing-shared"][0][1] == (
        "the baseline has core and the other runs sparse_probing: nothing compares them."
    )
    assert not {"eval-missing", "nothing-shared"} & set(
        found(a_run(0, "Baseline", metrics=core), a_run(1, metrics=core))
    )


def test_a_mean_over_other_classes(found):
    letters = [[{"first_letter": letter} for letter in word] for word in ("abcv", "abc")]
    runs = [a_run(n, details={"absorption": own}) for n, own in enumerate(letters)]
    assert found(*runs)["other-classes"] == [
        ("0 1", "the mean of absorption is over 4 classes, but 3 in Run 1 (no v).")
    ]
    assert "other-classes" not in found(runs[0], a_run(1, details={"absorption": letters[0]}))


def test_probes_that_are_worse_than_the_activations(found):
    own = {"sae_top_1_test_accuracy": 0.66, "llm_top_1_test_accuracy": 0.65, "sae_top_5_test_accuracy": 0.7}
    codes = found(a_run(0, metrics=own | {"llm_top_5_test_accuracy": 0.8}), a_run(1, metrics=own))
    assert codes["probe-below"] == [
        (
            "0",
            "its features probe worse than as many activation dimensions at k = 5 (0.700 against 0.800 at k = 5).",
        )
    ]


# Budgets and settings


def test_a_learning_rate_used_and_another_logged(found):
    rates = {"lr_schedule.lr": 2e-4, "lr_schedule.lr_logged": 3e-4}
    codes = found(a_run(0, config=rates), a_run(1, config={"lr_schedule.lr": 2e-4, "lr_schedule.lr_logged": 2e-4}))
    assert codes["lr-used"] == [("0", "lr=0.0002 was used, lr=0.0003 is logged with the results.")]
    assert "logged-unused" not in codes
    logged = {"architecture.l1_penalty_logged": 0.04}
    assert found(a_run(0, config=logged))["logged-unused"][0][1] == "l1_penalty=0.04 is logged, but nothing used it."
    assert "logged-unused" not in found(a_run(0, config=logged | {"architecture.l1_penalty": 0.04}))


def test_no_baseline_at_the_same_sparsity(found):
    codes = found(a_run(0, "TopK baseline", metrics={"l0": 320.0}), a_run(1, metrics={"l0": 40.0}))
    assert codes["no-control"] == [("1", "L0 is 40, that of the baseline 320: nothing shows what the method changes.")]
    assert "no-control" not in found(a_run(0, "Baseline", metrics={"l0": 50.0}), a_run(1, metrics={"l0": 40.0}))


def test_a_loss_that_is_all_that_runs_share(found):
    rest = {"unlearning_score": 0.0}
    runs = [a_run(n, "Baseline" * (n == 0), metrics={"final_loss": 200.0 + n} | rest) for n in range(3)]
    assert found(*runs)["loss-only"][0][0] == "1 2"
    assert "loss-only" not in found(
        *(run | {"metrics": run["metrics"] | {"l0": 8.0 + n}} for n, run in enumerate(runs))
    )


@pytest.mark.parametrize(
    ("loss", "l1", "mse", "form"),
    [(200.2, 458.0, 18.75, "norm"), (701.0, 12608.0, 0.0889, "squared"), (2897.3, 0.0, 1.6016, "squared")],
)
def test_the_form_of_a_loss_that_is_not_recorded(found, loss, l1, mse, form):
    """The figures of three recorded baselines (METHODS: the first fits `norm`, the others `squared`)."""
    metrics = {"final_loss": loss, "l1": l1, "mse": mse}
    config = {"architecture.l1_penalty": 0.04, "architecture": "standard" if l1 else "topk"}
    (found_one,) = found(a_run(0, config=config, metrics=metrics))["recon-unknown"]
    assert f" figures fit {form} (" in found_one[1]
    assert "recon-unknown" not in found(a_run(0, config=config | {"train.recon": form}, metrics=metrics))


def test_a_config_without_the_method_and_several_changes_at_once(found):
    rate = {"lr_schedule.lr": 3e-4}
    weight = {"penalty.lambda2_max": 0.1}
    codes = found(a_run(0, "Baseline", rate), a_run(1, config=rate), a_run(2, config=rate | weight))
    assert [runs for runs, _ in codes["method-unrecorded"]] == ["1"] and "confounded" not in codes
    codes = found(
        a_run(1, config=rate | weight | {"batch_size": 256}, steps=1),
        a_run(2, config={"lr_schedule.lr": 1e-4, "batch_size": 512}, steps=195),
        a_run(3, config={"lr_schedule.lr": 1e-4, "batch_size": 256}, steps=195),
    )
    assert codes["confounded"] == [
        ("2", "differs from Run 1 in lr, batch_size and steps at once, so that their effects are mixed.")
    ]


# Gaps


def test_runs_that_are_missing_or_alone(found):
    codes = found(a_run(0), a_run(2), a_run(5, metrics={}))
    assert codes["run-missing"][0][1] == "Runs 1, 3 and 4 are missing between the others."
    assert codes["no-result"] == [("5", "no result is recorded.")] and "alone" not in codes
    codes = found(a_run(3))
    assert codes["alone"][0][0] == "3" and not {"run-missing", "no-result"} & set(codes)


def test_what_is_not_recorded(found):
    codes = found(
        a_run(0, metrics={"l0": 8.0}, steps=None),
        a_run(1, metrics={"l0": 8.0, "final_loss": None}),
        a_run(2, metrics={"l0": 8.0, "final_loss": math.nan}),
        a_run(3),
        a_run(4, steps=0, metrics={"l0": 8.0, "final_loss": None}),
    )
    assert codes["unrecorded"] == [("0", "no steps and no final loss recorded."), ("1", "no final loss recorded.")]
    assert codes["diverged"][0][0] == "2" and codes["never-trained"][0][0] == "4"


def test_what_an_import_could_not_read_or_moved(found):
    runs = (
        a_run(0, unread=[{"line": 7, "text": "loss: about 3", "why": "no number"}]),
        a_run(1, moved="It is its own."),
    )
    codes = found(*runs)
    assert codes["unread"] == [("0", "could not be read: line 7 (`loss: about 3`).")]
    assert codes["moved"] == [("1", "It is its own.")]


def test_plans_beside_what_was_done(found):
    plan = Study(
        experiment="Train on Pythia-70M with normalized mutual information and silhouette scores, unlearning scores."
    )
    codes = found(a_run(0, metrics={"unlearning_score": 0.1}), a_run(1), study=plan)
    assert codes["prose-model"][0][1] == "the plan names Pythia-70M, the runs used google/gemma-2-2b."
    assert (
        codes["announced"][0][1] == "the plan names normalized mutual information and silhouette, which no run records."
    )
    codes = found(
        a_run(0, metrics={"nmi": 0.1, "silhouette": 0.0}), study=Study(experiment="Gemma-2B, NMI, silhouette.")
    )
    assert not {"prose-model", "announced"} & set(codes)
    codes = found(a_run(0, metrics={"labelled_sae_test_accuracy": 0.8}), study=Study(experiment="Sparse probing."))
    assert "announced" not in codes


def test_runs_of_notes_that_differ_in_their_seeds_alone_are_one_configuration(found):
    runs = [
        a_run(2 * seed + variant, config={"seed": seed, "penalty": penalty}, metrics={"fvu": 0.2 + seed + variant})
        for seed in range(3)
        for variant, penalty in enumerate(("none", "ortho"))
    ]
    assert not {"single-seed", "budget-seeds"} & set(found(*runs))
    same_seed = [a_run(n, config={"seed": 0, "penalty": "none"}, metrics={"fvu": 0.2 + n}) for n in range(3)]
    assert "single-seed" in found(*same_seed), "notes name few keys: equal ones are three configurations"


# Prose


@pytest.mark.parametrize(
    "text",
    [
        "Training remains unstable.",
        "The loss never became stable.",
        "Basic stability needs work before anything else.",
        "Lower the rate for more stable convergence.",
        "Reduced the learning rate for better stability.",
        "Consider a simpler method with better stability.",
        "The aim was stable training with a slow ramp.",
        "A ramp alone is insufficient to stabilise training.",
        "It failed to converge although the penalty was smooth.",
        "Clipping should keep it stable.",
        "A statistic over the whole batch.",
        "Runs are compared in a table.",
        "We established a baseline.",
    ],
)
def test_texts_that_praise_nothing(text):
    assert not any(map(praise, sentences(text)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Training was stable throughout.", "stable"),
        ("Clipping gave improved numerical stability. It was slow.", "improved numerical stability"),
        ("A first note. The run converged after 300 steps.", "converged"),
        ("- a smoother curve than before", "smoother"),
    ],
)
def test_texts_that_praise(text, words):
    assert [found for found in map(praise, sentences(text)) if found] == [words]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("as in Run 3", [3]),
        ("(run_10): better", [10]),
        ("Runs 5 to 7 diverged", [5, 6, 7]),
        ("Run #2 and run 4.", [2, 4]),
        ("we run 3 seeds", []),
        ("Run 12 more epochs", []),
        ("run 3 variants of it", []),
        ("a run of 488 steps", []),
        ("Run 0.5 of it", []),
        ("the running mean 3", []),
    ],
)
def test_runs_that_a_text_names(text, numbers):
    assert list(runs_named(text)) == numbers


def test_praise_of_a_run_that_diverged(found):
    diverged = {"metrics": {"final_loss": math.nan}, "state": "diverged"}
    text = of_text("Bfloat16 (run_1): improved numerical stability.", "Run 0 converged.", "All is stable.")
    codes = found(a_run(0), a_run(1, description="It trains stably.", **diverged), a_run(2, **diverged), study=text)
    assert codes["prose-stable"] == [
        ("1", "its text has `stably`, its loss is not a number."),
        ("1", "the study's text (line 10 on) has `improved numerical stability` of it, its loss is not a number."),
    ]


def test_a_range_for_all_runs(found):
    runs = [a_run(n, metrics={"final_loss": loss}) for n, loss in enumerate((200.2, 204.4, 212.5, math.nan))]
    codes = found(*runs, study=of_text("All runs have a loss of 200-205."))
    said = "the study's text (line 10 on) has a final_loss of 200-205 for all runs"
    assert codes["prose-range"] == [("2 3", f"{said}, but Run 2 has 212.5 and Run 3 NaN.")]
    for text in ("All runs reach a loss of 200-213.", "Some runs reach a loss of 200-205.", "All runs took 200-205 s."):
        assert "prose-range" not in found(*runs[:3], study=of_text(text))


def test_a_run_that_the_text_names_and_that_does_not_exist(found):
    codes = found(a_run(0), a_run(1), study=of_text("Run 1 is worse.", "Clipping (run_10): a better loss."))
    assert codes["prose-run"][0][1] == "the text names Run 10 (line 11), of which there is no result."
    assert "prose-run" not in found(a_run(0), a_run(1), study=of_text("Run 1 beats Run 0 by 2."))


@pytest.mark.parametrize(
    ("remark", "code"),
    [
        ("slight improvement from Run 1", "prose-baseline"),
        ("improved over the baseline", "prose-improved"),
        ("better", "prose-improved"),
        ("slight increase from baseline", None),
        ("lower than Run 1", None),
        ("a little higher than Run 1", "prose-improved"),
        ("similar to Run 1", None),
        ("similar to the baseline", None),
        ("no improvement", None),
        ("improved but still above the baseline", None),
        ("an improvement over Run 7", None),
        ("as measured", None),
    ],
)
def test_what_is_claimed_of_a_figure(found, remark, code):
    losses = (200.2, 212.5, 203.2)
    runs = [a_run(n, "Baseline" * (n == 0), metrics={"final_loss": loss}) for n, loss in enumerate(losses)]
    runs[2]["recorded"]["remarks"] = {"final_loss": remark}
    codes = found(*runs)
    assert {"prose-improved", "prose-baseline"} & set(codes) == ({code} if code else set())


def test_findings_without_figures(found):
    baseline = a_run(0, "Baseline", metrics={"final_loss": 1.0, "l0": 8.0, "mse": 2.0, "ce_loss_score": 0.9})
    text = of_text("CE loss scores are remarkably consistent.", "L0 is alike across runs.", "The loss of Run 0 is 1.")
    same = [a_run(n, description="Other metrics unchanged from baseline.") for n in (1, 2)]
    codes = found(baseline, *same, a_run(3, "Improved stability", metrics={"unlearning_score": 0.1}), study=text)
    assert codes["prose-unmeasured"] == [
        (
            "1 2",
            "its text calls other metrics unchanged, but 3 metrics of the baseline are not recorded.",
        ),
        ("3", "its text has `Improved stability`, and no loss of it is recorded."),
        (
            "0 1 2 3",
            "the study's text (line 10 on) compares ce_loss_score and l0 of all runs, which are recorded "
            "of Run 0 alone.",
        ),
    ]
    full = {"final_loss": 1.0, "l0": 8.0, "mse": 2.0, "ce_loss_score": 0.9}
    assert "prose-unmeasured" not in found(baseline, a_run(1, "Improved stability", metrics=full), study=text)


def test_numbers_as_text_rounds_them():
    assert agrees("200.2", 200.2254) and not agrees("200.3", 200.2254)
    assert agrees("200.22", 200.2254, digits=1) and not agrees("200.22", 200.2254)


# The command


def test_names_of_runs():
    assert run_names(["3"]) == "Run 3" and run_names(["5", "6", "0", "7", "9"]) == "Runs 0, 5 to 7 and 9"
    assert run_names(["topk", "2", "1"]) == "Runs 1 and 2, topk" and run_names([]) == ""


def test_notes_are_audited_as_they_are_and_each_study_by_itself(tmp_path, capsys):
    for name, loss in (("first", "3.0"), ("second", "nan")):
        (tmp_path / f"{name}.txt").write_text(
            f"## Run 0: Baseline\nResults: {{'final_loss': 4.0, 'l0': 8.0, 'steps': 10}}\n\n"
            f"## Run 1: penalty\nResults: {{'final_loss': {loss}, 'l0': 8.0, 'steps': 10}}\n"
        )
    assert main(["audit", str(tmp_path / "first.txt")]) == 0
    assert "eval-" not in capsys.readouterr().out and not list(tmp_path.glob("*.json"))
    assert main(["audit", *(str(tmp_path / f"{name}.txt") for name in ("first", "second"))]) == 1
    shown = capsys.readouterr().out
    assert shown.startswith("4 runs of 2 studies audited: 1 error")
    assert "\nfirst: 2 runs, " in shown and "\nsecond: 2 runs, 1 error" in shown
    assert "Run 1: the loss is not a number" in " ".join(shown.split())


HERE = Path(__file__).parent


def test_the_list_for_a_whole_record(capsys):
    """Notes of a recorded study's shape and figures (its dict under the last run's heading), in words of ours."""
    assert main(["audit", str(HERE / "study_record.txt")]) == 1
    shown, _, moved = capsys.readouterr().out.partition("  moved ")
    assert shown == (HERE / "study_record_audit.txt").read_text()
    assert moved.strip().startswith("Run 0: ") and moved.count("\n") <= 4


SHAPES = HERE.parent / "reading" / "shapes"
LISTS = {
    "adaptive": """
        error never-trained 0 | error dead 0 | error eval-layer 0 | warning alone 0 | note not-overcomplete 0
        | note reported 0
    """,
    "bottleneck": """
        error never-trained 0 2 3 4 | error dead 0 | error eval-layer 0 | error nothing-shared 0 2 3 4
        | warning no-result 5 | warning floor 2 3 4 | warning single-seed 0 2 3 4 | warning run-missing 0 2 3 4 5
        | note not-overcomplete 0 | note eval-sibling 2 | note reported 0 2 3 4 5 | note confounded 3
        | note confounded 4
    """,
    "contrastive": """
        error budget-tokens 3 4 | error budget-steps 3 4 | error one-step 3 | error dead 0
        | error nothing-shared 0 1 2 3 4 | warning budget-batch-size 3 4 | warning floor 1 2 3 4
        | warning single-seed 0 1 2 3 4 | warning prose-unmeasured 4 | warning unrecorded 0 1 2 | warning unrecorded 3 4
        | warning method-unrecorded 3 4 | note reported 0 1 2 3 4 | note announced 0 1 2 3 4 | note confounded 4
    """,
    "progressive": """
        error budget-steps baseline_topk baseline_standard 1 2 | error lr-used baseline_topk 1 2
        | error perfect-score baseline_standard | warning budget-k baseline_topk 1 2 | warning no-control 1 2
        | warning logged-unused baseline_topk 1 2 | warning eval-missing baseline_topk baseline_standard 1 2
        | warning single-seed baseline_topk baseline_standard 1 2
        | warning prose-run baseline_topk baseline_standard 1 2 | warning method-unrecorded 1 2
        | note eval-sibling baseline_topk | note reported baseline_topk baseline_standard 1 2
    """,
    "selective": """
        error diverged 5 6 7 8 9 | error eval-layer 0 | warning eval-missing 1 2 3 4 5 6 7 8 9 | warning identical 1 2
        | warning floor 0 1 2 3 4 5 6 7 8 9 | warning single-seed 0 1 2 3 4 5 6 7 8 9
        | warning prose-run 0 1 2 3 4 5 6 7 8 9 | warning unrecorded 1 2 3 4 5 6 7 8 9 | warning loss-only 1 2 3 4
        | note not-overcomplete 0 | note eval-sibling 0 | note reported 0 1 2 3 4 5 6 7 8 9 | note moved 0
    """,
}
"""What the audit finds in notes of the five studies' shapes and figures: level, code and runs of each finding."""


def test_the_lists_for_the_five_studies_shapes():
    findings = audit(records([SHAPES / f"{name}.txt" for name in LISTS], sources=True))
    for study, expected in LISTS.items():
        own = [
            " ".join([f.level, f.code, *(run.rpartition("/")[2] for run in f.runs)])
            for f in findings
            if f.study == study
        ]
        assert own == [" ".join(part.split()) for part in expected.split("|")], study
    across = [(f.code, f.runs) for f in findings if f.study is None]
    assert across[0] == ("shared-eval", ("adaptive/0", "bottleneck/0", "contrastive/0"))
    assert [code for code, _ in across] == ["shared-eval", "studies-differ"]


def test_honest_notes_have_no_finding_in_their_words(tmp_path):
    text = """# Title: A penalty on decoders
# Experiment description: Train on gemma-2-2b. Report unlearning scores, which need a baseline that is stable.

# Plots
- Runs 0 and 1 end at a loss of 3-5. Run 1 ends higher than Run 0; Run 2 did not converge.
- Clipping may help to get a stable run. We run 3 seeds next.

## Run 0: Baseline
Results: {'final_loss': 3.1, 'unlearning_score': 0.2, 'steps': 100, 'seed': 0}
Description: Training was stable and converged. Final loss 3.1.

## Run 1: a penalty
Results: {'final_loss': 4.0, 'unlearning_score': 0.1, 'steps': 100, 'seed': 0}
- Remark: worse than Run 0, no improvement, although it was as stable as the baseline.

## Run 2: a heavy penalty
Results: {'final_loss': nan, 'unlearning_score': 0.0, 'steps': 100, 'seed': 0}
Description: Unstable; a lower rate should be more stable. It needs better stability, for smoother training.
"""
    (tmp_path / "notes.txt").write_text(text)
    findings = audit(records([tmp_path / "notes.txt"], sources=True))
    assert {finding.code for finding in findings} == {"diverged", "single-seed", "reported"}
