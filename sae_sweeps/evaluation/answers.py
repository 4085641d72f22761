"""Answers of a judge, kept as they come: what was paid for is not asked for again."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path

from sae_sweeps.evaluation.judge import Judge, Messages
from sae_sweeps.storage.rows import RowFile


class Answers:
    """What a model said to what it was asked, in a file with one JSON object per answer: `asked`, `model`, `answer`.

    `asked` stands for the model, the messages and the most tokens allowed. A line that was torn by a kill is left out,
    and asked for again. Raises DamagedFile for any other line that does not read back.
    """

    def __init__(self, path: Path, model: str):
        self.model = model
        self._file = RowFile(path, by="asked", kind=str)
        self._known = {row["asked"]: str(row["answer"]) for row in self._file.rows()}
        self._lock = threading.Lock()

    def known(self, messages: Messages, max_tokens: int) -> str | None:
        """The answer that was given before, if any."""
        return self._known.get(self._asked(messages, max_tokens))

    def ask(self, judge: Judge, messages: Messages, max_tokens: int) -> str:
        """The answer: the one given before, or the judge's, kept before it is used. Raises NoNetwork, DiskFull."""
        answer = self.known(messages, max_tokens)
        if answer is None:
            answer = judge.ask(messages, max_tokens)
            asked = self._asked(messages, max_tokens)
            with self._lock:
                self._file.append({"asked": asked, "model": self.model, "answer": answer})
                self._known[asked] = answer
        return answer

    def _asked(self, messages: Messages, max_tokens: int) -> str:
        content = json.dumps([self.model, messages, max_tokens])
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
