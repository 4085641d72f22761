import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sae_sweeps.errors import DamagedFile
from sae_sweeps.storage import lease as module
from sae_sweeps.storage.files import read_json, write_json
from sae_sweeps.storage.lease import Lease, process_start, this_process

ROOT = Path(__file__).parents[2]

# Waits for the file `go`, so that all racers start together; says whether it won; holds on until stdin ends.
RACER = """
import os, sys, time
from sae_sweeps.storage.lease import Lease
folder, go = sys.argv[1:]
print("ready", flush=True)
while not os.path.exists(go):
    pass
lease = Lease.acquire(folder)
print("won" if lease else "lost", flush=True)
sys.stdin.read()
if lease:
    lease.release()
"""


def racer(folder, go):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", RACER, str(folder), str(go)], cwd=ROOT, **pipes)


def end(*processes):
    for process in processes:
        process.communicate(timeout=20)


def elsewhere(folder, seconds_ago, **changes):
    """A lease that an owner on another machine touched so long ago."""
    path = folder / "lease.json"
    write_json(path, this_process() | {"host": "elsewhere", "token": "theirs"} | changes)
    stamp = path.stat().st_mtime - seconds_ago
    os.utime(path, (stamp, stamp))


def test_one_owner_at_a_time(tmp_path):
    with Lease.acquire(tmp_path) as lease:
        assert Lease.acquire(tmp_path) is None
        assert Lease.holder(tmp_path) == f"process {os.getpid()} on {lease.owner['host']}"
        assert lease.check() and not lease.lost
    assert Lease.holder(tmp_path) is None
    lease.release()  # again: nothing happens
    with Lease.acquire(tmp_path):
        lease.release()
        assert Lease.holder(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["lease.lock"]


@pytest.mark.parametrize("before", ["fresh", "dead process", "stale heartbeat", "released"])
def test_of_eight_racers_one_wins(tmp_path, before):
    run, go = tmp_path / "run", tmp_path / "go"
    run.mkdir()
    if before == "dead process":
        dead = racer(run, ROOT)
        assert [dead.stdout.readline(), dead.stdout.readline()] == ["ready\n", "won\n"]
        dead.kill()
        end(dead)
    elif before == "stale heartbeat":
        elsewhere(run, seconds_ago=61)
    elif before == "released":
        Lease.acquire(run).release()
    racers = [racer(run, go) for _ in range(8)]
    assert {r.stdout.readline() for r in racers} == {"ready\n"}
    go.touch()
    outcomes = [r.stdout.readline() for r in racers]
    winner = racers[outcomes.index("won\n")]
    assert sorted(outcomes) == ["lost\n"] * 7 + ["won\n"]
    assert read_json(run / "lease.json")["pid"] == winner.pid
    end(*racers)
    assert Lease.holder(run) is None


def test_a_killed_owner_is_taken_over_even_unreaped_and_a_stopped_one_is_not(tmp_path):
    owner = racer(tmp_path, ROOT)
    assert [owner.stdout.readline(), owner.stdout.readline()] == ["ready\n", "won\n"]
    os.kill(owner.pid, signal.SIGSTOP)
    os.utime(tmp_path / "lease.json", (0, 0))  # it cannot beat, but it will write again once it goes on
    assert Lease.acquire(tmp_path) is None and f"process {owner.pid} " in Lease.holder(tmp_path)
    os.kill(owner.pid, signal.SIGKILL)
    while process_start(owner.pid) is not None:  # dead, and a zombie until we ask for its status
        time.sleep(0.001)
    with Lease.acquire(tmp_path) as lease:
        assert lease.check()
    end(owner)


def test_a_reused_pid_is_another_process(tmp_path):
    here = this_process()
    assert here["start_time"] == process_start(os.getpid())
    write_json(tmp_path / "lease.json", here | {"start_time": here["start_time"] - 1, "token": "old"})
    assert Lease.holder(tmp_path) is None
    with Lease.acquire(tmp_path) as lease:
        assert lease.check()


@pytest.mark.parametrize("key", ["host", "boot_id", "pid_namespace"])
def test_elsewhere_only_the_heartbeat_counts(tmp_path, key):
    elsewhere(tmp_path, seconds_ago=50, **{"host": this_process()["host"], key: "other", "pid": 2**22 + 1})
    assert Lease.acquire(tmp_path) is None
    elsewhere(tmp_path, seconds_ago=70, **{"host": this_process()["host"], key: "other", "pid": os.getpid()})
    with Lease.acquire(tmp_path) as lease:
        assert lease.check()


def test_this_machines_clock_does_not_matter(tmp_path, monkeypatch):
    elsewhere(tmp_path, seconds_ago=10)
    for wrong in (0.0, 4e9):
        monkeypatch.setattr(time, "time", lambda wrong=wrong: wrong)
        assert Lease.acquire(tmp_path) is None


def test_a_heartbeat_from_the_future_counts_as_long_as_it_is_seen_to_beat(tmp_path, monkeypatch):
    seconds = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: seconds)
    elsewhere(tmp_path, seconds_ago=-86400)
    assert Lease.acquire(tmp_path) is None
    seconds += 59
    elsewhere(tmp_path, seconds_ago=-86300)
    assert Lease.acquire(tmp_path) is None
    seconds += 59
    assert Lease.acquire(tmp_path) is None
    seconds += 2
    with Lease.acquire(tmp_path) as lease:
        assert lease.check()


def test_the_heartbeat_beats_and_notices_a_new_owner(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BEAT_S", 0.01)
    with Lease.acquire(tmp_path) as lease:
        os.utime(lease.path, (0, 0))
        while lease.path.stat().st_mtime == 0:
            time.sleep(0.005)
        assert not lease.lost
        write_json(lease.path, lease.owner | {"token": "theirs"})
        while not lease.lost:
            time.sleep(0.005)
        assert not lease.check()
    assert read_json(lease.path)["token"] == "theirs"  # the new owner's lease is left alone


def test_a_removed_lease_is_lost(tmp_path):
    with Lease.acquire(tmp_path) as lease:
        lease.path.unlink()
        assert not lease.check() and lease.lost


def test_a_forked_child_does_not_release(tmp_path):
    with Lease.acquire(tmp_path) as lease:
        child = os.fork()
        if child == 0:
            lease.release()
            os._exit(0)
        os.waitpid(child, 0)
        assert lease.check()


@pytest.mark.parametrize("content", ["", "[]", '{"pid": 1}'])
def test_a_damaged_lease_is_named(tmp_path, content):
    (tmp_path / "lease.json").write_text(content)
    with pytest.raises(DamagedFile, match="lease.json"):
        Lease.acquire(tmp_path)


def test_a_stopped_process_in_the_lock_does_not_block_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOCK_WAIT_S", 0.05)
    code = (
        "import sys, pathlib\nfrom sae_sweeps.storage.lease import mutex\n"
        "with mutex(pathlib.Path(sys.argv[1])):\n    print(flush=True)\n    sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    inside = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, **pipes)
    inside.stdout.readline()
    assert Lease.acquire(tmp_path) is None
    end(inside)
    Lease.acquire(tmp_path).release()


def test_a_lease_in_a_folder_that_is_gone_ends_nothing(tmp_path):
    run = tmp_path / "run"
    with Lease.acquire(run):
        shutil.rmtree(run)
    assert not run.exists()
