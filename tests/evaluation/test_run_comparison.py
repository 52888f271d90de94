"""Several runs on a page: what they were told otherwise first, and paired differences."""

import json

import numpy as np
import pytest
from pages import check_page, write_run

from util.evaluation import paired
from util.evaluation.run_comparison import comparison, distinct_names, same_images
from util.reporting.page import write_page
from util.reporting.run_folder import read_folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return [
        write_run(root / "a", 0),
        write_run(root / "b", 1),
        write_run(root / "c", 2, 250, False),
    ]


def test_the_page_of_three_runs(folders, tmp_path):
    runs = {folder.name: read_folder(str(folder)) for folder in folders}
    write_page(str(tmp_path / "page.html"), comparison(runs))
    found = check_page(tmp_path / "page.html")
    assert found.text.index("Arguments that differ") < found.text.index("Curves")
    html = (tmp_path / "page.html").read_text()
    told = html.split("Arguments that differ</h2>")[1].split("</section>")[0]
    assert "<th>lr</th>" in told and "output_dir" not in told and "input_size" not in told
    expected = paired.compare(
        *(100.0 * (np.arange(200) >= 40 + 10 * seed) for seed in (1, 0))
    )  # fmt: skip
    assert f"{expected.difference:+.2f}".replace("-", "−") in html
    assert "c: no predictions of test images are kept" in found.text
    # A run has one colour in every chart: three runs, three colours.
    for chart in html.split('<figure class="chart">')[1:]:
        assert set("012") >= {part[0] for part in chart.split('polyline class="c')[1:]}


def test_other_test_images_are_not_compared(folders, tmp_path):
    first = read_folder(str(folders[0]))
    changed = write_run(tmp_path / "x", 1)
    table = np.load(changed / "test_predictions.npy")
    for other, said in ((table[:100], "others"), (table[::-1], "others")):
        np.save(changed / "test_predictions.npy", other)
        assert said in same_images(read_folder(str(changed)), first)
    np.save(changed / "test_predictions.npy", table)
    for folder, digest in ((changed, "1"), (folders[0], "2")):
        (folder / "test_predictions.json").write_text(json.dumps({"made_of": digest}))
    assert "other files" in same_images(read_folder(str(changed)), first)
    (folders[0] / "test_predictions.json").unlink()
    table[:5, 0] = -1  # could not be read
    np.save(changed / "test_predictions.npy", table)
    assert len(same_images(read_folder(str(changed)), first)[0]) == 195


def test_names_are_as_long_as_needed():
    assert distinct_names(["x/a", "x/b"]) == ["a", "b"]
    assert distinct_names(["x/a/r", "x/b/r"]) == ["a/r", "b/r"]
