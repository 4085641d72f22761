import pytest
import torch

from sae_sweeps.config.evaluations import EvalConfig
from sae_sweeps.config.schema import LayerConfig
from sae_sweeps.errors import DamagedFile
from sae_sweeps.evaluation.shared import Memory, Shared


def shared(folder, memory=None):
    lm = type("LM", (), {"device": torch.device("cpu"), "dtype": torch.float32})()
    return Shared(EvalConfig(), lm, LayerConfig(), "m", "d", None, folder, memory=memory or Memory())


def test_what_is_kept_is_made_once_and_read_back(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"x": torch.arange(6).view(2, 3)[:, 1:], "y": torch.tensor([0.5])}

    for one in (shared(tmp_path), shared(tmp_path)):  # in memory, then from the file
        for _ in range(2):
            found = one.kept({"what": "a"}, make)
            assert found["x"].tolist() == [[1, 2], [4, 5]] and found["y"].tolist() == [0.5]
    assert len(made) == 1
    shared(tmp_path).kept({"what": "b"}, make)
    assert len(made) == 2 and len(list(tmp_path.glob("evaluation-*.safetensors"))) == 2
    assert not list(tmp_path.glob(".*"))


def test_a_damaged_file_is_named(tmp_path):
    shared(tmp_path).kept({"what": "a"}, lambda: {"x": torch.zeros(3)})
    (file,) = tmp_path.glob("evaluation-*.safetensors")
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(DamagedFile, match=f"{file.name} is damaged; delete it, and it is made again"):
        shared(tmp_path).kept({"what": "a"}, lambda: {"x": torch.zeros(3)})


def test_memory_holds_the_latest_up_to_its_limit():
    memory = Memory(limit=100)
    for key in "abc":
        memory.get(key, lambda: {"x": torch.zeros(10)})  # 40 bytes
    assert memory.size == 80 and list(memory._kept) == ["b", "c"]
    memory.get("b", lambda: pytest.fail("made again"))
    memory.get("d", lambda: {"x": torch.zeros(10)})
    assert list(memory._kept) == ["b", "d"]
    memory.get("large", lambda: {"x": torch.zeros(1000)})
    assert list(memory._kept) == ["large"]  # what is asked for is given, however large
    memory.forget("lar")
    assert memory.size == 0 and not memory._kept


def test_a_loop_over_saes_is_a_stage_of_its_own(tmp_path):
    told = []
    one = shared(tmp_path)
    one.stage, one.tick = lambda *stage: told.append(stage), told.append
    one.begin("rows", 7, "row")
    one.advance(5)
    assert [name for name, _ in one.each("tpp", {"a": None, "b": None})] == ["a", "b"]
    assert told == [("rows", 7, "row"), 5, ("tpp", 2, "SAE"), 1, 2]
