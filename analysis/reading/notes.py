"""Run notes, by whatever hand, read as imported runs."""

import re
from itertools import count
from pathlib import Path
from typing import Any

from analysis.reading.figures_in_dicts import Figure
from analysis.reading.imports import Import, imported_run, safe_stem, state_of
from analysis.reading.older_notes import own_text, own_warnings
from analysis.reading.own_notes import own_notes
from analysis.reading.readings import agree, contradictions_of, first, readings_of
from analysis.reading.record import Recorded, Study
from analysis.reading.sections import Section, sections_of
from analysis.reading.sorting import merge_repeated, move_results
from analysis.text import clean
from sae_sweeps.errors import DataError


def parse_notes(text: str, name: str, path: Path) -> Import:
    """The imported runs (see `imported_run`) in run notes, written by this project or by hand.

    Runs begin at a heading (`## Run 3: title`) or where a line introduces their dict (`Run 3 completed. Results:`,
    `Baseline results:`). Dicts may be Python or JSON literals, on one line or many, fenced or quoted, nested, several
    per run, cut short; figures may also be given in lists and phrases. Nothing is evaluated and nothing guessed: what
    could not be read is listed in the run's `recorded`, and with all that was decided in the import's `messages`.
    Raises DataError for notes without runs.
    """
    own, text = own_notes(text, name, path)
    notes = sections_of(text)
    if not any(section.is_run for section in notes):
        if own.runs:
            return own
        raise DataError(f"{path} holds no run notes; a run begins with a line such as `## Run 1: title`.")
    study, common = study_of(notes)
    number(notes, {run["run_id"].removeprefix(f"{name}/") for run in own.runs})
    messages = move_results(notes) + merge_repeated(notes)
    runs = []
    for section in notes:
        if section.is_run:
            run, about = run_of(section, name, common, study)
            runs.append(run)
            messages += about
    messages += planned(notes)
    return Import(name, path.name, "notes", own.runs + runs, own.study if own.runs else study, messages)


def study_of(notes: list[Section]) -> tuple[Study, dict[str, Any]]:
    """What the notes have outside runs: title, experiment, passages; and the config that all runs share."""
    study, common = Study(), dict[str, Any]()
    for section in notes:
        if section.is_run:
            continue
        for block in section.blocks:
            common |= {f.name: f.value for f in block.figures if f.role == "used"}
            for key, place in (("Title", "title"), ("Experiment", "experiment")):
                if isinstance(block.content.get(key), str) and not getattr(study, place):
                    setattr(study, place, clean(block.content[key], 2_000))
        text = described(section)
        label, found, rest = section.title.partition(":")
        if found and label.strip().lower() == "title":
            study.title = study.title or clean(rest, 300)
        elif found and label.strip().lower().startswith("experiment"):
            study.experiment = study.experiment or clean(f"{rest} {text}", 5_000)
            continue
        if text:
            study.passages.append({"heading": clean(section.title, 200), "text": text, "line": section.line})
    return study, common


def number(notes: list[Section], taken: set[str]) -> None:
    """Give runs without a number, or with one that is taken, one of their own.

    Baselines get a name, others the next number that is free.
    """
    for section in notes:
        if section.number in taken:
            section.number = ""
    taken |= {section.number for section in notes if section.number}
    unnumbered = [section for section in notes if section.is_run and not section.number]
    baselines = [section for section in unnumbered if section.is_baseline]
    for section in unnumbered:
        if section.is_baseline and section.introduced:
            rest = re.sub(r"(?i)^\W*(?:the\s+)?baseline\W*", "", section.title)
            section.number = safe_stem(f"baseline_{rest}".lower()) if len(baselines) > 1 or "0" in taken else "0"
        else:
            section.number = next(str(n) for n in count() if str(n) not in taken)
            section.doubts.append(f"the notes give this run no number; it is counted as {section.number}")
        taken.add(section.number)


def run_of(section: Section, name: str, common: dict[str, Any], study: Study) -> tuple[dict[str, Any], list[str]]:
    """One run of an import, and remarks on how it was read."""
    figures = section.figures
    by_name = readings_of(figures)
    config, metrics = dict[str, Any](), dict[str, Any]()
    remarks: dict[str, str] = {}
    for key, found in by_name.items():
        chosen = first(found)
        if chosen.is_config:
            config[key] = chosen.value
        else:
            metrics[key] = chosen.value
        remark = next((figure.remark for figure in found if figure.remark), "")
        if remark:
            remarks[key] = clean(remark, 300)
    doubts, doubtful, contradicted = contradictions_of(by_name)
    for found in by_name.values():  # another value of a metric in another dict stays under its full name
        chosen = first(found)
        for other in found:
            if not other.is_config and other.place == "dict" and not agree(chosen, other) and "." in other.text:
                metrics.setdefault(other.text, other.value)
    steps = config.pop("steps", None)
    steps = metrics.get("steps") if steps is None else steps
    config = common | config
    if study.title and "study" not in config:
        config = {"study": name} | config
    state = section.state or ("completed" if section.is_own else state_of(steps, metrics))
    recorded = Recorded(
        line=section.line,
        evaluations={key: value for block in section.blocks for key, value in block.evaluations.items()},
        details={key: value for block in section.blocks for key, value in block.details.items()},
        readings={key: listed(found) for key, found in by_name.items() if several(found)},
        contradictions=contradicted,
        remarks=remarks,
        unread=section.unread,
        moved=section.moved,
    )
    run = imported_run(
        run_id=f"{name}/{section.number}",
        title=clean(section.title.strip(" *#"), 200),
        config=config,
        metrics=metrics,
        steps=int(steps) if isinstance(steps, int | float) and steps == steps else None,
        state=state,
        description=described(section),
        warnings=[*section.doubts, *doubts, *own_warnings(section.listed)],
        recorded=recorded,
    )
    messages = [f"Run {section.number}: {sentence}" for sentence in doubtful]
    messages += [f"line {u['line']}: not read ({u['why']}): {clean(u['text'], 120)}" for u in section.unread]
    return run, messages


def several(found: list[Figure]) -> bool:
    return any(figure.place == "text" for figure in found) or len({repr(figure.value) for figure in found}) > 1


def listed(found: list[Figure]) -> list[dict[str, Any]]:
    """The readings of one figure as `Recorded.readings` has them, each distinct value of a place once."""
    distinct = {(repr(figure.value), figure.place): figure for figure in reversed(found)}
    kept = [figure for figure in found if distinct[repr(figure.value), figure.place] is figure]
    return [{"value": plain(f.value), "line": f.line, "text": clean(f.text, 200), "in": f.place} for f in kept]


def plain(value: Any) -> Any:
    """The value as JSON has it: what is not finite as a word."""
    if isinstance(value, float) and value - value != 0:
        return "nan" if value != value else "inf" if value > 0 else "-inf"
    return value


def described(section: Section) -> str:
    """The text of a section in one line, without heading marks and the label `Description:`."""
    prose = "\n".join(own_text(section.text))
    return " ".join(re.sub(r"^\s*(?:#+ |\**Description\**:?\**)", "", prose, flags=re.M).split())


def planned(notes: list[Section]) -> list[str]:
    """A message on runs that the notes plan and have nothing of."""
    numbers = {section.number for section in notes if section.is_run}
    lines: dict[str, int] = {}
    for section in notes:
        for number_, line in section.planned:
            if number_ not in numbers:
                lines.setdefault(number_, line)
    if not lines:
        return []
    names = ", ".join(sorted(lines, key=lambda word: (len(word), word)))
    return [f"line {min(lines.values())}: planned, and no run of the notes: Run{'s' * (len(lines) > 1)} {names}"]
