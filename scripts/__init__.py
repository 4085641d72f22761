"""What is measured and checked beside the tests. Threads wait as launch.py has them (`let_threads_sleep`)."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["SAE_SWEEPS_LOCAL"] = "none"  # measurements do not depend on a user's conf/local.yaml
