"""Every rule of the audit: a case that triggers it and one that does not."""

import json
import math
import os
import random

import pytest
from scipy import stats

from analysis.__main__ import main
from analysis.auditing.audit import audit, varied_by
from analysis.auditing.evidence import PART, Evidence
from analysis.auditing.finding import LEVELS, Finding
from analysis.auditing.printing import MAX_LINES, marks, printed, sentences
from analysis.auditing.rules import RULES
from analysis.auditing.rules.differences import welch
from analysis.commands.audit import LEVELS as OFFERED
from analysis.reading.records import records
from sae_sweeps.storage.files import write_json
from tests.analysis.outputs import add_run, add_sweep

LINEAR = {"name": "linear", "lr": 0.001, "warmup": 0.05, "decay": 0.2, "final": 0.0}


def found(outputs, varied=()):
    """code -> the runs that it names, of everything in the outputs tree."""
    codes: dict[str, set[str]] = {}
    for finding in audit(records([outputs]), varied):
        codes.setdefault(finding.code, set()).update(finding.runs)
    return codes


def log(folder, *rows):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def a_log(lr=0.001, k=32.0, penalty=5.0, gradient=0.1):
    """Rows of 100 steps under LINEAR, as a run writes them."""
    return [
        {
            "step": step,
            "loss": 3.0,
            "lr": lr * min(1.0, (step + 1) / 5, (100 - step) / 20),
            "k": k,
            "penalty_loss": penalty,
            "penalty_weight": 0.1,
            "grad_norm/penalty": gradient,
            "grad_norm/penalty_enc": 0.0,
        }
        for step in (0, 10, 50, 90, 99)
    ]


def three_seeds(outputs, penalty, fvu, **metrics):
    for seed in range(3):
        values = {"fvu": fvu + 0.001 * seed, "final_loss": fvu + seed, "recon_loss": None}
        add_run(outputs, f"{penalty}{seed}", {"penalty.name": penalty, "seed": seed}, values | metrics)


def test_a_clean_comparison_has_no_finding(outputs):
    for penalty, fvu in (("none", 0.05), ("ortho", 0.07)):
        three_seeds(outputs, penalty, fvu, mse=None, cossim=None, ce_loss_score=0.9 + fvu)
    for folder in (outputs / "runs").iterdir():
        log(folder, *a_log())
    assert {code: runs for code, runs in found(outputs).items() if code != "within-seeds"} == {}


# Few tokens


def with_top_variance(outputs, run_id, share, warnings=()):
    folder = add_run(outputs, run_id, warnings=warnings)
    results = json.loads((folder / "results.json").read_text())
    results["provenance"] = {"norms": {"median": 1.0, "limit": None, "left_out": 0.0, "top_variance": share}}
    write_json(folder / "results.json", results)


def test_a_thousandth_of_the_tokens_that_holds_more_than_a_fifth_of_the_variance(outputs):
    add_run(outputs, "older")  # its record has no norms
    with_top_variance(outputs, "short", None)  # of fewer than 1,000 tokens
    with_top_variance(outputs, "even", 0.2)
    assert not {"few-tokens", "run-warning"} & found(outputs).keys()
    warning = "a thousandth of the training tokens holds 86% of the variance of the activations and rules ..."
    with_top_variance(outputs, "massive", 0.861, (warning,))
    assert found(outputs)["few-tokens"] == {"massive"} and "run-warning" not in found(outputs)
    (finding,) = (f for f in audit(records([outputs])) if f.code == "few-tokens")
    assert finding.sentence == "a thousandth of the training tokens holds 86% of the variance of the activations."


def test_fvu_over_other_tokens(outputs):
    add_run(outputs, "a", {"data.max_norm": None})
    add_run(outputs, "b", {"data.max_norm": 10.0}, {"outlier_tokens": 0.0})  # none was left out
    assert "other-tokens" not in found(outputs)
    add_run(outputs, "c", {"data.max_norm": 10.0}, {"outlier_tokens": 0.008})
    assert found(outputs, varied=["max_norm"])["other-tokens"] == {"a", "b", "c"}


def test_fvu_over_the_same_tokens(outputs):
    for run_id in "ab":
        add_run(outputs, run_id, {"data.max_norm": 10.0}, {"outlier_tokens": 0.008})
    assert "other-tokens" not in found(outputs)


# Budgets


@pytest.mark.parametrize(
    ("code", "key", "value"),
    [
        ("budget-batch-size", "batch_size", 500),
        ("budget-k", "architecture.k", 64),
        ("budget-d-sae", "architecture.d_sae", 2048),
        ("budget-model", "model.name", "gpt2"),
        ("budget-layer", "layer.index", 3),
        ("budget-data", "data.name", "pile"),
        ("budget-data-seed", "data_seed", 1),
        ("budget-recon", "train.recon", "norm"),
    ],
)
def test_an_unequal_budget_that_the_sweep_does_not_vary(outputs, code, key, value):
    usual = {"data.name": "builtin", "data_seed": 0, "train.recon": "squared"}
    add_run(outputs, "a", usual)
    add_run(outputs, "b", usual)
    assert code not in found(outputs)
    add_run(outputs, "c", usual | {key: value})
    assert found(outputs)[code] == {"a", "b", "c"}
    short = key.removesuffix(".name").removeprefix("architecture.").removeprefix("train.")
    assert code not in found(outputs, varied=[short if key != "train.recon" else key])


def test_tokens_and_steps_are_never_exempt(outputs):
    add_run(outputs, "a")
    add_run(outputs, "b", {"num_tokens": 50_000}, {"tokens": 50_000, "steps": 50})
    findings = audit(records([outputs]), varied=["num_tokens"])
    assert [f.code for f in findings if f.level == "error"] == ["budget-tokens", "budget-steps"]
    assert findings[0].sentence == (
        "the runs differ in num_tokens (50000, 100000): they are not compared at equal budgets."
    )


def test_steps_that_differ_by_the_batch_alone(outputs):
    add_run(outputs, "a")
    add_run(outputs, "b", {"batch_size": 500}, {"steps": 200})
    codes = found(outputs, varied=["batch_size"])
    assert "budget-steps" in codes and not {"budget-tokens", "budget-batch-size"} & set(codes)


def test_runs_that_keep_a_records_budget_are_one_sentence(outputs):
    for name in "ab":
        add_run(outputs, name, metrics={"fvu": 0.1 + ord(name) / 1e4})
    for number, (k, tokens) in enumerate([(40, 50_000), (320, 100_000), (40, 100_000)]):
        own = {"architecture.k": k, "num_tokens": tokens, "tags": ["as_recorded"]}
        add_run(outputs, f"r{number}", own, {"tokens": tokens, "steps": tokens // 1000, "fvu": 0.2 + number / 100})
    budgets = [f for f in audit(records([outputs]), ["seed"]) if f.code.startswith("budget")]
    assert [(f.code, f.level, f.runs) for f in budgets] == [("budget-recorded", "warning", ("r0", "r1", "r2"))]
    assert budgets[0].sentence == (
        "the runs tagged as_recorded keep the budgets of their record: num_tokens 50000, 100000; total_steps 50, 100; "
        "k 40, 320."
    )
    assert "budget-k" not in found(outputs, ["k"])
    add_run(outputs, "c", {"architecture.k": 64}, {"fvu": 0.3})  # not tagged, so compared
    assert found(outputs)["budget-k"] == {"a", "b", "c"}


def test_seed_policy_and_single_seeds(outputs):
    three_seeds(outputs, "none", 0.05)
    assert not {"budget-seeds", "single-seed"} & set(found(outputs))
    add_run(outputs, "alone", {"penalty.name": "ortho"}, {"fvu": 0.5})
    codes = found(outputs)
    assert codes["single-seed"] == {"alone"} and codes["budget-seeds"] == {"none0", "none1", "none2", "alone"}


def test_one_run_alone_compares_with_nothing(outputs):
    add_run(outputs, "a")
    assert found(outputs) == {}


# Recorded and used


@pytest.mark.parametrize("schedule", [LINEAR, {"lr": 0.001}])
def test_the_learning_rate_used(outputs, schedule):
    folder = add_run(outputs, "a", {"lr_schedule": schedule, "architecture.lr": None})
    log(folder, *a_log())
    assert found(outputs) == {}
    log(folder, *a_log(lr=0.002 / 3))
    assert found(outputs) == {"lr-used": {"a"}}


def test_a_learning_rate_that_never_reaches_its_peak(outputs):
    add_run(outputs, "a", {"lr_schedule": LINEAR}, {"fvu": 0.1})
    assert "lr-peak" not in found(outputs)
    add_run(outputs, "b", {"lr_schedule": LINEAR | {"warmup": 1000}})
    assert found(outputs)["lr-peak"] == {"b"}


def test_k_used_and_steps_done(outputs):
    folder = add_run(outputs, "a")
    log(folder, *a_log())
    assert found(outputs) == {}
    log(folder, *a_log(k=40.0))
    add_run(outputs, "b", metrics={"steps": 90, "fvu": 0.1})
    codes = found(outputs)
    assert codes["k-used"] == {"a"} and codes["steps-done"] == {"b"}
    add_run(outputs, "a", {"architecture.k_start": 8})
    assert "k-used" not in found(outputs)


@pytest.mark.parametrize(
    ("title", "contradicts"),
    [
        ("lr 2e-4, k=32", True),
        ("trained with learning rate of 0.0003", False),
        ("k = 64", True),
        ("k=32 on layer 2", False),
        ("layer 7 of the model", True),
        ("trained for 1,000 steps", True),
        ("after 100 steps, final loss 30.5", False),
        ("final loss of 30", False),
        ("final loss of 31.2", True),
        ("k_start=8", False),
        ("The record's run was evaluated on layer 7. It is smaller", False),
    ],
)
def test_prose_that_gives_another_number(outputs, title, contradicts):
    add_run(outputs, "a", {"lr_schedule.lr": 3e-4}, title=title)
    assert ("prose-number" in found(outputs)) == contradicts


def test_prose_that_praises_a_loss_that_is_no_number(outputs):
    add_run(outputs, "a", metrics={"final_loss": None}, title="a stable run")
    add_run(outputs, "b", metrics={"final_loss": 1.0}, title="a stable run too")
    add_run(outputs, "c", metrics={"final_loss": None, "fvu": 0.3}, title="unstable")
    assert found(outputs)["prose-stable"] == {"a"}


# Runs that are not results


def test_never_trained_and_one_step(outputs):
    add_run(outputs, "a", metrics={"steps": 0, "tokens": 0})
    add_run(outputs, "b", metrics={"steps": 1, "tokens": 1000, "fvu": 0.4})
    add_run(outputs, "c", metrics={"fvu": 0.3})
    add_run(outputs, "d", state="queued", step=0)
    codes = found(outputs)
    assert codes["never-trained"] == {"a"} and codes["one-step"] == {"b"}


def test_dead(outputs):
    half = dict.fromkeys(("sae_test_accuracy", "sae_top_1_test_accuracy"), 0.5)
    add_run(outputs, "a", metrics={"l0": 0.0})
    add_run(outputs, "b", metrics=half | {"fvu": 0.1})
    add_run(outputs, "c", metrics={"cossim": None, "mse": 4.0, "fvu": 0.2})
    add_run(outputs, "d", metrics=half | {"sae_test_accuracy": 0.51, "cossim": 0.9, "mse": 4.0, "fvu": 0.3})
    findings = [f for f in audit(records([outputs])) if f.code == "dead"]
    assert {f.runs: f.sentence for f in findings} == {
        ("a",): "the SAE is dead: L0 = 0.",
        ("b",): "the SAE is dead: every probe accuracy exactly 0.5.",
        ("c",): "the SAE is dead: cosine similarity not a number.",
    }


def test_not_sparse_and_perfect(outputs):
    add_run(outputs, "a", metrics={"l0": 103.0, "ce_loss_score": 0.9995})
    add_run(outputs, "b", {"architecture.d_sae": 8192}, {"l0": 129.0, "fvu": 0.2})
    add_run(outputs, "c", metrics={"l0": 102.0, "ce_loss_score": 1.0, "fvu": 0.3})
    codes = found(outputs)
    assert codes["not-sparse"] == {"b"} and codes["perfect-score"] == {"a"}  # of one SAE the worse of the two


def test_diverged_unfinished_and_pending(outputs):
    add_run(outputs, "a", state="diverged", error="penalty_loss is not finite at step 3")
    add_run(outputs, "b", state="interrupted", step=40)
    add_run(outputs, "c", state="running")
    add_run(outputs, "d")
    add_run(outputs, "e", metrics={"final_loss": None, "fvu": 0.1})
    codes = found(outputs)
    assert codes["diverged"] == {"a", "e"} and codes["unfinished"] == {"b"} and codes["pending"] == {"c"}
    sentences = [f.sentence for f in audit(records([outputs]))]
    assert "diverged (penalty_loss is not finite at step 3), so there is no result." in sentences
    assert "interrupted at step 40 of 100, so there is no result." in sentences


@pytest.mark.parametrize(
    ("rows", "silent"),
    [
        (a_log(), False),
        (a_log(penalty=0.0), True),
        (a_log(gradient=0.0), True),
        (a_log(penalty=0.0)[:-1] + a_log()[-1:], False),
        ([], False),
    ],
)
def test_a_penalty_that_never_acted(outputs, rows, silent):
    log(add_run(outputs, "a"), *rows)
    log(add_run(outputs, "b", {"penalty.name": "none"}, {"fvu": 0.1}), *a_log(penalty=0.0))
    assert found(outputs).get("penalty-silent", set()) == ({"a"} if silent else set())


def test_one_of_two_penalties_that_never_acted(outputs):
    terms = {"ortho": {"lambda2_max": 0.1}, "contrastive": {"lambda2_max": 0.1}}
    folder = add_run(outputs, "a", {"penalty": {"name": "ortho+contrastive", **terms}})
    log(folder, {"step": 0, "ortho_loss": 3.0, "contrastive_loss": 0.0})
    assert found(outputs)["penalty-silent"] == {"a"}
    log(folder, {"step": 0, "ortho_loss": 3.0, "contrastive_loss": 0.1})
    assert "penalty-silent" not in found(outputs)


def test_a_weight_of_zero_never_acts(outputs):
    add_run(outputs, "a", {"penalty.lambda2_max": 0.0})
    assert found(outputs) == {"penalty-silent": {"a"}}


def test_what_runs_say_themselves(outputs):
    add_run(outputs, "a", warnings=("the text repeats", "L0 = 103.0 is above a tenth of d_sae = 1024: not sparse"))
    findings = audit(records([outputs]))
    assert [(f.code, f.sentence) for f in findings] == [("run-warning", "the text repeats")]


# Evaluations


def evaluated(folder, name, hook="blocks.2.hook_resid_post", model="builtin"):
    cfg = {"d_in": 128, "metadata": {"model_name": model, "hook_name": hook}}
    details = [{"index": index, "feature_density": 0.5} for index in range(8000)]
    content = {"eval_type_id": name, "eval_result_details": details, "sae_cfg_dict": cfg}
    write_json(folder / "evals" / f"{name}.json", content | {"eval_result_unstructured": {"hook_name": "no"}})
    write_json(folder / "evals" / f"{name}.summary.json", {"metrics": {}})


def test_evaluated_on_another_layer_or_model(outputs):
    evaluated(add_run(outputs, "a"), "core")
    assert (outputs / "runs" / "a" / "evals" / "core.json").stat().st_size > 3 * PART
    assert found(outputs) == {}
    evaluated(add_run(outputs, "b", metrics={"fvu": 0.1}), "core", hook="blocks.1.hook_resid_post")
    evaluated(add_run(outputs, "c", metrics={"fvu": 0.2}), "tpp", model="org/other")
    codes = found(outputs)
    assert codes["eval-layer"] == {"b"} and codes["eval-model"] == {"c"}


def from_elsewhere(folder, trained, judged, hook="blocks.2.hook_resid_post"):
    """What `evaluate` leaves beside an SAE without a run: the config is that of the evaluation."""
    config = {"model": {"name": judged, "path": f"org/{judged}"}, "layer": {"hook": "resid_post", "index": 2}}
    write_json(folder / "cfg.json", {"d_in": 128, "metadata": {"model_name": trained, "hook_name": hook}})
    write_json(folder / "results.json", {"run_id": folder.name, "config": config, "metrics": {"fvu": 0.1}})
    evaluated(folder, "core", hook=hook, model=trained)


def test_an_sae_from_elsewhere_was_trained_on_what_its_own_config_names(tmp_path):
    def sentences(**how):
        from_elsewhere(tmp_path / "mine", **how)
        return {f.code: f.sentence for f in audit(records([tmp_path / "mine"]))}

    assert sentences(trained="hub/gemma", judged="gemma") == {}
    assert sentences(trained="hub/gemma", judged="llama") == {
        "eval-model": "trained on model hub/gemma, evaluated on org/llama."
    }
    assert sentences(trained="hub/gemma", judged="gemma", hook="blocks.1.hook_resid_post") == {
        "eval-layer": "trained on blocks.1.hook_resid_post, evaluated (core) on blocks.2.hook_resid_post."
    }


def test_an_evaluation_of_older_weights(outputs):
    folder = add_run(outputs, "a")
    evaluated(folder, "core")
    weights = folder / "sae" / "sae_weights.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"")
    at = (folder / "evals" / "core.json").stat().st_mtime
    os.utime(weights, (at + 5, at + 5))  # a copy of the tree, file by file
    assert found(outputs) == {}
    os.utime(weights, (at + 3600, at + 3600))
    assert found(outputs) == {"stale-eval": {"a"}}


def test_builtin_data_beside_published_scores(outputs):
    add_run(outputs, "a", metrics={"builtin_unlearning_score": 0.1})
    assert found(outputs) == {}
    add_run(outputs, "b", metrics={"unlearning_score": 0.2, "fvu": 0.1})
    assert found(outputs)["builtin-beside"] == {"a", "b"}


# Differences


def test_identical_results_of_different_configurations(outputs):
    same = {"fvu": 0.123456, "final_loss": 204.3647}
    add_run(outputs, "a", {"penalty.alpha": 0.5}, same)
    add_run(outputs, "b", {"penalty.alpha": 0.3}, same)
    add_run(outputs, "c", {"penalty.alpha": 0.1}, same | {"fvu": 0.2})
    findings = [f for f in audit(records([outputs])) if f.code == "identical"]
    assert [f.runs for f in findings] == [("a", "b")]
    assert findings[0].sentence == "identical results (final_loss 204.3647) although penalty.alpha (0.5, 0.3) differs."


def test_a_metric_at_its_floor_in_every_run(outputs):
    add_run(outputs, "a", metrics={"unlearning_score": 0.0, "recovery_share": 0.0})
    assert found(outputs) == {}
    add_run(outputs, "b", metrics={"unlearning_score": 0.0, "recovery_share": 0.0, "fvu": 0.1})
    assert found(outputs)["floor"] == {"a", "b"}
    add_run(outputs, "c", metrics={"unlearning_score": 0.01, "fvu": 0.2})
    assert "floor" not in found(outputs)


def test_differences_within_the_spread_over_seeds(outputs):
    three_seeds(outputs, "none", 0.0500)
    three_seeds(outputs, "ortho", 0.0505)
    three_seeds(outputs, "strict", 0.0900)
    findings = [f for f in audit(records([outputs])) if f.code == "within-seeds" and f.sentence.startswith("fvu")]
    assert [f.level for f in findings] == ["note"]
    assert set(findings[0].runs) == {f"{name}{seed}" for name in ("none", "ortho") for seed in range(3)}
    assert "1 of 2 other configurations" in findings[0].sentence


def test_welch_is_scipys():
    draw = random.Random(0)
    sample = [draw.gauss(0, 1) for _ in range(4)]
    others = [[draw.gauss(mean, width) for _ in range(n)] for mean, width, n in ((0, 1, 3), (2, 0.1, 5), (9, 3, 2))]
    expected = [stats.ttest_ind(sample, other, equal_var=False).pvalue for other in others]
    assert welch(sample, others) == pytest.approx(expected, rel=1e-12)
    same, apart = welch([1.0, 1.0], [[1.0, 1.0], [2.0, 2.0]])
    assert math.isnan(same) and apart == 0


# The command


def test_what_sweeps_vary_is_read_from_their_manifests(outputs):
    add_run(outputs, "a")
    add_run(outputs, "b", {"architecture.k": 64}, {"fvu": 0.1})
    sweep = add_sweep(outputs, "s", ["a", "b"])
    assert varied_by([outputs]) == set()
    write_json(sweep / "manifest.json", json.loads((sweep / "manifest.json").read_text()) | {"varied": ["k"]})
    for path in (outputs, sweep, outputs / "sweeps", sweep / "manifest.json"):
        assert varied_by([path]) == {"k"}
    assert "budget-k" not in found(outputs, varied_by([outputs]))


def test_the_exit_status(outputs, capsys):
    add_run(outputs, "a")
    assert main(["audit", str(outputs)]) == 0
    assert capsys.readouterr().out == "1 run audited: nothing found\n"
    add_run(outputs, "b", {"architecture.k": 64}, {"fvu": 0.1})
    assert main(["audit", str(outputs)]) == 0 and main(["audit", str(outputs), "--strict"]) == 1
    capsys.readouterr()
    assert main(["audit", str(outputs), "--strict", "--level", "error"]) == 1
    assert capsys.readouterr().err == "exit status 1: --level=error hides 2 findings that --strict counts\n"
    add_run(outputs, "c", metrics={"l0": 0.0})
    assert main(["audit", str(outputs)]) == 1
    capsys.readouterr()
    assert main(["audit", str(outputs / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert main(["audit", str(outputs), "--format", "json", "--level", "error"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert content == {
        "runs": 3,
        "findings": [
            {
                "code": "dead",
                "level": "error",
                "sentence": "the SAE is dead: L0 = 0.",
                "do": "train it again: it is no baseline",
                "study": "",
                "runs": ["c"],
            }
        ],
    }
    assert OFFERED == LEVELS


def test_hostile_text_stays_text(outputs):
    odd = "=1+1 [red]x[/red]\n## Run 9: `*| <b>&\x1b[31m\u202e"
    add_run(outputs, "a", {"penalty.name": odd, "seed": 1}, title=odd, warnings=(odd,))
    add_run(outputs, "b", {"seed": 2}, state="failed", error=odd)
    for format in ("text", "markdown", "json"):
        shown = printed(audit(records([outputs])), 2, format)
        assert not {c for c in shown if not c.isprintable()} - {"\n"} and "\n##  Run" not in shown
    assert "<b>" not in printed(audit(records([outputs])), 2, "markdown")


def test_marks_are_the_worst_level_of_each_run(outputs):
    add_run(outputs, "a", metrics={"l0": 0.0})
    add_run(outputs, "b", {"architecture.k": 64}, {"fvu": 0.1})
    findings = audit(records([outputs]), varied=["seed"])
    assert marks(findings) == {"a": "error", "b": "warning"}
    assert sentences(findings, 2)[0] == "a: the SAE is dead: L0 = 0."
    assert len(sentences(findings, 2)) == sum(finding.level != "note" for finding in findings)


def test_codes_are_unique_and_documented():
    codes = [rule.code for rule in RULES]
    assert len(codes) == len(set(codes)) and {rule.level for rule in RULES} == set(LEVELS)
    assert not [rule.code for rule in RULES if rule.mend.endswith(".")]
    from pathlib import Path

    docs = Path(__file__).parents[3] / "docs"
    text = "".join(path.read_text() for path in docs.glob("analysis*.md"))
    for rule in RULES:
        assert f"| `{rule.code}` | {rule.level} | {rule.about} |" in text


def test_a_log_is_searched_whole(tmp_path):
    rows = [{"step": step, "lr": 0.001, "penalty_loss": 0.0, "pad": "x" * 200} for step in range(4000)]
    rows[1000]["penalty_loss"] = 0.5
    rows[2000]["lr"] = None
    log(tmp_path, *rows)
    evidence = Evidence(tmp_path)
    assert evidence.logged("step") == list(range(4000)) and evidence.last("step") == 3999
    assert [step for step, value in enumerate(evidence.logged("lr")) if value != value] == [2000]
    assert evidence.ever("penalty_loss") is True and evidence.ever("absent") is None
    assert Evidence(None).ever("lr") is None and Evidence(tmp_path / "none").logged("lr") == []


def test_a_table_tells_no_more_than_it_has_room_for():
    findings = [Finding("dead", "warning", f"sentence {n}.", (f"run{n}",)) for n in range(30)]
    told = sentences(findings, 30)
    assert len(told) == MAX_LINES and told[0] == "run0: sentence 0."
    assert told[-1] == "and 11 more findings: `python -m analysis audit` has them all."
    assert (
        len(sentences(findings[:MAX_LINES], 30)) == MAX_LINES and "more" not in sentences(findings[:MAX_LINES], 30)[-1]
    )
