"""Writes docs/records.md: the five studies' records side by side, as the importer reads them.

    python -m scripts.records_page PATH [FILE]

PATH is a folder with STUDY.txt of each study (see `scripts.check_records`), FILE the page (docs/records.md). Runs have
the titles of the project's reference.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from analysis.auditing.audit import audit, by_study
from analysis.auditing.printing import printed
from analysis.auditing.run import runs_of
from analysis.output.formats import render
from analysis.reading.figures import REFERENCE_PATH, figures_import
from analysis.reading.import_files import write_import
from analysis.reading.imports import Import
from analysis.reading.notes import parse_notes
from analysis.reading.records import records
from analysis.reading.sources import read_source
from analysis.tables.compare import table
from sae_sweeps.errors import UserError
from sae_sweeps.storage.files import read_json
from scripts.check_records import EXPECTED, reference_id

PAGE = Path(__file__).parents[1] / "docs" / "records.md"
TRAINED = (
    "title,state,step,lr_schedule.lr,lr_logged,l1_penalty,layer.index,final_loss,l0,ce_loss_score,kl_div_score,"
    "explained_variance_legacy,mean_absorption_score,sae_top_1_test_accuracy,scr_metric_threshold_10,unlearning_score"
)
EVALUATED = "layer.index,eval.*.layer,eval.*.model"
TEXT = """# The five studies' records

What the importer reads in the notes of the five studies that this project redoes, run for run. The page is written by
`python -m scripts.records_page RECORDS`, where RECORDS is a folder with the five files; the tables in it are those of

```
python -m analysis import RECORDS/*.txt -o outputs/records
python -m analysis table outputs/records --columns '{trained}'
python -m analysis table outputs/records --columns '{evaluated}'
```

with titles of ours. `make check-records RECORDS=FOLDER` compares all that is read, per-class detail included, with the
figures that ship with the project (`analysis/reference/runs.json`), which `python -m analysis table reference` shows
without the files. They also have what the runs of a study share, where this page has only what the notes give each run.

## What was read

| study | runs | metrics | per class | read, and not read |
| --- | ---: | ---: | ---: | --- |
{read}

## Training and results

An empty cell: the notes do not give it. `lr` was used, `lr_logged` is what the trainer's results log; `untrained` are 0
steps, `diverged` a loss of nan, `unrecorded` a run of which neither steps nor a result are given.

{results}

## Layer and model of each evaluation

`layer` is the layer of the training; an evaluation that names none is empty, and runs whose evaluations name neither
are left out.

{evaluations}

## What the audit finds

`python -m analysis audit RECORDS/*.txt --format markdown`, on the files as they are. The same rules read every sweep
([docs/analysis.md](analysis.md#audit)). Line numbers are those of the files; a text that it names is in quotes.

{audited}
"""


def main() -> int:
    if len(sys.argv) not in (2, 3):
        print(__doc__, file=sys.stderr)
        return 2
    folder, page = Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else PAGE
    try:
        page.write_text(written(folder), encoding="utf-8")
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"-> {page}")
    return 0


def written(folder: Path) -> str:
    """The page. Raises UserError where a record is missing or holds no runs."""
    titles = {run["run_id"]: run["title"] for run in figures_import(REFERENCE_PATH, read_json(REFERENCE_PATH)).runs}
    imports = [parse_notes(read_source(folder / f"{study}.txt"), study, folder / f"{study}.txt") for study in EXPECTED]
    for found in imports:
        for run in found.runs:
            run["title"] = titles[reference_id(run["run_id"])]
    with tempfile.TemporaryDirectory() as place:
        paths = [write_import(found, place)[0] for found in imports]
        return TEXT.format(
            trained=TRAINED.replace("lr_schedule.lr", "lr"),
            evaluated=EVALUATED,
            read="\n".join(map(line, imports)),
            results=rendered(paths, TRAINED, None),
            evaluations=rendered(paths, EVALUATED, " or ".join(f"eval.{name}.model != null" for name in NAMES)),
            audited=audited([folder / f"{study}.txt" for study in EXPECTED]),
        )


NAMES = ("core", "absorption", "scr", "sparse_probing", "unlearning")


def audited(files: list[Path]) -> str:
    """The audit's list for the files, its headings one level lower."""
    full = records(files, sources=True)
    studies = {study: len(runs) for study, runs in by_study(runs_of(full)).items()}
    return printed(audit(full), len(full), "markdown", studies).replace("\n##", "\n###")


def line(found: Import) -> str:
    remarks = "; ".join(message.rstrip(".") for message in found.messages) or "all of it"
    cells = (found.name, len(found.runs), found.n_numbers(), found.n_details(), remarks)
    return f"| {' | '.join(map(str, cells))} |"


def rendered(paths: list[Path], columns: str, where: str | None) -> str:
    """A table in Markdown, without the findings of the audit and without marks: it is of five studies."""
    shown = table(paths, columns=columns.split(","), where=where)
    fit = dict.fromkeys(shown.frame["run", "run_id"], "")
    words = render(replace(shown, warnings=[], levels={}, unfit=fit), "markdown")
    return words.partition("\n\n")[0].replace(" null ", "  ")


if __name__ == "__main__":
    sys.exit(main())
