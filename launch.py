"""Train and judge sparse autoencoders: `python launch.py key=value ...`, `-m` for a sweep, `--help` for the keys."""

import sys

from sae_sweeps.cli.command import main

if __name__ == "__main__":
    sys.exit(main())
