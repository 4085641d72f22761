"""`python -m analysis compare RUN RUN`"""

import argparse
from pathlib import Path


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "compare",
        help="two runs' features beside each other: shared, split, merged, absorbed, lost, new",
        description="Match the features of two runs one to one by decoder rows and by activations, print what became "
        "of them, and write a page with their contexts side by side. The definitions are on the page and in "
        "docs/features.md.",
    )
    parser.add_argument("runs", nargs=2, metavar="RUN", help="a run's folder; the baseline first")
    parser.add_argument("-o", "--output", type=Path, default=Path("compare.html"), metavar="FILE", help="compare.html")
    parser.add_argument("--title", help="the page's title")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from analysis.features.comparison import comparison, lines
    from analysis.features.matching import compare
    from analysis.features.page import page
    from analysis.features.stored import all_stored, collect, folders_of
    from sae_sweeps.errors import ConfigError
    from sae_sweeps.storage.files import check_output, write_text

    check_output("-o", args.output, "compare.html")
    folders = folders_of(args.runs)
    if len(folders) != 2:
        count = f"{len(folders)} run{'s' * (len(folders) != 1)}"
        raise ConfigError(f"compare: {' and '.join(args.runs)} hold {count}; give two runs' folders.")
    collect(list(folders))
    first, second = all_stored(folders)
    found = comparison(compare(first, second))
    print("\n".join(lines(found)))
    title = args.title or f"Features of {first.title} and {second.title}"
    write_text(args.output, page([first, second], title, found))
    print(f"-> {args.output} ({args.output.stat().st_size / 1e6:.1f} MB)")
