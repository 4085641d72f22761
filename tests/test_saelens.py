"""The exported format. That SAELens itself reads it: scripts/check_saelens.py, in an environment of its own."""

import importlib.util
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from bounds import Rounding, gamma
from torch import Tensor

from sae_sweeps.architectures.saelens import ExportedSAE, load, save
from sae_sweeps.errors import DamagedFile, DataError

D_IN, D_SAE, K = 5, 12, 3


def make_sae(architecture: str = "topk", dtype: torch.dtype = torch.float32) -> ExportedSAE:
    generator = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (D_IN, D_SAE), "b_enc": (D_SAE,), "W_dec": (D_SAE, D_IN), "b_dec": (D_IN,)}
    weights = {name: torch.randn(*shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    k = K if architecture == "topk" else None
    return ExportedSAE(architecture, weights, k, "blocks.2.hook_resid_post", "tiny", {"context_size": 128})


def inputs(n: int = 20) -> Tensor:
    return torch.randn(n, D_IN, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("architecture", ["standard", "topk"])
def test_encode_and_decode_are_the_formulas(architecture: str) -> None:
    sae, x_BD = make_sae(architecture).to(dtype=torch.float64), inputs().double()
    w = {name: weight.tolist() for name, weight in sae.weights.items()}
    with Rounding() as rounding:
        f_BF = sae.encode(x_BD)
        y_BD = sae.decode(f_BF)
    for x, f, y in zip(x_BD.tolist(), f_BF, y_BD, strict=True):
        z = [sum((x[d] - w["b_dec"][d]) * w["W_enc"][d][j] for d in range(D_IN)) + w["b_enc"][j] for j in range(D_SAE)]
        kept = sorted(range(D_SAE), key=lambda j: -z[j])[:K] if architecture == "topk" else range(D_SAE)
        expected = [max(z[j], 0) if j in kept else 0 for j in range(D_SAE)]
        rounding.assert_close(expected, f, factor=2)
        y_expected = [sum(expected[j] * w["W_dec"][j][d] for j in range(D_SAE)) + w["b_dec"][d] for d in range(D_IN)]
        rounding.assert_close(y_expected, y, factor=2)


def test_what_is_not_a_number_leaves_the_other_features_their_values() -> None:
    sae, x_BD = make_sae(), inputs()
    whole = sae.encode(x_BD)
    sae.weights["W_enc"] = sae.weights["W_enc"].clone()
    sae.weights["W_enc"][:, 0] = float("nan")
    f_BF = sae.encode(x_BD)
    assert f_BF[:, 0].isnan().all() and ((f_BF[:, 1:] == whole[:, 1:]) | (f_BF[:, 1:] == 0)).all()
    assert (f_BF[:, 1:] > 0).any()


def test_leading_dimensions_do_not_matter() -> None:
    sae, x_BD = make_sae(), inputs(24)
    assert torch.equal(sae.encode(x_BD.view(4, 6, D_IN)).view(24, D_SAE), sae.encode(x_BD))


@pytest.mark.parametrize("architecture", ["standard", "topk"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_saved_is_loaded(architecture: str, dtype: torch.dtype, tmp_path: Path) -> None:
    sae = make_sae(architecture, dtype)
    save(sae, tmp_path / "sae")
    assert sorted(p.name for p in (tmp_path / "sae").iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    back = load(tmp_path / "sae")
    assert (back.architecture, back.k, back.hook_name, back.model_name) == (architecture, sae.k, sae.hook_name, "tiny")
    assert back.metadata["context_size"] == 128
    assert all(
        torch.equal(back.weights[name], w) and back.weights[name].dtype == dtype for name, w in sae.weights.items()
    )
    save(back, tmp_path / "again")
    assert (tmp_path / "again" / "cfg.json").read_text() == (tmp_path / "sae" / "cfg.json").read_text()


def test_cfg_is_what_saelens_reads(tmp_path: Path) -> None:
    save(make_sae(), tmp_path / "sae")
    cfg = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    expected = {"architecture": "topk", "d_in": D_IN, "d_sae": D_SAE, "k": K, "dtype": "float32", "device": "cpu"}
    expected |= {"apply_b_dec_to_input": True, "normalize_activations": "none", "rescale_acts_by_decoder_norm": False}
    assert expected.items() <= cfg.items()
    assert cfg["metadata"]["hook_name"] == "blocks.2.hook_resid_post"
    assert cfg["metadata"]["sae_lens_version"].startswith("6.")  # else it is read by the rules of older formats


def test_an_older_export_is_replaced_whole_or_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "sae"
    save(make_sae("standard"), folder)
    (folder / "left-over").touch()
    save(make_sae("topk"), folder)
    assert load(folder).architecture == "topk" and not (folder / "left-over").exists()

    def fails(*_: object) -> None:
        raise RuntimeError("killed")

    for step in ("write_json", "os.rename"):
        with monkeypatch.context() as patch:
            patch.setattr(f"sae_sweeps.architectures.saelens.{step}", fails)
            with pytest.raises(RuntimeError):
                save(make_sae("standard"), folder)
        assert load(folder).architecture == "topk"
    assert [p.name for p in tmp_path.iterdir()] == ["sae"]


def test_decoder_norms_and_input_bias_of_other_saelens_folders(tmp_path: Path) -> None:
    folder, sae, x_BD = tmp_path / "sae", make_sae().to(dtype=torch.float64), inputs().double()
    save(sae, folder)
    cfg = json.loads((folder / "cfg.json").read_text())
    cfg |= {"rescale_acts_by_decoder_norm": True, "apply_b_dec_to_input": False}
    (folder / "cfg.json").write_text(json.dumps(cfg))
    W_enc, b_enc, W_dec, b_dec = (sae.weights[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec"))
    norm_F = W_dec.norm(dim=1)
    loaded, rounding = load(folder), Rounding()
    with rounding:
        z_BF = (x_BD @ W_enc + b_enc) * norm_F
        f_BF = z_BF.relu() * (z_BF >= z_BF.topk(K).values[:, -1:])
        x_hat_BD = f_BF / norm_F @ W_dec + b_dec
    rounding.assert_close(loaded.encode(x_BD), f_BF, factor=2)
    rounding.assert_close(loaded.decode(f_BF), x_hat_BD, factor=2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architecture": "transformer"}, "architecture=transformer is not supported"),
        ({"architecture": None}, "no key architecture"),
        ({"k": None}, "no key k"),
        ({"k": D_SAE + 1}, "k=13 must be a whole number"),
        ({"dtype": "int8"}, "dtype=int8 is not known"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations=layer_norm is not supported"),
        ({"reshape_activations": "hook_q"}, "reshape_activations=hook_q is not supported"),
        ({"d_in": D_IN + 1}, "W_enc has shape [5, 12] where cfg.json has [6, 12]"),
    ],
)
def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path, change: dict, words: str) -> None:
    save(make_sae(), tmp_path / "sae")
    path = tmp_path / "sae" / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError) as caught:
        load(tmp_path / "sae")
    message = str(caught.value)
    assert words in message and str(tmp_path / "sae") in message and "\n" not in message


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    folder = tmp_path / "sae"
    save(make_sae(), folder)
    weights = folder / "sae_weights.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[:-10], whole[:20], b"", b"\xff" * 100):
        weights.write_bytes(damaged)
        with pytest.raises(DamagedFile, match="sae_weights.safetensors is damaged"):
            load(folder)
    safetensors.torch.save_file({"W_enc": make_sae().weights["W_enc"]}, weights)
    with pytest.raises(DataError, match="no tensor b_enc"):
        load(folder)
    weights.unlink()
    with pytest.raises(DataError, match="sae_weights.safetensors is missing"):
        load(folder)
    (folder / "cfg.json").write_text("[]")
    with pytest.raises(DamagedFile, match="cfg.json"):
        load(folder)
    with pytest.raises(DataError, match="missing"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("architecture", ["standard", "topk"])
def test_the_check_scripts_formulas_are_ours(architecture: str, tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "scripts" / "check_saelens.py"
    spec = importlib.util.spec_from_file_location("check_saelens", script)
    assert spec and spec.loader
    check = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check)
    sae = make_sae(architecture)
    save(sae, tmp_path / "sae")
    x_BD = check.random_activations(tmp_path / "sae")
    f_BF, x_hat_BD = check.with_formulas(tmp_path / "sae")(x_BD)
    bound = gamma(2 * (D_IN + D_SAE + 4), torch.float32)  # of both sums, relative to the largest number
    assert check.relative_difference(f_BF, sae.encode(x_BD)) < bound and (f_BF > 0).any()
    assert check.relative_difference(x_hat_BD, sae.decode(sae.encode(x_BD))) < bound
