"""Swin downstream: windows, position biases, layers, published checkpoints."""

import pickle
import sys
import types

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline

import main_finetune
from encoders.load import layer_lookup, load_pretrained
from encoders.swin import build_swin, fit_weights, layer_of, resize_position_bias, window_size
from encoders.vit import Pretrained, build_vit, encoder_name
from util.errors import UsageError
from util.training import optim

MINI = "swin_mini_patch2"


def mini(img_size=16, num_classes=10):
    return build_swin(MINI, num_classes, img_size, 1)


def published(model):
    """A model's weights under SimMIM's names, as its fine-tuned files have them."""
    weights = {}
    for key, value in model.state_dict().items():
        key = key.replace("layers.1.downsample", "layers.0.downsample")
        weights[key.replace("head.fc.", "head.")] = value
    return weights


def test_windows_divide_every_map():
    assert window_size((6, 6)) == (6, 6) and window_size((7, 5)) == (7, 5)
    assert window_size((16, 14)) == (12, 12)
    model = build_swin("swin_tiny", 0, (224, 160))
    for stage in model.layers:
        for block in stage.blocks:
            assert block.window_size == (7, 5)
            assert all(r % w == 0 for r, w in zip(block.input_resolution, (7, 5), strict=True))


def test_position_biases_are_stretched():
    table = torch.randn(11 * 11, 3)
    assert resize_position_bias(table, (6, 6), (6, 6)) is table
    old = table.view(11, 11, 3)
    new = resize_position_bias(table, (6, 6), (7, 7)).view(13, 13, 3)
    near = slice(4, 7), slice(5, 8)  # offsets −1, 0, 1
    torch.testing.assert_close(new[near[1], near[1]], old[near[0], near[0]], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(new[::12, ::12], old[::10, ::10], rtol=1e-4, atol=1e-4)  # corners


def test_position_biases_are_read_from_a_cubic_spline():
    """By another spline, with q from the polynomial 1 + q + … + q⁴ = 6."""
    q = next(r.real for r in np.roots([1, 1, 1, 1, -5]) if abs(r.imag) < 1e-9 and r.real > 0)
    places = np.cumsum([q**i for i in range(5)])
    places = np.concatenate([-places[::-1], [0], places])
    table = torch.randn(11 * 7, 2)  # a window of 6 x 4
    old = table.view(11, 7, 2).numpy()
    columns = CubicSpline(places, old, axis=0)(np.arange(-6, 7))
    new = resize_position_bias(table, (6, 4), (7, 4)).view(13, 7, 2)
    np.testing.assert_allclose(new.numpy(), columns, rtol=1e-3, atol=1e-4)


def test_layers_of_a_swin():
    depths = (2, 2, 18, 2)
    expected = {
        "patch_embed.proj.weight": 0, "patch_embed.norm.bias": 0, "mask_token": 0,
        "layers.0.blocks.0.attn.qkv.weight": 1, "layers.0.blocks.1.norm1.weight": 2,
        "layers.1.downsample.reduction.weight": 2, "layers.1.blocks.0.mlp.fc1.bias": 3,
        "layers.2.downsample.norm.weight": 4, "layers.2.blocks.17.mlp.fc1.bias": 22,
        "layers.3.downsample.reduction.weight": 22, "layers.3.blocks.1.norm2.bias": 24,
        "norm.weight": 25, "head.fc.weight": 25,
    }  # fmt: skip
    assert {name: layer_of(name, depths) for name in expected} == expected
    model = mini()
    groups = optim.layer_decay_groups(model, 0.05, layer_lookup(model), 0.5)
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    attention = model.layers[0].blocks[0].attn
    assert scales[id(attention.qkv.weight)] == 0.5**4 and scales[id(model.head.fc.weight)] == 1
    assert decays[id(attention.qkv.weight)] == 0.05
    assert decays[id(attention.relative_position_bias_table)] == 0


def test_published_fine_tuned_weights_load():
    model, source = mini(), mini()
    weights = fit_weights(published(source), {}, model)
    assert weights.keys() == source.state_dict().keys()
    model.load_state_dict(weights)
    imgs = torch.randn(2, 1, 16, 16)
    assert torch.equal(model(imgs), source(imgs))


def test_other_sizes_load_and_wrong_tables_are_refused():
    model, source = mini((20, 24)), mini((16, 24)).state_dict()
    model.load_state_dict(fit_weights(source, {"input_size": [16, 24]}, model))
    with pytest.raises(UsageError, match="position biases do not belong to a window of 4 x 4"):
        fit_weights(source, {"input_size": [16, 16]}, model)
    with pytest.raises(UsageError, match="cell of the final feature map"):
        mini(18)


def test_published_file_with_a_yacs_config(tmp_path, monkeypatch):
    """SimMIM's files carry a yacs config; it is read as plain data, and nothing of it runs."""
    module = types.ModuleType("yacs.config")
    module.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    config = module.CfgNode(MODEL=module.CfgNode(TYPE="swin"))
    config.__dict__["__immutable__"] = True
    source = mini()
    weights = {f"encoder.{k}": v for k, v in published(source).items() if "head" not in k}
    weights |= {"encoder.mask_token": torch.zeros(1, 1, 64)}
    weights |= {"decoder.0.weight": torch.zeros(16, 128, 1, 1), "decoder.0.bias": torch.zeros(16)}
    torch.save(dict(model=weights, config=config, epoch=1), tmp_path / "ckpt_epoch_1.pth")
    monkeypatch.undo()
    pretrained = Pretrained(str(tmp_path / "ckpt_epoch_1.pth"))
    model = mini()
    load_pretrained(pretrained, model)
    assert torch.equal(
        model.layers[1].downsample.reduction.weight, source.layers[1].downsample.reduction.weight
    )
    assert pickle.dumps(pretrained.config)


def test_a_checkpoint_of_a_vit_is_refused(tmp_path):
    vit = build_vit("vit_tiny_patch2", 10, 16, 1)
    torch.save(dict(model=vit.state_dict()), tmp_path / "vit.pth")
    with pytest.raises(UsageError, match="another architecture"):
        load_pretrained(Pretrained(str(tmp_path / "vit.pth")), mini())


def test_encoder_names():
    assert encoder_name("misimmim_swin_base") == "swin_base"
    assert encoder_name("simmim_vit_base_patch16") == "vit_base_patch16"
    assert encoder_name("mimae_vit_tiny_patch2") == "vit_tiny_patch2"
    assert encoder_name("swin_base") == "swin_base"


def test_schedules():
    argv = ["--warmup_epochs", "20", "--epochs", "100", "--lr", "1", "--warmup_lr", "0.2"]
    args = main_finetune.parse_args([*argv, "--lr_schedule", "cosine_whole", "--min_lr", "0.1"])
    assert optim.scheduled_lr(0, args) == 0.2
    assert optim.scheduled_lr(10, args) == pytest.approx(0.6)
    assert optim.scheduled_lr(50, args) == pytest.approx(0.55)  # half way, warm-up counted
    assert optim.scheduled_lr(100, args) == pytest.approx(0.1)
    args.lr_schedule = "cosine"
    assert optim.scheduled_lr(20, args) == 1 and optim.scheduled_lr(60, args) == pytest.approx(0.55)
    args.lr_schedule, args.lr_milestones = "multistep", [50, 70]
    rates = [optim.scheduled_lr(epoch, args) for epoch in (20, 49.9, 50, 70)]
    assert rates == pytest.approx([1, 1, 0.1, 0.01])
    assert optim.absolute_lr(None, 1e-4, 2048, 512) == pytest.approx(4e-4)
    with pytest.raises(SystemExit):
        main_finetune.parse_args(["--lr_schedule", "multistep"])
