"""`python -m analysis import FILE...`"""

import argparse


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "import",
        help="earlier notes, figures and SAEBench result files as records beside runs",
        description="Read run notes, figures (runs.json) and SAEBench's result files; write a record file for each, "
        "which every command then shows beside runs. The five studies' figures need no import: they are the path "
        "`reference`.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="notes, a runs.json, result files or folders of them")
    parser.add_argument(
        "-o", "--output", metavar="PATH", help="a file ending in .json, or a folder (default: outputs/imported)"
    )
    parser.add_argument("--replace", action="store_true", help="replace a record file with other content")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from analysis.reading.import_files import write_import
    from analysis.reading.sources import read_sources
    from sae_sweeps.errors import ConfigError
    from sae_sweeps.storage.files import check_output

    if args.output is not None:
        check_output("-o", args.output, "import.json" if args.output.endswith(".json") else None)
    found = read_sources(args.files)
    if args.output is not None and args.output.endswith(".json") and len(found) > 1:
        raise ConfigError(f"-o {args.output}: there are {len(found)} imports and one file; give a folder.")
    for one in found:
        path, how = write_import(one, args.output, args.replace)
        doubts = sum(len(run["warnings"]) for run in one.runs)
        warned = f", {doubts} doubt{'s' * (doubts != 1)} (see `analysis audit`)" if doubts else ""
        runs = f"{len(one.runs)} run{'s' * (len(one.runs) != 1)}"
        numbers = f"{one.n_numbers():,} number{'s' * (one.n_numbers() != 1)}"
        detail = f", {one.n_details():,} per class" if one.n_details() else ""
        print(f"{one.source}: {runs}, {numbers}{detail}{warned} -> {path} ({how})")
        for message in one.messages:
            print(f"  {message}")
