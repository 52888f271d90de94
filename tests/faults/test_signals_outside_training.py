"""Ctrl-C and SIGTERM while nothing is trained: the program ends at once."""

import os
import signal
import time

import pytest
from harness import wait_for
from mains import run_in_process

LINES = "what is on the disk is kept, and the same command goes on with it"


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    """A segmenter's checkpoint, and a folder of many scenes to predict."""
    root = tmp_path_factory.mktemp("scenes")
    from tools import scenes

    words = f"{root}/data --size 64 --images 4 --val_images 400 --one_class digit --num_workers 0"
    scenes.main(scenes.parse_args(words.split()))
    flags = (
        f"--data_path {root}/data --model vit_tiny_patch2 --input_size 32 --decoder_channels 8 "
        "--batch_size 2 --iterations 1 --eval_every 1 --warmup_iterations 0 --num_workers 0 --eval"
    )
    trained = run_in_process(
        "main_segmentation", *flags.removesuffix(" --eval").split(), folder=root / "trained"
    )
    assert trained.status == 0, trained.err
    return root / "trained" / "checkpoint-last.pth", root / "data" / "images" / "validation"


def interrupted(zygote, main: str, argv: list, log, has_begun, numbers: tuple[int, ...]) -> int:
    """The status of a program that is sent signals once it has begun; it ends within seconds."""
    pid = zygote.start(main, [*map(str, argv), "--num_workers", "0"], log)
    deadline = time.monotonic() + 120
    while not has_begun():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)
    started = time.monotonic()
    for number in numbers:
        os.kill(pid, number)
    status = zygote.wait()
    assert time.monotonic() - started < 60, log.read_text()
    return status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_frozen_evaluation_ends_and_goes_on_from_its_features(
    zygote, tmp_path, checkpoint, number
):
    log, out = tmp_path / "stdout", tmp_path / "out"
    argv = [checkpoint, "--output_dir", out, "--device", "cpu", "--only"]
    status = interrupted(
        zygote, "main_evaluate", [*argv, "few", "--draws", 1000], log,
        lambda: (out / "features").exists(), (number,),
    )  # fmt: skip
    said = log.read_text()
    assert status == 75, said
    assert f"{signal.Signals(number).name}: {LINES}" in said and "error:" not in said
    assert not (out / "evaluation.md").exists()
    if number == signal.SIGTERM:
        again = [*map(str, argv), "knn"]
        assert zygote.run("main_evaluate", again, log) == 0, log.read_text()
        assert (out / "evaluation.md").exists()


@pytest.mark.slow
def test_robustness_ends(zygote, tmp_path, finetuned):
    log, out = tmp_path / "stdout", tmp_path / "out"
    classifier = finetuned.folder / "checkpoint-last.pth"
    argv = [classifier, "--dataset", "digits", "--corrupt", "--output_dir", out, "--device", "cpu"]
    status = interrupted(
        zygote, "main_robustness", argv, log, lambda: any(out.glob("**/*.npy")), (signal.SIGINT,)
    )
    assert status == 75, log.read_text()
    assert f"SIGINT: {LINES}" in log.read_text()


@pytest.mark.slow
def test_predictions_end(zygote, tmp_path, segmenter):
    log, out = tmp_path / "stdout", tmp_path / "out"
    trained, images = segmenter
    argv = ["--predict", images, "--resume", trained, "--output_dir", out, "--device", "cpu"]
    status = interrupted(
        zygote, "main_segmentation", argv, log, lambda: any(out.glob("**/*.png")),
        (signal.SIGTERM,),
    )  # fmt: skip
    assert status == 75, log.read_text()
    assert not (out / "results.json").exists()
    assert 0 < len(list(out.glob("labels/*.png"))) < 400


def test_a_signal_before_training_begins_ends_the_run(zygote, tmp_path):
    """While data are read there is nothing to save."""
    log = tmp_path / "stdout"
    argv = ["--device", "cpu", "--output_dir", tmp_path / "out"]
    status = interrupted(
        zygote, "main_pretrain", argv, log, lambda: (tmp_path / "out").exists(), (signal.SIGTERM,)
    )
    said = log.read_text()
    assert status == 75, said
    assert LINES in said or "the run is saved" in said  # it may have begun meanwhile


def test_training_still_finishes_its_step(zygote, tmp_path):
    log = tmp_path / "stdout"
    argv = ["--device", "cpu", "--output_dir", str(tmp_path / "out"), "--log_seconds", "0"]
    pid = zygote.start("main_pretrain", [*argv, "--num_workers", "0"], log)
    wait_for(log, "epoch 0 1/")
    os.kill(pid, signal.SIGTERM)
    assert zygote.wait() == 75 and "SIGTERM: the run is saved" in log.read_text()
    assert (tmp_path / "out" / "checkpoint-last.pth").exists()
