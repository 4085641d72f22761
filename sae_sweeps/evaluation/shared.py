"""What evaluations share: activations of labelled rows, probes and everything else that is the same for all SAEs.

Computed once per (model, layer, data, seed) and kept in files and in memory.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_sweeps.activations.synthetic import SyntheticWorld
from sae_sweeps.architectures.batch import Batch
from sae_sweeps.architectures.saelens import ExportedSAE
from sae_sweeps.config.evaluations import EvalConfig
from sae_sweeps.config.schema import DataConfig, LayerConfig
from sae_sweeps.errors import DamagedFile, out_of_memory
from sae_sweeps.evaluation.batches import is_plain
from sae_sweeps.evaluation.result import Result
from sae_sweeps.evaluation.rows import Rows, at_special_tokens, harvest_rows, mean_activations, mean_features
from sae_sweeps.evaluation.sums import count_firing
from sae_sweeps.evaluation.tasks import Pair, Source, Task
from sae_sweeps.storage.digests import short_hash
from sae_sweeps.storage.files import fsync_folder, naming_full_disk, temporary_beside

FORMAT = 1
"""Raised when kept files would differ."""
MEMORY = 2 * 2**30
"""Bytes of kept tensors and row means held in memory."""


class Memory:
    """The most recent tensors up to a number of bytes."""

    def __init__(self, limit: int = MEMORY):
        self.limit, self.size = limit, 0
        self._kept: OrderedDict[str, dict[str, Tensor]] = OrderedDict()

    def get(self, key: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        made = make()
        self._kept[key] = made
        self.size += _bytes(made)
        while self.size > self.limit and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self.size -= _bytes(dropped)
        return made

    def forget(self, prefix: str) -> None:
        """Drop the tensors whose keys begin so."""
        for key in [key for key in self._kept if key.startswith(prefix)]:
            self.size -= _bytes(self._kept.pop(key))


def _bytes(tensors: dict[str, Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors.values())


@dataclass
class Shared:
    """One language model at one layer, one source of labelled data, one seed."""

    cfg: EvalConfig
    lm: Any
    layer: LayerConfig
    model_name: str
    model_digest: str
    source: Source
    folder: Path
    """Where kept files live."""
    stage: Callable[[str, int, str], None] = lambda name, total, unit: None
    """Called when work that takes a while begins: its name, amount and unit; then `tick` with the amount done."""
    tick: Callable[[int], None] = lambda done: None
    memory: Memory = field(default_factory=Memory)
    data: DataConfig = field(default_factory=DataConfig)
    """The text that the SAEs were trained on, of which a part is held out."""
    contexts: Callable[[int], Tensor] = lambda n: torch.empty(0, 0, dtype=torch.long)
    """The first n held-out contexts [<= n, context], int64."""
    tokens: Callable[[int], Batch] = lambda n: Batch(*(torch.empty(0) for _ in range(6)))
    """The first n held-out tokens with their activations and roles; fewer where the text ends."""
    world: SyntheticWorld | None = None
    """Where the activations are synthetic; `lm` is None then."""
    folders: Mapping[str, Path] = field(default_factory=dict)
    """The `evals/` of each SAE, for files that an evaluation keeps beside its result."""
    _done: int = 0

    @property
    def device(self) -> torch.device:
        return self.lm.device

    @property
    def llm_dtype(self) -> str:
        return str(self.lm.dtype).removeprefix("torch.")

    def begin(self, name: str, total: int, unit: str) -> None:
        self._done = 0
        self.stage(name, total, unit)

    def advance(self, n: int = 1) -> None:
        self._done += n
        self.tick(self._done)

    def each(self, what: str, saes: Mapping[str, ExportedSAE]) -> Iterator[tuple[str, ExportedSAE]]:
        """The SAEs by name, as a stage of progress: one that harvesting began ends with the harvest."""
        self.begin(what, len(saes), "SAE")
        for name, sae in saes.items():
            yield name, sae
            self.advance()

    def model_key(self) -> dict[str, Any]:
        """Everything that determines the model's activations to the last bit."""
        how = {"dtype": self.llm_dtype, "device": self.device.type, "batch": self.cfg.llm_batch}
        return {"format": FORMAT, "model": self.model_digest, "layer": asdict(self.layer)} | how

    @torch.no_grad()
    def firing_counts(
        self, stage: str, saes: Mapping[str, ExportedSAE], tokens_NL: Tensor, contexts_at_once: int
    ) -> dict[str, Tensor]:
        """Non-special tokens on which each feature fires [d_sae], from one pass of the model for all SAEs."""
        counts = {name: torch.zeros(sae.d_sae, device=sae.device) for name, sae in saes.items()}
        self.begin(stage, len(tokens_NL), "context")
        for tokens_SL in tokens_NL.split(contexts_at_once):
            plain_SL = is_plain(tokens_SL, self.lm.special_ids).to(self.device)
            x_nD = self.lm.activations(tokens_SL, self.layer)[plain_SL]
            for name, sae in saes.items():
                counts[name] += count_firing(sae.features(x_nD))[0]
            self.advance(len(tokens_SL))
        return counts

    def rows_key(self, data: str | Pair) -> dict[str, Any]:
        """Everything that determines the rows of a data set, or of a pair of its classes."""
        sizes = self.cfg.ablation if isinstance(data, Pair) else self.cfg.probing
        return self.model_key() | {
            "source": self.source.digest,
            "data": _name(data),
            "seed": self.cfg.seed,
            "rows": [sizes.train_rows, sizes.test_rows],
            "context": self.cfg.probing.context,
        }

    def kept(self, key: dict[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Tensors under a key: from memory, from a file, or made and written. Raises DiskFull, DamagedFile."""
        name = short_hash(key)
        return self.memory.get(name, lambda: self._from_file(self.folder / f"evaluation-{name}.safetensors", key, make))

    def _from_file(self, path: Path, key: dict[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        from safetensors import SafetensorError, safe_open
        from safetensors.torch import save_file

        noted = json.dumps(key, sort_keys=True)
        if path.exists():
            try:
                with safe_open(path, "pt") as file:
                    intact = file.metadata()["key"] == noted
                    tensors = {name: file.get_tensor(name) for name in file.keys()}
            except (SafetensorError, OSError, KeyError, TypeError) as error:
                if out_of_memory(error):
                    raise
                intact, tensors = False, {}
            if not intact:
                raise DamagedFile(f"{path} is damaged; delete it, and it is made again.")
            return tensors
        made = {name: tensor.cpu().contiguous() for name, tensor in make().items()}
        temporary = temporary_beside(path)
        with naming_full_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                save_file(made, temporary, {"key": noted})
                with open(temporary, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
            fsync_folder(path.parent)
        return made

    def rows(self, data: str | Pair, split: str) -> Rows:
        """Rows of a data set or pair with the model's activations, harvested once."""
        key = self.rows_key(data) | {"what": "activations", "split": split}
        return self._harvested(f"{_short(data)} {split}", key, lambda: getattr(self.task(data), split))

    def hierarchy_rows(self, name: str) -> Rows:
        """Rows of a hierarchy, labelled "coarse TAB fine"."""
        n_rows = self.cfg.hierarchy.rows
        key = self.model_key() | {"what": "activations", "source": self.source.digest, "data": name}
        key |= {"seed": self.cfg.seed, "rows": n_rows, "context": self.cfg.probing.context}

        def texts() -> dict[str, list[str]]:
            found = self.source.hierarchy(name, n_rows, self.cfg.seed).texts
            return {f"{coarse}\t{fine}": rows for coarse, inside in found.items() for fine, rows in inside.items()}

        return self._harvested(_short(name), key, texts)

    def _harvested(self, name: str, key: dict[str, Any], texts: Callable[[], dict[str, list[str]]]) -> Rows:
        def make() -> dict[str, Tensor]:
            by_class = texts()
            self.begin(name, len({text for of_class in by_class.values() for text in of_class}), "row")
            context, batch = self.cfg.probing.context, self.cfg.llm_batch
            made = harvest_rows(by_class, self.lm, self.layer, context, batch, self.tick)
            return {
                "x": made.x_ND,
                "length": made.length_T,
                "special": made.special_T,
                "text": made.text_R,
                "n_by_class": torch.tensor(list(made.n_by_class.values())),
                "labels": torch.tensor(list("\n".join(by_class).encode()), dtype=torch.uint8),
            }

        kept = self.kept(key, make)
        labels = bytes(kept["labels"].tolist()).decode().split("\n")
        sizes = dict(zip(labels, kept["n_by_class"].tolist(), strict=True))
        return Rows(kept["x"], kept["length"], kept["special"], kept["text"], sizes)

    def task(self, data: str | Pair) -> Task:
        if isinstance(data, Pair):
            sizes = self.cfg.ablation
            return self.source.pair_task(data, sizes.train_rows, sizes.test_rows, self.cfg.seed)
        probing = self.cfg.probing
        return self.source.task(data, probing.train_rows, probing.test_rows, self.cfg.seed)

    def model_means(self, data: str | Pair, split: str) -> Tensor:
        """Mean activation of each row [R, d_in], float32."""
        key = f"means {_name(data)} {split}"
        return self.memory.get(key, lambda: {"x": mean_activations(self.rows(data, split), self.device)})["x"]

    def features(self, name: str, sae: ExportedSAE, data: str | Pair, split: str) -> Tensor:
        """Mean of each of the SAE's features over the tokens of each row [R, d_sae], float32."""
        key = f"features {name} {_name(data)} {split}"
        return self.memory.get(key, lambda: {"f": mean_features(self.rows(data, split), sae, self.cfg.sae_batch)})["f"]

    def forget_features(self) -> None:
        """Drop the row means of SAEs and nothing else."""
        self.memory.forget("features ")

    def ablated_features(self, name: str, sae: ExportedSAE, data: str | Pair) -> Tensor:
        """`features` of test rows, plus the features that fire on zeros at special tokens [R, d_sae]."""
        return self.features(name, sae, data, "test") + at_special_tokens(self.rows(data, "test"), sae)

    def result(
        self, evaluation: str, name: str, sae: ExportedSAE, eval_config: dict[str, Any], metrics: Any, **more: Any
    ) -> Result:
        """A `Result` of an SAE, with its cfg and the kind of data that it was measured on."""
        return Result(evaluation, name, sae.cfg(), eval_config, metrics, **{"data": self.source.kind, **more})


def _name(data: str | Pair) -> str:
    return data.name if isinstance(data, Pair) else data


def _short(data: str | Pair) -> str:
    return _name(data).rpartition("/")[2]
