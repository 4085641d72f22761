"""The rules of the audit, one small function each: what the records of earlier studies teach.

A rule reads the whole comparison and yields a sentence and the runs that it is about; with `each` it reads one run at a
time and gives its sentences. Adding one is a function in the file of its subject, with its code, its level, what to do
and, as its docstring, what it guards against; and a test with a case that triggers it and one that does not.
"""

from analysis.auditing.rules import budgets, differences, evaluations, gaps, prose, recorded, results
from analysis.auditing.rules.rule import Rule

RULES: list[Rule] = [
    rule for subject in (budgets, recorded, results, evaluations, differences, prose, gaps) for rule in subject.RULES
]
"""All rules, in the order in which findings of one level are listed."""
