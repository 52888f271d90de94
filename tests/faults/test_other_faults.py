"""Full disks, poisonous batches, lost folders, locks: what the user reads, what survives."""

import json
import os
import pathlib
import pickle
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from harness import REPOSITORY, differing, flags, wait_for

from util.errors import UsageError
from util.training.checkpoint import Checkpointer
from util.training.output import OutputFolder
from util.weights import checkpoint_file
from util.weights.checkpoint_file import read_checkpoint, write_atomically


def start_and_stop(zygote, output: pathlib.Path, *more: str) -> pathlib.Path:
    """A run ended by a signal inside its first epoch; its standard output."""
    log = output / "stdout"
    pid = zygote.start("main_pretrain", flags("main_pretrain", output, *more), log)
    wait_for(log, "epoch 0 3/4")
    os.kill(pid, signal.SIGTERM)
    assert zygote.wait() == 75, log.read_text()
    return log


# --------------------------------------------------------------------------- damaged checkpoints


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_damaged_newest_checkpoint_is_named_and_the_one_before_used(
    zygote, undisturbed, tmp_path, damage
):
    log = start_and_stop(zygote, tmp_path)
    newest = tmp_path / "checkpoint-last.pth"
    data = bytearray(newest.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 0x10
    newest.write_bytes({"truncated": data[: len(data) // 2], "empty": b""}.get(damage, data))
    argv = flags("main_pretrain", tmp_path, "--resume", "auto")
    assert zygote.run("main_pretrain", argv, log) == 0, log.read_text()
    assert f"passed over: {newest} is damaged" in log.read_text()
    assert "resumed from" in log.read_text()
    assert differing(undisturbed("main_pretrain"), tmp_path) == []


def test_no_whole_checkpoint_is_an_error_not_a_new_run(zygote, tmp_path):
    (tmp_path / "checkpoint-last.pth").write_bytes(b"junk")
    log = tmp_path / "stdout"
    argv = flags("main_pretrain", tmp_path, "--resume", "auto")
    assert zygote.run("main_pretrain", argv, log) == 2
    assert log.read_text().splitlines()[-1].startswith("error: --resume auto")


def test_clock_jumps_do_not_change_what_is_newest(zygote, undisturbed, tmp_path):
    log = start_and_stop(zygote, tmp_path)
    os.utime(tmp_path / "checkpoint-last.pth", (0, 0))
    os.utime(tmp_path / "checkpoint-last-1.pth", (2**31, 2**31))
    argv = flags("main_pretrain", tmp_path, "--resume", "auto")
    assert zygote.run("main_pretrain", argv, log) == 0, log.read_text()
    assert f"resumed from {tmp_path / 'checkpoint-last.pth'}" in log.read_text()
    assert differing(undisturbed("main_pretrain"), tmp_path) == []


class Hostile:
    def __init__(self, witness: pathlib.Path):
        self.witness = witness

    def __reduce__(self):
        return os.system, (f"touch {self.witness}",)


@pytest.mark.parametrize("container", ["torch", "pickle"])
def test_hostile_pickle_is_refused_and_does_not_run(tmp_path, container):
    path, witness = tmp_path / "evil.pth", tmp_path / "witness"
    if container == "torch":
        torch.save({"model": Hostile(witness)}, path)
    else:
        path.write_bytes(pickle.dumps({"model": Hostile(witness)}))
    with pytest.raises(UsageError, match="refused, and nothing of it was run"):
        read_checkpoint(str(path))
    assert not witness.exists()


def test_official_checkpoint_with_a_namespace_loads(tmp_path):
    """MAE's files carry the argparse namespace of their run."""
    import argparse

    path = tmp_path / "mae.pth"
    args = argparse.Namespace(lr=1e-3, output_dir=pathlib.PosixPath("out"))
    torch.save({"model": {"cls_token": torch.zeros(1)}, "args": args, "epoch": 3}, path)
    assert read_checkpoint(str(path))["args"].lr == 1e-3


# ------------------------------------------------------------------------------------- full disks


def mount_small_disk(folder: pathlib.Path, size: str, remount: bool = False) -> None:
    option = f"{'remount,' if remount else ''}size={size}"
    command = ["mount", "-t", "tmpfs", "-o", option, "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs the right to mount a tmpfs: {done.stderr.strip()}")


def test_full_disk_keeps_the_old_checkpoint_and_training(zygote, undisturbed, tmp_path):
    """The first checkpoint (17 MB) fits, the second does not; then the disk grows."""
    disk, log = tmp_path / "disk", tmp_path / "stdout"
    disk.mkdir()
    mount_small_disk(disk, "25m")
    try:
        argv = flags("main_pretrain", disk, "--resume", "auto")
        assert zygote.run("main_pretrain", argv, log) == 1
        text = log.read_text()
        assert text.count("COULD NOT BE SAVED") >= 10
        assert "No space left" in text or "write" in text
        assert "epoch 2  steps 12" in text  # it trained to its end
        assert text.splitlines()[-1].startswith("error: the run's last checkpoint could not be")
        assert read_checkpoint(str(disk / "checkpoint-last.pth"))["progress"]["total_steps"] == 1
        assert not list(disk.glob("*.tmp"))
        mount_small_disk(disk, "100m", remount=True)
        assert zygote.run("main_pretrain", argv, log) == 0, log.read_text()
        assert differing(undisturbed("main_pretrain"), disk) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint-last.pth"
    write_atomically(str(path), {"step": 1})

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_file.os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(str(path), {"step": 2})
    assert read_checkpoint(str(path)) == {"step": 1}


def test_vanished_output_folder_is_made_again(zygote, tmp_path):
    output, log = tmp_path / "output", tmp_path / "stdout"
    pid = zygote.start("main_pretrain", flags("main_pretrain", output), log)
    wait_for(log, "epoch 0 2/4")
    os.kill(pid, signal.SIGSTOP)
    shutil.rmtree(output)
    os.kill(pid, signal.SIGCONT)
    assert zygote.wait() == 0, log.read_text()
    state = read_checkpoint(str(output / "checkpoint-last.pth"))
    assert state["progress"]["total_steps"] == 12


# ------------------------------------------------------------------------------------------ folders


def test_second_run_on_one_folder_is_refused_until_the_first_is_dead(zygote, tmp_path):
    log = tmp_path / "stdout"
    argv = flags("main_pretrain", tmp_path, "--epochs", "1000", "--num_workers", "1")
    pid = zygote.start("main_pretrain", argv, log)
    wait_for(log, "epoch 0 1/4")
    with pytest.raises(UsageError, match="is in use by another run"):
        OutputFolder(str(tmp_path))
    os.kill(pid, signal.SIGKILL)
    zygote.wait()
    # Its worker may live a moment longer and must not hold the lock.
    OutputFolder(str(tmp_path)).lock.close()


def test_folder_that_cannot_be_written(zygote, tmp_path):
    (tmp_path / "file").write_text("")
    log = tmp_path / "stdout"
    argv = flags("main_pretrain", tmp_path / "file" / "output")
    assert zygote.run("main_pretrain", argv, log) == 2
    assert log.read_text().startswith("error: --output_dir") and log.read_text().count("\n") == 1


def test_read_only_folder(zygote, tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount_small_disk(folder, "1m")
    try:
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        log = tmp_path / "stdout"
        assert zygote.run("main_pretrain", flags("main_pretrain", folder), log) == 2
        assert "cannot be written (Read-only file system)" in log.read_text()
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_an_earlier_run_is_set_aside_not_overwritten(zygote, tmp_path):
    log = start_and_stop(zygote, tmp_path)
    before = (tmp_path / "checkpoint-last.pth").read_bytes()
    argv = flags("main_pretrain", tmp_path, "--max_steps", "1")
    assert zygote.run("main_pretrain", argv, log) == 0, log.read_text()
    assert (tmp_path / "previous-1" / "checkpoint-last.pth").read_bytes() == before


# ------------------------------------------------------------------------------- poisonous batches


@pytest.fixture
def poisoned_images(tmp_path):
    """40 images, one of which makes every loss infinite; its path."""
    folder = tmp_path / "images"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for i in range(40):
        np.save(folder / f"{i:02d}.npy", draw.random((8, 8, 1), dtype=np.float32))
    np.save(folder / "13.npy", np.full((8, 8, 1), 3e38, dtype=np.float32))
    return folder


def poisoned_flags(images: pathlib.Path, output: pathlib.Path, *more: str) -> list[str]:
    data = f"--dataset flat --data_path {images} --in_chans 1 --input_size 8 --num_workers 0"
    words = f"{data} --model mimae_vit_tiny_patch2 --batch_size 8 --epochs 2 --log_seconds 0"
    words += f" --output_dir {output} --device cpu --no-norm_pix_loss --min_crop 1"
    words += " --no-flip --log_every 1"
    return [*words.split(), *more]


def test_nonfinite_loss_stops_and_is_written_down(zygote, tmp_path, poisoned_images):
    output, log = tmp_path / "output", tmp_path / "stdout"
    argv = poisoned_flags(poisoned_images, output, "--save_every_steps", "1")
    assert zygote.run("main_pretrain", argv, log) == 3, log.read_text()
    assert "error: the loss is not finite at step" in log.read_text().splitlines()[-1]
    record = json.loads((output / "nonfinite.json").read_text())
    assert str(poisoned_images / "13.npy") in record["images"] and len(record["indices"]) == 8
    if (output / "checkpoint-last.pth").exists():
        state = read_checkpoint(str(output / "checkpoint-last.pth"))
        assert state["progress"]["total_steps"] <= record["total_step"]
        assert all(torch.isfinite(weight).all() for weight in state["model"].values())


@pytest.mark.parametrize("log_every", ["1", "1000"])
def test_rollback_passes_over_the_batch(zygote, tmp_path, poisoned_images, log_every):
    """Once an epoch; whether the loss is looked at every step or not, the result is the same."""
    output, log = tmp_path / f"output{log_every}", tmp_path / "stdout"
    argv = poisoned_flags(poisoned_images, output, "--on_nonfinite", "rollback")
    argv += ["--log_every", log_every]
    assert zygote.run("main_pretrain", argv, log) == 0, log.read_text()
    state = read_checkpoint(str(output / "checkpoint-last.pth"))
    assert len(state["progress"]["skipped"]) == 2 and state["progress"]["total_steps"] == 10
    assert all(torch.isfinite(weight).all() for weight in state["model"].values())


def test_an_epoch_of_which_every_step_is_passed_over(zygote, tmp_path, poisoned_images):
    """It has no losses to tell, and the run goes on."""
    output, log = tmp_path / "output", tmp_path / "stdout"
    argv = poisoned_flags(poisoned_images, output, "--on_nonfinite", "rollback")
    argv += ["--batch_size", "40"]
    assert zygote.run("main_pretrain", argv, log) == 0, log.read_text()
    lines = [json.loads(line) for line in (output / "log.txt").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1]
    assert not any("train_rec" in line for line in lines)


def test_rollbacks_are_bounded(zygote, tmp_path, poisoned_images):
    output, log = tmp_path / "output", tmp_path / "stdout"
    argv = poisoned_flags(poisoned_images, output, "--on_nonfinite", "rollback")
    argv += ["--max_rollbacks", "1"]
    assert zygote.run("main_pretrain", argv, log) == 3
    assert "--max_rollbacks 1 are used up" in log.read_text().splitlines()[-1]


def test_rollback_after_resuming_elsewhere(zygote, tmp_path, poisoned_images):
    """The run saves nothing before the batch that does it, but for what it starts with."""
    first, output, log = tmp_path / "first", tmp_path / "output", tmp_path / "stdout"
    argv = poisoned_flags(poisoned_images, first, "--max_steps", "1")
    assert zygote.run("main_pretrain", argv, log) == 0, log.read_text()
    output.mkdir()
    shutil.copy(first / "checkpoint-last.pth", output / "checkpoint-9.pth")  # of another run
    state = torch.load(output / "checkpoint-9.pth", weights_only=True)
    state["progress"]["total_steps"] = 90
    torch.save(state, output / "checkpoint-9.pth")
    argv = poisoned_flags(poisoned_images, output, "--on_nonfinite", "rollback")
    argv += ["--save_every_epochs", "1000", "--resume", str(first / "checkpoint-last.pth")]
    assert zygote.run("main_pretrain", argv, log) == 0, log.read_text()
    state = read_checkpoint(str(output / "checkpoint-last.pth"))
    assert len(state["progress"]["skipped"]) == 2 and state["progress"]["total_steps"] == 10


def test_rollback_goes_back_to_what_was_resumed_and_not_to_what_came_after(
    zygote, tmp_path, poisoned_images
):
    """--resume of an older checkpoint in the run's own folder."""
    output, log = tmp_path / "output", tmp_path / "stdout"
    argv = poisoned_flags(poisoned_images, output, "--max_steps", "1")
    assert zygote.run("main_pretrain", argv, log) == 0, log.read_text()
    older, last = output / "checkpoint-1.pth", output / "checkpoint-last.pth"
    state = torch.load(last, weights_only=True)
    last.rename(older)
    state["progress"]["total_steps"] = 90  # as if the run had been at step 90
    torch.save(state, last)
    argv = poisoned_flags(poisoned_images, output, "--on_nonfinite", "rollback")
    argv += ["--save_every_epochs", "1000", "--resume", str(older)]
    assert zygote.run("main_pretrain", argv, log) == 0, log.read_text()
    assert read_checkpoint(str(last))["progress"]["total_steps"] == 10


def test_rollback_that_finds_no_checkpoint_ends_with_3(
    run_main_here, monkeypatch, tmp_path, poisoned_images
):
    monkeypatch.setattr(Checkpointer, "save", lambda self, keep_as=None, wait=False: True)
    argv = poisoned_flags(poisoned_images, tmp_path / "output", "--on_nonfinite", "rollback")
    outcome = run_main_here("main_pretrain", *argv, folder=tmp_path / "output")
    assert outcome.status == 3 and outcome.err.count("\n") == 1, outcome.err
    assert "the loss is not finite" in outcome.err and "(there is none)" in outcome.err


def test_rollback_on_two_ranks(tmp_path, poisoned_images):
    output = tmp_path / "output"
    argv = poisoned_flags(poisoned_images, output, "--on_nonfinite", "rollback")
    argv[argv.index("--batch_size") + 1] = "4"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc_per_node", "2", "main_pretrain.py", *argv]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stdout + done.stderr
    state = read_checkpoint(str(output / "checkpoint-last.pth"))
    assert len(state["progress"]["skipped"]) == 2 and state["progress"]["total_steps"] == 10


# --------------------------------------------------------------------------------- images, memory


def test_images_removed_and_cut_during_the_run(zygote, tmp_path):
    images, output, log = tmp_path / "images", tmp_path / "output", tmp_path / "stdout"
    images.mkdir()
    draw = np.random.default_rng(0)
    for i in range(64):
        np.save(images / f"{i:02d}.npy", draw.random((8, 8, 1), dtype=np.float32))
    argv = poisoned_flags(images, output, "--epochs", "4", "--num_workers", "2")
    pid = zygote.start("main_pretrain", argv, log)
    wait_for(log, "epoch 0 2/8")
    os.kill(pid, signal.SIGSTOP)
    (images / "07.npy").unlink()
    (images / "08.npy").write_bytes((images / "08.npy").read_bytes()[:150])
    os.kill(pid, signal.SIGCONT)
    assert zygote.wait() == 0, log.read_text()
    for name in ("07.npy", "08.npy"):
        assert f"replaced: {images / name}" in log.read_text()


def test_out_of_memory_names_the_flags(capsys):
    from util.entry import run_main

    def main(args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    with pytest.raises(SystemExit) as exit:
        run_main(main, lambda: None)
    assert exit.value.code == 5
    error = capsys.readouterr().err
    assert "--batch_size" in error and "--grad_checkpointing" in error and error.count("\n") == 1
