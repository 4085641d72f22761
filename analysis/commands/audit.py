"""`python -m analysis audit PATH...`"""

import argparse
import sys

FORMATS = ("text", "json", "markdown")
LEVELS = ("error", "warning", "note")


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "audit",
        help="what makes the comparison unsound",
        description="What makes a comparison unsound, by the rules of docs/analysis.md. The exit status is 1 where "
        "there is an error (with --strict: or a warning), 0 otherwise, 2 for a mistake in the command. A file of run "
        "notes is read as `import` reads it; each imported study is audited by itself.",
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="runs, sweeps, outputs, imports, reference, notes")
    parser.add_argument("--format", choices=FORMATS, default="text", help="default: text")
    parser.add_argument("--level", choices=LEVELS, default="note", help="show findings of this level and worse")
    parser.add_argument("--strict", action="store_true", help="warnings count for the exit status too")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from analysis.auditing.audit import audit, by_study, varied_by
    from analysis.auditing.printing import printed
    from analysis.auditing.run import runs_of
    from analysis.reading.records import records

    full = records(args.paths, sources=True)
    findings = audit(full, varied_by(args.paths))
    shown = [finding for finding in findings if LEVELS.index(finding.level) <= LEVELS.index(args.level)]
    studies = {study: len(runs) for study, runs in by_study(runs_of(full)).items()}
    print(printed(shown, len(full), args.format, studies))
    counting = ("error", "warning") if args.strict else ("error",)
    counted = [finding for finding in findings if finding.level in counting]
    if counted and not any(finding in shown for finding in counted):
        number = f"{len(counted)} finding{'s' * (len(counted) != 1)}"
        print(f"exit status 1: --level={args.level} hides {number} that --strict counts", file=sys.stderr)
    return int(bool(counted))
