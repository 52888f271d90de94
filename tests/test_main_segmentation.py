"""Segmentation end to end on small scenes, what it writes, and what it refuses."""

import shutil
import types

import numpy as np
import pytest
import torch
from pages import check_page
from PIL import Image

import main_segmentation

MODEL = ("--model", "vit_tiny_patch4", "--input_size", 32, "--decoder_channels", 8)
SHORT = ("--batch_size", 4, "--iterations", 3, "--eval_every", 2, "--warmup_iterations", 0)
MAIN = "main_segmentation"


@pytest.fixture(scope="session")
def segmented(run_main_script, tmp_path_factory, scenes):
    """An encoder that learns which of two halves a pixel is in, from its colour."""
    data = halves(tmp_path_factory.mktemp("halves"), (48, 64))
    outcome = run_main_script(
        MAIN, "--data_path", data, *MODEL, "--batch_size", 4, "--iterations", 24, "--eval_every",
        8, "--warmup_iterations", 2, "--lr", 3e-3, "--layer_decay", 1, "--drop_path", 0,
        "--no-photometric", "--log_every", 4, folder=tmp_path_factory.mktemp("segmentation"),
    )  # fmt: skip
    outcome.data = data
    return outcome


def halves(root, size, mode="RGB", count=(8, 3)):
    """Pictures of two classes, bright and dark, that share a slanted border."""
    rng = np.random.default_rng(0)
    (root / "classes.txt").write_text("dark\nbright\n")
    for split, number in zip(("training", "validation"), count, strict=True):
        for folder in ("images", "annotations"):
            (root / folder / split).mkdir(parents=True)
        for i in range(number):
            rows, columns = np.mgrid[: size[0], : size[1]]
            is_bright = columns + rng.integers(-8, 8) > rows * rng.uniform(0.5, 1.5)
            pixels = (60 + 130 * is_bright + rng.integers(0, 40, size)).astype(np.uint8)
            Image.fromarray(pixels).convert(mode).save(root / "images" / split / f"{i}.png")
            values = Image.fromarray((1 + is_bright).astype(np.uint8))
            values.save(root / "annotations" / split / f"{i}.png")
    return root


def test_it_learns_and_logs_by_rounds(segmented):
    lines = segmented.log()
    assert [line["steps"] for line in lines] == [8, 16, 24]
    last = lines[-1]
    assert last["train_loss"] < lines[0]["train_loss"] and last["test_mIoU"] > 80
    assert last["max_mIoU"] == max(line["test_mIoU"] for line in lines)
    assert last["train_loss"] == pytest.approx(
        last["train_main"] + 0.4 * last["train_auxiliary"], rel=1e-5
    )
    results = segmented.results()
    assert check_page(segmented.folder / "report.html").num_charts > 5
    assert (segmented.folder / "inputs.png").exists()
    assert (results["IoU dark"] + results["IoU bright"]) / 2 == pytest.approx(last["test_mIoU"])
    assert "24 in all, 12.0 passes over the data; evaluated and saved every 8" in segmented.out


def test_eval_reproduces_what_training_logged(run_main_here, segmented):
    saved = segmented.folder / "checkpoint-last.pth"
    known = ("--eval", "--resume", saved, "--data_path", segmented.data)
    outcome = run_main_here(MAIN, *known)
    assert outcome.status == 0, outcome.err
    for name in ("mIoU", "mAcc", "aAcc"):
        assert outcome.results()[name] == pytest.approx(segmented.log()[-1][f"test_{name}"])
    assert outcome.results()["IoU dark"] == pytest.approx(segmented.results()["IoU dark"])
    views = run_main_here(MAIN, *known, "--test_scales", 0.75, 1, 1.25, "--test_flip")
    assert views.status == 0, views.err
    assert views.results()["mIoU"] > 70


def test_the_published_encoder_is_the_default_and_is_kept(run_main_here, refuses, segmented):
    """Position biases and a layer scale, which learn, are saved, and are not to be taken away."""
    path = segmented.folder / "checkpoint-last.pth"
    saved = torch.load(path, weights_only=True)
    tables = [v for k, v in saved["model"].items() if k.endswith("relative_position_bias_table")]
    scales = [v for k, v in saved["model"].items() if k.endswith("gamma")]
    assert len(tables) == 6 and len(scales) == 12 and all(table.any() for table in tables)
    assert all((scale - 1).abs().max() > 0 for scale in scales)
    known = (MAIN, "--eval", "--data_path", segmented.data, "--resume", path)
    refuses(*known, "--no-rel_pos_bias", names=("--rel_pos_bias", "has its own"))
    refuses(*known, "--test_mode", "whole", names=("--test_mode whole", "slide"))
    flags = ("--data_path", segmented.data, *SHORT, "--input_size", 32, "--decoder_channels", 8)
    refuses(MAIN, *flags, "--model", "swin_mini_patch2", "--layer_scale", 0.1,
            names=("--layer_scale", "swin_mini_patch2", "has none"))  # fmt: skip


def test_whole_images_and_no_position_biases_for_who_asks(run_main_here, segmented):
    plain = ("--no-rel_pos_bias", "--layer_scale", 0, "--test_mode", "whole")
    outcome = run_main_here(MAIN, "--data_path", segmented.data, *MODEL, *SHORT, *plain)
    assert outcome.status == 0, outcome.err
    path = outcome.folder / "checkpoint-last.pth"
    names = torch.load(path, weights_only=True)["model"].keys()
    assert not any("relative_position" in name or "gamma" in name for name in names)
    known = ("--eval", "--resume", path, "--data_path", segmented.data)
    for mode in ("whole", "slide"):
        again = run_main_here(MAIN, *known, "--test_mode", mode)
        assert again.status == 0, again.err
        assert again.results()["flags"]["rel_pos_bias"] is False
    assert "mIoU" in again.results()


def test_predictions_of_a_folder(run_main_here, segmented, tmp_path):
    """Images of any size and kind; maps as own data has them, and overlays; one unreadable."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    shutil.copy(segmented.data / "images" / "validation" / "0.png", folder / "deep" / "0.png")
    Image.new("L", (20, 90), 80).save(folder / "tall.jpg")
    (folder / "broken.png").write_bytes(b"no image")
    outcome = run_main_here(
        MAIN, "--predict", folder, "--resume", segmented.folder / "checkpoint-last.pth"
    )
    assert outcome.status == 0, outcome.err
    assert outcome.results()["unreadable"] == 1 and "broken.png" in outcome.out
    written = {p.relative_to(outcome.folder).as_posix() for p in outcome.folder.rglob("*.png")}
    assert written == {f"{k}/{n}.png" for k in ("labels", "overlays") for n in ("deep/0", "tall")}
    found = np.asarray(Image.open(outcome.folder / "labels" / "deep" / "0.png"))
    truth = np.asarray(Image.open(segmented.data / "annotations" / "validation" / "0.png"))
    assert found.shape == truth.shape and (found == truth).mean() > 0.85
    tall = Image.open(outcome.folder / "overlays" / "tall.png")
    assert tall.size[1] > 4 * 90 and tall.mode == "RGB"  # enlarged, with a legend


@pytest.mark.parametrize(
    "flags",
    [
        ("--input_size", 32, 48, "--accum_iter", 2, "--amp", "bf16"),
        ("--model", "swin_mini_patch2", "--input_size", 32),
        ("--grad_checkpointing", "--layer_scale", 0.5, "--auxiliary_weight", 0),
    ],
    ids=lambda flags: str(flags[0])[2:],
)
def test_other_options_run(run_main_here, scenes, flags):
    outcome = run_main_here(MAIN, "--data_path", scenes, *MODEL, *SHORT, *flags)
    assert outcome.status == 0, outcome.err
    assert [line["steps"] for line in outcome.log()] == [2, 3]


def test_a_pretrained_checkpoint_brings_its_model_and_channels_but_not_its_size(
    run_main_here, checkpoint, scenes
):
    outcome = run_main_here(
        MAIN, "--finetune", checkpoint, "--data_path", scenes, "--input_size", 16, "--stride", 16,
        "--decoder_channels", 8, *SHORT, "--iterations", 2,
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    assert "position embedding: 4 x 4 -> 8 x 8 patches" in outcome.out
    assert "blocks.*.attn.relative_position_bias_table, blocks.*.ls1.gamma" in outcome.out
    saved = torch.load(outcome.folder / "checkpoint-last.pth", weights_only=True)
    config = saved["config"]
    assert config["in_chans"] == 1 and config["model"] == "vit_tiny_patch2"
    assert config["classes"][3] == "three" and config["input_size"] == [16, 16]
    again = run_main_here(  # what was segmented is an encoder to begin with, too
        MAIN, "--finetune", outcome.folder / "checkpoint-last.pth", "--data_path", scenes,
        "--input_size", 16, "--stride", 16, "--decoder_channels", 8, *SHORT, "--iterations", 1,
    )  # fmt: skip
    assert again.status == 0, again.err


def test_arrays_of_any_channels_and_colour_coded_maps(run_main_here, tmp_path):
    data = halves(tmp_path, (32, 40), count=(4, 2))
    (data / "palette.txt").write_text("10 20 30 dark\n200 0 0 bright\n0 0 0 -\n")
    colours = np.array([[0, 0, 0], [10, 20, 30], [200, 0, 0]], dtype=np.uint8)
    for path in data.rglob("*.png"):
        pixels = np.asarray(Image.open(path))
        if "annotations" in str(path):
            Image.fromarray(colours[pixels]).save(path)
        else:
            np.save(path.with_suffix(".npy"), np.dstack([pixels, pixels[..., :2]]))
            path.unlink()
    flags = ("--data_path", data, "--palette", data / "palette.txt", "--in_chans", 5)
    outcome = run_main_here(MAIN, *flags, *MODEL, *SHORT)
    assert outcome.status == 0, outcome.err
    saved = outcome.folder / "checkpoint-last.pth"
    folder = data / "images" / "validation"
    predicted = run_main_here(MAIN, "--predict", folder, "--resume", saved)
    assert predicted.status == 0, predicted.err
    pixels = np.asarray(Image.open(predicted.folder / "labels" / "0.png")).reshape(-1, 3)
    assert set(map(tuple, pixels.tolist())) <= {(10, 20, 30), (200, 0, 0)}


def test_bad_flags_are_refused_in_one_line(refuses, scenes, tmp_path):
    refuses(MAIN, names=("--data_path", "tools.scenes"))
    data = ("--data_path", scenes)
    refuses(MAIN, *data, "--finetune", tmp_path / "absent.pth", names=("absent.pth",))
    refuses(MAIN, *data, *MODEL, "--input_size", 30, names=("--input_size 30 30", "4 pixels"))
    refuses(MAIN, *data, *MODEL, "--input_size", 4, 32, names=("--input_size", "two patches", "8"))
    refuses(MAIN, *data, *MODEL, "--batch_size", 1, names=("--batch_size 1", "BatchNorm"))
    refuses(MAIN, *data, *MODEL, "--batch_size", 21, names=("--batch_size 21",))
    refuses(MAIN, *data, *MODEL, "--stride", 33, names=("--stride 33 33", "32 x 32"))
    refuses(MAIN, *data, *MODEL, "--stride", 9, 8, 7, names=("--stride 9 8 7", "height width"))
    refuses(MAIN, *data, "--scales", 2, 0.5, names=("--scales 2 0.5",))
    refuses(MAIN, *data, "--eval", names=("--eval", "--resume"))
    refuses(MAIN, "--predict", scenes, "--resume", "auto", names=("--predict", "--resume"))
    refuses(MAIN, *data, "--classes", tmp_path / "absent.txt", names=("--classes", "absent.txt"))


def test_wrong_maps_end_the_run_in_one_line(refuses, tmp_path):
    data = halves(tmp_path, (32, 32), count=(6, 2))
    path = data / "annotations" / "training" / "3.png"
    values = np.array(Image.open(path))
    values[7, 9] = 5
    Image.fromarray(values).save(path)
    refuses(MAIN, "--data_path", data, *MODEL, *SHORT,
            names=("3.png", "value 5 at row 7, column 9", "1 to 2"))  # fmt: skip
    path.unlink()
    refuses(MAIN, "--data_path", data, *MODEL, *SHORT, names=("no label map", "3.png"))


def test_one_map_of_another_size_is_counted(run_main_here, tmp_path):
    data = halves(tmp_path, (32, 32), count=(4, 2))
    Image.new("L", (32, 31), 1).save(data / "annotations" / "training" / "3.png")
    flags = ("--data_path", data, *MODEL, *SHORT)
    outcome = run_main_here(MAIN, *flags)
    assert outcome.status == 0 and "has 31 x 32 pixels, its image" in outcome.out, outcome.err
    outcome = run_main_here(MAIN, *flags, "--max_bad_images", 0)
    assert outcome.status == 4 and "--max_bad_images" in outcome.err


def test_what_cannot_be_read_is_in_no_score(run_main_here, segmented, tmp_path):
    """An image and a map: mIoU is that of the other pair, whatever the seed; repaired, of all."""
    data = tmp_path / "data"
    shutil.copytree(segmented.data, data)
    known = (MAIN, "--eval", "--resume", segmented.folder / "checkpoint-last.pth", "--data_path")
    bad = data / "images" / "validation" / "0.png", data / "annotations" / "validation" / "2.png"
    for path in bad:
        path.write_bytes(b"no image")
    found = []
    for seed in (0, 1, 2):
        outcome = run_main_here(*known, data, "--seed", seed)
        assert outcome.status == 0, outcome.err
        assert str(bad[0]) in outcome.out and str(bad[1]) in outcome.out
        assert outcome.results()["unreadable"] == 2
        found.append([outcome.results()[name] for name in ("mIoU", "mAcc", "aAcc", "IoU dark")])
    for path in bad:
        path.unlink()
    for path in (bad[0].with_name("2.png"), bad[1].with_name("0.png")):
        path.unlink()
    alone = run_main_here(*known, data).results()
    expected = [alone[name] for name in ("mIoU", "mAcc", "aAcc", "IoU dark")]
    assert found == [expected] * 3 and "unreadable" not in alone
    assert expected[0] != segmented.results()["test_mIoU"]


def test_maps_without_a_labelled_pixel_end_the_run(refuses, segmented, tmp_path):
    data = halves(tmp_path, (32, 32), count=(4, 2))
    flags = (MAIN, "--data_path", data, *MODEL, *SHORT)
    for split in ("validation", "training"):
        for path in (data / "annotations" / split).iterdir():
            Image.new("L", (32, 32), 255).save(path)
        refuses(*flags, names=(f"no pixel of the {4 if split == 'training' else 2} {split} maps",
                               "value 255 (nothing)", "--first_class"))  # fmt: skip
        if split == "validation":
            saved = segmented.folder / "checkpoint-last.pth"
            refuses(MAIN, "--eval", "--resume", saved, "--data_path", data,
                    names=("no pixel of the validation maps is of a class",))  # fmt: skip
            for path in (data / "annotations" / split).iterdir():
                Image.new("L", (32, 32), 1).save(path)


def test_classes_of_no_map_are_told_before_training(run_main_here, tmp_path):
    data = halves(tmp_path, (32, 32), count=(4, 2))
    (data / "classes.txt").write_bytes(b"\xef\xbb\xbfdark\r\nbright\r\nball\r\n")
    for path in (data / "annotations").rglob("*.png"):
        values = np.array(Image.open(path))
        Image.fromarray(values - 1).save(path)  # as of --first_class 0
    outcome = run_main_here(MAIN, "--data_path", data, *MODEL, *SHORT, "--iterations", 1)
    assert outcome.status == 0, outcome.err
    line = "value 2 (bright), value 3 (ball) are in no training map; is --first_class 0?"
    assert outcome.out.index(line) < outcome.out.index("epoch 0")


def test_a_checkpoint_of_other_classes_is_refused(refuses, run_main_here, segmented, tmp_path):
    saved = segmented.folder / "checkpoint-last.pth"
    (tmp_path / "other.txt").write_text("dark\nlight\n")
    (tmp_path / "more.txt").write_text("dark\nbright\nblue\n")
    known = (MAIN, "--data_path", segmented.data, "--resume", saved)
    refuses(*known, "--eval", "--classes", tmp_path / "more.txt", names=("2 classes", "data 3"))
    refuses(*known, "--eval", "--classes", tmp_path / "other.txt", names=("bright", "light"))
    same = (*MODEL, "--batch_size", 4, "--iterations", 24, "--eval_every", 8)
    refuses(*known, *same, "--classes", tmp_path / "more.txt", names=("--resume", "--classes"))
    refuses(*known, *same, "--eval_every", 6, names=("--resume", "--eval_every"))


def test_a_checkpoint_of_another_main_is_no_segmenter(refuses, checkpoint, scenes):
    refuses(MAIN, "--eval", "--data_path", scenes, "--resume", checkpoint,
            names=("--resume", "main_segmentation"))  # fmt: skip


def test_eval_reads_maps_as_its_checkpoint_did(tmp_path):
    (tmp_path / "classes.txt").write_text("road\nbuilding\n")
    palette = [((0, 0, 0), 0), ((9, 9, 9), 1)]
    config = dict(classes=["road", "building"], first_class=0, palette=palette)
    pretrained = types.SimpleNamespace(config=config)
    flags = ["--data_path", str(tmp_path), "--eval", "--resume", "x.pth"]
    labels = main_segmentation.class_labels(main_segmentation.parse_args(flags), pretrained)
    assert (labels.first_class, labels.palette) == (0, palette)
    flags += ["--first_class", "1"]
    labels = main_segmentation.class_labels(main_segmentation.parse_args(flags), pretrained)
    assert labels.first_class == 1
