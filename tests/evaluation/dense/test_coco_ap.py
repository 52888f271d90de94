"""COCO's AP: hand-made cases, pycocotools, predictions on their way back to the original image."""

import io
import json
from contextlib import redirect_stdout

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from ranks import in_ranks

from util.data.dense.rle import compress_counts, decode_rle, encode_rle, segmentation, to_mask
from util.evaluation.dense import coco_ap

KINDS = {"bbox": "box", "segm": "mask"}


def random_truth(num_images=12, seed=0, size=(90, 120)) -> dict:
    """Rectangles, rings and crowds of three classes; one image has none."""
    rng, annotations = np.random.default_rng(seed), []
    for image in range(1, num_images):
        for _ in range(rng.integers(1, 8)):
            mask = np.zeros(size, dtype=bool)
            top, left = rng.integers(0, size[0] - 8), rng.integers(0, size[1] - 8)
            height, width = rng.integers(4, 70, 2)
            mask[top : top + height, left : left + width] = True
            mask[top + 2 : top + 4, left + 2 : left + 4] = rng.random() < 0.5
            about = segmentation(mask, is_crowd=rng.random() < 0.15)
            about |= {"id": len(annotations) + 1, "image_id": image}
            annotations.append(about | {"category_id": int(rng.choice([2, 5, 9]))})
    return {
        "images": [{"id": i, "height": size[0], "width": size[1]} for i in range(num_images)],
        "categories": [{"id": i, "name": str(i)} for i in (2, 5, 9)],
        "annotations": annotations,
    }


def compressed(mask: np.ndarray) -> dict:
    rle = encode_rle(mask)
    return rle | {"counts": compress_counts(rle["counts"])}


def noisy_predictions(truth: dict, seed=1) -> list[dict]:
    """Objects moved, missed, doubled and mistaken."""
    rng, entries = np.random.default_rng(seed), []
    for about in truth["annotations"]:
        for _ in range(rng.integers(0, 3)):
            size = (truth["images"][0]["height"], truth["images"][0]["width"])
            mask = to_mask(about["segmentation"], *size)
            mask = np.roll(mask, rng.integers(-4, 5, 2), (0, 1))
            boxes = torch.tensor(about["bbox"], dtype=torch.float32)[None]
            boxes[:, 2:] += boxes[:, :2]
            detection = {
                "boxes": boxes + torch.from_numpy(rng.normal(0, 2, (1, 4))),
                "labels": torch.tensor([[2, 5, 9].index(about["category_id"]) + 1]),
                "scores": torch.from_numpy(rng.random(1)),
                "masks": [compressed(mask)],
            }
            if rng.random() < 0.1:
                detection["labels"] = torch.tensor([rng.integers(1, 4)])
            entries += coco_ap.as_coco(detection, about["image_id"], [2, 5, 9])
    return entries


def by_pycocotools(truth: dict, entries: list[dict]) -> dict[str, float]:
    numbers = {}
    with redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = json.loads(json.dumps(truth)) | {"info": {}}
        known.createIndex()
        for kind, name in KINDS.items():
            results = json.loads(json.dumps(entries))
            for entry in results:
                if kind == "segm":
                    del entry["bbox"]
            evaluation = COCOeval(known, known.loadRes(results), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            for number, value in zip(coco_ap.NUMBERS, evaluation.stats, strict=True):
                numbers[f"{name}_{number}"] = 100 * value if value >= 0 else float("nan")
    return numbers


def test_it_is_pycocotools():
    for seed in range(3):
        truth = random_truth(seed=seed)
        entries = noisy_predictions(truth, seed)
        expected = by_pycocotools(truth, entries)
        found = coco_ap.average_precisions(truth, entries)
        assert found.keys() == expected.keys() and len(found) == 24
        assert found == pytest.approx(expected, abs=1e-9, nan_ok=True)
        assert 5 < found["box_AP"] < 80
        again = coco_ap.average_precisions(truth, entries)
        assert again == pytest.approx(found, nan_ok=True)


def test_predictions_of_a_category_that_the_truth_does_not_list_count_for_nothing():
    """As of a validation file without one of training's classes."""
    truth = random_truth()
    entries = noisy_predictions(truth)
    unknown = [entries[0] | {"category_id": 91}, entries[1] | {"category_id": 0}]
    expected = coco_ap.average_precisions(truth, entries)
    assert coco_ap.average_precisions(truth, entries + unknown) == pytest.approx(
        expected, nan_ok=True
    )


def one_object(side=40) -> tuple[dict, np.ndarray]:
    mask = np.zeros((100, 100), dtype=bool)
    mask[20 : 20 + side, 30 : 30 + side] = True
    about = segmentation(mask) | {"id": 1, "image_id": 4, "category_id": 7}
    truth = {"images": [{"id": 4, "height": 100, "width": 100}], "annotations": [about]}
    return truth | {"categories": [{"id": 7, "name": "x"}]}, mask


def entries_of(masks: list[np.ndarray], scores: list[float]) -> list[dict]:
    boxes = []
    for mask in masks:
        rows, columns = np.nonzero(mask)
        boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    detection = {
        "boxes": torch.tensor(np.array(boxes)).float(), "labels": torch.ones(len(masks)).long(),
        "scores": torch.tensor(scores), "masks": [compressed(mask) for mask in masks],
    }  # fmt: skip
    return coco_ap.as_coco(detection, 4, [7])


def test_hand_made_cases():
    truth, mask = one_object()
    found = coco_ap.average_precisions(truth, entries_of([mask], [0.9]))
    assert found["box_AP"] == found["mask_AP"] == pytest.approx(100)
    assert np.isnan(found["box_AP_large"]) and found["mask_AP_medium"] == pytest.approx(100)
    # 33 of 40 columns, an IoU of 0.825: right at 7 of the 10 thresholds.
    short = mask.copy()
    short[:, 63:] = False
    found = coco_ap.average_precisions(truth, entries_of([short], [0.9]))
    assert found["mask_AP"] == found["box_AP"] == pytest.approx(70)
    # A better wrong one before it: half the precision.
    wrong = np.roll(mask, 45, 0)
    found = coco_ap.average_precisions(truth, entries_of([wrong, mask], [0.9, 0.8]))
    assert found["box_AP50"] == pytest.approx(50)
    # None at all.
    found = coco_ap.average_precisions(truth, [])
    assert found["box_AP"] == found["mask_AR100"] == 0 and np.isnan(found["box_AP_small"])


def test_ids_of_any_size_are_renumbered_for_the_evaluator():
    truth = random_truth()
    entries = noisy_predictions(truth)
    expected = coco_ap.average_precisions(truth, entries)
    for factor, shift in ((1, 2**70), (-(2**65), 0), (10**18, 0)):
        other = json.loads(json.dumps(truth))
        for part, keys in (
            ("images", ["id"]), ("categories", ["id"]),
            ("annotations", ["id", "image_id", "category_id"]),
        ):  # fmt: skip
            for entry in other[part]:
                entry.update({key: entry[key] * factor + shift for key in keys})
        moved = [
            entry | {key: entry[key] * factor + shift for key in ("image_id", "category_id")}
            for entry in entries
        ]
        found = coco_ap.average_precisions(other, moved)
        assert found == pytest.approx(expected, nan_ok=True)


def test_objects_without_a_mask_count_for_boxes_and_are_ignored_for_masks():
    truth, mask = one_object()
    other = np.zeros_like(mask)
    other[70:90, 40:60] = True
    about = segmentation(other) | {"id": 2, "image_id": 4, "category_id": 7}
    whole = truth | {"annotations": [*truth["annotations"], about]}
    blind = truth | {"annotations": [*truth["annotations"], about | {"segmentation": None}]}
    entries = entries_of([other, mask], [0.9, 0.8])
    for known in (whole, blind):
        found = coco_ap.average_precisions(known, entries)
        assert found["box_AP"] == found["mask_AP"] == pytest.approx(100)
    # The mask of the other is not asked for, its box is.
    found = coco_ap.average_precisions(blind, entries_of([mask], [0.8]))
    assert found["mask_AP"] == pytest.approx(100) and found["box_AR100"] == pytest.approx(50)
    found = coco_ap.average_precisions(whole, entries_of([mask], [0.8]))
    assert found["mask_AR100"] == pytest.approx(50)
    # None has a mask: there is nothing to say about masks.
    none = [about | {"segmentation": None} for about in whole["annotations"]]
    found = coco_ap.average_precisions(whole | {"annotations": none}, entries)
    assert found["box_AP"] == pytest.approx(100)
    assert all(np.isnan(found[name]) for name in found if name.startswith("mask"))


def test_a_detection_comes_back_to_the_original_image():
    detection = {
        "boxes": torch.tensor([[10.0, 20, 30, 40]]), "labels": torch.tensor([1]),
        "scores": torch.tensor([0.5]), "masks": torch.ones(1, 1, 28, 28),
    }  # fmt: skip
    found = coco_ap.on_original(detection, (64, 32), (128, 96))
    assert found["boxes"].tolist() == [[30, 40, 90, 80]]
    expected = np.zeros((128, 96), dtype=bool)
    expected[40:80, 30:90] = True
    (entry,) = coco_ap.as_coco(found, 11, [42])
    assert entry["bbox"] == [30, 40, 60, 40] and entry["category_id"] == 42
    assert np.array_equal(decode_rle(entry["segmentation"]), expected)


def score_on_ranks(rank: int, folder: str) -> dict:
    truth = random_truth()
    entries = noisy_predictions(truth)
    own = [entry for entry in entries if entry["image_id"] % 2 == rank]
    return coco_ap.score(truth, own, folder)


def test_two_ranks_score_as_one(tmp_path):
    truth = random_truth()
    entries = noisy_predictions(truth)
    expected = coco_ap.score(truth, entries, str(tmp_path))
    alone = json.loads((tmp_path / coco_ap.PREDICTIONS).read_text())
    for found in in_ranks(score_on_ranks, 2, tmp_path, str(tmp_path)):
        assert found == pytest.approx(expected, nan_ok=True)
    together = json.loads((tmp_path / coco_ap.PREDICTIONS).read_text())
    assert together == sorted(alone, key=lambda entry: entry["image_id"])
