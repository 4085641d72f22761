import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from analysis.__main__ import main
from analysis.report import write_report
from analysis.report.defaults import defaults_of
from analysis.report.figures import DEFAULT
from analysis.report.page import report
from analysis.report.runs import differences
from analysis.report.sparkline import HEIGHT, WIDTH, sparkline
from sae_sweeps.errors import ConfigError, DataError
from tests.analysis.outputs import add_run, add_sweep
from tests.analysis.trained import add_trained

HOSTILE = (
    "=1+1 </script><script>alert(1)</script><img src=x onerror=alert(2)> \"'> {{ 7*7 }}\n\x1b[31m\u202e" + "x" * 300
)


class Page(HTMLParser):
    """Elements and attributes of a page, and its words."""

    def __init__(self, words):
        super().__init__()
        self.tags, self.addresses, self.handlers, self.said = [], [], [], []
        self.feed(words)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "data")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data):
        self.said.append(data)


@pytest.fixture
def sweep(tmp_path):
    add_trained(tmp_path, "aaaaaaaaaaaa", {"penalty": {"name": "none"}}, {"fvu": 0.05})
    add_trained(tmp_path, "bbbbbbbbbbbb", {"penalty.lambda2_max": 0.5}, {"fvu": 0.04})
    return add_sweep(tmp_path, "s", ["aaaaaaaaaaaa", "bbbbbbbbbbbb"])


def test_a_page_that_needs_nothing_beside_it(sweep, tmp_path, capsys):
    file = tmp_path / "page.html"
    assert main(["report", str(sweep), "-o", str(file), "--figures", "pareto"]) == 0
    assert capsys.readouterr().out.startswith(f"report  {file}   (")
    words = file.read_text()
    page = Page(words)
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert not re.search(r"https?://|@import|url\(", words)
    assert "default-src 'none'" in words and page.tags.count("script") == 1 and page.tags.count("img") == 1
    said = " ".join(" ".join(page.said).split())
    assert "2 runs: 2 completed." in said and "fvu, lowest: 0.04 (as bbbbbbbbbbbb); all runs from 0.04 to 0.05." in said
    for anchor in ("#run-1", "#run-2"):
        assert anchor in page.addresses and f'id="{anchor[1:]}"' in words
    # the config against the baseline and against the defaults
    assert "Configs are compared with run aaaaaaaaaaaa" in said and "penalty none ortho" in said
    assert "architecture.d_sae 2,048 1,024" in said and words.count("<svg") > 10


def test_names_and_texts_are_data(tmp_path):
    add_trained(
        tmp_path, "a", {"penalty": {"name": HOSTILE}, HOSTILE: HOSTILE, "model.name": HOSTILE,
        "description": HOSTILE}, {HOSTILE: 1.0}, title=HOSTILE, warnings=(HOSTILE,),
    )  # fmt: skip
    add_run(tmp_path, "b", {"penalty.x": HOSTILE}, state="failed", error=HOSTILE)
    words = report([tmp_path], title=HOSTILE, figures=["training_curves", "evaluation_metrics"])
    page = Page(words)
    assert page.tags.count("script") == 1 and page.tags.count("img") == 2 and not page.handlers
    assert "{{ 7*7 }}" in words and "\x1b" not in words and "\u202e" not in words
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert max(map(len, re.findall("x{50,}", words))) <= 400


def test_a_run_has_its_description(tmp_path):
    add_run(tmp_path, "a", {"description": "1. <b>fewer</b> shared features\n2. the same fvu"})
    words = report([tmp_path], figures=[])
    assert "<p>1. &lt;b&gt;fewer&lt;/b&gt; shared features<br>2. the same fvu</p>" in words
    assert 'scope="row">description' not in words  # no key of the config against the defaults


def test_a_sweep_that_runs(tmp_path):
    for run_id, state in (("aaaa", "running"), ("bbbb", "failed"), ("cccc", "queued")):
        add_run(tmp_path, run_id, state=state, step=25, error="the disk is full" if state == "failed" else None)
    words = report([tmp_path], figures=DEFAULT)
    said = " ".join(" ".join(Page(words).said).split())
    assert "3 runs: " in said and "1 failed" in said and "No run has results yet" in said
    assert re.search("[12] of 3 runs are queued or running", said)
    assert "25 of 100" in said and "the disk is full" in said
    sweep = add_sweep(tmp_path, "s", ["dddd", "eeee"])  # nothing has begun
    assert "2 runs: 2 queued." in report([sweep])


def test_many_runs_have_few_sections(tmp_path):
    for number in range(30):
        state = "failed" if number % 3 == 0 else "completed"
        add_run(tmp_path, f"r{number:02}", {"architecture.lr": number / 100}, {"fvu": 1 - number / 100}, state=state)
    page = Page(report([tmp_path], figures=[], runs=10))
    said = " ".join(" ".join(page.said).split())
    assert "10 of 30 runs have a section here" in said and "--runs 30" in said
    sections = [address for address in page.addresses if address.startswith("#run-")]
    # two of the ten failed, the others have the lowest fvu
    assert [int(address[5:]) for address in sections] == [1, 4, 20, 21, 23, 24, 26, 27, 29, 30]


def test_what_defaults_and_differences_are():
    defaults = defaults_of({"architecture": "topk", "architecture.k": 5, "penalty": "ortho", "penalty.tau": 1.0})
    assert defaults["architecture.k"] == 32 and defaults["penalty.base_threshold"] == 0.3
    assert defaults["penalty"] == "none" and defaults["batch_size"] == 1024 and "k" not in defaults
    assert defaults_of({"penalty": "../../etc/passwd", "penalty.x": 1}).get("penalty.x") is None
    everything = differences({"a": 1, "b": [1], "c": None}, {"a": 1.0, "b": [2], "d": "x"}, lambda key: True)
    assert everything == [("b", "[1]", "[2]"), ("d", "–", "x"), ("c", "null", "–")]
    assert differences({"a": 1, "c": 2}, {"a": 2, "d": 3}, lambda key: True, missing=False) == [("a", "1", "2")]


def test_sparklines():
    assert sparkline(np.arange(3.0), np.array([1.0, np.nan, np.nan])) == ""
    drawn = sparkline(np.arange(1000.0), np.linspace(5, -5, 1000))
    numbers = [list(map(int, pair.split())) for pair in re.search('d="M([^"]*)"', drawn)[1].split("L")]
    assert len(numbers) == 32 and numbers[0] == [0, 1] and numbers[-1] == [WIDTH, HEIGHT - 1]
    assert sparkline(np.arange(2.0), np.array([3.0, 3.0])).count("L") == 1


def test_words_that_mean_nothing(sweep, tmp_path, capsys):
    assert main(["report", str(sweep), "-o", str(tmp_path)]) == 2 and "is a folder" in capsys.readouterr().err
    assert main(["report", str(sweep), "-o", "x.html", "--figures", "front"]) == 2
    assert main(["report", str(sweep), "-o", "x.html", "--runs", "-1"]) == 2
    with pytest.raises(DataError):
        write_report([tmp_path / "nowhere"], tmp_path / "x.html")
    with pytest.raises(ConfigError, match="zzzz"):
        report([sweep], figures=[], baseline="zzzz")


def test_figures_to_hover_over(sweep, monkeypatch):
    pytest.importorskip("plotly")
    words = report([sweep], figures=[], interactive=True)
    page = Page(words)
    assert page.tags.count("script") == 4 and len(words) < 6_000_000
    assert 'id="chart-coordinates"' in words and 'id="chart-ce_loss_score"' in words
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(ConfigError, match=r"sae-sweeps\[interactive\]"):
        report([sweep], figures=[], interactive=True)
