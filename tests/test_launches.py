import os
import signal
import subprocess
import sys

from scripts.launches import INTERRUPTED, ROOT

LAUNCH = """
import sys, time
try:
    print("trains", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(1)  # longer than subprocess.run lets a child live after Ctrl-C
    print("saved", flush=True)
    sys.exit(130)
"""
SCRIPT = "import sys, scripts.launches as launches; launches.ROOT = sys.argv[1]; print(launches.launch('-m'))"


def test_ctrl_c_lets_the_launch_end_by_itself(tmp_path):
    (tmp_path / "launch.py").write_text(LAUNCH)
    script = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, tmp_path],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a suite in the background ignores it
    )
    try:
        assert script.stdout.readline() == "trains\n"
        os.killpg(script.pid, signal.SIGINT)  # as a terminal does
        assert script.communicate(timeout=60)[0] == f"saved\n{INTERRUPTED}\n"
    finally:
        script.kill()
