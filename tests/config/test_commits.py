"""Hub models and data sets are trained at a commit: from the cache's record, else the hub's answer, else not at all."""

import json
import re

import pytest
from composing import plan
from hub_stub import A, B, cached, served
from huggingface_hub import constants

from sae_sweeps.cli.compose import compose_points
from sae_sweeps.cli.launch import launch
from sae_sweeps.config.hub import unpinned
from sae_sweeps.config.identity import canonical, run_id
from sae_sweeps.errors import ConfigError
from sae_sweeps.storage import hub
from sae_sweeps.sweeps.plan import describe
from sae_sweeps.sweeps.sweep import restored

PYTHIA, WIKITEXT, WMDP = "EleutherAI/pythia-70m-deduped", "Salesforce/wikitext", "cais/wmdp-bio-forget-corpus"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, a hub that nobody may ask, and no answer of another test."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(hub, "_answers", {})
    return tmp_path / "hub"


@pytest.fixture
def online(monkeypatch):
    """What the hub knows and what it was asked."""
    commits, asked = {}, []
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with served(commits, asked) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        yield commits, asked


def test_a_moved_branch_is_another_run_and_a_commit_in_config_and_id(cache):
    words = ["model=pythia-70m", "data=wikitext"]
    cached(cache, "dataset", WIKITEXT, A)
    cached(cache, "model", PYTHIA, A)
    (before,) = plan(*words).runs
    cached(cache, "model", PYTHIA, B)
    (moved,) = plan(*words).runs
    cached(cache, "dataset", WIKITEXT, B)
    (both,) = plan(*words).runs
    assert len({before.run_id, moved.run_id, both.run_id}) == 3
    assert [p.run.to_dict()["model"]["revision"] for p in (before, moved, both)] == [A, B, B]
    assert [p.run.to_dict()["data"]["revision"] for p in (before, moved, both)] == [A, A, B]
    assert canonical(before.run)["model"]["digest"] == f"hub:{PYTHIA}@{A}"
    again = restored(before.run.to_dict(), before.run.outputs)  # in a worker, whose cache has moved on
    assert run_id(again) == before.run_id


def test_branches_tags_and_commits_of_one_content_are_one_run(cache):
    cached(cache, "model", PYTHIA, A)
    cached(cache, "model", PYTHIA, A, branch="refs/pr/1")
    words = [f"model.revision={r}" for r in ("null", "main", "refs/pr/1", A)]
    assert len({plan("model=pythia-70m", word).runs[0].run_id for word in words}) == 1
    (elsewhere,) = plan("model=pythia-70m", f"model.revision={B}").runs  # taken as it is, known to no one
    assert elsewhere.run.model.revision == B and not unknown(elsewhere)


def test_both_of_two_corpora_are_at_commits(cache):
    cached(cache, "dataset", WMDP, A)
    cached(cache, "dataset", WIKITEXT, B, branch="convert/x")
    words = ["model=builtin", "data=wmdp_bio", f"data.retain={WIKITEXT}:wikitext-103-raw-v1@convert/x"]
    (planned,) = plan(*words).runs
    data = planned.run.data
    assert data.forget == f"{WMDP}@{A}" and data.retain == f"{WIKITEXT}:wikitext-103-raw-v1@{B}"
    assert run_id(restored(planned.run.to_dict(), planned.run.outputs)) == planned.run_id
    cached(cache, "dataset", WMDP, B)
    assert plan(*words).runs[0].run_id != planned.run_id


UNKNOWN = {
    ("model=pythia-70m", "data=builtin"): rf"model.revision=main: .*{PYTHIA} is not known.*out of reach.*"
    rf"`hf download {PYTHIA}`.*--local-dir DIR.*model=DIR; .*model.revision=COMMIT\.",
    ("model=pythia-70m", "data=builtin", "model.revision=v1"): "model.revision=v1: ",
    ("model=builtin", "data=wikitext"): rf"data.revision=main: .*data set {WIKITEXT} .*--repo-type dataset.*"
    r"--local-dir DIR.*data=DIR; .*data.revision=COMMIT\.",
    ("model=builtin", "data=wmdp_bio"): rf"data.forget={WMDP}@main: .*data.forget=DIR.*data.forget={WMDP}@COMMIT",
}  # fmt: skip


@pytest.mark.parametrize(("words", "message"), UNKNOWN.items(), ids=lambda v: " ".join(v) if type(v) is tuple else "")
def test_an_unknown_commit_makes_ids_provisional_and_no_launch(words, message, tmp_path, capsys):
    text = describe(plan(*words))
    assert re.search(r"^run 1  \w{12} \(provisional\)  ", text)
    assert re.search(f"^provisional run ids, nothing can be launched yet: {message}", text, re.MULTILINE)
    points = compose_points([*words, f"outputs={tmp_path / 'o'}"])
    with pytest.raises(ConfigError, match=message) as caught:
        launch(points)
    assert "\n" not in str(caught.value) and not (tmp_path / "o").exists()
    assert launch(compose_points([*words, "--dry-run", f"outputs={tmp_path / 'o'}"])).status == 0
    assert "provisional" in capsys.readouterr().out


def unknown(planned):
    return unpinned(planned.run.model, planned.run.data)


def test_commits_that_the_cache_holds_are_named(cache):
    cached(cache, "model", PYTHIA, A, branch="other")
    (why,) = unknown(plan("model=pythia-70m").runs[0])
    assert f"the cache holds {A} without the name main" in why


@pytest.mark.parametrize("content", ["", "not a commit", "A" * 40, "../../x"])
def test_a_damaged_record_is_no_commit(cache, content):
    cached(cache, "model", PYTHIA, A)
    (cache / f"models--{PYTHIA.replace('/', '--')}" / "refs" / "main").write_text(content)
    assert hub.commit_of("model", PYTHIA, None)[0] is None


def test_the_hub_is_asked_once_and_only_for_what_the_cache_lacks(cache, online):
    commits, asked = online
    cached(cache, "model", PYTHIA, A)
    commits |= {f"models/{PYTHIA}/revision/main": B, f"datasets/{WIKITEXT}/revision/main": B}
    runs = plan("model=pythia-70m", "data=wikitext", "seed=0,1,2").runs
    assert {(p.run.model.revision, p.run.data.revision) for p in runs} == {(A, B)}
    assert asked == [f"datasets/{WIKITEXT}/revision/main"]


def test_what_the_hub_does_not_know_is_said(online):
    commits, asked = online
    commits[f"models/{PYTHIA}/revision/main"] = A
    (why,) = unknown(plan("model=pythia-70m", "model.revision=v9").runs[0])
    assert "the hub has no such branch or tag" in why
    (why,) = unknown(plan("model=pythia-70m", "model.path=no/such").runs[0])
    assert "the hub has none of this name" in why and len(asked) == 2


def test_a_hub_out_of_reach_is_tried_once(online, monkeypatch):
    tries = []
    monkeypatch.setattr(hub, "hub_is_reachable", lambda: tries.append(1))
    plan("model=pythia-70m", "data=wikitext", "seed=0,1,2")
    assert tries == [1]


def test_a_folder_in_place_of_a_data_set_of_the_hub_counts_by_its_content(tmp_path):
    ids = []
    for text in ("one", "two"):
        (tmp_path / "set" / ".cache").mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / ".cache" / "note").write_text(str(len(ids)))
        (tmp_path / "set" / "a.jsonl").write_text(json.dumps({"text": text}))
        made = plan("model=builtin", "data=hub", f"data.path={tmp_path / 'set'}")
        assert not made.provisional
        ids.append(made.runs[0].run_id)
    assert ids[0] != ids[1]
