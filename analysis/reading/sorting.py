"""Results under another run's heading, and runs that notes repeat."""

import re
from itertools import count

from analysis.reading.figures_in_dicts import Block, Figure
from analysis.reading.readings import agree, contradictions_of, first, readings_of
from analysis.reading.sections import Section

MOST = 20
"""The most dicts of a run that are looked at."""
BASELINE = re.compile(r"^\W*(?:these are\s+)?(?:the\s+)?baseline\b", re.IGNORECASE)


def move_results(notes: list[Section]) -> list[str]:
    """Move dicts that are under another run's heading to the run that they belong to; a message for each.

    A dict is another run's where it contradicts the rest of its own run and agrees with exactly one other, in a figure
    in which the two differ; or where the text right after it calls it the baseline's and there is one baseline.
    """
    messages = []
    runs = [section for section in notes if section.is_run]
    for section in runs:
        doubtful = set(contradictions_of(readings_of(section.figures))[2])
        suspects = [b for b in section.blocks if BASELINE.match(b.after) or any(f.name in doubtful for f in b.figures)]
        for block in suspects[:MOST]:
            rest = [f for b in section.blocks if b is not block for f in b.figures] + section.text_figures
            owner, why = owner_of(block, section, rest, runs)
            if owner is None:
                continue
            section.blocks.remove(block)
            owner.blocks.append(block)
            for line, text in list(section.text):
                if line > block.line and BASELINE.match(re.sub(r"^\W*Description\W*", "", text)):
                    section.text.remove((line, text))
                    owner.text.append((line, text))
            owner.moved = (
                f"line {block.line}: these results are Run {owner.number}'s, not Run {section.number}'s: {why}"
            )
            messages.append(owner.moved)
    return messages


def owner_of(block: Block, section: Section, rest: list[Figure], runs: list[Section]) -> tuple[Section | None, str]:
    """The run that a dict is of, where that is not its own, and why."""
    at_home = readings_of(rest)
    here = readings_of(block.figures)
    conflicts = [name for name in here if name in at_home and not agree(first(here[name]), first(at_home[name]))]
    others = [other for other in runs if other is not section]
    fits = []
    for other in others:
        theirs = readings_of(other.figures)
        shared = [name for name in conflicts if name in theirs]
        if shared and all(agree(first(here[name]), first(theirs[name])) for name in here if name in theirs):
            fits.append((other, shared[0]))
    baselines = [other for other in others if other.is_baseline]
    called = BASELINE.match(block.after) is not None and not section.is_baseline and len(baselines) == 1
    reasons = []
    owner = None
    if called and (rest or conflicts) and (not fits or any(fit is baselines[0] for fit, _ in fits)):
        owner = baselines[0]
        reasons.append("the text after them calls them the baseline's")
    elif not called and len(fits) == 1:
        owner = fits[0][0]
    for fit, name in fits:
        if fit is owner:
            mine = first(at_home[name]).value
            reasons.append(f"{name} {first(here[name]).value} is Run {fit.number}'s, and Run {section.number}'s {mine}")
    return owner, ", and ".join(reasons) + "."


def merge_repeated(notes: list[Section]) -> list[str]:
    """Make runs that the notes repeat one; a message for each. Runs of one number that differ keep both."""
    messages = []
    found: dict[str, list[Section]] = {}
    for section in [section for section in notes if section.is_run]:
        before = found.setdefault(section.number or "", [])
        earlier = next((earlier for earlier in before[:MOST] if repeats(section, earlier)), None)
        if earlier is not None:
            known = {text.strip() for _, text in earlier.text}
            earlier.text += [(line, text) for line, text in section.text if text.strip() not in known]
            notes.remove(section)
            messages.append(f"line {section.line}: Run {section.number} again, as in line {earlier.line}")
            continue
        if before:
            number = section.number
            section.number = next(f"{number}-{n}" for n in count(len(before) + 1) if f"{number}-{n}" not in found)
            section.doubts.append(f"the notes use the number {number} twice; this run is counted as {section.number}")
            found[section.number] = []
        before.append(section)
    return messages


def repeats(section: Section, earlier: Section) -> bool:
    """Whether a section has no figure that the earlier one lacks."""
    here, before = readings_of(section.figures), readings_of(earlier.figures)
    return all(name in before and any(agree(f, g) for g in before[name]) for name, own in here.items() for f in own)
