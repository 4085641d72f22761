import json

import pandas as pd
import pytest
import torch
from toy_lm import D_IN, toy_sae

from sae_sweeps.config.evaluations import AblationConfig, EvalConfig
from sae_sweeps.config.schema import LayerConfig, ModelConfig
from sae_sweeps.errors import ConfigError, DataError
from sae_sweeps.evaluation import builtin_tasks as builtin
from sae_sweeps.evaluation.questions import is_trick
from sae_sweeps.evaluation.saebench_data import AMAZON, BIAS, CLASSES, EUROPARL, NEWS, PAIRS, SAEBenchSource, balanced
from sae_sweeps.evaluation.scr import evaluate_scr
from sae_sweeps.evaluation.shared import Shared
from sae_sweeps.evaluation.sources import open_source
from sae_sweeps.evaluation.tasks import Pair, chosen, chosen_pairs


def write(folder, split, rows):
    (folder / "data").mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A folder in the layout of the hub, with little of what SAEBench reads."""
    folder = tmp_path_factory.mktemp("hub")
    for split, n in (("train", 12), ("test", 7)):
        jobs = [
            {"hard_text": f"{split} {job} {gender} {i}", "profession": job, "gender": gender}
            for i in range(n)
            for job in (0, 1, 2, 6, 9, 21, 13)
            for gender in (0, 1)
        ]
        write(folder / BIAS, split, jobs)
        write(folder / NEWS, split, [{"text": f"{split} {c} {i}", "label": c} for i in range(n) for c in range(4)])
    languages = {"en": "en-fr", "fr": "fr-it", "de": "de-en", "es": "es-fr", "nl": "nl-pt"}
    card = "".join(
        f"- config_name: {pair}\n  data_files:\n  - split: train\n    path: {pair}/train.parquet\n"
        for pair in languages.values()
    )
    for language, pair in languages.items():
        (folder / EUROPARL / pair).mkdir(parents=True)
        rows = [{"translation": {language: f"{language} {i}", "xx": "-"}} for i in range(30)]
        pd.DataFrame(rows).to_parquet(folder / EUROPARL / pair / "train.parquet")
    (folder / EUROPARL / "README.md").write_text(f"---\nconfigs:\n{card}---\n")
    (folder / "cais/wmdp-corpora").mkdir(parents=True)
    lines = [json.dumps({"text": "x" * length}) for length in (10, 51, 400)]
    (folder / "cais/wmdp-corpora/bio-forget-corpus.jsonl").write_text("\n".join(lines))
    return folder


def test_rows_are_the_ones_that_pandas_draws_for_saebench(hub):
    task = SAEBenchSource(hub).task(f"{BIAS}_class_set1", 16, 8, 42)
    assert list(task.train) == list(CLASSES[f"{BIAS}_class_set1"]) and {len(t) for t in task.train.values()} == {8}
    table = pd.read_parquet(hub / BIAS / "data/train-00000-of-00001.parquet")
    expected = []
    for _, group in table[table["profession"] == 6].groupby("gender"):
        expected += group.sample(n=4, random_state=42)["hard_text"].tolist()
    assert task.train["6"] == expected and {len(t) for t in task.test.values()} == {4}
    news = SAEBenchSource(hub).task(NEWS, 8, 4, 42)
    table = pd.read_parquet(hub / NEWS / "data/test-00000-of-00001.parquet")
    assert news.test["3"] == table[table["label"] == 3]["text"].sample(n=2, random_state=42).tolist()


def test_streamed_rows_are_shuffled_with_the_one_too_many_that_saebench_reads(hub):
    import random

    task = SAEBenchSource(hub).task(EUROPARL, 12, 6, 42)
    random.seed(42)
    for language in CLASSES[EUROPARL]:
        texts = [f"{language} {i}" for i in range(10)]
        random.shuffle(texts)
        assert (task.train[language], task.test[language]) == (texts[:6], texts[6:9])


def test_quadrants_of_a_pair(hub):
    pair = Pair(f"{BIAS}_class_set1", ("professor", "nurse"))
    task = SAEBenchSource(hub).pair_task(pair, 12, 8, 42)
    assert pair.name == "LabHC/bias_in_bios_class_set1_scr_professor_nurse"
    assert all(text.startswith("train 21 0") for text in task.train["male_professor / female_nurse"])
    assert {text[:10] for text in task.test["nurse_data_only"]} == {"test 13 0 ", "test 13 1 "}


class OneToken:
    """An activation of one number for each text."""

    device, dtype, special_ids = torch.device("cpu"), torch.float32, frozenset()

    def tokenize_rows(self, texts, context):
        return torch.tensor([[sum(map(ord, text))] for text in texts])

    def activations(self, tokens_SL, layer):
        return (tokens_SL[..., None] % torch.arange(2, 2 + D_IN)).float()


def test_pairs_that_the_data_lack_are_named_and_the_others_measured(hub, tmp_path):
    """The folder has rows of two professions that pair, of the others none."""
    cfg = EvalConfig(ablation=AblationConfig(train_rows=12, test_rows=8, n_values=[2]))
    shared = Shared(cfg, OneToken(), LayerConfig(), "toy", "toy", SAEBenchSource(hub), tmp_path)
    shared.source.pairs = tuple(pair for pair in PAIRS if pair.dataset != AMAZON)
    sae = toy_sae(architecture="standard").to(dtype=torch.float32)
    found = evaluate_scr({"it": sae}, shared, cfg)["it"]
    assert found.eval_config["column1_vals_lookup"] == {f"{BIAS}_class_set1": [["professor", "nurse"]]}
    assert [detail["dataset_name"] for detail in found.details] == [
        "LabHC/bias_in_bios_class_set1_scr_professor_nurse_results"
    ]
    missing = [warning for warning in found.warnings if warning.startswith("not measured")]
    assert len(missing) == 3 and missing[0] == (
        "not measured: LabHC/bias_in_bios_class_set1_scr_architect_journalist: 0 rows are journalist and male, and 3 "
        "are needed; lower eval.ablation.train_rows or eval.ablation.test_rows"
    )
    cfg.ablation.pairs = {f"{BIAS}_class_set1": [["nurse", "attorney"], ["professor", "accountant"]]}
    assert len(evaluate_scr({"it": sae}, shared, cfg)["it"].details) == 2
    cfg.ablation.pairs = {f"{BIAS}_class_set1": [["surgeon", "teacher"]]}
    with pytest.raises(DataError, match="scr: no pair of eval.ablation.pairs has enough rows .*surgeon and male"):
        evaluate_scr({"it": sae}, shared, cfg)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {NEWS: [["0", "1"]]},
            f"eval.ablation.pairs.{NEWS}: has no second attribute here; choose from {BIAS}",
        ),
        ({AMAZON: [["Books"]]}, "must be two different classes of All_Beauty, .*, as in .*All_Beauty,Toys_and_Games"),
        ({AMAZON: [["Books", "Books"]]}, "must be two different classes of"),
        ({AMAZON: ["Books", "Software"]}, "must be two different classes of"),
        ({AMAZON: [["Books", "Boots"]]}, "must be two different classes of"),
        ({AMAZON: [[[], "Books"]]}, "must be two different classes of"),
        ({AMAZON: []}, "names no pair"),
        ({}, "names no pair"),
    ],
)
def test_pairs_of_other_classes_are_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        chosen_pairs(SAEBenchSource(None), given)


def test_questions_with_tricks_are_known_by_saebenchs_pattern():
    tricks = ("All of the above", "A and B", "Both A & C")
    assert all(map(is_trick, tricks)) and not any(map(is_trick, ("all of it", "A and B alone", "Band and C")))


def test_what_is_missing_or_too_small_is_named(hub, tmp_path):
    source = SAEBenchSource(hub)
    with pytest.raises(DataError, match="train part has too few rows of class 0, 1"):
        source.task(f"{BIAS}_class_set1", 4000, 8, 42)
    with pytest.raises(DataError, match=f"holds no {AMAZON}; on a machine with a network run `hf download"):
        source.task(AMAZON, 8, 4, 42)
    with pytest.raises(DataError, match="there is no such folder"):
        SAEBenchSource(tmp_path / "nowhere")
    assert [len(text) for text in source.corpus("forget")] == [51, 400]
    assert balanced(pd.DataFrame({"t": ["a"], "c": [1], "s": [0]}), ("t", "c", "s"), 1, 0) == {}


def test_the_source_follows_the_model_and_the_key(hub):
    assert open_source(EvalConfig(), ModelConfig()).kind == "builtin"
    assert open_source(EvalConfig(), ModelConfig(source="hub", path="org/name")).kind == "saebench"
    local = open_source(EvalConfig(data=str(hub)), ModelConfig())
    assert local.kind == "saebench" and local.digest != SAEBenchSource(None).digest
    assert chosen(local.probing, [NEWS], "x") == (NEWS,) and chosen(local.probing, None, "x") == tuple(CLASSES)
    with pytest.raises(ConfigError, match="eval.probing.datasets: nonsense is not known"):
        chosen(local.probing, ["nonsense"], "eval.probing.datasets")


def test_hierarchies_have_the_second_attribute_inside_the_class(hub):
    found = SAEBenchSource(hub).hierarchy(BIAS, 5, 42).texts
    assert set(found) == {"0", "1", "2", "6", "9", "13", "21"} and set(found["0"]) == {"0", "1"}
    assert all(len(texts) == 5 for inside in found.values() for texts in inside.values())


def test_builtin_rows_are_balanced_apart_and_the_seed_decides():
    source = builtin.BuiltinSource()
    for name in source.probing:
        task = source.task(name, 4000, 1000, 42)
        sizes = {len(texts) for texts in task.train.values()}
        assert len(sizes) == 1 and max(sizes) <= 200 and len(task.train) == len(task.test) > 1
        train, test = ({t for texts in part.values() for t in texts} for part in (task.train, task.test))
        assert not train & test
        assert task.train == source.task(name, 4000, 1000, 42).train != source.task(name, 4000, 1000, 1).train
    pair = source.pair_task(source.pairs[0], 400, 200, 42)
    assert {len(texts) for texts in pair.train.values()} == {200} and {len(t) for t in pair.test.values()} == {100}
    tree = source.hierarchy(source.hierarchies[0], 400, 42).texts
    assert all(len(inside) > 1 for inside in tree.values())


def test_prose_and_code_of_a_module():
    source = '"""About this."""\n# why\nimport os\n\ndef f():\n    """Does\n    it."""\n    return os.sep  # end\n'
    prose, code = builtin.prose_and_code(source)
    assert prose == "About this.\nwhy\nDoes\nit." and code == "import os\ndef f():\n    return os.sep  # end"
    assert builtin.prose_and_code("not ( python") == ("not ( python", "")
