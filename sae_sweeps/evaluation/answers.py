"""Answers of a judge, written to a file one by one: none is paid for twice."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path

from sae_sweeps.evaluation.judge import Judge, Messages
from sae_sweeps.storage.rows import RowFile


class Answers:
    """A model's answers in a file with one JSON object per answer: `asked`, `model`, `answer`.

    `asked` is a hash of the model, the messages and the most tokens allowed. A last line cut off by a kill is ignored.
    Raises DamagedFile for any other line that cannot be read.
    """

    def __init__(self, path: Path, model: str):
        self.model = model
        self._file = RowFile(path, by="asked", kind=str)
        self._known = {row["asked"]: str(row["answer"]) for row in self._file.rows()}
        self._lock = threading.Lock()

    def known(self, messages: Messages, max_tokens: int) -> str | None:
        """The answer in the file, if any."""
        return self._known.get(self._key(messages, max_tokens))

    def get(self, judge: Judge, messages: Messages, max_tokens: int) -> str:
        """The answer in the file, or the judge's, written before it is used. Raises NoNetwork, DiskFull."""
        answer = self.known(messages, max_tokens)
        if answer is None:
            answer = judge.complete(messages, max_tokens)
            key = self._key(messages, max_tokens)
            with self._lock:
                self._file.append({"asked": key, "model": self.model, "answer": answer})
                self._known[key] = answer
        return answer

    def _key(self, messages: Messages, max_tokens: int) -> str:
        content = json.dumps([self.model, messages, max_tokens])
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
