"""Two ranks, a signal and a slow disk: nobody leaves before rank 0 has saved."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ranks import free_port

from util.weights.checkpoint_file import read_checkpoint

# A checkpoint's flush is announced, and takes until the test lets it go on.
SLOW = """
import os, sys, time
import main_pretrain
from util.entry import run_main
flush = os.fsync
def slow(descriptor):
    print("flushing", flush=True)
    while not os.path.exists(sys.argv[-1] + ".go"):
        time.sleep(0.05)
    flush(descriptor)
os.fsync = slow
run_main(main_pretrain.main, main_pretrain.parse_args)
"""


@pytest.fixture
def ranks(tmp_path):
    flags = "--device cpu --max_steps 100000 --log_seconds 0 --batch_size 32 --num_workers 0"
    words = [*flags.split(), "--save_every_epochs", "100000"]  # so the signal alone saves
    words += ["--output_dir", str(tmp_path / "run")]
    environment = os.environ | {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SLOW, *words],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": "0"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    wait_for(started[0], "epoch 0 2/")
    yield started
    for process in started:
        process.kill()
        process.communicate()


def wait_for(process: subprocess.Popen, words: str) -> None:
    assert any(words in line for line in process.stdout)


def test_a_signal_to_one_rank_saves_before_any_leaves(ranks, tmp_path):
    """torchrun ends all ranks as soon as one has left: the checkpoint must be there by then."""
    ranks[1].send_signal(signal.SIGTERM)
    wait_for(ranks[0], "flushing")
    with pytest.raises(subprocess.TimeoutExpired):
        ranks[1].wait(8)
    (tmp_path / "run.go").touch()
    said = ranks[1].communicate(timeout=120)[1]
    assert ranks[1].returncode == 75, said
    state = read_checkpoint(str(tmp_path / "run" / "checkpoint-last.pth"))
    assert state["progress"]["total_steps"] >= 2
    said = ranks[0].communicate(timeout=120)[1]
    assert ranks[0].returncode == 75, said
    assert "SIGTERM: the run is saved" in said


def test_a_peer_that_dies_during_the_save_costs_no_checkpoint(ranks, tmp_path):
    ranks[0].send_signal(signal.SIGTERM)
    wait_for(ranks[0], "flushing")
    ranks[1].kill()
    ranks[1].wait()
    (tmp_path / "run.go").touch()
    said = ranks[0].communicate(timeout=120)[1]
    assert ranks[0].returncode == 69, said
    assert said.splitlines()[-1].startswith("error: other ranks are lost (")
    assert Path(tmp_path, "run", "checkpoint-last.pth").exists()
    read_checkpoint(str(tmp_path / "run" / "checkpoint-last.pth"))


def test_rank_0_that_dies_during_the_save_ends_the_others_with_69(ranks):
    ranks[1].send_signal(signal.SIGTERM)
    wait_for(ranks[0], "flushing")
    ranks[0].kill()
    said = ranks[1].communicate(timeout=120)[1]
    assert ranks[1].returncode == 69, said
