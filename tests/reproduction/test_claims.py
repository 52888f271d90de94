"""Verdicts on planted predictions: of a real difference, of none, of its opposite, of one seed."""

import json
import os

import numpy as np
import pytest
from planted import plant

from reproduction import claims, paper
from reproduction.graph import Graph
from reproduction.scales import SMALL_SCALES

IMAGES, SEEDS = 2000, (0, 1, 2)


@pytest.fixture
def graph(tmp_path):
    made = Graph(SMALL_SCALES["small"], str(tmp_path))
    claims.prepare(made, SEEDS)
    return made


def draw(share: float, seed: int) -> np.ndarray:
    """Which images are right: the easiest ones, and so in any run nearly the same."""
    ease = np.random.default_rng(0).random(IMAGES)
    return ease + np.random.default_rng(seed).normal(0, 0.01, IMAGES) < share


def plant_column(graph, shares: dict[str, float], kind="finetune", seeds=SEEDS):
    for name, share in shares.items():
        for seed in seeds:
            plant(graph, f"seed-{seed}/{kind}/{name}", right=draw(share, seed), test_acc1=0.0)


def verdicts(graph, seeds=SEEDS) -> dict[str, claims.Verdict]:
    return {verdict.text: verdict for verdict in claims.judge(graph, seeds, "abc")}


def test_a_gain_a_loss_and_what_cannot_be_told(graph):
    shares = {"table3-a_mae": 0.5, "table3-b_max": 0.6, "table3-e_min": 0.4, "table3-f_mimae": 0.6}
    plant_column(graph, shares)
    found = verdicts(graph)
    gain, loss = found["(b) L_max gains over (a) MAE"], found["(e) L_min gains over (a) MAE"]
    none = found["(f) L_min gains beside L_max"]
    assert (gain.word, loss.word, none.word) == (claims.HOLDS, claims.FAILS, claims.OPEN)
    assert gain.found.difference == pytest.approx(10, abs=1) and gain.points == pytest.approx(0.3)
    assert none.found.low < 0 < none.found.high
    assert (
        "not run (seed-2/finetune/table3-d"
        in found["(f) the approximation network has to be trained"].cells()[-1]
    )


def test_one_seed_tells_nothing(graph):
    plant_column(graph, {"table3-a_mae": 0.3, "table3-b_max": 0.9}, seeds=(0,))
    found = verdicts(graph)["(b) L_max gains over (a) MAE"]
    assert (
        found.word == claims.OPEN
        and found.cells()[2].startswith("+6")
        and "[" not in (found.cells()[2])
    )


def test_what_is_small_is_within_a_point(graph):
    plant_column(graph, {"table3-f_mimae": 0.6, "figure2-masks_3": 0.6, "figure2-masks_5": 0.7})
    found = verdicts(graph)
    text = "the number of masks matters little: {} against 4"
    assert found[text.format(3)].word == claims.HOLDS
    assert found[text.format(5)].word == claims.FAILS


def test_collapse_is_a_probe_below_the_untrained_encoder(graph):
    text = "(c) L_max alone collapses: an untrained encoder probes better"
    plant_column(graph, {"scratch_vit_base": 0.5, "table3-c_max_only": 0.1}, "linprobe")
    assert verdicts(graph)[text].word == claims.HOLDS
    plant_column(graph, {"table3-c_max_only": 0.8}, "linprobe")
    assert verdicts(graph)[text].word == claims.FAILS


def test_few_labels_are_means_over_draws(graph):
    for name, right in (("mae_vit_base_800ep", (0.2, 0.4)), ("mimae_vit_base_200ep", (0.5, 0.7))):
        for seed in SEEDS:
            folder = plant(graph, f"seed-{seed}/one_percent/{name}", test_acc1=0.0)
            for number, share in enumerate(right):
                table = np.stack([draw(share, seed + number), np.ones(IMAGES)], 1)
                path = f"{folder.path}/draw-{number}"
                os.makedirs(path, exist_ok=True)
                np.save(f"{path}/test_predictions.npy", table.astype(np.int32))
    found = verdicts(graph)["MI-MAE (200 epochs) above MAE (800), few labels"]
    assert found.word == claims.HOLDS and found.found.difference == pytest.approx(30, abs=1)


def test_predictions_that_lack_images_judge_nothing(graph):
    plant_column(graph, {"table3-a_mae": 0.5, "table3-b_max": 0.6})
    path = f"{graph.folder('seed-1/finetune/table3-b_max')}/test_predictions.npy"
    table = np.load(path)
    table[[3, 5], 0] = -1
    np.save(path, table)
    found = verdicts(graph)["(b) L_max gains over (a) MAE"]
    assert found.found.num_seeds == 2 and "2 test images could not be read" in found.why


def test_robustness_and_frozen_features_come_from_their_json(graph):
    for seed, difference in zip(SEEDS, (-4.0, -5.0, -6.0), strict=True):
        folder = plant(graph, f"seed-{seed}/robustness/mae_and_mimae")
        one = {"difference": difference, "low": difference - 1, "high": difference + 1}
        content = {"MI-MAE": {"against MAE": {"accuracy under corruptions": one}}}
        with open(f"{folder.path}/robustness.json", "w") as file:
            json.dump({"classifiers": content}, file)
    found = verdicts(graph)["MI-MAE above MAE, under corruptions"]
    half = np.hypot(1, 4.3027 / np.sqrt(3))  # Student's t of two degrees of freedom
    assert found.word == claims.FAILS and found.found.difference == pytest.approx(-5)
    assert found.found.high == pytest.approx(-5 + half, abs=1e-3)
    assert "not run" in verdicts(graph)["MI-MAE above MAE, k-NN"].cells()[-1]


@pytest.mark.parametrize(("factor", "word"), [(1.02, "HOLDS"), (1.4, "FAILS")])
def test_cost_is_the_ratio_of_seconds(graph, factor, word):
    for seed in SEEDS:
        plant(graph, f"seed-{seed}/pretrain/table3-a_mae", seconds=100 + seed)
        plant(graph, f"seed-{seed}/pretrain/table3-f_mimae", seconds=factor * (100 + seed))
    (found,) = (v for text, v in verdicts(graph).items() if text.startswith("no noticeable"))
    assert found.word == getattr(claims, word)
    assert found.found.difference == pytest.approx(100 * (factor - 1))


def test_nothing_ran_is_said_of_every_claim(graph):
    found = claims.judge(graph, SEEDS, "abc")
    assert all(verdict.found is None and verdict.why for verdict in found)
    text = claims.markdown(found, "small")
    assert text.count("not run") == len(found) == len(claims.CLAIMS) + 4


def test_every_claim_is_of_rows_that_are_run_and_the_papers_difference_is_a_gain():
    for claim in claims.CLAIMS:
        for which in ("better", "worse"):
            assert claim.column in claim.row(which).columns, claim
        if claim.points is not None and not claim.small:
            assert claim.points > 0
    assert {claim.row("better").key for claim in claims.CLAIMS} >= {"b", "e", "f"}
    assert len({claim.text for claim in claims.CLAIMS}) == len(claims.CLAIMS)
    assert paper.FULL in {claim.row("better").recipe for claim in claims.CLAIMS}
