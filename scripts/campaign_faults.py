"""Faults while runs are harvested, trained, evaluated and recorded: `python -m scripts.campaign_faults --faults 300`.

Each case is a small sweep that meets one fault: SIGKILL or a signal at a chosen moment of its writing or at a random
time, a write cut short, a full or read-only disk (a small file system of its own), a folder that vanishes, a file that
is corrupted or removed between two launches, in one process, in processes (cluster=local) and on a Slurm of its own.

After the fault every run must have the numbers of an undisturbed one, or a state with its reason in one sentence, and
`table` must show the sweep. Then the disk is mended, a damaged file is removed or restored as its sentence names it,
and the same command is launched again: every run must be complete with the numbers of an undisturbed one, and results
that were complete before must be the same bytes. Each violation is printed with the command that repeats its case.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any

from scripts.fault_injection import ENVIRONMENT, LASTING, ONCE, SIGNALS, TEMPORARY, Fault, Moment, install

PROJECT = Path(__file__).parents[1]
SYNTHETIC = [
    "-m", "model=synthetic", "model.d_in=16", "d_sae=32", "batch_size=64", "num_tokens=2560", "k=2,4",
    "train.checkpoint_every=10", "train.log_every=5", "train.monitor_every=20", "train.held_out_tokens=64",
    "eval.sparsity_batches=2", "device=cpu", "activations.mode=disk", "report=false", "outputs=o",
]  # fmt: skip
LANGUAGE = [
    "-m", "d_sae=64", "batch_size=128", "num_tokens=2048", "k=4,8", "data.context=32", "train.checkpoint_every=4",
    "train.log_every=2", "train.monitor_every=8", "train.held_out_tokens=64", "eval.batch_size=2",
    "eval.recon_batches=1", "eval.sparsity_batches=2", "device=cpu", "activations.mode=disk", "report=false",
    "outputs=o",
]  # fmt: skip
GRIDS = {"synthetic": SYNTHETIC, "language": LANGUAGE}
STAGES = {
    "planning": r"sweeps/SWEEP(/(manifest|configs)\.json)?|sweeps|runs",
    "harvest": r"activations.*",
    "start": r"runs/\w+(/(lease\.json|lease\.lock|config\.yaml|identity\.json))?",
    "step": r"runs/\w+/((metrics|monitors)\.jsonl|status\.json|monitors.*)",
    "checkpoint": r"runs/\w+/checkpoint.*",
    "export": r"runs/\w+/(sae.*|trained\.json)",
    "evaluation": r"runs/\w+/evals.*",
    "result": r"runs/\w+/results\.json",
    "table": r"sweeps/SWEEP/table\..*",
}
"""By the files that each stage writes."""
CORRUPTIONS = ("empty", "cut", "garbage", "flip", "other form", "folder", "removed")
TIMEOUT = 240


@dataclass(frozen=True)
class Case:
    number: int
    kind: str
    """moment, time, corrupt, disk, local or slurm."""
    grid: str = "synthetic"
    stage: str = ""


@dataclass
class Reference:
    """An undisturbed sweep of a grid, trees on its way, and the moments of its writing."""

    folder: Path
    trees: dict[str, Path]
    """half: killed in the middle of the training; trained: before an evaluation; complete."""
    moments: list[Moment]
    seconds: float


# Processes ------------------------------------------------------------------------------------------------------------


def forked(work: Callable[[], int], output: Path, timeout: float = TIMEOUT, cwd: Path | None = None) -> int:
    """Status of the work in a process of its own with its output in a file; negative for a signal, as subprocess."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            os.setsid()
            for number in (1, 2):
                os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), number)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)
            if cwd is not None:
                os.chdir(cwd)
            status = work()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        done, result = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(result)
        time.sleep(0.01)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise TimeoutError(f"it does not end within {timeout:.0f} s: {output.read_text()[-300:]}")


def launching(words: list[str]) -> Callable[[], int]:
    from sae_sweeps.cli.command import main

    return lambda: main(words)


def reading(words: list[str]) -> Callable[[], int]:
    from sae_sweeps.cli.main import main

    return lambda: main(words)


def warm_up() -> None:
    """Run each grid in this process, so that its children have all imported and compiled."""
    from sae_sweeps.activations import store
    from sae_sweeps.cli.command import main

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        saved = os.dup(1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        for words in GRIDS.values():
            if main(words):
                raise SystemExit("the undisturbed sweep does not complete")
            shutil.rmtree("o")
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.chdir(PROJECT)
    store._in_memory.clear()
    store._verified.clear()


# What must hold -------------------------------------------------------------------------------------------------------


def runs_of(outputs: Path) -> dict[str, Path]:
    return {folder.name: folder for folder in sorted((outputs / "runs").glob("*"))} if outputs.exists() else {}


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def numbers(folder: Path) -> dict[str, Any]:
    """All that must be the same however a run came to its end."""
    found: dict[str, Any] = {"weights": (folder / "sae" / "sae_weights.safetensors").read_bytes()}
    for name in ("metrics", "monitors"):
        lines = (folder / f"{name}.jsonl").read_text().splitlines()
        rows = [{k: v for k, v in json.loads(line).items() if k != "tokens_per_s"} for line in lines]
        found[name] = rows
    return found | {"results": read(folder / "results.json")["metrics"]}


def complete(folder: Path) -> bool:
    try:
        status, results = read(folder / "status.json"), read(folder / "results.json")
        return status["state"] == "completed" and status["error"] is None and "metrics" in results
    except (OSError, ValueError, TypeError):  # or other JSON than ours
        return False


def frozen(outputs: Path) -> dict[Path, bytes]:
    """The results that are complete, which no later launch may change."""
    kept = {}
    for folder in runs_of(outputs).values():
        if complete(folder):
            for name in ("results.json", "sae/sae_weights.safetensors", "metrics.jsonl"):
                if (folder / name).is_file():
                    kept[folder / name] = (folder / name).read_bytes()
    return kept


def faults_of_output(text: str, status: int) -> list[str]:
    """A sentence for each fault of a command's end."""
    found = []
    if "Traceback (most recent call last)" in text:
        found.append(f"a traceback: {text.strip().splitlines()[-1][:300]}")
    if status == 1 and not re.search(
        r"(failed|lost|damaged|diverged|interrupted|error:|completed in part|not answered)", text
    ):
        found.append(f"status 1 without a reason: {text[-300:]}")
    if status == 2 and not re.search(r"^error: .+$", text, re.MULTILINE):
        found.append(f"status 2 without a sentence: {text[-300:]}")
    if status not in (0, 1, 2, 130, -signal.SIGKILL, -signal.SIGTERM):  # the last before anything was trained
        found.append(f"status {status}: {text[-300:]}")
    return found


def faults_of_tree(outputs: Path, reference: Reference, all_complete: bool) -> list[str]:
    found = []
    expected, runs = runs_of(reference.folder / "o"), runs_of(outputs)
    if strange := runs.keys() - expected.keys():
        found.append(f"runs that are not in the sweep: {strange}")
    for name, undisturbed in expected.items():
        folder = outputs / "runs" / name
        if not all_complete and not complete(folder):
            with suppressed():
                status = read(folder / "status.json")
                if "\n" in str(status["error"]):
                    found.append(f"{name}: an error of several lines")
                if status["state"] in ("failed", "lost", "interrupted", "preempted") and not status["error"]:
                    found.append(f"{name}: {status['state']} without a reason")
            continue
        if not complete(folder):
            found.append(f"{name} is not complete at the end")
            continue
        try:
            there, known = numbers(folder), numbers(undisturbed)
        except (OSError, ValueError, KeyError) as error:
            found.append(f"{name} is complete, and {repr(error)[:200]}")
            continue
        found += [f"{name} is complete with other {key} than undisturbed" for key in known if there[key] != known[key]]
        left = [path for path in folder.rglob(".*.tmp") if not path.name.startswith((".status", ".lease", ".clock"))]
        if all_complete and left:
            found.append(f"{left[0]} is left")
    return found


@contextmanager
def suppressed() -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError):
        pass


MENDS = (
    (r"delete (?:the folder )?(\S+?)(?:,| to train)", "remove"),
    (r"(\S+) is damaged at line", "restore"),
    (r"(\S+) is damaged", "remove"),
    (r"(\S+) (?:cannot be read|is missing)", "restore"),
    (r"is a directory: '([^']+)'", "restore"),
)
"""Sentences about files, and what is done about the file that they name."""


def mend(text: str, cwd: Path, backup: Path | None) -> str | None:
    """Do as the sentence names it; what was done."""
    for pattern, how in MENDS:
        if found := re.search(pattern, text, re.IGNORECASE):
            path = (cwd / found[1].rstrip(":;,.")).absolute()
            if written := TEMPORARY.match(path.name):
                path = path.with_name(written[1])
            if not path.is_relative_to(cwd):
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            kept = backup and backup / path.relative_to(cwd)
            if how == "restore" and kept and kept.exists():
                shutil.copytree(kept, path) if kept.is_dir() else shutil.copy2(kept, path)
            return f"{how} {path.relative_to(cwd)}"
    return None


def relaunched(words: list[str], cwd: Path, reference: Reference, backup: Path | None) -> list[str]:
    """The same command until all is complete, mending what it names; the violations."""
    before = frozen(cwd / "o")
    mended: list[str] = []
    for attempt in range(4):
        output = cwd / f"again-{attempt}"
        status = forked(launching(words), output, cwd=cwd)
        text = output.read_text(errors="replace")
        if found := faults_of_output(text, status):
            return [f"relaunch: {sentence}" for sentence in found]
        if status == 0:
            break
        errors: list[str] = []
        for path in (cwd / "o").glob("runs/*/status.json"):
            with suppressed():
                errors.append(str(read(path)["error"]))
        if (done := mend("\n".join([text, *errors]), cwd, backup)) is None:
            return [f"relaunch ends with status {status} and no mend: {text[-400:]}"]
        mended.append(done)
    else:
        return [f"relaunch does not complete after {mended}"]
    found = faults_of_tree(cwd / "o", reference, all_complete=True)
    touched = {cwd / one.split(" ", 1)[1] for one in mended}
    for path, content in before.items():
        if any(path.is_relative_to(place) for place in touched):
            continue
        if not path.exists() or path.read_bytes() != content:
            found.append(f"{path.relative_to(cwd)} was complete, and is another file now")
    return found + table_faults(cwd)


def table_faults(cwd: Path) -> list[str]:
    """What is wrong with how `table` and `status` show whatever is there."""
    found = []
    commands = [["table", "o"], *(["status", str(sweep)] for sweep in sorted((cwd / "o" / "sweeps").glob("*"))[:1])]
    for words in commands if (cwd / "o").exists() else []:
        output = cwd / f"shown-{words[0]}-{time.monotonic_ns()}"
        status = forked(reading(words), output, cwd=cwd)
        text = output.read_text(errors="replace")
        if status not in (0, 2) or "Traceback (most" in text:
            found.append(f"{words[0]} ends with status {status}: {text[-300:]}")
    return found


# Cases ----------------------------------------------------------------------------------------------------------------


def moment_case(case: Case, chance: random.Random, cwd: Path, reference: Reference) -> tuple[str, list[str]]:
    """A launch that meets a fault at a moment of its stage."""
    moments = [m for m in reference.moments if re.fullmatch(STAGES[case.stage], m.name)]
    moment = chance.choice(moments)
    torn = ["torn"] * 3 if moment.kind in ("fsync", "row") else []
    action = chance.choice(["kill", "kill", *torn, *LASTING, *ONCE, *SIGNALS, "remove"])
    if action == "remove":
        run = moment.name.split("/")[1] if moment.name.startswith("runs/") and "/" in moment.name else ""
        places = ["", "activations", "sweeps", "runs", *([f"runs/{run}", f"runs/{run}/evals"] if run else [])]
        action = f"remove {chance.choice(places)}"
    fault = Fault(moment, action, chance.random())

    def launch() -> int:
        install(cwd / "o", fault, cwd / "fired")
        return launching(GRIDS[case.grid])()

    return after_fault(case, launch, cwd, reference, f"{action} at {moment.kind} {moment.name} #{moment.number}")


def after_fault(
    case: Case, launch: Callable[[], int], cwd: Path, reference: Reference, what: str, backup: Path | None = None
) -> tuple[str, list[str]]:
    output = cwd / "faulted"
    status = forked(launch, output, cwd=cwd)
    text = output.read_text(errors="replace")
    found = faults_of_output(text, status)
    all_complete = status == 0 and "remove" not in what  # a folder may go when all is done
    found += faults_of_tree(cwd / "o", reference, all_complete)
    found += table_faults(cwd)
    found += relaunched(GRIDS[case.grid], cwd, reference, backup)
    return f"{what}: status {status}", found


def time_case(case: Case, chance: random.Random, cwd: Path, reference: Reference) -> tuple[str, list[str]]:
    """SIGKILL at a random time."""
    seconds = chance.random() * reference.seconds

    def launch() -> int:
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
        return launching(GRIDS[case.grid])()

    return after_fault(case, launch, cwd, reference, f"SIGKILL after {seconds:.2f} s")


def corrupt_case(case: Case, chance: random.Random, cwd: Path, reference: Reference) -> tuple[str, list[str]]:
    """A file or folder is corrupted or removed between two launches."""
    tree = chance.choice(sorted(reference.trees))
    backup = reference.trees[tree]
    shutil.copytree(backup / "o", cwd / "o", symlinks=True)
    files = sorted(path for path in (cwd / "o").rglob("*") if not path.is_symlink() and ".lock" not in path.name)
    wanted = [path for path in files if re.search(case.stage, str(path.relative_to(cwd / "o")))] or files
    path = chance.choice(wanted)
    how = corrupt(path, chance)
    what = f"{how} {path.relative_to(cwd)} of the {tree} tree"
    found = []
    if tree == "complete" and (name := path.relative_to(cwd / "o")).parts[0] == "runs" and len(name.parts) > 2:
        # a launch skips what is complete: what it does not read is noticed by who does, and then restored
        read_again = name.parts[2] in ("sae", "metrics.jsonl", "monitors.jsonl", "trained.json") and path.exists()
        output = cwd / "evaluated"
        words = ["evaluate", f"o/runs/{name.parts[1]}", "eval.sparsity_batches=3"]
        status = forked(reading(words), output, cwd=cwd)
        found += faults_of_output(text := output.read_text(errors="replace"), status)
        if read_again and status == 0 and path.read_bytes() != (backup / "o" / name).read_bytes():
            found.append(f"evaluate does not notice it: {text[-200:]}")
        shutil.rmtree(cwd / "o" / "runs" / name.parts[1])
        shutil.copytree(backup / "o" / "runs" / name.parts[1], cwd / "o" / "runs" / name.parts[1], symlinks=True)
        if name.parts[2] in ("status.json", "results.json", "evals", "lease.json"):
            chance.seed(f"{what}")
            corrupt(path, chance)
    there = after_fault(case, launching(GRIDS[case.grid]), cwd, reference, what, backup)
    return there[0], found + there[1]


FLIPPED = re.compile(r"\.safetensors$|\.npz$")
"""Files in which any changed byte is noticed."""


def corrupt(path: Path, chance: random.Random) -> str:
    if path.is_dir():
        shutil.rmtree(path)
        return "removed folder"
    content = path.read_bytes()
    how = chance.choice([how for how in CORRUPTIONS if how != "flip" or FLIPPED.search(path.name)])
    if how == "removed":
        path.unlink()
    elif how == "folder":
        path.unlink()
        path.mkdir()
    else:
        place = chance.randrange(max(len(content), 1))
        flipped = bytearray(content or b"\0")
        flipped[min(place, len(flipped) - 1)] ^= 1 << chance.randrange(8)
        other = chance.choice([b"null\n", b"[]\n", b"{}\n", b"3\n", b'{"state": "completed"}\n'])
        path.write_bytes(
            {
                "empty": b"", "cut": content[:place], "flip": bytes(flipped), "other form": other,
                "garbage": content[:place] + b"\xff\xfe\0\n" * 3 + content[place:],
            }[how]
        )  # fmt: skip
    return how


def disk_case(case: Case, chance: random.Random, cwd: Path, reference: Reference) -> tuple[str, list[str]]:
    """A small disk of its own that fills up or is read-only; without the rights to mount one, a limit of file sizes."""
    inside = cwd / "inside"
    inside.mkdir()
    used = sum(path.stat().st_size for path in (reference.folder / "o").rglob("*") if path.is_file())
    libc = ctypes.CDLL(None, use_errno=True)
    room = int(used * chance.uniform(0.02, 1.2))
    read_only = chance.random() < 0.2
    limited = chance.random() < 0.25

    def mounted(options: bytes, flags: int = 0) -> bool:
        return libc.mount(b"tmpfs", os.fsencode(inside), b"tmpfs", flags, options) == 0

    def whole_case() -> int:
        own = libc.unshare(0x20000) == 0 and libc.mount(None, b"/", None, 0x44000, None) == 0  # private mounts
        if limited or not (own and mounted(f"size={used * 4 + 4_000_000}".encode())):
            limit = max(200, int(used * chance.uniform(0.001, 0.3)))

            def launch() -> int:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
                return launching(GRIDS[case.grid])()

            what, found = after_fault(case, launch, inside, reference, f"files of at most {limit} bytes")
        elif read_only:
            assert mounted(b"", 0x20 | 0x1)
            output = cwd / "faulted"
            status = forked(launching(GRIDS[case.grid]), output, cwd=inside)
            text = output.read_text()
            found = faults_of_output(text, status) + ([] if status == 2 else [f"status {status} on a read-only disk"])
            assert mounted(b"", 0x20)
            found += relaunched(GRIDS[case.grid], inside, reference, None)
            what = "read-only disk"
        else:
            ballast = inside / "ballast"
            free = os.statvfs(inside).f_bavail * os.statvfs(inside).f_frsize
            ballast.write_bytes(b"\0" * max(0, free - room))
            output = cwd / "faulted"
            status = forked(launching(GRIDS[case.grid]), output, cwd=inside)
            text = output.read_text()
            found = faults_of_output(text, status) + faults_of_tree(inside / "o", reference, status == 0)
            if status and not re.search("disk is full|No space left|free some space", text):
                found.append(f"a full disk is not named: {text[-300:]}")
            ballast.unlink()
            found += table_faults(inside) + relaunched(GRIDS[case.grid], inside, reference, None)
            what = f"disk with {room:,} bytes left: status {status}"
        (cwd / "report").write_text(json.dumps([what, found]))
        return 0

    if status := forked(whole_case, cwd / "case", timeout=4 * TIMEOUT):
        return "disk", [f"the case itself ends with status {status}: {(cwd / 'case').read_text()[-500:]}"]
    what, found = read(cwd / "report")
    return what, found


CASES = {"moment": moment_case, "time": time_case, "corrupt": corrupt_case, "disk": disk_case}


def cluster_case(
    case: Case, chance: random.Random, cwd: Path, reference: Reference, cluster: Any = None
) -> tuple[str, list[str]]:
    """A sweep in processes, or on Slurm, whose workers meet a fault; then whole processes are killed."""
    import subprocess

    moments = [m for m in reference.moments if re.fullmatch(STAGES[case.stage], m.name)]
    moment = chance.choice(moments)
    torn = ["torn"] * 2 if moment.kind in ("fsync", "row") else []
    action = chance.choice(["kill", *torn, *LASTING, *ONCE, "SIGTERM"])
    fault = {"root": str(cwd / "o"), "fault": Fault(moment, action, chance.random()).to_json()}
    text = json.dumps(fault | {"fired": str(cwd / "fired")})
    path = os.pathsep.join([str(PROJECT / "scripts" / "injected"), str(PROJECT)])
    env = {**os.environ, ENVIRONMENT: text, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    words = [*GRIDS[case.grid], "cluster.poll_s=0.3", "cluster.group_size=1"]
    if cluster is None:
        words += ["cluster=local", "cluster.processes=2"]
    else:
        env |= {key: cluster.environment()[key] for key in ("SLURM_CONF", "PATH")}
        words += ["cluster=slurm", "cluster.cpus=1", "cluster.mem=null", "cluster.gpus=0"]
        exports = f"export {ENVIRONMENT}={json_quoted(text)} PYTHONPATH={path}:$PYTHONPATH"
        words.append(f"cluster.setup=[{json.dumps(exports)}]")
    command = [sys.executable, str(PROJECT / "launch.py"), *words]
    with open(cwd / "faulted", "w") as log:
        process = subprocess.Popen(command, cwd=cwd, env=env, stdout=log, stderr=subprocess.STDOUT)
        until = time.monotonic() + TIMEOUT
        while process.poll() is None and time.monotonic() < until:
            time.sleep(0.2)
            if cluster is not None:
                push_jobs(cluster)
        process.kill()
        status = process.wait()
    output = (cwd / "faulted").read_text(errors="replace")
    found = faults_of_output(output, status)
    if status == -signal.SIGKILL:
        found.append(f"the launcher waits for ever: {output[-300:]}")
    found += faults_of_tree(cwd / "o", reference, all_complete=status == 0) + table_faults(cwd)
    found += relaunched(GRIDS[case.grid], cwd, reference, None)
    fired = "" if (cwd / "fired").exists() else ", which did not come"
    return f"{action} at {moment.kind} {moment.name} #{moment.number}{fired}: status {status}", found


def json_quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def push_jobs(cluster: Any) -> None:
    sys.path[:0] = [str(PROJECT / "tests" / name) for name in ("cluster", "sweeps")]
    from sweeping import push

    push(cluster)


# The campaign ---------------------------------------------------------------------------------------------------------


def cases(faults: int, local: int, slurm: int) -> list[Case]:
    """Every kind and stage in turn, so that any number of faults is spread over all of them."""
    found: list[Case] = []
    in_turn = ["moment", "moment", "corrupt", "moment", "corrupt", "disk", "moment", "corrupt", "time", "moment"]
    stages = list(STAGES)
    files = ["checkpoint", r"activations/.*safetensors|meta", "jsonl", "results|evals|trained", "status|lease|config",
             "sae/", "sweeps/", "."]  # fmt: skip
    seen: Counter[str] = Counter()
    for number in range(faults - local - slurm):
        kind = in_turn[number % len(in_turn)]
        choices = {"moment": stages, "corrupt": files}.get(kind, [""])
        grid = "language" if kind in ("moment", "disk") and seen[kind] % 6 == 5 else "synthetic"
        found.append(Case(number, kind, grid, choices[seen[kind] % len(choices)]))
        seen[kind] += 1
    inside = [stage for stage in stages if stage not in ("planning", "table")]
    for kind, many in (("local", local), ("slurm", slurm)):
        found += [Case(len(found) + n, kind, "synthetic", inside[n % len(inside)]) for n in range(many)]
    return found


def reference_of(grid: str, scratch: Path, interrupted: bool = True) -> Reference:
    folder = scratch / grid
    folder.mkdir()
    words, moments = GRIDS[grid], list[Moment]()

    def listing() -> int:
        install(folder / "o", None, folder / "fired", moments)
        status = launching(words)()
        (folder / "moments").write_text(json.dumps([[m.kind, m.name, m.number] for m in moments]))
        return status

    began = time.monotonic()
    if forked(listing, folder / "out", cwd=folder):
        raise SystemExit((folder / "out").read_text())
    seconds = time.monotonic() - began
    moments = [Moment(*parts) for parts in read(folder / "moments")]
    trees = {"complete": folder}
    if not interrupted:
        return Reference(folder, trees, moments, seconds)
    first = min(runs_of(folder / "o"))
    ends = {
        "half": Moment("fsync", f"runs/{first}/checkpoint/state.safetensors", 2),
        "trained": next(m for m in moments if m.kind == "open" and m.name == f"runs/{first}/evals/core.json"),
    }
    for name, moment in ends.items():
        place = trees[name] = scratch / f"{grid}-{name}"
        place.mkdir()

        def stopped(place: Path = place, moment: Moment = moment) -> int:
            install(place / "o", Fault(moment, "kill"), place / "fired")
            return launching(words)()

        assert forked(stopped, place / "out", cwd=place) == -signal.SIGKILL
    return Reference(folder, trees, moments, seconds)


def run_case(
    case: Case, seed: int, scratch: Path, references: dict[str, Reference], cluster: Any
) -> tuple[str, list[str]]:
    cwd = scratch / f"case-{case.number}"
    shutil.rmtree(cwd, ignore_errors=True)
    cwd.mkdir()
    chance, reference = random.Random(f"{seed}/{case.number}"), references[case.grid]
    try:
        if case.kind in CASES:
            what, found = CASES[case.kind](case, chance, cwd, reference)
        else:
            what, found = cluster_case(case, chance, cwd, reference, cluster if case.kind == "slurm" else None)
    except Exception as error:
        what, found = case.kind, [f"{type(error).__name__}: {error}"]
    if not found:
        shutil.rmtree(cwd)
    return what, found


def serve(address: str, seed: int, scratch: Path, references: dict[str, Reference], cluster: Any) -> None:
    """Run the cases that come over the connection: one process for each worker of the campaign."""
    with Client(address) as connection:
        while (case := connection.recv()) is not None:
            connection.send(run_case(case, seed, scratch, references, cluster))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", type=int, default=300)
    parser.add_argument("--local", type=int, default=21, help="of them in processes, cluster=local")
    parser.add_argument("--slurm", type=int, default=14, help="of them on Slurm, where one can be started")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="cases side by side")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of cases; their folders are kept")
    words = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "SAE_SWEEPS_LOCAL": "none", "COLUMNS": "200"}
    os.environ.pop("HYDRA_FULL_ERROR", None)
    import torch

    torch.set_num_threads(1)
    sys.path[:0] = [str(PROJECT / "tests" / "cluster")]
    from slurm_cluster import SlurmCluster, missing

    slurm = words.slurm
    if slurm and (lacking := missing()):
        print(f"no Slurm: it needs {', '.join(lacking)}; its faults are met in processes", flush=True)
        slurm = 0
    chosen = cases(words.faults, words.local + words.slurm - slurm, slurm)
    chosen = [case for case in chosen if words.only is None or case.number in words.only]
    scratch, began = Path(tempfile.mkdtemp(prefix="faults-")), time.monotonic()
    warm_up()
    references = {grid: reference_of(grid, scratch) for grid in {case.grid for case in chosen}}
    cluster = SlurmCluster() if any(case.kind == "slurm" for case in chosen) else None
    if cluster is not None:
        cluster.__enter__()
    wrong: list[str] = []
    counts: Counter[str] = Counter()
    listener = Listener(str(scratch / "socket"))
    for _ in range(words.workers):
        if os.fork() == 0:
            serve(str(scratch / "socket"), words.seed, scratch, references, cluster)
            os._exit(0)
    connections = [listener.accept() for _ in range(words.workers)]
    waiting = iter(chosen)

    def work(connection: Any) -> None:
        for case in waiting:
            connection.send(case)
            what, found = connection.recv()
            counts[f"{case.kind} {case.stage}".strip() if case.kind != "corrupt" else "corrupt"] += 1
            print(f"{'WRONG' if found else 'ok':5} {case.number:3} {case.kind} {case.grid} {what}", flush=True)
            for sentence in found:
                print(f"      {sentence}", flush=True)
            if found:
                repeat = f"--faults {words.faults} --local {words.local} --slurm {words.slurm} --seed {words.seed}"
                again = f"python -m scripts.campaign_faults {repeat} --only {case.number}"
                wrong.append(f"case {case.number}: {again}   (kept in {scratch / f'case-{case.number}'})")
                print(f"      {again}", flush=True)
        connection.send(None)

    try:
        with ThreadPoolExecutor(words.workers) as pool:
            list(pool.map(work, connections))
    finally:
        listener.close()
        if cluster is not None:
            cluster.stop()
    print(
        f"{len(chosen)} faults in {time.monotonic() - began:.0f} s: " + ", ".join(f"{n} {k}" for k, n in counts.items())
    )
    print("\n".join(wrong) or "every run ended with the numbers of an undisturbed one, or with a clear state before")
    if not wrong:
        shutil.rmtree(scratch)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
