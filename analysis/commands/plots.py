"""`python -m analysis plots PATH... -o DIR`"""

import argparse

from sae_sweeps.errors import ConfigError


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    words = commands.add_parser(
        "plots",
        help="the studies' figures as PNG and SVG",
        description="The studies' figures as PNG and SVG, each drawn where its data are there. `--list` names them.",
    )
    words.add_argument("paths", nargs="*", metavar="PATH", help="a run or sweep folder, outputs, a results.json")
    words.add_argument("-o", "--output", metavar="DIR", help="folder for the files")
    words.add_argument("--only", metavar="NAME,...", help="these figures alone")
    words.add_argument("--list", action="store_true", help="show the names of all figures and what they need")
    words.set_defaults(run=run)


def run(words: argparse.Namespace) -> int:
    """Draw; 0 where anything was drawn, else 1."""
    if words.list:
        from analysis.plots.registry import PLOTS

        for name, plot in PLOTS.items():
            print(f"{name:<22}  {plot.about}   ({plot.needs})")
        return 0
    if not words.paths:
        raise ConfigError("plots: no PATH is given; give a run's folder, a sweep's folder or the outputs folder.")
    if not words.output:
        raise ConfigError("plots: no folder is given for the figures; give one with -o DIR.")
    from analysis.plots.draw import draw

    only = [name for name in words.only.split(",") if name] if words.only is not None else None
    files = draw(words.paths, words.output, only)
    print(f"{len(files)} files in {words.output}" if files else "nothing to draw")
    return 0 if files else 1
