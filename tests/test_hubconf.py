"""torch.hub builds every model from this folder, and leaves no name of ours behind."""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import hubconf
import main_pretrain
from encoders.frozen import open_frozen
from encoders.load import SIZES
from tools import features

ROOT = Path(__file__).resolve().parents[1]


def hub(name, **options):
    return torch.hub.load(str(ROOT), name, source="local", **options)


def test_every_model_is_an_entry():
    names = {name for name in dir(hubconf) if callable(getattr(hubconf, name))}
    assert {*SIZES, *main_pretrain.MODELS, "encoder"} <= names
    assert "checkpoint" in hubconf.mimae_vit_base_patch16.__doc__


def test_initial_weights_are_the_models_own():
    torch.manual_seed(0)
    model = hub("mae_vit_nano_patch2", img_size=8, in_chans=1, norm_pix_loss=True)
    torch.manual_seed(0)
    same = main_pretrain.MODELS["mae_vit_nano_patch2"](img_size=8, in_chans=1, norm_pix_loss=True)
    assert model.norm_pix_loss
    for key, value in same.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    encoder = hub("vit_nano_patch2", img_size=[8, 12], in_chans=2, num_classes=3)
    assert encoder(torch.zeros(2, 2, 8, 12)).shape == (2, 3)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of MI-MAE, without the seconds of a run of its own."""
    from mains import run_in_process

    folder = tmp_path_factory.mktemp("hub")
    flags = ("--epochs", 0, "--warmup_epochs", 0, "--model", "mimae_vit_nano_patch2",
             "--num_masks", 3, "--norm_pix_loss")  # fmt: skip
    outcome = run_in_process("main_pretrain", *flags, folder=folder)
    assert outcome.status == 0, outcome.err
    return folder / "checkpoint-last.pth"


def test_a_checkpoint_brings_its_sizes_flags_and_weights(saved, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    state = torch.load(saved, weights_only=True)["model"]
    model = hub("mimae_vit_nano_patch2", checkpoint=saved)
    assert model.masks.num_masks == 3 and model.norm_pix_loss
    assert model.patch_embed.img_size == (8, 8)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key
    assert hub("mimae_vit_nano_patch2", checkpoint=saved, num_masks=2).masks.num_masks == 2
    alone = hub("mae_vit_nano_patch2", checkpoint=saved)  # without the approximation network
    assert torch.equal(alone.decoder_pred.weight, state["decoder_pred.weight"])
    imgs = torch.rand(2, 1, 8, 8)
    tokens = model.eval().encode(imgs)
    for encoder in (hub("vit_nano_patch2", checkpoint=saved), hub("encoder", checkpoint=saved)):
        torch.testing.assert_close(encoder.forward_features(imgs), tokens, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(encoder(imgs), tokens[:, 0], atol=1e-5, rtol=1e-4)
        assert encoder.pretrained_cfg["input_size"] == (1, 8, 8)
    frozen, flags = open_frozen(features.parse_args([str(saved), "digits", "x.npy"]), str(saved))
    assert list(encoder.pretrained_cfg["mean"]) == flags.mean
    torch.testing.assert_close(frozen.encoder.forward_features(imgs), tokens, atol=1e-5, rtol=1e-4)


def test_a_whole_file_of_maes_is_its_model(tmp_path):
    torch.manual_seed(1)
    theirs = main_pretrain.MODELS["mae_vit_tiny_patch2"](img_size=8, in_chans=1).state_dict()
    flags = argparse.Namespace(norm_pix_loss=False, mask_ratio=0.5, epochs=800)
    torch.save({"model": theirs, "epoch": 799, "args": flags}, tmp_path / "mae.pth")
    model = hub("mae_vit_tiny_patch2", checkpoint=tmp_path / "mae.pth")
    assert not model.norm_pix_loss and model.masks.num_visible == 8
    assert model.patch_embed.img_size == (8, 8)
    for key, value in model.state_dict().items():
        assert torch.equal(value, theirs[key]), key
    encoder = hub("vit_tiny_patch2", checkpoint=tmp_path / "mae.pth")
    assert torch.equal(encoder.norm.weight, theirs["norm.weight"])


def test_what_does_not_fit_is_one_line(saved, tmp_path):
    (tmp_path / "damaged.pth").write_bytes(b"nothing")
    for name, options, said in (
        ("vit_tiny_patch2", dict(checkpoint=saved), "holds a vit_nano_patch2, not a vit_tiny"),
        ("mimae_vit_tiny_patch2", dict(checkpoint=saved), "another architecture"),
        ("vit_nano_patch2", dict(checkpoint=tmp_path / "damaged.pth"), "damaged"),
        ("vit_nano_patch2", dict(checkpoint=tmp_path / "none.pth"), "none.pth"),
        ("encoder", {}, "needs a checkpoint"),
        ("vit_base_patch16", dict(img_size=100), "not divisible"),
    ):
        with pytest.raises(ValueError, match=said) as caught:
            hub(name, **options)
        assert "\n" not in str(caught.value)


def test_modules_of_other_projects_stay_where_they_are(monkeypatch):
    monkeypatch.setitem(sys.modules, "util", theirs := ModuleType("util"))
    monkeypatch.setitem(sys.modules, "util.misc", ModuleType("util.misc"))
    modules, path = dict(sys.modules), sys.path[:]
    model = hub("mae_vit_nano_patch2", img_size=8)
    assert type(model) is not main_pretrain.models_mae.MAEViT  # of modules of its own
    assert sys.path == path and sys.modules["util"] is theirs
    named = {name for name in sys.modules if name.partition(".")[0] in hubconf.NAMES}
    assert all(sys.modules[name] is modules.get(name) for name in named)
    assert model(torch.rand(2, 3, 8, 8))["loss"].isfinite()


@pytest.mark.slow
def test_another_project_in_a_process_and_a_folder_of_its_own(tmp_path):
    """Its `util`, imported before, and its `encoders`, imported after; from its own folder."""
    (tmp_path / "util").mkdir()
    (tmp_path / "util" / "__init__.py").write_text("mine = 1\n")
    (tmp_path / "util" / "misc.py").write_text("mine = 2\n")
    (tmp_path / "encoders.py").write_text("mine = 3\n")
    (tmp_path / "script.py").write_text(f"""
import sys
import torch
import util.misc
before, path = set(sys.modules), sys.path[:]
for _ in range(2):
    model = torch.hub.load({str(ROOT)!r}, "mae_vit_nano_patch2", source="local", img_size=8)
    encoder = torch.hub.load({str(ROOT)!r}, "vit_nano_patch2", source="local", img_size=8)
import encoders
import util.misc as again
assert (util.mine, again.mine, encoders.mine) == (1, 2, 3) and sys.path == path
assert again is util.misc
ours = {{name.split(".")[0] for name in set(sys.modules) - before}}
assert not ours & {{"models_mae", "main_pretrain", "heads", "tools"}}, ours
loss = model(torch.rand(2, 3, 8, 8))["loss"]
loss.backward()
print(encoder(torch.rand(2, 3, 8, 8)).shape)
""")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True,
                          cwd=tmp_path, env=environment, timeout=120)  # fmt: skip
    assert done.returncode == 0 and "[2, 64]" in done.stdout, done.stderr
