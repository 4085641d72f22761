"""`python -m analysis notes PATH...`"""

import argparse


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "notes",
        help="run notes in the shape of the studies' records, which `import` reads back",
        description="Run notes, one block per run, the baseline first: state, what was varied against the baseline, "
        "findings of the audit, results, description. `import` reads them back to the same facts.",
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="runs, sweeps, outputs, imports, reference")
    parser.add_argument("-o", "--output", metavar="FILE", help="write there (default: print)")
    parser.add_argument(
        "--baseline",
        metavar="RUN",
        help="a run id or title (default: the runs tagged baseline, else those without a penalty)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from analysis.auditing.audit import varied_by
    from analysis.output.notes import notes
    from analysis.reading.records import records
    from sae_sweeps.storage.files import check_output, write_text

    if args.output is not None:
        check_output("-o", args.output, "notes.txt")
    full = records(args.paths)
    text = notes(full, args.baseline, tuple(varied_by(args.paths)))
    if args.output is None:
        print(text, end="")
    else:
        write_text(args.output, text)
        print(f"{len(full)} run{'s' * (len(full) != 1)} -> {args.output}")
