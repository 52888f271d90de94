"""Files and folders of others: read by their content, refused in a line."""

import json

import pytest
import torch

from util.errors import UsageError
from util.weights.formats import read_weights

safetensors = pytest.importorskip("safetensors.torch")
WEIGHTS = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}


def same(found: dict) -> bool:
    return found.keys() == WEIGHTS.keys() and all(torch.equal(found[k], WEIGHTS[k]) for k in found)


def test_a_format_is_told_by_its_content(tmp_path):
    safetensors.save_file(WEIGHTS, tmp_path / "weights.pth")
    torch.save(WEIGHTS, tmp_path / "weights")
    for name in ("weights.pth", "weights"):
        found, config = read_weights(str(tmp_path / name))
        assert same(found) and config == {}


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_folders_with_their_configuration(tmp_path, name):
    save = safetensors.save_file if name.endswith("safetensors") else torch.save
    save(WEIGHTS, tmp_path / name)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    for path in (tmp_path, tmp_path / name):
        found, config = read_weights(str(path))
        assert same(found) and config == {"model_type": "vit"}


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_weights_in_parts(tmp_path, kind):
    stem = "model" if kind == "safetensors" else "pytorch_model"
    save = safetensors.save_file if kind == "safetensors" else torch.save
    for key, value in WEIGHTS.items():
        save({key: value}, tmp_path / f"{key}.{kind}")
    index = dict(weight_map={key: f"{key}.{kind}" for key in WEIGHTS})
    (tmp_path / f"{stem}.{kind}.index.json").write_text(json.dumps(index))
    assert same(read_weights(str(tmp_path))[0])
    (tmp_path / f"b.{kind}").unlink()
    with pytest.raises(UsageError, match=rf"b\.{kind}"):
        read_weights(str(tmp_path))


def test_bad_folders_are_refused_in_a_line(tmp_path):
    with pytest.raises(UsageError, match="folder without weights"):
        read_weights(str(tmp_path))
    index = tmp_path / "model.safetensors.index.json"
    for content in ('{"weight_map": {"a": "../a.safetensors"}}', "{}", "[]", "{"):
        index.write_text(content)
        with pytest.raises(UsageError, match=r"index\.json.*damaged"):
            read_weights(str(tmp_path))
    safetensors.save_file(WEIGHTS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UsageError, match=r"config\.json is damaged"):
        read_weights(str(tmp_path))


def test_a_cut_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.save_file(WEIGHTS, path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UsageError, match=r"x\.safetensors is damaged"):
        read_weights(str(path))
