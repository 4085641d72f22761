"""Evaluations of trained SAEs on held-out text: one file per evaluation, activations shared among them.

An evaluation is a file here whose name is in `config.evaluations.EVALUATIONS` and that ends in

    EVALUATION = Evaluation("mine", evaluate, METRICS, reads=("data", "seed"), config=MineConfig)

where METRICS is a literal (tables read it without importing the file, which loads torch) and

    evaluate(saes: Mapping[str, ExportedSAE], shared: Shared, config) -> Mapping[str, Measured]

measures SAEs of one model and layer side by side. `config` is the part of `eval` that has the evaluation's name, an
instance of its dataclass, or else all of `eval`; `shared` has the language model, labelled rows, held-out text and what
was computed from them; each result is a `Result` (`evals/NAME.json` in SAEBench's form) or `Numbers` (metrics alone).
Pairs of name and result, yielded as they are made, serve too: those made before an interruption are then kept.

An evaluation from outside is the same object, made known to the process by `config.evaluations.register`.
"""
