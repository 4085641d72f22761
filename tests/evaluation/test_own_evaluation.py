"""An evaluation that is not this project's: registered, configured, run and skipped like the others."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from analysis.metrics import direction, remember, short_name
from sae_sweeps.architectures.saelens import ExportedSAE
from sae_sweeps.cli.compose import compose_points
from sae_sweeps.config import evaluations
from sae_sweeps.config.evaluations import EVALUATIONS, Evaluation, find_evaluation, known_metrics, register
from sae_sweeps.config.run import RunConfig, run_config
from sae_sweeps.errors import ConfigError
from sae_sweeps.evaluation.result import Numbers
from sae_sweeps.evaluation.shared import Shared
from sae_sweeps.runs.evaluate import Subject, descriptions, evaluate_group, is_done
from sae_sweeps.runs.session import RunSession
from sae_sweeps.storage.run_folder import read_summary
from tests.evaluation.toy_lm import toy_sae


@dataclass
class OwnConfig:
    power: int = 2


def evaluate(saes: Mapping[str, ExportedSAE], shared: Shared, config: OwnConfig) -> dict[str, Numbers]:
    assert shared.world is not None
    norms = {name: sae.weights["W_dec"].norm(dim=1).mean().item() for name, sae in saes.items()}
    return {name: Numbers({"own_norm": norm**config.power}) for name, norm in norms.items()}


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Evaluation:
    monkeypatch.setattr(evaluations, "_registered", {})
    made = Evaluation(
        "own_norms", evaluate, {"own_norm": ("lower", "norm")}, (), OwnConfig, needs_model=False, digest="1"
    )
    register(made)
    return made


def run_with(**config: int) -> RunConfig:
    (point,) = compose_points(["model=synthetic"])
    OmegaConf.set_struct(point.cfg, False)
    point.cfg.eval.evaluations = ["own_norms"]
    if config:
        point.cfg.eval.own_norms = config
    return run_config(point.cfg)


def test_it_runs_with_its_config_and_is_not_repeated(own: Evaluation, tmp_path: Path) -> None:
    run, sae = run_with(power=3), toy_sae()
    session = RunSession(torch.device("cpu"))
    assert evaluate_group([Subject("it", run, tmp_path, sae)], session, tmp_path / "cache") == []
    summary = read_summary(tmp_path / "evals" / "own_norms.summary.json")
    expected = sae.weights["W_dec"].norm(dim=1).mean().item() ** 3
    assert summary["metrics"] == {"own_norm": pytest.approx(expected)}
    assert summary["described"] == {"own_norm": ["lower", "norm"]}
    remember(descriptions(tmp_path)["described"])
    assert (direction("own_norm"), short_name("own_norm")) == ("lower", "norm")
    assert summary["settings"] == {"own_norms": {"power": 3}, "code": "1"}
    assert is_done(run, tmp_path, "own_norms") and not is_done(run_with(), tmp_path, "own_norms")
    assert not (tmp_path / "evals" / "own_norms.json").exists()


def test_a_result_that_is_missing_or_of_another_type_is_refused(own: Evaluation, tmp_path: Path) -> None:
    for gives, words in (({}, "gave no result for it"), ({"it": 0.5}, "gave float for it"), ({"is": 1}, "each of it")):
        register(Evaluation("own_norms", lambda *_, gives=gives: gives, config=OwnConfig, reads=(), needs_model=False))
        session = RunSession(torch.device("cpu"))
        (failure,) = evaluate_group([Subject("it", run_with(), tmp_path, toy_sae())], session, tmp_path / "cache")
        assert words in failure.why


def test_its_config_is_recorded_and_read_back(own: Evaluation) -> None:
    recorded = run_with(power=3).to_dict()
    assert recorded["eval"]["own_norms"] == {"power": 3} and "own" not in recorded["eval"]
    assert run_config(OmegaConf.create(recorded)).eval.own == {"own_norms": OwnConfig(3)}
    with pytest.raises(ConfigError, match=r"eval.own_norms.power=many: must be a whole number"):
        run_with(power="many")  # type: ignore[arg-type]


def test_a_name_that_is_taken_or_unknown_is_refused() -> None:
    for name in ("tpp", "probing"):
        with pytest.raises(ConfigError, match="is taken"):
            register(Evaluation(name, evaluate))
    with pytest.raises(ConfigError, match="eval.evaluations=own_norms: must be one of core, "):
        run_with()


def test_every_evaluation_of_the_list_and_its_metrics_are_in_the_file_of_its_name() -> None:
    found = [find_evaluation(name) for name in EVALUATIONS]
    assert [evaluation.name for evaluation in found] == list(EVALUATIONS)
    assert known_metrics() == {key: value for evaluation in found for key, value in evaluation.metrics.items()}
