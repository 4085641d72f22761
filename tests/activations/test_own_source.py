"""A kind of text that is not this project's: registered, configured, part of the run id, and read like the others."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from omegaconf import OmegaConf

from sae_sweeps.activations.document import Document
from sae_sweeps.activations.text import documents
from sae_sweeps.cli.compose import compose_points
from sae_sweeps.config import data
from sae_sweeps.config.data import TextSource, data_digest, register
from sae_sweeps.config.identity import run_id
from sae_sweeps.config.run import RunConfig, run_config
from sae_sweeps.config.schema import DataConfig
from sae_sweeps.errors import ConfigError, DataError


@dataclass
class OwnConfig:
    number: int = 50
    path: str | None = None


def read(config: OwnConfig) -> Iterator[tuple[str, str] | Document]:
    for i in range(config.number):
        yield (f"pair {i}", f"Text number {i}.") if i % 2 else Document(f"document {i}", f"Text number {i}.", 1)


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_registered", {})
    monkeypatch.setattr(data, "KINDS_WITH_ROLES", set())
    register("own", TextSource(("held_out",), documents=read, config=OwnConfig, digest="1"))


def run_with(**keys: object) -> RunConfig:
    (point,) = compose_points([])
    OmegaConf.set_struct(point.cfg, False)
    for key, value in {"name": "own", "kind": "own", **keys}.items():
        point.cfg.data[key] = value
    return run_config(point.cfg)


def test_documents_and_pairs_are_split_by_their_text() -> None:
    cfg = run_with(number=60, held_out=0.3).data
    train, held_out = (list(documents(cfg, split)) for split in ("train", "held_out"))
    assert len(train) + len(held_out) == 60 and 5 < len(held_out) < 35
    assert {doc.role for doc in train if doc.name.startswith("document")} == {1}


def test_its_keys_its_code_and_its_files_are_part_of_the_run_id(tmp_path) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"one")
    runs = [run_with(), run_with(number=51), run_with(path=str(file))]
    ids = [run_id(run) for run in runs]
    file.write_bytes(b"two")
    ids.append(run_id(runs[2]))
    register("own", TextSource(("held_out",), documents=read, config=OwnConfig, digest="2"))
    ids.append(run_id(runs[0]))
    assert len(set(ids)) == 5
    recorded = runs[1].to_dict()
    assert recorded["data"]["number"] == 51 and "own" not in recorded["data"]
    assert run_config(OmegaConf.create(recorded)).data.own == OwnConfig(51)


def test_what_is_no_document_a_taken_name_and_a_wrong_key_are_refused() -> None:
    register("own", TextSource(documents=lambda cfg: iter(["text alone"])))
    with pytest.raises(DataError, match="data=own: its documents give a str, which is neither"):
        list(documents(DataConfig(name="own", kind="own"), "train"))
    with pytest.raises(ConfigError, match="data.kind=jsonl: this name is taken"):
        register("jsonl", TextSource(documents=read))
    with pytest.raises(ConfigError, match="has no function that gives its documents"):
        register("other", TextSource())
    with pytest.raises(ConfigError, match="data.kind=other is not known; choose one of builtin, .*, own"):
        data_digest(DataConfig(kind="other"))
    register("own", TextSource(documents=read, config=OwnConfig))
    with pytest.raises(ConfigError, match="data.number=many: must be a whole number"):
        run_with(number="many")
