"""SAEs as other libraries write them, beside the formulas that these libraries compute."""

import json

import numpy as np
import pytest
import torch
from bounds import Rounding
from safetensors.torch import save_file

from sae_sweeps.architectures import foreign
from sae_sweeps.errors import DamagedFile, DataError

D, F, K = 6, 16, 3


@pytest.fixture
def weights():
    generator = torch.Generator().manual_seed(0)

    def normal(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    return normal(D, F), normal(F), normal(F, D), normal(D), normal(F) / 2, normal(40, D)


def relu_top(z, k=K):
    z = z.relu()
    return torch.zeros_like(z).scatter_(1, (top := z.topk(k, dim=1)).indices, top.values)


def agrees(sae, x, f, x_hat):
    """Whether an SAE's features and reconstruction are these formulas'."""
    rounding = Rounding()
    with rounding:
        f, x_hat = f(), x_hat(f())
    rounding.assert_close(sae.encode(x), f, factor=4)
    rounding.assert_close(sae.decode(sae.encode(x)), x_hat, factor=4)


@pytest.mark.parametrize("named", [True, False])
def test_gemma_scope(tmp_path, weights, named):
    W_enc, b_enc, W_dec, b_dec, threshold, x = weights
    folder = tmp_path / ("gemma-scope-2b-pt-res" if named else "mine") / "layer_12" / "width_16k" / "average_l0_82"
    folder.mkdir(parents=True)
    arrays = {"W_enc": W_enc, "W_dec": W_dec, "b_enc": b_enc, "b_dec": b_dec, "threshold": threshold}
    np.savez(folder / "params.npz", **{name: array.numpy() for name, array in arrays.items()})
    sae = foreign.load(folder)
    z = x @ W_enc + b_enc
    agrees(sae, x, lambda: (x @ W_enc + b_enc).relu() * (z > threshold), lambda f: f @ W_dec + b_dec)
    assert foreign.folder_of(folder / "params.npz") == folder == foreign.folder_of(folder)
    wanted = ("google/gemma-2-2b", "blocks.12.hook_resid_post") if named else (None, None)
    assert (sae.model_name, sae.hook_name) == wanted


def sparsify(tmp_path, weights, **cfg):
    W_enc, b_enc, W_dec, b_dec, _, _ = weights
    folder = tmp_path / "run" / "layers.2.mlp"
    folder.mkdir(parents=True)
    (folder.parent / "config.json").write_text(
        json.dumps({"model": "some/model", "dataset": "some/text", "ctx_len": 64})
    )
    state = {"encoder.weight": W_enc.T.contiguous(), "encoder.bias": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    save_file(state, folder / "sae.safetensors")
    cfg = {"activation": "topk", "k": K, "num_latents": F, "d_in": D, "skip_connection": False} | cfg
    (folder / "cfg.json").write_text(json.dumps(cfg))
    return folder


def test_sparsify(tmp_path, weights):
    W_enc, b_enc, W_dec, b_dec, _, x = weights
    sae = foreign.load(sparsify(tmp_path, weights))
    agrees(sae, x, lambda: relu_top((x - b_dec) @ W_enc + b_enc), lambda f: f @ W_dec + b_dec)
    assert (sae.model_name, sae.hook_name) == ("some/model", "blocks.2.hook_mlp_out")
    assert sae.metadata == {"dataset_path": "some/text", "context_size": 64}


@pytest.mark.parametrize("cfg", [{"skip_connection": True}, {"transcode": True}, {"activation": "groupmax"}])
def test_what_sparsify_has_and_we_have_not_is_refused(tmp_path, weights, cfg):
    (name,) = cfg
    with pytest.raises(DataError, match=f"{name}={cfg[name]} is not supported"):
        foreign.load(sparsify(tmp_path, weights, **cfg))


def dictionary(folder, kind, state):
    folder.mkdir()
    torch.save(state, folder / "ae.pt")
    trainer = {"dict_class": kind, "layer": 2, "lm_name": "some/model", "submodule_name": "resid_post_layer_2"}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))
    return folder


@pytest.mark.parametrize("kind", foreign.DICTIONARIES)
def test_dictionary_learning(tmp_path, weights, kind):
    W_enc, b_enc, W_dec, b_dec, threshold, x = weights
    linear = {"encoder.weight": W_enc.T, "encoder.bias": b_enc, "decoder.weight": W_dec.T}
    matrices = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    r_mag, length = b_enc / 3, W_dec.norm(dim=1)
    state, f = {
        "AutoEncoder": (linear | {"bias": b_dec}, lambda: ((x - b_dec) @ W_enc + b_enc).relu() * length),
        "AutoEncoderNew": (linear | {"decoder.bias": b_dec}, lambda: (x @ W_enc + b_enc).relu()),
        "AutoEncoderTopK": (
            linear | {"b_dec": b_dec, "k": torch.tensor(K), "threshold": torch.tensor(-1.0)},
            lambda: relu_top((x - b_dec) @ W_enc + b_enc),
        ),
        "BatchTopKSAE": (
            linear | {"b_dec": b_dec, "k": torch.tensor(K), "threshold": torch.tensor(0.5)},
            lambda: (z := ((x - b_dec) @ W_enc + b_enc).relu()) * (z > 0.5),
        ),
        "MatryoshkaBatchTopKSAE": (
            matrices | {"k": torch.tensor(K), "threshold": torch.tensor(-1.0)},
            lambda: ((x - b_dec) @ W_enc + b_enc).relu(),
        ),
        "GatedAutoEncoder": (
            {
                "encoder.weight": W_enc.T,
                "decoder.weight": W_dec.T,
                "decoder_bias": b_dec,
                "r_mag": r_mag,
                "gate_bias": b_enc,
                "mag_bias": threshold,
            },
            lambda: (((x - b_dec) @ W_enc + b_enc) > 0) * (r_mag.exp() * ((x - b_dec) @ W_enc) + threshold).relu(),
        ),
        "JumpReluAutoEncoder": (
            matrices | {"threshold": threshold},
            lambda: ((z := x @ W_enc + b_enc) * (z > threshold)).relu(),
        ),
    }[kind]
    sae = foreign.load(dictionary(tmp_path / "trainer_0", kind, {name: t.clone() for name, t in state.items()}))
    scale = length if kind == "AutoEncoder" else torch.ones(F)
    agrees(sae, x, f, lambda f: f / scale @ W_dec + b_dec)
    assert (sae.model_name, sae.hook_name, sae.metadata["context_size"]) == (
        "some/model",
        "blocks.2.hook_resid_post",
        128,
    )


@pytest.mark.parametrize("given", [K, None])
def test_k_of_an_earlier_dictionary_learning(given, tmp_path, weights):
    W_enc, b_enc, W_dec, b_dec, *_ = weights
    state = {"encoder.weight": W_enc.T, "encoder.bias": b_enc, "decoder.weight": W_dec.T, "b_dec": b_dec}
    folder = dictionary(tmp_path / "trainer_0", "AutoEncoderTopK", {name: t.clone() for name, t in state.items()})
    config = json.loads((folder / "config.json").read_text())
    config["trainer"]["k"] = given
    (folder / "config.json").write_text(json.dumps(config))
    if given is None:
        with pytest.raises(DataError, match="ae.pt has no k, and .*config.json none either"):
            foreign.load(folder)
    else:
        assert foreign.load(folder).k == K


def test_a_pickle_with_code_is_not_run(tmp_path, weights):
    class Code:
        def __reduce__(self):
            return (exec, ("raise SystemExit('run')",))

    folder = dictionary(tmp_path / "trainer_0", "AutoEncoder", {"encoder.weight": Code()})
    with pytest.raises(DamagedFile, match="holds more than weights"):
        foreign.load(folder)


OLD = {
    "d_in": D, "d_sae": F, "dtype": "torch.float64", "device": "cpu", "model_name": "builtin",
    "hook_name": "blocks.2.hook_resid_post", "hook_layer": 2, "activation_fn_str": "relu", "activation_fn_kwargs": {},
    "apply_b_dec_to_input": True, "finetuning_scaling_factor": False, "prepend_bos": False, "context_size": 128,
    "normalize_activations": "none", "dataset_path": "builtin",
}  # fmt: skip


def saelens_folder(folder, weights, **cfg):
    W_enc, b_enc, W_dec, b_dec, threshold, _ = weights
    folder.mkdir()
    state = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec, "threshold": threshold}
    save_file(state, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(OLD | cfg))
    return folder


@pytest.mark.parametrize(
    "cfg, architecture",
    [
        ({}, "standard"),
        ({"architecture": "standard"}, "standard"),
        ({"architecture": "jumprelu"}, "jumprelu"),
        ({"architecture": "topk", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}, "topk"),
        ({"architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}, "topk"),
        ({"normalize_activations": False}, "standard"),
        ({"normalize_activations": None, "apply_b_dec_to_input": False}, "standard"),
    ],
)
def test_saelens_3_to_5(tmp_path, weights, cfg, architecture):
    W_enc, b_enc, W_dec, b_dec, threshold, x = weights
    sae = foreign.load(saelens_folder(tmp_path / "sae", weights, **cfg))

    def f():
        z = (x - b_dec * cfg.get("apply_b_dec_to_input", True)) @ W_enc + b_enc
        return {"standard": z.relu(), "jumprelu": z.relu() * (z > threshold), "topk": relu_top(z)}[architecture]

    agrees(sae, x, f, lambda f: f @ W_dec + b_dec)
    assert sae.architecture == architecture and sae.metadata["prepend_bos"] is False
    assert (sae.model_name, sae.hook_name) == ("builtin", "blocks.2.hook_resid_post")


@pytest.mark.parametrize(
    "cfg, words",
    [
        ({"activation_fn_str": "tanh-relu"}, "activation_fn_str=tanh-relu is not supported"),
        ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor is not supported"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations=layer_norm is not supported"),
        ({"architecture": "transcoder"}, "architecture=transcoder is not supported"),
        ({"activation_fn_str": "topk"}, "has no key k"),
    ],
)
def test_what_saelens_had_and_we_have_not_is_refused(tmp_path, weights, cfg, words):
    with pytest.raises(DataError, match=words):
        foreign.load(saelens_folder(tmp_path / "sae", weights, **cfg))


@pytest.mark.parametrize("name", ["params.npz", "ae.pt", "sae.safetensors", "sae_weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"\x80\x04."])
def test_damaged_weights_are_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    (tmp_path / "cfg.json").write_text(json.dumps(OLD))
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": "AutoEncoder"}}))
    with pytest.raises(DamagedFile, match=f"{name} is damaged"):
        foreign.load(tmp_path)


def test_a_damaged_description_is_named(tmp_path):
    (tmp_path / "sae_weights.safetensors").write_bytes(b"")
    (tmp_path / "cfg.json").write_text("{")
    with pytest.raises(DamagedFile, match="cfg.json is damaged .*export the SAE again"):
        foreign.load(tmp_path)


def test_a_description_of_another_kind_is_refused(tmp_path):
    folder = dictionary(tmp_path / "trainer_0", "IdentityDict", {})
    with pytest.raises(DataError, match="dict_class=IdentityDict is not supported; choose one of AutoEncoder"):
        foreign.load(folder)
    assert foreign.folder_of(tmp_path) is None
