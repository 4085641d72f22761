"""`sae-sweeps resume SWEEP_DIR`: launch the incomplete runs of a sweep again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sae_sweeps.cluster.watch import SweepWatcher
from sae_sweeps.errors import ConfigError
from sae_sweeps.storage.sweep_folder import change_manifest, outputs_of, read_manifest, run_path


def resume(sweep: Path, words: list[str], diverged: bool) -> int:
    """Launch the incomplete runs that have no live job again. Returns the exit status."""
    from sae_sweeps.cli.mistakes import let_threads_sleep

    let_threads_sleep()
    from sae_sweeps.cli.launch import finish
    from sae_sweeps.cluster.dispatch import Detached, dispatch
    from sae_sweeps.config.cluster import kind_of
    from sae_sweeps.runs.inline import run_all
    from sae_sweeps.runs.session import device_for
    from sae_sweeps.storage.run_folder import RunFolder
    from sae_sweeps.sweeps.sweep import stored_plan

    manifest = read_manifest(sweep)
    cluster = cluster_of(manifest, words)
    views = SweepWatcher(sweep).poll_decided()
    if manifest["cwd"] and Path(manifest["cwd"]).is_dir():
        sweep = sweep.resolve()
        os.chdir(manifest["cwd"])
    plan, outputs = stored_plan(sweep), outputs_of(sweep)
    if diverged:
        for view in views:
            if view.state == "diverged":
                RunFolder(run_path(outputs, view.run_id)).set_status(state="queued", error=None)
    change_manifest(sweep, lambda manifest: manifest.update(cluster=vars(cluster)))
    if kind_of(vars(cluster)) == "inline":
        states = run_all(plan, outputs, sweep, device_for(plan.runs[0].run.device), cluster=cluster)
    else:
        live = {view.run_id for view in views if view.job_state and view.job_state.alive and not view.ended}
        result = dispatch(plan, outputs, sweep, cluster, submitted=live)
        if isinstance(result, Detached):
            return result.status
        states = result
    return finish(plan, states, outputs, sweep, manifest["report"])


def cluster_of(manifest: dict[str, Any], words: list[str]) -> Any:
    """The cluster config: the one of `cluster=NAME`, or the sweep's own, with the keys that the words set."""
    from sae_sweeps.cli.compose import compose_points
    from sae_sweeps.config.cluster import cluster_config, kind_of

    for word in words:
        if not word.startswith(("cluster=", "cluster.")):
            raise ConfigError(f"{word}: resume takes words of the cluster group only; the runs are what they were.")
    saved = manifest["cluster"]
    another = any(word.startswith("cluster=") for word in words)
    points = compose_points(words if another else [f"cluster={kind_of(saved)}", *words])
    if len(points) != 1:
        raise ConfigError("resume takes one value of each key.")
    composed = points[0].cfg.cluster
    if another:
        return cluster_config(composed)
    given = {word.partition("=")[0].partition(".")[2] for word in words}
    return cluster_config(OmegaConf.create(saved | {key: composed[key] for key in given}))
