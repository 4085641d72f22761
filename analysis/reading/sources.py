"""Notes, figures and SAEBench's result files as imports."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from analysis.reading.figures import figures_import, is_figures
from analysis.reading.imports import FORM, Import, safe_stem
from sae_sweeps.errors import DataError

LARGEST = 100 * 2**20
"""Bytes of a source that are read."""


def read_sources(paths: Iterable[str | Path]) -> list[Import]:
    """The imports of files, and of all JSON files in folders.

    Each notes or figures file is one, and each SAE of SAEBench's result files. Raises DataError for a source that is
    missing or holds nothing of these forms.
    """
    from analysis.reading.notes import parse_notes
    from analysis.reading.saebench import results_in, saebench_imports

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
            found.append(parse_notes(text, safe_stem(path.stem), path))
    return found + saebench_imports(results)


def files_of(paths: Iterable[str | Path]) -> Iterator[Path]:
    for path in map(Path, paths):
        if path.is_dir():
            # a summary repeats the file of its evaluation
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
        text = path.read_text("utf-8-sig")
        if "\0" in text:
            raise DataError(f"{path} is not text in UTF-8; save it as UTF-8 if it is text, or give another file.")
        if not text.strip():
            raise DataError(f"{path} is empty; give notes with runs, or a result file.")
        return text
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist; give a notes file, a result file or a folder with result files."
        ) from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not text in UTF-8; save it as UTF-8 if it is text, or give another file.") from None
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
    runs = content.get("runs") if isinstance(content, dict) else None
    if runs == []:
        return "its `runs` are an empty list"
    listed = runs if isinstance(runs, list) else [content]
    if any(isinstance(run, dict) and "run_id" in run for run in listed):
        return "it belongs to this project's runs, which `analysis table` takes as they are"
    return "a result file has eval_result_metrics, figures have runs, each with metrics"
