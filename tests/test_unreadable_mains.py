"""Damaged test images in every evaluation: none is replaced, the others' scores are as they were.

One folder of class folders, of which five test images that were classified are damaged.
"""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from ranks import in_ranks

from util.data import image_folders
from util.data.file_index import find_images
from util.data.imagenet import synsets

BAD = 5
NAMES = synsets()[3:5]
DATA = ("--input_size", 16, "--num_workers", 0)


@pytest.fixture
def tree(tmp_path):
    """train/ and val/ of two classes, bright and dark: 8 and 15 images of each."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 15)):
        for i, name in enumerate(NAMES):
            folder = tmp_path / "tree" / part / name
            folder.mkdir(parents=True)
            for k in range(count):
                pixels = rng.integers(60 * i, 196 + 60 * i, (16, 16, 3), dtype=np.uint8)
                number = 1 + k + 15 * i
                Image.fromarray(pixels).save(folder / f"ILSVRC2012_val_{number:08d}.png")
    return tmp_path / "tree"


class Damage:
    """Of the images of val/, those at `ids` in their order."""

    def __init__(self, tree, ids):
        paths = find_images(str(tree / "val"))
        self.ids, self.paths = list(ids), [str(tree / "val" / paths[i]) for i in ids]
        for path in self.paths:
            shutil.copy2(path, f"{path}.whole")
            with open(path, "wb") as file:
                file.write(b"no image")

    def repair(self):
        for path in self.paths:
            os.replace(f"{path}.whole", path)


@pytest.fixture
def tuned(run_main_here, tree):
    """A fine-tuned run, with the ids of five test images that it got right."""
    outcome = run_main_here(
        "main_finetune", "--data_path", tree, *DATA, "--model", "vit_tiny_patch4", "--batch_size",
        8, "--epochs", 2, "--warmup_epochs", 0, "--mixup", 0, "--cutmix", 0, "--drop_path", 0,
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    predicted, truth = np.load(outcome.folder / "test_predictions.npy").T
    right = np.flatnonzero(predicted == truth)
    assert BAD < len(right) < 30
    outcome.right = right
    return outcome


def without(right, bad, total=30):
    """Accuracy over the images that are not bad, in percent."""
    return 100 * len(set(right) - set(bad)) / (total - len(bad))


def test_fine_tunings_test_leaves_them_out(run_main_here, tree, tuned):
    saved = tuned.folder / "checkpoint-last.pth"
    damage = Damage(tree, tuned.right[:BAD])
    flags = ("main_finetune", "--eval", "--resume", saved, "--data_path", tree, *DATA)
    for seed in (0, 1):
        outcome = run_main_here(*flags, "--seed", seed, "--batch_size", 4)
        assert outcome.status == 0, outcome.err
        found = outcome.results()
        assert found["acc1"] == pytest.approx(without(tuned.right, damage.ids))
        assert found["unreadable"] == BAD
        assert all(path in outcome.out for path in damage.paths)
    outcome = run_main_here(*flags, "--batch_size", 4, "--max_bad_images", BAD - 1)
    assert outcome.status == 4 and "--max_bad_images" in outcome.err


def test_a_finished_run_is_tested_anew_once_its_files_are_repaired(run_main_here, tree, tuned):
    damage = Damage(tree, tuned.right[:BAD])
    flags = (
        "main_finetune", "--data_path", tree, *DATA, "--model", "vit_tiny_patch4", "--batch_size",
        8, "--epochs", 2, "--warmup_epochs", 0, "--mixup", 0, "--cutmix", 0, "--drop_path", 0,
        "--resume", "auto",
    )  # fmt: skip
    predictions = tuned.folder / "test_predictions.npy"
    before = np.load(predictions)
    outcome = run_main_here(*flags, folder=tuned.folder)
    assert outcome.status == 0 and "have changed since" in outcome.out, outcome.err
    assert outcome.results()["test_unreadable"] == BAD
    assert outcome.results()["test_acc1"] == pytest.approx(without(tuned.right, damage.ids))
    assert np.flatnonzero(np.load(predictions)[:, 0] == -1).tolist() == damage.ids
    damage.repair()
    outcome = run_main_here(*flags, folder=tuned.folder)
    assert "test_unreadable" not in outcome.results()
    assert np.array_equal(np.load(predictions), before)
    stamp = predictions.stat().st_mtime_ns
    assert run_main_here(*flags, folder=tuned.folder).status == 0
    assert predictions.stat().st_mtime_ns == stamp


@pytest.mark.parametrize("crop", [(), ("--min_crop", 1, "--no-flip")], ids=["each epoch", "once"])
def test_the_linear_probes_test_leaves_them_out(run_main_here, tree, tuned, crop):
    flags = (
        "main_linprobe", "--data_path", tree, *DATA, "--finetune",
        tuned.folder / "checkpoint-last.pth", "--global_pool", "--batch_size", 8, "--epochs", 6,
        "--blr", 60, "--warmup_epochs", 1, *crop,
    )  # fmt: skip
    probed = run_main_here(*flags)
    assert probed.status == 0, probed.err
    predicted, truth = np.load(probed.folder / "test_predictions.npy").T
    right = np.flatnonzero(predicted == truth)
    assert len(right) > BAD
    damage = Damage(tree, right[:BAD])
    saved = probed.folder / "checkpoint-last.pth"
    outcome = run_main_here(*flags, "--eval", "--resume", saved)
    assert outcome.status == 0, outcome.err
    assert outcome.results()["acc1"] == pytest.approx(without(right, damage.ids))
    assert outcome.results()["unreadable"] == BAD and "left out" in outcome.out


def test_k_nn_leaves_them_out_of_both_sets(run_main_here, tree):
    def found(*flags):
        outcome = run_main_here(
            "main_linprobe", "--knn", "--model", "pixels", "--data_path", tree, *DATA, *flags
        )
        assert outcome.status == 0, outcome.err
        return outcome.results()

    whole = found("--knn_k", 3)
    train = find_images(str(tree / "train"))[:2]
    damage = Damage(tree, range(0, 30, 6))
    for path in train:
        (tree / "train" / path).write_bytes(b"no image")
    several = [found("--knn_k", 3, "--seed", seed) for seed in (0, 1)]
    assert "unreadable" not in whole
    assert [one["unreadable"] for one in several] == [BAD, BAD]
    assert [one["unreadable_train"] for one in several] == [2, 2]
    for path in [*damage.paths, *(str(tree / "train" / path) for path in train)]:
        os.unlink(path)
    assert several[0]["knn_acc1"] == several[1]["knn_acc1"] == found("--knn_k", 3)["knn_acc1"]


def test_a_published_test_set_is_whole_or_has_no_score(run_main_here, tree, tuned, monkeypatch):
    monkeypatch.setitem(image_folders.PUBLISHED, (30, 2), "ImageNet's validation set")
    saved = tuned.folder / "checkpoint-last.pth"
    data = ("--data_path", tree, *DATA, "--batch_size", 8)
    probe = ("--finetune", saved, "--global_pool", *data)
    once = ("--min_crop", 1, "--no-flip", "--epochs", 1, "--warmup_epochs", 0)
    commands = [
        ("main_finetune", "--eval", "--resume", saved, *data),
        ("main_linprobe", "--knn", *probe),
        ("main_linprobe", *probe, *once),
        ("main_evaluate", saved, *data, "--only", "knn"),
        ("main_robustness", saved, *data, "--no-corrupt"),
    ]
    damage = Damage(tree, tuned.right[:BAD])
    for command in commands:
        outcome = run_main_here(*command)
        assert outcome.status == 4 and outcome.err.count("\n") == 1, (command[0], outcome.err)
        assert "ImageNet's validation set: 5 of 30 images cannot be read" in outcome.err
        assert damage.paths[0] in outcome.err
    damage.repair()
    assert run_main_here(*commands[0]).status == 0


# ------------------------------------------------------------------------------ frozen, robustness


def test_frozen_evaluations_leave_them_out(run_main_here, tree, tuned):
    """And compare encoders on the same images, wherever each could read them."""
    only = ("--only", "knn", "logistic", "few", "label_free", "--few", 1, "--few_shares")
    flags = (
        "main_evaluate", tuned.folder / "checkpoint-last.pth", "pixels", "--names", "T", "P",
        "--data_path", tree, *DATA, *only, "--draws", 2, "--attentive", "--attentive_epochs", 1,
    )  # fmt: skip
    damage = Damage(tree, range(0, 30, 6))
    train = tree / "train" / find_images(str(tree / "train"))[3]
    shutil.copy2(train, f"{train}.whole")
    train.write_bytes(b"no image")
    outcome = run_main_here(*flags)
    assert outcome.status == 0, outcome.err
    saved = json.loads((outcome.folder / "evaluation.json").read_text())
    assert saved["unreadable"] == {"train": 1, "val": BAD} and saved["test_images"] == 25
    assert outcome.results()["unreadable"] == BAD + 1
    text = (outcome.folder / "evaluation.md").read_text()
    assert "15 training images, 25 test images" in text
    assert "could not be read, and are left out: 1 of train, 5 of val." in text
    accuracy = saved["encoders"]["P"]["accuracy"]
    damage.repair()
    os.replace(f"{train}.whole", train)
    again = run_main_here(*flags, folder=outcome.folder)  # the same features, now of all images
    assert again.status == 0, again.err
    whole = json.loads((again.folder / "evaluation.json").read_text())
    assert whole["unreadable"] == {} and whole["test_images"] == 30
    fresh = run_main_here(*flags)
    assert (fresh.folder / "evaluation.json").read_text().replace("out3", "out2") == (
        (again.folder / "evaluation.json").read_text()
    )
    assert set(accuracy) == set(whole["encoders"]["P"]["accuracy"])


def test_robustness_leaves_them_out_and_predicts_repaired_ones(
    run_main_here, tree, tuned, monkeypatch
):
    """On the clean images, on those that are corrupted, and ReaL's labels of their own images."""
    saved, data = tuned.folder / "checkpoint-last.pth", ("--data_path", tree, *DATA)
    few = ("--corruptions", "contrast", "--severities", 1, "--names", "T")
    whole = run_main_here("main_robustness", saved, *data, "--corrupt", *few)
    assert whole.status == 0, whole.err
    damage = Damage(tree, tuned.right[:BAD])
    outcome = run_main_here("main_robustness", saved, *data, "--corrupt", *few)
    assert outcome.status == 0, outcome.err
    found = outcome.results()
    assert found["T, image_folder"] == pytest.approx(without(tuned.right, damage.ids))
    assert found["unreadable"] == 2 * BAD
    saved_json = json.loads((outcome.folder / "robustness.json").read_text())
    unreadable = saved_json["classifiers"]["T"]["unreadable"]
    assert unreadable == {"image_folder": BAD, "contrast 1": BAD}
    assert "left out: 5 of image_folder, 5 of contrast 1." in outcome.out
    damage.repair()
    again = run_main_here("main_robustness", saved, *data, "--corrupt", *few, folder=outcome.folder)
    assert again.status == 0 and "computed anew" in again.out, again.err
    for name in ("robustness.md", "severity.png"):
        assert (again.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_real_labels_are_those_of_the_images_that_were_read(run_main_here, tree, tmp_path):
    """A classifier that always says one class, so that ReaL's score tells whose labels count."""
    from encoders.load import build_encoder

    classes = list(synsets())
    model = build_encoder("vit_tiny_patch4", 1000, 16)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.zero_()
        model.head.bias[classes.index(NAMES[0])] = 1
    config = dict(model="vit_tiny_patch4", input_size=[16, 16], in_chans=3, mean=[0.5], std=[0.5],
                  dataset="image_folder")  # fmt: skip
    torch.save({"model": model.state_dict(), "config": config}, tmp_path / "biased.pth")
    said, other = (classes.index(name) for name in NAMES)
    # Images 1 to 30; ReaL has none of the first two, and the said class for those from 21 on.
    real = [[], []] + [[other]] * 18 + [[said, other]] * 10
    (tmp_path / "real.json").write_text(json.dumps(real))
    flags = (
        "main_robustness", tmp_path / "biased.pth", "--imagenet", tree / "val", "--partial",
        "--real_labels", tmp_path / "real.json", "--num_workers", 0, "--names", "B",
    )  # fmt: skip
    whole = run_main_here(*flags)
    assert whole.status == 0, whole.err
    assert whole.results()["B, ImageNet-ReaL"] == pytest.approx(100 * 10 / 28)
    paths = find_images(str(tree / "val"))
    places = [next(i for i, path in enumerate(paths) if f"{n:08d}" in path)
              for n in (1, 25, 26, 27, 28)]  # fmt: skip
    Damage(tree, places)
    outcome = run_main_here(*flags)
    assert outcome.results()["B, ImageNet-ReaL"] == pytest.approx(100 * 6 / 24)
    assert outcome.results()["B, ImageNet"] == pytest.approx(100 * 14 / 25)
    assert outcome.results()["unreadable"] == BAD


def test_made_corruptions_are_compared_where_both_were_read(run_main_here, tree, tuned, tmp_path):
    """A folder of corrupted images, one of which is damaged under one severity alone."""
    root = tmp_path / "c"
    for severity in (1, 2):
        shutil.copytree(tree / "val", root / "contrast" / str(severity))
    (root / "corruptions.json").write_text(json.dumps({"size": "kept"}))
    bad = root / "contrast" / "2" / find_images(str(tree / "val"))[tuned.right[0]]
    bad.write_bytes(b"no image")
    saved = tuned.folder / "checkpoint-last.pth"
    outcome = run_main_here(
        "main_robustness", saved, saved, "--names", "A", "B", "--data_path", tree, *DATA,
        "--imagenet_c", root, "--corruptions", "contrast", "--severities", 1, 2,
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    found = json.loads((outcome.folder / "robustness.json").read_text())["classifiers"]
    errors, wrong = found["A"]["errors"]["contrast"], 30 - len(tuned.right)
    assert errors["1"] == pytest.approx(100 * wrong / 30)
    assert errors["2"] == pytest.approx(100 * wrong / 29)
    pair = found["B"]["against A"]["accuracy under corruptions"]
    assert (pair["difference"], pair["low"], pair["high"]) == (0, 0, 0)


# ---------------------------------------------------------------------------------------- ranks


def evaluate_on_ranks(rank: int, saved: str, tree: str, folder: str) -> list:
    from pathlib import Path

    from mains import run_in_process

    own = Path(folder)
    data = ("--data_path", tree, *DATA)
    commands = {
        "test": ("main_finetune", "--eval", "--resume", saved, "--batch_size", 4, *data),
        "knn": ("main_linprobe", "--knn", "--finetune", saved, "--global_pool", *data),
        "robustness": ("main_robustness", saved, *data, "--no-corrupt", "--names", "T"),
    }
    statuses = []
    for name, command in commands.items():
        outcome = run_in_process(*command, folder=own / name)
        statuses.append(outcome.status or outcome.err)
    return statuses


def test_any_number_of_processes_leaves_out_the_same(tree, tuned, tmp_path):
    damage = Damage(tree, tuned.right[:BAD])
    found = []
    for world in (1, 2):
        args = (str(tuned.folder / "checkpoint-last.pth"), str(tree), str(tmp_path / str(world)))
        assert in_ranks(evaluate_on_ranks, world, tmp_path, *args) == [["", "", ""]] * world
        results = [json.loads((tmp_path / str(world) / name / "results.json").read_text())
                   for name in ("test", "knn", "robustness")]  # fmt: skip
        found.append([
            (one["unreadable"], [one[k] for k in ("acc1", "acc5", "loss", "knn_acc1",
                                                 "T, image_folder") if k in one])
            for one in results
        ])  # fmt: skip
    for one, two in zip(*found, strict=True):
        assert one[0] == two[0] == BAD and one[1] == pytest.approx(two[1], rel=1e-6)
    assert found[0][0][1][0] == pytest.approx(without(tuned.right, damage.ids))
