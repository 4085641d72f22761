"""The bench's tables: each between its markers, replaced when measured again, the rest of the page untouched."""

from bench.report import table, write


def test_a_table_is_put_in_and_replaced(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Speed\n\nWords.\n\n<!-- bench:step-cpu -->\nold\n<!-- /bench:step-cpu -->\n\nMore words.\n")
    write(page, "step-cpu", table(("a", "b"), [("1", "2")]))
    write(page, "penalty-cpu", ["new"])
    write(page, "penalty-cpu", ["newer"])
    assert page.read_text() == (
        "# Speed\n\nWords.\n\n<!-- bench:step-cpu -->\n"
        "| a | b |\n| --- | --- |\n| 1 | 2 |\n<!-- /bench:step-cpu -->\n\n"
        "More words.\n\n<!-- bench:penalty-cpu -->\nnewer\n<!-- /bench:penalty-cpu -->\n"
    )
