"""Files of others go through the export, and what timm and transformers save is read here again."""

import json
from argparse import Namespace

import exported
import pytest
import timm
import torch
import transformers

from encoders.layouts import open_encoder
from exports.source import Source

NANO, MINI = "vit_nano_patch2", "swin_mini_patch2"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.pth"


def train_a_step(model, images, **options) -> None:
    """A fine-tune by somebody else: all weights move."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    output = model.train()(images, **options)
    getattr(output, "logits", output).square().sum().backward()
    optimizer.step()
    model.eval()


@torch.no_grad()
def reads(folder, model, images, pool=None) -> Source:
    """This project computes what the model of the folder does."""
    source = Source(str(folder))
    output = model(images)
    assert source.kind == "classifier"
    own = source.classifier()(images)
    assert torch.allclose(own, getattr(output, "logits", output), rtol=0, atol=1e-5)
    return source


@pytest.mark.parametrize("name, pool", [(NANO, True), (NANO, False), (MINI, True)])
def test_a_fine_tune_in_timm(path, tmp_path, name, pool):
    size = 16
    if name == NANO:
        checkpoint = exported.classifier(path, name, size, 3, pool)
    else:
        checkpoint = exported.pretrained(path, f"simmim_{name}", size)
    assert exported.export(checkpoint, tmp_path / "out", "timm").status == 0
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, num_classes=4)
    train_a_step(model, torch.randn(2, 3, size, size))
    timm.models.save_for_hf(model, tmp_path / "theirs", safe_serialization=True)
    source = reads(tmp_path / "theirs", model, torch.randn(3, 3, size, size))
    assert source.config["input_size"] == [size, size]
    assert source.config["mean"] == pytest.approx([0.1, 0.2, 0.3])


def test_a_mean_of_normed_tokens_is_no_class_token(path, tmp_path):
    """What `reset_classifier` makes of a model that was pre-trained with a class token."""
    checkpoint = exported.pretrained(path, "mae_vit_nano_patch2")
    assert exported.export(checkpoint, tmp_path / "out", "timm").status == 0
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    model.reset_classifier(4, "avg")
    timm.models.save_for_hf(model, tmp_path / "theirs", safe_serialization=True)
    outcome = exported.export(tmp_path / "theirs", tmp_path / "again", "timm")
    assert outcome.status == 2 and "normed" in outcome.err
    outcome = exported.export(tmp_path / "theirs", tmp_path / "again", "timm", "--encoder_only")
    assert outcome.status == 0, outcome.err


@pytest.mark.parametrize("name, pool", [(NANO, True), (NANO, False), (MINI, True)])
def test_a_fine_tune_in_transformers(path, tmp_path, name, pool):
    checkpoint = exported.classifier(path, name, 16, 3, pool)
    assert exported.export(checkpoint, tmp_path / "out", "huggingface").status == 0
    model = transformers.AutoModelForImageClassification.from_pretrained(
        tmp_path / "out", num_labels=4, ignore_mismatched_sizes=True
    )
    train_a_step(model, torch.randn(2, 3, 16, 16))
    model.save_pretrained(tmp_path / "theirs")
    transformers.AutoImageProcessor.from_pretrained(tmp_path / "out").save_pretrained(
        tmp_path / "theirs"
    )
    source = reads(tmp_path / "theirs", model, torch.randn(3, 3, 16, 16))
    assert source.config["input_size"] == [16, 16] and source.crop_share == pytest.approx(16 / 18)
    assert source.config["mean"] == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("told", "share"),
    [
        ({"size": {"height": 16, "width": 16}}, 1), ({"size": 16}, 1),
        ({"size": 16, "crop_size": 16, "do_center_crop": False}, 1),
        ({"size": 20, "crop_size": 16, "do_center_crop": True}, 0.8),
        ({"size": 20, "crop_size": {"height": 16, "width": 16}, "do_center_crop": True}, 0.8),
    ],
)  # fmt: skip
def test_a_processors_size_in_its_old_form_and_its_new(path, tmp_path, told, share):
    checkpoint = exported.classifier(path, NANO, 16)
    assert exported.export(checkpoint, tmp_path / "out", "huggingface").status == 0
    processor = tmp_path / "out" / "preprocessor_config.json"
    content = {"image_mean": 0.5, "image_std": 0.5}  # one number is for all channels
    processor.write_text(json.dumps(content | told))
    source = Source(str(tmp_path / "out"))
    assert source.crop_share == pytest.approx(share) and source.config["mean"] == [0.5] * 3


def test_the_mains_go_on_with_both(path, tmp_path, run_main_here):
    checkpoint = exported.classifier(path, NANO, 8, 1, False)
    for to in ("timm", "huggingface"):
        assert exported.export(checkpoint, tmp_path / to, to).status == 0
    timm.models.save_for_hf(
        timm.create_model(f"local-dir:{tmp_path}/timm", pretrained=True), tmp_path / "1"
    )
    found = transformers.ViTForImageClassification.from_pretrained(tmp_path / "huggingface")
    found.save_pretrained(tmp_path / "2")
    flags = ("--dataset", "digits", "--train_fraction", 0.1)
    outcome = run_main_here("main_linprobe", "--finetune", tmp_path / "1", "--epochs", 1,
                            "--warmup_epochs", 0, *flags)  # fmt: skip
    assert outcome.status == 0, outcome.err
    flags_taken = outcome.results()["flags"]
    assert flags_taken["model"] == NANO and flags_taken["mean"] == pytest.approx([0.1])
    outcome = run_main_here("main_finetune", "--finetune", tmp_path / "2", "--max_steps", 1, *flags)
    assert outcome.status == 0, outcome.err


# ------------------------------------------------------------------------------------- converter


@torch.no_grad()
def test_transformers_mae_keeps_its_decoder_through_this_project(path, tmp_path):
    checkpoint = exported.pretrained(path, "mae_vit_nano_patch2", 8, mask_ratio=0.5)
    for to, source in (("huggingface", checkpoint), ("safetensors", tmp_path / "huggingface"),
                       ("huggingface", tmp_path / "safetensors")):  # fmt: skip
        out = tmp_path / (to if source == checkpoint or to != "huggingface" else "again")
        outcome = exported.export(source, out, to, "--num_heads", 2)
        assert outcome.status == 0, outcome.err
    first, last = (transformers.ViTMAEForPreTraining.from_pretrained(tmp_path / name).eval()
                   for name in ("huggingface", "again"))  # fmt: skip
    images, noise = torch.randn(2, 3, 8, 8), torch.rand(2, 16)
    assert first.config.mask_ratio == last.config.mask_ratio == 0.5
    assert torch.equal(first(images, noise=noise).logits, last(images, noise=noise).logits)


@torch.no_grad()
def test_an_official_mae_file_and_heads_that_only_a_configuration_tells(tmp_path):
    """MAE's file has its flags as a namespace, and a decoder of 16 heads."""
    from models_mae import MAEViT

    torch.manual_seed(0)
    own = exported.randomize(MAEViT(32, 8, 3, 128, 2, 4, decoder_embed_dim=32, decoder_depth=1))
    args = Namespace(model="mae_vit_small", input_size=32, mask_ratio=0.5, norm_pix_loss=True)
    torch.save({"model": own.state_dict(), "args": args, "epoch": 1}, tmp_path / "mae.pth")
    assert exported.export(tmp_path / "mae.pth", tmp_path / "1", "huggingface").status == 0
    images, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    model = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path / "1").eval()
    half = MAEViT(32, 8, 3, 128, 2, 4, 32, 1, mask_ratio=0.5, norm_pix_loss=True)
    half.load_state_dict(own.state_dict())
    expected = half(images, noise)["loss"]
    assert abs(model(images, noise=noise).loss - expected) <= 1e-5

    small = dict(hidden_size=48, num_hidden_layers=1, num_attention_heads=3, intermediate_size=96,
                 image_size=16, patch_size=4, decoder_hidden_size=24, decoder_num_hidden_layers=1,
                 decoder_num_attention_heads=3, decoder_intermediate_size=48)  # fmt: skip
    theirs = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**small))
    exported.randomize(theirs).save_pretrained(tmp_path / "theirs")
    for to, source in (("safetensors", "theirs"), ("huggingface", "safetensors")):
        assert exported.export(tmp_path / source, tmp_path / to, to).status == 0
    again = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path / "huggingface").eval()
    images = torch.randn(2, 3, 16, 16)
    assert torch.allclose(again(images, noise=noise).logits, theirs(images, noise=noise).logits,
                          rtol=0, atol=1e-5)  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("kind", ["ViT", "Beit", "Swin"])
@pytest.mark.parametrize("to", ["timm", "huggingface", "safetensors"])
def test_transformers_models_are_converted(tmp_path, kind, to):
    torch.manual_seed(0)
    small = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96,
                 image_size=16, patch_size=4, num_labels=4)  # fmt: skip
    if kind == "Swin":
        small = dict(image_size=16, patch_size=2, embed_dim=32, depths=[2, 2], num_heads=[2, 4],
                     window_size=4, num_labels=4, encoder_stride=4)  # fmt: skip
    if kind == "Beit":
        small |= dict(use_relative_position_bias=True, use_absolute_position_embeddings=True)
    config = getattr(transformers, f"{kind}Config")(**small)
    model = getattr(transformers, f"{kind}ForImageClassification")(config)
    exported.randomize(model).save_pretrained(tmp_path / "theirs")
    outcome = exported.export(tmp_path / "theirs", tmp_path / "out", to)
    assert outcome.status == 0, outcome.err
    images = torch.randn(2, 3, 16, 16)
    if to == "timm":
        found = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()(images)
    elif to == "huggingface":
        again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out")
        found = again.eval()(images).logits
    else:
        found = Source(str(tmp_path / "out")).classifier()(images)
    # timm's layer norms have another eps than transformers' ViT and BEiT.
    bound = 1e-3 if to == "timm" and kind != "Swin" else 1e-5
    assert (found - model.eval()(images).logits).abs().max() <= bound
    if to == "timm" and kind != "Swin":
        assert "eps" in (tmp_path / "out/README.md").read_text()


def test_safetensors_of_each_kind_is_the_checkpoint(tmp_path):
    cases = [
        exported.pretrained(tmp_path / "1", "mimae_vit_nano_patch2", (8, 12), 5),
        exported.classifier(tmp_path / "2", NANO, 8),
        exported.probe(tmp_path / "3", NANO, 8),
        exported.segmenter(tmp_path / "4", NANO, 16, True, 0.1),
        exported.pretrained(tmp_path / "5", "misimmim_swin_mini_patch2", 32),
        exported.detector(tmp_path / "6", NANO, 32),
    ]
    for number, checkpoint in enumerate(cases):
        out = tmp_path / f"out{number}"
        outcome = exported.export(checkpoint, out, "safetensors")
        assert outcome.status == 0, outcome.err
        before, after = open_encoder(checkpoint), open_encoder(str(out))
        assert before.layout == after.layout and before.raw.keys() == after.raw.keys()
        assert all(torch.equal(value, after.raw[key]) for key, value in before.raw.items())
        assert all(after.config[key] == value for key, value in before.config.items())
