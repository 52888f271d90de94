"""Pre-training end to end on digits, and what it refuses."""

import json
import math

import numpy as np
import pytest
import torch
from pages import check_page
from PIL import Image

from encoders.vit import Pretrained
from main_pretrain import restored
from util.training import journal

SHORT = ("--batch_size", 32, "--max_steps", 3, "--mi_start_loss", "inf")


def losses(outcome):
    assert outcome.status == 0, outcome.err
    (line,) = outcome.log()
    return {k: v for k, v in line.items() if k.startswith("train_")}


def test_a_run_leaves_its_log_its_results_and_its_checkpoints(pretrained):
    lines = pretrained.log()
    assert [line["epoch"] for line in lines] == [0, 1] and lines[1]["steps"] == 22
    assert lines[1]["train_rec"] < lines[0]["train_rec"]
    for name in ("loss", "rec", "max_mi", "min_mi", "apx", "info_nce_accuracy", "grad_norm"):
        assert math.isfinite(lines[1][f"train_{name}"])
    assert 20 < lines[1]["knn_acc1"] <= 100
    results = pretrained.results()
    assert results["knn_acc1"] == lines[1]["knn_acc1"] and "--knn_every 1" in results["command"]
    names = {path.name for path in pretrained.folder.glob("*.pth")}
    assert names == {"checkpoint-last.pth", "checkpoint-last-1.pth", "checkpoint-1.pth"}
    assert list(pretrained.folder.glob("events.*"))
    state = torch.load(pretrained.folder / "checkpoint-last.pth", weights_only=True)
    assert state["epoch"] == 2 and state["config"]["grid"] == [4, 4]
    assert pretrained.err == ""
    report = check_page(pretrained.folder / "report.html")
    for word in ("finished", "Reconstruction L_rec", "Throughput", "k-NN accuracy", "Inputs"):
        assert word in report.text
    assert (pretrained.folder / "inputs.png").exists()


def test_the_picture_of_reconstructions_is_legible(pretrained):
    with Image.open(pretrained.folder / "reconstructions.png") as image:
        pixels = np.asarray(image)
    assert pixels.shape[2] == 3
    assert pixels.shape[1] == 9 * (112 + 6) + 6  # the original, and two cells for each mask
    assert pixels.shape[0] >= 3 * (112 + 6)
    assert pixels.std() > 30


def test_same_command_same_numbers(run_main_here):
    runs = [losses(run_main_here("main_pretrain", *SHORT)) for _ in range(2)]
    assert runs[0] == runs[1]
    other = losses(run_main_here("main_pretrain", *SHORT, "--seed", 1))
    assert other["train_rec"] != runs[0]["train_rec"]


@pytest.mark.parametrize("flags", [(), ("--num_masks", 1, "--lambda_max", 0, "--lambda_min", 0)])
def test_zero_epochs_leave_the_weights_with_which_a_run_begins(run_main_here, flags):
    """A rate of zero keeps them; a second start finds them done; other mains may begin there."""
    still = run_main_here("main_pretrain", *flags, "--max_steps", 1, "--lr", 0)
    zero = run_main_here("main_pretrain", *flags, "--epochs", 0, "--warmup_epochs", 0)
    again = run_main_here("main_pretrain", *flags, "--epochs", 0, "--resume", "auto",
                          "--output_dir", zero.folder)  # fmt: skip
    assert again.status == zero.status == 0, zero.err + again.err
    assert "explained" not in zero.results() and "learnt next to nothing" not in zero.out
    begun, kept = (
        torch.load(one.folder / "checkpoint-last.pth", weights_only=True)["model"]
        for one in (still, again)
    )
    assert begun.keys() == kept.keys()
    assert all(torch.equal(value, kept[name]) for name, value in begun.items())
    tuned = run_main_here("main_finetune", "--max_steps", 1, "--finetune",
                          zero.folder / "checkpoint-last.pth")  # fmt: skip
    assert tuned.status == 0, tuned.err


def test_grad_checkpointing_gives_the_same_losses(run_main_here):
    plain = losses(run_main_here("main_pretrain", *SHORT))
    assert losses(run_main_here("main_pretrain", *SHORT, "--grad_checkpointing")) == pytest.approx(
        plain, rel=1e-5
    )


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_precision_stays_near(run_main_here, amp):
    exact = losses(run_main_here("main_pretrain", *SHORT))
    half = losses(run_main_here("main_pretrain", *SHORT, "--amp", amp))
    for name in ("train_rec", "train_max_mi", "train_apx"):
        assert half[name] == pytest.approx(exact[name], rel=0.02)


def test_accumulation_is_one_large_batch_for_the_reconstruction(run_main_here):
    """Step for step: with L_rec alone 2 x 16 images are 32."""
    flags = (
        "--max_steps",
        3,
        "--lambda_max",
        0,
        "--lambda_min",
        0,
        "--lr",
        1e-3,
        "--warmup_epochs",
        0,
    )
    whole = losses(run_main_here("main_pretrain", "--batch_size", 32, *flags))
    parts = losses(run_main_here("main_pretrain", "--batch_size", 16, "--accum_iter", 2, *flags))
    assert parts["train_rec"] == pytest.approx(whole["train_rec"], rel=1e-5)
    assert parts["train_grad_norm"] == pytest.approx(whole["train_grad_norm"], rel=1e-4)


def test_a_tail_of_an_accumulated_epoch_is_a_step(run_main_here):
    outcome = run_main_here("main_pretrain", "--batch_size", 256, "--accum_iter", 3, "--epochs", 1)
    assert outcome.status == 0, outcome.err
    assert outcome.log()[0]["steps"] == 2  # 1415 // 256 = 5 micro-batches: 3 and 2
    assert "one micro-batch of the 3" in outcome.out


def test_plain_mae(run_main_here):
    outcome = run_main_here(
        "main_pretrain", "--num_masks", 1, "--lambda_max", 0, "--lambda_min", 0,
        "--batch_size", 64, "--max_steps", 2,
    )  # fmt: skip
    numbers = losses(outcome)
    assert numbers["train_loss"] == numbers["train_rec"]
    assert numbers["train_max_mi"] == numbers["train_min_mi"] == numbers["train_apx"] == 0
    state = torch.load(outcome.folder / "checkpoint-last.pth", weights_only=True)
    assert not any(key.startswith("approximation") for key in state["model"])


@pytest.mark.parametrize(
    "flags",
    [
        ("--input_size", 8, 12),
        ("--in_chans", 3),
        ("--num_masks", 0, "--mask_ratio", 0.6),
        ("--mask_type", "independent", "--latent_pool", "mean", "--club_level", "token"),
        ("--no_train_approximation", "--norm_pix_loss", "--clip_grad", 1.0, "--visualize", 2,
         "--visualize_stats", "visible"),
    ],
    ids=lambda flags: flags[0][2:],
)  # fmt: skip
def test_other_options_run(run_main_here, flags):
    assert losses(run_main_here("main_pretrain", *SHORT, *flags))["train_rec"] > 0


def test_gradients_that_are_scaled_or_wide_may_be_compressed(run_main_here):
    for flags in (("--amp", "fp16", "--grad_compression", "fp16"), ("--grad_compression", "bf16")):
        assert losses(run_main_here("main_pretrain", *SHORT, *flags))["train_rec"] > 0


def test_patches_that_no_mask_reveals_are_counted(run_main_here):
    five = run_main_here("main_pretrain", *SHORT, "--mask_ratio", 0.8)  # 4 x 3 of 16
    assert "4 of 16 patches are in no mask (4 masks x 3 visible)" in five.out
    assert "in no mask" not in run_main_here("main_pretrain", *SHORT).out


def test_an_argument_file(run_main_here, tmp_path):
    (tmp_path / "run.args").write_text("# a recipe\n--batch_size 32 # images\n\n--max_steps 1\n")
    outcome = run_main_here("main_pretrain", f"@{tmp_path}/run.args")
    assert outcome.status == 0 and outcome.log()[0]["steps"] == 1


def test_the_gate_and_all_else_survive_an_interruption(run_main_here, tmp_path):
    flags = ("--batch_size", 128, "--mi_start_loss", 1.6, "--lr", 1e-3, "--warmup_epochs", 0)
    whole = run_main_here("main_pretrain", *flags, "--epochs", 1)
    assert whole.status == 0, whole.err
    first = run_main_here(
        "main_pretrain", *flags, "--epochs", 1, "--save_every_steps", 4, "--max_steps", 11
    )
    # checkpoint-last-1 stands at step 8 of 11, inside the epoch.
    middle = first.folder / "checkpoint-last-1.pth"
    state = torch.load(middle, weights_only=True)
    assert state["progress"]["step"] == 8
    assert state["gate"]["is_open"] and 0 < state["gate"]["num_updates"] <= 8
    resumed = run_main_here("main_pretrain", *flags, "--epochs", 1, "--resume", middle)
    assert resumed.status == 0, resumed.err
    assert resumed.log() == whole.log()
    states = [
        torch.load(outcome.folder / "checkpoint-last.pth", weights_only=True)
        for outcome in (whole, resumed)
    ]
    assert states[0]["gate"] == states[1]["gate"]
    for key, value in states[0]["model"].items():
        assert torch.equal(value, states[1]["model"][key]), key


# --------------------------------------------------------------------------------- images of users


def test_arrays_of_five_channels_end_to_end(run_main_here, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(8):
        np.save(tmp_path / f"{i}.npy", rng.integers(0, 256, (10, 12, 5), dtype=np.uint8))
    numbers = losses(
        run_main_here(
            "main_pretrain", "--dataset", "flat", "--data_path", tmp_path, "--in_chans", 5,
            "--input_size", 8, "--model", "mimae_vit_tiny_patch2", "--batch_size", 4,
            "--num_workers", 0, "--epochs", 1, "--visualize", 2,
        )
    )  # fmt: skip
    assert numbers["train_rec"] > 0


def damaged_folder(tmp_path, bad):
    for i in range(12):
        Image.new("L", (8, 8), 20 * i).save(tmp_path / f"{i}.png")
    for i in bad:
        (tmp_path / f"{i}.png").write_text("no image")
    return (
        "--dataset", "flat", "--data_path", tmp_path, "--in_chans", 1, "--input_size", 8,
        "--model", "mimae_vit_tiny_patch2", "--batch_size", 4, "--epochs", 1,
    )  # fmt: skip


def test_bad_images_are_named_and_counted(run_main_here, tmp_path):
    flags = damaged_folder(tmp_path, bad=(2, 5))
    outcome = run_main_here("main_pretrain", *flags, "--num_workers", 0)
    assert outcome.status == 0
    assert outcome.out.count("unreadable image") == 2
    assert f"{tmp_path}/5.png" in outcome.out


def test_too_many_bad_images_end_with_status_4(run_main_here, tmp_path):
    flags = damaged_folder(tmp_path, bad=(2, 5))
    outcome = run_main_here("main_pretrain", *flags, "--num_workers", 1, "--max_bad_images", 1)
    assert outcome.status == 4
    assert outcome.err.count("\n") == 1 and "--max_bad_images 1" in outcome.err


# ------------------------------------------------------------------------------------- bad input


class Hostile:
    """Unpickling it would run a command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_bad_flags_are_refused_in_one_line(refuses, tmp_path):
    main = "main_pretrain"
    refuses(main, "--input_size", 9, names=("--input_size", "9"))
    refuses(main, "--input_size", 8, 9, names=("--input_size",))
    for ratio in (0, 1, 1.5):
        refuses(main, "--mask_ratio", ratio, names=(f"--mask_ratio {ratio}",))
    refuses(main, "--mask_ratio", 0.99, names=("--mask_ratio", "16 patches"))
    refuses(main, "--num_masks", 1, names=("--num_masks 1", "--lambda_max"))
    refuses(main, "--num_masks", 100, names=("--num_masks 100", "16, the patches"))
    refuses(main, "--seed", -1, names=("--seed",))
    refuses(main, "--lr", 1000, names=("--lr", "100"))
    refuses(main, "--batch_size", 5000, names=("--batch_size 5000", "1415"))
    refuses(main, "--batch_size", 512, "--accum_iter", 3, names=("--accum_iter 3",))
    refuses(main, "--lambda_rec", 0, names=("--lambda_rec", "--mi_start_loss"))
    for amp in ("bf16", "none"):
        said = refuses(main, "--amp", amp, "--grad_compression", "fp16", names=(f"--amp {amp}",))
        assert "--grad_compression fp16 loses" in said and "--grad_compression bf16, or" in said
    refuses(main, "--epochs", -1, names=("--epochs", "-1"))
    refuses("main_finetune", "--epochs", 0, names=("--epochs", "0"))
    refuses(main, "--pred_ratio", 2, names=("--pred_ratio 2",))
    refuses(main, "--model", "simmim_swin_mini_patch2", "--pred_ratio", 0.5,
            names=("--pred_ratio", "SimMIM"))  # fmt: skip
    refuses(main, "--model", "simmim_swin_mini_patch2", "--decoder_depth", 2,
            names=("--decoder_depth", "SimMIM"))  # fmt: skip
    for loss in ("--lambda_max", "--lambda_uniformity"):
        refuses(main, "--model", "mae_vit_tiny_patch2", loss, 0.1,
                names=("--model mae_vit", "mimae_vit_tiny_patch2"))  # fmt: skip
    refuses(main, "--model", "mimae_vit_giant", names=("--model", "mimae_vit_giant"))
    refuses(main, "--dataset", "imagenet", names=("--dataset", "imagenet"))
    refuses(main, "--monitor_share", 0.5, names=("--monitor_share", "without --monitor_every"))
    refuses(main, "--lr", 1e-3, "--blr", 1e-3, names=("--lr", "--blr"))
    refuses(main, "--lr", 1e-3, "--lr", 1e-2, names=("--lr", "twice"))
    refuses(main, f"@{tmp_path}/absent.args", names=("absent.args",))


def test_going_back_by_hand_is_not_undone_by_the_next_start(run_main_here, tmp_path):
    """Later checkpoints are set aside, and what is there is the one that was named."""
    words = ("main_pretrain", "--model", "mimae_vit_nano_patch2", "--batch_size", 32, "--epochs", 3)
    kept = ("--keep_epochs", 1, "--warmup_epochs", 0, "--train_fraction", 0.1)
    assert run_main_here(*words, *kept, folder=tmp_path / "a").status == 0
    saved = tmp_path / "a" / "checkpoint-1.pth"
    steps = torch.load(saved, weights_only=True)["progress"]["total_steps"]
    back = ("--resume", saved, "--max_steps", steps)  # it does nothing, as one that is killed
    outcome = run_main_here(*words, *kept, *back, folder=tmp_path / "a")
    assert outcome.status == 0, outcome.err
    last = torch.load(tmp_path / "a" / "checkpoint-last.pth", weights_only=True)
    assert last["progress"]["total_steps"] == steps
    aside = {path.name for path in (tmp_path / "a" / "previous-1").iterdir()}
    assert "checkpoint-last.pth" in aside and saved.name not in aside
    again = run_main_here(*words, *kept, "--resume", "auto", folder=tmp_path / "a")
    assert again.status == 0 and [line["epoch"] for line in again.log()] == [0, 1, 2]


def test_a_full_disk_at_the_end_costs_a_picture_or_one_line(run_main_here, tmp_path, monkeypatch):
    """The training is whole: what is missing is said, and --resume auto writes the results."""

    def is_full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    words = ("main_pretrain", *SHORT, "--visualize", 2)
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", is_full)
        outcome = run_main_here(*words, folder=tmp_path / "a")
    assert outcome.status == 0, outcome.err
    assert "reconstructions.png cannot be written (No space left" in outcome.out + outcome.err
    assert outcome.results()["epoch"] == 0
    with monkeypatch.context() as patch:
        patch.setattr(journal.json, "dump", is_full)
        outcome = run_main_here(*words, folder=tmp_path / "b")
    assert outcome.status == 1 and "results.json cannot be written" in outcome.err
    outcome = run_main_here(*words, "--resume", "auto", folder=tmp_path / "b")
    assert outcome.status == 0 and outcome.results()["epoch"] == 0


def test_bad_data_is_refused_in_one_line(refuses, tmp_path):
    main = "main_pretrain"
    refuses(main, "--data_path", tmp_path / "absent", names=("--data_path", "absent"))
    refuses(main, "--dataset", "image_folder", names=("--data_path",))
    refuses(main, "--data_path", tmp_path, names=("--data_path", "train/"))
    refuses(main, "--dataset", "flat", "--data_path", tmp_path, names=("--data_path", "no image"))
    refuses(main, "--subset_file", tmp_path / "absent", names=("--subset_file", "absent"))
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_text("no image")
    refuses(
        main, "--dataset", "flat", "--data_path", tmp_path, "--batch_size", 2, "--num_workers", 1,
        "--model", "mimae_vit_tiny_patch4", "--input_size", 8, names=("--data_path", ".jpg"),
    )  # fmt: skip


def test_bad_checkpoints_are_refused_in_one_line(refuses, tmp_path, checkpoint):
    main = "main_pretrain"
    refuses(main, "--resume", tmp_path / "absent.pth", names=("absent.pth",))
    torch.save({"model": Hostile(tmp_path / "ran")}, tmp_path / "hostile.pth")
    refuses(main, "--resume", tmp_path / "hostile.pth", names=("hostile.pth", "refused"))
    assert not (tmp_path / "ran").exists()
    (tmp_path / "text.pth").write_text("text")
    refuses(main, "--resume", tmp_path / "text.pth", names=("text.pth",))
    whole = checkpoint.read_bytes()
    (tmp_path / "short.pth").write_bytes(whole[: len(whole) // 2])
    refuses(main, "--resume", tmp_path / "short.pth", names=("short.pth", "damaged"))
    refuses(main, "--resume", checkpoint, "--model", "mimae_vit_tiny_patch4",
            names=("--model", "mimae_vit_tiny_patch2"))  # fmt: skip
    refuses(main, "--resume", checkpoint, "--in_chans", 3,
            names=("patch_embed.proj.weight [128, 1, 2, 2]", "[128, 3, 2, 2]"))  # fmt: skip
    refuses(main, "--resume", checkpoint, "--lambda_min", 0,
            names=("approximation.", "--lambda_min 0 (the checkpoint's run: 10)"))  # fmt: skip
    refuses(main, "--resume", checkpoint, "--no_train_approximation", names=("--resume",))


@pytest.mark.slow
def test_a_checkpoint_without_loss_scaling_goes_on_with_it(run_main_here, checkpoint):
    outcome = run_main_here(
        "main_pretrain", "--resume", checkpoint, "--amp", "fp16", "--batch_size", 128, "--epochs",
        3, "--max_steps", 24, "--mi_start_loss", "inf",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    assert json.loads((outcome.folder / "log.txt").read_text())["steps"] == 24


def test_resuming_a_run_from_elsewhere_sets_aside_what_was_here(run_main_here, checkpoint):
    here = run_main_here("main_pretrain", *SHORT, "--visualize", 1)
    log = (here.folder / "log.txt").read_text()
    other = ("--model", "mimae_vit_tiny_patch4", "--resume", checkpoint)
    assert run_main_here("main_pretrain", *other, folder=here.folder).status == 2
    assert not (here.folder / "previous-1").exists()  # what is refused moves nothing
    flags = ("--batch_size", 128, "--epochs", 3, "--resume", checkpoint)
    assert run_main_here("main_pretrain", *flags, folder=here.folder).status == 0
    aside = here.folder / "previous-1"
    assert (aside / "log.txt").read_text() == log
    assert (aside / "reconstructions.png").exists() and (aside / "checkpoint-last.pth").exists()
    last = here.folder / "checkpoint-last.pth"
    flags = ("--batch_size", 128, "--epochs", 4, "--resume", last)
    assert run_main_here("main_pretrain", *flags, folder=here.folder).status == 0
    assert not (here.folder / "previous-2").exists()


def test_a_finished_run_that_max_steps_cut_keeps_its_last_line(run_main_here, tmp_path):
    """As after a kill between the last save and the end."""
    flags = ("--train_fraction", 0.1, "--max_steps", 5, "--batch_size", 32, "--resume", "auto")
    first = run_main_here("main_pretrain", *flags, folder=tmp_path)
    log = (tmp_path / "log.txt").read_text()
    assert first.status == 0 and json.loads(log.splitlines()[-1])["steps"] == 5
    again = run_main_here("main_pretrain", *flags, folder=tmp_path)
    assert again.status == 0 and (tmp_path / "log.txt").read_text() == log
    assert again.results()["steps"] == 5


def test_a_shallower_decoder_is_built_trained_and_restored(run_main_here):
    outcome = run_main_here("main_pretrain", *SHORT, "--decoder_depth", 1)
    assert losses(outcome)["train_rec"] > 0
    found = Pretrained(str(outcome.folder / "checkpoint-last.pth"))
    assert len(restored(found, "mimae_vit_tiny_patch2").decoder_blocks) == 1
