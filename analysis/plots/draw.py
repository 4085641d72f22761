"""Figures as files."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from analysis.plots.registry import OLDER, PLOTS
from analysis.plots.study import Missing, Study
from analysis.plots.style import png, style, svg
from sae_sweeps.errors import ConfigError, did_you_mean
from sae_sweeps.storage.files import write_bytes, write_text


def draw(
    paths: Iterable[str | Path],
    folder: str | Path,
    only: Sequence[str] | None = None,
    report: Callable[[str], None] = print,
) -> list[Path]:
    """Every figure (or `only` those named) as NAME.png and NAME.svg in the folder; the files.

    `report` gets a line about each, what it shows or what is not there to draw it from, and one about each file left
    out as damaged. Raises DataError and DamagedFile as `records` does, ConfigError for a name that no figure has.
    """
    names = list(PLOTS) if only is None else known(only)
    study, files = Study.of(paths), list[Path]()
    with style():
        for name in names:
            try:
                fig = PLOTS[name].draw(study)
            except Missing as missing:
                report(f"{name}: left out, {missing}")
                continue
            here = [Path(folder) / f"{name}.png", Path(folder) / f"{name}.svg"]
            write_bytes(here[0], png(fig))
            write_text(here[1], svg(fig))
            files += here
            report(f"{name}: {PLOTS[name].about}")
    for sentence in study.damaged:
        report(f"warning: left out: {sentence}")
    return files


def known(names: Sequence[str]) -> list[str]:
    """The names of today, each once. Raises ConfigError for one that no figure has."""
    names = [OLDER.get(name, name) for name in names]
    for name in names:
        if name not in PLOTS:
            hint = did_you_mean(name, PLOTS, "`--list` shows the names.")
            raise ConfigError(f"--only {name!r}: there is no such figure; {hint}")
    return list(dict.fromkeys(names))
