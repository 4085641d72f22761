"""`python -m analysis notes PATH...`"""

import argparse


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "notes",
        help="run notes: what was varied, results, description, comparison, warnings",
        description="Run notes, one block per run; `import` reads them back.",
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="runs, sweeps, outputs, imports, reference")
    parser.add_argument("-o", "--output", metavar="FILE", help="write there (default: print)")
    parser.add_argument(
        "--baseline", metavar="RUN", help="a run id or title (default: the first run without a penalty)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from analysis.auditing.audit import varied_by
    from analysis.output.notes import notes
    from analysis.reading.records import records
    from sae_sweeps.storage.files import write_text

    full = records(args.paths)
    text = notes(full, args.baseline, tuple(varied_by(args.paths)))
    if args.output is None:
        print(text, end="")
    else:
        write_text(args.output, text)
        print(f"{len(full)} run{'s' * (len(full) != 1)} -> {args.output}")
