"""W&B's workspace and report for a project, as code: curves by group, Pareto fronts, parallel coordinates, run table.

Both are built offline; only `save` needs the server. Saving again replaces what was saved before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.metrics import HEADLINES
from sae_sweeps.errors import ConfigError, NoNetwork
from sae_sweeps.storage.files import one_line, write_text
from sae_sweeps.tracking.wandb_sink import CLASSES, FIELDS, WATCHED

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import Report
    from wandb_workspaces.workspaces import Workspace

NAME = "SAE sweeps"
KEYS = (
    "architecture.name", "penalty.name", "penalty.lambda2_max", "architecture.k", "architecture.d_sae",
    "lr_schedule.lr", "layer.index", "seed",
)  # fmt: skip
"""Config keys of the parallel coordinates and the run table where no runs are given that differ in some."""
RESULTS = ("fvu", "ce_loss_score", "l0", "dead_features")
NOTED = ("training_steps", "final_loss", *FIELDS)
"""Fields of the run notes, in each run's summary."""
EVALUATED = (
    "kl_div_score", "ce_loss_score", "explained_variance", "explained_variance_legacy", "mse", "cossim", "l0", "l1",
    "sae_test_accuracy", "llm_test_accuracy", *HEADLINES,
)  # fmt: skip
"""The evaluations' metrics of which a bar is drawn, under SAEBench's names, as in the run notes."""
CURVES = {
    "Losses": ("loss", "recon_loss", "sparsity_loss", "penalty_loss"),
    "Sparsity": ("l0", "dead_features", "fvu", "held_out_fvu", "held_out_fvu_per_token"),
    "As used": ("lr", "penalty_weight", "k", "tokens_per_s"),
    "Gradient norms": ("grad_norm/total", "grad_norm/recon", "grad_norm/penalty"),
    "Watched pairs": tuple(f"pairs/{label}/{name}" for name in WATCHED for label in CLASSES),
}
"""Sections of curves and the metrics.jsonl keys in each; means of the watched pairs are added to its rows."""
TERMS = {"Terms of penalties": "^penalty/", "Losses of terms": "_loss$"}
"""Panels of all curves whose names match: those that penalties log are each penalty's own."""
PARETO = (("l0", "ce_loss_score"), ("l0", "explained_variance"), ("l0", "fvu"))


def split_project(word: str) -> tuple[str, str]:
    """ENTITY/PROJECT as two names. Raises ConfigError for anything else."""
    entity, slash, project = word.partition("/")
    if not (entity and slash and project) or "/" in project:
        raise ConfigError(f"{word}: give the project as ENTITY/PROJECT, such as my-lab/sae-sweeps.")
    return entity, project


def varied_keys(paths: Iterable[str | Path]) -> list[str]:
    """Config keys that differ among the runs of the paths, as W&B nests them: a group's name under `group.name`."""
    from analysis.columns import differing
    from analysis.reading.records import records

    frame = records(paths)
    names = {name for kind, name in frame.columns if kind == "config"}
    keys = [name for _, name in differing(frame)]
    return [f"{key}.name" if any(name.startswith(f"{key}.") for name in names) else key for key in keys]


def panels(keys: Sequence[str], results: Sequence[str]) -> dict[str, list[Any]]:
    """Sections and their panels; those on `results` use each run's summary, the others its history."""
    wr, _ = _library()
    group = wr.Config("penalty.name")
    sections: dict[str, list[Any]] = {
        name: [wr.LinePlot(title=metric, x="tokens", y=[metric], groupby=group) for metric in metrics]
        for name, metrics in CURVES.items()
    }
    sections["Penalties' terms"] = [
        wr.LinePlot(title=title, x="tokens", metric_regex=pattern, groupby=group) for title, pattern in TERMS.items()
    ]
    columns = [wr.ParallelCoordinatesPlotColumn(metric=wr.Config(key)) for key in keys]
    columns += [wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric(name)) for name in results]
    scatter = [
        wr.ScatterPlot(title=f"{y} against {x}", x=wr.SummaryMetric(x), y=wr.SummaryMetric(y)) for x, y in PARETO
    ]
    bars = [wr.BarPlot(title=name, metrics=[name], groupby=group) for name in dict.fromkeys((*results, *EVALUATED))]
    return {
        "As in the run notes": [wr.BarPlot(title=name, metrics=[name]) for name in NOTED],
        "Pareto": scatter,
        "Keys and results": [wr.ParallelCoordinatesPlot(title="Keys and results", columns=columns)],
        **sections,
        "Results by penalty": bars,
        "Runs side by side": [wr.RunComparer(diff_only="split")],
        "Run notes": [wr.WeavePanelSummaryTable(table_name="run_notes")],
    }


def workspace(entity: str, project: str, keys: Sequence[str] = KEYS, results: Sequence[str] = RESULTS) -> Workspace:
    """The project's workspace: runs grouped by sweep, the sections of `panels`."""
    _, ws = _library()
    made = ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[
            ws.Section(name=name, panels=shown, is_open=number < 3)
            for number, (name, shown) in enumerate(panels(keys, results).items())
        ],
        settings=ws.WorkspaceSettings(x_axis="tokens"),
        runset_settings=ws.RunsetSettings(
            groupby=[ws.Metric("group")],
            pinned_columns=[f"config:{nested(key)}" for key in keys]
            + [f"summary:{name}" for name in (*NOTED[:2], *results)],
        ),
    )
    made._internal_name = f"nw-{_fixed_name(entity, project)}-v"  # the same each time, so that saving replaces
    return made


def report(entity: str, project: str, keys: Sequence[str] = KEYS, results: Sequence[str] = RESULTS) -> Report:
    """The same panels as a report that can be shared, with a run table per section."""
    wr, _ = _library()
    blocks: list[Any] = [
        wr.TableOfContents(),
        wr.P("One run per training; runs of a sweep share its group. `python -m analysis audit` checks comparisons."),
    ]
    for name, shown in panels(keys, results).items():
        runset = wr.Runset(name=name, groupby=["group"])  # the report's own project; naming it would call the server
        blocks += [wr.H2(name), wr.PanelGrid(runsets=[runset], panels=shown)]
    return wr.Report(entity=entity, project=project, title=NAME, description="", width="fluid", blocks=blocks)


def dump(entity: str, project: str, keys: Sequence[str], folder: Path) -> list[Path]:
    """Write workspace.json and report.json, which need no network. Returns the paths."""
    made = {
        "workspace": workspace(entity, project, keys)._to_model(),
        "report": report(entity, project, keys)._to_model(),
    }
    written = []
    for name, model in made.items():
        path = folder / f"{name}.json"
        content = json.loads(model.model_dump_json(by_alias=True, exclude_none=True))
        write_text(path, json.dumps(content, indent=2) + "\n")
        written.append(path)
    return written


def save(entity: str, project: str, keys: Sequence[str]) -> list[str]:
    """Save both at W&B; their addresses. Raises NoNetwork where there is no key or no server."""
    import wandb

    try:
        if not wandb.login(prompt=False):
            raise NoNetwork("W&B knows no API key: run `wandb login`, or write files with --dump DIR.")
        saved_workspace = workspace(entity, project, keys).save()
        made = report(entity, project, keys)
        before = wandb.Api(timeout=30).reports(f"{entity}/{project}")
        made.id = next((found.id for found in before if found.display_name == NAME), "")
        made.save()
    except NoNetwork:
        raise
    except Exception as error:  # whatever the client raises, the user can only mend the connection or the names
        raise NoNetwork(
            f"{entity}/{project}: W&B did not take the dashboard ({one_line(error)}); check the names, the key and the "
            "network, or write files with --dump DIR."
        ) from error
    return [saved_workspace.url, made.url]


def nested(key: str) -> str:
    """A dotted config key as W&B stores it: `penalty.name` is `penalty.value.name`."""
    first, dot, rest = key.partition(".")
    return f"{first}.value{dot}{rest}"


def _fixed_name(entity: str, project: str) -> str:
    return hashlib.sha256(f"{entity}/{project}".encode()).hexdigest()[:11]


def _library() -> tuple[Any, Any]:
    """wandb-workspaces, an optional extra: its modules for reports and for workspaces."""
    try:
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    except ImportError:
        raise ConfigError(
            "dashboard needs wandb-workspaces: pip install 'sae-sweeps[dashboard]', or pip install wandb-workspaces."
        ) from None
    return reports, workspaces
