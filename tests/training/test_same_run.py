"""Which runs go on from a checkpoint, and that all that differs is named."""

import pytest
import torch

from util.weights.checkpoint_file import read_checkpoint

FLAGS = "--train_fraction 0.1 --batch_size 32 --epochs 2 --warmup_epochs 1 --num_workers 0".split()


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """A pre-training that ended inside its first epoch."""
    from mains import run_in_process

    folder = tmp_path_factory.mktemp("cut")
    outcome = run_in_process("main_pretrain", *FLAGS, "--max_steps", 2, folder=folder)
    assert outcome.status == 0, outcome.err
    return folder / "checkpoint-last.pth"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--model", "mimae_vit_nano_patch2", "--lr", 0.01),
         ("model mimae_vit_tiny_patch2, here mimae_vit_nano_patch2", "other shapes: (cls_token",
          "--model mimae_vit_nano_patch2 (the checkpoint's run: mimae_vit_tiny_patch2)")),
        (("--batch_size", 16, "--seed", 3, "--train_fraction", 0.2, "--mask_ratio", 0.5),
         ("images a step", "32, here 16", "images of the data ", "--seed 0, here 3",
          "--batch_size 16 (the checkpoint's run: 32)", "--train_fraction 0.2 (", "--seed 3 (",
          "--mask_ratio 0.5 (")),
        (("--batch_size", 8, "--accum_iter", 4), ("steps an epoch", "4, here 5")),
        (("--opt", "muon"), ("its optimiser is --opt adamw, here muon", "--opt muon (")),
        (("--in_chans", 3, "--mi_head", "mlp"),
         ("missing (mi_head", "--in_chans 3 (", "--mi_head mlp (", "other shapes")),
    ],
    ids=["model", "data", "split", "optimiser", "shapes"],
)  # fmt: skip
def test_all_that_differs_is_named_on_one_line(refuses, cut, flags, words):
    said = refuses("main_pretrain", *FLAGS, *flags, "--resume", cut, names=words)
    assert said.startswith(f"error: --resume {cut} is of another run: ")


def test_a_rate_alone_is_no_other_run(run_main_here, cut):
    outcome = run_main_here("main_pretrain", *FLAGS, "--blr", 1e-4, "--resume", cut)
    assert outcome.status == 0, outcome.err
    assert "goes on with other flags than before: --blr 0.0001" in outcome.out


def test_other_classes_are_another_run(refuses, run_main_here, tmp_path):
    flags = (*FLAGS, "--max_steps", 1)
    assert run_main_here("main_finetune", *flags, folder=tmp_path / "own").status == 0
    path = tmp_path / "own" / "checkpoint-last.pth"
    state = read_checkpoint(str(path))
    state["config"]["classes"] = ["cat", "dog"]
    torch.save(state, path)
    refuses("main_finetune", *FLAGS, "--resume", path,
            names=("classes 2 (cat, dog, …), here 10 (0, 1, 2, …)",))  # fmt: skip
