"""Speed beside the other libraries, in one interleaved run: `python -m bench --help`."""
