"""`python -m analysis features RUN... -o FILE`"""

import argparse
from pathlib import Path


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "features",
        help="one page about every feature: what it fires on, its logits, its neighbours",
        description="One self-contained page about the features of runs. What a run's features fire on is collected "
        "first where that was not done (`sae-sweeps evaluate RUN eval=features`), for all of them together. `--format "
        "neuronpedia` writes the JSON of SAEDashboard for Neuronpedia, a folder of a run's name for each run.",
    )
    parser.add_argument("paths", nargs="+", metavar="RUN", help="a run's folder, or a sweep's")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="features.html; a folder with neuronpedia")
    parser.add_argument("--format", choices=("html", "neuronpedia"), default="html", help="default: html")
    parser.add_argument("--title", help="the page's title")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from analysis.features.neuronpedia import write_batches
    from analysis.features.page import page
    from analysis.features.stored import all_stored, collect, folders_of
    from sae_sweeps.storage.files import check_output, write_text

    as_page = args.format == "html"
    output = args.output or Path("features.html" if as_page else "neuronpedia")
    check_output("-o", output, "features.html" if as_page else None)
    folders = folders_of(args.paths)
    collect(list(folders))
    runs = all_stored(folders)
    if as_page:
        title = args.title or f"Features of {', '.join(one.title for one in runs[:3])}{' ...' * (len(runs) > 3)}"
        write_text(output, page(runs, title))
        total, n, size = sum(one.d_sae for one in runs), len(runs), output.stat().st_size
        print(f"{total:,} features of {n} run{'s' * (n != 1)} -> {output} ({size / 1e6:.1f} MB)")
        return
    for one in runs:
        n_files = write_batches(one, output / one.run)
        print(f"{one.d_sae:,} features -> {output / one.run} ({n_files} files)")
