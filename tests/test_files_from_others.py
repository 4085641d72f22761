"""Files from elsewhere run no code, take no more memory than they hold and lead to no other folder; and tokens stay out
of everything that is written."""

from __future__ import annotations

import ast
import io
import json
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf

from analysis.text import clean
from sae_sweeps.architectures import saelens
from sae_sweeps.cli.command import main
from sae_sweeps.config.typed import typed
from sae_sweeps.errors import ConfigError, DamagedFile, DataError
from sae_sweeps.storage.arrays import SMALL, read_npz
from sae_sweeps.storage.files import read_json, read_yaml
from sae_sweeps.storage.rows import RowFile
from sae_sweeps.storage.secrets import without_secrets
from sae_sweeps.storage.sweep_folder import read_manifest

ROOT = Path(__file__).parents[1]
PACKAGES = ("sae_sweeps", "analysis", "hydra_plugins")
PRODUCT = sorted([ROOT / "launch.py", *(file for name in PACKAGES for file in (ROOT / name).rglob("*.py"))])
UNPICKLING = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
WEIGHTS_ALONE = "sae_sweeps/architectures/foreign.py"
"""The importer of ae.pt, which is a pickle: read by torch with weights_only=True."""
BY_NAME = {"sae_sweeps/config/plugins.py", "sae_sweeps/builtin/text/corpus.py"}
"""Import modules by name: components that a launch chose, and the standard library's texts."""


def calls(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {f"{w.arg}={getattr(w.value, 'value', w.value)}" for w in node.keywords}


def imported(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]


NEVER = ("torch.save", "eval", "exec", "os.system", "yaml.unsafe_load", "yaml.full_load")
NEEDED = {"torch.load": "weights_only=True", "np.load": "allow_pickle=False"}
PLACES = {"torch.load": {WEIGHTS_ALONE}, "importlib.import_module": BY_NAME, "__import__": BY_NAME}


def faults(place, code):
    """What a file of the product does that could run what it reads."""
    found = sorted(UNPICKLING & set(imported(code)))
    for name, words in calls(code):
        if name in NEVER or "shell=True" in words or name.endswith("apply_chat_template"):
            found.append(name)
        if (name in NEEDED and NEEDED[name] not in words) or place not in PLACES.get(name, {place}):
            found.append(name)
        if name.endswith(".from_pretrained") and "trust_remote_code=False" not in words:
            found.append(name)
    return found


def test_no_file_of_the_product_reads_pickles_or_runs_what_it_reads():
    found = {path.relative_to(ROOT).as_posix(): path.read_text() for path in PRODUCT}
    assert {place: wrong for place, code in found.items() if (wrong := faults(place, code))} == {}
    seen = [
        "from pickle import load", "import torch; torch.load(f)", "import numpy as np; np.load(f)", "eval(text)",
        "importlib.import_module(name)", "AutoModel.from_pretrained(name)", "subprocess.run(c, shell=True)",
    ]  # fmt: skip
    assert all(faults("sae_sweeps/a.py", code) for code in seen)


def npz(path, header, data=b""):
    """A file of one array, whose header is as given."""
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, header)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", content.getvalue() + data)
    return path


def test_arrays_are_as_large_as_they_are_said_to_be(tmp_path):
    path, four = tmp_path / "a.npz", {"descr": "<f4", "fortran_order": False, "shape": (1,)}
    assert read_npz(npz(path, four, b"\0" * 4))["a"].shape == (1,)
    for header, data in ((four | {"shape": (2**60,)}, b"\0" * 4), (four, b""), (four | {"descr": "|O"}, b"\0" * 8)):
        with pytest.raises(DamagedFile, match="is damaged"):
            read_npz(npz(path, header, data))
    np.savez(path, a=np.array([{}], dtype=object))
    with pytest.raises(DamagedFile, match="is damaged"):
        read_npz(path)
    np.savez_compressed(path, a=np.zeros(SMALL // 4 + 1, np.float32))
    with pytest.raises(DamagedFile, match="inflates more than 20 times"):
        read_npz(path)


class Written:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_an_ae_pt_with_more_than_weights_runs_nothing(tmp_path):
    from sae_sweeps.architectures import foreign

    (tmp_path / "ae.pt").write_bytes(pickle.dumps(Written(tmp_path / "executed")))
    (tmp_path / "config.json").write_text('{"trainer": {"dict_class": "AutoEncoder"}}')
    with pytest.raises(DamagedFile, match="holds more than weights"):
        foreign.load(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_yaml_without_tags_and_aliases(tmp_path):
    path = tmp_path / "config.yaml"
    bomb = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    for text in ("a: !!python/object/apply:os.getcwd []", bomb, "- a", "a: [", "\0", "a: " + "[" * 10000):
        path.write_text(text)
        with pytest.raises(DamagedFile, match="is damaged"):
            read_yaml(path)
    path.write_text("a: 'b * c'\nd: [1.0e-07, null]")
    assert read_yaml(path) == {"a": "b * c", "d": [1e-7, None]} == yaml.safe_load(path.read_text())
    with pytest.raises(DataError, match="is missing"):
        read_yaml(tmp_path / "none")


def test_json_that_is_nested_too_deeply_is_damaged(tmp_path):
    (tmp_path / "a.json").write_text("[" * 100000)
    (tmp_path / "rows.jsonl").write_text('{"step":' + "[" * 100000 + "\n")
    for read in (lambda: read_json(tmp_path / "a.json"), lambda: RowFile(tmp_path / "rows.jsonl").rows()):
        with pytest.raises(DamagedFile, match="is damaged"):
            read()


@pytest.mark.parametrize("run_id", ["../../elsewhere", "/etc", "..", "", "a/b", None])
def test_a_manifest_leads_to_no_other_folder(run_id, tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"runs": [{"run_id": run_id}]}))
    with pytest.raises(DamagedFile, match="a run without an id"):
        read_manifest(tmp_path)


TOKEN = "5ec4e7d" + "0" * 33
URL = "https://me:passW0rd@host/x"


@pytest.mark.parametrize(
    "words",
    [
        [f"title=run {TOKEN}"],
        [f"model={URL}"],
        ["model=hub", f"model.path={URL}"],
        [f"data.path={URL}"],
        ["title=hf_" + "aB3" * 12],
        ["title=${oc.env:WANDB_API_KEY}"],
        ["tags=['${oc.env:WANDB_API_KEY}']"],
        ["model.path=${oc.env:WANDB_API_KEY}"],
        ["logger=wandb", f"logger.entity={TOKEN}"],
        ["cluster=slurm", f"cluster.setup=[export WANDB_API_KEY={TOKEN}]"],
    ],
)
def test_a_token_in_the_config_is_refused_without_repeating_it(words, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", TOKEN)
    assert main(["model=synthetic", "k=4", "d_sae=64", f"outputs={tmp_path / 'o'}", *words]) == 2
    out, err = capsys.readouterr()
    assert "leave it to the environment" in err and err.count("\n") == 1 and words[-1].partition("=")[0] in err
    assert not any(secret in out + err for secret in (TOKEN, "passW0rd", "aB3aB3")) and not (tmp_path / "o").exists()


@dataclass
class Nested:
    pairs: dict[str, Any]


@pytest.mark.parametrize("value", [[[TOKEN, "b"]], [{"a": [[TOKEN]]}], {"a": [["b"], [[TOKEN]]]}])
def test_a_token_is_found_however_deep(value, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", TOKEN)
    with pytest.raises(ConfigError, match=r"eval\.pairs.*: holds the value of WANDB_API_KEY"):
        typed(Nested, OmegaConf.create({"pairs": {"of": value}}), "eval")


def test_what_is_printed_holds_no_token(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "abcdefgh1")
    monkeypatch.setenv("SHORT_TOKEN", "a")
    assert "passW0rd" not in clean(f"trained on {URL}")
    text = f"401 for {URL} with abcdefgh1 and hf_{'x' * 34}; 71767b4 at https://host/a:b, user@host: kept"
    assert (
        without_secrets(text)
        == "401 for https://***@host/x with *** and ***; 71767b4 at https://host/a:b, user@host: kept"
    )


def test_a_password_in_the_address_of_an_saes_model_is_in_no_result(tmp_path):
    weights = {"W_enc": np.eye(3, 4), "W_dec": np.eye(4, 3), "b_enc": np.zeros(4), "b_dec": np.zeros(3)}
    tensors = {name: torch.tensor(weight, dtype=torch.float32) for name, weight in weights.items()}
    sae = saelens.ExportedSAE("standard", tensors, hook_name="h", model_name=URL, metadata={"dataset_path": [URL]})
    saelens.save(sae, tmp_path)
    assert "passW0rd" in (tmp_path / "cfg.json").read_text()
    assert "passW0rd" not in json.dumps(saelens.load(tmp_path).cfg())


def test_code_of_a_config_is_of_no_module_that_nobody_wrote_for_it():
    from sae_sweeps.config.plugins import Code, component

    with pytest.raises(ConfigError, match="is not code of your own"):
        component("penalty", "mine", Code("antigravity.Penalty", None, "0" * 16))
