"""What a group of runs saves: the same runs side by side and one by one, and against the least that a group can cost.

    python -m scripts.measure_groups [MODEL_FOLDER] [--layer N] [--runs N] [--tokens N] [--d-sae N] [--rounds N]

Without a folder: a GPTNeoX with random weights (d_in 512, 6 layers, Pythia-70M's shape). Whole runs, harvest to
evaluation: `grouped` is one launch of all, `separate` a launch for each, with a language model and a harvest of its own
as in a process of its own (the start of the processes is left out, which would flatter the group). Then the training of
the group against its parts: one pass of the language model and the bare steps of all SAEs. Rounds are interleaved; read
the ratios, of seconds of CPU where the machine is shared.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sae_sweeps.activations import store
from sae_sweeps.activations.sampler import Sampler
from sae_sweeps.cli.compose import compose_points
from sae_sweeps.runs.batches import Batches
from sae_sweeps.runs.console import Console
from sae_sweeps.runs.execute import train_together
from sae_sweeps.runs.inline import run_all
from sae_sweeps.runs.session import RunSession
from sae_sweeps.runs.signals import Stop
from sae_sweeps.runs.task import Launch, RunTask
from sae_sweeps.storage.lease import Lease
from sae_sweeps.storage.run_folder import RunFolder
from sae_sweeps.sweeps.plan import Plan, make_plan
from sae_sweeps.training.start import activation_scale, decoder_bias
from sae_sweeps.training.step import Training
from scripts.measure_harvest import random_model

CPU = torch.device("cpu")


def plan_of(words: argparse.Namespace, folder: Path, outputs: Path) -> Plan:
    seeds = ",".join(map(str, range(words.runs)))
    keys = {
        "model": folder, "layer": words.layer, "d_sae": words.d_sae, "k": 16, "num_tokens": words.tokens,
        "seed": seeds, "activations.mode": "stream", "activations.buffer_tokens": 16_384, "eval.recon_batches": 1,
        "eval.sparsity_batches": 1, "eval.batch_size": 4, "train.held_out_tokens": 64, "device": "cpu",
        "outputs": outputs,
    }  # fmt: skip
    return make_plan(compose_points([f"{key}={value}" for key, value in keys.items()]))


def launched(plan: Plan, outputs: Path) -> None:
    store._in_memory.clear()
    states = run_all(plan, outputs, outputs / "sweep", CPU, console=Console(quiet=True))
    assert set(states.ended.values()) == {"completed"}, states


def trained_together(plan: Plan, outputs: Path, session: RunSession) -> None:
    launch, tasks = Launch(session, Console(), outputs, "sweep", Stop()), []
    for planned in plan.runs:
        folder = RunFolder(outputs / "runs" / planned.run_id)
        lease = Lease.acquire(folder)
        assert lease is not None
        tasks.append(RunTask(planned, folder, lease, launch))
    train_together(tasks, session, outputs / "activations")
    for task in tasks:
        assert task.trained
        task.lease.release()


def one_pass(plan: Plan, cache: Path, session: RunSession) -> list[Any]:
    """Every batch of one run, and what a run starts from."""
    run = plan.runs[0].run
    batches = Batches([run], session, cache)
    batches.prepare(run, fresh=True)
    sampler = Sampler(batches.store(run), run.batch_size, run.data_seed)
    batches.draw_first()
    return [batches.first(run), *(sampler.batch(step) for step in range(run.total_steps))]


def bare_steps(plan: Plan, x: torch.Tensor, batches: list[Any]) -> None:
    """The steps of each run; all start from the same activations, so what these give is computed once."""
    train = plan.runs[0].run.train
    scale, b_dec = activation_scale(x, train), decoder_bias(x, train)
    for planned in plan.runs:
        training = Training(planned.run, scale, b_dec.clone(), CPU)
        for step, batch in enumerate(batches):
            training.step(batch, step)


def timed(way: Callable[[], Any]) -> tuple[float, float, Any]:
    """CPU seconds, wall-clock seconds and the result of a call."""
    cpu, wall = time.process_time(), time.monotonic()
    result = way()
    return time.process_time() - cpu, time.monotonic() - wall, result


def main() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--layer", type=int, default=5)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=8_192)
    parser.add_argument("--d-sae", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", action="store_true", help="only the group's training against its parts")
    words = parser.parse_args()
    times: dict[str, list[tuple[float, float]]] = {}

    def note(name: str, cpu: float, wall: float) -> None:
        times.setdefault(name, []).append((cpu, wall))
        print(f"  {name:28} {cpu:8.1f} s CPU {wall:8.1f} s", flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        folder = words.folder or random_model(place / "model")
        for number in range(words.rounds):
            print(f"round {number + 1}")
            if not words.parts:
                plan = plan_of(words, folder, place / f"grouped{number}")
                note("grouped", *timed(lambda: launched(plan, Path(plan.runs[0].run.outputs)))[:2])  # noqa: B023
                plan = plan_of(words, folder, place / f"separate{number}")
                alone = [Plan([planned], [], []) for planned in plan.runs]
                outputs = Path(plan.runs[0].run.outputs)
                note("separate", *timed(lambda: [launched(one, outputs) for one in alone])[:2])  # noqa: B023
            session = RunSession(CPU)
            plan = plan_of(words, folder, place / f"parts{number}")
            cache = place / f"parts{number}" / "activations"
            one_pass(plan, cache, session)  # the language model is loaded, held-out activations are there
            cpu, wall, (x, *batches) = timed(lambda: one_pass(plan, cache, session))  # noqa: B023
            note("one pass", cpu, wall)
            note("bare steps", *timed(lambda: bare_steps(plan, x, batches))[:2])  # noqa: B023
            training = timed(lambda: trained_together(plan, place / f"parts{number}", session))[:2]  # noqa: B023
            note("training of the group", *training)
    for ratio, over, under in (
        ("separate / grouped", ["separate"], ["grouped"]),
        ("training of the group / (one pass + bare steps)", ["training of the group"], ["one pass", "bare steps"]),
    )[words.parts :]:
        for kind, unit in enumerate(("CPU", "clock")):
            ratios = [
                sum(times[name][n][kind] for name in over) / sum(times[name][n][kind] for name in under)
                for n in range(words.rounds)
            ]
            print(f"{ratio}, {unit}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
