"""`python -m analysis dashboard ENTITY/PROJECT [PATH...]`"""

import argparse
from pathlib import Path


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    words = commands.add_parser(
        "dashboard",
        help="W&B's workspace and report for a project, as code",
        description="Create the workspace and the report of a W&B project; a second time replaces them.",
    )
    words.add_argument("project", metavar="ENTITY/PROJECT")
    words.add_argument("paths", nargs="*", metavar="PATH", help="runs whose differing keys the dashboard shows")
    words.add_argument("--dump", type=Path, metavar="DIR", help="write workspace.json and report.json; ask no server")
    words.set_defaults(run=run)


def run(words: argparse.Namespace) -> None:
    from analysis.wandb.dashboard import KEYS, dump, save, split_project, varied_keys

    entity, project = split_project(words.project)
    keys = varied_keys(words.paths) if words.paths else list(KEYS)
    made = save(entity, project, keys) if words.dump is None else dump(entity, project, keys, words.dump)
    for name, place in zip(("workspace", "report"), made, strict=True):
        print(f"{name:<11}{place}")
