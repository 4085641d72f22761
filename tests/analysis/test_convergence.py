from analysis.convergence import common_target, tokens_to

ROWS = [
    {"tokens": 100, "tokens_per_s": 50, "held_out_fvu": 0.9},
    {"tokens": 200, "tokens_per_s": 100},
    {"tokens": 300, "tokens_per_s": 200, "held_out_fvu": 0.5},
    {"tokens": 400, "tokens_per_s": 100, "held_out_fvu": 0.4},
]


def test_the_first_row_at_or_under_the_target():
    assert tokens_to(ROWS, 0.5) == (300, 2 + 1 + 0.5)
    assert tokens_to(ROWS, 0.95) == (100, 2.0)
    assert tokens_to(ROWS, 0.1) is None and tokens_to([], 0.5) is None and tokens_to(ROWS[1:2], 0.5) is None


def test_the_common_target_is_one_that_every_run_reaches():
    other = [{"tokens": 10, "tokens_per_s": 1, "held_out_fvu": 0.6}]
    assert common_target([ROWS, other]) == 0.6 and common_target([ROWS, []]) == 0.4 and common_target([]) is None
