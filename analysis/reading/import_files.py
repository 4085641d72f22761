"""Files of imports: written, and read as Records."""

import json
from pathlib import Path
from typing import Any

from analysis.metrics import remember
from analysis.reading.figures import REFERENCE, REFERENCE_PATH, figures_import
from analysis.reading.imports import FORM, Import
from analysis.reading.record import ABSENT, Record, Recorded, Study
from sae_sweeps.errors import DamagedFile, DataError
from sae_sweeps.storage.files import read_json, write_json


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
    """The imported runs at a path; empty for a path of another kind.

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
    return [record_of(run, found.source, REFERENCE_PATH, found.study) for run in runs]


def source_records(path: str | Path) -> list[Record]:
    """The runs in a file of notes, figures or SAEBench's results, without writing an import; empty for other paths."""
    from analysis.reading.sources import read_sources

    path = Path(path)
    if not path.is_file() or path.name in ("results.json", "manifest.json"):
        return []
    return [record_of(run, one.source, path, one.study) for one in read_sources([path]) for run in one.runs]


def is_import(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return f'"form": "{FORM}"'.encode() in file.read(100)
    except OSError:
        return False


def read_import(path: Path) -> list[Record]:
    content = read_json(path)
    try:
        study = Study(**content.get("study", {}))
        return [record_of(run, content["source"], path, study) for run in content["runs"]]
    except (TypeError, KeyError, AttributeError, ValueError):
        raise DamagedFile(f"{path} is damaged (it does not list imported runs); restore it, or import again.") from None


def record_of(run: dict[str, Any], source: str, path: Path, study: Study) -> Record:
    metrics = {name: ABSENT if value is None else float(value) for name, value in run["metrics"].items()}
    recorded = Recorded(**run.get("recorded", {}), study=study)
    if run["steps"] is not None and "steps" not in metrics and (recorded.counted or not recorded.own):
        metrics["steps"], recorded.counted = float(run["steps"]), True
    remember(recorded.own.get("described", {}))
    return Record(
        run_id=run["run_id"],
        folder=path.resolve().with_suffix("") / run["run_id"],  # there is none, so it holds nothing
        title=run["title"] or None,
        state=run["state"],
        step=run["steps"],
        total_steps=recorded.own.get("total_steps", run["steps"]),
        error=recorded.own.get("error"),
        warnings=list(run["warnings"]),
        config=dict(run["config"]),
        metrics=metrics,
        source=f"as reported in {source}",
        description=run["description"] or None,
        nulls=[name for name, value in run["metrics"].items() if value is None],
        not_finite=list(run.get("not_finite", ())),
        recorded=recorded,
    )
