"""The page of a reproduction: claims first, drawn with intervals inside their axis."""

import math
import re

from pages import check_page

from reproduction import page
from reproduction.judge import Verdict
from util.evaluation.over_seeds import comparison, correct


def test_claims_come_first_with_their_intervals(tmp_path):
    found = [comparison(means, 0.4) for means in ([3.0, 3.2, 2.9], [-0.5, 9.0], [1.5])]
    correct(found)
    verdicts = [
        Verdict("three seeds <b>", 0.6, found[0]), Verdict("two seeds", None, found[1]),
        Verdict("one seed", None, found[2]), Verdict("not run", None, None, "missing"),
    ]  # fmt: skip
    texts = {
        "Claims": "## The paper's claims\n\n| claim |\n|---|\n| x |",
        "Table 1": "## Table 1\n\nrows",
    }
    (path,) = page.write(str(tmp_path), "All tables", verdicts, texts, [], [])
    read = check_page(tmp_path / "report.html")
    assert path == str(tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    order = [html.index(f">{title}</h2>") for title in ("Claims at a glance", "Claims", "Table 1")]
    assert order == sorted(order) and "three seeds <b>" in read.text
    assert "holds" in read.text and "over test images alone" in read.text
    places = [float(v) for v in re.findall(r'<line class="c0" x1="([-\d.]+)"', html)]
    assert len(places) == 9 and all(0 <= place <= 300 for place in places)
    assert f"{1.5 - 1.96 * 0.4:+.2f}" in html  # of one seed, by the test images
    assert math.isinf(found[2].low)


def test_a_folder_that_cannot_be_written_is_said(tmp_path, caplog):
    assert page.write(str(tmp_path / "no"), "All", [], {}, [], []) == [] and "no " in caplog.text
