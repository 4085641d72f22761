"""A real Slurm of the tests' own: munged, slurmctld, three slurmd "nodes" with two fake GPUs each, and for accounting
MariaDB and slurmdbd. Everything lies under one short folder and is ended by process id.

GPUs are character devices that stand for /dev/null: with plain files CUDA_VISIBLE_DEVICES would come out empty.
"""

import contextlib
import ctypes
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

NODES, CPUS, GPUS = 3, 4, 2
SBIN = "/usr/sbin:/sbin"
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue")
NEEDED_FOR_ACCOUNTING = ("slurmdbd", "mariadbd", "mariadb-install-db")


def missing(accounting=False):
    """What a cluster lacks to be started here: programs, or rights; empty when nothing."""
    path = f"{os.environ['PATH']}:{SBIN}"
    lacking = [name for name in NEEDED + NEEDED_FOR_ACCOUNTING * accounting if shutil.which(name, path=path) is None]
    return lacking or (["the rights of root"] if os.geteuid() != 0 else [])


class SlurmCluster:
    """`with SlurmCluster() as cluster:`; commands find it by `cluster.environment()`."""

    def __init__(self, accounting=False, kill_wait=5):
        self.accounting, self.kill_wait = accounting, kill_wait
        self.folder = Path(tempfile.mkdtemp(prefix="sl", dir="/tmp"))  # sockets' paths are short of room
        self.port = free_ports(20)
        self.processes = {}

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc):
        self.stop()

    def environment(self):
        path = f"{os.environ['PATH']}:{SBIN}"
        return {**os.environ, "SLURM_CONF": str(self.folder / "etc/slurm.conf"), "PATH": path}

    def call(self, *command, check=True):
        """What a command of Slurm prints."""
        done = subprocess.run(command, env=self.environment(), capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    # Start and stop --------------------------------------------------------------------------------------------------

    def start(self):
        for name in ("etc", "run", "log", "state", "spool", "dev"):
            (self.folder / name).mkdir(mode=0o700 if name == "state" else 0o755)
        self.folder.chmod(0o755)
        self._start_munge()
        for number in range(GPUS):
            os.mknod(self.folder / f"dev/nvidia{number}", 0o20666, os.makedev(1, 3))
        self._write_config()
        if self.accounting:
            self._start_accounting()
        self.start_controller()
        for number in range(NODES):
            self.start_node(number)
        self.wait_for(lambda: self.idle_nodes() == NODES)

    def idle_nodes(self):
        return len(self.call("sinfo", "-h", "-N", "-p", "main", "-t", "idle", check=False).splitlines())

    def start_controller(self, *flags):
        self._start("slurmctld", ["slurmctld", "-D", *flags])

    def forget_everything(self):
        """The controller starts anew, without the state it had: its jobs are gone without a word."""
        self.stop_process("slurmctld", signal.SIGKILL)
        self.start_controller("-c")
        self.wait_for(lambda: self.idle_nodes() == NODES)

    def start_node(self, number):
        self._start(f"slurmd-n{number}", ["slurmd", "-D", "-N", f"n{number}"])

    def stop(self):
        with contextlib.suppress(Exception):
            if "slurmctld" in self.processes:
                for id in self.call("squeue", "-h", "-o", "%A").split():
                    self.call("scancel", "-s", "KILL", id, check=False)
                    self.call("scancel", id, check=False)
                self.wait_for(lambda: not self.call("squeue", "-h").strip(), seconds=15)
        order = [name for name in self.processes if name not in ("slurmdbd", "mariadbd", "munged")]
        for name in [*order, "slurmdbd", "mariadbd", "munged"]:
            self.stop_process(name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def stop_process(self, name, number=signal.SIGTERM):
        process = self.processes.pop(name, None)
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _start(self, name, command):
        log = open(self.folder / "log" / f"{name}.out", "ab")
        self.processes[name] = subprocess.Popen(
            command, env=self.environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True, preexec_fn=end_with_parent,
        )  # fmt: skip
        log.close()

    def wait_for(self, condition, seconds=30):
        for _ in range(seconds * 10):
            if condition():
                return
            time.sleep(0.1)
        logs = "\n".join(f"{path.name}: {path.read_text()[-500:]}" for path in (self.folder / "log").iterdir())
        raise TimeoutError(f"slurm does not come up\n{logs}")

    # Parts -----------------------------------------------------------------------------------------------------------

    def _start_munge(self):
        key = self.folder / "etc/munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        run = self.folder / "run"
        self._start("munged", [
            "munged", "--foreground", "--force", "--num-threads=2", f"--key-file={key}",
            f"--socket={run}/munge.socket", f"--pid-file={run}/munged.pid", f"--log-file={self.folder}/log/munged.log",
            f"--seed-file={run}/munge.seed",
        ])  # fmt: skip
        self.wait_for((run / "munge.socket").exists)

    def _write_config(self):
        d, host = self.folder, socket.gethostname().split(".")[0]
        accounting = "AccountingStorageType=accounting_storage/none"
        if self.accounting:
            accounting = (
                "AccountingStorageType=accounting_storage/slurmdbd\nAccountingStorageHost=localhost\n"
                f"AccountingStoragePort={self.port + 2}\nAccountingStoragePass={d}/run/munge.socket"
            )
        (d / "etc/slurm.conf").write_text(f"""ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={self.port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={d}/run/munge.socket
CredType=cred/munge
StateSaveLocation={d}/state
SlurmdSpoolDir={d}/spool/%n
SlurmctldPidFile={d}/run/slurmctld.pid
SlurmdPidFile={d}/run/slurmd-%n.pid
SlurmctldLogFile={d}/log/slurmctld.log
SlurmdLogFile={d}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
PropagateResourceLimits=NONE
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=0,sched_interval=2,bf_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
MinJobAge=300
KillWait={self.kill_wait}
InactiveLimit=0
SlurmctldTimeout=30
SlurmdTimeout=60
{accounting}
NodeName=n[0-{NODES - 1}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{self.port + 10}-{self.port + 9 + NODES}] \
CPUs={CPUS} RealMemory=4096 Gres=gpu:{GPUS} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=5
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
""")
        (d / "etc/gres.conf").write_text(
            f"AutoDetect=off\nNodeName=n[0-{NODES - 1}] Name=gpu File={d}/dev/nvidia[0-{GPUS - 1}]\n"
        )
        (d / "etc/cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")

    def _start_accounting(self):
        d, sock = self.folder, self.folder / "run/mysql.sock"
        (d / "mysql").mkdir(mode=0o700)
        (d / "etc/my.cnf").write_text(f"""[mariadbd]
datadir={d}/mysql
socket={sock}
pid-file={d}/run/mariadbd.pid
log-error={d}/log/mariadb.log
bind-address=127.0.0.1
port={self.port + 3}
innodb_buffer_pool_size=32M
innodb_log_file_size=8M
innodb_flush_log_at_trx_commit=0
skip-name-resolve
user=root
performance_schema=OFF
""")
        cnf = f"--defaults-file={d}/etc/my.cnf"
        self.call(
            "mariadb-install-db", cnf, "--user=root", "--skip-test-db", "--auth-root-authentication-method=normal"
        )
        self._start("mariadbd", ["mariadbd", cnf])
        self.wait_for(lambda: "alive" in self.call("mariadb-admin", f"--socket={sock}", "ping", check=False))
        grants = "; ".join(
            f"create user slurm@'{host}' identified by 'test'; grant all on slurm_acct_db.* to slurm@'{host}'"
            for host in ("127.0.0.1", "localhost")
        )
        self.call("mariadb", f"--socket={sock}", "-e", f"create database slurm_acct_db; {grants}")
        config = d / "etc/slurmdbd.conf"
        config.write_text(f"""AuthType=auth/munge
AuthInfo=socket={d}/run/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={self.port + 2}
SlurmUser=root
PidFile={d}/run/slurmdbd.pid
LogFile={d}/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={self.port + 3}
StorageUser=slurm
StoragePass=test
StorageLoc=slurm_acct_db
""")
        config.chmod(0o600)
        self._start("slurmdbd", ["slurmdbd", "-D"])
        self.wait_for(lambda: self._try("sacctmgr", "-n", "-i", "list", "cluster"))
        self._try("sacctmgr", "-i", "-Q", "add", "cluster", "test")

    def _try(self, *command):
        return subprocess.run(command, env=self.environment(), capture_output=True, timeout=60).returncode == 0


def end_with_parent():
    """Have the kernel end this process when the tests' own is gone, however that went."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def free_ports(n):
    """The first of `n` ports in a row that nobody listens on."""
    for _ in range(100):
        first = random.SystemRandom().randrange(20000, 60000, n)
        with contextlib.suppress(OSError), contextlib.ExitStack() as sockets:
            for port in range(first, first + n):
                sockets.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise OSError("no ports are free")
