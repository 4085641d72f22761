"""GGUF files as folders in Hugging Face format: dequantised once, with tokenizer, and how they were quantised."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import tempfile
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

from sae_sweeps.errors import ConfigError, DataError, out_of_memory
from sae_sweeps.storage.files import one_line
from sae_sweeps.storage.printing import print_line

CACHE = Path("~/.cache/sae-sweeps/models")
"""Where models live that are made on this machine, of a GGUF file or by `make smollm2`."""


def folder_of(file: Path) -> Path:
    """The folder that a GGUF file becomes, by its content; it is made the first time."""
    stat = file.stat()
    return _folder_of(file, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=8)
def _folder_of(file: Path, size: int, modified: int) -> Path:
    folder = CACHE.expanduser() / f"{file.stem}-{_sha256(file)[:12]}"
    if not folder.is_dir():
        convert(file, folder)
    return folder


def convert(file: Path, folder: Path) -> None:
    """Write the folder, whole or not at all, with float32 weights, tokenizer and the types of the file's tensors.

    transformers refuses to save a model that it has read from GGUF: the weights go into a fresh one of its class.

    Raises:
        ConfigError: the package gguf is not installed.
        DataError: transformers cannot read the file.
    """
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ConfigError(f"model={file}: reading GGUF needs a package; pip install 'sae-sweeps[gguf]'.") from None
    print_line(f"model={file}: dequantised once, into {folder} ...")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        types = Counter(tensor.tensor_type.name for tensor in GGUFReader(str(file)).tensors)
        place: dict[str, Any] = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
        read = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(**place, trust_remote_code=False)
    except Exception as error:  # transformers and gguf raise many types here
        if out_of_memory(error):
            raise
        raise DataError(f"model={file}: not a GGUF model that transformers can read ({one_line(error)}).") from error
    config = copy.deepcopy(read.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = type(read)(config)
    model.load_state_dict(read.state_dict())
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        made = Path(temporary) / "model"
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        _describe(made / "config.json", file, types)
        try:
            os.replace(made, folder)
        except OSError:
            if not folder.is_dir():  # another process has made the same one
                raise


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _describe(config_file: Path, file: Path, types: Counter[str]) -> None:
    """Write how the weights were quantised into config.json, and leave out transformers' version: it is no weight."""
    config = json.loads(config_file.read_text())
    config.pop("transformers_version", None)
    config["gguf"] = {
        "file": file.name,
        "sha256": _sha256(file),
        "tensors": dict(sorted(types.items())),
        "dequantised_to": "float32",
    }
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
