"""Where the config files are: in a checkout, and in an installed package."""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def config_dir() -> Path:
    """The folder of the config groups: `sae_sweeps/conf` of an installed wheel, else `conf/` of the checkout."""
    packaged = PACKAGE / "conf"
    return packaged if packaged.is_dir() else PACKAGE.parent / "conf"


def how_made(path: str) -> str:
    """For the sentence about a missing file: the make target that writes it, or an empty string."""
    return " (`make wordnet` writes it)" if "/sae-sweeps/wordnet/" in path else ""
