"""Rows of several machines side by side, of each machine the last."""

from dataclasses import replace

from bench.records import Record, add, latest, side_by_side


def test_each_machine_has_its_last_rows_beside_the_others(tmp_path):
    path = tmp_path / "results.jsonl"
    assert latest("step", path) == []
    one = Record("step", "One, 2 cores", "avx2", "2.13", 2, "2026-01-01", "abc", {"GFLOP/s": 209.31}, [])
    one.rows = [("TopK", {"": "ours", "ms": 2.0}), ("TopK", {"": "theirs", "ms": 6.0})]
    other = replace(one, machine="Other, 4 cores", instructions="", rates={})
    other.rows = [("TopK", {"": "ours", "ms": 1.0}), ("TopK", {"": "new", "ms": 3.0})]
    for record in (replace(one, rows=[("TopK", {"": "ours", "ms": 9.0})]), other, replace(one, part="sweep"), one):
        add(record, path)
    assert path.read_text().count("\n") == 4  # nothing is rewritten
    text = side_by_side(found := latest("step", path))
    assert [record.machine for record in found] == ["One, 2 cores", "Other, 4 cores"]
    assert text[0].startswith("- A: One, 2 cores; avx2; torch 2.13, 2 threads; 2026-01-01, commit abc")
    assert text[0].endswith("measured just before: 209 GFLOP/s.") and "instruction sets not noted" in text[1]
    assert text[-5:] == [
        "| --- | --- | --- |",
        "| A | ours | 2 |",
        "| B | ours | 1 |",
        "| A | theirs | 6 |",
        "| B | new | 3 |",
    ]
    assert side_by_side(found[:1])[-2:] == ["| ours | 2 |", "| theirs | 6 |"]
