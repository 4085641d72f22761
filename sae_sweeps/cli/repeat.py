"""`launch.py --from RUN_DIR`: a run again from its own files, and whether it gives the same numbers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sae_sweeps.cli.compose import MULTIRUN, compose_points
from sae_sweeps.config.identity import IDENTITY, METHOD_VERSION, canonical, changed, digests_of, recorded_identity
from sae_sweeps.config.local import Local
from sae_sweeps.config.plugins import DIGEST, FILE, same_file
from sae_sweeps.config.run import RunConfig
from sae_sweeps.errors import ConfigError, DamagedFile, DataError, UserError
from sae_sweeps.storage.digests import digest_of_files, short_hash
from sae_sweeps.storage.files import check_output, read_json, without_new_folders, write_json
from sae_sweeps.storage.printing import print_line
from sae_sweeps.storage.run_folder import RunFolder
from sae_sweeps.storage.sweep_folder import run_path

FLAG = "--from"
REPEATS = "outputs/repeats"
"""Where repeats lie unless the command gives `outputs`: beside the runs, whose tables do not show them."""
PLACES = ("outputs", "device", "report", "logger", "cluster", "hydra.searchpath")
"""Keys and groups that a repeat takes from the command: where it runs, and where it is recorded."""
MOVED = ("model.path", "data.path", "data.forget", "data.retain")
"""Paths that may be others by now; what they hold is compared with what the run read."""
OF_COMMAND = ("outputs", "device", "logger")


def repeat(words: list[str], local: Local | None) -> int:
    """Train the run of `--from RUN_DIR` again and compare its numbers. Returns the exit status of the launch.

    Raises UserError, in one sentence, for what the run was made of and what is no longer the same here.
    """
    from sae_sweeps.cli.launch import carry_out, the_cluster
    from sae_sweeps.sweeps.plan import Plan, PlannedRun
    from sae_sweeps.sweeps.sweep import recorded_config, run_of

    folder, words = _split(words)
    here = [word for word in words if not word.startswith(MOVED)]
    if not any(word.startswith("outputs=") for word in here):
        here.append(f"outputs={REPEATS}")
    (point,) = compose_points(here, single=True, local=local)
    cfg = point.cfg
    saved, results = recorded_config(folder), RunFolder(folder).results() or {}
    made = results.get("provenance", {})
    rows = _rows(folder)  # here, so that a damaged log is an error before anything is trained
    _check_recorded(made, folder)
    saved |= {key: value for key, value in results.get("config", {}).items() if key == "eval"}  # of the last evaluation
    for key, _, value in (word.partition("=") for word in words):
        if key in MOVED and value:
            group, _, leaf = key.partition(".")
            saved[group][leaf] = str(Path(value).expanduser().absolute())
    _find_code_here(saved)
    run = run_of(saved, folder, cfg, OF_COMMAND)
    take_recorded_choices(run, made)
    outputs = Path(cfg.outputs)
    content = canonical(run, outputs / "activations" / "digests")
    refuse_another(run, folder, content)
    run_id = short_hash(content)
    if run_path(outputs, run_id).resolve() == folder.resolve():
        raise ConfigError(
            f"outputs={outputs}: the run itself lies there; give another place for its repeat, or leave the word out."
        )
    if "threads" in made and made.get("device") == "cpu":
        _use_threads(made["threads"])
    title = results.get("title") or run.title or run_id
    planned = PlannedRun(run, run_id, title, [f"{FLAG} {folder}"], digests=digests_of(content))
    cluster, made_file = the_cluster([point]), None
    with without_new_folders(run_path(outputs, run_id)):
        if not cfg.dry_run:
            check_output("outputs=", outputs)
            made_file = copy_selection(folder, run_path(outputs, run_id), run, made)
        try:
            status, ended = carry_out(Plan([planned], [], []), cfg, cluster)
        except UserError:
            if made_file is not None and list(made_file.parent.iterdir()) == [made_file]:
                made_file.unlink()
            raise
    if ended and status == 0 and results:
        print_line("repeat  " + compared(folder, results, rows, run_path(outputs, run_id)))
    return status


def _split(words: list[str]) -> tuple[Path, list[str]]:
    """The run's folder, and the other words. Raises ConfigError for words that a repeat does not take."""
    joined = [word.removeprefix(f"{FLAG}=") for word in words if word.startswith(f"{FLAG}=")]
    place = words.index(FLAG) if FLAG in words else -1
    after = words[place + 1 : place + 2] if place >= 0 else joined
    if not after or "=" in after[0] and not Path(after[0]).exists() or words.count(FLAG) + len(joined) > 1:
        raise ConfigError(f"{FLAG}: takes one run's folder, as in {FLAG} outputs/runs/RUN_ID.")
    folder = Path(after[0]).expanduser()
    rest = [*words[:place], *words[place + 2 :]] if place >= 0 else [w for w in words if not w.startswith(f"{FLAG}=")]
    if not folder.is_dir() or not (folder / "config.yaml").exists():
        raise DataError(f"{FLAG} {folder}: is no run's folder (it has no config.yaml); give one of outputs/runs.")
    for word in rest:
        key = word.partition("=")[0]
        if word in MULTIRUN:
            raise ConfigError(f"{word}: {FLAG} repeats one run; leave it out.")
        if word != "--dry-run" and key not in (*PLACES, *MOVED) and key.partition(".")[0] not in PLACES:
            raise ConfigError(
                f"{word}: a repeat keeps what the run was; give one of {', '.join((*PLACES, *MOVED))}, or launch "
                f"without {FLAG}."
            )
    return folder, rest


def _find_code_here(node: Any, place: str = "") -> None:
    """Give outside code whose file is gone the file of the same name and content in a folder that is searched.

    Raises DataError where there is none.
    """
    for key, value in node.items():
        if not isinstance(value, dict):
            continue
        inside = f"{place}.{key}".lstrip(".")
        file = value.get(FILE)
        if file and not Path(file).is_file():
            group = "schedule" if key == "schedule" else inside.partition(".")[0]
            found = same_file(group, file, str(value.get(DIGEST)))
            if found is None:
                raise DataError(
                    f"{inside}={value.get('name', key)}: its file {file} is missing; put it back, or name the folder "
                    "that holds it now, as hydra.searchpath=[file://FOLDER]."
                )
            value[FILE] = str(found)
        _find_code_here(value, inside)


def take_recorded_choices(run: RunConfig, made: dict[str, Any]) -> None:
    """Give `auto` the choice that the run recorded. Raises ConfigError where this machine has not what it used."""
    from sae_sweeps.kernels.choose import FAST, choose, name
    from sae_sweeps.runs.session import device_for

    kernels, device = str(made.get("kernels", "")), str(made.get("device", ""))
    if kernels.startswith(name(None)):
        run.train.kernels = name(None)
    elif kernels and (now := device_for(run.device)).type == device.partition(":")[0]:
        if (found := name(choose(run.train.kernels, now))) != kernels:
            raise ConfigError(
                f"train.kernels={run.train.kernels}: the run used {kernels}, and here they are {found}; install "
                f"{FAST[now.type]}, without which its numbers are not repeated bit for bit."
            )


def copy_selection(folder: Path, repeat: Path, run: RunConfig, made: dict[str, Any]) -> Path | None:
    """Give a run that has not begun the file by which the first one's features are found. Returns its path if made.

    made: what the first one recorded with its results; earlier versions recorded no selection, there or in a file.
    """
    from sae_sweeps.runs.task import SELECTION, unrecorded_selection
    from sae_sweeps.training.checkpoint import has_checkpoint

    if repeat.exists():
        return None
    if (folder / SELECTION).exists():
        selection = read_json(folder / SELECTION)
    elif made and "selection" not in made or not made and has_checkpoint(RunFolder(folder).checkpoint):
        selection = asdict(unrecorded_selection(run))
    else:
        return None
    write_json(repeat / SELECTION, selection)
    return repeat / SELECTION


def refuse_another(run: RunConfig, folder: Path, now: dict[str, Any]) -> None:
    """Raise DataError, in one sentence, where the run would not be the one in the folder."""
    name = folder.resolve().name
    before = recorded_identity(folder)
    if before is None:
        if short_hash(now) != name:
            raise DataError(
                f"{folder}: an earlier version made the run and did not record what its id is the hash of, and by its "
                "config it is another run now; launch its command again."
            )
        return
    if why := changed(run, digests_of(before), digests_of(now)):
        raise DataError(f"{name}: {why}")
    if before.get("method_version") != METHOD_VERSION:
        raise DataError(
            f"{name}: was trained by version {before.get('method_version')} of the method, and this is version "
            f"{METHOD_VERSION}, which gives other numbers; repeat it with the git_commit that its results.json names."
        )
    if before != now:
        differ = sorted({key for key in (*before, *now) if before.get(key) != now.get(key)})
        raise DataError(
            f"{name}: its config.yaml is not what its id was made of ({', '.join(differ)} differ from "
            f"{folder / IDENTITY}); restore it."
        )


def _check_recorded(made: dict[str, Any], folder: Path) -> None:
    """Raise DamagedFile for a value of the recorded provenance, of those that a repeat uses, of the wrong type."""
    threads, packages = made.get("threads", 1), made.get("packages") or {}
    for key, value, fits, kind in (
        ("threads", threads, type(threads) is int and threads >= 1, "whole number above 0"),
        ("packages", packages, isinstance(packages, dict), "object"),
    ):
        if not fits:
            raise DamagedFile(
                f"{RunFolder(folder).results_path} is damaged (its provenance.{key}={value} is no {kind}); restore it."
            )


def _use_threads(threads: int) -> None:
    """As many threads as the run had: sums in another number of parts have other last bits."""
    import torch

    os.environ["OMP_NUM_THREADS"] = str(threads)  # of other processes
    torch.set_num_threads(threads)


def compared(before: Path, old: dict[str, Any], old_rows: list[dict[str, Any]], after: Path) -> str:
    """Whether two runs, the first with the results `old`, have the same weights, log and metrics, in one sentence."""
    new = RunFolder(after).results()
    assert new is not None  # its last file, and it is complete
    both = [key for key in old["metrics"] if key in new["metrics"]]
    other = [key for key in both if old["metrics"][key] != new["metrics"][key]]
    found = {f"{len(both)} metrics": not other} if both else {}
    weights = [folder / "sae" / "sae_weights.safetensors" for folder in (before, after)]
    if all(path.exists() for path in weights):
        found["weights"] = len({digest_of_files([path], None) for path in weights}) == 1
    if old_rows:
        found[f"{len(old_rows)} rows of the log"] = old_rows == _rows(after)
    if not found:
        return f"nothing to compare: {before} has no weights, no log and no metric that the repeat has"
    left = len(old["metrics"]) - len(both)
    rest = f"; {left} metrics of evaluations of other settings are not repeated" if left else ""
    if all(found.values()):
        return f"bit for bit the numbers of {before}: {', '.join(found)}{rest}"
    shown = [f"{key} {new['metrics'][key]!r}, was {old['metrics'][key]!r}" for key in other[:3]]
    more = [f"{len(other) - 3} more metrics"] if len(other) > 3 else []
    parts = [what for what, same in found.items() if not same and not what.endswith("metrics")]
    differ = ", ".join(_made_otherwise(old["provenance"], new["provenance"]))
    return f"differs from {before}: {'; '.join([*shown, *more, *parts])} ({differ or 'nothing recorded differs'}){rest}"


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "tokens_per_s"} for row in RunFolder(folder).metrics.rows()]


def _made_otherwise(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """What of the recorded provenance differs that can change last bits."""
    for key in ("git_commit", "device", "threads", "kernels", "selection", "platform", "host"):
        if old.get(key) != new.get(key):
            yield f"{key} {new.get(key)}, was {old.get(key)}"
    for name, version in (old.get("packages") or {}).items():
        if version != (now := (new.get("packages") or {}).get(name)):
            yield f"{name} {now}, was {version}"
