"""Pages in a headless Chromium, from a phone to a wide screen; skipped where there is none."""

import json
import re
import shutil
import subprocess
from html import escape, unescape

import pytest
from pages import write_run

from util.evaluation.run_comparison import comparison
from util.reporting.run_folder import read_folder
from util.reporting.single import page_of

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
WIDTHS = (390, 820, 1600)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium")

# What is wrong in a page of some width, in words.
LOOK = """
const inside = (a, b, slack) => a.left >= b.left - slack && a.right <= b.right + slack &&
  a.top >= b.top - slack && a.bottom <= b.bottom + slack;
const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
const light = text => text.match(/[\\d.]+/g).slice(0, 3).reduce((sum, v) => sum + +v, 0) / 765;
function look(frame) {
  const doc = frame.contentDocument, wrong = [], root = doc.documentElement;
  if (root.scrollWidth > frame.clientWidth) wrong.push("wider than the screen");
  for (const svg of doc.querySelectorAll("svg")) {
    const box = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll("text")];
    const boxes = texts.map(text => text.getBoundingClientRect());
    boxes.forEach((one, i) => {
      if (!inside(one, box, 1)) wrong.push("cut off: " + texts[i].textContent);
      if (one.height < 9) wrong.push("too small: " + texts[i].textContent);
      boxes.slice(i + 1).forEach((other, j) => {
        const names = texts[i].textContent + ", " + texts[i + 1 + j].textContent;
        if (meet(one, other)) wrong.push("on each other: " + names);
      });
    });
    for (const mark of svg.querySelectorAll(".bar circle, .bar line"))
      if (!inside(mark.getBoundingClientRect(), box, 1)) wrong.push("a bar outside its axis");
  }
  for (const figure of doc.querySelectorAll("figure.chart")) {
    const svg = figure.querySelector("svg"), box = svg.getBoundingClientRect();
    const where = { clientX: box.left + box.width * .97, clientY: box.top + 40, bubbles: true };
    svg.dispatchEvent(new frame.contentWindow.PointerEvent("pointermove", where));
    const tip = figure.querySelector(".tip");
    if (getComputedStyle(tip).display === "none" || !/\\d/.test(tip.textContent))
      wrong.push("no values where one points: " + figure.querySelector("figcaption").textContent);
    if (tip.getBoundingClientRect().right > figure.getBoundingClientRect().right + 1)
      wrong.push("values outside their chart");
    if (tip.getBoundingClientRect().top > box.top + 30) wrong.push("values below their chart");
  }
  const style = getComputedStyle(doc.body);
  return { wrong: wrong, ink: light(style.color), ground: light(style.backgroundColor),
    charts: doc.querySelectorAll("figure.chart svg").length };
}
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map(look);
  document.querySelector("pre").textContent = JSON.stringify(found);
});
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    root = tmp_path_factory.mktemp("pages")
    runs = [read_folder(str(write_run(root / f"run-{seed}", seed))) for seed in range(3)]
    return [page_of(runs[0]).html(), comparison({run.name: run for run in runs}).html()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_off_or_covered_at_any_width(pages, tmp_path, scheme):
    frames = "".join(
        f'<iframe width="{width}" height="900" style="border:0" srcdoc="{escape(page)}"></iframe>'
        for page in pages
        for width in WIDTHS
    )
    file = tmp_path / "frames.html"
    file.write_text(
        f"<!DOCTYPE html><meta charset='utf-8'>{frames}<pre></pre><script>{LOOK}</script>"
    )
    shown = tmp_path / "shown.html"
    words = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom",
             f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=4000",
             f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"]  # fmt: skip
    # Not a pipe, which a browser's other processes would keep open after the time is up.
    with open(shown, "w") as out:
        subprocess.run([*words, file.as_uri()], stdout=out, stderr=subprocess.DEVNULL, timeout=120)
    found = json.loads(unescape(re.findall(r"<pre>(.*?)</pre>", shown.read_text(), re.DOTALL)[-1]))
    assert len(found) == len(pages) * len(WIDTHS)
    for one in found:
        assert one["wrong"] == [] and one["charts"] >= 9
        contrast = one["ground"] - one["ink"]
        assert contrast > 0.7 if scheme == "light" else contrast < -0.7
