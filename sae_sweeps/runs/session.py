"""What the runs of one process share: the device, the language model, activations and held-out text."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sae_sweeps.activations.store import ActivationStore, open_layers
from sae_sweeps.architectures.batch import Batch
from sae_sweeps.config.hooks import hook_name
from sae_sweeps.config.identity import canonical, text_of
from sae_sweeps.config.run import RunConfig
from sae_sweeps.config.schema import DataConfig, LayerConfig
from sae_sweeps.errors import ConfigError, Interrupted
from sae_sweeps.storage.digests import short_hash
from sae_sweeps.storage.gpus import visible_gpus
from sae_sweeps.storage.printing import print_line

if TYPE_CHECKING:
    from sae_sweeps.activations.language_model import LanguageModel
    from sae_sweeps.evaluation.shared import Shared


@dataclass
class Progress:
    """Progress of a run: `stage(name, total, unit, done=0)` opens a stage, `tick(done)` reports the units done."""

    stage: Callable[..., None] = lambda name, total, unit, done=0: None
    tick: Callable[[int], None] = lambda done: None


@dataclass
class RunSession:
    """Shared by the runs of one process: device, language model, held-out text, the common parts of evaluations."""

    device: torch.device
    stop: Callable[[], bool] = lambda: False
    """Once it returns True, every run in training writes a checkpoint and ends here."""
    progress: Progress = field(default_factory=Progress)
    flush: Callable[[], bool] = lambda: False
    """When it returns True, every run in training writes a checkpoint and goes on."""
    layers: Sequence[LayerConfig] = ()
    """Those that runs at hand differ in: what one of them needs of the text is harvested for all, in one pass."""
    _models: dict[str, LanguageModel] = field(default_factory=dict)
    _held_out: dict[str, torch.Tensor] = field(default_factory=dict)
    _shared: dict[str, Shared] = field(default_factory=dict)

    def language_model(self, run: RunConfig, digest: str) -> LanguageModel | None:
        """The run's language model, loaded once; None for synthetic activations."""
        if run.synthetic:
            return None
        if digest not in self._models:
            from sae_sweeps.activations.language_model import load_language_model

            self._models.clear()  # one at a time: the next may be as large
            self._shared.clear()  # these hold it too
            self._models[digest] = load_language_model(run.model, self.device)
        return self._models[digest]

    def held_out(self, run: RunConfig, n_contexts: int) -> torch.Tensor:
        """The first held-out contexts [<= n_contexts, context], tokenised once."""
        from sae_sweeps.activations.contexts import held_out_contexts

        identity = canonical(run)
        lm = self.language_model(run, identity["model"]["digest"])
        assert lm is not None
        key = short_hash([identity["model"], text_of(identity), n_contexts])
        if key not in self._held_out:
            self._held_out = {key: held_out_contexts(run.model, run.data, lm, n_contexts)}
        return self._held_out[key]

    def shared(self, run: RunConfig, cache: Path) -> Shared:
        """The shared parts of evaluations of this model, layer and `eval`."""
        from sae_sweeps.evaluation.shared import Shared
        from sae_sweeps.evaluation.sources import open_source

        digest = canonical(run)["model"]["digest"]
        key = short_hash([digest, asdict(run.layer), asdict(run.eval)])
        if key not in self._shared:
            lm = self.language_model(run, digest)
            layer = LayerConfig(run.layer.hook, run.layer.index)
            name, source = run.model.path or run.model.name, open_source(run.eval, run.model)
            stage, tick = self.progress.stage, self.check
            self._shared = {key: Shared(run.eval, lm, layer, name, digest, source, cache, stage, tick)}
        return self._shared[key]

    def forget_features(self) -> None:
        """Free the features that evaluations keep of SAEs."""
        for shared in self._shared.values():
            shared.forget_features()

    def check(self, done: int) -> None:
        """Report progress outside the training loop; there a stop needs no checkpoint."""
        self.progress.tick(done)
        self.flush()  # nothing to write here, but the request is answered and its event cleared
        self.raise_if_stopped()

    def raise_if_stopped(self) -> None:
        if self.stop():
            raise Interrupted("stopped outside the training steps")


def device_for(name: str, requested: str | None = None) -> torch.device:
    """As `check_device`, and made the current one of this thread: kernels are launched and events recorded there."""
    device = check_device(name, requested)
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)  # which refuses a device without an index
    return device


def check_device(name: str, requested: str | None = None) -> torch.device:
    """The device of this name; `auto` is CUDA where there is one, else the CPU, with a warning where there is a GPU.

    The tasks of a Slurm job without CUDA_VISIBLE_DEVICES take GPUs of their own.

    Raises:
        ConfigError: a CUDA device that does not exist, or `auto` without one where the key in `requested` has reserved
            a GPU.
    """
    if name == "auto" and not torch.cuda.is_available():
        gpus = visible_gpus()
        if requested:
            key = requested.partition("=")[0]
            raise ConfigError(f"{requested}: a GPU is reserved, and {_unusable(gpus)}; or give device=cpu, or {key}=0.")
        if gpus:
            print_line(f"warning: device=auto trains on the CPU: {_unusable(gpus)} (device=cpu: without this warning)")
        return torch.device("cpu")
    device = torch.device("cuda" if name == "auto" else name)
    if device.type != "cuda":
        return device
    found = torch.cuda.device_count()
    if (device.index or 0) >= found:
        raise ConfigError(
            f"device={name}: torch {torch.__version__} sees {found} CUDA device{'s' * (found != 1)} here; "
            "give device=cpu, or install torch's CUDA build on a machine with a GPU."
        )
    shared = int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "CUDA_VISIBLE_DEVICES" not in os.environ
    if device.index is None and shared and found > 1:
        return torch.device("cuda", int(os.environ.get("SLURM_LOCALID", "0")) % found)
    return device


def _unusable(gpus: list[str]) -> str:
    """Why torch uses none of the driver's GPUs, and the mend."""
    listed = f"{len(gpus)} GPU{'s' * (len(gpus) != 1)}" if gpus else "no GPU"
    if torch.version.cuda is None:
        return f"the driver lists {listed}, but torch {torch.__version__} is built without CUDA; install its CUDA build"
    return (
        f"the driver lists {listed}, but torch {torch.__version__} for CUDA {torch.version.cuda} can use none; update "
        "the driver, or install torch for an older CUDA"
    )


def activation_key(run: RunConfig, identity: dict[str, Any], split: str, num_tokens: int) -> dict[str, Any]:
    """Everything that determines the content of a store of activations."""
    key: dict[str, Any] = {name: identity[name] for name in ("model", "layer") if name in identity}
    if not run.synthetic:
        key["data"] = text_of(identity)
        key["harvest_batch"] = run.activations.harvest_batch  # other shapes, other last bits
    return key | {"split": split, "num_tokens": num_tokens, "dtype": run.activations.dtype}


def open_split(
    run: RunConfig, layers: Sequence[LayerConfig], session: RunSession, cache: Path, split: str, num_tokens: int
) -> list[ActivationStore | Exception]:
    """Activations of the training or the held-out text at each of the layers, or the error that concerns it alone.

    They are harvested in one pass, unless they exist; held-out ones are kept in memory. `run` has any of the layers.
    """
    identity = canonical(run, cache / "digests")
    session.progress.stage("harvest", num_tokens, "tok")
    data = DataConfig() if run.synthetic else run.data  # no text decides synthetic activations
    kept = run.activations if split == "train" else replace(run.activations, mode="memory")
    keyed = []
    for layer in layers:
        place = {key: value for key, value in asdict(layer).items() if key in identity.get("layer", {})}
        of_layer = identity | ({"layer": place} if "layer" in identity else {})
        keyed.append((layer, activation_key(run, of_layer, split, num_tokens)))
    return open_layers(
        run.model, keyed, data, kept, num_tokens, cache, session.device,
        split=split, lm=session.language_model(run, identity["model"]["digest"]), progress=session.check,
    )  # fmt: skip


def held_out_pool(run: RunConfig, session: RunSession, cache: Path, n_tokens: int) -> Batch:
    """The first `n_tokens` held-out tokens with their activations, on the CPU; fewer where the text is shorter."""
    names = list(map(hook_name, session.layers))
    layers = session.layers if (name := hook_name(run.layer)) in names else [run.layer]
    stores = open_split(run, layers, session, cache, "held_out", n_tokens)
    store = stores[names.index(name) if name in names else 0]
    if isinstance(store, Exception):
        raise store
    return store.rows(0, store.n_tokens).take(torch.arange(store.n_tokens).numpy())
