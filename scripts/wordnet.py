"""Text and labelled rows of a machine without a hub, from WordNet's glosses: `make wordnet`.

WordNet 3.0 (Princeton University, its own permissive licence) has 117,000 glosses, short English texts that its
lexicographer files sort by topic. Debian's package wordnet-base holds it; elsewhere give a folder with data.noun,
data.verb, data.adj and data.adv in WORDNET. Two files are written, the same ones each time from the same WordNet and
the same Python:

text.jsonl      training text: words and their glosses, forty to a document, between documents of the standard library
labelled.jsonl  rows for `eval.data`; test glosses are not in the training text
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sae_sweeps.builtin.text import corpus
from sae_sweeps.storage.files import write_text

FOLDER = Path("~/.cache/sae-sweeps/wordnet").expanduser()
INSTALLED = Path("/usr/share/wordnet")
FILES = ("data.noun", "data.verb", "data.adj", "data.adv")
PER_DOCUMENT = 40
TEST_SHARE = 4
"""Every fourth gloss, by a hash, is for testing."""

TOPICS = {
    4: "act", 5: "animal", 6: "artifact", 7: "attribute", 8: "body", 9: "cognition", 10: "communication", 11: "event",
    12: "feeling", 13: "food", 14: "group", 15: "location", 17: "object", 18: "person", 19: "phenomenon", 20: "plant",
    21: "possession", 22: "process", 23: "quantity", 24: "relation", 25: "shape", 26: "state", 27: "substance",
    28: "time", 29: "body", 30: "change", 31: "cognition", 32: "communication", 33: "competition", 34: "consumption",
    35: "contact", 36: "creation", 37: "emotion", 38: "motion", 39: "perception", 40: "possession", 41: "social",
    42: "stative", 43: "weather",
}  # fmt: skip
"""Lexicographer files by number: nouns to 28, verbs from 29."""
SPEECH = {"n": "noun", "v": "verb", "a": "adjective", "s": "adjective", "r": "adverb"}
SETS = {
    "wordnet/things": ("noun", ("animal", "artifact", "food", "person", "plant")),
    "wordnet/abstractions": ("noun", ("act", "attribute", "cognition", "communication", "state")),
    "wordnet/actions": ("verb", ("change", "communication", "contact", "motion", "social")),
}
BOTH = ("body", "cognition", "communication", "possession")
"""Topics that nouns and verbs have: SCR's classes, whose second attribute is the part of speech."""


@dataclass(frozen=True)
class Gloss:
    words: str
    text: str
    speech: str
    topic: str | None

    @property
    def split(self) -> str:
        number = int.from_bytes(hashlib.blake2b(self.text.encode(), digest_size=8).digest(), "big")
        return "test" if number % TEST_SHARE == 0 else "train"


def main() -> int:
    with tempfile.TemporaryDirectory() as temporary:
        source = find(Path(temporary))
        if source is None:
            print(
                "error: WordNet was not found: install Debian's wordnet-base, or give WORDNET=FOLDER with "
                f"{', '.join(FILES)} (WNdb-3.0 of wordnet.princeton.edu).",
                file=sys.stderr,
            )
            return 2
        found = sorted(glosses(source), key=lambda gloss: (gloss.text, gloss.words, gloss.speech))
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, rows in (("text.jsonl", training(found)), ("labelled.jsonl", labelled(found))):
        lines = [json.dumps(row) for row in rows]
        write_text(FOLDER / name, "".join(line + "\n" for line in lines))
        print(f"{FOLDER / name}: {len(lines):,} rows")
    return 0


def find(temporary: Path) -> Path | None:
    """The folder of WordNet's files: WORDNET, the installed package, or the package unpacked into `temporary`."""
    given = os.environ.get("WORDNET")
    if not given and not INSTALLED.is_dir() and shutil.which("apt-get") and shutil.which("dpkg-deb"):
        done = subprocess.run(["apt-get", "download", "-qq", "wordnet-base"], cwd=temporary, check=False)
        packages = list(temporary.glob("*.deb"))
        if done.returncode == 0 and packages:
            subprocess.run(["dpkg-deb", "-x", packages[0], temporary], check=True)
        given = str(temporary / INSTALLED.relative_to("/"))
    folder = Path(given or INSTALLED).expanduser()
    return folder if all((folder / name).is_file() for name in FILES) else None


def glosses(folder: Path) -> Iterator[Gloss]:
    """Every gloss of WordNet's data files, each text once."""
    seen = set()
    for name in FILES:
        for line in (folder / name).read_text(encoding="utf-8").splitlines():
            head, bar, text = line.partition(" | ")
            if line.startswith("  ") or not bar:  # the licence at the head
                continue
            _, file, speech, count, *rest = head.split()
            words = [word.split("(")[0].replace("_", " ") for word in rest[: 2 * int(count, 16) : 2]]
            text = text.strip()
            if text not in seen:
                seen.add(text)
                yield Gloss(", ".join(words), text, SPEECH[speech], TOPICS.get(int(file)))


def training(found: list[Gloss]) -> Iterator[dict[str, str]]:
    """Documents of the standard library and of glosses for training, shuffled together."""
    kept = [gloss for gloss in found if gloss.split == "train"]
    rng = random.Random(0)
    rng.shuffle(kept)
    documents = [
        "\n".join(f"{gloss.words}: {gloss.text}" for gloss in kept[first : first + PER_DOCUMENT])
        for first in range(0, len(kept), PER_DOCUMENT)
    ]
    documents += [text for split in corpus.SPLITS for _, text in corpus.documents(split)]
    rng.shuffle(documents)
    yield from ({"text": text} for text in documents)


def labelled(found: Iterable[Gloss]) -> Iterator[dict[str, str]]:
    """A row for each data set that a gloss belongs to."""
    for gloss in found:
        row = {"text": gloss.text, "split": gloss.split}
        topic = {} if gloss.topic is None else {"fine": f"{gloss.speech}: {gloss.topic}"}
        yield {"dataset": "wordnet/parts_of_speech", "label": gloss.speech, **row, **topic}
        for name, (speech, topics) in SETS.items():
            if gloss.speech == speech and gloss.topic in topics:
                yield {"dataset": name, "label": str(gloss.topic), **row}
        if gloss.topic in BOTH:
            yield {"dataset": "wordnet/nouns_and_verbs", "label": str(gloss.topic), "attribute": gloss.speech, **row}


if __name__ == "__main__":
    sys.exit(main())
