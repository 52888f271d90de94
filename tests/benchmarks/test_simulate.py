"""The simulation against closed forms, its own limits, and published hours."""

import math
from dataclasses import replace

import pytest

from benchmarks import simulate
from benchmarks.simulate import MACHINES, Work, gather_over, not_hidden, step, sum_over

H100 = MACHINES["H100"]
BASE = Work(flops=57.7e9, parameters=115_200_000, width=768, kernels=870)
LARGE = Work(flops=124e9, parameters=335_000_000, width=1024, kernels=1500)


def test_a_sum_of_two_is_half_of_it_there_and_half_back():
    on = replace(H100, hop_in=0)
    assert sum_over(1e9, 2, on) == pytest.approx(1e9 / (H100.nvlink * 1e9))
    assert sum_over(0, 2, H100) == pytest.approx(2 * H100.hop_in * 1e-6)
    assert gather_over(1e9, 2, on) == pytest.approx(sum_over(1e9, 2, on) / 2)


def test_between_nodes_the_network_and_the_shorter_way_decide():
    assert sum_over(1e9, 16, H100) == pytest.approx(
        15 / 8 / H100.network + 2e-6 * (7 * H100.hop_in + H100.hop_out), rel=1e-6
    )
    messages = [sum_over(0, gpus, H100) for gpus in (2, 8, 16, 64, 512)]
    assert messages == sorted(messages) and messages[-1] < 2e-4  # a ring of 512 has 3 ms


def test_gradients_hide_behind_the_backward_pass_but_for_the_last_bucket():
    size = 4.0 * BASE.parameters
    buckets = math.ceil(size / simulate.BUCKET)
    last = sum_over(size / buckets, 64, H100)
    assert not_hidden(size, 10.0, 64, H100) == pytest.approx(last)
    assert not_hidden(size, 0.0, 64, H100) == pytest.approx(buckets * last)
    assert not_hidden(size, 1.0, 1, H100) == 0


def test_one_gpu_computes_and_many_are_never_faster_than_their_share():
    one = step(BASE, H100, 1, 1024, 4)
    assert one["exposed"] == 0 and one["compute"] == pytest.approx(BASE.flops * 4096 / 297e12)
    for gpus in (2, 8, 64, 512):
        assert step(BASE, H100, gpus, 1024, 4)["step"] > one["step"] / gpus


def test_a_step_is_no_shorter_than_the_launching_of_its_kernels():
    found = step(BASE, H100, 512, 512, 1)
    assert found["compute"] == pytest.approx(BASE.kernels * 6e-6)


def test_one_mask_has_no_mi_losses_and_slow_cores_set_the_pace():
    assert step(BASE, H100, 64, 4096, 1)["mi"] == 0 < step(BASE, H100, 64, 1024, 4)["mi"]
    found = step(BASE, H100, 8, 4096, 1, loaded=100)
    assert found["step"] == pytest.approx(512 / 100) and found["waits"] > 0


def test_the_price_of_the_global_batch_grows_with_its_square():
    fast = replace(H100, nvlink=math.inf, network=math.inf, hop_in=0, hop_out=0)
    small, large = (step(BASE, fast, 8, images, 4)["mi"] for images in (1024, 2048))
    assert large == pytest.approx(4 * small)


def test_published_hours_come_out():
    works = {"base": BASE, "large": LARGE}
    rows = simulate.check(works).splitlines()[2:]
    for row in rows:
        published, calculated = map(float, row.strip("| ").split(" | ")[-2:])
        assert calculated == pytest.approx(published, rel=0.25), row


def test_the_command_prints_its_curves(capsys):
    simulate.main(["--model", "small", "--gpus", "H100", "--teraflops", "100", "--num_masks", "2"])
    told = capsys.readouterr().out
    assert "ViT-small: " in told and told.count("\n| ") >= 15
    assert "| 512 | 2 |" in told and "MI-MAE, 400 epochs" in told


def test_what_is_counted_is_what_the_recipes_say():
    found = simulate.count("small")  # 38.5 GFLOP
    assert found.flops == pytest.approx(38.5e9, rel=0.02) and found.width == 384
    assert 300 < found.kernels < 2000
