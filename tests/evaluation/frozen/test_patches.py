"""Dense evaluation of frozen patches: planted tokens, maps of any size, and the command line."""

import types

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import jaccard_score

import main_evaluate
from util.errors import RunError
from util.evaluation.frozen import patches
from util.evaluation.frozen.patches import patch_classes

CPU = torch.device("cpu")
CLASSES = 3


def write_folder(root, num_train: int = 12, num_val: int = 4, size=(40, 24)) -> None:
    """Images whose grey value is their class, in blocks of 8 x 8 pixels; 0 is nothing."""
    root.mkdir(exist_ok=True)
    (root / "classes.txt").write_text("\n".join("abc"[:CLASSES]))
    rng = np.random.default_rng(0)
    for split, count in (("training", num_train), ("validation", num_val)):
        for part in ("images", "annotations"):
            (root / part / split).mkdir(parents=True)
        for i in range(count):
            blocks = rng.integers(0, CLASSES + 1, (size[0] // 8, size[1] // 8))
            values = np.kron(blocks, np.ones((8, 8), int)).astype(np.uint8)
            Image.fromarray(80 * values).save(root / "images" / split / f"{i}.png")
            Image.fromarray(values).save(root / "annotations" / split / f"{i}.png")


class GreyEncoder:
    """Tokens of patches of 8 x 8: their mean grey value on a circle."""

    name = "grey"
    view = types.SimpleNamespace(size=(40, 24))

    def encode_tokens(self, imgs):
        angle = 3 * torch.nn.functional.avg_pool2d(imgs, 8).flatten(1)  # [B, L]
        return torch.stack([angle.cos(), angle.sin()], dim=2)


def test_a_patch_has_the_class_of_most_of_its_labelled_pixels():
    labels = torch.tensor([[0, 0, 1, 1], [0, 2, -1, -1], [-1, -1, 2, 2], [-1, -1, 2, 1]])
    assert patch_classes(labels, (2, 2), 3).tolist() == [0, 1, -1, 2]
    # A grid that cuts the map in no whole pixels: each pixel still is of one patch.
    odd = torch.arange(5).repeat_interleave(1)[:, None].expand(5, 7)
    assert patch_classes(odd, (5, 3), 5).view(5, 3).tolist() == [[i] * 3 for i in range(5)]


def test_planted_patches_are_found_and_counted_by_pixels(tmp_path):
    write_folder(tmp_path / "data")
    args = main_evaluate.parse_args(["untrained", "--dense", str(tmp_path / "data")])
    train, val = patches.load(args)
    found = patches.evaluate(GreyEncoder(), train, val, args, CPU)
    assert set(found) == {patches.KNN_NAME, patches.LOGISTIC_NAME}
    for one in found.values():
        assert one.counts.shape == (4, 3, CLASSES)
        labelled = sum(int((val.read(i)[1] >= 0).sum()) for i in range(4))
        assert one.counts[:, 1].sum() == one.counts[:, 2].sum() == labelled
        assert one.miou() > 75  # all but what is blurred between patches


def test_what_cannot_be_read_counts_nowhere(tmp_path, caplog):
    """An image and a map of each split; the others' mIoU is that of a folder without those."""
    found = []
    for way in ("damaged", "absent"):
        write_folder(tmp_path / way)
        for kind, name in (("images", "1.png"), ("annotations", "3.png")):
            for split in ("training", "validation"):
                path = tmp_path / way / kind / split / name
                path.write_bytes(b"no image")
                if way == "absent":
                    for other in ("images", "annotations"):
                        (tmp_path / way / other / split / name).unlink()
        args = main_evaluate.parse_args(["untrained", "--dense", str(tmp_path / way)])
        train, val = patches.load(args)
        found.append(patches.evaluate(GreyEncoder(), train, val, args, CPU))
        if way == "damaged":
            args.max_bad_images = 1
            with pytest.raises(RunError, match=r"--dense: 2 pairs .* --max_bad_images 1"):
                patches.evaluate(GreyEncoder(), train, val, args, CPU)
            val.published = "Set-D"
            args.max_bad_images = 2
            with pytest.raises(RunError, match="Set-D: 2 of 4 images cannot be read"):
                patches.evaluate(GreyEncoder(), train, val, args, CPU)
    assert "left out: " in caplog.text
    damaged, absent = found
    one = damaged[patches.KNN_NAME]
    assert one.left_out == (1, 3) and not one.counts[[1, 3]].any()
    assert np.array_equal(one.counts[[0, 2]], absent[patches.KNN_NAME].counts)
    assert "of 10 images" in one.chosen
    other = patches.Dense("", one.counts + 7, (0,))  # compared on image 2 alone
    difference = patches.compare(one, other)
    expected = patches.mean_iou(one.counts[2]) - patches.mean_iou(one.counts[2] + 7)
    assert difference.difference == pytest.approx(expected)


def test_mean_iou_is_scikit_learns():
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 4, (2, 5, 300))
    rows = [patches._counts(torch.tensor(p), torch.tensor(t), 4)
            for p, t in zip(predicted, truth, strict=True)]  # fmt: skip
    expected = 100 * jaccard_score(truth.ravel(), predicted.ravel(), average="macro")
    assert patches.Dense("", np.stack(rows)).miou() == pytest.approx(expected)


def test_equal_predictions_are_no_difference_and_better_ones_a_gain():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, (60, 200))
    guess = np.where(rng.random(truth.shape) < 0.5, truth, rng.integers(0, 4, truth.shape))
    better = np.where(rng.random(truth.shape) < 0.2, truth, guess)

    def of(predicted) -> patches.Dense:
        rows = [patches._counts(torch.tensor(p), torch.tensor(t), 4)
                for p, t in zip(predicted, truth, strict=True)]  # fmt: skip
        return patches.Dense("", np.stack(rows))

    same = patches.compare(of(guess), of(guess))
    assert (same.difference, same.low, same.high) == (0, 0, 0)
    assert patches.compare(of(better), of(guess)).verdict == "gain"


def test_from_the_command_line(run_main_here, refuses, checkpoint, tmp_path):
    write_folder(tmp_path / "data", size=(32, 32))
    outcome = run_main_here(
        "main_evaluate", checkpoint, "untrained", "pixels", "--names", "MI-MAE", "none", "raw",
        "--only", "--dense", tmp_path / "data", "--dense_patches", 500,
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    row = next(line for line in outcome.out.splitlines() if line.startswith("| dense k-NN, mIoU"))
    assert float(row.split("|")[2]) > 30 and row.split("|")[4].strip() == "–"
    assert "logistic, chosen" not in outcome.out and "Top-1" not in outcome.out
    assert "MI-MAE, dense k-NN, mIoU" in outcome.results()
    refuses("main_evaluate", checkpoint, "--dense", "absent", names=("--dense absent",))
