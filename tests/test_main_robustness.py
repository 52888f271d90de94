"""Robustness from the command line: digits corrupted on the fly, and the published layouts."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mains import run_in_process
from pages import check_page
from PIL import Image
from ranks import in_ranks

import main_robustness
from encoders.load import build_encoder
from tools import corrupt as corrupt_folder
from util.data import imagenet, robustness_sets
from util.data.corruption.corruptions import CORRUPTIONS, SEVERITIES, Corruption
from util.data.datasets import ArrayImages, Subset
from util.data.imagenet import TEST_SETS, synsets
from util.entry import run_main
from util.evaluation.robustness import report as robustness_report
from util.evaluation.robustness.errors import ALEXNET

QUICK = ("--max_images", 64, "--corruptions", "contrast", "fog", "--severities", 1, 3, 5)
CLASSES = list(synsets())
IN_A, IN_BOTH = (synsets(TEST_SETS[f"ImageNet-{letter}"].synsets) for letter in "AR")
OUTSIDE = next(c for c in CLASSES if c not in IN_A and c not in IN_BOTH)


@pytest.fixture(scope="session")
def compared(run_main_script, finetuned, checkpoint, tmp_path_factory):
    """The fine-tuned classifier beside a copy whose head is noise."""
    folder = tmp_path_factory.mktemp("robustness")
    saved = torch.load(finetuned.folder / "checkpoint-last.pth", weights_only=True)
    saved["model"]["head.weight"] = torch.randn_like(saved["model"]["head.weight"])
    torch.save(saved, folder / "noise.pth")
    outcome = run_main_script(
        "main_robustness", finetuned.folder / "checkpoint-last.pth", folder / "noise.pth",
        "--names", "tuned", "noise", *QUICK, folder=folder / "out",
    )  # fmt: skip
    return outcome, folder / "noise.pth"


def test_digits_corrupted_on_the_fly(compared, finetuned):
    outcome, _ = compared
    text = (outcome.folder / "robustness.md").read_text()
    assert text.strip() in outcome.out
    assert "|  | tuned | noise |" in text and "digits (64 images)" in text
    assert "Against tuned" in text and "Error of noise by severity" in text
    assert "made at 8 x 8 pixels, seed 0" in text and "-C-like" in text
    assert "no mCE: gaussian_noise, " in text
    assert "| mCE" not in text
    saved = json.loads((outcome.folder / "robustness.json").read_text())
    errors = saved["classifiers"]["tuned"]["errors"]
    assert set(errors) == {"contrast", "fog"} and set(errors["fog"]) == {"1", "2", "3", "4", "5"}
    assert errors["fog"]["2"] is None and 0 <= errors["fog"]["3"] <= 100
    pair = saved["classifiers"]["noise"]["against tuned"]["digits"]
    assert pair["low"] <= pair["difference"] <= pair["high"]
    assert Image.open(outcome.folder / "severity.png").size == (640, 420)
    assert outcome.results()["tuned, digits"] == saved["classifiers"]["tuned"]["accuracy"]["digits"]
    assert "McNemar" in check_page(outcome.folder / "report.html").text


def test_it_goes_on_where_it_stopped_and_gives_the_same_bytes(
    compared, run_main_here, finetuned, tmp_path
):
    outcome, noise = compared
    shutil.copytree(outcome.folder / "predictions", tmp_path / "out" / "predictions")
    lost = tmp_path / "out" / "predictions" / "noise" / "fog 3"
    shutil.rmtree(lost)
    stamp = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.npy")}
    again = run_main_here(
        "main_robustness", finetuned.folder / "checkpoint-last.pth", noise, "--names", "tuned",
        "noise", *QUICK, folder=tmp_path / "out",
    )  # fmt: skip
    assert again.status == 0, again.err
    assert all(p.stat().st_mtime_ns == time for p, time in stamp.items()) and lost.exists()
    for name in ("robustness.md", "severity.png"):
        assert (again.folder / name).read_bytes() == (outcome.folder / name).read_bytes()


def test_predictions_of_another_view_are_not_taken(compared, refuses, finetuned):
    outcome, _ = compared
    flags = (finetuned.folder / "checkpoint-last.pth", "--names", "tuned", *QUICK, "--predictions",
             outcome.folder / "predictions")  # fmt: skip
    for change, named in ((("--crop_share", 0.8), "view"), (("--seed", 1), "corruption")):
        refuses("main_robustness", *flags, *change, names=("other predictions", named))


def test_all_clean_images_are_those_of_fine_tuning(run_main_here, finetuned):
    outcome = run_main_here(
        "main_robustness", finetuned.folder / "checkpoint-last.pth", "--no-corrupt"
    )
    assert outcome.status == 0, outcome.err
    accuracy = next(v for k, v in outcome.results().items() if k.endswith(", digits"))
    assert accuracy == pytest.approx(finetuned.log()[-1]["test_acc1"])


def test_a_baselines_relative_ce_to_itself_is_100(run_main_here, finetuned):
    saved = finetuned.folder / "checkpoint-last.pth"
    outcome = run_main_here("main_robustness", saved, "--baseline", saved, "--max_images", 16)
    assert outcome.status == 0, outcome.err
    found = [v for k, v in outcome.results().items() if "mean relative CE" in k]
    assert found == [pytest.approx(100)]


def on_two_ranks(rank: int, saved: str, folder: str) -> str:
    words = (saved, "--corruptions", "contrast", "--severities", 2, "--max_images", 64)
    return run_in_process("main_robustness", *words, "--names", "T", folder=Path(folder)).err


def test_the_number_of_processes_changes_nothing(finetuned, tmp_path):
    saved = str(finetuned.folder / "checkpoint-last.pth")
    texts = []
    for world in (1, 2):
        folder = tmp_path / str(world)
        assert in_ranks(on_two_ranks, world, tmp_path, saved, str(folder)) == [""] * world
        texts.append((folder / "robustness.md").read_text())
    assert texts[0] == texts[1]


# ---------------------------------------------------------------------------- the published sets


def save(path, rng, side):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)


@pytest.fixture(scope="session")
def trees(tmp_path_factory):
    """A few images of two classes in each set's layout, -C of all 15 x 5; and a classifier of the
    1000 whose head says OUTSIDE, then the first class of -A."""
    root, rng = tmp_path_factory.mktemp("imagenet"), np.random.default_rng(0)
    for name, classes in (("val", (OUTSIDE, IN_A[0])), ("a", IN_A[:2]), ("r", IN_BOTH[:2])):
        for place, wnid in enumerate(classes):
            save(root / name / wnid / f"ILSVRC2012_val_0000000{place + 1}.JPEG", rng, 40)
    for place in (10, CLASSES.index(OUTSIDE)):
        save(root / "v2" / str(place) / "x.jpeg", rng, 40)
    for corruption in (*CORRUPTIONS, "spatter"):
        for severity in SEVERITIES:
            for wnid in (OUTSIDE, IN_A[0]):
                save(root / "c" / corruption / str(severity) / wnid / "1.JPEG", rng, 224)
    model = build_encoder("vit_tiny_patch4", 1000, 16)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.zero_()
        model.head.bias[CLASSES.index(OUTSIDE)] = 2
        model.head.bias[CLASSES.index(IN_A[0])] = 1
    config = dict(
        model="vit_tiny_patch4", input_size=[16, 16], in_chans=3, mean=[0.5], std=[0.5],
        dataset="image_folder",
    )  # fmt: skip
    torch.save({"model": model.state_dict(), "config": config}, root / "biased.pth")
    return root


def test_the_published_sets(run_main_here, trees, monkeypatch):
    """-A and -R are decided among their 200 classes; -C is taken as stored; mCE is of 15 x 5."""
    two = dataclasses.replace(imagenet.CORRUPTED, num_images=2)
    monkeypatch.setattr(robustness_report, "CORRUPTED", two)
    outcome = run_main_here(
        "main_robustness", trees / "biased.pth", "--names", "B", "--partial", "--imagenet",
        trees / "val", "--imagenet_a", trees / "a", "--imagenet_r", trees / "r", "--imagenet_v2",
        trees / "v2", "--imagenet_c", trees / "c", "--extra", "spatter", "--real_labels",
        "--num_workers", 0,
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    found = outcome.results()
    assert found["B, ImageNet"] == found["B, ImageNet-V2"] == 50  # OUTSIDE is what it says
    assert found["B, ImageNet-A"] == 50  # and where that is none of the classes, IN_A[0]
    expected = 100 * np.mean([50 / error for error in ALEXNET.values()])
    assert found["B, mCE"] == pytest.approx(expected)
    assert "B, ImageNet-ReaL" in found
    text = (outcome.folder / "robustness.md").read_text()
    assert "| spatter (extra) | 50.00 |" in text
    assert "as stored, 224 x 224 pixels, resized (bicubic) to 16 x 16" in text
    assert "ImageNet-A's 200 and of ImageNet-R's 200" in text and "cover 18 x 18 pixels" in text


def test_what_is_missing_is_an_error_or_is_said(run_main_here, refuses, trees, tmp_path):
    shutil.copytree(trees / "c", tmp_path / "c")
    shutil.rmtree(tmp_path / "c" / "fog" / "3")
    flags = ("main_robustness", trees / "biased.pth", "--num_workers", 0)
    refuses(*flags, "--imagenet_c", tmp_path / "c", names=("--imagenet_c", "1 of 75", "fog/3"))
    refuses(*flags, "--imagenet_c", trees / "c", names=("no images of 998", "--partial"))
    few = ("--corruptions", "fog", "snow", "--partial", "--imagenet_c")
    outcome = run_main_here(*flags, *few, tmp_path / "c")
    assert outcome.status == 0, outcome.err
    assert "brightness, contrast" in outcome.out and "fog 3," in outcome.out
    assert "| mCE" not in outcome.out
    (tmp_path / "c" / "snow" / "1" / OUTSIDE / "1.JPEG").rename(
        tmp_path / "c" / "snow" / "1" / OUTSIDE / "2.JPEG"
    )
    refuses(*flags, *few, tmp_path / "c", names=("snow/1 has other images than fog/1",))


def lacks_something(rank: int, folder: str, flags: list[str]) -> list:
    own = Path(folder) / ("whole", "other")[rank]
    words = [word.replace("OWN", str(own)) for word in flags]
    outcome = run_in_process("main_robustness", *words, "--num_workers", 0, folder=own / "out")
    return [outcome.status, outcome.err.removeprefix(f"[rank {rank}] ")]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("OWN/biased.pth", "--imagenet_a", "BOTH/a"),
         "rank 1: CHECKPOINT OWN/biased.pth is no checkpoint"),
        (("BOTH/biased.pth", "--imagenet_a", "OWN/a"), "rank 1: --imagenet_a OWN/a is not a"),
        (("BOTH/biased.pth", "--imagenet", "BOTH/val", "--real_labels", "OWN/real.json"),
         "rank 1: --real_labels OWN/real.json"),
        (("BOTH/biased.pth", "--data_path", "OWN"), "rank 1: --data_path OWN/val is not a folder"),
        (("BOTH/biased.pth", "--imagenet_c", "OWN/c", "--corruptions", "snow"),
         "rank 1: --imagenet_c OWN/c lacks 5 of 5 folders"),
        (("BOTH/biased.pth", "--imagenet_c", "OWN/c", "--corruptions", "fog"),
         "different test sets: rank 1 without fog 3"),
        (("BOTH/biased.pth", "--imagenet_r", "OWN/r"),
         "different ImageNet-R images: 2 images on rank 0, 1 images on rank 1"),
    ],
    ids=lambda words: words[1][2:] + words[-1][-4:] if isinstance(words, tuple) else "",
)  # fmt: skip
def test_a_rank_that_lacks_something_ends_all_with_one_line(trees, tmp_path, flags, says):
    """OWN is a folder that each rank has for itself, rank 1 little of it."""
    whole, other = tmp_path / "whole", tmp_path / "other"
    shutil.copytree(trees, whole)
    (whole / "real.json").write_text(json.dumps([[1]] * 50_000))
    for part in ("r", "c/fog"):
        shutil.copytree(trees / part, other / part)
    shutil.rmtree(other / "c" / "fog" / "3")
    shutil.rmtree(other / "r" / IN_BOTH[0])
    flags = [word.replace("BOTH", str(trees)) for word in flags]
    flags += ["--partial"] if "--data_path" not in flags else []
    answers = in_ranks(lacks_something, 2, tmp_path, str(tmp_path), flags)
    assert [status for status, _ in answers] == [2, 2], answers
    assert answers[0] == answers[1] and answers[0][1].count("\n") == 1, answers
    assert says.replace("OWN", str(other)) in answers[0][1]


def test_images_of_another_size_are_refused(refuses, trees):
    flags = ("main_robustness", trees / "biased.pth", "--num_workers", 0, "--partial")
    refuses(*flags, "--imagenet_a", trees / "a", "--stored", "ImageNet-A",
            names=("--imagenet_a", "40 x 40 pixels", "224 x 224", "--stored"))  # fmt: skip


def test_what_does_not_fit_is_found_before_anything_is_evaluated(
    run_main_here, refuses, trees, finetuned, tmp_path
):
    """A second classifier of other classes, by its file; images of another size in a later set."""
    saved = finetuned.folder / "checkpoint-last.pth"
    state = torch.load(saved, weights_only=True)
    state["config"]["classes"] = [f"class {i}" for i in range(10)]
    torch.save(state, tmp_path / "other.pth")
    outcome = run_main_here("main_robustness", saved, tmp_path / "other.pth", "--max_images", 16)
    assert outcome.status == 2 and outcome.err.count("\n") == 1, outcome.err
    assert f"(for {tmp_path}/other.pth)" in outcome.err and "class 0, class 1" in outcome.err
    assert not list(outcome.folder.rglob("*.npy"))
    outcome = run_main_here(
        "main_robustness", trees / "biased.pth", "--num_workers", 0, "--partial", "--imagenet",
        trees / "val", "--imagenet_a", trees / "a", "--stored", "ImageNet-A",
    )  # fmt: skip
    assert outcome.status == 2 and "40 x 40 pixels" in outcome.err
    assert not list(outcome.folder.rglob("*.npy"))


def test_a_folder_that_was_made_is_read_and_is_not_imagenet_c(run_main_here, image_tree, tmp_path):
    words = [str(image_tree / "val"), str(tmp_path / "c"), "--keep_size", "--num_workers", "0"]
    words += ["--corruptions", "contrast"]
    run_main(corrupt_folder.main, lambda: corrupt_folder.parse_args(words))
    data = ("--data_path", image_tree, "--input_size", 16, "--num_workers", 0)
    short = ("--model", "vit_tiny_patch4", "--batch_size", 4, "--epochs", 1)
    tuned = run_main_here("main_finetune", *data, *short)
    saved = tuned.folder / "checkpoint-last.pth"
    outcome = run_main_here(
        "main_robustness", saved, "--data_path", image_tree, "--imagenet_c", tmp_path / "c",
        "--corruptions", "contrast", "--num_workers", 0, "--names", "T",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    assert "-C-like" in outcome.out and "| contrast |" in outcome.out
    assert outcome.results()["T, image_folder"] == pytest.approx(tuned.log()[-1]["test_acc1"])


def test_no_training_image_is_needed(run_main_here, image_tree, tmp_path):
    """And the classes are numbered as in training, whichever the test set has."""
    shutil.copytree(image_tree, tmp_path / "both")
    data = ("--data_path", tmp_path / "both", "--input_size", 16, "--num_workers", 0)
    short = ("--model", "vit_tiny_patch4", "--batch_size", 4, "--epochs", 1)
    saved = run_main_here("main_finetune", *data, *short).folder / "checkpoint-last.pth"
    shutil.rmtree(tmp_path / "both" / "train")
    shutil.rmtree(tmp_path / "both" / "val" / "a")
    outcome = run_main_here("main_robustness", saved, *data, "--no-corrupt", "--names", "T")
    assert outcome.status == 0, outcome.err
    predicted = np.load(next(outcome.folder.glob("predictions/T/image_folder/targets-*.npy")))
    assert predicted.tolist() == [1, 1]


def test_a_classifier_of_imagenet_in_shards_meets_the_published_sets(
    run_main_here, trees, tmp_path
):
    saved = torch.load(trees / "biased.pth", weights_only=True)
    saved.setdefault("config", {})["dataset"] = "shards"
    torch.save(saved, tmp_path / "sharded.pth")
    outcome = run_main_here(
        "main_robustness", tmp_path / "sharded.pth", "--num_workers", 0, "--partial",
        "--imagenet_a", trees / "a",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err


def test_what_cannot_be_used_is_one_line(
    refuses, finetuned, checkpoint, trees, image_tree, tmp_path
):
    main, saved = "main_robustness", finetuned.folder / "checkpoint-last.pth"
    refuses(main, "absent.pth", names=("absent.pth",))
    refuses(main, checkpoint, names=("checkpoint-last.pth", "no classifier", "main_finetune"))
    refuses(main, saved, saved, names=("--names",))
    refuses(main, saved, "--batch_size", 100, names=("--batch_size 100",))
    refuses(main, saved, "--real_labels", names=("--real_labels", "--imagenet"))
    refuses(main, saved, "--extra", "spatter", names=("--extra", "--imagenet_c"))
    refuses(main, saved, "--corrupt", "--imagenet_c", trees / "c", names=("--corrupt",))
    refuses(
        main, saved, "--imagenet", trees / "val", names=("10 logits", "fine-tune it on ImageNet")
    )
    refuses(main, saved, "--imagenet", trees / "val", "--dataset", "digits", names=("--dataset",))
    refuses(main, saved, "--data_path", image_tree, names=("--dataset digits",))
    other = [str(n) for n in range(9, -1, -1)]
    (tmp_path / "classes.txt").write_text("\n".join(other))
    refuses(main, saved, "--class_list", tmp_path / "classes.txt", names=("--class_list", "order"))
    wide = torch.load(saved, weights_only=True)
    for key in ("head.weight", "head.bias"):
        wide["model"][key] = wide["model"][key].repeat(2, *[1] * (wide["model"][key].ndim - 1))
    torch.save(wide, tmp_path / "wide.pth")
    refuses(main, tmp_path / "wide.pth", names=("20 logits", "10 classes", "--class_list"))
    del wide["config"]["classes"]
    torch.save(wide, tmp_path / "wide.pth")
    refuses(main, tmp_path / "wide.pth", names=("20 logits", "--dataset digits"))


# -------------------------------------------------------------------------------------- the images


def test_corruptions_made_on_the_fly_follow_from_the_index():
    """Of index 3 always the same, whatever part is evaluated, and made once for small images."""
    arrays = ArrayImages(
        "x", np.random.default_rng(0).integers(0, 256, (5, 16, 16), "u1"), np.arange(5), 1
    )
    corruption = Corruption("gaussian_noise", 3, seed=4)
    made = robustness_sets.CorruptedImages(arrays, lambda image: image, corruption)
    expected = corruption(arrays.read(3), 3)
    assert torch.equal(made.read(3), expected) and made.read(3) is made.read(3)
    assert torch.equal(Subset(made, [3]).read(0), expected) and made.name(3) == "x[3]"
    assert not torch.equal(made.read(2), expected)


def test_imagenets_sets_bring_its_defaults():
    args = main_robustness.parse_args(["x.pth", "--imagenet", "val"])
    assert (args.dataset, args.input_size, args.in_chans) == ("image_folder", [224], 3)
    assert args.num_workers > 0 and args.mean[0] == pytest.approx(0.485)
