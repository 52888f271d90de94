"""Linear probing and k-NN end to end on digits."""

import json

import numpy as np
import pytest
import torch

from util.data.datasets import DATASETS
from util.evaluation.frozen.knn import weighted_knn


@pytest.fixture(scope="session")
def probed(run_main_script, tmp_path_factory, checkpoint):
    return run_main_script(
        "main_linprobe", "--finetune", checkpoint, "--epochs", 20, "--warmup_epochs", 1,
        folder=tmp_path_factory.mktemp("probe"),
    )  # fmt: skip


def test_a_probe_learns_and_leaves_the_encoder_alone(probed, checkpoint):
    last = probed.log()[-1]
    assert last["test_acc1"] > 50 and probed.results()["max_acc1"] >= last["test_acc1"]
    assert "features of 1797 images, once" in probed.out
    before = torch.load(checkpoint, weights_only=True)["model"]
    after = torch.load(probed.folder / "checkpoint-last.pth", weights_only=True)["model"]
    assert torch.equal(
        after["encoder.vit.blocks.0.attn.qkv.weight"], before["blocks.0.attn.qkv.weight"]
    )


def test_eval_reproduces_what_training_logged(run_main_here, probed):
    saved = probed.folder / "checkpoint-last.pth"
    outcome = run_main_here("main_linprobe", "--eval", "--resume", saved)
    assert outcome.status == 0, outcome.err
    assert outcome.results()["acc1"] == pytest.approx(probed.log()[-1]["test_acc1"])


def test_eval_needs_no_training_images(run_main_here, probed):
    """Neither a batch of them nor their features; other classes than the probe's are refused."""
    saved = probed.folder / "checkpoint-last.pth"
    words = ("--eval", "--resume", saved, "--train_fraction", 0.02)
    for more in ((), ("--min_crop", 0.5)):
        outcome = run_main_here("main_linprobe", *words, "--batch_size", 200, *more)
        assert outcome.status == 0, outcome.err
        assert outcome.results()["acc1"] == pytest.approx(probed.log()[-1]["test_acc1"], abs=0.3)
        assert "features of 1" not in outcome.out
    assert torch.load(saved, weights_only=True)["config"]["classes"] == [str(i) for i in range(10)]


def test_lars_with_augmentation(run_main_here, checkpoint):
    outcome = run_main_here(
        "main_linprobe", "--finetune", checkpoint, "--optimizer", "lars", "--min_crop", 0.5,
        "--max_steps", 3, "--global_pool",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    assert outcome.log()[0]["train_loss"] > 0


def test_knn_of_the_pixels_is_that_of_the_raw_images(run_main_here):
    outcome = run_main_here("main_linprobe", "--knn", "--model", "pixels")
    assert outcome.status == 0, outcome.err
    info = DATASETS["digits"]
    sets = []
    for split in ("train", "val"):
        images = info.load(split, "", 1, False)
        pixels = torch.tensor(np.asarray(images.images)).flatten(1).float() / 255
        sets.append(((pixels - info.mean[0]) / info.std[0], torch.tensor(images.targets)))
    expected = weighted_knn(*sets)
    assert expected > 95
    assert outcome.results()["knn_acc1"] == pytest.approx(expected)


def test_knn_of_the_checkpoint_is_what_pretraining_logged(run_main_here, pretrained, checkpoint):
    outcome = run_main_here("main_linprobe", "--knn", "--finetune", checkpoint)
    assert outcome.status == 0, outcome.err
    assert outcome.results()["knn_acc1"] == pytest.approx(pretrained.log()[-1]["knn_acc1"])


def test_a_random_encoder_says_so(run_main_here):
    outcome = run_main_here("main_linprobe", "--knn")
    assert outcome.status == 0 and "the encoder is random" in outcome.out


def test_probing_pixels(run_main_here):
    outcome = run_main_here("main_linprobe", "--model", "pixels", "--epochs", 5)
    assert outcome.status == 0, outcome.err
    assert outcome.log()[-1]["test_acc1"] > 80


def test_bad_input_is_refused_in_one_line(refuses, tmp_path, checkpoint):
    main = "main_linprobe"
    refuses(main, "--finetune", tmp_path / "absent.pth", names=("absent.pth",))
    refuses(main, "--finetune", checkpoint, "--model", "vit_tiny_patch4",
            names=("--finetune", "patch_embed.proj.weight"))  # fmt: skip
    refuses(main, "--eval", names=("--eval", "--resume"))
    torch.save({"epoch": 3}, tmp_path / "other.pth")
    refuses(main, "--eval", "--resume", tmp_path / "other.pth", names=("other.pth",))
    refuses(main, "--dataset", "flat", "--data_path", tmp_path, names=("--dataset flat",))


def test_resume_with_another_encoder_is_refused(refuses, run_main_here, checkpoint, tmp_path):
    """The features of a random encoder are no features of the one in the checkpoint."""
    short = ("--max_steps", 2, "--epochs", 2, "--warmup_epochs", 1)
    first = run_main_here("main_linprobe", "--finetune", checkpoint, *short)
    assert first.status == 0, first.err
    saved = first.folder / "checkpoint-last.pth"
    more = ("--max_steps", 4, "--epochs", 2, "--warmup_epochs", 1, "--resume", saved)
    refuses("main_linprobe", *more, names=("--resume", "--finetune"))
    again = run_main_here("main_linprobe", "--finetune", checkpoint, *more)
    assert again.status == 0, again.err


def test_an_evaluation_sets_the_earlier_results_aside(run_main_here, checkpoint):
    trained = run_main_here("main_linprobe", "--finetune", checkpoint, "--epochs", 1)
    folder, results = trained.folder, trained.results()
    knn = run_main_here("main_linprobe", "--knn", "--finetune", checkpoint, folder=folder)
    assert knn.results()["knn_acc1"] > 0 and (folder / "checkpoint-last.pth").exists()
    assert json.loads((folder / "previous-1" / "results.json").read_text()) == results
    saved = folder / "checkpoint-last.pth"
    assert run_main_here("main_linprobe", "--eval", "--resume", saved, folder=folder).status == 0
    assert "knn_acc1" in json.loads((folder / "previous-2" / "results.json").read_text())


def test_flags_that_mean_nothing_together_are_refused(refuses, checkpoint):
    main = "main_linprobe"
    refuses(main, "--knn", "--resume", checkpoint, names=("--knn", "--resume", "--finetune"))
    refuses(main, "--eval", "--resume", "auto", names=("--eval", "--resume"))
    refuses(main, "--batch_size", 1, names=("--batch_size 1",))
    refuses(main, "--knn_k", 3, names=("--knn_k", "without --knn"))
    refuses(main, "--model", "pixels", "--global_pool", names=("--global_pool", "pixels"))
    refuses(main, "--model", "pixels", "--finetune", checkpoint, names=("--finetune", "pixels"))
