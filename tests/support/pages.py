"""Folders of runs as a main leaves them, and what a page of a report has to be."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

VOID = {"meta", "img", "br", "link", "input", "hr"}
SCRIPT = "<script>alert(1)</script>"  # what must come out as text, wherever it stands
NAMES = ("loss", "rec", "mean_patch", "max_mi", "grad_norm", "explained", "lr",
         "images_per_second", "memory_gib")  # fmt: skip


def write_run(folder: Path, seed: int = 0, steps: int = 300, predictions: bool = True) -> Path:
    """A finished run of two starts: the first was killed at step 200, the last began at 150."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    about = {
        "command": f"python main_finetune.py --finetune '{SCRIPT}'", "host": "node1",
        "commit": "abc", "device": "CPU", "processes": 1, "machine": SCRIPT, "data": "digits",
        "versions": {"torch": "2.6"},
        "flags": {"dataset": SCRIPT, "input_size": [8, 8], "lr": 1e-3 * (seed + 1), "seed": seed,
                  "output_dir": str(folder)},
        "flag_sources": {"dataset": "command line", "lr": "@recipes/a.args"},
        "groups": {"data": ["dataset", "input_size"], "optimisation": ["lr"],
                   "run": ["seed", "output_dir"]},
    }  # fmt: skip
    lines = [{"event": "start", "t": 1000.0, "step": 0} | about]
    lines += [_numbers(step, 1000.0 + step, rng) for step in range(10, 201, 10)]
    lines += [{"event": "start", "t": 2000.0, "step": 150} | about | {"host": "node2"}]
    lines += [{"event": "warning", "t": 2001.0, "level": "WARNING", "text": SCRIPT}] * 2
    lines += [_numbers(step, 2000.0 + step - 150, rng) for step in range(160, steps + 1, 10)]
    lines += [{"event": "end", "t": 3000.0, "step": steps, "reason": "finished"}]
    (folder / "run.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    epochs = [
        {"epoch": i, "steps": 50 * (i + 1), "train_loss": 1 / (i + 1), "test_acc1": 50.0 + i,
         "max_acc1": 50.0 + i, "train_never": 0.0, "train_bad": None if i == 2 else 1.0 + i}
        for i in range(steps // 50)
    ]  # fmt: skip
    (folder / "log.txt").write_text("".join(json.dumps(line) + "\n" for line in epochs))
    Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / "inputs.png")
    results = epochs[-1] | {"command": about["command"], "commit": "abc", "seconds": 340.0}
    if predictions:
        classes = np.stack([np.arange(200) % 10, np.arange(200) % 10], 1).astype(np.int32)
        classes[: 40 + 10 * seed, 0] += 1
        np.save(folder / "test_predictions.npy", classes)
        results["test_acc1"] = 100.0 * float((classes[:, 0] == classes[:, 1]).mean())
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def _numbers(step: int, t: float, rng: np.random.Generator) -> dict:
    values = {name: float(10.0 ** rng.uniform(-4, 1)) for name in NAMES}
    return {"t": t, "step": step} | values | {"max_mi": math.nan if step == 100 else 1.0}


class Structure(HTMLParser):
    """Reads a page and raises AssertionError for what no page of ours may have."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.boxes: list[tuple[float, float, float, float]] = []
        self.num_curves = self.num_charts = 0
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, self.open
        assert len(set(self.ids)) == len(self.ids)

    def handle_starttag(self, tag: str, attributes) -> None:
        told = dict(attributes)
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)
        self.ids += [told["id"]] if "id" in told else []
        for name in ("src", "href", "action", "data"):
            value = told.get(name, "#")
            assert value.startswith(("#", "data:image/")), value[:80]
        assert tag not in ("link", "iframe", "object", "embed")
        if tag == "rect" and told.get("class") == "box":
            x, y, width, height = (float(told[n]) for n in ("x", "y", "width", "height"))
            self.boxes.append((x, y, x + width, y + height))
        if tag in ("polyline", "polygon"):
            self._check_inside(told["points"])
            self.num_curves += 1
        self.num_charts += tag == "figure" and told.get("class") == "chart"

    handle_startendtag = handle_starttag

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.open and self.open[-1] == "script" and data.startswith("{"):
            json.loads(data)

    def _check_inside(self, points: str) -> None:
        left, top, right, bottom = self.boxes[-1]
        for pair in points.split():
            x, y = map(float, pair.split(","))
            assert left - 0.1 <= x <= right + 0.1 and top - 0.1 <= y <= bottom + 0.1, pair

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def check_page(path: Path) -> Structure:
    """A page that is well formed, draws inside its axes, and asks nothing of a network."""
    html = path.read_text()
    found = Structure(html)
    assert SCRIPT not in html
    assert not re.search(r"https?://|@import|url\(", html)
    return found
