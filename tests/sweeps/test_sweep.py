import os
import signal
import subprocess
import sys

import pytest
from commands import PROJECT, SMALL, command, environment, numbers, read, rows, run, run_folders, start, wait_for

pytestmark = pytest.mark.slow


def test_dry_run_writes_nothing(tmp_path):
    done = run("--dry-run", "-m", *SMALL, "penalty=ortho", "lambda2_max=0.1,0.5", f"outputs={tmp_path / 'out'}")
    assert "run 2" in done.stdout and not (tmp_path / "out").exists()


def test_killed_three_times_and_resumed_equals_undisturbed(tmp_path):
    words = ["model=synthetic", "k=8", "d_sae=128", "num_tokens=307200", "train.checkpoint_every=25", "penalty=ortho"]
    log = (tmp_path / "log").open("w")
    a, b = tmp_path / "a", tmp_path / "b"
    for kill_after in (40, 110, 220):  # steps, somewhere between two checkpoints

        def reached(kill_after=kill_after):
            return any(row["step"] >= kill_after for f in run_folders(a) for row in rows(f))

        process = start(*words, f"outputs={a}", log=log)
        wait_for(lambda: reached() or process.poll() is not None)  # noqa: B023
        process.kill()
        process.wait()
        (folder,) = run_folders(a)
        assert read(folder, "status.json")["state"] == "running"
    run(*words, f"outputs={a}")
    run(*words, f"outputs={b}")
    (killed,), (undisturbed,) = run_folders(a), run_folders(b)
    assert numbers(killed) == numbers(undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_writes_a_checkpoint_and_the_next_launch_goes_on(number, tmp_path):
    words = ["-m", "model=synthetic", "k=4,8", "d_sae=128", "num_tokens=819200", f"outputs={tmp_path / 'o'}"]
    process = start(*words, log=(tmp_path / "log").open("w"))
    wait_for(lambda: any(len(rows(f)) > 3 for f in run_folders(tmp_path / "o")))
    process.send_signal(number)
    assert process.wait() == 130
    states = sorted(read(f, "status.json")["state"] for f in run_folders(tmp_path / "o"))
    assert states == ["interrupted", "interrupted"]  # they train side by side
    assert "the same command goes on" in (tmp_path / "log").read_text()
    for stopped in run_folders(tmp_path / "o"):
        assert (stopped / "checkpoint" / "state.safetensors").exists() and not (stopped / "results.json").exists()
        assert not (stopped / "lease.json").exists()


def test_one_divergence_does_not_stop_the_others(tmp_path):
    words = ["-m", *SMALL, "lr=1e-3,1e30", "train.clip=0", f"outputs={tmp_path}"]
    done = run(*words, expect=1)
    states = {read(f, "status.json")["state"]: f for f in run_folders(tmp_path)}
    assert states.keys() == {"completed", "diverged"}
    status = read(states["diverged"], "status.json")
    assert "not finite at step" in status["error"] and status["error"] in done.stdout
    assert not (states["diverged"] / "results.json").exists() and not (states["diverged"] / "sae").exists()
    again = run(*words, expect=1)
    assert "diverged before" in again.stdout


def test_two_launches_at_once_train_each_run_once(tmp_path):
    outputs = f"outputs={tmp_path / 'o'}"
    common = ["-m", "model=synthetic", "d_sae=128", "num_tokens=204800", outputs]
    logs = [(tmp_path / f"log{i}").open("w") for i in range(2)]
    first, second = start(*common, "k=4,8,12", log=logs[0]), start(*common, "k=8,12,16", log=logs[1])
    assert first.wait() == 0 and second.wait() == 0
    text = "".join((tmp_path / f"log{i}").read_text() for i in range(2))
    assert text.count("  completed: ") == 4 and text.count("complete, skipped") == 2
    assert len(run_folders(tmp_path / "o")) == 4 and len(list((tmp_path / "o" / "sweeps").iterdir())) == 2
    for folder in run_folders(tmp_path / "o"):
        steps = [row["step"] for row in rows(folder)]
        assert steps == sorted(set(steps))


def test_a_sweep_goes_on_when_nobody_reads_it_any_more(tmp_path):
    process = subprocess.Popen(
        command("-m", *SMALL, "seed=0,1,2", f"outputs={tmp_path}"),
        cwd=PROJECT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=(tmp_path / "errors").open("w"),
    )
    process.stdout.readline()
    process.stdout.close()
    assert process.wait() == 0 and (tmp_path / "errors").read_text() == ""
    assert [read(f, "status.json")["state"] for f in run_folders(tmp_path)] == ["completed"] * 3


def test_the_seed_decides_the_weights_and_the_data_seed_the_order(tmp_path):
    for i, words in enumerate((["seed=0"], ["seed=1"], ["data_seed=1"])):
        run(*SMALL, *words, f"outputs={tmp_path / str(i)}")
    losses = [rows(run_folders(tmp_path / str(i))[0])[0]["loss"] for i in range(3)]
    assert len(set(losses)) == 3
    run(*SMALL, f"outputs={tmp_path / 'again'}")
    assert numbers(run_folders(tmp_path / "again")[0]) == numbers(run_folders(tmp_path / "0")[0])


@pytest.mark.parametrize("mode", ["disk", "stream"])
def test_modes_of_activations(mode, tmp_path):
    buffer = ["activations.buffer_tokens=4096"] if mode == "stream" else []
    run(*SMALL, f"outputs={tmp_path / 'memory'}", "activations.mode=memory")
    run(*SMALL, *buffer, f"outputs={tmp_path / mode}", f"activations.mode={mode}")
    memory, other = (numbers(run_folders(tmp_path / name)[0]) for name in ("memory", mode))
    if mode == "disk":
        assert memory == other  # the same run wherever the activations are kept
    else:
        assert memory[0] != other[0] and other[2]["fvu"] < 1.0


def test_a_damaged_checkpoint_or_shard_is_named_and_nothing_is_replaced(tmp_path):
    words = ["model=synthetic", "k=8", "d_sae=128", "num_tokens=819200", f"outputs={tmp_path}", "activations.mode=disk"]
    process = start(*words, "train.checkpoint_every=5", log=(tmp_path / "log").open("w"))
    wait_for(lambda: any((f / "checkpoint" / "state.safetensors").exists() for f in run_folders(tmp_path)))
    process.kill()
    process.wait()
    (folder,) = run_folders(tmp_path)
    checkpoint = folder / "checkpoint" / "state.safetensors"
    damaged = checkpoint.read_bytes()[:-7]
    checkpoint.write_bytes(damaged)
    done = run(*words, expect=1)
    assert f"{checkpoint}: the checkpoint is damaged" in done.stdout and "Traceback" not in done.stdout
    assert checkpoint.read_bytes() == damaged
    checkpoint.unlink()
    shard = min((tmp_path / "activations").rglob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    done = run(*words, expect=1)
    assert str(shard) in done.stdout and shard.read_bytes() == content


def test_a_bug_in_one_run_is_recorded_with_its_traceback(tmp_path):
    broken = tmp_path / "runs"
    run(*SMALL, f"outputs={tmp_path}", "eval=none")
    (folder,) = run_folders(tmp_path)
    (folder / "trained.json").unlink()
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").mkdir()
    done = run(*SMALL, f"outputs={tmp_path}", expect=1)
    assert "failed" in done.stdout and broken.exists()
    assert read(folder, "status.json")["state"] == "failed"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_one_sentence_and_results_stay(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=3m tmpfs {disk} 2>/dev/null"):
        pytest.skip("this machine does not let a test mount a small disk")
    try:
        run(*SMALL, f"outputs={disk}", "d_sae=64", "num_tokens=2048")
        (first,) = run_folders(disk)
        before = numbers(first)
        done = run(*SMALL, f"outputs={disk}", "d_sae=4096", "num_tokens=2048", expect=1)
        assert "the disk is full" in done.stdout and "Traceback" not in done.stdout + done.stderr
        assert numbers(first) == before
        assert not list(disk.rglob("*.tmp"))
    finally:
        os.system(f"umount -l {disk}")


def test_memory_that_is_not_there_is_told_with_its_mend(tmp_path):
    """A petabyte is more than a process can address, whatever the system promises."""
    done = run(*SMALL, f"outputs={tmp_path}", f"d_sae={2**44}", "num_tokens=2048", expect=1)
    assert "a smaller d_sae, batch_size" in done.stdout and "Traceback" not in done.stdout + done.stderr
    (folder,) = run_folders(tmp_path)
    assert read(folder, "status.json")["error"].startswith("OutOfMemoryError: ")


def test_mistakes_end_with_status_2_and_one_line(tmp_path):
    mistakes = {
        ("lamda2_max=1",): "lamda2_max: no such key; did you mean lambda2_max?",
        ("penalty=orto",): "penalty=orto: no such choice; did you mean ortho?",
        ("d_sae=abc",): "d_sae=abc: must be a whole number",
        ("-m", "d_sae=64,abc"): "d_sae=abc: must be a whole number",
        ("lambda2_max=0.1,0.2", "penalty=ortho"): "several values make a sweep; add -m",
        ("seed=range(0,3)",): "seed=range(0,3): several values make a sweep; add -m",
        ("penalty.tau=1",): "the chosen penalty has no such key; penalty=adaptive_sharing and penalty=ortho do",
        ("nonsense",): "nonsense: cannot be read as key=value",
        ("k='",): "cannot be read as key=value",
        ("outputs=/dev/null/o",): "outputs=/dev/null/o: /dev/null is not a folder",
    }
    if not os.environ.get("CUDA_VISIBLE_DEVICES"):
        mistakes[("device=cuda:99",)] = "device=cuda:99: torch"
    for words, message in mistakes.items():
        done = run("model=synthetic", f"outputs={tmp_path / 'o'}", *words, expect=2)
        assert message in done.stderr and done.stderr.count("\n") == 1 and not done.stdout, (words, done)
    assert not (tmp_path / "o").exists()
    assert "Traceback" in run("penalty=orto", "--debug", expect=1).stderr


def test_help_and_completion_import_nothing_heavy():
    code = (
        "import sys; sys.argv = ['launch.py', '--help']\n"
        "from sae_sweeps.cli.command import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'transformer_lens', 'wandb', 'datasets', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "penalty: adaptive_sharing, bottleneck" in done.stdout


def test_completion_offers_choices():
    completing = {**environment(), "COMP_LINE": "launch.py penalty=", "COMP_POINT": "18"}
    done = subprocess.run(command("-sc", "query=bash"), cwd=PROJECT, env=completing, capture_output=True, text=True)
    there = {f"penalty={path.stem}" for path in (PROJECT / "conf/penalty").glob("*.yaml")}
    assert set(done.stdout.split()) == there and len(there) > 5, done
