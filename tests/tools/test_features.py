"""Features of any images in one file: the same bytes however they were computed; hits; CKA."""

import json
import os
import re
import shlex
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from mains import run_in_process
from PIL import Image
from ranks import in_ranks
from safetensors.torch import load_file

from encoders.frozen import CLASS_TOKEN, PATCH_MEAN, open_frozen
from tools import features
from util.data.any_images import load_any
from util.data.loader import evaluation_view
from util.evaluation.frozen import features as stored

TINY = ("--model", "vit_nano_patch2", "--input_size", 8, "--num_workers", 0, "--batch_size", 4)


def extract(*words, status=0):
    outcome = run_in_process("tools.features", *words)
    assert outcome.status == status, outcome.err
    return outcome


def test_two_formats_of_one_name_do_not_mix(image_tree, tmp_path):
    """Their rows' names would lie in one file."""
    extract("untrained", image_tree / "val", tmp_path / "f.npy", *TINY)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    words = ("untrained", image_tree, tmp_path / "f.safetensors", *TINY)
    for flags in ((), ("--overwrite",)):
        outcome = extract(*words, *flags, status=2)
        assert "f.npy is there" in outcome.err and outcome.err.count("\n") == 1
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before


@pytest.fixture(scope="module", autouse=True)
def _small_parts():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored, "SHARD", 4)
        yield


@pytest.fixture(scope="module")
def expected(image_tree):
    """What a frozen encoder gives for each training image by itself, all its layers."""
    words = ["untrained", str(image_tree), "x.npy", *map(str, TINY)]
    model, flags = open_frozen(args := features.parse_args(words), "untrained")
    images, view = load_any(args), evaluation_view(flags)
    parts = [model.layers(view(images.read(i))[None]) for i in range(len(images))]
    return [{key: torch.cat([part[layer][key] for part in parts]) for key in parts[0][0]}
            for layer in range(model.depth + 1)]  # fmt: skip


@pytest.fixture(scope="module")
def whole(image_tree, tmp_path_factory):
    """Features of twelve images, computed without a break."""
    out = tmp_path_factory.mktemp("whole") / "out.npy"
    extract("untrained", image_tree, out, *TINY)
    return out


def test_rows_are_the_images_in_order_with_names_and_labels_beside(whole, image_tree, expected):
    found = torch.from_numpy(np.load(whole))
    torch.testing.assert_close(found, expected[-1][CLASS_TOKEN], atol=1e-5, rtol=1e-5)
    names = (whole.parent / "out.names.txt").read_text().splitlines()
    assert names == [f"{c}/{c}_{i}.png" for c in "ab" for i in range(6)]
    assert np.load(whole.parent / "out.labels.npy").tolist() == [0] * 6 + [1] * 6
    about = json.loads((whole.parent / "out.about.json").read_text())
    assert about["classes"] == ["a", "b"] and about["rows"] == 12 and about["what"] == "cls"
    assert sorted(os.listdir(whole.parent)) == ["out.about.json", "out.labels.npy",
                                                "out.names.txt", "out.npy"]  # fmt: skip


@pytest.mark.parametrize(
    ("what", "layer", "dtype"),
    [("mean", None, "fp32"), ("cls_mean", 0, "fp32"), ("maps", 3, "fp16"), ("maps", None, "fp32")],
)
def test_every_kind_of_every_layer(image_tree, expected, tmp_path, what, layer, dtype):
    out = tmp_path / "new" / "out.safetensors"
    words = ("--layer", layer) if layer is not None else ()
    extract("untrained", image_tree, out, *TINY, "--what", what, "--dtype", dtype, *words)
    found, known = load_file(out), expected[-1 if layer is None else layer]
    kinds = {"mean": [PATCH_MEAN], "cls_mean": [CLASS_TOKEN, PATCH_MEAN], "maps": ["maps"]}[what]
    wanted = torch.cat([known[kind] for kind in kinds], -1)
    assert wanted.shape[1:] == ((4, 4, 64) if what == "maps" else (64 * len(kinds),))
    tolerance = 1e-5 if dtype == "fp32" else 2e-3
    torch.testing.assert_close(found["features"].float(), wanted, atol=tolerance, rtol=tolerance)
    assert found["labels"].tolist() == [0] * 6 + [1] * 6


def test_a_swin_has_maps_of_each_stage_and_no_class_token(image_tree, tmp_path):
    swin = ("--model", "swin_mini_patch2", *TINY[2:])
    for layer, shape in (((), (2, 2, 128)), (("--layer", 0), (4, 4, 64))):
        out = tmp_path / f"{shape[0]}.npy"
        extract("untrained", image_tree, out, *swin, "--what", "maps", *layer)
        assert np.load(out).shape == (12, *shape)
    extract("untrained", image_tree, tmp_path / "mean.npy", *swin)
    assert np.load(tmp_path / "mean.npy").shape == (12, 128)
    refused = extract("untrained", image_tree, tmp_path / "a.npy", *swin, "--what", "cls", status=2)
    assert "no class token" in refused.err and not os.path.exists(tmp_path / "a.npy.parts")


def test_a_run_that_is_killed_goes_on_and_leaves_the_same_bytes(image_tree, whole, tmp_path):
    out = tmp_path / "out.npy"
    first = tmp_path / "out.npy.parts/kept/made_of-00000.npy"
    child = os.fork()
    if child == 0:  # a process like any other, without the seconds that imports take
        plain = features.FrozenEncoder.layers
        features.FrozenEncoder.layers = lambda *args: (time.sleep(0.3), plain(*args))[1]
        extract("untrained", image_tree, out, *TINY)
        os._exit(0)
    deadline = time.monotonic() + 60
    while not first.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert first.exists() and not out.exists()
    written = first.stat().st_mtime_ns
    extract("untrained", image_tree, out, *TINY, "--overwrite")  # which concerns OUT alone
    assert out.read_bytes() == whole.read_bytes() and written
    assert sorted(os.listdir(tmp_path)) == sorted(os.listdir(whole.parent))


def _on_a_rank(rank: int, *commands: list[str]) -> int:
    stored.SHARD = 4
    for words in commands:
        features.main(features.parse_args(words))
    return 0


def test_two_processes_leave_the_same_bytes_and_the_same_alignment(image_tree, whole, tmp_path):
    words = ["untrained", str(image_tree), str(tmp_path / "out.npy"), *map(str, TINY)]
    words += ["--device", "cpu"]
    like = ["--like", "untrained", "--what", "maps"]
    compared = [*words[:2], str(tmp_path / "cka.png"), *words[3:], *like]
    assert in_ranks(_on_a_rank, 2, tmp_path, words, compared) == [0, 0]
    assert (tmp_path / "out.npy").read_bytes() == whole.read_bytes()
    extract(*words[:2], tmp_path / "one.png", *TINY, *like)
    two, one = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("cka", "one"))
    np.testing.assert_allclose(one["cka"], two["cka"], atol=1e-9)
    assert one["images"] == two["images"] == 12


def test_two_encoders_are_compared_block_by_block(image_tree, tmp_path):
    args = ("untrained", image_tree, tmp_path / "like.png", *TINY, "--like", "untrained")
    extract(*args, "--images", 9)
    found = json.loads((tmp_path / "like.json").read_text())
    assert np.shape(found["cka"]) == (7, 7) and found["layers"][0] == [*"012345", "end"]
    np.testing.assert_allclose(np.diagonal(found["cka"]), 1, atol=1e-6)
    assert found["images"] == 8  # two batches of four; one image alone has no neighbours
    assert Image.open(tmp_path / "like.png").size[0] > 400
    assert sorted(os.listdir(tmp_path)) == ["like.json", "like.png"]
    refused = extract(*args, "--query", "x.png", status=2)
    assert "--like compares all blocks" in refused.err


def test_unreadable_images_are_named_counted_and_left_out(image_tree, whole, tmp_path):
    shutil.copytree(image_tree / "train", tmp_path / "train")
    (tmp_path / "train/a/a_2.png").write_bytes(b"no image")
    out = tmp_path / "out.npy"
    said = extract("untrained", tmp_path / "train", out, *TINY)
    assert "a_2.png" in said.out and "1 of 12 images cannot be read and are left out" in said.out
    about = json.loads((tmp_path / "out.about.json").read_text())
    assert about["unreadable"] == ["a/a_2.png"] and about["left_out"] == [2]
    names = (tmp_path / "out.names.txt").read_text().splitlines()
    assert len(names) == 11 and "a/a_2.png" not in names
    np.testing.assert_allclose(np.load(out), np.delete(np.load(whole), 2, 0), atol=1e-5)
    extract("untrained", tmp_path / "train", out, *TINY, "--query", tmp_path / "train/a/a_3.png")
    hit = json.loads((tmp_path / "out.query.json").read_text())[0]["hits"][0]
    assert hit["name"] == "a/a_3.png" and hit["row"] == 2 and hit["class"] == "a"
    words = ("untrained", tmp_path / "train", tmp_path / "cka.png", *TINY, "--like", "untrained")
    assert "a_2.png" in extract(*words).out
    found = json.loads((tmp_path / "cka.json").read_text())
    assert found["unreadable"] == 1 and found["images"] < 12
    np.testing.assert_allclose(np.diagonal(found["cka"]), 1, atol=1e-6)
    assert "is there" in extract(*words, status=2).err


def test_images_without_labels_and_none_that_can_be_read(image_tree, whole, tmp_path):
    (tmp_path / "test.txt").write_text(f"{image_tree}/train/b/b_4.png\n{image_tree}/val/a/a_0.png")
    extract("untrained", tmp_path / "test.txt", tmp_path / "out.safetensors", *TINY)
    found = load_file(tmp_path / "out.safetensors")
    assert found["labels"].tolist() == [-1, -1]
    np.testing.assert_allclose(found["features"][0], np.load(whole)[10], atol=1e-5)
    extract("untrained", tmp_path / "test.txt", tmp_path / "x.npy", *TINY, "--overwrite")
    assert len(np.load(tmp_path / "x.npy")) == 2 and not (tmp_path / "x.labels.npy").exists()
    for name in ("a.png", "b.png"):
        (tmp_path / "bad").mkdir(exist_ok=True)
        (tmp_path / "bad" / name).write_bytes(b"no image")
    words = ("untrained", tmp_path / "bad", tmp_path / "bad.npy", *TINY)
    assert "cannot be read" in extract(*words, status=2).err


def test_a_part_of_a_tree_keeps_its_labels_and_a_part_of_val_is_one(image_tree, tmp_path):
    (tmp_path / "some.txt").write_text("b/b_4.png\na/a_1.png\n")
    part = ("--subset_file", tmp_path / "some.txt")
    extract("untrained", image_tree / "train", tmp_path / "flat.npy", *TINY, *part)
    assert np.load(tmp_path / "flat.labels.npy").tolist() in ([0, 1], [1, 0])
    assert len(np.load(tmp_path / "flat.npy")) == 2
    (tmp_path / "val.txt").write_text("a/a_0.png\n")
    part = ("--split", "val", "--subset_file", tmp_path / "val.txt")
    extract("untrained", image_tree, tmp_path / "val.npy", *TINY, *part)
    assert (tmp_path / "val.names.txt").read_text().splitlines() == ["a/a_0.png"]


def test_names_that_are_no_utf8(image_tree, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    shutil.copy(image_tree / "train/b/b_4.png", os.fsencode(folder) + b"/caf\xe9.png")
    extract("untrained", folder, tmp_path / "out.npy", *TINY)
    assert (tmp_path / "out.names.txt").read_bytes() == b"caf\xe9.png\n"


def test_queries_find_themselves_first_and_are_drawn(image_tree, whole, tmp_path):
    out = tmp_path / "out.npy"
    for path in whole.parent.iterdir():
        shutil.copy(path, tmp_path)
    paths = [image_tree / "train/b/b_4.png", image_tree / "val/a/a_0.png"]
    said = extract("untrained", image_tree, out, *TINY, "--neighbours", 5, "--query", *paths)
    assert "nothing to compute" in said.out
    found = json.loads((tmp_path / "out.query.json").read_text())
    rows = np.load(out)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert found[0]["hits"][0]["name"] == "b/b_4.png"
    for row, hit in zip(np.argsort(-rows @ rows[10])[:5], found[0]["hits"], strict=True):
        assert hit["row"] == row and hit["cosine"] == pytest.approx(rows[row] @ rows[10], abs=1e-4)
    width, height = Image.open(tmp_path / "out.query.png").size
    assert width > 6 * 160 and height > 2 * 160
    (tmp_path / "damaged.png").write_bytes(b"no image")
    for name, said in (("nothing.png", "is no file"), ("damaged.png", "cannot be read")):
        words = ("untrained", image_tree, out, *TINY, "--query", tmp_path / name)
        assert said in extract(*words, status=2).err


def test_what_cannot_be_is_one_line_and_leaves_nothing(image_tree, whole, tmp_path):
    other = tmp_path / "other.npy"
    np.save(other, np.zeros(3))
    (tmp_path / "broken.pth").write_bytes(b"no checkpoint")
    torch.save({}, tmp_path / "empty.pth")
    out = tmp_path / "o.npy"
    for words, said in (
        (("untrained", image_tree, tmp_path / "out.txt"), "end it with .npy"),
        (("untrained", tmp_path / "none", out), "IMAGES"),
        (("untrained", image_tree, other), "is there and is something else"),
        (("untrained", image_tree, whole, "--what", "mean"), "what differ"),
        (("untrained", image_tree, out, "--layer", 6), "blocks 0 to 5"),
        (("pixels", image_tree, out), "pixels have no encoder"),
        ((tmp_path / "broken.pth", image_tree, out), "broken.pth"),
        ((tmp_path / "empty.pth", image_tree, out), "CHECKPOINT"),
        (("untrained", image_tree, out, "--what", "maps", "--query", "x"), "--what cls or mean"),
        (("untrained", image_tree, other / "x.npy"), "OUT"),
        (("untrained", image_tree, out, "--batch_size", 5), "does not divide"),
        (("untrained", image_tree, out, "--images", 5), "--images is of --like"),
    ):
        err = extract(words[0], words[1], words[2], *TINY, *words[3:], status=2).err
        assert said in err and err.count("\n") == 1, err
    assert sorted(os.listdir(tmp_path)) == ["broken.pth", "empty.pth", "other.npy"]
    extract("untrained", image_tree, other, *TINY, "--overwrite")
    assert other.read_bytes() == whole.read_bytes()


def test_features_that_are_not_finite_are_refused(image_tree, tmp_path, monkeypatch):
    layers = features.FrozenEncoder.layers
    huge = lambda *a: [{k: 1e6 * v for k, v in layer.items()} for layer in layers(*a)]  # noqa: E731
    monkeypatch.setattr(features.FrozenEncoder, "layers", huge)
    words = ("untrained", image_tree, tmp_path / "out.npy", *TINY)
    assert "not finite in --dtype fp16" in extract(*words, "--dtype", "fp16", status=1).err
    assert not (tmp_path / "out.npy").exists()


def test_every_command_of_the_document_is_understood(image_tree, monkeypatch):
    monkeypatch.setattr(stored, "SHARD", 1024)
    text = (Path(__file__).resolve().parents[2] / "docs" / "features.md").read_text()
    commands = re.findall(r"^.* -m tools\.features (.*)", text, re.M)
    assert len(commands) == 4
    for command in commands:
        checkpoint, images, *rest = shlex.split(command)
        there = images if images == "digits" else str(image_tree)
        features.parse_args([checkpoint, there, *rest])
