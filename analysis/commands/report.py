"""`python -m analysis report PATH... -o FILE`"""

import argparse
from pathlib import Path

from sae_sweeps.errors import ConfigError


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    words = commands.add_parser(
        "report",
        help="one self-contained HTML page: summary, audit, table, figures, every run",
        description="One self-contained HTML page that opens without a network: summary, audit, table, figures, runs.",
    )
    words.add_argument("paths", nargs="+", metavar="PATH", help="a run or sweep folder, outputs, a results.json")
    words.add_argument("-o", "--output", type=Path, default=Path("report.html"), metavar="FILE", help="report.html")
    words.add_argument("--title", help="the page's title")
    words.add_argument("--where", metavar="FILTER", help="runs to show, as in `table`")
    words.add_argument("--sort", metavar="KEY", help="order of the table, as in `table`")
    words.add_argument("--baseline", metavar="RUN", help="run that configs are compared with: an id or a filter")
    words.add_argument("--figures", metavar="NAME,...", help="these figures (`plots --list` names them), or none")
    words.add_argument("--runs", type=int, metavar="N", help="runs with a section of their own (60)")
    words.add_argument("--interactive", action="store_true", help="add figures to hover over, by plotly; 5 MB")
    words.set_defaults(run=run)


def run(words: argparse.Namespace) -> None:
    from analysis.report.page import SECTIONS, write_report

    if words.runs is not None and words.runs < 0:
        raise ConfigError(f"--runs {words.runs}: write how many runs get a section, 0 or more.")
    if words.output.is_dir():
        raise ConfigError(f"-o {words.output}: that is a folder; name a file, such as report.html.")
    figures = None
    if words.figures is not None:
        figures = [name.strip() for name in words.figures.split(",") if name.strip() and name.strip() != "none"]
    file = write_report(
        words.paths,
        words.output,
        title=words.title,
        where=words.where,
        sort=words.sort,
        baseline=words.baseline,
        figures=figures,
        runs=SECTIONS if words.runs is None else words.runs,
        interactive=words.interactive,
    )
    print(f"report  {file}   ({file.stat().st_size / 1000:,.0f} kB)")
