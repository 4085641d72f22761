"""An SAE without a run, evaluated on another model than its own: the audit names which is which."""

import shutil

import pytest

from analysis.auditing.audit import audit
from analysis.reading.records import records
from tests.sweeps.commands import run

pytestmark = pytest.mark.slow


def test_an_exported_sae_on_another_model(tiny_gpt_neox_folder, tiny_llama_folder, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(
        "\n\n".join(f"number {n} of a text with {n * n} words, and then {n % 7} more." * 9 for n in range(150))
    )
    data = [f"data={text}", "data.context=64"]
    small = ["layer=1", "num_tokens=1000", "batch_size=100", "d_sae=64", "k=4", "eval=none"]
    run(f"model={tiny_gpt_neox_folder}", *data, *small, f"outputs={tmp_path / 'outputs'}")
    (trained,) = (tmp_path / "outputs" / "runs").iterdir()
    shutil.copytree(trained / "sae", tmp_path / "mine")
    words = [*data, "eval=core", f"outputs={tmp_path / 'other'}"]
    done = run("evaluate", tmp_path / "mine", f"model={tiny_llama_folder}", *words, module="sae_sweeps")
    wrong = f"trained on model {tiny_gpt_neox_folder}, evaluated on {tiny_llama_folder}"
    assert wrong in " ".join(done.stdout.split())
    (finding,) = [f for f in audit(records([tmp_path / "mine"])) if f.level == "error"]
    assert finding.code == "eval-model" and finding.sentence == f"{wrong}."
    assert "; evaluate it on the model" in " ".join(
        run("audit", tmp_path / "mine", module="analysis", expect=1).stdout.split()
    )
    run("evaluate", tmp_path / "mine", *words, module="sae_sweeps")  # on its own model, which its cfg.json names
    assert [f for f in audit(records([tmp_path / "mine"])) if f.level == "error"] == []
