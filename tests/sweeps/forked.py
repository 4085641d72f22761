"""Commands in forks of a process that has torch and transformers imported, and nothing of ours: seconds earlier there.

All else is as in a process of their own: arguments, folder, environment, outputs, status. What needs a real one
(signals, a reader that goes away) starts it itself.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from unittest.mock import patch

IMPORTED = ["torch", "numba", "hydra", "omegaconf", "transformers.models.gpt_neox.modeling_gpt_neox"]


def run(command, cwd, env, timeout):
    """As `subprocess.run(command, capture_output=True, text=True)` for a command of this Python."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = (Path(folder) / name for name in ("out", "err"))
        process = _server().Process(target=_work, args=(command[1:], str(cwd), dict(env), str(out), str(err)))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(command, timeout, out.read_text(), err.read_text())
        return subprocess.CompletedProcess(command, process.exitcode, out.read_text(), err.read_text())


@cache
def _server():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with patch.dict(os.environ, {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}):  # read when torch is loaded
        forkserver.ensure_running()
    return context


def _work(words, cwd, env, out, err):
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)
    sys.path.insert(0, cwd if words[0] == "-m" else str(Path(words[0]).parent))
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # which a process of multiprocessing leaves out
