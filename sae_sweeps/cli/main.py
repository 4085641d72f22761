"""`sae-sweeps COMMAND ...`: launch and manage sweeps, evaluate SAEs, and analyse runs.

Importing this costs little: what a command needs is imported where it runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.__main__ import COMMANDS, with_values
from sae_sweeps.cli.mistakes import guarded, let_threads_sleep
from sae_sweeps.errors import ConfigError


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="sae-sweeps", description="Train, judge and compare sparse autoencoders.")
    top.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser(
        "launch", help="run or sweep: the same words as `python launch.py`, --help for the keys", add_help=False
    )
    _add_schedule(commands)
    _add_evaluate(commands)
    _add_status(commands)
    _add_resume(commands)
    _add_cancel(commands)
    for reading in COMMANDS:
        reading.add(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit status: 0, 1 (a run failed), 2 (a mistake, in one sentence), 130."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["launch"]:  # its words and flags are Hydra's
        sys.argv[0] = "sae-sweeps launch"
        from sae_sweeps.cli.command import main as launch

        return launch(argv[1:])
    words = parser().parse_args(with_values(argv))
    return guarded(lambda: words.run(words) or 0, words.debug)


Commands = argparse._SubParsersAction  # its type has no public name


def _add_schedule(commands: Commands[argparse.ArgumentParser]) -> None:
    words = commands.add_parser(
        "schedule",
        help="draw the curves that a config will follow",
        description="Draw penalty weights, learning rate, threshold and k over the steps that a command would train.",
        usage="sae-sweeps schedule [-o FILE] [key=value ...]",
    )
    words.add_argument("-o", "--output", type=Path, metavar="FILE", help="also write a .png, .svg, .pdf or .csv")
    words.add_argument("-m", "--multirun", action="store_true", help="as in launch; not needed here")
    words.add_argument("words", nargs="*", metavar="key=value", help="the words of a launch command")
    words.set_defaults(run=_schedule)


def _schedule(words: argparse.Namespace) -> None:
    from sae_sweeps.cli.compose import compose_points
    from sae_sweeps.storage.files import check_output
    from sae_sweeps.sweeps.curves import draw, write
    from sae_sweeps.sweeps.plan import make_plan

    if words.output is not None:
        check_output("-o", words.output, "curves.csv")
    plan = make_plan(compose_points(words.words))
    print(draw(plan.runs))
    for warning in plan.warnings:
        print(f"warning: {warning}")
    if words.output is not None:
        write(plan.runs, words.output)
        print(f"written to {words.output}")


def _add_evaluate(commands: Commands[argparse.ArgumentParser]) -> None:
    words = commands.add_parser(
        "evaluate",
        help="evaluate finished runs, sweeps, or any SAE in SAELens's format",
        description="Evaluate SAEs that share a model and layer side by side; what is done already is skipped.",
        usage="sae-sweeps evaluate PATH [PATH ...] [eval=quick|full] [key=value ...]",
    )
    words.add_argument("words", nargs="+", metavar="PATH or key=value", help="paths, then words of a launch command")
    words.set_defaults(run=_evaluate)


def _evaluate(words: argparse.Namespace) -> int:
    from sae_sweeps.cli.evaluate import evaluate

    is_path = {word: "=" not in word or Path(word).exists() for word in words.words}
    paths = [Path(word) for word in words.words if is_path[word]]
    given = [word for word in words.words if not is_path[word]]
    if not paths:
        raise ConfigError("evaluate needs a path: a run, a sweep, an outputs folder or an SAE's folder.")
    return evaluate(paths, given)


def _add_status(commands: Commands[argparse.ArgumentParser]) -> None:
    words = commands.add_parser(
        "status",
        help="the state of every run of a sweep",
        description="State, progress, last loss and job of every run; a run whose job is gone is marked lost.",
    )
    words.add_argument("sweep", type=Path, metavar="SWEEP_DIR", help="a folder of outputs/sweeps")
    words.add_argument("--watch", action="store_true", help="again and again, until every run has ended")
    words.add_argument("--json", action="store_true", help="one list of objects")
    words.set_defaults(run=_status)


def _status(words: argparse.Namespace) -> int:
    from sae_sweeps.cli.status import status

    return status(words.sweep, words.watch, words.json)


def _add_resume(commands: Commands[argparse.ArgumentParser]) -> None:
    words = commands.add_parser(
        "resume",
        help="launch again what is not complete",
        description="Launch again what is not complete of a sweep, on the same cluster or on the one given.",
        usage="sae-sweeps resume SWEEP_DIR [--diverged] [cluster=...] [cluster.key=value ...]",
    )
    words.add_argument("sweep", type=Path, metavar="SWEEP_DIR", help="a folder of outputs/sweeps")
    words.add_argument("--diverged", action="store_true", help="also runs that diverged")
    words.add_argument("words", nargs="*", metavar="cluster...", help="words of the cluster group")
    words.set_defaults(run=_resume)


def _resume(words: argparse.Namespace) -> int:
    let_threads_sleep()
    from sae_sweeps.cli.resume import resume

    return resume(words.sweep, words.words, words.diverged)


def _add_cancel(commands: Commands[argparse.ArgumentParser]) -> None:
    words = commands.add_parser(
        "cancel",
        help="cancel what is queued or running",
        description="End the jobs of a sweep and mark its runs cancelled; `resume` starts them again.",
    )
    words.add_argument("sweep", type=Path, metavar="SWEEP_DIR", help="a folder of outputs/sweeps")
    words.set_defaults(run=_cancel)


def _cancel(words: argparse.Namespace) -> int:
    from sae_sweeps.cli.cancel import cancel

    return cancel(words.sweep)
