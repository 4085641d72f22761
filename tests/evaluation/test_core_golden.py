"""Against SAEBench 0.6.0 itself: its numbers for three SAEs on a random GPTNeoX, frozen.

`golden_core.safetensors` holds the language model, 28 contexts and the SAEs (one TopK with dead features, one standard,
one wholly dead whose reconstruction is zero); `golden_core.json` what SAEBench wrote about them, in float32, with
special tokens left out of the reconstruction and (`*_all`) with them in it.
Ours are computed in float64, so that they are the same on every processor: what differs is the rounding of SAEBench's
frozen numbers.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

from sae_sweeps.activations.language_model import LanguageModel
from sae_sweeps.architectures.saelens import ExportedSAE
from sae_sweeps.config.evaluations import EvalConfig
from sae_sweeps.config.schema import LayerConfig
from sae_sweeps.evaluation.core import CoreResult, evaluate_core

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / "golden_core.json").read_text())


@pytest.fixture(scope="module")
def results() -> dict[str, CoreResult]:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    with safe_open(HERE / "golden_core.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        config = json.loads(file.metadata()["config"])
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**config))
    model.load_state_dict({name[3:]: w for name, w in tensors.items() if name.startswith("lm.")})
    lm = LanguageModel(model.double(), SimpleNamespace(bos_token_id=0, eos_token_id=0, pad_token_id=1))
    use = {"context_size": 16, "prepend_bos": True, "dataset_path": "golden"}
    saes = {}
    for name in ("topk", "standard", "dead"):
        weights = {w: tensors[f"{name}.{w}"] for w in ("W_enc", "b_enc", "W_dec", "b_dec")}
        architecture, k = ("topk", 5) if name == "topk" else ("standard", None)
        sae = ExportedSAE(architecture, weights, k, "blocks.1.hook_resid_post", "tiny", use)
        saes[name] = sae.to(dtype=torch.float64)
    found = {}
    for exclude, suffix in ((True, ""), (False, "_all")):
        cfg = EvalConfig(batch_size=4, recon_batches=3, sparsity_batches=4, exclude_special_tokens=exclude)
        group = evaluate_core(saes, cfg, lm, LayerConfig(index=1), tensors["tokens"].long())
        found |= {name + suffix: result for name, result in group.items()}
    return found


@pytest.mark.parametrize("name", GOLDEN)
def test_every_metric_is_saebenchs(results: dict[str, CoreResult], name: str) -> None:
    ours, golden = results[name].to_json(), GOLDEN[name]
    assert list(ours) == golden["keys"]
    assert list(ours["eval_config"].items()) == list((golden["eval_config"] | {"llm_dtype": "float64"}).items())
    assert list(ours["eval_result_metrics"]) == list(golden["eval_result_metrics"])
    for group, metrics in golden["eval_result_metrics"].items():
        assert ours["eval_result_metrics"][group] == pytest.approx(metrics, rel=1e-5), group


@pytest.mark.parametrize("name", ["topk", "standard", "dead"])
def test_every_feature_statistic_is_saebenchs(results: dict[str, CoreResult], name: str) -> None:
    ours, golden = results[name].to_json()["eval_result_details"], GOLDEN[name]["eval_result_details"]
    assert list(ours[0]) == list(golden)
    for column, values in golden.items():
        assert [row[column] for row in ours] == pytest.approx(values, rel=1e-5, abs=1e-6), column


def test_nan_becomes_minus_one_in_the_file_only(results: dict[str, CoreResult]) -> None:
    dead = results["dead"]
    assert torch.tensor([dead.metrics["cossim"], dead.metrics["relative_reconstruction_bias"]]).isnan().all()
    assert dead.to_json()["eval_result_metrics"]["reconstruction_quality"]["cossim"] == -1
    assert any("dead" in warning for warning in dead.warnings)
    assert any("cossim" in warning for warning in dead.warnings)
