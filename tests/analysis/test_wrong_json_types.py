"""JSON files of a run or sweep with a value of the wrong type: one error message or a warning, never a traceback."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sae_sweeps.cli.main import main
from sae_sweeps.errors import DamagedFile
from sae_sweeps.storage.files import check_types, object_in, without_new_folders, write_json

pytestmark = pytest.mark.slow  # every value of every file, under every command

RUN = "0123456789ab"
SAE = {"hook_name": "blocks.1.hook_resid_post", "model_name": "m", "metadata": {"hook_name": None}}
FILES: dict[str, Any] = {
    f"runs/{RUN}/status.json": {"state": "completed", "step": 4, "total_steps": 4, "error": None},
    f"runs/{RUN}/results.json": {
        "run_id": RUN, "title": "k=2", "config": {"k": 2}, "metrics": {"fvu": 0.5}, "provenance": {}, "warnings": [],
    },
    f"runs/{RUN}/evals/core.json": {
        "eval_type_id": "core", "eval_config": {"n": 1}, "eval_result_metrics": {"all": {"fvu": 0.5}},
        "eval_result_details": [], "sae_cfg_dict": SAE,
    },
    f"runs/{RUN}/evals/core.summary.json": {"settings": {"n": 1}, "metrics": {"fvu": 0.5}, "warnings": []},
    "sweeps/s/manifest.json": {
        "runs": [{"run_id": RUN, "title": "k=2"}], "groups": [], "jobs": [], "varied": ["k"], "cluster": "inline",
    },
}  # fmt: skip
OTHERS = (3, "x", [], {}, None, [1], {"a": 1})


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, value in content.items() if isinstance(content, dict) else enumerate(content) if content else ():
        yield from places(value, (*path, key)) if isinstance(value, dict | list) else [(*path, key)]


def changed(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = json.loads(json.dumps(content))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return copy


@pytest.mark.parametrize("name", FILES)
def test_a_value_of_the_wrong_type_gives_one_error_or_a_warning(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file, content in FILES.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        write_json(tmp_path / file, content)
    run, sweep, out = tmp_path / "runs" / RUN, tmp_path / "sweeps" / "s", tmp_path / "out"
    commands = [["notes", run, "-o", out], ["audit", run], ["table", sweep], ["status", sweep]]
    if name.endswith("core.json"):
        commands.append(["import", tmp_path / name, "-o", tmp_path / "imported", "--replace"])
    assert [main([str(word) for word in words]) for words in commands] == [0] * len(commands)
    capsys.readouterr()
    for path in places(FILES[name]):
        for value in OTHERS:
            (tmp_path / name).write_text(json.dumps(changed(FILES[name], path, value)))
            for words in commands:
                try:
                    status = main([str(word) for word in words])
                except Exception as error:
                    pytest.fail(f"{name} with {path} = {value}: {words[0]}: {type(error).__name__}: {error}")
                printed = capsys.readouterr()
                assert status in (0, 1) or printed.err.startswith("error: "), (path, value, words[0], printed.err)


def test_an_object_under_a_key() -> None:
    assert object_in({"a": {"b": 1}}, "a", "f") == {"b": 1}
    assert object_in({"a": None}, "a", "f") == object_in({}, "a", "f") == {}
    for content in ({"a": 3}, {"a": [1]}, 3, [], None):
        with pytest.raises(DamagedFile, match="f is damaged"):
            object_in(content, "a", "f")
    with pytest.raises(DamagedFile, match="its n is True"):
        check_types({"n": True}, {"n": int}, "f")


def test_only_the_folders_made_inside_are_removed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for path in (tmp_path / "mine" / "sweeps", tmp_path / "a" / "b"):
        with pytest.raises(DamagedFile), without_new_folders(path):
            path.mkdir(parents=True)
            raise DamagedFile("it")
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"]
    assert not list((tmp_path / "mine").iterdir())
