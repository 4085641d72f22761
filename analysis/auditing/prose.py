"""What text about runs claims, read so that a doubtful sentence claims nothing.

A sentence claims something only where it is a statement: what is denied, planned, hoped for or feared is none.
"""

import re
from collections.abc import Iterator
from decimal import Decimal
from functools import lru_cache

BREAK = re.compile(r"(?<=[.!?;])\s+|\s+(?=(?:[-*•]|\d{1,2}[.)])\s)")
"""Between the sentences, and the items of lists, of a text in one line."""
DENIED = re.compile(
    r"\b(?:not|never|no|none|nor|neither|without|less|lacks?|lacking|fail\w*|insufficient\w*|instab\w+|unstable|un\w*stab\w+"
    r"|too|diverg\w+|nan|cannot|\w+n't)\b",
    re.IGNORECASE,
)
"""Words with which a sentence does not praise."""
INTENDED = re.compile(
    r"\b(?:need\w*|should|must|consider\w*|would|could|may|might|can|will|if|whether|aim\w*|goals?|plans?|planned|next|toward\w*"
    r"|wants?|try|tries|trying|attempt\w*|hop(?:e|ed|es|ing)|expect\w*|suggest\w*|focus\w*|designed|intended|require\w*|ensure\w*"
    r"|to (?:\w+ly )?(?:stabili[sz]e|improve|converge|be|keep|make|allow|get|reach|address|help)|in order)\b"
    r"|\b(?:for|allow(?:s|ed|ing)?(?: for)?|enabl(?:e|es|ed|ing))\b[^.;]*?"
    r"\b(?:stab\w+|converg\w+|improv\w+|better|smooth\w*)",
    re.IGNORECASE,
)
"""Words with which a sentence plans or hopes, rather than states."""
CONCEDED = re.compile(r"\b(?:but|however|still|although|though|yet|despite|while|except)\b", re.IGNORECASE)
"""Words with which a sentence takes back a part of what it states."""
PRAISE = re.compile(
    r"\b(?:(?:improved|better|good|greater|enhanced|increased) (?:\w+ )?stability|stable|stably|stability"
    r"|converged|converges|smooth(?:ly|er)?|success(?:ful|fully)|similar (?:final )?loss)\b",
    re.IGNORECASE,
)
RUN = re.compile(
    r"\b([Rr]uns?|RUNS?)(?:_|\s*#\s*|\s+)(\d{1,3})(?:\s*(?:-|–|to|through)\s*(\d{1,3}))?\b(?![.,]\d|[%\d])(?:\s+(\w+))?"
)
COUNTED = re.compile(
    r"more|times?|seeds?|steps?|epochs?|tokens?|experiments?|jobs?|evaluations?|batch\w*|gpus?|hours?|minutes?|of|k|m"
    r"|million",
    re.IGNORECASE,
)
"""What follows a number that counts: `run 3 seeds`."""
EVERY = re.compile(
    r"\b(?:all|every|each|both)\b(?: of)?(?: the)?(?: \w+)? (?:runs?|configurations?)\b"
    r"|\b(?:across|over|between) (?:all |the |different )?(?:\w+ )?(?:runs|configurations)\b",
    re.IGNORECASE,
)
RANGE = re.compile(r"(?<![\w.])~?(\d+(?:\.\d+)?)\s*(?:-|–|—|to)\s*~?(\d+(?:\.\d+)?)(?![\w.]*\d)")
WORDS = {
    "final_loss": r"(?<!ce )(?<!entropy )(?<!l1 )(?<!l2 )(?<!mi )(?:training |final )?\bloss(?:es)?\b(?! scores?)",
    "ce_loss_score": r"\bce (?:loss )?scores?|\bce loss|\bcross[- ]entropy",
    "kl_div_score": r"\bkl\b",
    "explained_variance_legacy": r"\bexplained variance",
    "l0": r"\bl0\b|\bsparsity (?:patterns?|metrics?|levels?)",
    "unlearning_score": r"\bunlearning (?:scores?|capabilit\w+|performance)",
    "mean_absorption_score": r"\babsorption",
    "sae_test_accuracy": r"\bsparse[- _]prob\w+",
}
"""Metrics with the words that name them in text."""


def sentences(text: str) -> list[str]:
    return [part.strip(" -*•") for part in BREAK.split(" ".join(text.split())) if part.strip(" -*•")]


@lru_cache(maxsize=4096)
def praise(sentence: str) -> str | None:
    """The words with which a sentence states that training went well, or None."""
    found = PRAISE.search(sentence)
    return None if found is None or DENIED.search(sentence) or INTENDED.search(sentence) else found[0]


def runs_named(text: str) -> Iterator[int]:
    """The numbers of runs that a text names: `Run 3`, `run_10`, `Runs 5 to 9`."""
    for found in RUN.finditer(text):
        word, first, last, after = found.groups()
        if after and COUNTED.fullmatch(after):
            continue
        if word[0] == "r" and after and after.endswith("s") and "_" not in found[0]:
            continue  # `run 3 variants`
        yield from range(int(first), int(last or first) + 1) if int(last or first) - int(first) < 50 else (int(first),)


def metrics_named(text: str) -> list[str]:
    return [metric for metric, pattern in WORDS.items() if re.search(pattern, text, re.IGNORECASE)]


def agrees(number_text: str, value: float, digits: float = 0.5) -> bool:
    """Whether a number in prose is the value, rounded to the digits that the prose has (1: or cut off there)."""
    written = Decimal(number_text.replace(",", "").rstrip("."))
    exponent = written.as_tuple().exponent
    last_digit = 10.0 ** (exponent if isinstance(exponent, int) else 0)
    return abs(float(written) - value) <= digits * last_digit * (1 + 1e-6)
