"""Train and judge sparse autoencoders: `python launch.py key=value ...`, `-m` for a sweep, `--help` for the keys."""

from sae_sweeps.cli.command import main

if __name__ == "__main__":
    main()
