"""Speed beside other libraries. Threads wait as launch.py has them (`let_threads_sleep`); the others' as they come."""

import os
import sys

if "BENCH_OTHERS" not in os.environ:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["SAE_SWEEPS_LOCAL"] = "none"  # measurements do not depend on a user's conf/local.yaml
sys.path.append(os.path.join(os.path.dirname(os.path.dirname(__file__)), ".bench-packages"))  # bench/setting.py
