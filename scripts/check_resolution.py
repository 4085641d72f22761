"""Resolves the project's requirements under constraints.txt for every supported platform and Python.

    python -m scripts.check_resolution

uv reads the packages' metadata on pypi.org and downloads no wheel of them. Settings of uv and pip, local indexes and
local wheels do not count, so the outcome is the same on every machine. The build of torch installed here, where it is
not the one on pypi.org (`+cpu`, `+cu126`), is resolved too, with the requirements in its own metadata.

Exit status 0: each resolves, from wheels that fit. 1: one does not, or takes a package without a pin. 2: uv could not
do its work, for lack of a network for instance.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PLATFORMS = {
    "Linux x86-64": "x86_64-unknown-linux-gnu",
    "Linux aarch64": "aarch64-unknown-linux-gnu",
    "macOS arm64": "aarch64-apple-darwin",
}
"""uv's names. torch has no wheels for Intel Macs."""
PYTHONS = ("3.11", "3.12", "3.13")
MACOS = "14.0"
"""The oldest macOS that torch's wheels run on."""
WITHOUT_WHEELS = ("antlr4-python3-runtime", "transformers-stream-generator")
"""Pure Python, published as source alone. Every other package must have a wheel for the platform and the Python."""
LEFT_TO_TORCH = ("cuda-", "nvidia-")
"""Prefixes of packages without a pin; constraints.txt has the reason."""


def pins(constraints: Path = ROOT / "constraints.txt") -> list[Requirement]:
    """The lines of a constraints file in their order, comments and empty lines left out."""
    lines = (line.partition("#")[0].strip() for line in constraints.read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def torch_build() -> tuple[str, list[str]] | None:
    """Version and requirements of the installed torch, if its version has a local part such as `+cpu`; else None."""
    try:
        torch = distribution("torch")
    except PackageNotFoundError:
        return None
    return (torch.version, torch.requires or []) if "+" in torch.version else None


def uv_settings(torch: tuple[str, list[str]] | None) -> str:
    """uv.toml for one resolution: empty, or with the requirements of another build of torch."""
    if torch is None:
        return ""
    version, requires = torch
    # In TOML a list of strings and a string are written as in JSON
    return (
        f'[[dependency-metadata]]\nname = "torch"\nversion = {json.dumps(version.partition("+")[0])}\n'
        f"requires-dist = {json.dumps(requires)}\n"
    )


def resolve(
    target: str, python: str, constraints: Path = ROOT / "constraints.txt", torch: tuple[str, list[str]] | None = None
) -> subprocess.CompletedProcess[str]:
    """uv's resolution of pyproject.toml with the dev extra and the pinned torch: `name==version` lines on stdout."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("UV_", "PIP_"))}
    environment["MACOSX_DEPLOYMENT_TARGET"] = MACOS
    with tempfile.TemporaryDirectory() as folder:
        settings, requested = Path(folder, "uv.toml"), Path(folder, "torch.in")
        settings.write_text(uv_settings(torch))
        requested.write_text("".join(f"{pin}\n" for pin in pins(constraints) if pin.name == "torch"))
        command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--config-file", str(settings)]
        command += ["--no-python-downloads", "--python", sys.executable, "--no-header", "--no-annotate"]
        command += ["--python-platform", target, "--python-version", python, "--only-binary", ":all:"]
        command += [word for name in WITHOUT_WHEELS for word in ("--no-binary", name)]
        command += ["--extra", "dev", "--constraints", str(constraints), "pyproject.toml", str(requested)]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def unpinned(resolution: str, constraints: Path = ROOT / "constraints.txt") -> list[str]:
    """Names in a resolution that have no pin and should."""
    pinned = {canonicalize_name(pin.name) for pin in pins(constraints)}
    names = {canonicalize_name(Requirement(line).name) for line in resolution.splitlines() if line.strip()}
    return sorted(name for name in names - pinned if not name.startswith(LEFT_TO_TORCH))


def failure(done: subprocess.CompletedProcess[str]) -> str:
    """One sentence for a resolution that failed; uv's own words are printed before it."""
    if done.returncode == 1:
        return "does not resolve under constraints.txt, for the reason above"
    if "error sending request" in done.stderr or "Failed to fetch" in done.stderr:
        return "not checked: pypi.org cannot be reached, and the check reads the packages' metadata there"
    return f"not checked: uv ended with exit status {done.returncode}, for the reason above"


def main() -> int:
    if find_spec("uv") is None:
        print("not checked: uv is not installed here; `make install` installs it", file=sys.stderr)
        return 2
    build, outcome = torch_build(), 0
    targets = [(name, python, None) for name in PLATFORMS for python in PYTHONS]
    if build is not None:
        here = "macOS arm64" if sys.platform == "darwin" else f"Linux {platform.machine().replace('_', '-')}"
        targets += [(here, python, build) for python in PYTHONS if here in PLATFORMS]
    for name, python, torch in targets:
        label = f"{name}, Python {python}" + (f", torch {torch[0]}" if torch else "")
        done = resolve(PLATFORMS[name], python, torch=torch)
        if done.returncode == 0:
            missing = unpinned(done.stdout)
            count = len(done.stdout.split())
            note = f", without a pin: {', '.join(missing)}" if missing else ""
            print(f"{label}: {count} packages{note}", flush=True)
            outcome = outcome or bool(missing)
            continue
        print(f"{done.stderr.strip()}\n{label}: {failure(done)}", file=sys.stderr, flush=True)
        if done.returncode != 1:
            return 2
        outcome = 1
    return int(outcome)


if __name__ == "__main__":
    sys.exit(main())
