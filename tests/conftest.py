"""Shared fixtures: small models, mains that run inside the test process, one run for all to use."""

import contextlib
import fcntl
import io
import json
import logging
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mains import Outcome, run_in_process
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_STEP_ID")

torch.set_num_threads(1)  # the models here are too small to share
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which `nohup make test` has ignored

# Files that take longest begin first: whatever comes last runs alone. Half of their time they
# wait for processes, so there are more of them at once than cores.
LONGEST = (
    "test_slurm", "test_kill_and_resume", "test_distributed", "test_reproduce",
    "test_main_pretrain", "test_main_evaluate", "test_leaving", "test_main_finetune",
    "test_main_detection", "test_opened_by_all", "test_agreement",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def pytest_runtest_setup(item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """What programs keep in the user's cache folder is the tests' own."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(autouse=True)
def _isolated(monkeypatch):
    """Tests know no launcher; logging's set-up and the clock of a log's lines are a test's own."""
    from util.progress import ProgressLine

    monkeypatch.setattr(ProgressLine, "due", math.inf)  # until a main's logging begins it anew
    monkeypatch.setattr(ProgressLine, "next_pause", 0.0)
    monkeypatch.setattr(ProgressLine, "pause", ProgressLine.pause)
    for name in LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


@pytest.fixture
def run_main_here(tmp_path):
    """(main's name, flags …) -> Outcome, with an output folder of the test's own, or `folder`."""
    count = 0

    def run(name: str, *argv, folder: Path | None = None) -> Outcome:
        nonlocal count
        count += 1
        return run_in_process(name, *argv, folder=folder or tmp_path / f"out{count}")

    return run


@pytest.fixture
def refuses(run_main_here):
    """Asserts that a main ends with status 2 and one line on stderr that has all the words."""

    def check(name: str, *argv, names: tuple[str, ...]) -> str:
        outcome = run_main_here(name, *argv)
        assert outcome.status == 2, outcome.err
        assert outcome.err.count("\n") == 1 and outcome.err.endswith("\n"), outcome.err
        for word in names:
            assert word in outcome.err
        return outcome.err

    return check


def run_script(name: str, *argv, folder: Path) -> Outcome:
    """Run a main as a person does, in a process of its own; it must succeed."""
    environment = {k: v for k, v in os.environ.items() if k not in LAUNCHER_VARIABLES}
    command = [sys.executable, str(ROOT / f"{name}.py"), *map(str, argv)]
    done = subprocess.run(
        [*command, "--device", "cpu", "--output_dir", str(folder)],
        capture_output=True, text=True, timeout=300, cwd=ROOT,
        env=environment | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return Outcome(done.returncode, done.stdout, done.stderr, folder)


@pytest.fixture(scope="session")
def run_main_script():
    """(main's name, flags …, folder=…) -> Outcome of the script, which has to succeed."""
    return run_script


def run_once(factory: pytest.TempPathFactory, folder: str, name: str, *argv) -> Outcome:
    """`run_script` by the first of the processes among which pytest-xdist divides the tests."""
    root = factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    kept = root / f"{folder}.json"
    with open(root / f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            done = run_script(name, *argv, folder=root / folder)
            kept.write_text(json.dumps([done.status, done.out, done.err]))
    return Outcome(*json.loads(kept.read_text()), root / folder)


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory) -> Outcome:
    """A pre-training run on digits, as a script: two epochs with k-NN and pictures."""
    return run_once(
        tmp_path_factory, "pretrained",
        "main_pretrain", "--epochs", 2, "--warmup_epochs", 1, "--batch_size", 128, "--keep_epochs",
        1, "--knn_every", 1, "--visualize", 3, "--log_every", 5,
    )  # fmt: skip


@pytest.fixture(scope="session")
def checkpoint(pretrained) -> Path:
    return pretrained.folder / "checkpoint-last.pth"


@pytest.fixture(scope="session")
def finetuned(tmp_path_factory, checkpoint) -> Outcome:
    """A classifier of digits that has learnt a little."""
    # A few steps of pre-training leave a large mean in the tokens: all layers have to learn.
    return run_once(
        tmp_path_factory, "finetuned",
        "main_finetune", "--finetune", checkpoint, "--epochs", 3, "--batch_size", 32, "--lr",
        3e-3, "--warmup_epochs", 0.5, "--layer_decay", 1, "--mixup", 0, "--cutmix", 0, "--aa",
        "none", "--reprob", 0, "--min_crop", 1, "--drop_path", 0,
    )  # fmt: skip


def tiny_mimae(**changes) -> torch.nn.Module:
    """A two-block MI-MAE of width 16 on 8 x 8 pixels, patch 2, in float64, the same each time."""
    from models_mimae import MaskedAutoencoderViT

    torch.manual_seed(1)
    options = dict(
        img_size=8, patch_size=2, in_chans=1, embed_dim=16, depth=2, num_heads=2,
        decoder_embed_dim=8, decoder_depth=1, decoder_num_heads=2,
    )  # fmt: skip
    return MaskedAutoencoderViT(**options | changes).double()


@pytest.fixture
def tiny():
    return tiny_mimae


@pytest.fixture(scope="session")
def image_tree(tmp_path_factory) -> Path:
    """train/ and val/ with classes a and b of random 16 x 16 colour PNGs: 6 and 2 of each."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 2)):
        for name in ("a", "b"):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{name}_{i}.png")
    return root


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """Scenes of digits, 64 x 64 pixels: 20 to train on and 5 to validate."""
    from tools import scenes

    folder = tmp_path_factory.mktemp("scenes")
    flags = "--images 20 --val_images 5 --size 64 --num_workers 0".split()
    with contextlib.redirect_stdout(io.StringIO()):
        scenes.main(scenes.parse_args([str(folder), *flags]))
    return folder
