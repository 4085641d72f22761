import json
import math

import pytest

from analysis.output.formats import render
from analysis.reading.convergence import common_target, tokens_to
from analysis.reading.convergence import followed as followed_rows
from analysis.tables.compare import table
from sae_sweeps.errors import DamagedFile
from sae_sweeps.storage.run_folder import RunFolder
from tests.analysis.outputs import add_run

ROWS = [
    {"tokens": 100, "tokens_per_s": 50, "held_out_fvu": 0.9},
    {"tokens": 200, "tokens_per_s": 100},
    {"tokens": 300, "tokens_per_s": 200, "held_out_fvu": 0.5},
    {"tokens": 400, "tokens_per_s": 100, "held_out_fvu": 0.4},
]


def test_the_first_row_at_or_under_the_target():
    assert tokens_to(ROWS, 0.5) == (300, 2 + 1 + 0.5)
    assert tokens_to(ROWS, 0.95) == (100, 2.0)
    assert tokens_to(ROWS, 0.1) is None and tokens_to([], 0.5) is None and tokens_to(ROWS[1:2], 0.5) is None


def test_the_common_target_is_one_that_every_run_reaches():
    other = [{"tokens": 10, "tokens_per_s": 1, "held_out_fvu": 0.6}]
    assert common_target([ROWS, other]) == 0.6 and common_target([ROWS, []]) == 0.4 and common_target([]) is None


def test_tokens_of_a_row_without_a_speed_count_at_the_next_one():
    rows = [{"tokens": 100}, {"tokens": 200, "tokens_per_s": 100, "held_out_fvu": 0.1}]
    assert tokens_to(rows, 0.1) == (200, 2.0)


def followed(outputs, run_id, values, **changes):
    folder = RunFolder(add_run(outputs, run_id, {"seed": len(run_id)}, **changes))
    for step, value in enumerate(values):
        folder.metrics.append(
            {"step": step, "tokens": 100 * (step + 1), "tokens_per_s": 50} | ({"held_out_fvu": value} if value else {})
        )


def test_the_table_shows_convergence_and_what_it_is_to(tmp_path):
    followed(tmp_path, "fast", [0.5, 0.2, 0.1])
    followed(tmp_path, "slow1", [0.9, None, 0.3])
    followed(tmp_path, "failed12", [0.01], state="diverged")
    result = table([tmp_path])
    shown = result.frame.set_index(("run", "run_id"))["metrics"]
    assert result.target_fvu == 0.3
    assert shown["tokens_to_fvu"][["fast", "slow1"]].tolist() == [200, 300]
    assert shown["seconds_to_fvu"][["fast", "slow1"]].tolist() == [4.0, 6.0]
    assert math.isnan(shown["tokens_to_fvu"]["failed12"])
    told = "tokens_to_fvu, seconds_to_fvu: to a held-out fvu of 0.3"
    assert told in render(result).splitlines() and f"- {told}" in render(result, "markdown").splitlines()
    assert json.loads(render(result, "json"))["target_fvu"] == 0.3
    assert "tokens_to_fvu" not in render(table([tmp_path], columns=["fvu"]))
    stricter = table([tmp_path], target_fvu=0.15)
    assert [value for value in stricter.frame["metrics", "tokens_to_fvu"] if value == value] == [300]


def test_runs_that_were_not_followed_have_no_such_columns(tmp_path):
    followed(tmp_path, "a", [None, None])
    result = table([tmp_path], target_fvu=0.1)
    assert ("metrics", "tokens_to_fvu") not in result.frame.columns and "_to_fvu" not in render(result)
    assert "target_fvu" not in json.loads(render(result, "json"))


def read(tmp_path, content):
    (tmp_path / "metrics.jsonl").write_bytes(content)
    return followed_rows(tmp_path)


def test_rows_are_searched_as_they_would_be_parsed(tmp_path):
    file = RunFolder(tmp_path).metrics
    for step in range(5):
        odd = {'x,"tokens":9': 'a "tokens_per_s":7,', "penalty/tokens": 3}
        held_out = {"held_out_fvu": [0.5, None, math.nan, 1e-9, 2][step]} if step != 4 else {}
        speed = {"tokens_per_s": 100 + step} if step else {}
        file.append({"step": step, "tokens": 10 * step} | odd | speed | held_out)
    kept = ("tokens", "tokens_per_s", "held_out_fvu")
    parsed = [{key: row[key] for key in kept if row.get(key) is not None} for row in file.rows()]
    assert followed_rows(tmp_path) == parsed and len(parsed) == 5


def test_torn_foreign_and_damaged_rows(tmp_path):
    assert followed_rows(tmp_path) == []
    row = b'{"step":0,"tokens":10,"held_out_fvu":0.5}\n'
    assert read(tmp_path, row + b'{"step":1,"tokens":20,"held') == [{"tokens": 10, "held_out_fvu": 0.5}]
    assert read(tmp_path, b'{"step":0,"tokens":10}\n' * 3) == []  # not followed
    spaced = read(tmp_path, row + b'{"tokens": 20, "step": 1, "held_out_fvu": 0.25}\n')
    assert tokens_to(spaced, 0.3) == (20, 0.0)
    with pytest.raises(DamagedFile, match="metrics.jsonl is damaged at line 2"):
        read(tmp_path, row + b'{"step":1,"tok\n')


def test_keys_in_another_order_are_parsed(tmp_path):
    rows = read(tmp_path, b'{"step":0,"tokens":10,"held_out_fvu":0.5,"tokens_per_s":7}\n')
    assert tokens_to(rows, 0.5) == (10, 10 / 7)
