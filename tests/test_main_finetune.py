"""Fine-tuning end to end on digits, and what it refuses."""

import pytest
import torch
from PIL import Image

SHORT = ("--batch_size", 64, "--max_steps", 3, "--aa", "none", "--warmup_epochs", 0)


@pytest.fixture(scope="session")
def finetuned(run_main_script, tmp_path_factory, checkpoint):
    # A few steps of pre-training leave a large mean in the tokens: all layers have to learn.
    return run_main_script(
        "main_finetune", "--finetune", checkpoint, "--epochs", 3, "--batch_size", 32, "--lr",
        3e-3, "--warmup_epochs", 0.5, "--layer_decay", 1, "--mixup", 0, "--cutmix", 0, "--aa",
        "none", "--reprob", 0, "--min_crop", 1, "--drop_path", 0,
        folder=tmp_path_factory.mktemp("finetune"),
    )  # fmt: skip


def test_it_learns_and_logs(finetuned):
    first, *_, last = finetuned.log()
    assert last["train_loss"] < first["train_loss"] - 0.03
    assert 13 < last["test_acc1"] <= last["test_acc5"]  # a tenth by chance
    assert last["max_acc1"] == max(line["test_acc1"] for line in finetuned.log())
    assert finetuned.results()["test_acc1"] == last["test_acc1"]
    assert "new: fc_norm, head" in finetuned.out
    assert "left over: approximation, decoder_" in finetuned.out


def test_eval_reproduces_what_training_logged(run_main_here, finetuned):
    saved = finetuned.folder / "checkpoint-last.pth"
    outcome = run_main_here("main_finetune", "--eval", "--resume", saved, "--batch_size", 50)
    assert outcome.status == 0, outcome.err
    last = finetuned.log()[-1]
    assert outcome.results()["acc1"] == pytest.approx(last["test_acc1"])
    assert outcome.results()["loss"] == pytest.approx(last["test_loss"], rel=1e-4)


@pytest.mark.parametrize(
    "flags",
    [
        ("--cls_token", "--mixup", 0, "--cutmix", 0, "--reprob", 0),
        ("--amp", "bf16", "--accum_iter", 2),
        ("--input_size", 8, 12, "--grad_checkpointing"),
        ("--aa", "rand-m9-mstd0.5-inc1", "--train_fraction", 0.2),
    ],
    ids=lambda flags: flags[0][2:],
)
def test_other_options_run_on_the_checkpoint(run_main_here, checkpoint, flags):
    outcome = run_main_here("main_finetune", "--finetune", checkpoint, *SHORT, *flags)
    assert outcome.status == 0, outcome.err
    assert outcome.log()[0]["train_loss"] > 0


def test_from_scratch_it_learns_faster_than_that(run_main_here):
    outcome = run_main_here(
        "main_finetune", "--epochs", 1, "--batch_size", 32, "--lr", 1e-3, "--warmup_epochs", 0.5,
        "--layer_decay", 1, "--mixup", 0, "--cutmix", 0, "--aa", "none", "--min_crop", 1,
        "--drop_path", 0, "--reprob", 0,
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    assert outcome.log()[0]["test_acc1"] > 20


def test_bad_input_is_refused_in_one_line(refuses, tmp_path, checkpoint):
    main = "main_finetune"
    refuses(main, "--finetune", tmp_path / "absent.pth", names=("absent.pth",))
    (tmp_path / "text.pth").write_text("text")
    refuses(main, "--finetune", tmp_path / "text.pth", names=("text.pth",))
    refuses(main, "--finetune", checkpoint, "--model", "vit_tiny_patch4",
            names=("--finetune", "patch_embed.proj.weight [128, 1, 2, 2] instead of"))  # fmt: skip
    refuses(main, "--finetune", checkpoint, "--in_chans", 3, names=("--in_chans",))
    refuses(main, "--input_size", 9, names=("--input_size",))
    refuses(main, "--model", "vit_giant", names=("--model",))
    refuses(main, "--eval", names=("--eval", "--resume"))
    refuses(main, "--batch_size", 63, names=("--batch_size 63", "mixup"))
    refuses(main, "--aa", "nonsense", names=("--aa nonsense",))
    refuses(main, "--batch_size", 5000, names=("--batch_size 5000",))


def test_data_without_classes_is_refused(refuses, tmp_path):
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / part / "x.png")
    refuses("main_finetune", "--data_path", tmp_path, names=("--data_path", "class folder"))
    refuses("main_finetune", "--dataset", "flat", "--data_path", tmp_path,
            names=("--dataset flat", "labels"))  # fmt: skip


class Hostile:
    """Unpickling it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("main", ["main_finetune", "main_linprobe"])
def test_a_hostile_checkpoint_is_refused_and_not_run(refuses, tmp_path, main):
    torch.save({"model": Hostile(tmp_path / "ran")}, tmp_path / "hostile.pth")
    refuses(main, "--finetune", tmp_path / "hostile.pth", names=("hostile.pth", "refused"))
    assert not (tmp_path / "ran").exists()


def test_an_image_folder_end_to_end(run_main_here, image_tree):
    outcome = run_main_here(
        "main_finetune", "--data_path", image_tree, "--input_size", 16, "--model",
        "vit_tiny_patch4", "--batch_size", 4, "--epochs", 1, "--num_workers", 0,
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    assert 0 <= outcome.log()[0]["test_acc1"] <= 100 and outcome.log()[0]["steps"] == 3


def test_eval_needs_a_file(refuses):
    refuses("main_finetune", "--eval", "--resume", "auto", names=("--eval", "--resume"))
