"""Runs experiment=orthogonality on SmolLM2-135M with seeds 0, 1, 2 and writes docs/results.md: `make study`.

The plan comes first, with its estimate: one short run of each architecture is trained and evaluated, and their
seconds are scaled (not for jobs of a cluster). Then the stages, in this order: TopK, BatchTopK, twice the k, half the
d_sae. What does not fit --hours is left out from the end (sizes first, then BatchTopK; never a seed) and named on the
page. Complete runs are not trained again, so an interrupted study goes on where it was.

The page is written from docs/results_notes.txt, the notes of all runs, and docs/results_stages.json, what the runs of
each stage took, where, and what the audit found in them: every number in it follows from these files. Stages in them
whose runs are not in --outputs stay: another machine's, for a study that is shared out with --stage.
"""

from __future__ import annotations

import argparse
import io
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from analysis.reading.configs import flat_config
from sae_sweeps.cli.compose import compose_points
from sae_sweeps.config.evaluations import prefix_of
from sae_sweeps.config.paths import config_dir
from sae_sweeps.config.run import RunConfig, run_config
from sae_sweeps.storage.digests import short_hash
from sae_sweeps.storage.files import read_json, read_yaml, write_json, write_text
from scripts.launches import INTERRUPTED, ROOT, launch

PAGE, NOTES, STAGES = (ROOT / "docs" / name for name in ("results.md", "results_notes.txt", "results_stages.json"))
EXPERIMENT = "experiment=orthogonality"
PRESET = read_yaml(config_dir() / "experiment" / "orthogonality.yaml")
SEEDS = (0, 1, 2)
TRIAL_TOKENS = 40_960


@dataclass(frozen=True)
class Stage:
    title: str
    architecture: str
    k: int
    d_sae: int

    @property
    def words(self) -> list[str]:
        return [f"architecture={self.architecture}", f"k={self.k}", f"d_sae={self.d_sae}"]

    @property
    def where(self) -> str:
        """Its runs among all, as `analysis table --where` takes it."""
        return f"architecture = {self.architecture} and k = {self.k} and d_sae = {self.d_sae}"

    def has(self, config: dict[str, Any]) -> bool:
        """Whether a run of this config, whose keys are joined by dots, is one of its runs."""
        its = (config["architecture"], config["architecture.k"], config["architecture.d_sae"])
        return its == (self.architecture, self.k, self.d_sae)


def stages_of(run: RunConfig) -> list[Stage]:
    """The stages of the study whose first run this is, in the order in which they are run."""
    k, d_sae = run.architecture.k, run.architecture.d_sae
    return [
        Stage("TopK", "topk", k, d_sae),
        Stage("BatchTopK", "batch_topk", k, d_sae),
        Stage(f"TopK, k = {2 * k}", "topk", 2 * k, d_sae),
        Stage(f"TopK, d_sae = {d_sae // 2}", "topk", k, d_sae // 2),
    ]


METRICS = {
    "fvu_per_token": "fvu per token",
    "ce_loss_score": "CE score",
    "sae_top_1_test_accuracy": "probe, 1 feature",
    "sae_top_5_test_accuracy": "probe, 5 features",
    "scr_metric_threshold_10": "SCR, 10",
    "tpp_threshold_10_total_metric": "TPP, 10",
    "hierarchy_fine_top_1_accuracy": "hierarchy, fine",
    "unlearning_score": "unlearning",
    "mean_full_absorption_score": "absorption",
    "composition_rate": "composition",
    "nearest_neighbour_cosine": "nearest neighbour",
    "dead_features": "dead features",
}
"""Metrics of the page, without what their names begin with on labelled text: what reconstruction costs, what features
tell apart, and what they have in common."""
JUDGED = tuple(name for name in METRICS if name not in ("nearest_neighbour_cosine", "dead_features"))
"""The metrics that conclusions count: the cosine between rows is what the penalties minimise."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="WORD", help="further words of every launch: num_tokens=4_096_000")
    parser.add_argument("--outputs", type=Path, default=Path("outputs/study"), metavar="FOLDER")
    parser.add_argument("--hours", type=float, default=10.0, help="leave out stages that would take longer (10)")
    parser.add_argument("--write-only", action="store_true", help="write the page from the runs that exist")
    parser.add_argument("--stage", action="append", metavar="TITLE", help="only this stage, as the estimate names it")
    args = parser.parse_args()
    first = first_run(args.words)
    if args.write_only:
        write_page(args.outputs, args.words, first)
        return 0
    stages, started, hours = stages_of(first), time.monotonic(), {}
    if unknown := set(args.stage or ()) - {stage.title for stage in stages}:
        parser.error(f"--stage {sorted(unknown)[0]}: give one of {'; '.join(stage.title for stage in stages)}")
    if args.stage:
        stages = [stage for stage in stages if stage.title in args.stage]
    if not any(word.startswith("cluster=") for word in args.words):
        hours = estimate(args.outputs, args.words, stages, first.num_tokens)
        print(f"estimate: {', '.join(f'{title} {needed:.1f} h' for title, needed in hours.items())}", flush=True)
    status = 0
    for number, stage in enumerate(stages):
        spent = (time.monotonic() - started) / 3600
        if number and spent + hours.get(stage.title, 0.0) > args.hours:
            print(f"left out: {stage.title}: {spent:.1f} of {args.hours:g} hours are spent", flush=True)
            continue
        seeds = ",".join(map(str, SEEDS))
        with counted(args.outputs, stage.title):
            ended = launch_into(args.outputs, "-m", *args.words, *stage.words, f"seed={seeds}")
        if ended == INTERRUPTED:
            print("interrupted: run the same command again to continue; the page is unchanged", flush=True)
            return INTERRUPTED
        status |= ended
        write_page(args.outputs, args.words, first)
    return status


def first_run(words: list[str]) -> RunConfig:
    (point, *_) = compose_points([EXPERIMENT, "only=none", "architecture=topk", *words])
    return run_config(point.cfg)


@contextmanager
def counted(outputs: Path, stage: str) -> Iterator[None]:
    """Adds the hours inside to the stage's in hours.json, so that a resumed study knows what its runs took."""
    before = time.monotonic()
    try:
        yield
    finally:
        hours = spent_hours(outputs)
        hours[stage] = hours.get(stage, 0.0) + (time.monotonic() - before) / 3600
        write_json(outputs / "hours.json", hours)
        print(f"{stage}: {hours[stage]:.2f} hours", flush=True)


def spent_hours(outputs: Path) -> dict[str, float]:
    path = outputs / "hours.json"
    return read_json(path) if path.exists() else {}


def launch_into(outputs: Path, *words: str) -> int:
    return launch(EXPERIMENT, *words, f"outputs={outputs}", "report=false")


def estimate(outputs: Path, words: list[str], stages: list[Stage], num_tokens: int) -> dict[str, float]:
    """Hours that the runs left of each stage need, from a short run of each architecture that is trained and evaluated
    as the stages are."""
    others = [word for word in words if not word.startswith("num_tokens=")]
    folder = outputs / "trial" / short_hash(others)
    if not (folder / "seconds.json").exists():
        write_json(folder / "seconds.json", tried(outputs, folder, others))
    seconds = read_json(folder / "seconds.json")
    found = [read_json(path)["provenance"] for path in folder.glob("runs/*/results.json")]
    scale, done = num_tokens / TRIAL_TOKENS, results_in(outputs)
    harvest = scale * max(provenance["shared_time_s"] for provenance in found)
    training = scale * max(provenance["wall_time_s"] - provenance["shared_time_s"] for provenance in found)
    left = {stage.title: len(PRESET["variants"]) * len(SEEDS) - len(folders_of(stage, done)) for stage in stages}
    hours = {title: runs * (training + seconds) / 3600 for title, runs in left.items()}
    if not done:
        hours[stages[0].title] += harvest / 3600
    return hours


def tried(outputs: Path, folder: Path, words: list[str]) -> float:
    """Seconds of a short run that finds the model's part of the evaluations ready."""
    shutil.rmtree(folder, ignore_errors=True)  # the rest of a trial is no measure
    folder.mkdir(parents=True)
    (outputs / "activations").mkdir(exist_ok=True)
    (folder / "activations").symlink_to(Path("..", "..", "activations"))
    for architecture in ("topk", "batch_topk"):
        before = time.monotonic()
        trial = [f"architecture={architecture}", f"num_tokens={TRIAL_TOKENS}", "only=progressive"]
        if (ended := launch_into(folder, *trial, *words)) == INTERRUPTED:
            raise SystemExit(INTERRUPTED)
        if ended:
            raise SystemExit(f"the trial of {architecture} failed; mend what it printed and run this again")
    return time.monotonic() - before


def results_in(outputs: Path) -> dict[Path, dict[str, Any]]:
    """results.json of every run, by the run's folder."""
    return {path.parent: read_json(path) for path in sorted((outputs / "runs").glob("*/results.json"))}


def folders_of(stage: Stage, results: dict[Path, dict[str, Any]]) -> list[Path]:
    return [folder for folder, result in results.items() if stage.has(flat_config(result["config"]))]


def write_page(outputs: Path, words: list[str], first: RunConfig) -> None:
    """The notes of all runs and the facts of their stages, and from these the figure and the page."""
    stages, facts = stages_of(first), read_json(STAGES) if STAGES.exists() else {}
    results, here = results_in(outputs), {}
    for stage in stages:
        folders = folders_of(stage, results)
        if len(folders) >= (facts.get(stage.title, {}).get("runs") or 1):  # fewer replace no stage on the page
            here[stage] = folders
            facts[stage.title] = facts_of([results[folder] for folder in folders]) | {
                "hours": spent_hours(outputs).get(stage.title, 0.0),
                "audit": analysis("audit", *folders, check=False).strip(),
            }
    others = [stage for stage in stages if stage not in here]
    earlier = outputs / "earlier.json"
    kept = earlier_notes(earlier, others, first)
    facts = {stage.title: facts[stage.title] for stage in stages if stage in here or stage in kept}
    parts = [earlier] if kept else []
    if here:
        text, parts = outputs / "here.txt", [outputs / "here.json", *parts]
        analysis("notes", *(folder for folders in here.values() for folder in folders), "-o", text)
        # as the preset names its files
        write_text(text, text.read_text(encoding="utf-8").replace(str(Path.home()), "~"))
        analysis("import", text, "-o", parts[0], "--replace")
    analysis("notes", *parts, "-o", NOTES)
    write_json(STAGES, facts)
    imported = outputs / "imported.json"
    analysis("import", NOTES, "-o", imported, "--replace")
    write_text(PAGE, page(imported, facts, words, first))
    for number, stage in enumerate(stages):
        if stage.title in facts:
            draw(imported, stage, outputs / "plots", PAGE.with_name(figure_of(number)))


def figure_of(number: int) -> str:
    """The file of a stage's figure, beside the page."""
    return f"results_{number}.png" if number else "results.png"


def draw(imported: Path, stage: Stage, folder: Path, path: Path) -> None:
    """The figure of the effects within a stage."""
    content = read_json(imported)
    content["runs"] = [run for run in content["runs"] if stage.has(run["config"])]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "stage.json", content)
    analysis("plots", folder / "stage.json", "-o", folder, "--only", "effects", check=False)
    if (drawn := folder / "effects.png").exists():
        shutil.copyfile(drawn, path)


def earlier_notes(path: Path, stages: list[Stage], first: RunConfig) -> list[Stage]:
    """Write to `path` the runs that NOTES has of these stages, on this study's model, layer and number of tokens.

    Returns their stages.
    """
    if not NOTES.exists():
        return []
    path.parent.mkdir(parents=True, exist_ok=True)
    analysis("import", NOTES, "-o", path, "--replace")
    content = read_json(path)
    same = {"model": first.model.name, "layer.index": first.layer.index, "num_tokens": first.num_tokens}
    runs = [run for run in content["runs"] if same.items() <= run["config"].items()]
    kept = [stage for stage in stages if any(stage.has(run["config"]) for run in runs)]
    content["runs"] = [run for run in runs if any(stage.has(run["config"]) for stage in kept)]
    write_json(path, content)
    return kept


def facts_of(results: list[dict[str, Any]]) -> dict[str, Any]:
    """How many runs these are, and the machines that trained them."""
    made = [result["provenance"] for result in results]
    machines = {f"{one['threads']} threads of {one['platform']}, {one['device']}" for one in made}
    return {"runs": len(results), "machines": sorted(machines)}


def page(imported: Path, facts: dict[str, Any], words: list[str], first: RunConfig) -> str:
    """docs/results.md from the imported notes of all runs and the facts of their stages."""
    stages, names = stages_of(first), {name for run in read_json(imported)["runs"] for name in run["metrics"]}
    metrics = {plain: name for plain in METRICS for name in names if name == prefix_of(name) + plain}
    frames = {stage: means(imported, stage, metrics) for stage in stages if stage.title in facts}
    left = [stage.title for stage in stages if stage not in frames]
    on = {prefix_of(name) for name in metrics.values()} - {""}
    parts = [
        f"# What orthogonality does to features: {first.model.name}",
        "",
        f"Written by `make study{' WORDS=' + repr(' '.join(words)) if words else ''}`. {first.model.name}, layer "
        f"{first.layer.index}, {first.num_tokens:,} tokens for every run (`{PRESET['study'][first.model.name]}`), "
        "three seeds. Every number follows from "
        "[results_notes.txt](results_notes.txt) (`python -m analysis import docs/results_notes.txt`). "
        + ("Probes, SCR and TPP are on other texts than SAEBench's and are no SAEBench scores. " if on else "")
        + "Means over seeds; beside a variant's mean the difference to `none` of the same stage with its 95 % "
        "interval (Welch's t, three seeds), and d, the difference in standard deviations.",
    ]
    parts += [""] + [
        f"- {title}: {its['runs']} runs, trained and evaluated in {its['hours']:.1f} hours "
        f"({'; '.join(its['machines'])})."
        for title, its in facts.items()
    ]
    if left:
        parts += ["", f"Left out for time: {'; '.join(left)}."]
    parts += ["", "Variants, each with the preset's other keys at their defaults:", ""]
    parts += [f"- {title}: `{choice}`" for title, choice in PRESET["variants"].items()]
    parts += ["", "## What follows", "", *conclusion(frames)]
    for stage, frame in frames.items():
        picture = f"![{stage.title}: differences to none with 95 % intervals]({figure_of(stages.index(stage))})"
        parts += ["", f"## {stage.title}", "", picture, "", *table(frame)]
    parts += ["", "## What forbids a conclusion", "", "`python -m analysis audit` on the runs of each stage:"]
    for title, its in facts.items():
        parts += ["", f"{title}:", "", "```", its["audit"], "```"]
    return "\n".join(parts) + "\n"


def means(imported: Path, stage: Stage, metrics: dict[str, str]) -> pd.DataFrame:
    """A row per variant: means, standard deviations and differences to `none` of each metric, by METRICS' names.

    metrics: name in METRICS -> name in the runs.
    """
    columns = ",".join(["title", "state", *metrics.values()])
    text = analysis(
        "table", imported, "--where", stage.where, "--aggregate", "seed", "--baseline", "penalty = none",
        "--format", "csv", "--columns", columns,
    )  # fmt: skip
    frame = pd.read_csv(io.StringIO(text)).rename(columns=lambda name: name.removeprefix(prefix_of(name)))
    order = list(PRESET["variants"])
    return frame[frame["state"] == "completed"].sort_values("title", key=lambda titles: titles.map(order.index))


@dataclass(frozen=True)
class Effect:
    """A variant's difference to `none` in one metric."""

    difference: float
    low: float
    high: float
    d: float
    """In pooled standard deviations; infinite where neither varies and the means differ."""
    p: float
    """Of no difference, by Welch's t."""


def effect(frame: pd.DataFrame, row: dict[str, Any], name: str) -> Effect | None:
    base = frame[frame["title"] == "none"].iloc[0]
    parts = [f"{name}_{part}" for part in ("difference", "difference_low", "difference_high")]
    if any(part not in row or pd.isna(row[part]) for part in parts):
        return None
    stds, n = [float(one[f"{name}_std"]) for one in (base, row)], int(row[f"{name}_n"])
    pooled = math.sqrt(sum(std**2 for std in stds) / 2)
    p = stats.ttest_ind_from_stats(
        row[f"{name}_mean"], stds[1], n, base[f"{name}_mean"], stds[0], int(base[f"{name}_n"]), equal_var=False
    ).pvalue
    difference, low, high = (round(float(row[part]), 12) + 0.0 for part in parts)  # equal means differ by rounding
    d = difference / pooled if pooled else math.copysign(math.inf, difference) if difference else 0.0
    return Effect(difference, low, high, d, float(p))


def table(frame: pd.DataFrame) -> Iterator[str]:
    """A row per metric and variant: mean, standard deviation, difference with its interval, d."""
    yield "| metric | variant | mean ± std (n) | difference to none | 95 % interval | d |"
    yield "|---|---|---:|---:|---:|---:|"
    for name, title in METRICS.items():
        if f"{name}_mean" not in frame or frame[f"{name}_mean"].isna().all():
            continue
        for row in frame.to_dict("records"):
            found = None if row["title"] == "none" else effect(frame, row, name)
            mean, std, n = (row[f"{name}_{part}"] for part in ("mean", "std", "n"))
            cells = [f"{mean:.4g} ± {std:.2g} ({n:.0f})"]
            if found is None:
                cells += ["", "", ""]
            else:
                clear = "**" if found.low > 0 or found.high < 0 else ""
                cells += [f"{clear}{found.difference:+.3g}{clear}", f"{found.low:+.3g} to {found.high:+.3g}"]
                cells += [f"{found.d:+.1f}"]
            yield f"| {title} | {row['title']} | {' | '.join(cells)} |"


def conclusion(frames: dict[Stage, pd.DataFrame]) -> Iterator[str]:
    """What the differences support, counted; nothing else."""
    for stage, frame in frames.items():
        effects = {
            (row["title"], name): found
            for row in frame.to_dict("records")
            if row["title"] != "none"
            for name in JUDGED
            if (found := effect(frame, row, name)) is not None
        }
        clear = {place: found for place, found in effects.items() if found.low > 0 or found.high < 0}
        firm = holm({place: found.p for place, found in effects.items()})
        yield (
            f"- **{stage.title}.** {len(effects)} comparisons with `none` ({len({t for t, _ in effects})} variants, "
            f"{len({n for _, n in effects})} metrics, three seeds): in {len(clear)} the 95 % interval is on one side "
            f"of 0, where chance alone would give about {0.05 * len(effects):.0f}; {len(firm)} remain once all of the "
            "stage's comparisons are counted (Holm, 5 %)."
        )
        for (title, name), found in sorted(clear.items(), key=lambda item: item[1].p):
            mark = "remains" if (title, name) in firm else "does not remain once all comparisons are counted"
            yield (
                f"  - {title}: {METRICS[name]} {found.difference:+.3g} ({found.low:+.3g} to {found.high:+.3g}); {mark}."
            )
    yield ""
    yield (
        "One model, one layer, one text, few tokens, and one weight for each penalty: what a penalty does at another "
        "weight, or after a hundred times the tokens, these runs do not show. A metric without a clear "
        "difference is not one without an effect: with three seeds only differences of several standard deviations are "
        "seen."
    )


def holm(p_values: dict[Any, float]) -> set[Any]:
    """The comparisons that Holm's procedure rejects at 5 %."""
    out = set()
    for rank, (place, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        if not p <= 0.05 / (len(p_values) - rank):
            break
        out.add(place)
    return out


def analysis(command: str, *words: Any, check: bool = True) -> str:
    line = [sys.executable, "-m", "analysis", command, *map(str, words)]
    return subprocess.run(line, cwd=ROOT, check=check, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
