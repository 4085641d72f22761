"""`python -m analysis plots PATH... -o DIR`"""

import argparse

from sae_sweeps.errors import ConfigError


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "plots",
        help="the studies' figures as PNG and SVG",
        description="The studies' figures as PNG and SVG, each drawn where its data exist. `--list` names them.",
    )
    parser.add_argument("paths", nargs="*", metavar="PATH", help="a run or sweep folder, outputs, a results.json")
    parser.add_argument("-o", "--output", metavar="DIR", help="folder for the files")
    parser.add_argument("--only", metavar="NAME,...", help="these figures alone")
    parser.add_argument("--list", action="store_true", help="show the names of all figures and what they need")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draw; 0 where anything was drawn, else 1."""
    if args.list:
        from analysis.plots.registry import PLOTS

        for name, plot in PLOTS.items():
            print(f"{name:<22}  {plot.about}   ({plot.needs})")
        return 0
    if not args.paths:
        raise ConfigError("plots: no PATH is given; give a run's folder, a sweep's folder or the outputs folder.")
    if not args.output:
        raise ConfigError("plots: no folder is given for the figures; give one with -o DIR.")
    from analysis.plots.draw import draw
    from sae_sweeps.storage.files import check_output

    check_output("-o", args.output)
    only = [name for name in args.only.split(",") if name] if args.only is not None else None
    files = draw(args.paths, args.output, only)
    print(f"{len(files)} files in {args.output}" if files else "nothing to draw")
    return 0 if files else 1
