"""`python -m sae_sweeps COMMAND`: what one does beside launching. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sae_sweeps.errors import ConfigError, UserError


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m sae_sweeps", description="Beside launch.py: look before and after.")
    top.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    schedule = commands.add_parser(
        "schedule",
        help="draw the curves that a config will follow",
        description="Draw penalty weights, learning rate, threshold and k over the steps that a command would train.",
        usage="python -m sae_sweeps schedule [-o FILE] [key=value ...]",
    )
    schedule.add_argument("-o", "--output", type=Path, metavar="FILE", help="also write a .png, .svg, .pdf or .csv")
    schedule.add_argument("-m", "--multirun", action="store_true", help="as in launch.py; not needed here")
    schedule.add_argument("words", nargs="*", metavar="key=value", help="the words of a launch.py command")
    schedule.set_defaults(run=draw_schedule)
    evaluate = commands.add_parser(
        "evaluate",
        help="evaluate finished runs, sweeps, or any SAE in SAELens's format",
        description="Evaluate SAEs that share a model and layer side by side; what is done already is skipped.",
        usage="python -m sae_sweeps evaluate PATH [PATH ...] [eval=quick|full] [key=value ...]",
    )
    evaluate.add_argument("words", nargs="+", metavar="PATH or key=value", help="paths, then words of launch.py")
    evaluate.set_defaults(run=evaluate_paths)
    status = commands.add_parser(
        "status",
        help="how every run of a sweep stands",
        description="State, progress, last loss and job of every run; a run whose job is gone is found out.",
    )
    status.add_argument("sweep", type=Path, metavar="SWEEP_DIR", help="a folder of outputs/sweeps")
    status.add_argument("--watch", action="store_true", help="again and again, until every run is at its end")
    status.add_argument("--json", action="store_true", help="one list of objects")
    status.set_defaults(run=show_status)
    resume = commands.add_parser(
        "resume",
        help="launch again what is not complete",
        description="Launch again what is not complete of a sweep, where it was or where the words say.",
        usage="python -m sae_sweeps resume SWEEP_DIR [--diverged] [cluster=...] [cluster.key=value ...]",
    )
    resume.add_argument("sweep", type=Path, metavar="SWEEP_DIR", help="a folder of outputs/sweeps")
    resume.add_argument("--diverged", action="store_true", help="also what diverged")
    resume.add_argument("words", nargs="*", metavar="cluster...", help="words of the cluster group")
    resume.set_defaults(run=resume_sweep)
    cancel = commands.add_parser(
        "cancel",
        help="cancel what is queued or running",
        description="End the jobs of a sweep and mark its runs cancelled; `resume` takes them up again.",
    )
    cancel.add_argument("sweep", type=Path, metavar="SWEEP_DIR", help="a folder of outputs/sweeps")
    cancel.set_defaults(run=cancel_sweep)
    return top


def show_status(words: argparse.Namespace) -> int:
    from sae_sweeps.cli.status import status

    return status(words.sweep, words.watch, words.json)


def resume_sweep(words: argparse.Namespace) -> int:
    from sae_sweeps.cli.resume import resume

    return resume(words.sweep, words.words, words.diverged)


def cancel_sweep(words: argparse.Namespace) -> int:
    from sae_sweeps.cli.cancel import cancel

    return cancel(words.sweep)


def evaluate_paths(words: argparse.Namespace) -> int:
    from sae_sweeps.cli.evaluate import evaluate

    is_path = {word: "=" not in word or Path(word).exists() for word in words.words}
    paths = [Path(word) for word in words.words if is_path[word]]
    given = [word for word in words.words if not is_path[word]]
    if not paths:
        raise ConfigError("evaluate needs a path: a run, a sweep, an outputs folder or an SAE's folder.")
    return evaluate(paths, given)


def draw_schedule(words: argparse.Namespace) -> None:
    from sae_sweeps.cli.compose import compose_points
    from sae_sweeps.sweeps.curves import draw, write
    from sae_sweeps.sweeps.plan import make_plan

    plan = make_plan(compose_points(words.words))
    print(draw(plan.runs))
    for warning in plan.warnings:
        print(f"warning: {warning}")
    if words.output is not None:
        write(plan.runs, words.output)
        print(f"written to {words.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status, or 2 for a mistake, told in one sentence."""
    words = parser().parse_args(argv)
    debug = words.debug or os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        return words.run(words) or 0
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug or not is_mistake(error):
            raise
        from sae_sweeps.cli.command import complain
        from sae_sweeps.config.mistakes import sentence

        return complain(sentence(error))


def is_mistake(error: Exception) -> bool:
    """Whether the user can mend it: ours, or one of Hydra's about the words."""
    if isinstance(error, UserError):
        return True
    return type(error).__module__.partition(".")[0] in ("hydra", "omegaconf")


if __name__ == "__main__":
    sys.exit(main())
