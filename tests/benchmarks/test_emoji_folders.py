"""benchmarks/emoji_folders.py: folders of two vendors' drawings from npm's packages."""

import io
import json
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from benchmarks import emoji_folders

EMOJI = [
    {"image": "1f34e.png", "category": "Food & Drink"},
    {"image": "1f3fb.png", "category": "Component"},
    {"image": "23.png", "category": "Symbols"},
]


def pack(path, vendor: str, colour: tuple[int, ...], names=("1f34e", "1f3fb", "23")) -> str:
    """A package with a disc of a colour on nothing for each of these names."""
    rows, columns = np.ogrid[:64, :64]
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[(rows - 31.5) ** 2 + (columns - 31.5) ** 2 < 900] = (*colour, 255)
    drawing = io.BytesIO()
    Image.fromarray(pixels).save(drawing, "PNG")
    files = {"package/emoji.json": json.dumps(EMOJI).encode()}
    files |= {f"package/img/{vendor}/64/{name}.png": drawing.getvalue() for name in names}
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


def run(monkeypatch, tmp_path, *words: str) -> None:
    command = ["emoji_folders.py", "--output_dir", str(tmp_path / "made"), *words]
    monkeypatch.setattr(sys, "argv", command)
    emoji_folders.main()


def test_each_vendor_is_a_split_and_each_category_a_class(tmp_path, monkeypatch, capsys):
    one = pack(tmp_path / "one.tgz", "one", (255, 0, 0))
    other = pack(tmp_path / "other.tgz", "other", (0, 0, 255), ("1f34e", "1f3fb"))
    run(monkeypatch, tmp_path, "--train", one, "--val", other)
    made = tmp_path / "made"
    names = sorted(str(path.relative_to(made)) for path in made.rglob("*.png"))
    assert names == [
        "train/Food_Drink/1f34e.png", "train/Symbols/23.png", "val/Food_Drink/1f34e.png",
    ]  # fmt: skip
    assert "2 drawings for training, 1 for tests" in capsys.readouterr().out
    page = np.asarray(Image.open(made / "val/Food_Drink/1f34e.png"))
    assert tuple(page[37, 37]) == (0, 0, 255) and (page[0] == 255).all()  # on white
    assert page.shape == (74, 74, 3) and round(74 * 7 / 8) == 65  # what is left is the drawing


def test_a_folder_that_is_there_is_not_touched(tmp_path, monkeypatch):
    package = pack(tmp_path / "one.tgz", "one", (255, 0, 0))
    (tmp_path / "made").mkdir()
    with pytest.raises(SystemExit, match="name a new folder"):
        run(monkeypatch, tmp_path, "--train", package, "--val", package)
    assert not list((tmp_path / "made").iterdir())
