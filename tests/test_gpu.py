"""What only a GPU can show; skipped where there is none.

No test here takes a fixture: `benchmarks/gpu_hour.py check` calls them where there is no pytest.
Where there is no GPU it calls them all the same, in a trial, and they compute on the CPU.
"""

import contextlib
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

with contextlib.suppress(ImportError):
    import pytest

    pytestmark = pytest.mark.gpu

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TINY = "--input_size 32 --num_workers 0 --log_every 1 --warmup_epochs 0 --min_crop 1".split()


def make_folder(root: Path) -> Path:
    """train/ and val/ with classes a and b of 8 random pictures each."""
    draw = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("a", "b"):
            (root / part / name).mkdir(parents=True)
            for i in range(8):
                pixels = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return root


def run(module, folder: Path, *flags: object) -> dict:
    """What a main leaves in results.json."""
    words = ["--dataset", "image_folder", "--device", DEVICE, "--output_dir", folder, *flags]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        module.main(module.parse_args([*TINY, *map(str, words)]))
    return json.loads((folder / "results.json").read_text())


def test_a_run_goes_on_where_it_stopped_and_its_encoder_is_used():
    """Pre-training in each precision, stopped and resumed, then fine-tuning, probe and k-NN."""
    import main_finetune
    import main_linprobe
    import main_pretrain

    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        data = ["--data_path", make_folder(root / "images")]
        own = [*data, "--model", "mimae_vit_tiny_patch4", "--batch_size", 4, "--epochs", 2]
        for amp in ("none", "bf16") + (("fp16",) if DEVICE == "cuda" else ()):
            whole = run(main_pretrain, root / f"{amp}1", *own, "--amp", amp)
            run(main_pretrain, root / f"{amp}2", *own, "--amp", amp, "--max_steps", 3)
            again = run(main_pretrain, root / f"{amp}2", *own, "--amp", amp, "--resume", "auto")
            # A GPU's kernels may sum in another order.
            assert abs(again["train_loss"] - whole["train_loss"]) < 1e-3 * whole["train_loss"]
        encoder = [*data, "--finetune", root / "none1" / "checkpoint-last.pth", "--batch_size", 4]
        for module, flags in (
            (main_finetune, ["--epochs", 1, "--aa", "none"]), (main_linprobe, ["--epochs", 1]),
            (main_linprobe, ["--knn"]),
        ):  # fmt: skip
            found = run(module, root / f"{module.__name__}{flags[0]}", *encoder, *flags)
            assert any(name.endswith("acc1") for name in found)


def test_a_detector_finds_as_much_on_either_device():
    """The best scores of an untrained detector, in fp32."""
    from encoders.load import build_encoder
    from heads.maskrcnn import build_detector

    torch.manual_seed(0)
    encoder = build_encoder("vit_tiny_patch7", 0, 70, 3)
    model = build_detector(encoder, 3, [0.5] * 3, [0.5] * 3).eval()
    model.roi_heads.score_thresh = 0.0
    image = torch.rand(3, 70, 70, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        cpu = model([image])[0]
        here = model.to(DEVICE)([image.to(DEVICE)])[0]
    # Scores are close to each other, so a few boxes may suppress others than on the CPU.
    assert abs(len(cpu["scores"]) - len(here["scores"])) <= 0.1 * len(cpu["scores"])
    torch.testing.assert_close(here["scores"][:10].cpu(), cpu["scores"][:10], atol=1e-3, rtol=0)


def test_evaluations_of_frozen_features_agree_with_the_cpu():
    from util.evaluation.frozen import logistic
    from util.evaluation.frozen.knn import weighted_knn

    draw = torch.Generator().manual_seed(0)
    targets = torch.randint(3, (200,), generator=draw)
    features = torch.randn(200, 16, generator=draw) + 2 * torch.eye(3, 16)[targets]
    train, test = (features[:150], targets[:150]), (features[150:], targets[150:])
    assert abs(weighted_knn(train, test, device=DEVICE) - weighted_knn(train, test)) <= 2  # percent
    found = {}
    for device in ("cpu", DEVICE):
        there = [part.to(device) for part in train]
        heads = logistic.fit(*there, 3, [0.1, 1.0])
        found[device] = heads.predict(test[0].to(device)).cpu()
    assert (found["cpu"] == found[DEVICE]).float().mean() > 0.97
