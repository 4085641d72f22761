"""The bench's numbers are written at once, its tables replaced when measured again, its parts ended at their limits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import __main__ as bench
from bench.parts import PARTS, mean_over
from bench.results import FILE, Results, read, shown, table, tables, write
from bench.setting import Setting

ROOT = Path(__file__).parents[1]


def test_a_table_is_put_in_and_replaced(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Speed\n\nWords.\n\n<!-- bench:step-cpu -->\nold\n<!-- /bench:step-cpu -->\n\nMore words.\n")
    write(page, "step-cpu", table(("a", "b"), [("1", "2")]))
    write(page, "penalty-cpu", ["new"])
    write(page, "penalty-cpu", ["newer"])
    write(page, "penalty-cpu", ["left out"], keep=True)
    write(page, "disk-cpu", ["not in this page"], add=False)
    assert page.read_text() == (
        "# Speed\n\nWords.\n\n<!-- bench:step-cpu -->\n"
        "| a | b |\n| --- | --- |\n| 1 | 2 |\n<!-- /bench:step-cpu -->\n\n"
        "More words.\n\n<!-- bench:penalty-cpu -->\nnewer\n<!-- /bench:penalty-cpu -->\n"
    )


def test_numbers_outlive_the_process_that_measures_them(tmp_path):
    """Every row is in the file once it is measured; a line that was cut off spoils no other."""
    results = Results(tmp_path, "step")
    results.add("TopK", {"": "ours", "ms": 1.23456})
    start = (tmp_path / FILE).stat().st_size
    results.add("TopK", {"": "theirs", "ms": 2345.6, "GB": 1})
    results.line(peak_gb=0.5)
    with open(tmp_path / FILE, "a") as file:
        file.write('{"part": "st')
    assert [line.get("row", {}).get("") for line in read(tmp_path)] == ["ours", "theirs", None]
    assert tables(read(tmp_path)) == [
        "", "TopK:", "", "|  | ms | GB |", "| --- | --- | --- |", "| ours | 1.235 |  |", "| theirs | 2,346 | 1 |"
    ]  # fmt: skip
    assert tables(read(tmp_path, start))[-1] == "| theirs | 2,346 | 1 |"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1e-7, "1.0e-07"), (0.25, "0.25"), (12345.6, "12,346"), (16384, "16,384"), (True, "True"), ("a", "a")]
    + [(float("nan"), "nan"), (float("-inf"), "-inf")],
)
def test_numbers_are_short(value, text):
    assert shown(value) == text


def test_what_is_left_out_or_too_slow_is_in_the_file_with_the_reason(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(bench.PARTS["profile"], "needs", ("hydra", "no_such_module"))
    words = "--small --parts machine step profile --skip step=busy --patience 0.001 --out".split()
    monkeypatch.setattr(sys, "argv", ["bench", *words, str(tmp_path)])
    assert bench.main() == 1
    ends = {line["part"]: line.get("status") for line in read(tmp_path)}
    assert ends["machine"] == "ended at its limit of 0 s" and ends["step"] == "left out: busy"
    assert ends["profile"] == "left out: no_such_module cannot be imported here"
    assert ends["check"] == "left out: not among --parts" and ends["syncs"] == "left out: not among --parts"
    assert ends.keys() == {"plan", *PARTS}
    page = (tmp_path / "page.md").read_text()
    assert "**step**: left out: busy." in page and "**machine**: ended at its limit of 0 s" in page
    assert "machine: ended at its limit of 0 s" in capfd.readouterr().err


def test_a_whole_measurement_takes_less_than_ten_minutes_on_a_gpu():
    assert sum(part.limit for part in PARTS.values() if "cuda" in part.devices) < 600


@pytest.mark.parametrize("words", ["--device cuda", "--skip nothing=why", "--parts nothing"])
def test_mistakes_are_one_sentence(words, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["bench", *words.split(), "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        bench.main()
    assert ended.value.code == 2 and "Traceback" not in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_processes_find_the_project_and_what_the_user_gave(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/given")
    found = Setting("cpu", 1, 3, "").environment(MORE="1")
    assert found["PYTHONPATH"].split(os.pathsep)[:2] == [str(ROOT), "/given"]
    assert (found["OMP_NUM_THREADS"], found["MORE"]) == ("3", "1")


@pytest.mark.parametrize(("has_torch", "sees"), [(True, True), (True, False), (False, False)])
def test_make_bench_gpu_installs_nothing_where_torch_is(has_torch, sees, tmp_path):
    """A stand-in for Python writes its calls down; only without torch is anything installed."""
    python, log = tmp_path / "python", tmp_path / "log"
    python.write_text(
        f'#!/bin/sh\necho "$@" >> {log}\ncase "$*" in *is_available*) exit {int(not sees)};; '
        f'*"import torch"*) exit {int(not has_torch)};; *"-m bench"*) exit 0;; *) exit 1;; esac\n'
    )
    python.chmod(0o755)
    command = ["make", "bench-gpu", f"PYTHON={python}", f"VENV={tmp_path / 'none'}", "BENCH=--parts check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode == 0) == has_torch
    assert ("-m bench --device cuda --parts check" in log.read_text()) == has_torch
    assert ("venv" in log.read_text() or "version_info" in log.read_text()) == (not has_torch)


def test_the_mean_over_a_run_is_that_of_the_line_through_its_places():
    assert mean_over((0.0, 0.5, 1.0), (0.0, 1.0, 1.0)) == pytest.approx(0.75)
    assert mean_over((0.0, 0.9), (2.0, 2.0)) == pytest.approx(2.0)
