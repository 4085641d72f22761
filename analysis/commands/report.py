"""`python -m analysis report PATH... -o FILE`"""

import argparse
from pathlib import Path

from sae_sweeps.errors import ConfigError


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "report",
        help="one self-contained HTML page: summary, audit, table, figures, every run",
        description="One self-contained HTML page that opens without a network: summary, audit, table, figures, runs.",
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a run or sweep folder, outputs, a results.json")
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), metavar="FILE", help="report.html")
    parser.add_argument("--title", help="the page's title")
    parser.add_argument("--where", metavar="FILTER", help="runs to show, as in `table`")
    parser.add_argument("--sort", metavar="KEY", help="order of the table, as in `table`")
    parser.add_argument("--baseline", metavar="RUN", help="run that configs are compared with: an id or a filter")
    parser.add_argument("--figures", metavar="NAME,...", help="these figures (`plots --list` names them), or none")
    parser.add_argument("--runs", type=int, metavar="N", help="runs with a section of their own (60)")
    parser.add_argument("--interactive", action="store_true", help="add figures to hover over, by plotly; 5 MB")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from analysis.report.page import SECTIONS, write_report
    from sae_sweeps.storage.files import check_output

    if args.runs is not None and args.runs < 0:
        raise ConfigError(f"--runs {args.runs}: write how many runs get a section, 0 or more.")
    check_output("-o", args.output, "report.html")
    figures = None
    if args.figures is not None:
        figures = [name.strip() for name in args.figures.split(",") if name.strip() and name.strip() != "none"]
    file = write_report(
        args.paths,
        args.output,
        title=args.title,
        where=args.where,
        sort=args.sort,
        baseline=args.baseline,
        figures=figures,
        runs=SECTIONS if args.runs is None else args.runs,
        interactive=args.interactive,
    )
    print(f"report  {file}   ({file.stat().st_size / 1000:,.0f} kB)")
