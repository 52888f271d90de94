"""python -m tools.visualize: sheets of own pictures of any size, of one checkpoint or two."""

import argparse
import shutil

import exported
import numpy as np
import pytest
import torch
from mains import run_in_process
from PIL import Image

from models_masked import DrawnMask
from tools import visualize
from util.data.drawn_mask import read_mask
from util.errors import UsageError


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Untrained ones of digits: MI-MAE's and MAE's of 8 x 8 pixels, SimMIM's with a Swin."""
    root = tmp_path_factory.mktemp("checkpoints")
    models = {
        "mimae": ("--model", "mimae_vit_tiny_patch2"), "mae": ("--model", "mae_vit_tiny_patch2"),
        "simmim": ("--model", "simmim_swin_mini_patch2"),
    }  # fmt: skip
    found = {}
    for name, words in models.items():
        done = run_in_process("main_pretrain", *words, "--epochs", 0, folder=root / name)
        assert done.status == 0, done.err
        found[name] = root / name / "checkpoint-last.pth"
    return found


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A tiny, a wide and a large picture, of three modes."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, shape in (("tiny", (8, 8)), ("wide", (40, 200, 3)), ("large", (1024, 700, 4))):
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(root / f"{name}.png")
    return root


def show(folder, *words) -> dict[str, Image.Image]:
    args = visualize.parse_args([*map(str, words), "--output_dir", str(folder), "--device", "cpu"])
    visualize.main(args)
    return {path.stem: Image.open(path) for path in folder.glob("*.png")}


def test_own_pictures_of_any_size_beside_another_checkpoint(checkpoints, images, tmp_path):
    found = show(tmp_path / "one", checkpoints["mimae"], images, "--num_masks", 2)
    assert set(found) == set(visualize.KINDS)
    height = {sheet.size[1] for sheet in found.values()}
    assert len(height) == 1 and height.pop() > 3 * 160  # a row each, 8 pixels shown as 160
    assert found["reconstructions"].size[0] > 5 * 160  # original, 2 masks, 2 predictions
    beside = show(tmp_path / "two", checkpoints["mimae"], images, "--num_masks", 2, "--like",
                  checkpoints["mae"])  # fmt: skip
    assert beside["reconstructions"].size[0] > found["reconstructions"].size[0] + 2 * 160


def test_a_data_set_and_models_without_class_token(checkpoints, tmp_path, capsys):
    found = show(tmp_path, checkpoints["simmim"], "--mask_ratio", 0.5)
    assert set(found) == {"reconstructions", "features"}
    assert "no class token" in capsys.readouterr().out


def test_the_folder_without_labels_that_a_run_was_trained_on(images, tmp_path):
    data = ("--dataset", "flat", "--data_path", images, "--input_size", 8)
    words = ("--model", "mae_vit_nano_patch2", "--epochs", 0, "--batch_size", 2)
    done = run_in_process("main_pretrain", *data, *words, folder=tmp_path / "run")
    assert done.status == 0, done.err
    found = show(tmp_path / "out", tmp_path / "run/checkpoint-last.pth", *data[:4])
    assert set(found) == set(visualize.KINDS)


def test_a_file_as_maes_code_writes_it(checkpoints, tmp_path):
    state = torch.load(checkpoints["mae"], weights_only=True)
    told = argparse.Namespace(mask_ratio=0.5, norm_pix_loss=True)
    torch.save({"model": state["model"], "args": told}, tmp_path / "mae.pth")
    args = visualize.parse_args([str(tmp_path / "mae.pth"), "--device", "cpu"])
    subject = visualize.open_subject(args, "mae", args.checkpoint, torch.device("cpu"))
    model = subject.pretrained
    assert model.norm_pix_loss and (model.masks.num_masks, model.masks.num_visible) == (4, 8)
    key = "decoder_pred.weight"
    torch.testing.assert_close(model.state_dict()[key], state["model"][key])


def test_what_a_file_does_not_tell_is_as_maes_code_has_it(checkpoints, tmp_path):
    """Plain pixels, and as many blocks in the decoder as there are."""
    state = torch.load(checkpoints["mae"], weights_only=True)
    weights = {k: v for k, v in state["model"].items() if not k.startswith("decoder_blocks.1.")}
    torch.save({"model": weights}, tmp_path / "mae.pth")
    args = visualize.parse_args([str(tmp_path / "mae.pth"), "--device", "cpu"])
    subject = visualize.open_subject(args, "mae", args.checkpoint, torch.device("cpu"))
    assert not subject.pretrained.norm_pix_loss and len(subject.pretrained.decoder_blocks) == 1
    torch.save(state | {"args": {**state["args"], "norm_pix_loss": True}}, tmp_path / "run.pth")
    done = exported.export(tmp_path / "run.pth", tmp_path / "exported", "safetensors")
    assert done.status == 0, done.err
    args = visualize.parse_args([str(tmp_path / "exported"), "--device", "cpu"])
    subject = visualize.open_subject(args, "mae", args.checkpoint, torch.device("cpu"))
    assert subject.pretrained.norm_pix_loss


def test_the_same_checkpoint_twice_and_numbers_for_its_own_channels(checkpoints, images, tmp_path):
    words = (checkpoints["mimae"], images / "tiny.png", "--only", "features")
    assert set(show(tmp_path / "a", *words, "--like", checkpoints["mimae"])) == {"features"}
    run = ("--model", "mae_vit_nano_patch2", "--epochs", 0, "--in_chans", 4, "--mean", 0.5)
    done = run_in_process("main_pretrain", *run, folder=tmp_path / "run")
    assert done.status == 0, done.err
    words = (tmp_path / "run/checkpoint-last.pth", images / "large.png", "--only", "features")
    assert show(tmp_path / "b", *words, "--mean", 0.1, 0.2, 0.3, 0.4, "--std", 0.5)


def test_a_damaged_image_of_a_data_set_is_one_line(checkpoints, images, tmp_path):
    shutil.copytree(images, tmp_path / "pictures")
    (tmp_path / "pictures" / "a.png").write_bytes(b"no picture")
    with pytest.raises(UsageError, match=r"a\.png cannot be read"):
        show(tmp_path / "out", checkpoints["mimae"], "--dataset", "flat", "--data_path",
             tmp_path / "pictures")  # fmt: skip


def test_a_mask_of_ones_own(checkpoints, tmp_path):
    pixels = np.full((64, 64), 255, np.uint8)
    pixels[:32, :16] = 0
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    is_masked = read_mask(str(tmp_path / "mask.png"), (4, 4), 16)
    assert is_masked.view(4, 4).nonzero().tolist() == [[0, 0], [1, 0]]
    strokes = np.stack([np.zeros_like(pixels)] * 3 + [255 - pixels], axis=2)  # on nothing
    Image.fromarray(strokes).save(tmp_path / "strokes.png")
    assert torch.equal(read_mask(str(tmp_path / "strokes.png"), (4, 4), 16), is_masked)
    order = DrawnMask(is_masked).order(torch.rand(3, 16))
    assert order.shape == (3, 1, 16) and (order[..., -2:] == torch.tensor([0, 4])).all()
    found = show(tmp_path / "out", checkpoints["mimae"], "--only", "reconstructions", "--mask",
                 tmp_path / "mask.png")  # fmt: skip
    assert set(found) == {"reconstructions"}


def test_bad_input_is_one_line_and_writes_nothing(checkpoints, images, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    Image.new("L", (8, 8)).save(tmp_path / "black.png")
    for words, said in [
        ((images / "nowhere.png",), "nowhere.png cannot be read"),
        ((tmp_path / "broken.png",), "broken.png cannot be read"),
        (("--mask", tmp_path / "black.png"), "hides every patch"),
        (("--mask", tmp_path / "broken.png"), "--mask"),
        (("--mask_ratio", 1.5), "--mask_ratio 1.5"),
        (("--like", images / "tiny.png"), "tiny.png"),
    ]:
        with pytest.raises(UsageError) as error:
            show(tmp_path / "out", checkpoints["mimae"], *words)
        assert said in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UsageError, match="nothing to show"):
        show(tmp_path / "out", checkpoints["simmim"], "--only", "attention")
    assert not (tmp_path / "out").exists()
