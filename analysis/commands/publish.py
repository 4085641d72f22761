"""`python -m analysis publish PATH...`"""

import argparse


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    words = commands.add_parser(
        "publish",
        help="replay runs that have ended into W&B, and a sweep's run notes as a table",
        description="Send finished runs to W&B. Sending them again changes nothing there.",
    )
    words.add_argument("paths", nargs="+", metavar="PATH", help="a run or sweep folder, outputs, a results.json")
    words.add_argument("--project", default="sae-sweeps", help="default: sae-sweeps")
    words.add_argument("--entity", help="default: the key's own")
    words.add_argument("--mode", choices=("online", "offline"), default="online", help="default: online")
    words.set_defaults(run=run)


def run(words: argparse.Namespace) -> int:
    from analysis.wandb.publish import publish
    from sae_sweeps.config.schema import LoggerConfig

    logger = LoggerConfig(name="wandb", mode=words.mode, project=words.project, entity=words.entity)
    return publish(words.paths, logger, print)
