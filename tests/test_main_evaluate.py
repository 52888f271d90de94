"""All the frozen evaluations from the command line."""

import json
import os
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from pages import check_page
from PIL import Image

from encoders.frozen import CLASS_TOKEN, PATCH_MEAN, FrozenEncoder
from models_mimae import orthogonal_permutations
from util.evaluation.frozen import features

IDS = torch.zeros(3, 1, 1, dtype=torch.long)
QUICK = ("--only", "knn", "logistic", "--train_fraction", 0.3)


@pytest.fixture(scope="session")
def evaluated(run_main_script, checkpoint, tmp_path_factory):
    return run_main_script(
        "main_evaluate", checkpoint, "untrained", "pixels", "--names", "MI-MAE", "none", "raw",
        "--train_fraction", 0.1, "--draws", 2, "--few", 1, 4, "--few_shares", 0.2,
        folder=tmp_path_factory.mktemp("evaluate"),
    )  # fmt: skip


def test_the_table_has_every_evaluation_with_its_protocol(evaluated):
    text = (evaluated.folder / "evaluation.md").read_text()
    assert text.strip() in evaluated.out
    assert "|  | MI-MAE | none | raw |" in text
    for row in ("k-NN, class token", "logistic, both", "logistic, chosen", "RankMe (monitor)",
                "few labels, 4 per class", "InfoNCE accuracy of masks (monitor)"):  # fmt: skip
        assert f"| {row} |" in text
    assert "held out" in text and "Label-free numbers are monitors" in text
    assert "Against MI-MAE, in points" in text
    found = json.loads((evaluated.folder / "evaluation.json").read_text())
    assert found["test_images"] == 382
    one = found["encoders"]["MI-MAE"]
    assert len(one["blocks"]["class token"]) == 6
    assert len(one["few_labels"]["4 per class"]) == 2
    assert len(one["grids"]["k-NN, class token"]) == 18
    pair = found["encoders"]["none"]["against MI-MAE"]["logistic, patch mean"]
    assert pair["low"] < pair["difference"] < pair["high"] and 0 <= pair["mcnemar_p"] <= 1
    assert evaluated.results()["raw, logistic, chosen"] > 80
    assert "Logistic regression" in check_page(evaluated.folder / "report.html").text
    for name in ("blocks.png", "few_labels.png"):
        assert Image.open(evaluated.folder / name).size == (640, 420)


def test_the_same_command_gives_the_same_bytes_and_computes_nothing_twice(
    evaluated, run_main_here, checkpoint, tmp_path
):
    shutil.copytree(evaluated.folder / "features", tmp_path / "again" / "features")
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "again").rglob("*.npy")}
    outcome = run_main_here(
        "main_evaluate", checkpoint, "untrained", "pixels", "--names", "MI-MAE", "none", "raw",
        "--train_fraction", 0.1, "--draws", 2, "--few", 1, 4, "--few_shares", 0.2,
        folder=tmp_path / "again",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "again").rglob("*.npy")} == before
    for name in ("evaluation.md", "evaluation.json"):
        mine, first = ((f / name).read_bytes() for f in (outcome.folder, evaluated.folder))
        assert mine == first


def test_two_processes_leave_the_same_features(evaluated, checkpoint, tmp_path):
    words = [str(checkpoint), "--names", "MI-MAE", "--only", "blocks", "--train_fraction", "0.1"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["main_evaluate.py", *words, "--device", "cpu", "--output_dir", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    for part in ("MI-MAE-train", "MI-MAE-val"):
        for file in (evaluated.folder / "features" / part).iterdir():
            assert file.read_bytes() == (tmp_path / "features" / part / file.name).read_bytes()


def test_features_are_of_their_mean_and_their_encoder_wherever_it_stands(
    run_main_here, checkpoint, tmp_path
):
    """Baselines are the first checkpoint's model, also before it; another --mean is another's."""
    words = ("--only", "knn", "--train_fraction", 0.1)
    before = run_main_here("main_evaluate", "untrained", checkpoint, *words, folder=tmp_path / "a")
    after = run_main_here("main_evaluate", checkpoint, "untrained", *words, folder=tmp_path / "b")
    assert before.status == after.status == 0, before.err + after.err
    first, last = before.results(), after.results()
    scores = [key for key in first if "k-NN" in key]
    assert scores and all(first[key] == last[key] for key in scores)
    mean = ("--mean", 0.9, "--std", 0.1)
    other = run_main_here("main_evaluate", checkpoint, *words, *mean, folder=tmp_path / "b")
    assert other.status == 2 and "holds other features (mean, std differ)" in other.err


def test_other_test_sets_and_any_of_labels(run_main_here, image_tree, tmp_path):
    shifted = tmp_path / "shifted"
    for name in ("a", "b"):
        (shifted / name).mkdir(parents=True)
        for i in range(3):
            pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(shifted / name / f"{i}.png")
    names = sorted(p.name for p in (image_tree / "val").rglob("*.png"))
    assert names == ["a_0.png", "a_1.png", "b_0.png", "b_1.png"]
    data = ("--data_path", image_tree, "--input_size", 16, "--num_workers", 0)
    outcome = run_main_here(
        "main_evaluate", "pixels", *data, "--only", "logistic", "--test", f"V2={shifted}"
    )
    assert outcome.status == 0, outcome.err
    assert "| logistic, pixels, V2 |" in outcome.out


def test_what_cannot_be_used_is_one_line(refuses, evaluated, checkpoint, image_tree, tmp_path):
    refuses("main_evaluate", "absent.pth", names=("absent.pth",))
    refuses("main_evaluate", "pixels", "pixels", names=("--names",))
    refuses("main_evaluate", "pixels", "--batch_size", 100, names=("--batch_size 100",))
    refuses("main_evaluate", "pixels", "--few", 500, "--only", "few", names=("--few", "class 0"))
    refuses("main_evaluate", "pixels", "--test", "V2", names=("--test V2",))
    refuses(
        "main_evaluate", "pixels", "--only", "knn", "--block_images", 9, names=("--block_images",)
    )
    (tmp_path / "strange" / "zebra").mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(tmp_path / "strange" / "zebra" / "1.png")
    refuses(
        "main_evaluate", "pixels", "--data_path", image_tree, "--input_size", 16, "--num_workers",
        0, "--test", f"S={tmp_path}/strange", names=("--test", "zebra"),
    )  # fmt: skip
    features = evaluated.folder / "features"
    refuses(
        "main_evaluate", "untrained", "--names", "MI-MAE", "--train_fraction", 0.1, "--features",
        features, "--seed", 5, names=("--features", "other features", "encoder"),
    )  # fmt: skip


def test_a_folder_of_8_and_16_bits_is_scored_as_one_of_8(run_main_here, checkpoint, tmp_path):
    for name in ("plain", "mixed"):
        for split, count in (("train", 12), ("val", 8)):
            for i in range(2 * count):
                draw = np.random.default_rng(i + count)
                pixels = draw.integers(0, 256, (8, 8), dtype=np.uint8) // (1 + i % 2)
                path = tmp_path / name / split / "ab"[i % 2] / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                deep = name == "mixed" and i % 4 < 2
                Image.fromarray(pixels.astype(np.uint16) * 257 if deep else pixels).save(path)
    found = []
    for name in ("plain", "mixed"):
        outcome = run_main_here(
            "main_evaluate", checkpoint, "--dataset", "image_folder", "--data_path",
            tmp_path / name, "--names", "x", "--only", "label_free", "--num_workers", 0,
        )  # fmt: skip
        assert outcome.status == 0, outcome.err
        found.append(json.loads((outcome.folder / "evaluation.json").read_text())["encoders"]["x"])
    plain, mixed = (one["monitors"] for one in found)
    assert mixed == pytest.approx(plain, rel=0.01)  # 8 bits round what is resized


def test_an_evaluation_in_the_same_folder_sets_the_first_aside(run_main_here, tmp_path):
    few = ("--only", "few", "--few", 1, 2, "--draws", 2, "--train_fraction", 0.1)
    for words in (few, ("--only", "knn", "--train_fraction", 0.1)):
        outcome = run_main_here("main_evaluate", "pixels", *words, folder=tmp_path / "out")
        assert outcome.status == 0, outcome.err
    aside = tmp_path / "out" / "previous-1"
    names = {path.name for path in aside.iterdir()}
    assert {"results.json", "evaluation.md", "evaluation.json", "few_labels.png"} <= names
    assert "few labels" in (aside / "evaluation.md").read_text()
    assert not (tmp_path / "out" / "few_labels.png").exists()
    assert not (tmp_path / "out" / "previous-2").exists()


def test_weights_that_are_not_finite_are_refused(refuses, checkpoint, tmp_path):
    saved = torch.load(checkpoint, weights_only=True)
    saved["model"]["blocks.0.attn.qkv.weight"][0] = torch.nan
    torch.save(saved, tmp_path / "bad.pth")
    says = ("bad.pth", "not finite", "blocks.0.attn.qkv.weight")
    refuses("main_evaluate", tmp_path / "bad.pth", "--only", "label_free", names=says)
    refuses("main_linprobe", "--finetune", tmp_path / "bad.pth", "--knn", names=says)


def test_features_that_the_disk_cannot_hold_are_refused_at_once(run_main_here, monkeypatch):
    free = types.SimpleNamespace(free=10_000)
    monkeypatch.setattr(features.shutil, "disk_usage", lambda folder: free)
    outcome = run_main_here("main_evaluate", "pixels", "--only", "knn")
    assert outcome.status == 1 and outcome.err.count("\n") == 1, outcome.err
    assert "of 0.0 GB that are free" in outcome.err and "--features" in outcome.err
    assert not list(outcome.folder.rglob("*.npy"))


# ------------------------------------------------------------------------------------ the encoder


@pytest.mark.parametrize("name", ["vit_tiny_patch2", "swin_mini_patch2"])
def test_blocks_and_summaries_are_the_encoders_own(name):
    from encoders.load import build_encoder

    size = 8 if name.startswith("vit") else 16
    encoder = build_encoder(name, 0, size, 1, global_pool=False).eval()
    model = FrozenEncoder(encoder, torch.nn.Identity())
    imgs = torch.randn(3, 1, size, size)
    found = model(imgs)
    tokens = encoder.forward_features(imgs).detach()
    if name.startswith("vit"):
        assert model.kinds == (CLASS_TOKEN, PATCH_MEAN) and model.depth == 6
        torch.testing.assert_close(found[CLASS_TOKEN], tokens[:, 0])
        torch.testing.assert_close(found[PATCH_MEAN], tokens[:, 1:].mean(1))
        last = torch.cat([found[f"block 5 {CLASS_TOKEN}"][:, None]], 1)
        torch.testing.assert_close(encoder.norm(last)[:, 0], tokens[:, 0])
    else:
        assert model.kinds == (PATCH_MEAN,) and model.masked_views(imgs, IDS) is None
        torch.testing.assert_close(found[PATCH_MEAN], tokens.flatten(1, 2).mean(1))
    assert len([key for key in found if key.startswith("block")]) == model.depth * len(model.kinds)


def test_masked_views_are_pre_trainings_latents(checkpoint):
    """The class token of each mask's visible patches, as the pre-training model has it."""
    import main_linprobe
    import main_pretrain

    args = main_linprobe.parse_args(["--finetune", str(checkpoint)])
    encoder, _ = main_linprobe.build_frozen(args)
    model = main_pretrain.build_model(main_pretrain.parse_args([]))
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
    imgs, noise = torch.randn(3, 1, 8, 8), torch.rand(3, 16)
    ids = orthogonal_permutations(noise, 4, 4)[:, :, :4]
    views = FrozenEncoder(encoder.vit, torch.nn.Identity()).masked_views(imgs, ids)
    _, _, latents = model.eval().mi_rows(imgs, noise)
    torch.testing.assert_close(views.flatten(0, 1), latents, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("part", ["few", "knn"])
def test_a_class_of_one_image_is_named_before_the_evaluation_begins(refuses, tmp_path, part):
    for split in ("train", "val"):
        for name, count in (("cat", 3 if part == "few" else 1), ("dog", 1)):
            for i in range(count):
                path = tmp_path / "data" / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(path)
    names = ("class dog has 1 image, fewer than 2", "--few") if part == "few" else ("to hold out",)
    refuses(
        "main_evaluate", "pixels", "--data_path", tmp_path / "data", "--input_size", 8,
        "--only", part, *(("--few", 1, 2) if part == "few" else ()),
        "--features", tmp_path / "features", names=names,
    )  # fmt: skip
    assert not (tmp_path / "features").exists()
