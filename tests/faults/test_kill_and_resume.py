"""SIGKILL at random moments, and signals: the resumed run is the undisturbed one, bit by bit."""

import json
import os
import random
import signal
import time

import pytest
import torch
from harness import Saves, differing, flags, has_ended, kill_after, kill_when, wait_for

NEEDS_MUON = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="needs torch 2.9")
MAINS = ("main_pretrain", "main_finetune", "main_linprobe")


def kill_and_resume(zygote, main, folder, expected, kills, seed, slow_disk=0.0, more=()):
    """Kill runs at random moments until `kills` are done; compare every run that ends.

    Returns:
        (kills done, those in the middle of a save, runs that ended).
    """
    draw = random.Random(seed)
    longest = json.loads((expected / "results.json").read_text())["seconds"] + 80 * slow_disk + 1
    done = ended = cut = 0
    while done < kills:
        output = folder / f"run{ended}"
        output.mkdir()
        status, saves = None, Saves(output)
        while status != 0:
            # Another number of workers each time: it must not matter.
            workers = ["--num_workers", str(draw.choice((0, 0, 1, 2)))]
            argv = flags(main, output, *more, *workers, "--resume", "auto")
            pid = zygote.start(main, argv, output / "stdout", slow_disk)
            if done < kills:
                kill_after(pid, draw.uniform(0, longest))
            status = zygote.wait()
            assert status in (0, -signal.SIGKILL), (output / "stdout").read_text()
            done += status != 0
            cut += status != 0 and saves.was_cut()
        assert differing(expected, output) == []
        ended += 1
    print(
        f"{main}: {done} kills survived, {cut} in the middle of a save; {ended} runs compared, "
        "0 bytes differed"
    )
    return done, cut, ended


@pytest.mark.parametrize(
    ("main", "kills", "slow_disk"),
    [
        ("main_pretrain", 4, 0.0),
        ("main_pretrain", 3, 0.02),
        ("main_finetune", 3, 0.0),
        ("main_linprobe", 2, 0.01),
    ],
)
def test_killed_runs_end_with_the_same_bits(zygote, undisturbed, tmp_path, main, kills, slow_disk):
    expected = undisturbed(main)
    kill_and_resume(zygote, main, tmp_path, expected, kills, kills, slow_disk)


@pytest.mark.parametrize(
    ("main", "kills"),
    [("main_segmentation", 3), pytest.param("main_detection", 2, marks=pytest.mark.slow)],
)
def test_killed_runs_on_scenes_end_with_the_same_bits(
    zygote, undisturbed, scenes, tmp_path, main, kills
):
    """In the middle of a round, and of a pass over the data."""
    data = ("--data_path", str(scenes))
    expected = undisturbed(main, *data)
    kill_and_resume(zygote, main, tmp_path, expected, kills, 5, more=data)


def test_a_signal_saves_a_segmentation_in_the_middle_of_a_round(
    zygote, undisturbed, scenes, tmp_path
):
    expected = undisturbed("main_segmentation", "--data_path", str(scenes))
    log = tmp_path / "stdout"
    more = ("--data_path", str(scenes), "--save_every_steps", "1000000", "--resume", "auto")
    argv = flags("main_segmentation", tmp_path, *more)
    pid = zygote.start("main_segmentation", argv, log)
    wait_for(log, "round 1 1/4")
    os.kill(pid, signal.SIGTERM)
    assert zygote.wait() == 75, log.read_text()
    assert "SIGTERM: the run is saved" in log.read_text()
    assert zygote.run("main_segmentation", argv, log) == 0, log.read_text()
    assert differing(expected, tmp_path) == []


@pytest.mark.parametrize("phase", ["writing", "rotating"])
def test_kills_in_the_middle_of_a_background_save(zygote, undisturbed, tmp_path, phase):
    """Attempts are killed in the first, second or third save that they make, until it is done."""
    expected, saves, cut = undisturbed("main_pretrain"), Saves(tmp_path), 0
    log, argv = tmp_path / "stdout", flags("main_pretrain", tmp_path, "--resume", "auto")
    log.touch()
    is_there = saves.is_writing if phase == "writing" else saves.is_rotating
    for attempt in range(8):
        steps = log.read_text().count(" epoch ") + 1 + attempt % 3
        pid = zygote.start("main_pretrain", argv, log, slow_disk=0.03)
        kill_when(pid, lambda steps=steps: log.read_text().count(" epoch ") >= steps and is_there())
        assert zygote.wait() in (0, -signal.SIGKILL), log.read_text()
        cut += saves.was_cut()
    print(f"{phase}: {cut} kills in the middle of a save")
    assert cut >= 4
    assert zygote.run("main_pretrain", argv, log) == 0, log.read_text()
    assert differing(expected, tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("main", MAINS)
@pytest.mark.parametrize("slow_disk", [0.0, 0.02])
def test_hundreds_of_kills(zygote, undisturbed, tmp_path, main, slow_disk):
    expected = undisturbed(main)
    _, cut, _ = kill_and_resume(zygote, main, tmp_path, expected, 50, 7, slow_disk)
    assert cut > 0 or not slow_disk


@pytest.mark.parametrize(
    ("main", "more"),
    [
        ("main_pretrain", ("--accum_iter", "3")),  # with a tail
        ("main_pretrain", ("--amp", "bf16", "--mask_type", "independent")),
        ("main_pretrain", ("--keep_checkpoints", "1", "--keep_epochs", "1", "2")),
        pytest.param("main_pretrain", ("--opt", "muon", "--accum_iter", "2"), marks=NEEDS_MUON),
        pytest.param(
            "main_finetune", ("--amp", "fp16", "--max_steps", "6"), marks=pytest.mark.slow
        ),
    ],
    ids=lambda value: value[0].strip("-") if isinstance(value, tuple) else value,
)
def test_other_flags(zygote, undisturbed, tmp_path, main, more):
    expected = undisturbed(main, *more)
    kill_and_resume(zygote, main, tmp_path, expected, 2, 3, 0.0, more)


@pytest.mark.parametrize("main", MAINS)
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT]
)
def test_signal_saves_the_step_in_flight(zygote, undisturbed, tmp_path, main, number):
    """No --save_every_steps and no epoch's end helps: the signal alone saves."""
    if main != "main_pretrain" and number != signal.SIGTERM:
        pytest.skip("one signal is enough for the other mains")
    more = ("--save_every_steps", "1000000", "--save_every_epochs", "1000000")
    expected = undisturbed(main, *more)
    log = tmp_path / "stdout"
    argv = flags(main, tmp_path, *more, "--num_workers", "2", "--resume", "auto")
    pid = zygote.start(main, argv, log)
    wait_for(log, "epoch 0 1/4")
    os.kill(pid, number)
    status = zygote.wait()
    assert status == 75, log.read_text()
    assert f"{signal.Signals(number).name}: the run is saved" in log.read_text()
    assert zygote.run(main, argv, log) == 0, log.read_text()
    assert "resumed from" in log.read_text()
    assert differing(expected, tmp_path) == []


def test_a_second_interrupt_leaves_at_once_and_the_last_save_whole(zygote, undisturbed, tmp_path):
    """The save in flight is given up, before its file has the name of a checkpoint."""
    log, argv = tmp_path / "stdout", flags("main_pretrain", tmp_path, "--resume", "auto")
    pid = zygote.start("main_pretrain", argv, log, slow_disk=0.3)
    saves = Saves(tmp_path)
    while not (saves.before.exists() and saves.last.exists() and saves.is_writing()):
        assert not has_ended(pid), log.read_text()
        time.sleep(0.001)
    os.kill(pid, signal.SIGINT)
    time.sleep(0.05)
    os.kill(pid, signal.SIGINT)
    assert zygote.wait() == 130, log.read_text()
    assert "interrupted at once, without saving" in log.read_text()
    assert "is given up, the one before is intact" in log.read_text()
    assert saves.last.exists() and not saves.temporary.exists()
    assert zygote.run("main_pretrain", argv, log) == 0, log.read_text()
    assert differing(undisturbed("main_pretrain"), tmp_path) == []


def test_interrupt_of_the_whole_group_leaves_no_worker(zygote, tmp_path):
    """Ctrl-C reaches the workers too."""
    log = tmp_path / "stdout"
    argv = flags("main_pretrain", tmp_path, "--num_workers", "2", "--epochs", "1000")
    pid = zygote.start("main_pretrain", argv, log)
    wait_for(log, "epoch 0 2/4")
    assert len(session_of(pid)) == 3
    os.killpg(pid, signal.SIGINT)
    assert zygote.wait() == 75, log.read_text()
    deadline = time.monotonic() + 60
    while session_of(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert session_of(pid) == []
    assert "Traceback" not in log.read_text()


def test_killed_worker_is_replaced(zygote, undisturbed, tmp_path):
    expected = undisturbed("main_pretrain")
    log = tmp_path / "stdout"
    argv = flags("main_pretrain", tmp_path, "--num_workers", "2")
    pid = zygote.start("main_pretrain", argv, log)
    wait_for(log, "epoch 0 1/4")
    worker = next(p for p in session_of(pid) if p != pid)
    os.kill(worker, signal.SIGKILL)
    assert zygote.wait() == 0, log.read_text()
    assert "a data-loader worker died" in log.read_text()
    assert differing(expected, tmp_path) == []


def test_max_steps_inside_an_epoch_can_go_on(zygote, undisturbed, tmp_path):
    log = tmp_path / "stdout"
    argv = flags("main_pretrain", tmp_path, "--resume", "auto")
    assert zygote.run("main_pretrain", [*argv, "--max_steps", "6"], log) == 0, log.read_text()
    assert json.loads((tmp_path / "results.json").read_text())["steps"] == 6
    assert zygote.run("main_pretrain", argv, log) == 0, log.read_text()
    assert differing(undisturbed("main_pretrain"), tmp_path) == []


def session_of(leader: int) -> list[int]:
    """Processes of the session that a training process leads, from /proc."""
    processes = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                state, _, _, session = file.read().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(session) == leader and state != "Z":
            processes.append(int(name))
    return sorted(processes)
