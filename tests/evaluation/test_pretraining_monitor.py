"""Monitors of pre-training: the same images each time, bounded, and without effect on the run."""

import json
import types

import numpy as np
import pytest
import torch
from mains import run_in_process
from PIL import Image

from util.evaluation import pretraining_monitor
from util.evaluation.scatter import plane, scatter

QUICK = ("--train_fraction", 0.05, "--batch_size", 16, "--warmup_epochs", 0, "--log_every", 1)
KINDS = {"reconstructions", "attention", "features", "neighbours", "latents"}


def names(folder) -> set[str]:
    return {path.name for path in (folder / "pictures").glob("*")}


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    return run_in_process(
        "main_pretrain", *QUICK, "--epochs", 2, "--monitor_every", 1, "--monitor_share", 1e9,
        folder=tmp_path_factory.mktemp("watched"),
    )  # fmt: skip


def test_numbers_and_pictures_of_each_epoch(watched):
    assert watched.status == 0, watched.err
    assert names(watched.folder) == {f"{kind}-0000{n}.png" for kind in KINDS for n in (1, 2)}
    lines = map(json.loads, (watched.folder / "run.jsonl").read_text().splitlines())
    found = [line for line in lines if "monitor_uniformity" in line]
    assert len(found) == 2
    for line in found:
        assert line["monitor_effective_rank"] >= 1 and 0 <= line["monitor_image_share"] <= 1
        assert line["monitor_alignment_of_masks"] >= 0 and line["monitor_uniformity"] <= 0
    assert "monitors: " in watched.out and "% of the training time" in watched.out
    report = (watched.folder / "report.html").read_text()
    assert "neighbours-00002.png" in report and "neighbours-00001.png" not in report


def test_training_is_the_same_to_the_last_bit_without_them(watched, run_main_here):
    alone = run_main_here("main_pretrain", *QUICK, "--epochs", 2)
    assert alone.log() == watched.log()


def test_of_models_without_class_token_or_with_one_mask(run_main_here):
    for model, kinds in (("misimmim_swin_mini_patch2", KINDS - {"attention"}),
                         ("mae_vit_tiny_patch2", KINDS)):  # fmt: skip
        done = run_main_here(
            "main_pretrain", "--model", model, *QUICK, "--max_steps", 1, "--monitor_every", 1
        )
        assert done.status == 0, done.err
        assert {name.split("-")[0] for name in names(done.folder)} == kinds


def test_they_are_left_out_while_they_have_taken_too_much(monkeypatch, caplog):
    now, looked = [0.0], []
    monkeypatch.setattr(pretraining_monitor.time, "monotonic", lambda: now[0])
    args = types.SimpleNamespace(monitor_every=1, monitor_share=0.1)
    one = pretraining_monitor.Monitor(args, [0] * 4, None)

    def look(model, run):
        now[0] += 5
        looked.append(run.progress.epoch)

    monkeypatch.setattr(one, "_look", look)
    caplog.set_level("INFO")
    for epoch in range(1, 14):
        now[0] += 10
        run = types.SimpleNamespace(
            is_due=lambda every: True, progress=types.SimpleNamespace(epoch=epoch)
        )
        one(torch.nn.Identity(), run)
    assert looked == [1, 5, 10]  # 5 s of 50, 10 of 100
    assert "left out after epoch 2: they have taken 25.0 %" in caplog.text


def test_a_plane_keeps_distances_of_what_is_flat():
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(50, 2)) * [5, 1]
    rotated = torch.from_numpy(flat @ np.linalg.qr(rng.normal(size=(7, 2)))[0].T)
    points, shares = plane(rotated)
    np.testing.assert_allclose(shares.sum(), 1.0)
    centred = flat - flat.mean(0)
    np.testing.assert_allclose(points @ points.T, centred @ centred.T, atol=1e-9)


def test_a_scatter_shows_each_class_in_its_colour():
    points, labels = np.array([[0.0, 0], [1, 0], [0, 1]]), np.array([0, 1, -1])
    picture = scatter(points, labels, ["a", "b"], "title")
    assert isinstance(picture, Image.Image)
    colours = {colour for _, colour in picture.getcolors(10**6)}
    assert {(0, 114, 178), (213, 94, 0)} <= colours
    one = scatter(points, np.full(3, -1), [], "title")
    assert one.width < picture.width and (213, 94, 0) not in {c for _, c in one.getcolors(10**6)}
