"""Every format, with names and texts that would break one if they were taken for anything but data."""

import csv
import io
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from analysis.__main__ import main
from analysis.output.formats import ENDINGS, FORMATS, format_of, render
from analysis.output.html import TABLE_CSS, TABLE_JS, html_page, html_table
from analysis.tables.compare import table
from sae_sweeps.errors import ConfigError
from tests.analysis.outputs import add_run

HOSTILE = (
    "=cmd|' /C calc'!A1",
    "+1+1",
    "-1+1",
    "@SUM(A1)",
    "\t=1",
    "\u202e=1+1",
    '<script>alert("1")</script>',
    "'\" onmouseover=alert(1) x='",
    "</table></style></script><img src=x onerror=alert(1)>",
    "a,b;c\n| d | e |\r\n# f\u2028g\x0bh",
    "\x1b[31mred\x1b[0m [bold]b[/bold] \x00\x07",
    r"\input{x} $x^2$ 50% a_b {c} #d ~e & f \\ *g [h]",
    "**b** `c` [d](javascript:e) ![i](x) $m$ ~s~ <!-- ",
    "\u202dאבג\u2066 عربي",
    "x" * 5000,
    "]]> &amp; &lt;b&gt; &#x3c;",
)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("hostile")
    for number, words in enumerate(HOSTILE):
        penalty = {"name": words, words.replace(".", "") or "x": number, "tau": words}
        config = {"penalty": penalty, "title": words, "architecture.k": number}
        add_run(outputs, f"r{number:02}", config, {words: number, "fvu": number / 7}, title=words, warnings=(words,))
    add_run(outputs, "bad", {"penalty": {"name": HOSTILE[6]}}, state="failed", step=3, error=HOSTILE[8])
    return table([outputs], columns=["title", "state", "penalty", "penalty.*", "k", "fvu", "*"])


def test_csv_reads_back_and_starts_no_formula(result):
    rows = list(csv.reader(io.StringIO(render(result, "csv"))))
    assert {len(row) for row in rows} == {len(result.frame.columns)} and len(rows) == len(HOSTILE) + 2
    assert len(set(rows[0])) == len(rows[0])
    numbers = re.compile(r"-?\d+(\.\d+)?(e-?\d+)?")
    for cell in (cell for row in rows for cell in row):
        assert cell.isprintable() and (not cell or cell[0] not in "=+-@\t" or numbers.fullmatch(cell))


def test_json_keeps_every_character(result):
    runs = json.loads(render(result, "json"))["runs"]
    assert [run["title"] for run in runs[1:]] == list(HOSTILE)
    assert [run["config"]["penalty"] for run in runs[1:]] == list(HOSTILE)


def test_markdown_keeps_its_columns(result):
    lines = [line for line in render(result, "markdown").splitlines() if line.startswith("|")]
    assert len(lines) == len(HOSTILE) + 3
    assert len({len(re.findall(r"(?<!\\)\|", line.replace(r"\\", ""))) for line in lines}) == 1
    assert not re.search(r"(?<!\\)[<>`]|[^\\]\[", "\n".join(lines))


def test_latex_has_nothing_raw(result):
    lines = render(result, "latex").splitlines()
    rows = lines[lines.index("\\midrule") + 1 : lines.index("\\bottomrule")]
    columns = {len(re.findall(r"(?<!\\)&", row)) for row in rows}
    assert len(rows) == len(result.frame) and len(columns) == 1
    ours = r"\\(textbackslash|textasciitilde|textasciicircum|textless|textgreater|textbar|textquotedbl|ldots|dagger)\b"
    for row in rows:
        plain = re.sub(r"\\textbf|\$\^\{\\dagger\}\$|\\\\$|\$\\(pm|Delta)\$", "", row)
        plain = re.sub(ours + r"(\{\})?|\\[{}$&#%_]", "", plain)
        assert not set(plain) & set('\\$#%_~^<>|"') and plain.count("{") == plain.count("}")
        assert not re.search(r"(?<!\{)[\[*]", plain) and row.isprintable()


def test_text_is_printable_lines(result):
    for color in (False, True):
        shown = render(result, "text", color=color)
        plain = re.sub(r"\x1b\[[0-2]m", "", shown) if color else shown
        assert all(line.isprintable() for line in plain.split("\n"))
        assert max(map(len, plain.split("\n"))) < 100 * len(result.frame.columns)
        assert "[bold]b[/bold]" in shown  # as it is, no markup


def test_svg_is_text_in_a_picture(result):
    tree = ElementTree.fromstring(render(result, "svg"))
    assert not {"script", "image", "a"} & {element.tag.rpartition("}")[2] for element in tree.iter()}


class Reader(HTMLParser):
    """Counts tags, collects attributes and the cells' texts."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in ("meta", "input"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def test_html_holds_data_and_no_markup_of_runs(result):
    read = Reader(html_page(result))
    assert not read.open and read.tags.count("script") == 1 and not {"img", "b", "a", "iframe"} & set(read.tags)
    assert read.attributes <= {
        "lang", "charset", "http-equiv", "content", "name", "class", "colspan", "scope", "aria-sort", "type", "title",
        "data-v", "data-high",
    }  # fmt: skip
    groups, heads, *rows = read.rows
    assert len(rows) == len(result.frame) and {len(row) for row in rows} == {len(heads)}
    titles = [row[heads.index("title")] for row in rows[1:]]
    assert titles[6] == HOSTILE[6] and titles[10] == "[31mred[0m [bold]b[/bold]" and titles[14] == "x" * 59 + "…"


def test_html_needs_nothing_from_anywhere(result):
    page = html_page(result)
    assert "default-src 'none'" in page and page.count("<script>") == 1
    for words in (TABLE_CSS, TABLE_JS):
        assert "http" not in words and "url(" not in words and "</" not in words and "@import" not in words
        assert words.strip() in page


def test_html_fragment_links_and_marks(tmp_path):
    add_run(tmp_path, "a", {"penalty": {"name": "none"}}, {"fvu": 0.2, "mean_absorption_score": 0.005})
    add_run(tmp_path, "b", {"penalty": {"name": "ortho"}}, {"fvu": 0.1, "mean_absorption_score": 0.02})
    fragment = html_table(table([tmp_path]), links={"a": '#"x'})
    read = Reader(fragment)
    assert '<a href="#&#34;x">a</a>' in fragment and ">b</th>" in fragment
    assert [row[2] for row in read.rows[2:]] == ["0.2000", "0.1000"]
    assert 'class="num first best" data-v="0.1"' in fragment and "0.005000 ✓" in fragment
    assert fragment.startswith('<div class="runs">') and "<script" not in fragment


@pytest.mark.parametrize("fold", [(), ("seed",)])
@pytest.mark.parametrize("format", FORMATS)
def test_every_format_of_every_table(tmp_path, format, fold):
    for seed in range(3):
        add_run(tmp_path, f"r{seed}", {"seed": seed}, {"fvu": 0.1 + seed / 100})
        add_run(tmp_path, f"s{seed}", {"seed": seed, "architecture.k": 1}, state="queued")
    whole = table([tmp_path], aggregate=fold, baseline="r0")
    assert "r0" in render(whole, format)
    assert "0.1" in render(table([tmp_path], pivot=("k", "seed", "fvu")), format)
    nothing = table([tmp_path], where="k = 1")
    assert render(nothing, format)


def test_latex_marks_best_and_target(tmp_path):
    add_run(tmp_path, "a", {"seed": 0}, {"fvu": 0.2, "unlearning_score": 0.2})
    add_run(tmp_path, "b", {"seed": 1}, {"fvu": 0.1, "unlearning_score": 0.01})
    shown = render(table([tmp_path], columns=["fvu", "unlearning_score"]), "latex")
    assert (
        "a & 0.2000 & \\textbf{0.2000}$^{\\dagger}$ \\\\" in shown
        and "\\cmidrule(lr){2-2} \\cmidrule(lr){3-3}" in shown
    )
    assert "\\multicolumn{1}{c}{unlearning}" in shown and shown.count("{") == shown.count("}")
    assert "target reached: unlearning\\_score \\textgreater{} 0.1" in shown


def test_the_format_of_a_file():
    assert {format_of(f"x{ending}") for ending in ENDINGS} == set(FORMATS)
    assert format_of("A.HTML") == "html"
    with pytest.raises(ConfigError, match="names no format; end it in .txt, .md"):
        format_of("x.pdf")
    with pytest.raises(ConfigError, match="no ending names no format"):
        format_of("x")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("notes reference -o {}", "that is a folder; name a file, such as notes.txt"),
        ("table reference -o {} --format csv", "that is a folder; name a file, such as table.md"),
        ("report reference -o {}", "that is a folder; name a file, such as report.html"),
        ("import nowhere.txt -o {}/folder.json", "that is a folder; name a file, such as import.json"),
        ("notes {}/file", "file is neither a results.json nor a manifest.json; if it holds run notes, read it"),
        ("table {}/notes.txt", "notes.txt` and give the file that this writes"),
        ("notes reference -o {}/file/notes.txt", "file is not a folder; give another path"),
        ("import nowhere.txt -o {}/file", "file is not a folder"),
        ("plots reference -o {}/file/figures", "file is not a folder"),
        ("dashboard a/b --dump {}/file", "file is not a folder"),
    ],
)
def test_a_path_that_cannot_be_used_is_one_sentence(tmp_path, words, sentence, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "notes.txt").write_text("## Run 1: x")
    (tmp_path / "folder.json").mkdir()
    assert main(words.format(tmp_path).split()) == 2
    assert sentence in capsys.readouterr().err
