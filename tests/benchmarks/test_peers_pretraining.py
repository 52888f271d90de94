"""Our step beside others': that the work is found out and compared, and who is missing is told."""

import argparse
import json
import re
import sys

import pytest
import torch

import models_mae
import models_mimae
from benchmarks.peers import autoencoders, pretraining, turns
from benchmarks.peers.same_work import differences, work_of
from benchmarks.pretrain_step import images_of, normalized

WORDS = "--model nano --input_size 28 --samples 4 --num_masks 2 --rounds 2 --threads 1 --amp none"
PIXELS = 3 * 7 * 7  # of a patch
BUILDERS = {
    "transformers": autoencoders.build_transformers,
    "lightly": autoencoders.build_lightly,
    "stable_pretraining": autoencoders.build_stable,
}


@pytest.fixture(autouse=True)
def same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def flags(more: str = "") -> argparse.Namespace:
    return pretraining.get_args_parser().parse_args([*WORDS.split(), *more.split()])


def work_of_ours(model: torch.nn.Module) -> dict:
    imgs = normalized(images_of(flags(), 4))
    samples = 4 * model.masks.num_masks
    return work_of(model, lambda: model(imgs), model.decoder_pred, samples)


def mae(**options) -> torch.nn.Module:
    return models_mae.mae_vit_nano_patch7(img_size=28, norm_pix_loss=True, **options)


def test_the_work_of_a_step():
    model = mae()
    before = [p.clone() for p in model.parameters()]
    work = work_of_ours(model)
    assert work["blocks"] == {64: (17, 9)}  # 6 of the encoder, 2 of the decoder, two last norms
    assert work["rows"] == 12 and work["of_zeros"] == pytest.approx(1 - 1 / PIXELS, abs=1e-4)
    assert work["parameters"] == sum(p.numel() for p in before) > work["trained"]
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_other_work_is_told():
    ours = work_of_ours(mae())
    assert differences(work_of_ours(mae()), ours) == []
    half = work_of_ours(mae(pred_ratio=0.5))
    assert "6 patches in the loss, ours 12" in differences(half, ours)
    fewer = work_of_ours(mae(mask_ratio=0.5, decoder_depth=3))
    assert differences(fewer, ours)[1:2] == ["8 patches in the loss, ours 12"]
    plain = work_of_ours(models_mae.mae_vit_nano_patch7(img_size=28))
    assert [d[:6] for d in differences(plain, ours)] == ["a loss"]
    mimae = models_mimae.mimae_vit_nano_patch7(img_size=28, norm_pix_loss=True)
    assert [d.split()[1] for d in differences(work_of_ours(mimae), ours)] == [
        "parameters", "trained",
    ]  # fmt: skip


@pytest.mark.parametrize("package", BUILDERS)
def test_others_do_the_same_work_and_train(package):
    pytest.importorskip(package)
    train, facts = BUILDERS[package](flags(), "none")
    train(1)
    _, ours = autoencoders.build_our_mae(flags(), "none")
    known = ["16 tokens of 64, ours 17"] * (package == "stable_pretraining")
    found = differences(facts, ours)
    assert [d for d in found if not d.endswith(("parameters", "trained"))] == known
    assert found == [] or package != "transformers"


class Built:
    """A contestant in this process, with turns that nobody has timed."""

    cpu_rates = rates = (1.0, 2.0)
    rate, peak = 1.5, 3 * 2**30

    def __init__(self, name, build, *args):
        self.name = name
        train, self.facts = build(*args)
        train(1)

    def ratio(self, other) -> float:
        return 1.0


def hold_here(plans, rounds, steps) -> list[Built]:
    return [Built(*plan) for plan in plans]


@pytest.mark.parametrize("more", [[], ["--pairs"]], ids=str)
def test_the_tables(monkeypatch, capsys, tmp_path, more):
    monkeypatch.setattr(turns, "hold", hold_here)
    monkeypatch.setattr(pretraining, "is_installed", lambda package: package == "transformers")
    monkeypatch.setattr(sys, "argv", ["", *WORDS.split(), *more, "--out", str(tmp_path / "found")])
    pytest.importorskip("transformers")
    pretraining.main()
    out = capsys.readouterr().out
    for name in ("lightly", "stable-pretraining"):
        assert f"skipped: {name}; pip install -r benchmarks/peers/requirements.txt" in out
    assert "skipped: MAE's official code; git clone https" in out
    written = (tmp_path / "found.md").read_text()
    assert "| transformers | 0.1667 | 1.000 (1.00 to 1.00) |" in written
    assert written.count("| no |") == 2 and "MI-MAE, 2 masks" in written
    contests = json.loads((tmp_path / "found.json").read_text())["contests"]
    found = [[one["name"] for one in contest["found"]] for contest in contests]
    ours, mimae, other = "ours, MAE", "ours, MI-MAE, 2 masks", "transformers"
    if more:
        assert [names for names in found if names] == [[ours, mimae], [ours, other]]
    else:
        assert found == [[ours, mimae, other]]


@pytest.mark.parametrize(
    ("more", "said"),
    [("--official {}", "--official .* has no models_mae.py"), ("--samples 5", "--samples 5 ")],
)
def test_bad_flags(monkeypatch, capsys, tmp_path, more, said):
    words = more.format(tmp_path).split()
    monkeypatch.setattr(sys, "argv", ["", *WORDS.split(), *words])
    with pytest.raises(SystemExit) as end:
        pretraining.main()
    assert end.value.code == 2
    assert re.match(f"error: {said}", capsys.readouterr().err)
