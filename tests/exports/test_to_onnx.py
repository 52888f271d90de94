"""onnxruntime and torch.export's program compute what the checkpoint's model does, to 1e-4."""

import exported
import pytest
import torch

from exports.source import Source

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

SMALL = dict(
    family="vit", patch_size=4, embed_dim=16, depth=1, num_heads=2, mlp_ratio=2.0, eps=1e-6,
    qkv_bias=True, init_values=None, reg_tokens=2, no_embed_class=True,
)  # fmt: skip
NAME = "vit_16_patch4"


def run(out, images) -> list[torch.Tensor]:
    """The outputs of a folder's program, whichever it is."""
    if (out / "model.pt2").exists():
        return list(torch.export.load(out / "model.pt2").module()(images).values())
    session = onnxruntime.InferenceSession(out / "model.onnx")
    return [torch.from_numpy(found) for found in session.run(None, {"images": images.numpy()})]


@torch.no_grad()
def agrees(checkpoint, out, to, expected, *flags, size=None) -> None:
    """Args: expected: (this project's model, images) -> outputs."""
    outcome = exported.export(checkpoint, out, to, *flags)
    assert outcome.status == 0, outcome.err
    source = Source(checkpoint, input_size=size)
    model = source.segmenter() if source.kind == "segmenter" else source.model()
    for count in (1, 7):
        images = source.images(count, seed=count)
        found = run(out, images)
        for own, value in zip(expected(model, images), found, strict=True):
            assert own.shape == value.shape and (own - value).abs().max() <= 1e-4


def tokens(model, images):
    found = model.forward_features(images)
    if found.ndim == 4:
        return [found.flatten(1, 2)]
    return [found[:, 0], found[:, model.num_prefix_tokens :]]


def logits(model, images):
    return [model(images)]


def pixel_logits(model, images):
    return [torch.nn.functional.interpolate(model(images), images.shape[2:], mode="bilinear")]


@pytest.mark.parametrize("to", ["onnx", "torch"])
def test_a_classifier_of_any_grid_channels_and_registers(tmp_path, to):
    checkpoint = exported.classifier(tmp_path / "1.pth", NAME, (8, 12), 2, True, SMALL)
    agrees(checkpoint, tmp_path / "out", to, logits)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "torch"])
def test_every_other_kind(tmp_path, to):
    pre = exported.pretrained(tmp_path / "1.pth", "mimae_vit_nano_patch2", 8)
    swin = exported.pretrained(tmp_path / "2.pth", "simmim_swin_mini_patch2", 16)
    cases = [
        (pre, tokens, None), (pre, tokens, [12, 6]), (swin, tokens, None), (swin, tokens, [32, 16]),
        (exported.classifier(tmp_path / "3.pth", "swin_mini_patch2", 64), logits, None),
        (exported.probe(tmp_path / "4.pth", "vit_nano_patch2", 8), logits, None),
        (exported.segmenter(tmp_path / "5.pth", "vit_nano_patch2", 16, True, 0.1), pixel_logits,
         None),
    ]  # fmt: skip
    for number, (checkpoint, expected, size) in enumerate(cases):
        flags = ["--input_size", *size] if size else []
        agrees(checkpoint, tmp_path / f"out{number}", to, expected, *flags, size=size)
        text = (tmp_path / f"out{number}/README.md").read_text()
        assert ("the decoder is left out" in text) == (expected is tokens)


@pytest.mark.slow
def test_weights_of_a_large_model_stand_beside_the_file(tmp_path, monkeypatch):
    from exports import to_onnx

    monkeypatch.setattr(to_onnx, "MAX_BYTES", 0)
    checkpoint = exported.classifier(tmp_path / "1.pth", NAME, 8, 2, True, SMALL)
    agrees(checkpoint, tmp_path / "out", "onnx", logits)
    assert len(list((tmp_path / "out").glob("model.onnx*"))) == 2
