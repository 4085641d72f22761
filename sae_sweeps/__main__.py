"""`python -m sae_sweeps COMMAND ...`: the same as `sae-sweeps COMMAND ...`."""

import sys

from sae_sweeps.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
