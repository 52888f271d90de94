"""The project's Markdown as HTML, none of it taken for HTML."""

from pages import Structure

from util.evaluation.tables import row
from util.reporting.markdown import to_html


def test_headings_tables_lists_and_text():
    table = "| | a | b |\n|---|---|---|\n| x | 1 \\| 2 | `code <i>` |"
    text = f"## A title\n\n{table}\nBelow it.\n\n- one\n- two"
    found = to_html(text)
    Structure(found)
    for part in ("<h3>A title</h3>", "<th>a</th>", "1 | 2", "<code>code &lt;i&gt;</code>",
                 "<p>Below it.</p>", "<li>two</li>"):  # fmt: skip
        assert part in found, part
    assert to_html("a <b> & **c**") == "<p>a &lt;b&gt; &amp; <b>c</b></p>"


def test_a_table_right_below_its_text():
    found = to_html("Top-1, %.\n| | a |\n|---|---|\n| x | 1 |")
    assert found.startswith("<p>Top-1, %.</p>") and "<tbody><tr><th>x</th>" in found


def test_a_bar_in_text_is_text():
    assert to_html("Against a|b, in points:\nmore") == "<p>Against a|b, in points:<br>more</p>"
    assert row("a|b", ["c"]) == "| a\\|b | c |"
    html = to_html(f"{row('a|b', ['c'])}\n|---|---|\n| 1 | 2 |")
    assert "a|b" in html and "<th>c</th>" in html
