"""Earlier work as records that stand beside runs: notes, figures, SAEBench's result files.

Each import is one file, `outputs/imported/NAME.json`, and says whose word it is.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.names import STEPS, config_name, present_names
from analysis.records import ABSENT, Record, flat_config
from sae_sweeps.errors import DamagedFile, DataError
from sae_sweeps.storage.files import read_json, write_json

FORM = "sae_sweeps import 1"
"""Marks a file that an import wrote, in its first line but one."""

REFERENCE = "reference"
"""The word that stands for the five studies' figures; `reference:STUDY` for those of one."""

REFERENCE_PATH = Path(__file__).parent / "reference" / "runs.json"

LARGEST = 100 * 2**20
"""Bytes of a source that are read."""


@dataclass
class Import:
    """What one source tells, as its file holds it."""

    name: str
    """Of the file, and before the run ids of notes."""
    source: str
    """The name of what was read."""
    kind: str
    """notes, figures or saebench."""
    runs: list[dict[str, Any]]
    """run_id, title, state, steps, config (dotted keys), metrics (flat; None where there is no number), description and
    warnings of each run."""

    def to_json(self) -> dict[str, Any]:
        return {"form": FORM, "source": self.source, "kind": self.kind, "runs": self.runs}

    def n_numbers(self) -> int:
        return sum(value is not None for run in self.runs for value in run["metrics"].values())


def imported_run(
    run_id: str,
    title: str,
    config: dict[str, Any],
    metrics: dict[str, Any],
    steps: Any = None,
    state: str = "completed",
    description: str = "",
    warnings: Iterable[str] = (),
) -> dict[str, Any]:
    """One run of an import; metrics under their present names, numbers that are not finite as None."""
    return {
        "run_id": run_id,
        "title": title,
        "state": state,
        "steps": steps,
        "config": {
            key: json.dumps(value) if isinstance(value, list | dict) else value for key, value in config.items()
        },
        "metrics": {name: finite(value) for name, value in present_names(metrics).items()},
        "description": description,
        "warnings": list(warnings),
    }


def finite(value: Any) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def safe_stem(name: str) -> str:
    return re.sub(r"[^\w.=+-]+", "_", name)[:80].strip("._") or "import"


# Reading sources -----------------------------------------------------------------------------------------------------


def read_sources(paths: Iterable[str | Path]) -> list[Import]:
    """The imports that files, and all JSON files of folders, stand for.

    Each notes or figures file is one, and each SAE of SAEBench's result files. Raises DataError for a source that is
    missing or holds nothing of these forms.
    """
    from analysis.notes import parse_notes
    from analysis.saebench import results_in, saebench_imports

    found: list[Import] = []
    results: list[tuple[Path, dict[str, Any]]] = []
    for path in files_of(paths):
        text = read_source(path)
        if path.suffix == ".json" or text.lstrip().startswith(("{", "[")):
            content = parse_json(path, text)
            if sides := results_in(content):
                results += [(path, side) for side in sides]
            elif is_figures(content):
                found.append(figures_import(path, content))
            else:
                raise DataError(f"{path} is neither SAEBench's result file nor figures of runs; {what_it_is(content)}.")
        else:
            runs = parse_notes(text, safe_stem(path.stem), path)
            found.append(Import(safe_stem(path.stem), path.name, "notes", runs))
    return found + saebench_imports(results)


def files_of(paths: Iterable[str | Path]) -> Iterator[Path]:
    for path in map(Path, paths):
        if path.is_dir():
            # a summary says again what its evaluation's file says
            inside = sorted(file for file in path.rglob("*.json") if not file.name.endswith(".summary.json"))
            if not inside:
                raise DataError(f"{path} holds no JSON file; give notes, result files or a folder with result files.")
            yield from inside
        else:
            yield path


def read_source(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST:
            raise DataError(f"{path} is larger than {LARGEST >> 20} MiB; give the notes or result file itself.")
        return path.read_text("utf-8-sig")
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist; give a notes file, a result file or a folder with result files."
        ) from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not text in UTF-8; give a notes file or a JSON file.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the path and its permissions.") from None


def parse_json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)  # NaN, Infinity and -Infinity too
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} does not read as JSON ({' '.join(str(error).split())}); mend or restore it.") from None


def what_it_is(content: Any) -> str:
    if isinstance(content, dict) and content.get("form") == FORM:
        return "it is an import already, which `analysis table` takes as it is"
    if isinstance(content, dict) and ("run_id" in content or "runs" in content):
        return "it belongs to this project's runs, which `analysis table` takes as they are"
    return "a result file has eval_result_metrics, figures have runs, each with metrics"


# Figures -------------------------------------------------------------------------------------------------------------


def is_figures(content: Any) -> bool:
    runs = content.get("runs") if isinstance(content, dict) else None
    return isinstance(runs, list) and bool(runs) and all(isinstance(run, dict) and "metrics" in run for run in runs)


def figures_import(path: Path, content: dict[str, Any]) -> Import:
    """Figures in the form of the reference: {"runs": [{study, run, name, config, metrics, diverged}]}."""
    name = REFERENCE if path == REFERENCE_PATH else safe_stem(path.stem)
    runs = []
    for number, run in enumerate(content["runs"]):
        study = run.get("study")
        try:
            config = {config_name(key): value for key, value in flat_config(run.get("config") or {}).items()}
            metrics = {str(key): value for key, value in run["metrics"].items() if is_number(value)}
        except (AttributeError, TypeError):
            raise DataError(f"{path}: run {number} has no config or metrics that read as such; mend it.") from None
        steps = next((config.pop(key) for key in STEPS if key in config), None)
        runs.append(
            imported_run(
                f"{study or name}/{run.get('run', number)}",
                str(run.get("name") or run.get("title") or ""),
                ({"study": study} if study else {}) | config,
                metrics,
                steps,
                "diverged" if run.get("diverged") else "completed",
                str(run.get("description") or ""),
            )
        )
    return Import(name, "the five studies' records" if name == REFERENCE else path.name, "figures", runs)


def is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


# Writing and reading imports -----------------------------------------------------------------------------------------


def write_import(found: Import, target: str | Path | None = None, replace: bool = False) -> tuple[Path, str]:
    """Write an import, by default to outputs/imported/NAME.json; its path, and `new`, `as before` or `replaced`.

    `target` is a file where it ends in .json, a folder otherwise. Raises DataError where a file with other content is
    in the way, unless `replace`.
    """
    place = Path("outputs") / "imported" if target is None else Path(target)
    path = place if place.suffix == ".json" else place / f"{found.name}.json"
    before = path.exists()
    if before and path.read_bytes() == as_bytes(found):
        return path, "as before"
    if before and not replace:
        raise DataError(f"{path} is there with other content; give --replace to replace it, or -o to write elsewhere.")
    write_json(path, found.to_json())
    return path, "replaced" if before else "new"


def as_bytes(found: Import) -> bytes:
    return (json.dumps(found.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def imported_records(path: str | Path) -> list[Record]:
    """The imported runs that a path stands for; none for a path of another kind.

    It is `reference`, a file that an import wrote, or a folder or outputs tree with such files.
    """
    word, _, study = str(path).partition(":")
    if word == REFERENCE and not Path(path).exists():
        return reference_records(study or None)
    path = Path(path)
    if path.is_dir():
        inside = [*path.glob("*.json"), *path.glob("imported/*.json")]
        files = [file for file in sorted(inside) if is_import(file)]
    else:
        files = [path] if path.is_file() and is_import(path) else []
    return [record for file in files for record in read_import(file)]


def reference_records(study: str | None = None) -> list[Record]:
    """The figures of the five studies, which ship with the project, or of one of them."""
    found = figures_import(REFERENCE_PATH, read_json(REFERENCE_PATH))
    runs = [run for run in found.runs if study in (None, run["config"]["study"])]
    if not runs:
        studies = ", ".join(dict.fromkeys(run["config"]["study"] for run in found.runs))
        raise DataError(f"{REFERENCE}:{study}: there is no such study; choose one of {studies}.")
    return [record_of(run, found.source, REFERENCE_PATH) for run in runs]


def is_import(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return f'"form": "{FORM}"'.encode() in file.read(100)
    except OSError:
        return False


def read_import(path: Path) -> list[Record]:
    content = read_json(path)
    try:
        return [record_of(run, content["source"], path) for run in content["runs"]]
    except (TypeError, KeyError, AttributeError, ValueError):
        raise DamagedFile(f"{path} is damaged (it does not list imported runs); restore it, or import again.") from None


def record_of(run: dict[str, Any], source: str, path: Path) -> Record:
    metrics = {name: ABSENT if value is None else float(value) for name, value in run["metrics"].items()}
    return Record(
        run_id=run["run_id"],
        folder=path.resolve().with_suffix("") / run["run_id"],  # there is none, so it holds nothing
        title=run["title"] or None,
        state=run["state"],
        step=run["steps"],
        total_steps=run["steps"],
        warnings=list(run["warnings"]),
        config=dict(run["config"]),
        metrics=metrics,
        source=f"as reported in {source}",
        description=run["description"] or None,
        nulls=[name for name, value in run["metrics"].items() if value is None],
    )
