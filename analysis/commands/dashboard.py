"""`python -m analysis dashboard ENTITY/PROJECT [PATH...]`"""

import argparse
from pathlib import Path


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "dashboard",
        help="W&B's workspace and report for a project, as code",
        description="Create the workspace and the report of a W&B project; a second time replaces them.",
    )
    parser.add_argument("project", metavar="ENTITY/PROJECT")
    parser.add_argument("paths", nargs="*", metavar="PATH", help="runs whose differing keys the dashboard shows")
    parser.add_argument("--dump", type=Path, metavar="DIR", help="write workspace.json and report.json; ask no server")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from analysis.wandb.dashboard import KEYS, dump, save, split_project, varied_keys
    from sae_sweeps.storage.files import check_output

    if args.dump is not None:
        check_output("--dump", args.dump)
    entity, project = split_project(args.project)
    keys = varied_keys(args.paths) if args.paths else list(KEYS)
    made = save(entity, project, keys) if args.dump is None else dump(entity, project, keys, args.dump)
    for name, place in zip(("workspace", "report"), made, strict=True):
        print(f"{name:<11}{place}")
