"""Random commands of `campaign_configs`: well-formed ones over the files of a world, and changes that spoil them."""

from __future__ import annotations

import random
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sae_sweeps.cli.compose import compose_points
from sae_sweeps.config.plugins import choices
from scripts.campaign_world import PASSWORD, SYNTHETIC

GROUPS = ("architecture", "penalty", "schedule", "lr_schedule", "group_layer", "eval")
NONSENSE = (
    "0", "-1", "1", "2", "0.5", "1.5", "-0.0", "1e-30", "1e30", "1e400", "nan", "inf", "-inf", "null", "true", "false",
    "abc", "''", "' '", "[]", "[0]", "[1,2,3]", "[a,null]", "{}", "{a: 1}", "9223372036854775808", "1_000", "0x10",
    "1e3", "é", "../x", "a/b", "'x=y'", "'1,2'", "'${seed}'", "'a\nb'", "range(0,3)", "0.1,0.2", "choice(1,2)",
    "${oc.env:HF_TOKEN}", "~", "/proc/x", "/dev/null", "a b", "(", "a" * 3000, "\u202e", "'", "[", "-", "--", "*", "\\",
)  # fmt: skip
LEFT_OUT = (
    "hydra",
    "outputs",
    "device",
    "dry_run",
    "report",
    "cluster",
    "variants",
    "arms",
    "logger",
    "study",
    "shared",
)
"""Keys of places and devices, and keys that start other processes."""
SMALL = ("k=4", "d_sae=64", "num_tokens=1024", "batch_size=128", "data.context=32", "train.held_out_tokens=64",
         "eval.recon_batches=1", "eval.sparsity_batches=1", "eval.batch_size=2")  # fmt: skip

Command = list[str]


class Commands:
    """Draws commands; `world` is where their files lie. LAUNCH or MODULE comes first, as in `launch k=3`."""

    def __init__(self, world: Path, chance: random.Random):
        self.world, self.chance = world, chance

    def draw(self) -> Command:
        kinds: list[tuple[Callable[[], Command], int]] = [
            (self.launch_synthetic, 30), (self.launch_language, 24), (self.evaluate, 14), (self.analysis, 16),
            (self.sweep_command, 6), (self.schedule, 4), (self.repeat, 6),
        ]  # fmt: skip
        (kind,) = self.chance.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])
        command = kind()
        return self.spoiled(command) if self.chance.random() < 0.2 else command

    # Launches --------------------------------------------------------------------------------------------------------

    def launch_synthetic(self) -> Command:
        chance = self.chance
        groups = [f"{group}={chance.choice(choices(group))}" for group in chance.sample(GROUPS, chance.randint(0, 4))]
        return ["launch", *SYNTHETIC, *self._swept([*groups, *self._values(groups)])]

    def launch_language(self) -> Command:
        chance = self.chance
        words = [*SMALL]
        words.append(f"model={self._one_of('models') if chance.random() < 0.8 else chance.choice(choices('model'))}")
        words.append(f"data={self._one_of('text') if chance.random() < 0.8 else chance.choice(choices('data'))}")
        more = [
            "layer=1", "layer=0,1", "layer=mlp_out", "layer=99", "layer.hook=attn.hook_z", "layer.hook=nothing",
            "data.text_field=text", "data.text_field=label", "data.text_field=n", "data.text_field=nothing",
            "data.label_field=label", "data.label_field=n", "data.pair_field=label", "data.labels=[a]",
            "data.split=test", "data.held_out=0.5", "data.held_out=1", "data.max_norm=3", "data.max_norm=1.1",
            "data.context=2", "data.context=1000", "data.prepend_bos=false", "data.train_on=all",
            "activations.mode=disk",
            "activations.mode=stream", "penalty=ortho", "penalty=contrastive", "penalty=selective_ortho",
            "penalty=ortho+contrastive", "architecture=jumprelu", "architecture=batch_topk", "eval=full", "eval=none",
            "eval=core", "train.precision=bfloat16", "train.precision=float64", "train.selection=bfloat16",
            "device=cuda", "device=cuda:7", "outputs=/proc/x", "outputs=/dev/null", "outputs=o/ö ü",
            "outputs=~nobody/x", "cluster=slurm", "cluster=local", "cluster=mine", "cluster=odd", "model.revision=main",
            "objective=fvu", "objective=nothing", "experiment=contrastive", "experiment=demo", "experiment=two",
            "experiment=no_package",
            "experiment=unknown", "experiment=list", "experiment=tag", "logger=wandb", "only=nothing", "title=Größe",
            f"model.path=https://me:{PASSWORD}@hub/x", f"data.path=https://me:{PASSWORD}@hub/x",
            "model=hub model.path=org/name", "model=org/name", "data=hub data.path=org/name", "data=org/name",
            f"data=forget_retain data.forget={self._one_of('text')} data.retain={self._one_of('text')}",
        ]  # fmt: skip
        for word in chance.sample(more, chance.choice((0, 0, 1, 1, 2))):
            words += word.split(" ") if word.count("=") > 1 and " " in word else [word]
        if chance.random() < 0.2:
            words += self._own()
        return ["launch", *self._swept(words)]

    def _own(self) -> list[str]:
        group = self.chance.choice(("penalty", "architecture", "schedule", "eval", "data"))
        place = self.chance.choice(("own", "broken"))
        files = sorted((self.world / place / group).glob("*.yaml"))
        file = self.chance.choice(files)
        found = self.chance.choice(
            (f"hydra.searchpath=[file://{self.world / place}]", f"hydra.searchpath=[{self.world / place}]")
        )
        return self.chance.choice(
            ([found, f"{group}={file.stem}"], [f"{group}={file}"], [found, f"{group}._target_=os.system"])
        )

    def _values(self, groups: list[str]) -> list[str]:
        """Values of a few keys of the chosen groups, similar ones or nonsense."""
        chance = self.chance
        try:
            (point,) = compose_points([*SYNTHETIC, *groups])
        except Exception:  # groups that do not go together: itself a command to try
            return []
        keys = leaves(point.cfg)
        words = []
        for _ in range(chance.choice((0, 1, 1, 1, 2, 3))):
            group = chance.choice(sorted({key.partition(".")[0] for key in keys}))
            key = chance.choice([key for key in sorted(keys) if key.partition(".")[0] == group])
            words.append(f"{key}={like(keys[key], chance) if chance.random() < 0.5 else chance.choice(NONSENSE)}")
        return words

    def _swept(self, words: list[str]) -> list[str]:
        if self.chance.random() < 0.25:
            words = [
                *words,
                self.chance.choice(("seed=0,1", "lr=0.1,0.01", "penalty=none,ortho", "k=2,4", "d_sae=32,64")),
            ]
            return ["-m", *words] if self.chance.random() < 0.9 else words
        return words

    # Other commands --------------------------------------------------------------------------------------------------

    def evaluate(self) -> Command:
        chance = self.chance
        places = [*(f"saes/{p.name}" for p in (self.world / "saes").iterdir()), "outputs", "run", "text", "nowhere"]
        places += [f"damaged/{p.name}" for p in (self.world / "damaged").iterdir()]
        paths = [str(self.world / place) for place in chance.sample(sorted(places), chance.choice((1, 1, 1, 2)))]
        tiny = f"model={self.world / 'models' / 'tiny'}"
        more = [
            tiny, tiny, "layer=0", f"data={self._one_of('text')}", f"data={self.world / 'text' / 'rows.jsonl'}",
            "eval=core", "eval=full", "eval=none", "eval.evaluations=[core]", "eval.evaluations=[nothing]", "k=3",
            "eval.recon_batches=0", "data.prepend_bos=false", "data.max_norm=3", "seed=1", "device=cuda", "outputs=o",
            "eval.evaluations=[absorption]", "eval.evaluations=[sparse_probing]", "eval.exclude_outliers=false",
        ]  # fmt: skip
        words = chance.sample(more, chance.randint(0, 4))
        named = [word for word in words if word.startswith("eval.evaluations=")]
        if not named or "core" in named[-1]:
            words += ["eval.recon_batches=1", "eval.sparsity_batches=1", "eval.batch_size=2"]
        return ["evaluate", *paths, *words]

    def analysis(self) -> Command:
        chance = self.chance
        command = chance.choice(("table", "table", "report", "notes", "plots", "audit", "import"))
        options = {
            "table": [
                "--where=k = 4", "--where=k =", "--where=penalty in (none, ortho)", "--where=nothing = 1", "--sort=fvu",
                "--sort=nothing", "--columns=k,fvu", "--columns=*", "--columns=nothing", "--aggregate=seed",
                "--format=json", "--format=csv", "--format=html", "--format=latex", "--format=svg", "--format=pdf",
                "--baseline=k = 4", "--baseline=nothing", "--target-fvu=0.5", "--target-fvu=x", "-o=table.md",
                "-o=/proc/x/table.md", "-o=.", "--pivot=k",
            ],
            "report": ["--figures=none", "--figures=nothing", "-o=r.html", "-o=/dev/full/x", "--title=<script>",
            "--runs=0"],
            "notes": ["-o=n.txt", "-o=.", "--format=nothing"],
            "plots": ["--list", "-o=p", "--only=nothing", "--only=outcomes", "-o=/proc/p"],
            "audit": ["--strict", "--format=json", "--format=markdown", "--level=error", "--level=nothing"],
            "import": ["--replace", "-o=i", "-o=/proc/i"],
        }[command]  # fmt: skip
        places = ["outputs", "run", "text/plain.txt", "text/rows.json", "nowhere", "saes/good", "notes", "models/tiny"]
        places += [f"damaged/{p.name}" for p in (self.world / "damaged").iterdir()]
        places += [f"notes/{p.name}" for p in (self.world / "notes").iterdir()] * (
            3 if command in ("import", "audit") else 1
        )
        paths = [str(self.world / place) for place in chance.sample(sorted(places), chance.choice((1, 1, 2)))]
        if command == "import" and chance.random() < 0.5:
            paths = [
                f"{self.world / 'notes'}/{chance.choice(sorted(p.name for p in (self.world / 'notes').iterdir()))}"
            ]
        chosen = chance.sample(options, chance.choice((0, 1, 1, 2)))
        return [command, *paths, *(part for word in chosen for part in _option(word))]

    def sweep_command(self) -> Command:
        chance = self.chance
        sweeps = [*(self.world / "outputs" / "sweeps").iterdir(), *(self.world / "damaged").glob("manifest*/sweeps/*")]
        place = chance.choice([*sweeps, *sweeps, self.world / "run", self.world / "outputs", Path("nowhere")])
        command = chance.choice(("status", "resume", "cancel"))
        words = {
            "status": ["--json"],
            "resume": ["--diverged", "cluster=inline", "cluster=nothing", "k=3", "cluster.nothing=1",
            "cluster.group_size=1"],
            "cancel": ["--nothing"],
        }[command]  # fmt: skip
        return [command, str(place), *chance.sample(words, chance.randint(0, 1))]

    def schedule(self) -> Command:
        chance = self.chance
        groups = [
            f"{g}={chance.choice(choices(g))}" for g in ("penalty", "schedule", "lr_schedule") if chance.random() < 0.6
        ]
        files = ["-o=c.csv", "-o=c.png", "-o=c.xyz", "-o=/proc/c.csv", "-o=."]
        output = _option(chance.choice(files)) if chance.random() < 0.4 else []
        return ["schedule", *output, *SYNTHETIC, *groups, *self._values(groups)]

    def repeat(self) -> Command:
        chance = self.chance
        places = [
            *(self.world / "outputs" / "runs").iterdir(),
            *(self.world / "damaged").glob("*/runs/*"),
            self.world / "saes",
        ]
        more = [
            "--dry-run",
            "k=3",
            "outputs=o",
            "device=cuda",
            f"data.path={self._one_of('text')}",
            "cluster=slurm",
            "-m",
        ]
        return ["launch", "--from", str(chance.choice(sorted(places))), *chance.sample(more, chance.randint(0, 2))]

    # Parts -----------------------------------------------------------------------------------------------------------

    def _one_of(self, folder: str) -> str:
        """A path of the world, quoted now and then as commas and braces need."""
        names = sorted(path.name for path in (self.world / folder).iterdir() if path.name != "EXECUTED")
        path = f"{self.world / folder}/{self.chance.choice([*names, 'missing.txt'])}"
        good = {"models": "tiny", "text": "rows.jsonl"}[folder]
        if self.chance.random() < 0.5:
            return f"{self.world / folder / good}"
        return f"'{path}'" if self.chance.random() < 0.1 else path

    def spoiled(self, command: Command) -> Command:
        """The command with one word changed, doubled, cut, left out or put elsewhere."""
        chance, words = self.chance, list(command)
        place = chance.randrange(1, len(words)) if len(words) > 1 else 0
        word = words[place]
        key, _, value = word.partition("=")
        change = chance.choice(("drop", "double", "cut", "key", "value", "flag", "empty", "move", "plus"))
        if change == "drop":
            del words[place]
        elif change == "double":
            words.insert(place, word)
        elif change == "move":
            words.insert(chance.randrange(1, len(words) + 1), words.pop(place))
        elif change == "flag":
            words.insert(
                place, chance.choice(("--nothing", "-x", "--cfg", "--", "-m", "--debug=1", "--resolve", "--info"))
            )
        else:
            words[place] = {
                "cut": word[: chance.randint(0, len(word))],
                "key": f"{key[:-1]}={value}",
                "value": f"{key}={chance.choice(NONSENSE)}",
                "empty": f"{key}=",
                "plus": chance.choice("+~") + word,
            }[change]
        return [word for word in words if "HYDRA_FULL_ERROR" not in word and word != "--debug"] or ["launch"]


def _option(word: str) -> list[str]:
    """`-o=FILE` as two words, as argparse reads them."""
    name, equals, value = word.partition("=")
    return [name, value] if equals and not name.startswith("--") else [word]


def leaves(cfg: DictConfig, before: str = "") -> dict[str, Any]:
    """Dotted keys and their values."""
    out: dict[str, Any] = {}
    for key in cfg:
        path = f"{before}{key}"
        if path.split(".")[0] in LEFT_OUT or path.endswith(".name") or OmegaConf.is_missing(cfg, key):
            continue
        value = cfg[key]
        out |= leaves(value, f"{path}.") if isinstance(value, DictConfig) and len(value) else {path: value}
    return out


def like(value: Any, chance: random.Random) -> str:
    """Another value of the same kind, at the edge or not."""
    if isinstance(value, bool):
        return str(not value).lower()
    if isinstance(value, int):
        return str(chance.choice((-1, 0, 1, 2, 3, 7, value // 2, value + 1, 2 * value, 64, 2**31, 2**63 - 1)))
    if isinstance(value, float):
        return repr(chance.choice((-1.0, 0.0, 1e-30, 1e-8, value / 10, value * 10, 0.5, 1.0, 1.0000001, 100.0, 1e30)))
    return "null" if value is None else shlex.quote(str(value))
