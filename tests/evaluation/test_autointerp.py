import json

import pytest
import torch
from toy_lm import BOS, ToyLM, toy_sae

from sae_sweeps.config.evaluations import AutointerpConfig, EvalConfig
from sae_sweeps.config.schema import LayerConfig
from sae_sweeps.errors import ConfigError, DamagedFile, NoNetwork
from sae_sweeps.evaluation import autointerp
from sae_sweeps.evaluation import judge as judge_module
from sae_sweeps.evaluation.answers import Answers
from sae_sweeps.evaluation.autointerp import (
    evaluate_autointerp,
    largest,
    parse_explanation,
    parse_predictions,
    question_about,
)
from sae_sweeps.evaluation.judge import Judge
from sae_sweeps.evaluation.shared import Shared
from tests.judge_stub import judge_stub


class LM(ToyLM):
    bos_id = BOS

    class tokenizer:
        @staticmethod
        def decode(ids):
            return f" w{ids[0]}"


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY"):  # the judge is on this machine, so none is asked
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")  # put back afterwards
    with judge_stub() as server:
        yield server


def shared_for(server, tmp_path, **changes):
    cfg = AutointerpConfig(
        judge=f"http://127.0.0.1:{server.server_port}/v1", n_latents=3, dead_below=2, total_tokens=4000, buffer=2
    )
    for key, value in changes.items():
        setattr(cfg, key, value)
    return Shared(EvalConfig(autointerp=cfg), LM(), LayerConfig(index=0), "toy", "toy", None, tmp_path)


class SourceKind:
    kind = "builtin"


def tokens(n=120, length=16):
    found = torch.randint(2, 11, (n, length), generator=torch.Generator().manual_seed(0))
    found[:, 0] = BOS
    return found


def evaluate(server, tmp_path, saes=None, report=None, **changes):
    shared = shared_for(server, tmp_path, **changes)
    shared.source = SourceKind()
    saes = saes or {"it": toy_sae(architecture="standard")}
    answers = {name: Answers(tmp_path / name / "answers.jsonl", shared.cfg.autointerp.model) for name in saes}
    return evaluate_autointerp(saes, shared, tokens(), answers, (report if report is not None else []).append)


def test_nothing_is_sent_before_the_estimate_was_shown_and_confirmed(server, tmp_path):
    with pytest.raises(
        ConfigError, match=r"3 features of 1 SAEs, 6 requests to gpt-4o-mini at http.*\$0\.00.*confirm=true"
    ):
        evaluate(server, tmp_path)
    with pytest.raises(ConfigError, match="eval.autointerp.judge is not set"):
        evaluate(server, tmp_path, judge=None)
    assert server.requests == []


def test_a_judge_that_always_says_none_is_right_about_the_silent_ones(server, tmp_path):
    report = []
    result = evaluate(server, tmp_path, report=report, confirm=True)["it"]
    assert len(report) == 1 and "6 requests" in report[0] and len(server.requests) == 6
    assert result.metrics["autointerp"]["autointerp_score"] == pytest.approx(10 / 14)
    assert result.metrics["autointerp"]["autointerp_std_dev"] == pytest.approx(0)
    path, body = server.requests[0]
    assert path == "/v1/chat/completions" and body["model"] == "gpt-4o-mini" and body["max_tokens"] == 30
    one = next(iter(result.unstructured.values()))
    assert one["explanation"] == "digits" and one["predictions"] == [] and len(one["correct seqs"]) == 4
    assert result.eval_config["llm_context_size"] == 16
    assert result.to_json()["eval_type_id"] == "autointerp" and "builtin_autointerp_score" in result.flat()


def test_a_judge_that_knows_is_always_right(server, tmp_path, monkeypatch):
    known = {}
    real = autointerp.question_about

    def noted(*args):
        question = real(*args)
        known[question.predict("digits")[1]["content"]] = question.active()
        return question

    monkeypatch.setattr(autointerp, "question_about", noted)
    server.answer = lambda user: ", ".join(map(str, known[user]))
    result = evaluate(server, tmp_path, confirm=True, concurrency=1)["it"]
    assert result.metrics["autointerp"]["autointerp_score"] == 1.0


def test_answers_that_cannot_be_read_are_counted_and_left_out(server, tmp_path):
    server.answer = lambda user: "perhaps the third"
    result = evaluate(server, tmp_path, confirm=True)["it"]
    assert "3 answers of the judge could not be read" in result.warnings
    assert result.metrics["autointerp"]["autointerp_score"] != result.metrics["autointerp"]["autointerp_score"]
    assert parse_predictions("1, 4 and 12.") == [1, 4, 12] and parse_predictions("None") == []
    assert parse_predictions("1, ²") is None
    assert parse_explanation("This neuron activates on verbs.") == "verbs"


def test_a_busy_judge_is_asked_again_and_one_that_is_down_is_named(server, tmp_path):
    server.failures = [500, 429]
    judge = Judge(shared_for(server, tmp_path).cfg.autointerp, wait_s=0)
    assert judge.complete([{"role": "system", "content": "x"}, {"role": "user", "content": "y"}], 5) == "None"
    assert len(server.requests) == 3 and (judge.sent, judge.received) == (7, 2)
    server.failures = [401]
    with pytest.raises(NoNetwork, match="the server answered 401; check the address"):
        judge.complete([{"role": "system", "content": "x"}, {"role": "user", "content": "y"}], 5)
    down = AutointerpConfig(judge="http://127.0.0.1:1/v1")
    with pytest.raises(NoNetwork, match="eval.autointerp.judge=http://127.0.0.1:1/v1: the server cannot be reached"):
        Judge(down, wait_s=0).complete([{"role": "system", "content": "x"}, {"role": "user", "content": "y"}], 5)


def test_a_judge_that_is_slow_is_asked_again_and_one_that_talks_nonsense_is_named(server, tmp_path, monkeypatch):
    monkeypatch.setattr(judge_module, "TIMEOUT_S", 0.2)
    judge = Judge(shared_for(server, tmp_path).cfg.autointerp, wait_s=0)
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]
    server.failures = ["slow", 529]
    assert judge.complete(messages, 5) == "None" and len(server.requests) == 3
    for nonsense in ('{"choices": []}', '{"error": {"message": "no"}}', "<html>", "[]"):
        server.failures = [nonsense]
        with pytest.raises(NoNetwork, match="the server's answer is not a chat completion"):
            judge.complete(messages, 5)


def test_examples_depend_on_the_seed_and_not_on_other_saes(server, tmp_path):
    both = evaluate(server, tmp_path, {"a": toy_sae(0, "standard"), "b": toy_sae(1, "standard")}, confirm=True)
    asked = sorted(json.dumps(body) for _, body in server.requests)
    server.requests.clear()
    alone = evaluate(server, tmp_path / "anew", {"b": toy_sae(1, "standard")}, confirm=True)
    assert alone["b"].unstructured == both["b"].unstructured
    assert {json.dumps(body) for _, body in server.requests} <= set(asked)
    shared = shared_for(server, tmp_path)
    values = torch.rand(200, 16, generator=torch.Generator().manual_seed(0))
    one, same, other = (question_about(3, values, tokens(200), shared, seed) for seed in (42, 42, 43))
    assert one == same and one.scored != other.scored


def requested(server):
    return sorted(json.dumps(body) for _, body in server.requests)


def test_answers_that_were_paid_for_are_not_asked_for_again(server, tmp_path):
    server.answer = lambda user: str(1 + len(user) % 14)  # the same question has the same answer
    undisturbed = evaluate(server, tmp_path / "undisturbed", confirm=True)["it"]
    every = requested(server)
    server.requests.clear()

    server.failures = [None, None, None, *[401] * 6]  # three answers, then the key has expired
    with pytest.raises(NoNetwork, match="401"):
        evaluate(server, tmp_path, confirm=True, concurrency=1)
    del server.requests[3:], server.failures[:]
    answered = requested(server)
    server.requests.clear()
    with pytest.raises(ConfigError, match=r"3 features of 1 SAEs, 3 requests to .* \(3 answered before\)"):
        evaluate(server, tmp_path)
    assert server.requests == []
    again = evaluate(server, tmp_path, confirm=True)["it"]
    assert sorted(answered + requested(server)) == every
    assert again.metrics == undisturbed.metrics and again.unstructured == undisturbed.unstructured

    server.requests.clear()
    report = []
    assert (
        evaluate(server, tmp_path, report=report)["it"].metrics == again.metrics
    )  # nothing to send, nothing to confirm
    assert server.requests == [] and "0 requests" in report[0] and "$0.00" in report[0]
    evaluate(server, tmp_path, model="another", confirm=True)
    assert len(server.requests) == 6


def test_an_answer_that_was_torn_by_a_kill_is_asked_for_again(server, tmp_path):
    whole = evaluate(server, tmp_path, confirm=True)["it"]
    path = tmp_path / "it" / "answers.jsonl"
    lines = path.read_bytes()
    path.write_bytes(lines[:-20])
    server.requests.clear()
    assert evaluate(server, tmp_path, confirm=True)["it"].unstructured == whole.unstructured
    assert len(server.requests) == 1 and sorted(path.read_bytes().split()) == sorted(lines.split())
    path.write_bytes(b"{}\n" + lines)
    with pytest.raises(DamagedFile, match="answers.jsonl is damaged at line 1"):
        evaluate(server, tmp_path, confirm=True)


def test_examples_are_the_strongest_and_stand_apart(server, tmp_path):
    a = torch.zeros(4, 20)
    a[0, 5], a[0, 6], a[0, 9], a[2, 10], a[3, 1] = 5.0, 4.9, 4.0, 3.0, 9.0
    assert largest(a, 10, buffer=2).tolist() == [[0, 5], [0, 9], [2, 10]]  # 6 is too near, 1 too near the end
    assert largest(a, 1, buffer=2).tolist() == [[0, 5]]
    shared = shared_for(server, tmp_path)
    g = torch.Generator().manual_seed(0)
    values = torch.rand(200, 16, generator=g) * (torch.rand(200, 16, generator=g) < 0.3)
    question = question_about(3, values, tokens(200), shared, 42)
    assert len(question.shown) == 15 and len(question.scored) == 14 and len(question.active()) == 4
    peaks = [max(example.activations) for example in question.shown]
    assert peaks == sorted(peaks, reverse=True) and "<<" in question.explain()[1]["content"]
    assert "<<" not in question.predict("x")[1]["content"]
    assert question_about(3, torch.zeros(200, 16), tokens(200), shared, 42) is None


def test_given_features_and_explanations_alone(server, tmp_path):
    result = evaluate(server, tmp_path, confirm=True, latents=[2, 5], scoring=False)["it"]
    assert set(result.unstructured) <= {"2", "5"} and len(server.requests) == len(result.unstructured) > 0
    assert all(set(one) == {"latent", "explanation"} for one in result.unstructured.values())
    assert result.to_json()["eval_result_metrics"]["autointerp"]["autointerp_score"] == -1
    assert result.eval_config["override_latents"] == [2, 5] and result.eval_config["scoring"] is False
    with pytest.raises(ConfigError, match="eval.autointerp.latents=9: the SAE has features 0 to 8"):
        evaluate(server, tmp_path, latents=[9])


def test_numbers_of_examples_overlap_and_demos_are_keys(server, tmp_path):
    a = torch.zeros(1, 20)
    a[0, 5], a[0, 6] = 5.0, 4.9
    assert largest(a, 10, buffer=2, no_overlap=False).tolist() == [[0, 5], [0, 6]]
    g = torch.Generator().manual_seed(0)
    values = torch.rand(200, 16, generator=g) * (torch.rand(200, 16, generator=g) < 0.3)
    changes = dict(top_shown=3, sampled_shown=0, top_scored=1, sampled_scored=0, random_scored=4, demos=False)
    question = question_about(3, values, tokens(200), shared_for(server, tmp_path, **changes), 42)
    assert (len(question.shown), len(question.scored), question.prediction_tokens) == (3, 5, 15)
    assert (
        "Some examples" not in question.explain()[0]["content"]
        and "5 example seq" in question.predict("x")[0]["content"]
    )
    usual = question_about(3, values, tokens(200), shared_for(server, tmp_path), 42)
    assert "Some examples" in usual.explain()[0]["content"]
    high = question_about(3, values, tokens(200), shared_for(server, tmp_path, act_threshold=0.99), 42)
    assert high.explain()[1]["content"].count("<<") < usual.explain()[1]["content"].count("<<")
    with pytest.raises(ConfigError, match="eval.autointerp.random_scored=0: no example is left to predict"):
        evaluate(server, tmp_path, top_scored=0, sampled_scored=0, random_scored=0)
