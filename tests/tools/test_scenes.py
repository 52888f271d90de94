"""Scenes: their files agree to the pixel, follow from the seed, and are as varied as meant."""

import contextlib
import functools
import gzip
import io
import json
import multiprocessing
import os
import struct

import numpy as np
import pytest
from PIL import Image

from tools import scenes
from util.data.dense import rle
from util.data.scenes import files as scene_files
from util.data.scenes.compose import World, compose
from util.data.scenes.grounds import Photographs, Plain, Textures
from util.data.scenes.stickers import SOURCES, SPLITS
from util.entry import run_main

COUNTS = {"training": 96, "validation": 16}


def write(out, *flags) -> tuple[int, str]:
    """Run the command; its exit status and what it wrote to stderr."""
    err, status = io.StringIO(), 0
    words = [str(out), *map(str, flags)]
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            run_main(scenes.main, lambda: scenes.parse_args(words))
        except SystemExit as end:
            status = end.code or 0
    return status, err.getvalue()


def files(root) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def fashion(tmp_path_factory):
    """A small Fashion-MNIST: grey rectangles of all classes."""
    root = tmp_path_factory.mktemp("fashion")
    rng = np.random.default_rng(0)
    for stem in ("train", "t10k"):
        images = np.zeros((40, 28, 28), dtype=np.uint8)
        for image in images:
            top, left = rng.integers(1, 8, 2)
            image[top : top + rng.integers(10, 20), left : left + rng.integers(10, 20)] = 180
        for name, array in (
            ("images-idx3", images),
            ("labels-idx1", np.arange(40, dtype="u1") % 10),
        ):
            header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            (root / f"{stem}-{name}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    return root


@pytest.fixture(scope="module")
def stamps(tmp_path_factory):
    """A tree like Debian's: 10 rings in animals/birds, 12 in two folders of food, and others."""
    root = tmp_path_factory.mktemp("stamps")
    y, x = np.mgrid[:60, :80] / 40 - 0.8
    rng = np.random.default_rng(0)
    folders = {"animals/birds": 10, "food/fruit": 7, "food/nuts": 5, "people": 3}
    folders |= {"animals/birds/cartoon": 9, "symbols/chess": 9}
    for folder, count in folders.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            is_ring = abs(np.hypot(x - 0.2, y) - 0.5) < rng.uniform(0.1, 0.2)
            pixels = np.full((60, 80, 4), rng.integers(0, 256, 4), dtype=np.uint8)
            pixels[..., 3] = 255 * is_ring
            Image.fromarray(pixels).save(root / folder / f"{i}.png")
    Image.fromarray(pixels).save(root / "animals/birds/1_mirror.png")
    return root


@pytest.fixture(scope="module")
def data_path(fashion, stamps):
    return {"digits": "", "fashion_mnist": str(fashion), "stamps": str(stamps)}


@pytest.fixture(scope="module")
def digit_scenes(tmp_path_factory):
    """A folder of digit scenes, 72 x 96, written by this process alone."""
    out = tmp_path_factory.mktemp("scenes") / "out"
    assert write(out, *FLAGS, "--num_workers", 0) == (0, "")
    return out


FLAGS = ("--images", 96, "--val_images", 16, "--size", 72, 96)


@functools.cache
def annotations(out, split):
    content = json.loads((out / f"instances_{split}.json").read_text())
    by_image = {about["id"]: [] for about in content["images"]}
    for about in content["annotations"]:
        by_image[about["image_id"]].append(about)
    return content, by_image


def masks(abouts):
    return [rle.to_mask(about["segmentation"], 72, 96) for about in abouts]


# ------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("split", SPLITS)
def test_the_files_are_complete(digit_scenes, split):
    content, _ = annotations(digit_scenes, split)
    assert [about["id"] for about in content["annotations"]] == list(
        range(1, len(content["annotations"]) + 1)
    )
    names = sorted(about["file_name"] for about in content["images"])
    assert len(names) == COUNTS[split]
    assert sorted(p.name for p in (digit_scenes / "images" / split).iterdir()) == names
    maps = sorted(p.stem for p in (digit_scenes / "annotations" / split).iterdir())
    assert maps == [name.removesuffix(".jpg") for name in names]
    for about in content["images"][:5]:
        with Image.open(digit_scenes / "images" / split / about["file_name"]) as image:
            assert (image.mode, image.size) == ("RGB", (about["width"], about["height"]))
            assert image.size == (96, 72)
    classes = (digit_scenes / "classes.txt").read_text().splitlines()
    assert [(about["id"], about["name"]) for about in content["categories"]] == list(
        enumerate(classes, start=1)
    )
    assert not (digit_scenes / scene_files.UNFINISHED).exists()


@pytest.mark.parametrize("split", SPLITS)
def test_the_label_map_is_the_union_of_the_masks(digit_scenes, split):
    _, by_image = annotations(digit_scenes, split)
    for image_id, abouts in by_image.items():
        with Image.open(digit_scenes / "annotations" / split / f"{image_id - 1:08d}.png") as file:
            label_map = np.asarray(file)
        assert label_map.dtype == np.uint8
        union = np.zeros_like(label_map)
        for about, mask in zip(abouts, masks(abouts), strict=True):
            assert not union[mask].any()  # what is nearer has hidden it: no pixel is of two
            union[mask] = about["category_id"]
        assert np.array_equal(label_map, union)


@pytest.mark.parametrize("split", SPLITS)
def test_area_and_box_are_those_of_the_mask(digit_scenes, split):
    content, _ = annotations(digit_scenes, split)
    for about, mask in zip(content["annotations"], masks(content["annotations"]), strict=True):
        ys, xs = np.nonzero(mask)
        assert about["area"] == len(xs) > 0
        assert about["bbox"] == [
            xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()
        ]  # fmt: skip
        assert set(about) >= {"id", "image_id", "category_id", "iscrowd", "segmentation"}


def test_all_that_a_detector_must_bear_is_there(digit_scenes):
    content, by_image = annotations(digit_scenes, "training")
    abouts = content["annotations"]
    assert any(not of_image for of_image in by_image.values())
    assert any(about["iscrowd"] for about in abouts)
    assert {type(about["segmentation"]) for about in abouts if about["iscrowd"]} == {dict}
    whole = [about for about in abouts if not about["iscrowd"]]
    assert {type(about["segmentation"]) for about in whole} == {dict, list}  # holes, and none
    assert any(len(about["segmentation"]) > 1 for about in whole)  # in parts
    boxes = np.array([about["bbox"] for about in whole])
    ends = boxes[:, :2] + boxes[:, 2:]
    assert (boxes[:, 0] == 0).any() and (boxes[:, 1] == 0).any()
    assert (ends[:, 0] == 96).any() and (ends[:, 1] == 72).any()
    assert {about["category_id"] for about in whole} == set(range(1, 11))


def test_pycocotools_reads_the_same_masks(digit_scenes):
    coco = pytest.importorskip("pycocotools.coco")
    with contextlib.redirect_stdout(io.StringIO()):
        read = coco.COCO(str(digit_scenes / "instances_training.json"))
    for about in read.loadAnns(read.getAnnIds()):
        (mask,) = masks([about])
        assert np.array_equal(read.annToMask(about), mask)


def test_faster_coco_eval_finds_the_truth_perfect(digit_scenes):
    library = pytest.importorskip("faster_coco_eval")
    content, _ = annotations(digit_scenes, "validation")
    truth = library.COCO(str(digit_scenes / "instances_validation.json"))
    found = [
        {key: about[key] for key in ("image_id", "category_id", "bbox")}
        | {"score": 0.9, "segmentation": {
            "size": [72, 96],
            "counts": rle.compress_counts(rle.encode_rle(mask)["counts"]),
        }}
        for about, mask in zip(content["annotations"], masks(content["annotations"]), strict=True)
        if not about["iscrowd"]
    ]  # fmt: skip
    for kind in ("bbox", "segm"):
        evaluation = library.COCOeval_faster(truth, truth.loadRes(found), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert evaluation.stats[0] == pytest.approx(1.0)


# ------------------------------------------------------------------------------------------- seeds


@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_same_bytes_whatever_the_number_of_workers(
    digit_scenes, tmp_path, num_workers, monkeypatch
):
    monkeypatch.setattr(scene_files, "num_cores", lambda: 2)
    assert write(tmp_path / "out", *FLAGS, "--num_workers", num_workers) == (0, "")
    assert files(tmp_path / "out") == files(digit_scenes)


def test_a_run_that_was_cut_off_goes_on_to_the_same_bytes(digit_scenes, tmp_path, monkeypatch):
    original, made = scene_files.write_scene, []

    def cut_off_at_50(world, out, split, index):
        made.append((split, index))
        if len(made) == 50:
            raise KeyboardInterrupt
        return original(world, out, split, index)

    monkeypatch.setattr(scene_files, "write_scene", cut_off_at_50)
    assert write(tmp_path / "out", *FLAGS, "--num_workers", 0)[0] == 130
    assert not (tmp_path / "out" / "instances_training.json").exists()
    assert write(tmp_path / "out", *FLAGS, "--num_workers", 0) == (0, "")
    assert len(made) == 50 + 96 + 16 - scene_files.BLOCK  # the first block was not made again
    assert files(tmp_path / "out") == files(digit_scenes)
    assert write(tmp_path / "out", *FLAGS, "--num_workers", 0) == (0, "")  # all there
    assert len(made) == 50 + 96 + 16 - scene_files.BLOCK


def test_scenes_differ_by_seed_split_and_index():
    stickers = SOURCES["digits"]("", False)
    pictures = [
        compose(World(stickers, Textures(), seed, 64, 64), split, index)[0].tobytes()
        for seed in (0, 1) for split in SPLITS for index in (0, 1)
    ]  # fmt: skip
    assert len(set(pictures)) == 8


# ------------------------------------------------------------------------------------------ sources


@pytest.mark.parametrize("source", sorted(SOURCES))
def test_the_splits_share_no_source(source, data_path):
    stickers = SOURCES[source](data_path[source], False)
    world = World(stickers, Textures(), 0, 64, 64)
    names = {}
    for split in SPLITS:
        things = [thing for i in range(20) for thing in compose(world, split, i)[1]]
        names[split] = {name for thing in things for name in thing.sources}
        assert {thing.label for thing in things} <= set(range(len(stickers.classes)))
        every = {stickers.name(split, i) for i in range(len(stickers.targets[split]))}
        assert names[split] <= every
        assert set(stickers.targets[split]) == set(range(len(stickers.classes)))
    assert names["training"] and names["validation"]
    assert not names["training"] & names["validation"]


@pytest.mark.parametrize("source", sorted(SOURCES))
def test_masks_are_exact_and_scales_spread(source, data_path):
    world = World(SOURCES[source](data_path[source], False), Textures(), 3, 128, 128)
    sides = []
    for index in range(60):
        image, things = compose(world, "training", index)
        rng = np.random.default_rng([3, 0, index])
        ground = world.grounds.draw(rng, "training", 128, 128).round().astype(np.uint8)
        seen = np.zeros((128, 128), dtype=bool)
        for thing in things:
            assert thing.visible.any() and not (seen & thing.visible).any()
            seen |= thing.visible
            sides += [max(thing.pixels.shape[:2])] if not thing.is_crowd else []
        # Where no object has even a transparent pixel the ground shows, untouched.
        is_clear = np.ones((128, 128), dtype=bool)
        for thing in things:
            h, w = thing.pixels.shape[:2]
            top, left = max(thing.top, 0), max(thing.left, 0)
            is_clear[top : thing.top + h, left : thing.left + w] = False
        assert np.array_equal(image[is_clear], ground[is_clear])
    assert max(sides) >= 8 * min(sides)


@pytest.mark.parametrize("source", sorted(SOURCES))
def test_tiles_hold_one_whole_object_each_on_black(source, data_path):
    world = World(SOURCES[source](data_path[source], False), Plain(), 0, 60, 84, tile=28)
    labels = []
    for index in range(10):
        image, things = compose(world, "training", index)
        assert len(things) == 2 * 3 and image.shape == (60, 84, 3)
        labels += [thing.label for thing in things]
        for thing, corner in zip(things, np.ndindex(2, 3), strict=True):
            ys, xs = np.nonzero(thing.visible)
            assert (ys // 28 == corner[0]).all() and (xs // 28 == corner[1]).all()
            assert 0.8 * 28 <= max(np.ptp(ys), np.ptp(xs)) + 1 <= 28
            h, w = thing.pixels.shape[:2]
            image[thing.top : thing.top + h, thing.left : thing.left + w] = 0
        assert not image.any()
    assert len(set(labels)) == len(world.classes)


def test_an_object_that_is_hidden_is_left_out(monkeypatch):
    monkeypatch.setattr("util.data.scenes.compose.SMALLEST", 0.8)  # all are large
    world = World(SOURCES["digits"]("", False), Textures(), 0, 64, 64)
    counts = []
    for index in range(30):
        _, things = compose(world, "training", index)
        counts.append(sum(not thing.is_crowd for thing in things))
        assert all(
            thing.visible.sum() >= 0.15 * (thing.pixels[..., 3] >= 128).sum() for thing in things
        )
    assert 0 < np.mean(counts) < 4  # of 4.1 that are drawn


def test_stamps_are_classes_by_folder_without_drawings(stamps):
    found = SOURCES["stamps"](str(stamps), False)
    assert found.classes == ("animals/birds", "food")
    both = found.paths["training"] + found.paths["validation"]
    assert len(both) == len(set(both)) == 10 + 12
    assert not any("cartoon" in path or "mirror" in path for path in both)


def test_scenes_on_photographs(tmp_path):
    for i in range(8):
        Image.new("RGB", (90, 70), (30 * i, 0, 0)).save(tmp_path / f"{i}.png")
    grounds = Photographs(str(tmp_path))
    shades = {}
    for split in SPLITS:
        drawn = [grounds.draw(np.random.default_rng(i), split, 64, 80) for i in range(40)]
        assert all(ground.shape == (64, 80, 3) for ground in drawn)
        shades[split] = {ground[0, 0, 0] for ground in drawn}
    assert shades == {"training": {0, 30, 60, 120, 150, 180}, "validation": {90, 210}}


# --------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--source", "cats"), ("--source", "cats", "digits")),
        (("--size", 31), ("--size", "between 32 and 4096")),
        (("--size", 32), ("--size 32", "64")),
        (("--tiles", 70, "--size", 64), ("--size 64", "70")),
        (("--size", 64, 64, 64), ("--size", "height and a width")),
        (("--images", 0), ("--images", "at least 1")),
        (("--source", "stamps", "--data_path", "absent"), ("tuxpaint-stamps-default", "absent")),
        (("--source", "fashion_mnist", "--data_path", "absent"), ("--data_path absent", "Debian")),
        (("--grounds", "absent"), ("--grounds absent", "at least 4")),
    ],
)
def test_flags_that_cannot_be_used(tmp_path, flags, words):
    status, line = write(tmp_path / "out", *flags)
    assert status == 2 and line.count("\n") == 1
    assert all(word in line for word in words), line
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_things_is_left_alone(digit_scenes, tmp_path):
    (tmp_path / "thesis.tex").write_text("text")
    status, line = write(tmp_path, *FLAGS)
    assert status == 2 and line.count("\n") == 1 and "thesis.tex" in line and "new" in line
    before = files(digit_scenes)
    status, line = write(digit_scenes, *FLAGS, "--seed", 5)
    assert status == 2 and line.count("\n") == 1 and "--seed was 0" in line
    assert files(digit_scenes) == before and os.listdir(tmp_path) == ["thesis.tex"]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    status, line = write(tmp_path / "file", *FLAGS)
    assert status == 2 and line.count("\n") == 1 and str(tmp_path / "file") in line


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_source_image_that_is_broken(tmp_path, num_workers):
    (tmp_path / "food").mkdir()
    for i in range(12):
        (tmp_path / "food" / f"{i}.png").write_text("no image")
    flags = (*FLAGS, "--source", "stamps", "--data_path", tmp_path, "--num_workers", num_workers)
    status, line = write(tmp_path / "out", *flags)
    assert status == 2 and line.count("\n") == 1 and f"{tmp_path}/food/" in line


def test_an_interrupt_does_not_wait_for_all_scenes(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(scene_files.ProgressLine, "update", interrupt)
    flags = ("--images", 640, "--size", 64, "--num_workers", 1)
    assert write(tmp_path / "out", *flags)[0] == 130
    done = len(os.listdir(tmp_path / "out" / scene_files.UNFINISHED))
    assert 1 <= done <= 6  # of 24: what the process had been handed


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="patches the process")
def test_a_process_that_dies_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(scene_files, "write_scene", lambda *_: os._exit(1))
    status, line = write(tmp_path / "out", *FLAGS, "--num_workers", 1)
    assert status == 4 and line.count("\n") == 1 and "--num_workers" in line
    monkeypatch.undo()
    assert write(tmp_path / "out", *FLAGS, "--num_workers", 0) == (0, "")


def test_all_objects_of_one_class(digit_scenes, tmp_path):
    """Only the classes differ: the ground is told from anything that lies on it."""
    assert write(tmp_path / "one", *FLAGS, "--one_class", "digit") == (0, "")
    assert (tmp_path / "one/classes_and_ground.txt").read_text() == "ground\ndigit\n"
    for split in ("training", "validation"):
        for path in sorted((tmp_path / "one/annotations" / split).iterdir())[:5]:
            of_ten = np.array(Image.open(digit_scenes / "annotations" / split / path.name))
            assert np.array_equal(np.array(Image.open(path)), of_ten > 0)
        content = json.loads((tmp_path / f"one/instances_{split}.json").read_text())
        assert content["categories"] == [{"id": 1, "name": "digit"}]
        assert {about["category_id"] for about in content["annotations"]} == {1}
