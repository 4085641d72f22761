"""A run writes what its id is the hash of, unless its model or text is another one since it was planned."""

import json

import pytest

from sae_sweeps.cli.compose import compose_points
from sae_sweeps.errors import DataError
from sae_sweeps.runs.unchanged import record_identity, refuse_changed
from sae_sweeps.storage.digests import short_hash
from sae_sweeps.storage.run_folder import RunFolder
from sae_sweeps.sweeps.plan import make_plan
from sae_sweeps.sweeps.sweep import create_sweep, stored_plan


@pytest.fixture
def planned(tmp_path):
    """A run on a text of its own."""
    (tmp_path / "text.txt").write_text("one two three")
    words = [f"data={tmp_path / 'text.txt'}", f"outputs={tmp_path / 'o'}"]
    return make_plan(compose_points(words)).runs[0]


OTHER = r"data.path=.*text.txt holds other text than the run's \(digest \w+, was \w+\); restore it, or launch"


def test_the_id_is_the_hash_of_identity_json(planned, tmp_path):
    folder = RunFolder(tmp_path / planned.run_id)
    record_identity(planned, folder)
    assert short_hash(json.loads((folder.path / "identity.json").read_text())) == planned.run_id
    assert refuse_changed(planned.run, folder.path, tmp_path) is None


def test_a_changed_text_is_named_before_training_and_before_evaluation(planned, tmp_path):
    folder, text = RunFolder(tmp_path / planned.run_id), tmp_path / "text.txt"
    text.write_text("one two four")
    with pytest.raises(DataError, match=f"^{OTHER}"):
        record_identity(planned, folder)
    assert not folder.path.exists()
    text.write_text("one two three")
    record_identity(planned, folder)
    text.write_text("one two four")
    with pytest.raises(DataError, match=f"^{planned.run_id}: {OTHER}") as caught:
        refuse_changed(planned.run, folder.path, tmp_path)
    assert "model" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_stored_sweep_says_what_changed(planned, tmp_path):
    plan = make_plan(compose_points([f"data={tmp_path / 'text.txt'}", f"outputs={tmp_path / 'o'}"]))
    sweep = create_sweep(tmp_path / "o", plan)
    assert stored_plan(sweep).runs[0].digests == planned.digests
    (tmp_path / "text.txt").write_text("one two four")
    with pytest.raises(DataError, match=rf"^{planned.run_id} \(.*\): {OTHER}"):
        stored_plan(sweep)


def test_runs_without_identity_json_are_known_by_their_id_or_doubted(planned, tmp_path):
    assert refuse_changed(planned.run, tmp_path / planned.run_id, tmp_path) is None
    assert "may be others than it was trained on" in refuse_changed(planned.run, tmp_path / ("0" * 12), tmp_path)


def test_how_a_model_and_two_corpora_are_named(tmp_path, tiny_gpt_neox_folder):
    import shutil

    model = tmp_path / "m"
    shutil.copytree(tiny_gpt_neox_folder, model)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    words = [f"model={model}", "data=forget_retain", f"data.forget={tmp_path / 'a.txt'}"]
    (run,) = make_plan(compose_points([*words, f"data.retain={tmp_path / 'b.txt'}", f"outputs={tmp_path}"])).runs
    (model / "generation_config.json").write_text("{}")
    (tmp_path / "b.txt").write_text("c")
    with pytest.raises(
        DataError, match=r"^model.path=.*/m holds another model .* and data.forget=.*a.txt data.retain="
    ):
        record_identity(run, RunFolder(tmp_path / run.run_id))
