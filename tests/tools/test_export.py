"""What the export command refuses, in one line; what its model card says, and does not say."""

import json
import sys
from pathlib import Path

import exported
import pytest
import torch

import util.provenance
from util.weights import formats


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return exported.pretrained(folder / "checkpoint-last.pth", "mae_vit_nano_patch2", 8)


def refused(outcome, *words) -> None:
    exported.refused(outcome, *words)
    assert not outcome.folder.exists()


def test_files_that_are_no_checkpoints(checkpoint, tmp_path):
    whole = Path(checkpoint).read_bytes()
    cases = {
        "unfinished": whole[: len(whole) // 2], "garbage": b"\x00\x01garbage" * 99, "empty": b"",
        "text": b"no weights", "safetensors": b"\x10\x00\x00\x00\x00\x00\x00\x00{}",
    }  # fmt: skip
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        refused(exported.export(tmp_path / name, tmp_path / "out", "timm"), name)
    torch.save({"model": {"layer1.weight": torch.ones(2, 2)}}, tmp_path / "resnet.pth")
    outcome = exported.export(tmp_path / "resnet.pth", tmp_path / "out", "timm")
    refused(outcome, "resnet.pth", "layout")
    assert "--finetune" not in outcome.err  # which this command has not
    refused(exported.export(tmp_path / "nothing", tmp_path / "out", "timm"), "nothing")
    state = torch.load(checkpoint, weights_only=True)
    for changes in ({"model": "resnet50"}, {"in_chans": None}, {"input_size": None}):
        torch.save(state | {"config": state["config"] | changes}, tmp_path / "odd.pth")
        refused(exported.export(tmp_path / "odd.pth", tmp_path / "out", "timm"), "odd.pth")
    refused(exported.export(tmp_path, tmp_path / "out", "timm"), "folder without weights")


def test_weights_that_are_not_finite(checkpoint, tmp_path):
    state = torch.load(checkpoint, weights_only=True)
    state["model"]["blocks.1.mlp.fc1.weight"][0, 0] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    for to in ("timm", "huggingface", "safetensors"):
        refused(exported.export(tmp_path / "nan.pth", tmp_path / "out", to), "finite")


def test_a_whole_checkpoint_is_exported_as_it_is_or_not_at_all(checkpoint, tmp_path):
    for flags in (("--encoder_only",), ("--input_size", 16)):
        outcome = exported.export(checkpoint, tmp_path / "out", "safetensors", *flags)
        refused(outcome, "--to safetensors", "--encoder_only", "--input_size")


def test_a_swin_of_other_windows_is_not_exported_as_another_model(tmp_path):
    """Windows of 4 on 16 cells, whose final map has 2: timm's own choice, not this project's."""
    from timm.models.swin_transformer import SwinTransformer

    def swin(window: int) -> str:
        model = SwinTransformer(img_size=16, patch_size=2, in_chans=3, embed_dim=16,
                                depths=(2, 2, 2), num_heads=(1, 2, 4), window_size=window,
                                num_classes=0)  # fmt: skip
        torch.save(exported.randomize(model).state_dict(), tmp_path / f"{window}.pth")
        return str(tmp_path / f"{window}.pth")

    flags = ("--mean", 0.5, "--std", 0.5)
    refused(exported.export(swin(4), tmp_path / "out", "timm", *flags), "other windows")
    done = exported.export(swin(2), tmp_path / "own", "timm", *flags)
    assert done.status == 0, done.err
    told = json.loads((tmp_path / "own" / "config.json").read_text())
    assert told["pretrained_cfg"]["input_size"] == [3, 16, 16]


def test_the_names_of_classes_are_where_the_card_says(tmp_path):
    saved = exported.classifier(tmp_path / "c.pth", "vit_nano_patch2")
    for to in ("torch", "safetensors"):
        done = exported.export(saved, tmp_path / to, to)
        assert done.status == 0, done.err
        assert "3, named in export.json" in (tmp_path / to / "README.md").read_text()
        about = json.loads((tmp_path / to / "export.json").read_text())
        assert about["classes"] == exported.CLASSES


def test_a_scale_of_the_pixels_is_told(tmp_path):
    path = exported.pretrained(tmp_path / "1.pth", "mae_vit_nano_patch2", 8, 4)
    state = torch.load(path, weights_only=True)
    mean, std = state["config"]["mean"], state["config"]["std"]
    for low, high in ((0.0, 4000.0), (-1024.0, 3071.0), (-1000.0, 0.0)):
        state["config"]["value_range"] = [low, high]
        torch.save(state, path)
        out = tmp_path / f"{high}"
        assert exported.export(path, out / "t", "timm").status == 0
        assert f"{low:g} is 0, and {high:g} is 1" in (out / "t" / "README.md").read_text()
        assert exported.export(path, out / "h", "huggingface").status == 0
        told = json.loads((out / "h" / "preprocessor_config.json").read_text())
        found = (500 * told["rescale_factor"] - told["image_mean"][1]) / told["image_std"][1]
        own = ((500 - low) / (high - low) - mean[1]) / std[1]
        assert found == pytest.approx(own)


def test_a_file_without_rights_is_one_line(checkpoint, tmp_path, monkeypatch):
    def is_forbidden(path, *args):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(formats, "open", is_forbidden, raising=False)  # root may read everything
    refused(exported.export(checkpoint, tmp_path / "out", "timm"), "pth", "Permission denied")


def test_what_the_file_does_not_tell_is_asked_for(tmp_path):
    weights = dict(torch.load(exported.pretrained(tmp_path / "1.pth", "mae_vit_nano_patch2", 8, 5),
                              weights_only=True)["model"])  # fmt: skip
    torch.save(weights, tmp_path / "2.pth")
    outcome = exported.export(tmp_path / "2.pth", tmp_path / "out", "timm", "--num_heads", 2)
    refused(outcome, "5 channels", "--mean")
    flags = ("--num_heads", 2, "--mean", 0.5, "--std", 0.2)
    outcome = exported.export(tmp_path / "2.pth", tmp_path / "out", "timm", *flags)
    assert outcome.status == 0, outcome.err
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["pretrained_cfg"]["std"] == [0.2] * 5


@pytest.mark.parametrize("to, package", [
    ("onnx", "onnx"), ("onnx", "onnxscript"), ("timm", "safetensors"),
    ("huggingface", "safetensors"),
])  # fmt: skip
def test_a_missing_package_is_named(checkpoint, tmp_path, monkeypatch, to, package):
    monkeypatch.setitem(sys.modules, package, None)
    outcome = exported.export(checkpoint, tmp_path / "out", to)
    refused(outcome, package, "pip install")


def test_transformers_is_only_needed_to_compare(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    outcome = exported.export(checkpoint, tmp_path / "out", "huggingface")
    assert outcome.status == 0, outcome.err
    assert "not compared" in outcome.out
    assert "not compared" in (tmp_path / "out/README.md").read_text()


def test_a_detector_is_refused_where_there_is_none(checkpoint, tmp_path):
    state = torch.load(checkpoint, weights_only=True)
    state["config"] |= {"category_ids": [1], "classes": ["bud"]}
    torch.save(state, tmp_path / "detector.pth")
    for to in ("timm", "huggingface", "onnx", "torch"):
        refused(exported.export(tmp_path / "detector.pth", tmp_path / "out", to), "detector")


def test_the_card_says_what_the_run_left(tmp_path, run_main_here, monkeypatch):
    monkeypatch.setenv("MIMAE_COMMIT", "abc1234")
    run = run_main_here("main_pretrain", "--model", "mimae_vit_nano_patch2", "--epochs", 1,
                        "--warmup_epochs", 0, "--train_fraction", 0.1)  # fmt: skip
    assert run.status == 0, run.err
    flags = ("--license", "cc-by-4.0")
    outcome = exported.export(run.folder / "checkpoint-last.pth", tmp_path / "out", "timm", *flags)
    assert outcome.status == 0, outcome.err
    card, results = (tmp_path / "out/README.md").read_text(), run.results()
    state = torch.load(run.folder / "checkpoint-last.pth", weights_only=True)
    count = state["config"]["num_images"]
    said = ["license: cc-by-4.0", "library_name: timm", results["command"], "abc1234",
            f"digits, {count} images", "1 epoch(s)",
            f"{results['train_loss']:.4g}", "0.305", "0.376",
            "8 x 8 pixels, 1 channel(s)", "num_masks 4", util.provenance.versions()["timm"],
            "create_model"]  # fmt: skip
    assert not [word for word in said if word not in card]
    # Results of another step than the checkpoint's are not its own.
    changed = results | {"steps": results["steps"] + 1}
    (run.folder / "results.json").write_text(json.dumps(changed))
    exported.export(run.folder / "checkpoint-last.pth", tmp_path / "2", "timm")
    card = (tmp_path / "2/README.md").read_text()
    assert f"{results['train_loss']:.4g}" not in card and "license: unknown" in card


def test_the_card_invents_nothing(checkpoint, tmp_path):
    weights = torch.load(checkpoint, weights_only=True)["model"]
    torch.save(weights, tmp_path / "weights.pth")
    flags = ("--num_heads", 2)
    outcome = exported.export(tmp_path / "weights.pth", tmp_path / "out", "timm", *flags)
    assert outcome.status == 0, outcome.err
    card = (tmp_path / "out/README.md").read_text()
    assert card.count("not known") == 4  # command, data, commit, results
    assert "license: unknown" in card and "trained for" not in card
    refused(exported.export(checkpoint, tmp_path / "no", "timm", "--license", "a b"), "--license")
