"""Carry out a plan in this process: group after group, and one table at the end."""

from __future__ import annotations

import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from sae_sweeps.config.schema import DataConfig, LocalConfig, SlurmConfig
from sae_sweeps.errors import ConfigError, UserError
from sae_sweeps.runs.evaluate import check_sources
from sae_sweeps.runs.inline import States, run_all
from sae_sweeps.runs.objective import check_objective, objective_of
from sae_sweeps.storage.files import check_output, without_new_folders, write_text
from sae_sweeps.storage.printing import print_line
from sae_sweeps.storage.sweep_folder import run_path
from sae_sweeps.sweeps.plan import Plan, Point, describe, make_plan
from sae_sweeps.sweeps.sweep import create_sweep


@dataclass
class Outcome:
    """What a launch came to."""

    status: int
    """Exit status: 0 everything completed, 1 a run failed or diverged, 130 interrupted."""
    values: list[float | None]
    """Each point's `objective`, the metric of results.json that a sweeper optimises; None where it is not set."""


def launch(points: list[Point]) -> Outcome:
    """Plan and run the points and print their table. Raises UserError for a mistake."""
    unknown: list[float | None] = [None] * len(points)
    if not points:
        return Outcome(0, unknown)
    plan = make_plan(points)
    cfg, cluster = points[0].cfg, the_cluster(points)
    if cfg.objective is not None:
        check_objective(cfg.objective, [planned.run for planned in plan.runs])
    status, ended = carry_out(plan, cfg, cluster)
    if not ended or cfg.objective is None:
        return Outcome(status, unknown)
    outputs = Path(cfg.outputs)
    return Outcome(status, [objective_of(run_path(outputs, run_id), cfg.objective) for run_id in plan.points])


def carry_out(plan: Plan, cfg: DictConfig, cluster: Any) -> tuple[int, bool]:
    """Run a plan, or describe it under `cfg.dry_run`. Returns the exit status and whether its runs have ended."""
    check_output("outputs=", cfg.outputs)
    plan.warnings += text_warnings(plan)
    check_sources(planned.run for planned in plan.runs)
    if cfg.dry_run:
        from sae_sweeps.cluster.dispatch import describe_submission

        print_line(describe(plan, describe_submission(plan, cluster)))
        return 0, False
    if plan.provisional:
        raise ConfigError(plan.provisional[0])
    for note in plan.notes:
        print_line(note)
    for warning in plan.warnings:
        print_line(f"warning: {warning}")
    for planned in plan.runs:
        if planned.equals:
            print_line(
                f"equal runs: {len(planned.equals) + 1} points are the same run, `{planned.title}`; it is trained once"
            )
    outputs = Path(cfg.outputs)
    if not isinstance(cluster, LocalConfig | SlurmConfig):
        from sae_sweeps.runs.session import device_for

        device = device_for(cfg.device)
        sweep = create_sweep(outputs, plan, cluster, cfg.report)
        states = run_all(plan, outputs, sweep, device, cluster=cluster)
    else:
        from sae_sweeps.cluster.dispatch import Detached, dispatch

        with without_new_folders(outputs / "sweeps"):
            sweep = create_sweep(outputs, plan, cluster, cfg.report)
            came = dispatch(plan, outputs, sweep, cluster)
        if isinstance(came, Detached):
            return came.status, False
        states = came
    return finish(plan, states, outputs, sweep, cfg.report), True


def text_warnings(plan: Plan) -> list[str]:
    """Warnings about the first rows of the runs' texts. Raises DataError for mistakes that they show."""
    from sae_sweeps.activations.text import look

    texts: list[DataConfig] = []
    for planned in plan.runs:
        if not planned.run.synthetic and planned.run.data not in texts:
            texts.append(planned.run.data)
    return [warning for text in texts for warning in look(text)]


def the_cluster(points: list[Point]) -> Any:
    """The cluster group, which is no part of a run and so the same for all points."""
    from sae_sweeps.config.cluster import cluster_config

    clusters = [cluster_config(point.cfg.cluster) for point in points]
    if points[0].cfg.objective and getattr(clusters[0], "detach", False):
        raise ConfigError("cluster.detach=true: a sweep towards an objective has to wait for its runs; leave it out.")
    if any(cluster != clusters[0] for cluster in clusters):
        raise ConfigError("cluster: one for the whole command; its runs cannot be trained in several places.")
    return clusters[0]


def finish(plan: Plan, states: States, outputs: Path, sweep: Path, report: bool = True) -> int:
    """Print the table and the failures, and write the report. Returns the exit status."""
    from analysis.output.formats import render
    from analysis.tables.compare import table
    from sae_sweeps.cli.failures import failures

    publish_table(plan, sweep)

    comparison = table([sweep])
    print_line()
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print_line(render(comparison, "text", width=width))
    with suppress(UserError, OSError):  # a full disk: the table is on the screen
        write_text(sweep / "table.csv", render(comparison, "csv"))
        write_text(sweep / "table.md", render(comparison, "markdown"))
    print_line(f"runs    {outputs / 'runs'}")
    print_line(f"sweep   {sweep}   (table.csv, table.md)")
    if report and (page := report_of(sweep)) is not None:
        print_line(f"report  {page}")
    if report and (page := features_of(sweep)) is not None:
        print_line(f"features {page}")
    if (left := failures(sweep)) is not None:
        print_line()
        print_line(left)
    if states.interrupted:
        print_line("interrupted: the same command goes on from the checkpoints")
        return 130
    return int(any(state != "completed" for state in states.ended.values()))


def report_of(sweep: Path) -> Path | None:
    """Write the sweep's report.html; None on a full disk, where the runs' own files have to do."""
    from analysis.report import write_report

    try:
        return write_report([sweep], sweep / "report.html")
    except (UserError, OSError) as error:
        print_line(f"warning: no report: {error}")
        return None


def features_of(sweep: Path) -> Path | None:
    """Write features.html of the runs that were evaluated for it; None where none was, or on a full disk."""
    from analysis.features.page import page
    from analysis.features.stored import FILE, all_stored, folders_of

    try:
        folders = {folder: title for folder, title in folders_of([sweep]).items() if (folder / FILE).exists()}
        runs = all_stored(folders)
        if runs:
            write_text(sweep / "features.html", page(runs, f"Features of {sweep.name}"))
        return sweep / "features.html" if runs else None
    except (UserError, OSError) as error:
        print_line(f"warning: no page of features: {error}")
        return None


def publish_table(plan: Plan, sweep: Path) -> None:
    """With logger=wandb the sweep's run notes as a table of its own."""
    loggers = [planned.run.logger for planned in plan.runs if planned.run.logger.name != "none"]
    if not loggers:
        return
    from analysis.wandb.publish import publish_notes

    publish_notes(sweep, loggers[0], print_line)
