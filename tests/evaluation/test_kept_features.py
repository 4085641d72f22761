"""What is kept of features, against plain loops over the whole text at once."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from analysis.features.stored import AXES
from sae_sweeps.config.evaluations import EvalConfig, FeaturesConfig
from sae_sweeps.config.schema import LayerConfig
from sae_sweeps.evaluation import features
from sae_sweeps.evaluation.batches import is_plain
from sae_sweeps.evaluation.examples import BINS, draws
from sae_sweeps.evaluation.features import collect, neighbours, token_texts
from sae_sweeps.evaluation.unembedded import logit_effects
from tests.evaluation.toy_lm import D_SAE, ToyLM, toy_sae, toy_tokens

N, L = 11, 8
CFG = FeaturesConfig(examples=3, samples=5, before=2, after=1, nearest=4)
LABEL_NL = (torch.arange(N)[:, None] % 3 - 1).expand(N, L)


def collected(saes, llm_batch, tokens_NL):
    shared = SimpleNamespace(
        lm=ToyLM(), layer=LayerConfig(), cfg=EvalConfig(llm_batch=llm_batch), begin=lambda *a: None, advance=lambda n: 0
    )
    return collect(saes, shared, CFG, tokens_NL, torch.ones_like(tokens_NL, dtype=torch.bool), LABEL_NL, 2)


@pytest.fixture(params=["topk", "standard"])
def case(request):
    sae, tokens_NL = toy_sae(architecture=request.param), toy_tokens(N)
    plain_NL = is_plain(tokens_NL, ToyLM.special_ids)
    f_NLF = sae.encode(ToyLM().activations(tokens_NL, LayerConfig())) * plain_NL[..., None]
    return sae, tokens_NL, plain_NL, f_NLF


def test_counts_examples_and_histograms(case):
    sae, tokens_NL, plain_NL, f_NLF = case
    found = collected({"it": sae}, 4, tokens_NL)["it"].arrays()
    assert found["n_tokens"] == plain_NL.sum()
    torch.testing.assert_close(torch.from_numpy(found["total"]), f_NLF.sum((0, 1)))
    for j in range(D_SAE):
        f_NL = f_NLF[..., j]
        assert found["n_active"][j] == (f_NL > 0).sum() and found["n_contexts"][j] == (f_NL > 0).any(1).sum()
        for label in range(2):
            assert found["label_active"][j, label] == (f_NL[LABEL_NL == label] > 0).sum()
        end = found["end"][j]
        if f_NL.any():
            assert end / 2 <= f_NL.max() < end and np.log2(end) % 1 == 0
        counts = np.histogram(f_NL[f_NL > 0], BINS, (0, end or 1))[0]
        assert found["histogram"][j].tolist() == counts.tolist()

        strongest = sorted((-f_NL[n].max(), n * L + int(f_NL[n].argmax())) for n in range(N))
        expected = [place for value, place in strongest if value < 0][: CFG.examples]
        assert found["top_place"][: len(expected), j].tolist() == expected
        assert (found["top_place"][len(expected) :, j] == -1).all()
        active = (f_NL.flatten() > 0).nonzero()[:, 0]
        drawn = active[draws(active, torch.full_like(active, j), D_SAE, 42).argsort(descending=True)[: CFG.samples]]
        places = found["drawn_place"][:, j]
        assert set(places[places >= 0].tolist()) == set(drawn.tolist())
        for kind in ("top", "drawn"):
            for place, around in zip(found[f"{kind}_place"][:, j], found[f"{kind}_around"][:, j], strict=True):
                n, at = divmod(int(place), L)
                for offset, value in zip(range(-CFG.before, CFG.after + 1), around, strict=True):
                    here = place >= 0 and 0 <= at + offset < L
                    assert value == pytest.approx(float(f_NL[n, at + offset]) if here else 0.0, rel=1e-6)
    assert (np.diff(found["drawn_around"][..., CFG.before], axis=0) <= 0).all()


def test_batches_and_company_change_nothing(case):
    sae, tokens_NL, *_ = case
    alone = collected({"it": sae}, 1, tokens_NL)["it"].arrays()
    beside = collected({"other": toy_sae(1), "it": sae}, 7, tokens_NL)["it"].arrays()
    for name, array in alone.items():
        np.testing.assert_allclose(array, beside[name], rtol=1e-12, err_msg=name)


def test_neighbours_and_what_is_kept_whole(case, monkeypatch):
    sae, tokens_NL, plain_NL, f_NLF = case
    n_active = int((f_NLF > 0).sum())
    monkeypatch.setattr(features, "MOST_KEPT", n_active // 2)
    found = collected({"it": sae}, 4, tokens_NL)["it"]
    kept = found.kept.arrays(L)
    stride = next(s for s in (2, 4, 8, 16) if (f_NLF[::s] > 0).sum() <= n_active // 2)
    part = f_NLF[::stride].reshape(-1, D_SAE)
    dense = np.zeros(part.shape)
    dense[np.repeat(np.arange(len(part)), kept["kept_count"]), kept["kept_feature"]] = kept["kept_value"]
    np.testing.assert_allclose(dense, part, rtol=1e-6)
    near = neighbours(sae, found, CFG.nearest)
    assert found.arrays().keys() | near.keys() | {"tokens"} == AXES.keys()  # what pages demand
    unit = torch.nn.functional.normalize(sae.weights["W_dec"].float(), dim=1)
    cosine, fires = (unit @ unit.T).numpy(), part.numpy() > 0
    for j in range(D_SAE):
        others = [i for i in range(D_SAE) if i != j]
        overlap = {i: (fires[:, i] & fires[:, j]).sum() / max((fires[:, i] | fires[:, j]).sum(), 1) for i in others}
        best = sorted(others, key=lambda i: -abs(cosine[i, j]))[: CFG.nearest]
        assert near["cosine_nearest"][j].tolist() == best
        np.testing.assert_allclose(near["cosine"][j], cosine[best, j], atol=1e-6)
        np.testing.assert_allclose(near["overlap"][j], sorted(overlap.values(), reverse=True)[: CFG.nearest], rtol=1e-6)
        for i, value in zip(near["overlap_nearest"][j], near["overlap"][j], strict=True):
            assert value == pytest.approx(overlap[i] if i >= 0 else 0.0)


def test_logits_go_through_the_models_own_norm():
    lm, W_dec = ToyLM(), toy_sae().weights["W_dec"]
    effect_FV = lm.unembed(W_dec.tanh()).float()  # its norm is tanh, which gives 0 for zeros
    raised, logits, lowered, least = logit_effects(W_dec, lm, LayerConfig("resid_post", 0), 3)
    assert torch.equal(raised, effect_FV.topk(3).indices) and torch.equal(least, effect_FV.sort().values[:, :3])
    torch.testing.assert_close(logits, effect_FV.gather(1, raised))
    torch.testing.assert_close(least, effect_FV.gather(1, lowered))
    assert logit_effects(W_dec, lm, LayerConfig("attn.hook_z", 0), 3) is None


def test_tokens_that_are_no_text_have_their_name():
    def decode(ids):
        return "a\N{REPLACEMENT CHARACTER}" if ids == [1] else "<b>"

    tokenizer = SimpleNamespace(decode=decode, convert_ids_to_tokens=lambda i: f"name{i}")
    assert token_texts(tokenizer, [0, 1]) == {0: "<b>", 1: "name1"}
