"""Detection end to end on small scenes, what it writes, and what it refuses."""

import argparse
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from pages import check_page
from PIL import Image
from timm.models.vision_transformer import VisionTransformer

import main_detection
from heads.rois import mask_targets
from tools import scenes as scene_maker
from util.data.dense.coco import load_coco
from util.data.dense.jitter import View
from util.data.dense.rle import decode_rle, segmentation
from util.evaluation.dense.coco_ap import as_coco, average_precisions, on_original

MODEL = ("--model", "vit_tiny_patch4", "--input_size", 32)
SHORT = ("--batch_size", 2, "--iterations", 2, "--eval_every", 2, "--warmup_iterations", 0)
MAIN = "main_detection"
ROUND = 36  # iterations: heads that are drawn as small as published take some to begin


def squares(root, count=(12, 4), category_ids=(3, 8)):
    """Pictures of one or two squares, red or green, 32 x 32; the first has none. Ids from 0 on."""
    rng = np.random.default_rng(0)
    for split, number in zip(("training", "validation"), count, strict=True):
        (root / "images" / split).mkdir(parents=True)
        images, annotations = [], []
        for i in range(number):
            pixels = rng.integers(0, 60, (32, 32, 3), dtype=np.uint8)
            is_covered = np.zeros((32, 32), dtype=bool)
            for _ in range(min(i, 1 + i % 2)):
                label, side = int(rng.integers(2)), int(rng.integers(9, 16))
                top, left = rng.integers(0, 32 - side, 2)
                mask = np.zeros((32, 32), dtype=bool)
                mask[top : top + side, left : left + side] = True
                if (mask & is_covered).any():
                    continue
                is_covered |= mask
                pixels[mask, label] = 250
                about = {"id": len(annotations), "image_id": i, "category_id": category_ids[label]}
                annotations.append(about | segmentation(mask))
            Image.fromarray(pixels).save(root / "images" / split / f"{i}.png")
            images.append({"id": i, "file_name": f"{i}.png", "height": 32, "width": 32})
        names = zip(category_ids, ("red", "green"), strict=True)
        categories = [{"id": number, "name": name} for number, name in names]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"instances_{split}.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="session")
def detected(run_main_script, tmp_path_factory):
    data = squares(tmp_path_factory.mktemp("squares"))
    outcome = run_main_script(
        MAIN, "--data_path", data, *MODEL, "--batch_size", 4, "--iterations", 2 * ROUND,
        "--eval_every", ROUND, "--warmup_iterations", 4, "--lr", 1e-3, "--lr_schedule", "cosine",
        "--layer_decay", 1, "--drop_path", 0, "--scales", 0.8, 1.2, "--ema_decay", 0.8,
        "--log_every", 10,
        folder=tmp_path_factory.mktemp("detection"),
    )  # fmt: skip
    outcome.data = data
    return outcome


def test_it_learns_and_logs_by_rounds(detected):
    lines = detected.log()
    assert [line["steps"] for line in lines] == [ROUND, 2 * ROUND]
    first, last = lines
    assert last["train_loss"] < 0.8 * first["train_loss"]
    assert last["test_box_AP50"] > 20 and last["test_mask_AP50"] > 20
    assert last["max_box_AP"] == max(line["test_box_AP"] for line in lines)
    parts = ("classifier", "box_reg", "mask", "objectness", "rpn_box_reg")
    total = sum(last[f"train_{part}"] for part in parts)
    assert last["train_loss"] == pytest.approx(total, rel=1e-5)
    assert "Places of proposals" in check_page(detected.folder / "report.html").text
    assert (detected.folder / "inputs.png").exists()


def test_eval_reproduces_what_training_logged(run_main_here, detected):
    """With the running mean of the weights, in batches of another size."""
    saved = detected.folder / "checkpoint-last.pth"
    state = torch.load(saved, weights_only=True)
    assert any(not torch.equal(v, state["model"][k]) for k, v in state["trained"].items())
    outcome = run_main_here(
        MAIN, "--eval", "--resume", saved, "--data_path", detected.data, "--batch_size", 3
    )
    assert outcome.status == 0, outcome.err
    for name in ("box_AP", "mask_AP", "box_AR100"):
        logged = detected.log()[-1][f"test_{name}"]
        assert outcome.results()[name] == pytest.approx(logged, abs=0.5)
    kept = json.loads((outcome.folder / "predictions.json").read_text())
    assert {entry["category_id"] for entry in kept} <= {3, 8}
    assert all(decode_rle(entry["segmentation"]).shape == (32, 32) for entry in kept)


def test_predictions_of_a_folder(run_main_here, detected, tmp_path):
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    shutil.copy(detected.data / "images" / "validation" / "3.png", folder / "deep" / "3.png")
    Image.new("L", (20, 90), 80).save(folder / "tall.jpg")
    (folder / "broken.png").write_bytes(b"no image")
    saved = detected.folder / "checkpoint-last.pth"
    outcome = run_main_here(MAIN, "--predict", folder, "--resume", saved, "--min_score", 0.3)
    assert outcome.status == 0, outcome.err
    assert outcome.results()["unreadable"] == 1 and "broken.png" in outcome.out
    written = {p.relative_to(outcome.folder).as_posix() for p in outcome.folder.rglob("*.png")}
    assert written == {"pictures/deep/3.png", "pictures/tall.png"}
    found = json.loads((outcome.folder / "predictions.json").read_text())
    found = [entry for entry in found if entry["image_id"] == "deep/3.png"]
    truth = json.loads((detected.data / "instances_validation.json").read_text())["annotations"]
    for about in (about for about in truth if about["image_id"] == 3):
        assert any(np.abs(np.subtract(entry["bbox"], about["bbox"])).max() < 4 for entry in found)


@pytest.mark.parametrize(
    "flags",
    [
        ("--input_size", 32, 48, "--accum_iter", 2, "--amp", "bf16", "--ema_decay", 0.9),
        ("--model", "swin_mini_patch2", "--input_size", 32, "--empty_images"),
        ("--grad_checkpointing", "--window", 3, "--clip_grad", 1),
    ],
    ids=lambda flags: str(flags[0])[2:],
)
def test_other_options_run(run_main_here, scenes, flags):
    outcome = run_main_here(MAIN, "--data_path", scenes, *MODEL, *SHORT, *flags)
    assert outcome.status == 0, outcome.err
    assert [line["steps"] for line in outcome.log()] == [2]


def test_a_pretrained_checkpoint_brings_its_model_and_channels_but_not_its_size(
    run_main_here, checkpoint, scenes
):
    outcome = run_main_here(
        MAIN, "--finetune", checkpoint, "--data_path", scenes, "--input_size", 16, *SHORT,
        "--iterations", 1,
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    assert "position embedding: 4 x 4 -> 8 x 8 patches" in outcome.out
    saved = torch.load(outcome.folder / "checkpoint-last.pth", weights_only=True)
    config = saved["config"]
    assert config["in_chans"] == 1 and config["model"] == "vit_tiny_patch2"
    assert config["classes"][3] == "three" and config["category_ids"] == list(range(1, 11))


def test_an_encoder_of_no_size_that_has_a_name_is_evaluated_again(run_main_here, scenes, tmp_path):
    """Registers and a layer scale, which the detector's weights alone do not tell."""
    vit = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=64, depth=4, num_heads=1, init_values=0.1,
        num_classes=0, reg_tokens=2,
    )  # fmt: skip
    torch.save(vit.state_dict(), tmp_path / "foreign.pth")
    data = ("--data_path", scenes)
    trained = run_main_here(
        MAIN, *data, "--finetune", tmp_path / "foreign.pth", "--input_size", 32, *SHORT
    )
    assert trained.status == 0, trained.err
    saved = trained.folder / "checkpoint-last.pth"
    again = run_main_here(MAIN, *data, "--eval", "--resume", saved)
    assert again.status == 0, again.err
    assert again.results()["box_AP"] == pytest.approx(trained.results()["test_box_AP"], abs=0.5)


def test_images_that_cannot_be_read_are_counted_and_have_no_predictions(
    run_main_here, detected, tmp_path
):
    data = shutil.copytree(detected.data, tmp_path / "data")
    (data / "images" / "validation" / "2.png").write_bytes(b"no image")
    saved = detected.folder / "checkpoint-last.pth"
    flags = (MAIN, "--eval", "--resume", saved, "--data_path", data)
    outcome = run_main_here(*flags)
    assert outcome.status == 0 and "unreadable image 1" in outcome.out, outcome.err
    kept = json.loads((outcome.folder / "predictions.json").read_text())
    found = {entry["image_id"] for entry in kept}
    assert 2 not in found and {1, 3} <= found
    outcome = run_main_here(*flags, "--max_bad_images", 0)
    assert outcome.status == 4 and "--max_bad_images" in outcome.err


def test_bad_flags_are_refused_in_one_line(refuses, scenes, tmp_path, checkpoint):
    refuses(MAIN, names=("--data_path", "tools.scenes"))
    data = ("--data_path", scenes)
    refuses(MAIN, *data, "--finetune", tmp_path / "absent.pth", names=("absent.pth",))
    refuses(MAIN, *data, *MODEL, "--input_size", 40, names=("--input_size 40 40", "16 pixels"))
    refuses(MAIN, *data, *MODEL, "--batch_size", 21, names=("--batch_size 21",))
    refuses(MAIN, *data, "--eval", names=("--eval", "--resume"))
    refuses(MAIN, *data, "--scales", 2, 0.5, names=("--scales 2 0.5",))
    refuses(MAIN, "--predict", scenes, "--resume", "auto", names=("--predict", "--resume"))
    refuses(MAIN, *data, "--val_json", "absent.json", names=("--val_json", "absent.json"))
    refuses(MAIN, "--eval", *data, "--resume", checkpoint, names=("--resume", "main_detection"))


def test_validation_of_other_categories_is_refused(refuses, detected, tmp_path):
    squares(tmp_path, count=(2, 2), category_ids=(3, 9))
    other = ("--val_json", tmp_path / "instances_validation.json")
    images = ("--val_images", tmp_path / "images" / "validation")
    refuses(MAIN, "--data_path", detected.data, *MODEL, *other, *images,
            names=("category 9, 'green'", "training has none"))  # fmt: skip
    saved = detected.folder / "checkpoint-last.pth"
    refuses(MAIN, "--eval", "--resume", saved, "--data_path", tmp_path, names=("category 9",))


def test_going_on_with_other_classes_names_the_flags_that_there_are(refuses, detected, tmp_path):
    data = shutil.copytree(detected.data, tmp_path / "data")
    for file in data.glob("instances_*.json"):
        file.write_text(file.read_text().replace('"green"', '"blue"'))
    saved = detected.folder / "checkpoint-last.pth"
    line = refuses(MAIN, "--data_path", data, *MODEL, *SHORT, "--eval_every", ROUND,
                   "--resume", saved,
                   names=("classes ", "restore them"))  # fmt: skip
    assert "--classes" not in line
    line = refuses(MAIN, "--data_path", detected.data, *MODEL, *SHORT, "--eval_every", ROUND,
                   "--ema_decay", 0.8, "--input_size", 64, "--resume", saved,
                   names=("another run: weights", "--input_size 64", "restore"))  # fmt: skip


def test_boxes_without_masks_and_large_ids_train_and_evaluate(run_main_here, tmp_path):
    data = squares(tmp_path / "boxes", count=(6, 4), category_ids=(3, 2**70))
    for file in data.glob("instances_*.json"):
        content = json.loads(file.read_text())
        for about in content["annotations"]:
            del about["segmentation"]
            about.update(image_id=about["image_id"] + 2**65, area=None, iscrowd=None)
        for image in content["images"]:
            image["id"] += 2**65
        file.write_text(json.dumps(content), encoding="utf-8-sig")
    outcome = run_main_here(MAIN, "--data_path", data, *MODEL, *SHORT)
    assert outcome.status == 0, outcome.err
    (line,) = outcome.log()
    assert line["train_mask"] == 0 < line["train_box_reg"]
    assert line["test_mask_AP"] is None and line["test_box_AP"] >= 0
    lines = [text for text in outcome.out.splitlines() if "without the mask loss" in text]
    assert len(lines) == 2  # once for each file
    saved = outcome.folder / "checkpoint-last.pth"
    again = run_main_here(MAIN, "--eval", "--resume", saved, "--data_path", data)
    assert again.status == 0, again.err
    kept = json.loads((again.folder / "predictions.json").read_text())
    assert {entry["category_id"] for entry in kept} <= {3, 2**70}
    assert all(entry["image_id"] >= 2**65 for entry in kept)


def test_coordinates_that_are_shares_are_refused_in_training_and_evaluation(
    refuses, detected, tmp_path
):
    data = shutil.copytree(detected.data, tmp_path / "data")
    for file in data.glob("instances_*.json"):
        content = json.loads(file.read_text())
        for about in content["annotations"]:
            about["bbox"] = [value / 32 for value in about["bbox"]]
            about["segmentation"] = [[v / 32 for v in p] for p in about["segmentation"]]
        file.write_text(json.dumps(content))
    saved = detected.folder / "checkpoint-last.pth"
    for flags in ((*MODEL, *SHORT), ("--eval", "--resume", saved)):
        refuses(MAIN, "--data_path", data, *flags, names=("covers a pixel", "multiply"))


def test_without_the_evaluator_one_line_says_what_to_install(refuses, scenes, monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    refuses(MAIN, "--data_path", scenes, names=("pip install faster-coco-eval",))


def best_masks(data) -> float:
    """Mask AP of the truth itself, seen through Mask R-CNN's 28 x 28 pixels in each box."""
    flags = dict(data_path=str(data), val_json="instances_training.json",
                 val_images=str(data / "images" / "training"), in_chans=3)  # fmt: skip
    known, _ = load_coco(argparse.Namespace(**flags), "val")
    truth, predictions = json.loads((data / flags["val_json"]).read_text()), []
    ids = {image["file_name"]: image["id"] for image in truth["images"]}
    for index, name in enumerate(sorted(ids)):
        _, (_, objects) = known.read(index)
        target = View((64, 64), (64, 64), 0, 0, (64, 64), flipped=False).target(objects)
        boxes = target["boxes"]
        masks = mask_targets(target["masks"], boxes, torch.arange(len(boxes)), 28)[:, None]
        found = dict(boxes=boxes, labels=target["labels"], scores=torch.ones(len(boxes)),
                     masks=masks)  # fmt: skip
        entries = on_original(found, (64, 64), (64, 64))
        predictions += as_coco(entries, ids[name], [c["id"] for c in truth["categories"]])
    return average_precisions(truth, predictions)["mask_AP"]


@pytest.mark.slow
def test_four_scenes_are_learnt_by_heart(run_main_here, tmp_path):
    """Boxes perfectly; masks as well as 28 x 28 pixels can tell these thin strokes."""
    flags = "--images 4 --val_images 1 --size 64 --num_workers 0".split()
    scene_maker.main(scene_maker.parse_args([str(tmp_path / "four"), *flags]))
    outcome = run_main_here(
        MAIN, "--data_path", tmp_path / "four", "--val_json", "instances_training.json",
        "--val_images", "images/training", "--model", "vit_tiny_patch4", "--input_size", 64,
        "--iterations", 400, "--warmup_iterations", 20, "--lr", 1e-3, "--layer_decay", 1,
        "--drop_path", 0, "--lr_schedule", "cosine", "--eval_every", 400, "--batch_size", 4,
        "--scales", 1, 1, "--no-flip",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    assert outcome.results()["test_box_AP"] > 90
    assert outcome.results()["test_mask_AP"] > 0.9 * best_masks(tmp_path / "four") > 20


@pytest.mark.parametrize(
    ("flags", "milestones"),
    [((), [163889, 177546]), (("--iterations", "20000"), [17777, 19259]),
     (("--iterations", "20000", "--lr_milestones", "5000"), [5000])],
)  # fmt: skip
def test_the_rate_falls_in_shorter_runs_too(flags, milestones):
    args = main_detection.parse_args(["--data_path", ".", *flags])
    assert args.lr_milestones == milestones
