"""The same objective, batches and updates for 1, 2 and 4 processes."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from ranks import free_port, in_ranks

from engine_pretrain import step_noise, train_step
from models_mimae import MaskedAutoencoderViT
from util.cluster import distributed
from util.errors import UsageError
from util.training.muon import new_optimizer
from util.training.optim import decay_groups, set_lr
from util.training.precision import Precision

STEPS, GLOBAL_BATCH = 20, 8

LOSSES = ("loss", "rec", "max_mi", "min_mi", "apx", "info_nce_accuracy")


def train(rank: int, options: dict, path: str, num_micro: int, exact: bool) -> None:
    """20 steps on this rank's rows of fixed global batches; rank 0 writes losses and weights."""
    world, device = distributed.world_size(), torch.device("cpu")
    opt = options.pop("opt", "adamw")
    torch.manual_seed(0)
    bare = MaskedAutoencoderViT(
        8, 2, 1, embed_dim=32, depth=2, num_heads=2, decoder_embed_dim=16, decoder_depth=1,
        decoder_num_heads=2, norm_pix_loss=False, mi_start_loss=0.95, **options,
    ).double()  # fmt: skip
    model = distributed.wrap(bare, device, sync_buffers=False)
    optimizer = new_optimizer(opt, bare, decay_groups(bare, 0.05))
    precision = Precision("none", device)
    set_lr(optimizer, 3e-3)
    history = []
    for step in range(STEPS):
        draw = torch.Generator().manual_seed(step)
        shape = (num_micro, GLOBAL_BATCH, 1, 8, 8)
        imgs = torch.rand(shape, generator=draw, dtype=torch.float64)
        noise = bare.masks.noise_shape(num_micro * GLOBAL_BATCH)
        noise = step_noise(noise, num_micro, 1, step, device)
        own = imgs[:, rank::world]
        losses, _ = train_step(model, own, noise, optimizer, precision, 1.0, exact)
        history.append(distributed.reduce_mean(torch.stack([losses[n].double() for n in LOSSES])))
    if rank == 0:
        torch.save({"history": torch.stack(history), "model": bare.state_dict()}, path)


def start(world: int, options: dict, path, num_micro: int, exact: bool) -> None:
    """Run `train` in ranks of their own."""
    answers = in_ranks(train, world, path.parent, options, str(path), num_micro, exact)
    assert answers == [None] * world and path.exists(), answers


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """Losses and weights of one process, by what `start` takes."""
    done = {}

    def result(options: dict, *step):
        key = json.dumps([options, *step])
        if key not in done:
            path = tmp_path_factory.mktemp("single") / "result.pth"
            start(1, options, path, *step)
            done[key] = torch.load(path, weights_only=True)
        return done[key]

    return result


BATCH = {"club_negatives": "batch"}
TOKENS = {"club_level": "token", "mask_type": "independent", "club_negatives": "batch"}

NEEDS_MUON = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="needs torch 2.9")
MORE = [
    (4, {}, 1, False), (2, {}, 2, False), (4, BATCH, 2, False), (2, {}, 2, True),
    (4, BATCH, 2, True),
]  # fmt: skip


@pytest.mark.parametrize(
    ("world", "options", "num_micro", "exact"),
    [
        (2, {}, 1, False), (4, {"mi_head": "mlp"}, 2, False),
        (2, BATCH, 1, False), (2, TOKENS, 1, False), (2, TOKENS, 2, True),
        pytest.param(2, {"opt": "muon"}, 2, False, marks=NEEDS_MUON),
        *[pytest.param(*case, marks=pytest.mark.slow) for case in MORE],
    ],
)  # fmt: skip
def test_world_size_changes_nothing(single, tmp_path, world, options, num_micro, exact):
    """MI-MAE with every loss on, 20 clipped steps in float64, accumulated or not."""
    expected = single(options, num_micro, exact)
    path = tmp_path / "result.pth"
    start(world, options, path, num_micro, exact)
    result = torch.load(path, weights_only=True)
    torch.testing.assert_close(
        result["history"][:, :5], expected["history"][:, :5], rtol=1e-10, atol=1e-10
    )
    loss, rec, max_mi, min_mi, apx = expected["history"][:, :5].unbind(1)
    mi_loss = loss - rec - apx
    assert mi_loss[0].abs() < 1e-12  # Assumption 3's gate was closed, and opened
    torch.testing.assert_close(mi_loss[-1], (max_mi + 10 * min_mi)[-1])
    for name, weight in result["model"].items():
        torch.testing.assert_close(
            weight, expected["model"][name], rtol=1e-10, atol=1e-10, msg=name
        )


def torchrun() -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    return [*launcher, "--master_port", str(free_port())]


AUGMENTED = (  # which digits are not by default
    "--lr 1e-3 --mixup 0.8 --cutmix 1 --aa rand-m9-mstd0.5-inc1 --reprob 0.25 --drop_path 0.1 "
    "--min_crop 0.6"
)


@pytest.mark.parametrize(
    ("main", "flags"),
    [
        ("main_pretrain.py", "--mi_start_loss inf --knn_every 1"),
        pytest.param("main_finetune.py", AUGMENTED, marks=pytest.mark.slow),
    ],
)
def test_torchrun_gives_the_log_of_one_process(tmp_path, main, flags):
    """The whole program: batches, augmentation, masks, mixup, drop path, losses, evaluation."""
    common = "--train_fraction 0.1 --epochs 2 --warmup_epochs 1 --device cpu".split()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for world in (1, 2):
        output = ["--output_dir", str(tmp_path / str(world)), "--batch_size", str(32 // world)]
        launcher = torchrun() if world > 1 else [sys.executable]
        command = [*launcher, main, *common, *flags.split(), *output]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    logs = [(tmp_path / str(world) / "log.txt").read_text().splitlines() for world in (1, 2)]
    assert len(logs[0]) == len(logs[1]) == 2
    for one, two in zip(*logs, strict=True):
        one, two = json.loads(one), json.loads(two)
        assert one.keys() == two.keys()
        # Neighbours of a hardly trained encoder are nearly tied: rounding may turn a few of 382.
        for name in [name for name in one if "acc" in name and "info_nce" not in name]:
            assert one.pop(name) == pytest.approx(two[name], abs=4 / 3.6), name
        for name, value in one.items():
            assert value == pytest.approx(two[name], rel=2e-3, abs=2e-5), name


def test_ranks_evaluate_what_is_saved(tmp_path, run_main_here):
    """A probe's BatchNorm statistics differ over the ranks; the checkpoint has rank 0's."""
    words = ["main_linprobe.py", "--epochs", "1", "--batch_size", "8", "--train_fraction", "0.2"]
    words += ["--device", "cpu", "--model", "pixels", "--output_dir", str(tmp_path / "two")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*torchrun(), *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    logged = json.loads((tmp_path / "two" / "log.txt").read_text())
    saved = tmp_path / "two" / "checkpoint-last.pth"
    found = run_main_here("main_linprobe", "--model", "pixels", "--eval", "--resume", saved)
    assert logged["test_loss"] == pytest.approx(found.results()["loss"], rel=1e-5)
    assert logged["test_acc1"] == pytest.approx(found.results()["acc1"])


def test_a_rank_whose_peer_dies_ends_with_69(tmp_path):
    words = ["main_pretrain.py", "--device", "cpu", "--max_steps", "100000", "--log_seconds", "0"]
    words += ["--output_dir", str(tmp_path / "run"), "--batch_size", "32"]
    environment = os.environ | {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    ranks = [
        subprocess.Popen(
            [sys.executable, *words], env=environment | {"RANK": str(rank), "LOCAL_RANK": "0"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    for line in ranks[0].stdout:
        if "epoch 0 2/" in line:
            break
    ranks[1].send_signal(signal.SIGKILL)
    ranks[1].communicate(timeout=60)
    said = ranks[0].communicate(timeout=120)[1]
    assert ranks[0].returncode == 69, said
    assert said.splitlines()[-1].startswith("error: other ranks are lost (")


def test_what_is_set_to_nothing_is_not_set_and_words_are_one_line(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_ID"):
        monkeypatch.setenv(name, "")
    assert distributed.launcher_environment() is None
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "")
    found = distributed.launcher_environment()
    assert (found["rank"], found["world_size"], found["local_rank"]) == (1, 2, 0)
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UsageError, match="WORLD_SIZE=two in the environment is no number"):
        distributed.launcher_environment()
