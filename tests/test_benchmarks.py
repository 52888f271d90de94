"""The benchmarks run and print what they promise; what they print is nobody's business here."""

import re
import subprocess
import sys

import pytest

CASES = {
    "false_verdicts": (
        "--tables 8 --gains 8",
        r"varies three times as much \| 5( \| [\d.]+ \([\d.]+\)){4} \|\n[^$]*"
        r"\| 8 \| 5( \| \d+){4} \|",
    ),
    "find_images": ("--images 10000", r"ours +[\d.]+ s for 10000 images"),
    "checkpoint_cost": (
        "--model mimae_vit_tiny_patch2 --input_size 8 --in_chans 1 --rounds 1 --wait 0.01",
        r"waits for +[\d.]+ s\n.*training feels -?[\d.]+ s = -?[\d.]+ x of that: the copy",
    ),
    "corruptions": (
        "--images 2",
        r"\| fog( \| 0\.\d{4}){5} \| [\d.]+ \|\n[^$]*ImageNet-C: +[\d.]+ hours of one core",
    ),
    "data_loading": (
        "--images 64 --rounds 1",
        r"ours, PIL, files +\d+ images/s of one core +[\d.]+ x[^$]*"
        r"ours, PIL, shards +\d+ images/s of one core +[\d.]+ x +[\d.]+ of files[^$]*"
        r"ours, PIL, parquet .* of files[^$]*ours, PIL, cache .* of files",
    ),
    "start_up": (
        "--images 1000 --coco_images 20 --annotations 40 --ranks 1",
        r"folder +first +[\d.]+ s, [^$]* 1000 images, 1 ranks\n[^$]*"
        r"coco +second +[\d.]+ s, [^$]* 20 images, 1 ranks\n",
    ),
    "pretrain_step": (
        "--models small --images 1 --input_size 32 --steps 1 --rounds 1 --without_mi --threads 1 "
        "--pred_ratio 0.5 --amp none",
        r"without MI terms fp32, ViT-small, 1 x 4 +[\d.]+ +[\d.]+ +[\d.]+% +[\d.]+ +[\d.]+ x\n"
        r"pred_ratio 0.5 fp32, ViT-small",
    ),
    "peers/pretraining": (
        "--model nano --input_size 28 --samples 4 --rounds 1 --threads 1 --amp none "
        "--peers mimae lightly",
        r"\n\| ours, MI-MAE, 4 masks \| [\d.]+ \| [\d.]+ \([^)]*\) \| [^$]*\| ours, MAE \| 425619 ",
    ),
    "scaling": (
        "--images 2 --input_size 32 --num_masks 4 --processes 1 2 --steps 1 --rounds 1 "
        "--files 1000 2000 --classes 3 6 --step_images 2 --stored 500 1000 --sides 32 64 "
        "--window 32",
        r" 2 +32 +4 +1 +[\d.]+ +[\d.]+ +[\d.]+ +[\d.]+\n +2 +32 +4 +2 +([\d.]+|more)"
        r"[^$]*\| index of a folder, first start \| files \| 1000: [\d.]+, 2000: [\d.]+ \| 1 "
        r"\| -?[\d.]+ \|[^$]*\| k-NN \| images \| 500: [^$]*\| detection \| pixels \| 1024: ",
    ),
    "segmentation_step": (
        "--model vit_tiny_patch4 --input_size 32 --classes 3 --rounds 1 --threads 1 "
        "--grad_checkpointing",
        r", checkpointed: [\d.]+ s, [\d.]+ TFLOP and [\d.]+ GiB kept per crop.*\n"
        r"160000 steps of 16 crops on 8 GPUs.*\(calculated\)",
    ),
    "detection_step": (
        "--model vit_tiny_patch4 --input_size 32 --classes 3 --rounds 1 --threads 1",
        r": [\d.]+ s, [\d.]+ TFLOP and [\d.]+ GiB kept per image.*\n"
        r"184375 steps of 64 images on 8 GPUs.*\(calculated\)",
    ),
    "mask_ceiling": (
        "--objects 3 --megapixels 0.5 --detections 3",
        r"encoded in the box +612 x 816 +[\d.]+ s +[\d.]+ MiB[^$]*\n"
        r"at centres +at centres +large +0\.9\d+ +[\d.]+ +100\.0",
    ),
    "equal_samples": (
        "--variants MI-MAE: --dataset digits --train_fraction 0.2 --epochs 4 --seeds 0 "
        "--probe_images 200 --few 4 --draws 2 --pixels --jobs 2",
        r"MI-MAE +seed 0 +linear [\d.]+ +few [\d.]+ +knn [\d.]+[^$]*\| MI-MAE \| 0 \| [\d.]+ ",
    ),
}


SLOW = (
    "checkpoint_cost", "corruptions", "detection_step", "equal_samples", "false_verdicts",
    "find_images", "mask_ceiling", "peers/pretraining", "pretrain_step", "scaling",
    "segmentation_step", "start_up",
)  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in CASES]
)
def test_it_runs(name, tmp_path):
    flags, pattern = CASES[name]
    command = [f"benchmarks/{name}.py", *flags.split()]
    if name == "equal_samples":
        command += ["--study", str(tmp_path / "study.jsonl"), "--runs", str(tmp_path / "runs")]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(pattern, done.stdout), done.stdout
