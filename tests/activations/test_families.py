"""On every family each hook is what its name means, and a replaced one reaches the logits by way of the stream alone.

Five families in the suite, which between them scale terms and logits, add in place, norm terms and add the residual
within a module; all of them with TEST_FAMILIES=all (`make test-families`).
"""

import os
from contextlib import ExitStack
from functools import cache, partial
from types import SimpleNamespace

import pytest
import torch
from bounds import assert_within, gamma

from sae_sweeps.activations.language_model import LanguageModel, _check_tokenizer
from sae_sweeps.config.hooks import hook_in_block
from sae_sweeps.config.schema import LayerConfig
from sae_sweeps.errors import ConfigError, DataError
from sae_sweeps.evaluation.preservation import log_probabilities, next_token_loss
from sae_sweeps.lens import Lens, Site, hook_width
from scripts.families import FAMILIES, HOOKS, N_NAMED, PAGE, cell, language_model, make, table

ALL = os.environ.get("TEST_FAMILIES") == "all"
NAMED = list(FAMILIES)[:N_NAMED] if ALL else ["Granite", "Falcon", "BLOOM", "Gemma 2", "GPT-2"]
ODD = list(FAMILIES)[N_NAMED:] if ALL else ["OPT-350m, norms last", "Falcon-RW"]
NO_MID = ("GPT-J", "GPTNeoX", "Phi", "Falcon", "Cohere")
"""Attention and MLP side by side: no stream between them."""
OWN_ATTENTION = ("GPT-2", "GPT-J", "OPT", "BLOOM", "Falcon", "MPT", "Cohere")
"""TransformerLens computes attention or rotary positions by formulas of its own, which round otherwise."""

loaded = cache(language_model)


@pytest.fixture(scope="module")
def tokens_SL():
    return torch.randint(3, 384, (2, 12), generator=torch.Generator().manual_seed(0))


def pass_with(lm: LanguageModel, tokens_SL, hook: str, change):
    """Stream and terms of layer 1, and logits, of one pass in which `hook` becomes change(x)."""
    site = lm.site(LayerConfig(hook, 1))
    found = {}

    def place(name: str) -> Site:
        if site.model is lm.model:
            return lm.site(LayerConfig(name, 1))
        return Site(site.model, lm._lens.point(1, hook_in_block(name)), "point")

    def keep(name: str, x_SLD) -> None:
        found[name] = x_SLD.clone()

    places = {name: place(name) for name in ("resid_pre", "attn_out", "mlp_out", "resid_post")}
    with ExitStack() as stack, torch.no_grad():
        stack.enter_context(site.hooked(tokens_SL, change))
        for name, here in places.items():
            if here.model is site.model:
                stack.enter_context(here.hooked(tokens_SL, partial(keep, name)))
        found["logits"] = site.model(tokens_SL, use_cache=False).logits
    return found


def assert_adds_up(terms: dict) -> None:
    pre, attn, mlp, post = (terms[name].double() for name in ("resid_pre", "attn_out", "mlp_out", "resid_post"))
    bound = gamma(3, torch.float32) * (pre.abs() + attn.abs() + mlp.abs())
    assert_within(post, pre + attn + mlp, bound)


@pytest.mark.parametrize("family", NAMED)
def test_the_stream_and_the_two_terms_add_up_as_they_are_and_replaced(family, tokens_SL):
    lm = loaded(family)
    hooks = ("attn_out", "mlp_out") if family in NO_MID else ("attn_out", "mlp_out", "resid_mid")
    for hook in hooks:
        site = lm.site(LayerConfig(hook, 1))
        plain = pass_with(lm, tokens_SL, hook, lambda x_SLD: None)
        y_SLD = torch.flip(lm.activations(tokens_SL, LayerConfig(hook, 1)), (1,))
        changed = pass_with(lm, tokens_SL, hook, lambda _, y_SLD=y_SLD: y_SLD.clone())
        if hook == "resid_mid":
            if "mlp_out" in changed:  # Granite's is not on the model's own modules
                bound = gamma(3, torch.float32) * (y_SLD.abs() + changed["mlp_out"].abs())
                assert_within(changed["resid_post"], y_SLD.double() + changed["mlp_out"].double(), bound)
        else:
            assert_adds_up(plain)
            assert_adds_up(changed)
            assert torch.equal(changed[hook], y_SLD) and not torch.equal(plain[hook], y_SLD)
        # The same stream after the layer gives the same logits, to the bit: nothing else has carried the change
        assert not torch.equal(changed["logits"], plain["logits"])
        after = changed["resid_post"]
        if site.model is lm.model:
            assert torch.equal(lm.unembed(lm.resume(tokens_SL, LayerConfig("resid_post", 1), after)), changed["logits"])
            assert torch.equal(lm.unembed(lm.resume(tokens_SL, LayerConfig(hook, 1), y_SLD)), changed["logits"])


@pytest.mark.parametrize("family", NAMED)
def test_the_loss_and_the_logits_are_the_models_own(family, tokens_SL):
    lm = loaded(family)
    with torch.no_grad():
        own = lm.model(tokens_SL, labels=tokens_SL)
    for hook in ("resid_pre", "resid_post", "mlp_out"):
        layer = LayerConfig(hook, 1)
        x_SLD = lm.activations(tokens_SL, layer)
        before = x_SLD.clone()
        logits_SLV = lm.unembed(lm.resume(tokens_SL, layer, x_SLD))
        assert torch.equal(x_SLD, before)  # Falcon adds to what it is given in place
        if lm.site(layer).model is lm.model:
            assert torch.equal(logits_SLV, own.logits)
        loss = next_token_loss(log_probabilities(logits_SLV), tokens_SL).mean()
        torch.testing.assert_close(loss, own.loss, rtol=1e-5, atol=0)


@pytest.mark.parametrize("family", NAMED)
def test_hooks_on_the_models_modules_give_the_bits_of_the_bridge(family, tokens_SL):
    model = make(family)
    model.set_attn_implementation("eager")  # as TransformerLens computes attention
    lm = LanguageModel(model, loaded(family).tokenizer)
    lens, n_compared = Lens(model), 0
    for hook in HOOKS:
        if cell(lm, hook) != "right":
            continue
        layer = LayerConfig(hook, 1)
        point = Site(lens.model, lens.point(1, hook_in_block(hook)), "point")
        with torch.no_grad():
            expected = lm._read(lens.model, {0: point}, tokens_SL)[0]
        found = lm.activations(tokens_SL, layer)
        if family in OWN_ATTENTION:
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
        else:
            assert torch.equal(found, expected), hook
        n_compared += 1
    assert n_compared >= 6


@pytest.mark.parametrize("family", NAMED)
def test_the_model_is_left_as_it_was_and_its_tokenizer_is_checked(family, tokens_SL):
    model = make(family)
    with torch.no_grad():
        before = model(tokens_SL).logits
        lm = LanguageModel(model, loaded(family).tokenizer)
        lm.site(LayerConfig("attn_out", 1))
        assert torch.equal(model(tokens_SL).logits, before)
    rows = model.get_input_embeddings().weight.shape[0]
    _check_tokenizer("m", SimpleNamespace(get_vocab=lambda: {"a": 0, "b": rows - 1}), model)
    with pytest.raises(DataError, match=rf"embeds {rows} tokens and its tokenizer has 1 beyond \(c\)"):
        _check_tokenizer("m", SimpleNamespace(get_vocab=lambda: {"a": 0, "c": rows}), model)


@pytest.mark.parametrize("family", ["Granite", "GPT-2"])
def test_widths_are_read_without_the_model(family, tmp_path):
    lm = loaded(family)
    lm.model.config.save_pretrained(tmp_path)
    for hook in ("attn.hook_z", "mlp.hook_post", "attn.hook_k", "ln2.hook_scale"):
        assert hook_width(tmp_path / "config.json", hook) == lm.width(LayerConfig(hook, 1))


@pytest.mark.parametrize("family", ODD)
def test_a_family_whose_terms_do_not_add_up_is_refused_by_name(family, tokens_SL):
    lm = loaded(family)
    refused = {hook for hook in ("attn_out", "mlp_out", "resid_mid") if cell(lm, hook) not in ("right", "bridge")}
    if family.startswith(("OPT", "BLOOM", "Falcon")):
        assert refused == {"attn_out", "mlp_out", "resid_mid"}
        with pytest.raises(ConfigError, match=f"layer.hook.*{lm.family}.*use resid_pre or resid_post"):
            lm.activations(tokens_SL, LayerConfig("mlp_out", 1))
    for hook in ("resid_pre", "resid_post"):
        x_SLD = lm.activations(tokens_SL, LayerConfig(hook, 1))
        with torch.no_grad():
            assert torch.equal(
                lm.unembed(lm.resume(tokens_SL, LayerConfig(hook, 1), x_SLD)), lm.model(tokens_SL).logits
            )


@pytest.mark.skipif(not ALL, reason="TEST_FAMILIES=all")
def test_the_page_has_the_table_as_it_is():
    assert table() in PAGE.read_text()
