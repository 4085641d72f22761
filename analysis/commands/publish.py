"""`python -m analysis publish PATH...`"""

import argparse


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "publish",
        help="replay runs that have ended into W&B, and a sweep's run notes as a table",
        description="Send finished runs to W&B. Sending them again changes nothing there.",
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a run or sweep folder, outputs, a results.json")
    parser.add_argument("--project", default="sae-sweeps", help="default: sae-sweeps")
    parser.add_argument("--entity", help="default: the key's own")
    parser.add_argument("--mode", choices=("online", "offline"), default="online", help="default: online")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from analysis.wandb.publish import publish
    from sae_sweeps.config.schema import LoggerConfig

    logger = LoggerConfig(name="wandb", mode=args.mode, project=args.project, entity=args.entity)
    return publish(args.paths, logger, print)
