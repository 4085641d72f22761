import pytest

from analysis.reading.records import records
from analysis.tables.compare import table
from analysis.tables.where import Where, select
from sae_sweeps.errors import ConfigError
from tests.analysis.outputs import add_run


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("where") / "outputs"
    add_run(outputs, "a", {"architecture.k": 32, "seed": 0, "note": "two words"}, {"fvu": 0.1})
    add_run(outputs, "b", {"architecture.k": 64, "penalty": {"name": "none"}, "flag": True}, {"fvu": 0.3, "x/y|z": 2})
    add_run(outputs, "c", {"architecture.k": None, "penalty": {"name": "a+b", "a": {"tau": 1}}, "flag": False})
    add_run(outputs, "d", {"architecture.k": 320, "layer.index": 7, "flag": 1}, state="running", step=40)
    return records([outputs])


@pytest.mark.parametrize(
    ("text", "runs"),
    [
        ("k = 32", "a"),
        ("k = 3.2e1", "a"),
        ("architecture.k=32", "a"),
        ("k != 32", "bcd"),
        ("k < 64", "a"),
        ("k <= 64 ", "ab"),
        ("k > 6.3e1 and k<=320", "bd"),
        ("k = null", "c"),
        ("k != null", "abd"),
        ("lambda2_max = null", "bc"),  # that they do not have
        ("penalty = none", "b"),
        ("penalty = a+b", "c"),
        ('penalty = "a+b"', "c"),
        ("penalty in (none, a+b)", "bc"),
        ("penalty not in (none, a+b)", "ad"),
        ("k in (32, null)", "ac"),
        ("note = 'two words'", "a"),
        ("note ~ TWO", "a"),
        ("penalty ~ 'o*'", "ad"),
        ("penalty ~ o", "abd"),
        ("penalty ~ '?+?'", "c"),
        ("flag = true", "b"),
        ("flag = 1", "d"),
        ("flag != true", "acd"),
        ("not flag = true and not k = 32", "cd"),
        ("k = 32 or k = 64 and fvu > 0.2", "ab"),
        ("(k = 32 or k = 64) and fvu > 0.2", "b"),
        ("NOT (k = 32 OR penalty = none)", "cd"),
        ("state = running", "d"),
        ("layer = 7", "d"),
        ("run_id >= b", "bcd"),
        ("'x/y|z' = 2", "b"),
        ("x/y|z = +2", "b"),
        ("fvu < 0.2", "ac"),  # c has the usual 0.05; d has no result
        ("fvu = 0.1", "a"),
        ("fvu<1e-1", "c"),
    ],
)
def test_what_matches(full, text, runs):
    assert "".join(select(full, text)["run", "run_id"]) == runs


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "the end at position 1 is not a condition; write one as in k = 320."),
        ("k = 32 and", "the end at position 11 is not a condition"),
        (
            "k",
            "the end at position 2 is not an operator; use one of =, !=, ~, <, <=, >, >= or in after 'k'.",
        ),
        ("k =", "the end at position 4 is not a value; write a number, a word or a quoted text."),
        ("k = 32, seed = 0", "',' at position 7 cannot follow here; join conditions with and or or"),
        ("note = two words", "'words' at position 12 cannot follow here; join conditions with and or or, and quote"),
        ("(k = 32", "the end at position 8 comes where a parenthesis should close; add )."),
        ("k = 32)", "')' at position 7 cannot follow here"),
        ("k in 32", "'32' at position 6 is not a list; write in (a, b)."),
        ("k in (32", "the end at position 9 comes where the list should go on or end"),
        ("k in ()", "')' at position 7 is not a value"),
        ("k ! 32", "'!' at position 3 is no operator; use one of ="),
        ("note = 'two", "' at position 8 is a quote without its end; close it."),
        ("k not 32", "'32' at position 7 is not an operator"),
        ("k < null", "'null' at position 5 has no order; use = or != instead of <."),
        ("penalty < 3", "penalty has no numbers to compare with '3'; it is ortho or none or a+b."),
        ("k < many", "architecture.k has no words to compare with 'many'; it is 32 or 64 or 320."),
        ("lamda2_max = 1", "no run has a column 'lamda2_max'; did you mean lambda2_max?"),
        ("mean*_x = 1", "no run has a column 'mean*_x'"),
        ("penalty.* = 1", "names 3 columns; write penalty.lambda2_max or penalty.tau or penalty.a.tau."),
        ("k = 7 and seed = 0", "no run of 4 matches --where 'k = 7 and seed = 0'; architecture.k is 32 or 64 or null"),
        ("(" * 60 + "k = 1" + ")" * 60, "is nested more than 50 deep"),
        ("tokens_to_fvu < 3", "give --target-fvu X"),
    ],
)
def test_a_mistake_says_where_and_how_to_mend_it(full, text, sentence):
    with pytest.raises(ConfigError) as caught:
        select(full, text)
    said = str(caught.value)
    assert sentence in said
    assert said.endswith((".", "?")) and "\n" not in said


def test_hostile_text_is_told_on_one_line(full):
    for text in ("k = 1 \x1b[31m\n", "a\u202eb = '<b>\n'", "=" * 9000):
        with pytest.raises(ConfigError) as caught:
            select(full, text)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 400


def test_keys_of_a_combination_are_not_confused(tmp_path):
    for run_id, own, other in (("a", 1, 3), ("b", 2, 2)):
        both = {"name": "x+y", "x": {"name": "x", "tau": own}, "y": {"name": "y", "tau": other}}
        add_run(tmp_path, run_id, {"penalty": both})
    with pytest.raises(ConfigError, match="'tau' names 2 columns; write penalty.x.tau or penalty.y.tau"):
        table([tmp_path], where="tau = 2")
    assert list(table([tmp_path], where="x.tau = 2").frame["run", "run_id"]) == ["b"]


def test_the_columns_that_an_expression_compares(full):
    assert Where("k = 1 or not (fvu > 2 and k = 3)", full).columns == [
        ("config", "architecture.k"), ("metrics", "fvu"), ("config", "architecture.k"),
    ]  # fmt: skip
