import csv
import subprocess
import sys

import pytest

from sae_sweeps.__main__ import main
from sae_sweeps.cli.compose import compose_points
from sae_sweeps.sweeps.curves import curves, sparkline
from sae_sweeps.sweeps.plan import make_plan


def named(*words):
    (planned,) = make_plan(compose_points(["model=synthetic", "num_tokens=40960", *words])).runs
    return {curve.name: curve for curve in curves(planned.run)}


def test_the_curves_are_those_of_the_run():
    found = named("penalty=ortho", "lambda2_max=0.8", "k_start=8", "k=32", "penalty.momentum=0.5")
    weight, threshold, k = found["ortho weight"], found["ortho threshold"], found["k"]
    assert len(weight.values) == 40 and weight.at(0) == 0.8 and weight.values[20] == pytest.approx(0.2)
    assert (k.at(0), k.at(100)) == (8, 32)
    assert threshold.values[:2] == pytest.approx([0.3, 0.5 * 0.3 + 0.5 * 0.3 * (1 - 1 / 40)])
    assert max(found["learning rate"].values) == pytest.approx(1e-3)


def test_a_combination_has_a_curve_for_each_part():
    found = named("penalty=ortho+adaptive_sharing", "penalty.adaptive_sharing.schedule=cosine")
    assert found["ortho weight"].values[20] == pytest.approx(0.125)
    assert found["adaptive_sharing weight"].values[20] == pytest.approx(0.5)
    assert found["adaptive_sharing alpha"].at(0) == 0.8


def test_a_line_of_blocks():
    assert sparkline([0, 1, 2, 7]) == "▁▂▃█" and sparkline([0, 0]) == "▁▁" and len(sparkline(list(range(400)))) == 60


def test_what_is_printed_and_written(tmp_path, capsys):
    out = tmp_path / "curves.csv"
    words = ["schedule", "-m", "-o", str(out), "model=synthetic", "penalty=ortho", "lambda2_max=0.1,0.5"]
    assert main([*words, "num_tokens=40960"]) == 0
    printed = capsys.readouterr().out
    assert "lambda2_max=0.1" in printed and "ortho weight" in printed and "50%: 0.025" in printed and "█" in printed
    rows = list(csv.DictReader(out.open()))
    assert {row["curve"] for row in rows} == {"learning rate", "ortho weight", "ortho threshold"}
    assert sum(row["curve"] == "ortho weight" for row in rows) == 80


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_figure(tmp_path, ending, capsys):
    out = tmp_path / f"curves.{ending}"
    assert main(["schedule", "-o", str(out), "experiment=demo", "model=synthetic", "num_tokens=40960"]) == 0
    assert out.read_bytes()[:4] in (b"\x89PNG", b"<?xm") and capsys.readouterr().out.count("ortho weight") == 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["penalty=nonsense"], "penalty=nonsense: no such choice"),
        (["lambda2_max=0.5"], "lambda2_max=0.5: no run of this command uses it"),
        (["-o", "."], "-o .: that is a folder; name a file, such as curves.csv."),
        (["-o", "x.txt"], "-o x.txt: the ending decides the format"),
        (["+k=3"], "keys cannot be added"),
        (["schedule.warmup=0", "penalty=ortho", "schedule=linear"], "schedule.warmup=0.0: must be above 0"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(words, says, capsys):
    assert main(["schedule", "model=synthetic", *words]) == 2
    told = capsys.readouterr().err
    assert says in told and told.count("\n") == 1


@pytest.mark.slow
def test_help_imports_nothing_heavy():
    code = "import sys; from sae_sweeps.cli.main import parser; parser(); print({'torch', 'hydra'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
