"""python -m simulated_cuda SCRIPT.py WORDS, or python -m simulated_cuda -m MODULE WORDS: on the simulated device."""

import os
import runpy
import sys

import simulated_cuda

simulated_cuda.start()
sys.argv = sys.argv[1:]
sys.path.insert(0, os.getcwd())
if sys.argv[0] == "-m":
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    runpy.run_path(sys.argv[0], run_name="__main__")
