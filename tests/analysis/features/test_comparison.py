"""Two runs' features: the assignment, what became of each, competing pairs and absorbed words."""

import json

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_matrix

from analysis.__main__ import main
from analysis.features.matching import FEWEST, LEAST, Matching, compare, fates_of, matched, shared_with
from analysis.features.page import page
from analysis.features.stored import stored
from sae_sweeps.storage.run_folder import RunFolder
from tests.analysis.featured import random_activations, write_features


def test_the_assignment_is_scipys(seed=0):
    draw = np.random.default_rng(seed)
    similarity = draw.random((12, 9))
    found = matched((*map(np.ravel, np.indices(similarity.shape)), similarity.ravel()), 12, 9)
    gain = np.where(similarity >= LEAST, similarity, 0)
    assert np.nansum(found.similarity) == pytest.approx(gain[linear_sum_assignment(gain, maximize=True)].sum())
    assert np.nanmin(found.similarity) >= LEAST
    partners = found.partner[found.partner >= 0]
    assert len(set(partners)) == len(partners)
    back = found.inverse(9)
    assert [back.partner[j] for j in partners] == (found.partner >= 0).nonzero()[0].tolist()


def test_a_permuted_copy_is_found_again(tmp_path):
    f_NLF, draw = random_activations(40, d_sae=30), np.random.default_rng(3)
    decoder, order = draw.standard_normal((30, 6)), draw.permutation(30)
    a = stored(write_features(tmp_path / "a", f_NLF, decoder), "")
    b = stored(write_features(tmp_path / "b", f_NLF[..., order], decoder[order]), "")
    found = compare(a, b)
    assert order[found.by_decoder.partner].tolist() == list(range(30)) == order[found.by_activations.partner].tolist()
    np.testing.assert_allclose(found.by_decoder.similarity, 1, atol=2e-3)  # decoder rows are kept in 16 bit
    np.testing.assert_allclose(found.by_activations.similarity, 1, atol=1e-6)
    assert found.agree == 30 and all(fate.count("shared") == 30 for fate in found.fates)


def test_what_became_of_each_feature():
    tokens = np.arange(1000)
    a = [tokens < 100, tokens // 100 == 2, (300 <= tokens) & (tokens < 340), (340 <= tokens) & (tokens < 400),
         (500 <= tokens) & (tokens < 530), tokens // 100 == 6, tokens // 100 == 7, tokens < FEWEST - 1,
         tokens < 0]  # fmt: skip
    b = [tokens < 100, (200 <= tokens) & (tokens < 250), (250 <= tokens) & (tokens < 300),
         (300 <= tokens) & (tokens < 400), tokens // 100 == 5, tokens // 100 == 8, tokens // 100 == 6,
         tokens // 100 == 5]  # fmt: skip
    fires = [csr_matrix(np.stack(one, 1).astype(np.float32)) for one in (a, b)]
    partner = np.full(len(a), -1)
    partner[[0, 5]] = 0, 6
    cosine = Matching(partner, np.where(partner >= 0, [0.9] * 5 + [0.6] + [0] * 3, np.nan))
    correlation = Matching(np.where(partner == 6, 6, -1), np.where(partner == 6, 0.8, np.nan))
    first, second = fates_of(*fires, cosine, correlation)
    kinds = ["shared", "split", "merged", "merged", "absorbed", "shared", "lost", "rare", "dead"]
    assert first.kind.tolist() == kinds
    assert first.others == {0: [0], 1: [1, 2], 2: [3], 3: [3], 4: [4], 5: [6]}
    assert second.kind.tolist() == ["shared", "merged", "merged", "split", "lost", "lost", "shared", "lost"]


def test_a_feature_is_shared_with_one():
    cosine = Matching(np.array([0, -1, -1]), np.array([0.9, np.nan, np.nan]))
    correlation = Matching(np.array([1, 0, 2]), np.array([0.8, 0.95, 0.75]))  # 0 of the second is the first's already
    assert shared_with(cosine, correlation).tolist() == [0, -1, 2]
    assert shared_with(cosine.inverse(3), correlation.inverse(3)).tolist() == [0, -1, 2]


@pytest.fixture
def runs(tmp_path):
    f_NLF, decoder = random_activations(40, d_sae=12), np.random.default_rng(2).standard_normal((12, 6))
    first = write_features(tmp_path / "runs" / "base", f_NLF, decoder)
    second = write_features(tmp_path / "runs" / "ortho", f_NLF, decoder + 0.1)
    folder = RunFolder(second)
    watched = {"monitor": "competition", "pairs": [[0, 1], [2, 3]], "overlap": [0.5, 0.1], "c": [0.9, 0.0]}
    folder.monitors.append({"step": 5, **watched, "abs_cosine": [0.4, 0.2], "correlation": [0.1, 0.1]})
    folder.monitors.append({"step": 20, **watched, "abs_cosine": [0.1, 0.2], "correlation": [0.1, 0.1]})
    folder.close()
    word = {"letter": "s", "word": " <i>short", "features": [3], "absorber": 7, "cosine": 0.3, "share": 0.8}
    note = {"eval_result_unstructured": {"sae_sweeps": {"absorbed": [word], "warnings": []}}}
    (second / "evals" / "absorption.json").write_text(json.dumps(note))
    return first, second


def test_the_command_prints_and_writes_the_page(runs, tmp_path, capsys):
    output = tmp_path / "page.html"
    assert main(["compare", *map(str, runs), "-o", str(output)]) == 0
    printed = capsys.readouterr().out
    assert ["shared", "12", "(100.0%)", "12", "(100.0%)"] in map(
        str.split, printed.splitlines()
    ) and "both match 12 features alike" in printed
    assert "1 pair competed in ortho at step 5" in printed and "absorbed first letters in ortho: 1 word\n" in printed
    text = output.read_text()
    one = stored(runs[1], "")
    rows = one["decoder"].astype(float)
    assert f'<td class="n">{rows[0] @ rows[1]:.3f}</td>' in text and '<td class="n">0.900</td>' in text
    assert "#feature=ortho:0,ortho:1,base:0,base:1" in text and "&lt;i&gt;short" in text and "<i>short" not in text
    assert "sae-sweeps evaluate" in text  # base has no absorption
    assert page([one], "").count('id="comparison"') == 0


def test_runs_that_cannot_be_matched_are_refused(runs, tmp_path, capsys):
    for name, f_NLF, about in (
        ("hook", random_activations(), {"hook": "u"}),
        ("text", random_activations(context=9), {}),
    ):
        other = write_features(tmp_path / name, f_NLF, **about)
        assert main(["compare", str(runs[0]), str(other)]) == 2
        values = {"hook": "blocks.1.hook_resid_post and u", "text": "other tokens of words"}[name]
        assert f"base and {name} differ in {name} ({values})" in capsys.readouterr().err
    assert main(["compare", str(runs[0]), str(runs[0])]) == 2
    assert "hold 1 run; give two" in capsys.readouterr().err
